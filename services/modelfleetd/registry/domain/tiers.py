"""How an entry comes to TIER0 or TIER1 and leaves them again: asked for, approved by another person, for a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, TypeVar

from modelfleetd import names
from modelfleetd.errors import (
    CriticalityNeedsApproval,
    EtagMismatch,
    RequestPending,
    ResourceExists,
    ResourceNotFound,
    SelfApproval,
    WrongState,
    invalid,
)
from modelfleetd.registry.domain.criticality import (
    BY_REQUEST,
    GRACE,
    CriticalityEvidence,
    CriticalityRequest,
    RequestState,
    TierGrant,
    request_command,
)
from modelfleetd.registry.domain.dependencies import follow_up
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import Model, ModelType
from modelfleetd.registry.domain.revisions import Edit, Edits
from modelfleetd.registry.domain.rules import MAX_PROSE, MAX_TEXT, MAX_URI
from modelfleetd.registry.domain.violations import Violations

# What has a tier: types have one, models may have another one than their type.
E = TypeVar("E", ModelType, Model)

DEFAULT_LIFETIME: Final = timedelta(days=365)
MIN_LIFETIME: Final = timedelta(days=1)
MAX_LIFETIME: Final = timedelta(days=730)
MAX_LINKS: Final = 20


def tier_of(entry: ModelType | Model) -> Tier | None:
    """Returns the tier that an entry states itself: of a model, its override."""
    return entry.tier if isinstance(entry, ModelType) else entry.tier_override


def with_tier(entry: E, tier: Tier | None, grant: TierGrant | None) -> E:
    """Returns an entry with another tier and what it owes it to."""
    if isinstance(entry, ModelType):
        return replace(entry, tier=tier, tier_grant=grant)
    return replace(entry, tier_override=tier, tier_grant=grant)


# What Create and Update may do with a tier.


def refuse_raise(before: E | None, after: E) -> None:
    """Raises CriticalityNeedsApproval where a tier rises to TIER0 or TIER1 without a request.

    A model's override is compared with the override before, not with its type's tier: that may fall, and would leave
    the model with a tier that nobody approved.
    """
    old, new = None if before is None else tier_of(before), tier_of(after)
    if new in BY_REQUEST and (old is None or new < old):
        raise CriticalityNeedsApproval(after.name, new.name, request_command(after.name, new))


def settled(ledger: Ledger, before: E, after: E) -> tuple[E, Edits]:
    """Returns an entry whose tier may have fallen with the grant that it still needs, and the edits of its requests.

    What was approved for TIER0 holds for TIER1 too, until it expires; below that there is nothing to owe.
    """
    if after.tier_grant is None or tier_of(after) in BY_REQUEST:
        return after, ()
    edits = (_closed(each, "the tier was lowered") for each in _in_force(ledger, before.name))
    return with_tier(after, tier_of(after), None), tuple(edits)


def abandoned(ledger: Ledger, name: str) -> Edits:
    """Returns the edits of the requests of an entry that is deleted: another one of its name must not inherit them."""
    return tuple(_closed(each, "the entry was deleted") for each in ledger.open_requests(name))


def _in_force(ledger: Ledger, name: str) -> Sequence[CriticalityRequest]:
    return [each for each in ledger.open_requests(name) if each.state is RequestState.APPROVED]


def _closed(request: CriticalityRequest, why: str) -> Edit:
    if request.state is RequestState.APPROVED:
        return Edit(request, replace(request, state=RequestState.SUPERSEDED))
    return Edit(request, replace(request, state=RequestState.WITHDRAWN, decide_reason=why))


# Requests.


def request_tier(ledger: Ledger, asked: CriticalityRequest, requester: str, uid: str) -> Edits:
    """Decides RequestCriticality.

    Raises:
        ResourceExists: there is a request of this name.
        ResourceNotFound: there is no such model type or model.
        InvalidFields: the evidence does not fit, or the entry is more critical already.
        RequestPending: another request of the entry waits for a decision.
    """
    _check(asked)
    if ledger.find(asked.name) is not None:
        raise ResourceExists(asked.name)
    entry = _entry(ledger, asked.resource)
    tier, current = asked.tier, tier_of(entry)
    if tier is not None and current is not None and current < tier:
        field = "tier" if isinstance(entry, ModelType) else "tier_override"
        raise invalid("tier", f"{entry.name} is {current.name} already; a lower tier is set with an update of {field}")
    pending = [each for each in ledger.open_requests(entry.name) if each.state is RequestState.PENDING]
    if pending:
        raise RequestPending(entry.name, pending[0].name)
    made = replace(
        asked,
        uid=uid,
        lifetime=asked.lifetime or DEFAULT_LIFETIME,
        state=RequestState.PENDING,
        requester=requester,
        tier_before=current,
    )
    return (Edit(None, made),)


def _check(asked: CriticalityRequest) -> None:
    wrong = Violations("")
    is_entry = names.MODEL_TYPE.match(asked.resource) is not None or names.MODEL.match(asked.resource) is not None
    accepted = f"must be a name of the form {names.MODEL_TYPE.template} or {names.MODEL.template}"
    wrong.expect(is_entry, "resource", accepted)
    wrong.expect(asked.tier in BY_REQUEST, "tier", "must be TIER0 or TIER1; the others are set with an update")
    lifetime = asked.lifetime
    in_bounds = lifetime is None or MIN_LIFETIME <= lifetime <= MAX_LIFETIME
    wrong.expect(in_bounds, "lifetime", "must be 1 d to 730 d")
    evidence = asked.evidence or CriticalityEvidence()
    wrong.text(evidence.on_call_24x7, "evidence.on_call_24x7", MAX_TEXT, least=1)
    wrong.text(evidence.business_metric, "evidence.business_metric", MAX_TEXT, least=1)
    wrong.text(evidence.contribution, "evidence.contribution", MAX_PROSE, least=1)
    wrong.count(evidence.links, "evidence.links", MAX_LINKS)
    for index, link in enumerate(evidence.links):
        wrong.text(link, f"evidence.links[{index}]", MAX_URI, least=1)
    wrong.raise_if_any()


@dataclass(frozen=True, slots=True)
class Decision:
    """What somebody decides about a request, and when.

    `identities` are all that the call says of who decides: the caller, and the person for whom a service calls.
    """

    by: str
    identities: Collection[str]
    time: datetime
    reason: str = ""
    etag: str = ""


def approve(ledger: Ledger, name: str, decision: Decision) -> Edits:
    """Decides ApproveCriticality: request, entry, the types upstream and the request before it, in one revision.

    Raises:
        ResourceNotFound: there is no such request.
        SelfApproval: whoever decides has asked for it.
        WrongState: it waits for no decision.
        EtagMismatch: it is not the one that was seen.
    """
    request = _pending(ledger, name, decision.etag)
    if request.requester in decision.identities:
        raise SelfApproval(request.requester)
    entry = _entry(ledger, request.resource)
    expire_time = decision.time + (request.lifetime or DEFAULT_LIFETIME)
    approved = replace(_decided(request, RequestState.APPROVED, decision), expire_time=expire_time)
    grant = TierGrant(request=name, expire_time=expire_time, falls_to=falls_to(entry))
    superseded = (_closed(each, "") for each in _in_force(ledger, entry.name))
    return (Edit(request, approved), *_retiered(ledger, entry, request.tier, grant), *superseded)


def reject(ledger: Ledger, name: str, decision: Decision) -> Edits:
    """Decides RejectCriticality. Raises what `approve` does; whoever asked may reject, too."""
    request = _pending(ledger, name, decision.etag)
    return (Edit(request, _decided(request, RequestState.REJECTED, decision)),)


def withdraw(ledger: Ledger, name: str, decision: Decision) -> Edits:
    """Decides WithdrawCriticality. Raises what `approve` does."""
    request = _pending(ledger, name, decision.etag)
    return (Edit(request, _decided(request, RequestState.WITHDRAWN, decision)),)


def falls_to(entry: ModelType | Model) -> Tier | None:
    """Returns the tier that an entry gets where nobody renews what was approved for it.

    The tier before it rose, also over several renewals; TIER2 where it had none. A model without an override before has
    none again: its type's tier counts.
    """
    if entry.tier_grant is not None:
        return entry.tier_grant.falls_to
    current = tier_of(entry)
    if current is None and isinstance(entry, Model):
        return None
    return Tier.TIER2 if current is None or current in BY_REQUEST else current


def _pending(ledger: Ledger, name: str, etag: str) -> CriticalityRequest:
    request = ledger.find(name)
    if not isinstance(request, CriticalityRequest):
        raise ResourceNotFound(name)
    if etag and etag != request.etag:
        raise EtagMismatch(name, etag, request.etag)
    if request.state is not RequestState.PENDING:
        raise WrongState(name, "" if request.state is None else request.state.name, ())
    return request


def _decided(request: CriticalityRequest, state: RequestState, decision: Decision) -> CriticalityRequest:
    return replace(
        request, state=state, decided_by=decision.by, decide_time=decision.time, decide_reason=decision.reason
    )


def _entry(ledger: Ledger, name: str) -> ModelType | Model:
    found = ledger.find(name)
    if not isinstance(found, (ModelType, Model)):
        raise ResourceNotFound(name)
    return found


def _retiered(ledger: Ledger, entry: ModelType | Model, tier: Tier | None, grant: TierGrant | None) -> Edits:
    """Returns the edit that gives an entry a tier, and those of the types upstream, which have to be as critical."""
    if isinstance(entry, Model):
        return (Edit(entry, with_tier(entry, tier, grant)),)
    after = with_tier(entry, tier, grant)
    return (Edit(entry, after), *follow_up(ledger, entry, after))


# What happens when nobody renews.


@dataclass(frozen=True, slots=True)
class Lapse:
    """What time does to the tier of an entry: the edits, and the reason that the revision gives."""

    edits: Edits
    reason: str


def lapse(ledger: Ledger, name: str, now: datetime) -> Lapse | None:
    """Returns what is due of an entry: it is overdue once its grant has expired, and lowered 14 days later.

    None where nothing is due, or done already: it may be asked by several replicas, and again after any pause.
    """
    entry = ledger.find(name)
    if not isinstance(entry, (ModelType, Model)) or entry.tier_grant is None:
        return None
    grant, tier = entry.tier_grant, tier_of(entry)
    if grant.expire_time is None or now < grant.expire_time or tier is None:
        return None
    expired = f"{tier.name} of {name} expired on {grant.expire_time:%Y-%m-%d}"
    if now < grant.expire_time + GRACE:
        if grant.overdue:
            return None
        last_day = grant.expire_time + GRACE
        edits = _retiered(ledger, entry, tier, replace(grant, overdue=True))
        return Lapse(edits, f"{expired}; renew it by {last_day:%Y-%m-%d}, or it is lowered")
    to = "that of its type" if grant.falls_to is None else grant.falls_to.name
    requests = (
        Edit(each, replace(each, state=RequestState.EXPIRED))
        for each in _in_force(ledger, name)
        if each.name == grant.request
    )
    lowered = (*_retiered(ledger, entry, grant.falls_to, None), *requests)
    return Lapse(lowered, f"{expired}, and nobody renewed it within {GRACE.days} days: lowered to {to}")
