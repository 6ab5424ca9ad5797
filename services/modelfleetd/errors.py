"""Every way in which a call can be refused. Standard library only.

FleetError
├── InvalidFields            INVALID_ARGUMENT      fields of the request are wrong, all of them named
├── InvalidPageToken         INVALID_ARGUMENT      a page token of another request, or damaged
├── FieldImmutable           INVALID_ARGUMENT      a field that cannot change after creation
├── ResourceNotFound         NOT_FOUND
├── ResourceExists           ALREADY_EXISTS
├── RequestIdReused          ALREADY_EXISTS        same request_id, other content
├── UriTaken                 ALREADY_EXISTS        another asset has the URI
├── EtagMismatch             ABORTED               somebody else changed it
├── RouteBusy                ABORTED               another launch is active on the route
├── RevisionOutOfRange       OUT_OF_RANGE          a revision that is gone or not there yet
├── IdentityMissing          UNAUTHENTICATED
├── RoleMissing              PERMISSION_DENIED
├── SelfApproval             PERMISSION_DENIED
├── DelegationDenied         PERMISSION_DENIED
├── ResourceInUse            FAILED_PRECONDITION   others refer to it
├── FieldOwnedByLaunches     FAILED_PRECONDITION   only a launch may set it
├── ReferenceNotFound        FAILED_PRECONDITION   the request refers to what does not exist
├── EntriesInvalidated       FAILED_PRECONDITION   a schema or scheme that entries would not fulfil
├── CriticalityNeedsApproval FAILED_PRECONDITION   TIER0 and TIER1 go by request
├── RequestPending           FAILED_PRECONDITION   one is waiting for a decision already
├── RevisionMismatch         FAILED_PRECONDITION   the registry has moved on
├── WrongState               FAILED_PRECONDITION   the verb is not allowed now
├── StepMovedOn              FAILED_PRECONDITION
├── PlanInfeasible           FAILED_PRECONDITION
├── NotConfigured            FAILED_PRECONDITION   something is missing in the registry
├── LaunchEnded              FAILED_PRECONDITION   finished otherwise, for ever
├── ModelOnHold              FAILED_PRECONDITION
├── CertificateMissing       FAILED_PRECONDITION
├── CertificateExpired       FAILED_PRECONDITION   measured too long ago
├── EndStateExceedsQuota     FAILED_PRECONDITION   borrowed for good without a loan
├── LoanExceedsLending       FAILED_PRECONDITION   more than the lender lends
├── RecordingUnreadable      FAILED_PRECONDITION   not ready, empty, or gone
├── DemandUnmeasurable       FAILED_PRECONDITION   the query gives no rates, or too many series
├── SettlementExceedsHold    FAILED_PRECONDITION
├── StaleEpoch               FAILED_PRECONDITION   the holder was replaced
├── NoAvailableReplica       FAILED_PRECONDITION
├── ReplicaCannotStart       FAILED_PRECONDITION
├── QuotaExceeded            RESOURCE_EXHAUSTED    the pool is too small
├── Overloaded               RESOURCE_EXHAUSTED    the server is too busy
├── PartUnavailable          UNAVAILABLE           the database, another service, an agent
├── DeadlinePassed           DEADLINE_EXCEEDED
├── RefusedElsewhere         (as it was said)      another service refused
├── EntriesRefused           (as of the first)     several entries at once, and some of them are refused
├── CallCancelled            CANCELLED
├── MethodUnknown            UNIMPLEMENTED
└── InternalError            INTERNAL              a defect

`reason` is the name of a value of modelfleet.common.v1.ErrorReason, where each is documented with an example. Every
variable of a message is in `metadata`. Messages are short, say what to do next, and never carry a driver's words.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Code(enum.IntEnum):
    """Canonical gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request, and what would be accepted."""

    path: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaShortage:
    """Units of one flavor in one region that a pool lacks. `kept`: what is free besides, for those who wait."""

    pool: str
    flavor: str
    region: str
    requested: int
    available: int
    kept: int = 0
    # What would free enough, where somebody looked.
    remedy: str = ""

    def __str__(self) -> str:
        kept = f" ({self.kept} more are kept for launches that wait)" if self.kept else ""
        said = (
            f"{self.pool} has {self.available} free units of {self.flavor} in {self.region}{kept}, "
            f"{self.requested} were requested"
        )
        return f"{said} ({self.remedy})" if self.remedy else said


@dataclass(frozen=True, slots=True)
class Precondition:
    """One thing that has to be different before the call can succeed."""

    type: str
    subject: str
    description: str


class FleetError(Exception):
    """A call that is refused, with everything that the caller is told about it."""

    code = Code.UNKNOWN
    reason = "ERROR_REASON_UNSPECIFIED"

    def __init_subclass__(cls, code: Code = Code.UNKNOWN) -> None:
        """Gives a class its code; its reason is its name, as the proto spells it: RouteBusy is ROUTE_BUSY."""
        if FleetError not in cls.__bases__:
            return  # A special case of an error is answered like it.
        cls.code = code
        cls.reason = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()

    def __init__(
        self,
        message: str,
        *,
        subject: str | None = None,
        violations: Iterable[FieldViolation] = (),
        shortages: Iterable[QuotaShortage] = (),
        retry_after: float | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: _as_text(value) for key, value in metadata.items()}
        self.violations = tuple(violations)
        self.quota = tuple(shortages)
        self.retry_after = retry_after
        self.preconditions: tuple[Precondition, ...] = (
            () if subject is None else (Precondition(self.reason, subject, message),)
        )


def _as_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple, set, frozenset)) else str(value)


class InvalidFields(FleetError, code=Code.INVALID_ARGUMENT):
    def __init__(self, violations: Iterable[FieldViolation]) -> None:
        found = tuple(violations)
        shown = "; ".join(f"{v.path}: {v.description}" for v in found[:3])
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        super().__init__(f"{shown}{more}.", violations=found, fields=[v.path for v in found])


def invalid(path: str, description: str) -> InvalidFields:
    """Returns the error of a single wrong field."""
    return InvalidFields([FieldViolation(path, description)])


class InvalidPageToken(FleetError, code=Code.INVALID_ARGUMENT):
    def __init__(self) -> None:
        description = "does not belong to this request; start again without it"
        super().__init__(f"page_token: {description}.", violations=[FieldViolation("page_token", description)])


class FieldImmutable(FleetError, code=Code.INVALID_ARGUMENT):
    def __init__(self, field: str, instead: str) -> None:
        description = f"cannot change; {instead}"
        super().__init__(f"{field} {description}.", violations=[FieldViolation(field, description)], field=field)


class ResourceNotFound(FleetError, code=Code.NOT_FOUND):
    def __init__(self, resource: str) -> None:
        super().__init__(f"{resource} does not exist.", resource=resource)


class ResourceExists(FleetError, code=Code.ALREADY_EXISTS):
    def __init__(self, resource: str) -> None:
        super().__init__(f"{resource} exists already.", resource=resource)


class RequestIdReused(FleetError, code=Code.ALREADY_EXISTS):
    def __init__(self, request_id: str) -> None:
        message = f"request_id {request_id} was used before with other content; make a new UUID for each new intent."
        super().__init__(message, request_id=request_id)


class UriTaken(FleetError, code=Code.ALREADY_EXISTS):
    def __init__(self, uri: str, asset: str) -> None:
        super().__init__(f"{asset} has the URI {uri} already; change that one.", uri=uri, asset=asset)


class EtagMismatch(FleetError, code=Code.ABORTED):
    def __init__(self, resource: str, etag: str, current: str, why: str = "") -> None:
        why = why or "was changed by somebody else; read it again, apply the change, send the new etag"
        super().__init__(f"{resource} {why}.", resource=resource, etag=etag, current_etag=current)


class RouteBusy(FleetError, code=Code.ABORTED):
    def __init__(self, model_type: str, launch: str) -> None:
        message = f"{launch} is active on {model_type}; wait for its end, or create the launch with queue (--queue)."
        super().__init__(message, model_type=model_type, launch=launch)


class RevisionOutOfRange(FleetError, code=Code.OUT_OF_RANGE):
    def __init__(self, revision: int, oldest: int, current: int) -> None:
        message = (
            f"Revision {revision} is not between {oldest} and {current}; read what is current and go on from there."
        )
        super().__init__(message, revision=revision, oldest_revision=oldest, current_revision=current)


class IdentityMissing(FleetError, code=Code.UNAUTHENTICATED):
    def __init__(self, why: str = "the call carries none") -> None:
        super().__init__(f"No valid identity: {why}.", why=why)


class RoleMissing(FleetError, code=Code.PERMISSION_DENIED):
    def __init__(self, principal: str, method: str, needed: Sequence[str], team: str | None = None) -> None:
        where = f" on {team}" if team else ""
        roles = " or ".join(needed) or "a role that no method rule names"
        message = f"{principal} may not call {method}{where}; it takes the role {roles}."
        super().__init__(message, principal=principal, method=method, team=team or "", needed_roles=needed)


class SelfApproval(FleetError, code=Code.PERMISSION_DENIED):
    def __init__(self, principal: str) -> None:
        super().__init__(f"{principal} asked for it, so somebody else has to approve it.", principal=principal)


class DelegationDenied(FleetError, code=Code.PERMISSION_DENIED):
    def __init__(self, principal: str) -> None:
        message = f"{principal} is not a service and cannot act on behalf of somebody."
        super().__init__(message, principal=principal)


class ResourceInUse(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, resource: str, referred_by: Sequence[str]) -> None:
        shown = ", ".join(referred_by[:3]) + (" and others" if len(referred_by) > 3 else "")
        message = f"{resource} is in use by {shown}; remove these references first."
        super().__init__(message, subject=resource, resource=resource, referred_by=referred_by[:10])


class FieldOwnedByLaunches(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, field: str, command: str) -> None:
        message = f"{field} belongs to launches; run: {command}"
        super().__init__(message, subject=field, field=field, command=command)


class ReferenceNotFound(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, field: str, resource: str) -> None:
        message = f"{field} refers to {resource}, which does not exist; create it first, or check its name."
        super().__init__(message, subject=resource, field=field, resource=resource)


class EntriesInvalidated(FleetError, code=Code.FAILED_PRECONDITION):
    """Entries that would no longer be valid, each with what is wrong: `problems` by name, of `count` in all."""

    def __init__(self, resource: str, problems: Mapping[str, str], count: int) -> None:
        shown = "; ".join(f"{name}: {problem}" for name, problem in list(problems.items())[:3])
        more = f"; and {count - 3:,} more" if count > 3 else ""
        message = (
            f"{resource} would make {count:,} {'entry' if count == 1 else 'entries'} invalid: {shown}{more}. "
            "Mend them first, or write it with force."
        )
        super().__init__(message, subject=resource, resource=resource, count=count, entries=list(problems)[:100])
        self.preconditions = tuple(
            Precondition(self.reason, name, problem) for name, problem in list(problems.items())[:100]
        )


class CriticalityNeedsApproval(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, resource: str, tier: str, command: str) -> None:
        message = f"{resource} comes to {tier} by request; run: {command}"
        super().__init__(message, subject=resource, resource=resource, tier=tier, command=command)


class RequestPending(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, resource: str, request: str) -> None:
        message = f"{request} for {resource} waits for a decision already; withdraw it first."
        super().__init__(message, subject=resource, resource=resource, request=request)


class RevisionMismatch(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, expected: int, current: int) -> None:
        message = f"The registry is at revision {current}, not {expected}; read again and decide anew."
        super().__init__(message, subject="registry", expected_revision=expected, current_revision=current)


class WrongState(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, resource: str, state: str, allowed: Sequence[str]) -> None:
        now = ", ".join(allowed) or "nothing"
        message = f"{resource} is {state}; allowed now: {now}."
        super().__init__(message, subject=resource, resource=resource, state=state, allowed=allowed)


class StepMovedOn(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, launch: str, expected: int, current: int) -> None:
        message = f"{launch} is at step {current}, not {expected}."
        super().__init__(message, subject=launch, launch=launch, expected_step=expected, current_step=current)


class PlanInfeasible(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, why: str, *, missing_units: int, flavor: str, region: str, when: str = "") -> None:
        # Nothing is missing where it is the number of steps, or the time, that does not fit.
        units = "1 unit" if missing_units == 1 else f"{missing_units} units"
        lacks = f"it lacks {units} of {flavor} in {region}" if missing_units else ""
        message = "; ".join(part for part in (f"No plan fits: {why}", lacks, when) if part) + "."
        super().__init__(message, subject=flavor, why=why, missing_units=missing_units, flavor=flavor, region=region)


class NotConfigured(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, resource: str, field: str, remedy: str = "set it first") -> None:
        message = f"{resource} has no {field}; {remedy}."
        super().__init__(message, subject=resource, resource=resource, field=field)


class LaunchEnded(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, launch: str, outcome: str) -> None:
        message = f"{launch} has ended as {outcome}, for ever."
        super().__init__(message, subject=launch, launch=launch, outcome=outcome)


class ModelOnHold(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, model: str, hold: str, reason: str) -> None:
        lift = f"modelfleet launch hold lift {hold.rpartition('/')[2]} --reason WHY"
        message = f"{hold} forbids launching {model}: {reason.rstrip('.')}. Where that is over, lift it: {lift}"
        super().__init__(message, subject=model, model=model, hold=hold)


class CertificateMissing(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, model: str) -> None:
        message = f"No valid certificate states what a replica of {model} carries; create one, or a load test."
        super().__init__(message, subject=model, model=model)


class CertificateExpired(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, model: str, certificate: str, expire_time: str) -> None:
        message = f"{certificate} of {model} expired at {expire_time}: measure again, or allow an expired certificate."
        super().__init__(message, subject=model, model=model, certificate=certificate, expire_time=expire_time)


class EndStateExceedsQuota(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, pool: str, flavor: str, region: str, end_units: int, allowed_units: int) -> None:
        message = (
            f"{pool} would end with {end_units} units of {flavor} in {region} for this launch; its quota and the loans "
            f"to it leave room for {allowed_units}: ask a lender for a loan."
        )
        super().__init__(
            message,
            subject=pool,
            pool=pool,
            flavor=flavor,
            region=region,
            end_units=end_units,
            allowed_units=allowed_units,
        )


class LoanExceedsLending(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, lender: str, flavor: str, region: str, requested: int, lendable: int) -> None:
        message = f"{lender} still lends {lendable} units of {flavor} in {region}, not {requested}."
        super().__init__(
            message,
            subject=lender,
            lender=lender,
            flavor=flavor,
            region=region,
            requested=requested,
            lendable=lendable,
        )


class RecordingUnreadable(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, recording: str, why: str) -> None:
        message = f"{recording} cannot be replayed: {why}."
        super().__init__(message, subject=recording, recording=recording, why=why)


class DemandUnmeasurable(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, model_type: str, region: str, why: str) -> None:
        message = f"The demand of {model_type} in {region} cannot be measured: {why}."
        super().__init__(message, subject=model_type, model_type=model_type, region=region, why=why)


class SettlementExceedsHold(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, reservation: str, held: int, requested: int) -> None:
        message = f"{reservation} holds {held} units, {requested} cannot be settled from it."
        super().__init__(message, subject=reservation, reservation=reservation, held=held, requested=requested)


class StaleEpoch(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, target: str, epoch: int, floor: int) -> None:
        message = f"Epoch {epoch} is older than {floor}, the floor of {target}: the holder was replaced; claim again."
        super().__init__(message, subject=target, target=target, epoch=epoch, floor=floor)


class NoAvailableReplica(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, target: str, model: str) -> None:
        message = f"{model} has no available replica on {target}, so it cannot be given weight."
        super().__init__(message, subject=target, target=target, model=model)


class ReplicaCannotStart(FleetError, code=Code.FAILED_PRECONDITION):
    def __init__(self, target: str, model: str, why: str) -> None:
        message = f"A replica of {model} cannot start on {target}: {why}."
        super().__init__(message, subject=target, target=target, model=model, why=why)


class QuotaExceeded(FleetError, code=Code.RESOURCE_EXHAUSTED):
    def __init__(self, shortages: Sequence[QuotaShortage]) -> None:
        first = shortages[0]
        remedy: dict[str, Any] = {"remedy": first.remedy} if first.remedy else {}
        super().__init__(
            "; ".join(map(str, shortages)) + ".",
            shortages=shortages,
            pool=first.pool,
            flavor=first.flavor,
            region=first.region,
            requested=first.requested,
            available=first.available,
            **remedy,
        )


class Overloaded(FleetError, code=Code.RESOURCE_EXHAUSTED):
    def __init__(self, retry_after: float = 1.0) -> None:
        message = f"Too busy now; try again in {retry_after:g} s."
        super().__init__(message, retry_after=retry_after, retry_after_seconds=f"{retry_after:g}")


class PartUnavailable(FleetError, code=Code.UNAVAILABLE):
    def __init__(self, part: str, retry_after: float | None = None) -> None:
        super().__init__(f"{part} does not answer now; try again.", retry_after=retry_after, part=part)


class DeadlinePassed(FleetError, code=Code.DEADLINE_EXCEEDED):
    def __init__(self) -> None:
        super().__init__("The deadline of the call passed; repeat it with the same request_id to learn its outcome.")


class CallCancelled(FleetError, code=Code.CANCELLED):
    def __init__(self) -> None:
        super().__init__("The caller went away.")


class MethodUnknown(FleetError, code=Code.UNIMPLEMENTED):
    def __init__(self, method: str) -> None:
        super().__init__(f"This server does not know {method}; it is older than the client.", method=method)


class RefusedElsewhere(FleetError):
    """What another service refused, passed on as it said it: has that error's code and reason."""

    def __init__(self, code: Code, reason: str, message: str, metadata: Mapping[str, str]) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason
        self.metadata = dict(metadata)


class EntriesRefused(FleetError):
    """What is wrong with entries that are written together: has code, reason and metadata of the first error."""

    def __init__(self, first: FleetError, violations: Sequence[FieldViolation], count: int) -> None:
        shown = "; ".join(f"{each.path}: {each.description}" for each in violations[:3])
        more = f" And {count - 3:,} more." if count > 3 else ""
        super().__init__(f"{shown}{more}", violations=violations, retry_after=first.retry_after)
        self.code, self.reason, self.preconditions = first.code, first.reason, first.preconditions
        self.metadata = {**first.metadata, "fields": _as_text([each.path for each in violations])}


class InternalError(FleetError, code=Code.INTERNAL):
    def __init__(self, trace_id: str) -> None:
        super().__init__(f"A defect of the service; report it with the trace id {trace_id}.", trace_id=trace_id)
