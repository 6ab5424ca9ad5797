"""What every agent checks before it accepts an act. Pure; agents and the simulator share it.

The order: is the request sound → is the epoch current → was the key answered before → may the target become that. A
refused act changes nothing, not even the floor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta

from modelfleetd import names
from modelfleetd.errors import (
    FieldImmutable,
    FieldViolation,
    InvalidFields,
    NoAvailableReplica,
    RequestIdReused,
    StaleEpoch,
)
from modelfleetd.platform.model import (
    FULL_SHARE,
    Applied,
    DesiredModel,
    DesiredServing,
    Fence,
    ModelShare,
    RecordingPlan,
    ServingSpec,
    TargetKind,
)

MAX_REPLICAS = 10_000
MAX_MODELS = 100
MAX_ENVIRONMENT = 64
MAX_KEY = 200
MAX_URI = 1000
MAX_STARTUP = timedelta(hours=1)
MAX_DRAIN = timedelta(minutes=10)
RESERVED_ENVIRONMENT = "MODELFLEET_"


PERMILLE = 1000


@dataclass(frozen=True, slots=True)
class Answered:
    """An act that was accepted before, under some key."""

    content: str
    applied: Applied


def content_of(target: str, kind: TargetKind, desired: DesiredServing) -> str:
    """A digest of what an act asks for. The epoch is no part of it: a new holder repeats an act with its own epoch."""
    plain = {"target": target, "kind": kind.name, "desired": asdict(desired)}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def check_request(target: str, kind: TargetKind | None, fence: Fence, desired: DesiredServing) -> None:
    """Checks that an act is sound by itself.

    Raises:
        InvalidFields: names every wrong field.
    """
    violations = tuple(_request_violations(target, kind, fence, desired))
    if violations:
        raise InvalidFields(violations)


def check_plan(plan: RecordingPlan) -> None:
    """Checks that what is to be recorded is sound by itself.

    Raises:
        InvalidFields: names every wrong field.
    """
    violations: list[FieldViolation] = []
    for pattern, name, field in ((names.TARGET, plan.target, "target"), (names.RECORDING, plan.recording, "recording")):
        if pattern.match(name) is None:
            violations.append(FieldViolation(field, pattern.expectation))
    if not 1 <= plan.sample_permille <= PERMILLE:
        violations.append(FieldViolation("sample_permille", "must be 1 to 1,000"))
    if plan.max_bytes < 1:
        violations.append(FieldViolation("max_bytes", "must be at least 1"))
    if plan.max_requests < 0:
        violations.append(FieldViolation("max_requests", "must be 0 (no limit) or more"))
    if not 1 <= len(plan.uri) <= MAX_URI or not plan.uri.isprintable():
        violations.append(FieldViolation("uri", f"must be a path or a URI of 1 to {MAX_URI:,} characters"))
    if violations:
        raise InvalidFields(violations)


def check_epoch(target: str, epoch: int, floor: int) -> None:
    """Checks that a holder was not replaced. Equal epochs pass.

    Raises:
        StaleEpoch: it was.
    """
    if epoch < floor:
        raise StaleEpoch(target, epoch, floor)


def repeated(answered: Answered | None, fence: Fence, content: str) -> Applied | None:
    """The answer to give again where the key was answered before; None where the act is new.

    Raises:
        RequestIdReused: the key was used with other content.
    """
    if answered is None:
        return None
    if answered.content != content:
        raise RequestIdReused(fence.key)
    return answered.applied


def check_kind(kind: TargetKind, current: TargetKind | None) -> None:
    """Checks that a target keeps its kind.

    Raises:
        FieldImmutable: it would not.
    """
    if current is not None and current is not kind:
        raise FieldImmutable("kind", "use another target")


def check_shares(
    target: str,
    desired: DesiredServing,
    previous: DesiredServing,
    available: Callable[[str], int],
) -> None:
    """Checks that no share rises for a model without an available replica.

    A share that stays or falls passes, so that a target whose replicas died can still be repaired.

    Raises:
        NoAvailableReplica: one would.
    """
    for share in desired.shares:
        rises = share.share_basis_points > previous.share_of(share.model)
        if rises and available(share.model) == 0:
            raise NoAvailableReplica(target, share.model)


def _request_violations(
    target: str, kind: TargetKind | None, fence: Fence, desired: DesiredServing
) -> Iterator[FieldViolation]:
    if names.TARGET.match(target) is None:
        yield FieldViolation("target", names.TARGET.expectation)
    if kind is None:
        yield FieldViolation("kind", "must be ROUTE or LOAD_TEST")
    if fence.epoch < 1:
        yield FieldViolation("fence.epoch", "must be at least 1")
    if not 1 <= len(fence.key) <= MAX_KEY:
        yield FieldViolation("fence.key", f"must have 1 to {MAX_KEY} characters")
    if len(desired.models) > MAX_MODELS:
        yield FieldViolation("desired.models", f"must be at most {MAX_MODELS}")
    for index, model in enumerate(desired.models):
        yield from _model_violations(f"desired.models[{index}]", target, kind, model)
    if len({model.model for model in desired.models}) != len(desired.models):
        yield FieldViolation("desired.models", "must name each model once")
    yield from _share_violations(desired, kind)


def _model_violations(
    path: str, target: str, kind: TargetKind | None, desired: DesiredModel
) -> Iterator[FieldViolation]:
    ids = names.MODEL.match(desired.model)
    if ids is None:
        yield FieldViolation(f"{path}.model", names.MODEL.expectation)
    elif kind is TargetKind.ROUTE and names.TARGET.format(ids[0]) != target:
        yield FieldViolation(f"{path}.model", f"must be a model of {target}, the route")
    if not 0 <= desired.replicas <= MAX_REPLICAS:
        yield FieldViolation(f"{path}.replicas", f"must be 0 to {MAX_REPLICAS}")
    yield from _spec_violations(f"{path}.serving_spec", desired.serving_spec)


def _spec_violations(path: str, spec: ServingSpec) -> Iterator[FieldViolation]:
    if names.FLAVOR.match(spec.flavor) is None:
        yield FieldViolation(f"{path}.flavor", names.FLAVOR.expectation)
    if bool(spec.command) == bool(spec.image):
        yield FieldViolation(f"{path}.command", "must be set, or else image, and not both")
    if spec.units_per_replica < 0:
        yield FieldViolation(f"{path}.units_per_replica", "must be at least 1; unset means 1")
    if spec.startup_timeout is not None and not timedelta(0) < spec.startup_timeout <= MAX_STARTUP:
        yield FieldViolation(f"{path}.startup_timeout", "must be more than 0 s and at most 1 h")
    if spec.drain_timeout is not None and not timedelta(0) <= spec.drain_timeout <= MAX_DRAIN:
        yield FieldViolation(f"{path}.drain_timeout", "must be 0 s to 10 min")
    if len(spec.environment) > MAX_ENVIRONMENT:
        yield FieldViolation(f"{path}.environment", f"must have at most {MAX_ENVIRONMENT} variables")
    if any("\0" in argument for argument in spec.command):
        yield FieldViolation(f"{path}.command", "must not hold the character NUL")
    for name, value in spec.environment.items():
        if not name or "=" in name or "\0" in name + value or name.startswith(RESERVED_ENVIRONMENT):
            expected = f"must be a variable's name without '=', not starting with {RESERVED_ENVIRONMENT}"
            yield FieldViolation(f"{path}.environment[{name!r}]", expected)


def _share_violations(desired: DesiredServing, kind: TargetKind | None) -> Iterator[FieldViolation]:
    if not desired.shares:
        return
    if kind is TargetKind.LOAD_TEST:
        yield FieldViolation("desired.shares", "must be empty: a load test receives no live traffic")
    for index, share in enumerate(desired.shares):
        if not 0 <= share.share_basis_points <= FULL_SHARE:
            yield FieldViolation(
                f"desired.shares[{index}].share_basis_points",
                f"must be 0 to {FULL_SHARE}",
            )
        elif share.share_basis_points > 0 and desired.replicas_of(share.model) == 0:
            yield FieldViolation(
                f"desired.shares[{index}].model",
                "must be one of desired.models, with replicas",
            )
    if len({share.model for share in desired.shares}) != len(desired.shares):
        yield FieldViolation("desired.shares", "must name each model once")
    total = sum(share.share_basis_points for share in desired.shares)
    if total != FULL_SHARE:
        yield FieldViolation("desired.shares", f"must sum to {FULL_SHARE}, not {total}")


def effective_shares(shares: tuple[ModelShare, ...], available: Callable[[str], int]) -> tuple[ModelShare, ...]:
    """The shares that a proxy is really given: a model without an available replica hands its share to the others.

    In proportion, by largest remainder, the order kept; the sum stays 10,000. Empty where nobody is available.
    """
    able = [share for share in shares if share.share_basis_points > 0 and available(share.model) > 0]
    total = sum(share.share_basis_points for share in able)
    if total == 0:
        return ()
    exact = [divmod(share.share_basis_points * FULL_SHARE, total) for share in able]
    left = FULL_SHARE - sum(whole for whole, _ in exact)
    first = sorted(range(len(able)), key=lambda index: (-exact[index][1], index))[:left]
    return tuple(
        ModelShare(share.model, exact[index][0] + (1 if index in first else 0)) for index, share in enumerate(able)
    )
