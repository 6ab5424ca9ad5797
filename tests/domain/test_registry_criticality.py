"""TIER0 and TIER1 rest on a request that another person has approved, and only for as long as it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelfleetd.errors import (
    CriticalityNeedsApproval,
    EtagMismatch,
    InvalidFields,
    RequestPending,
    ResourceExists,
    ResourceNotFound,
    SelfApproval,
    WrongState,
)
from modelfleetd.registry.domain import entries, tiers
from modelfleetd.registry.domain.criticality import (
    BY_REQUEST,
    GRACE,
    OPEN,
    CriticalityEvidence,
    CriticalityRequest,
    RequestState,
)
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import Model, ModelType
from tests.support.registry import EVIDENCE, START, LedgerOf, fleet, model, model_type, raise_tier

DAY = timedelta(days=1)
CTR, OLD = "modelTypes/ctr", "modelTypes/ctr/models/old"
REQUEST = "criticalityRequests/r1"


def asked(resource: str = CTR, tier: Tier | None = Tier.TIER1, **fields: Any) -> CriticalityRequest:
    return CriticalityRequest(name=REQUEST, resource=resource, tier=tier, **({"evidence": EVIDENCE} | fields))


def decision(by: str = "bob", time: datetime = START, **fields: Any) -> tiers.Decision:
    return tiers.Decision(by=by, identities=fields.pop("identities", {by}), time=time, **fields)


def pending(ledger: LedgerOf | None = None, **fields: Any) -> LedgerOf:
    """A fleet in which alice has asked for TIER1 for the type."""
    ledger = ledger or fleet()
    ledger.apply(tiers.request_tier(ledger, asked(**fields), "alice", "u"))
    return ledger


def the_type(ledger: LedgerOf, name: str = CTR) -> ModelType:
    found = ledger.model_type(name)
    assert found is not None
    return found


def the_request(ledger: LedgerOf, name: str = REQUEST) -> CriticalityRequest:
    found = ledger.find(name)
    assert isinstance(found, CriticalityRequest)
    return found


def test_a_request_keeps_who_asked_what_for_and_what_the_tier_was() -> None:
    ledger = fleet()
    ledger.apply(entries.update_model_type(ledger, model_type(tier=Tier.TIER3), ("tier",)))
    made = the_request(pending(ledger))
    assert (made.state, made.requester, made.tier_before, made.uid) == (RequestState.PENDING, "alice", Tier.TIER3, "u")
    assert made.lifetime == timedelta(days=365)
    assert the_type(ledger).tier is Tier.TIER3, "asking changes nothing yet"


def test_an_approval_raises_the_entry_grants_it_and_reaches_upstream_types_in_one_revision() -> None:
    ledger = fleet(model_type("leaf", regions=()))
    ledger.apply(
        entries.update_model_type(ledger, model_type(upstream_types=("modelTypes/leaf",)), ("upstream_types",))
    )
    pending(ledger, lifetime=10 * DAY)
    edits = tiers.approve(ledger, REQUEST, decision(reason="fair"))
    assert [edit.name for edit in edits] == [REQUEST, CTR, "modelTypes/leaf"]
    ledger.apply(edits)
    request, grant = the_request(ledger), the_type(ledger).tier_grant
    assert (request.state, request.decided_by, request.decide_reason) == (RequestState.APPROVED, "bob", "fair")
    assert grant is not None
    assert request.expire_time == grant.expire_time == START + 10 * DAY
    assert (grant.request, grant.falls_to, grant.overdue) == (REQUEST, Tier.TIER2, False)
    assert the_type(ledger).tier is Tier.TIER1
    assert the_type(ledger, "modelTypes/leaf").required_tier is Tier.TIER1
    assert the_type(ledger).revision == request.revision == the_type(ledger, "modelTypes/leaf").revision


@pytest.mark.parametrize(
    ("requester", "approver"),
    [
        ("alice", decision("alice")),
        # A service calls for the one who asked, and the other way round.
        ("alice", decision("alice", identities={"service/console", "alice"})),
        ("service/ci", decision("bob", identities={"service/ci", "bob"})),
    ],
)
def test_nobody_approves_what_they_asked_for_themselves(requester: str, approver: tiers.Decision) -> None:
    ledger = fleet()
    ledger.apply(tiers.request_tier(ledger, asked(), requester, "u"))
    with pytest.raises(SelfApproval) as refused:
        tiers.approve(ledger, REQUEST, approver)
    assert refused.value.metadata == {"principal": requester}
    assert tiers.withdraw(ledger, REQUEST, approver), "but may take it back"


@pytest.mark.parametrize("verb", [tiers.approve, tiers.reject, tiers.withdraw])
def test_a_request_is_decided_once_and_as_it_was_seen(verb: Callable[..., Any]) -> None:
    ledger = pending()
    with pytest.raises(EtagMismatch):
        verb(ledger, REQUEST, decision(etag="r1"))
    ledger.apply(verb(ledger, REQUEST, decision(etag=the_request(ledger).etag)))
    for again in (tiers.approve, tiers.reject, tiers.withdraw):
        with pytest.raises(WrongState) as refused:
            again(ledger, REQUEST, decision())
        assert refused.value.metadata["state"] == the_request(ledger).state.name  # type: ignore[union-attr]
    with pytest.raises(ResourceNotFound):
        verb(ledger, "criticalityRequests/nope", decision())
    with pytest.raises(ResourceNotFound):
        verb(ledger, CTR, decision())


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"resource": "teams/feed"}, "resource"),
        ({"tier": Tier.TIER2}, "tier"),
        ({"tier": None}, "tier"),
        ({"lifetime": DAY - timedelta(seconds=1)}, "lifetime"),
        ({"lifetime": 731 * DAY}, "lifetime"),
        ({"evidence": None}, "evidence.contribution"),
        ({"evidence": CriticalityEvidence(on_call_24x7="a" * 201)}, "evidence.on_call_24x7"),
        ({"evidence": CriticalityEvidence(on_call_24x7="a", business_metric="b")}, "evidence.contribution"),
        ({"evidence": CriticalityEvidence(links=("",))}, "evidence.links[0]"),
        ({"evidence": CriticalityEvidence(links=("a",) * 21)}, "evidence.links"),
    ],
)
def test_a_request_without_its_evidence_is_refused_with_the_path(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        tiers.request_tier(fleet(), asked(**fields), "alice", "u")
    assert field in [violation.path for violation in refused.value.violations]


def test_one_request_of_an_entry_waits_at_a_time_and_of_an_entry_that_exists() -> None:
    ledger = pending()
    with pytest.raises(RequestPending) as refused:
        again = replace(asked(tier=Tier.TIER0), name="criticalityRequests/r2")
        tiers.request_tier(ledger, again, "carol", "u")
    assert refused.value.metadata["request"] == REQUEST
    other = replace(asked(OLD), name="criticalityRequests/r2")
    assert tiers.request_tier(ledger, other, "carol", "u"), "a model of the type is another entry"
    with pytest.raises(ResourceExists):
        tiers.request_tier(ledger, asked(OLD), "alice", "u")
    for missing in ("modelTypes/nope", "modelTypes/ctr/models/nope"):
        with pytest.raises(ResourceNotFound):
            tiers.request_tier(ledger, replace(other, resource=missing), "alice", "u")


def test_a_lower_tier_is_not_asked_for() -> None:
    ledger = fleet()
    raise_tier(ledger, CTR, Tier.TIER0)
    with pytest.raises(InvalidFields, match="is TIER0 already"):
        tiers.request_tier(ledger, asked(tier=Tier.TIER1), "alice", "u")


@pytest.mark.parametrize("tier", BY_REQUEST)
def test_a_raise_without_a_request_is_refused_with_the_command(tier: Tier) -> None:
    ledger = fleet()
    calls: list[Callable[[], object]] = [
        lambda: entries.create_model_type(ledger, model_type("x", tier=tier), "u"),
        lambda: entries.update_model_type(ledger, model_type(tier=tier), ("tier",)),
        lambda: entries.create_model(ledger, model("x", tier_override=tier), "u"),
        lambda: entries.update_model(ledger, model("old", tier_override=tier), ("tier_override",)),
    ]
    for call in calls:
        with pytest.raises(CriticalityNeedsApproval) as refused:
            call()
        assert refused.value.metadata["tier"] == tier.name
        assert refused.value.metadata["command"].startswith("modelfleet registry criticality request modelTypes/")


def test_an_entry_that_is_sent_back_with_its_tier_is_not_raised() -> None:
    ledger = fleet()
    raise_tier(ledger, CTR, Tier.TIER1)
    assert entries.update_model_type(ledger, the_type(ledger), ()) == ()
    assert entries.update_model_type(ledger, the_type(ledger), ("*",)) == ()


@pytest.mark.parametrize("to", [Tier.TIER2, Tier.TIER4, None])
def test_lowering_below_tier1_ends_the_grant_and_its_request_in_the_same_revision(to: Tier | None) -> None:
    ledger = fleet()
    request = raise_tier(ledger, CTR, Tier.TIER0)
    ledger.apply(entries.update_model_type(ledger, model_type(tier=to), ("tier",)))
    assert (the_type(ledger).tier, the_type(ledger).tier_grant) == (to, None)
    assert the_request(ledger, request).state is RequestState.SUPERSEDED
    assert the_request(ledger, request).revision == the_type(ledger).revision
    with pytest.raises(CriticalityNeedsApproval):
        entries.update_model_type(ledger, model_type(tier=Tier.TIER1), ("tier",))


def test_what_was_approved_for_tier0_holds_for_tier1_until_it_expires() -> None:
    ledger = fleet()
    request = raise_tier(ledger, CTR, Tier.TIER0)
    before = the_type(ledger).tier_grant
    ledger.apply(entries.update_model_type(ledger, model_type(tier=Tier.TIER1), ("tier",)))
    assert (the_type(ledger).tier, the_type(ledger).tier_grant) == (Tier.TIER1, before)
    assert the_request(ledger, request).state is RequestState.APPROVED


def test_a_renewal_supersedes_the_grant_before_it_and_remembers_where_the_entry_falls_to() -> None:
    ledger = fleet()
    ledger.apply(entries.update_model_type(ledger, model_type(tier=Tier.TIER4), ("tier",)))
    first = raise_tier(ledger, CTR, Tier.TIER1)
    second = raise_tier(ledger, CTR, Tier.TIER0, START + 300 * DAY)
    grant = the_type(ledger).tier_grant
    assert grant is not None
    assert (grant.request, grant.falls_to) == (second, Tier.TIER4)
    assert grant.expire_time == START + 665 * DAY
    assert the_request(ledger, first).state is RequestState.SUPERSEDED


def test_a_model_without_an_override_before_has_its_types_tier_again() -> None:
    ledger = fleet()
    raise_tier(ledger, OLD, Tier.TIER1)
    due = tiers.lapse(ledger, OLD, START + 365 * DAY + GRACE)
    assert due is not None
    assert due.reason.endswith("lowered to that of its type")
    ledger.apply(due.edits)
    old = ledger.model(OLD)
    assert old is not None
    assert (old.tier_override, old.tier_grant) == (None, None)


def test_time_makes_a_tier_overdue_and_after_a_fortnight_lowers_it_each_once() -> None:
    ledger = fleet(model_type("leaf", regions=()))
    ledger.apply(
        entries.update_model_type(ledger, model_type(upstream_types=("modelTypes/leaf",)), ("upstream_types",))
    )
    request = raise_tier(ledger, CTR, Tier.TIER1)
    end = START + 365 * DAY
    assert tiers.lapse(ledger, CTR, end - DAY) is None
    marked = tiers.lapse(ledger, CTR, end)
    assert marked is not None
    assert (
        marked.reason
        == f"TIER1 of {CTR} expired on {end:%Y-%m-%d}; renew it by {end + GRACE:%Y-%m-%d}, or it is lowered"
    )
    ledger.apply(marked.edits)
    grant = the_type(ledger).tier_grant
    assert grant is not None
    assert grant.overdue
    assert the_type(ledger).tier is Tier.TIER1
    assert tiers.lapse(ledger, CTR, end + GRACE - DAY) is None, "another replica, or again after a pause"
    lowered = tiers.lapse(ledger, CTR, end + GRACE)
    assert lowered is not None
    assert (
        lowered.reason
        == f"TIER1 of {CTR} expired on {end:%Y-%m-%d}, and nobody renewed it within 14 days: lowered to TIER2"
    )
    ledger.apply(lowered.edits)
    assert (the_type(ledger).tier, the_type(ledger).tier_grant) == (Tier.TIER2, None)
    assert the_type(ledger, "modelTypes/leaf").required_tier is Tier.TIER2
    assert the_request(ledger, request).state is RequestState.EXPIRED
    assert tiers.lapse(ledger, CTR, end + 2 * GRACE) is None


def test_after_a_long_absence_what_is_due_is_done_at_once() -> None:
    ledger = fleet()
    raise_tier(ledger, CTR, Tier.TIER0)
    due = tiers.lapse(ledger, CTR, START + 500 * DAY)
    assert due is not None
    ledger.apply(due.edits)
    assert the_type(ledger).tier is Tier.TIER2


def test_a_renewal_that_comes_while_it_is_overdue_is_in_time() -> None:
    ledger = fleet()
    raise_tier(ledger, CTR, Tier.TIER1)
    late = START + 370 * DAY
    marked = tiers.lapse(ledger, CTR, late)
    assert marked is not None
    ledger.apply(marked.edits)
    raise_tier(ledger, CTR, Tier.TIER1, late)
    grant = the_type(ledger).tier_grant
    assert grant is not None
    assert not grant.overdue
    assert tiers.lapse(ledger, CTR, START + 365 * DAY + GRACE) is None


def test_an_entry_of_the_same_name_does_not_inherit_a_request() -> None:
    ledger = fleet(model_type("x", regions=()))
    asked_x = asked("modelTypes/x")
    ledger.apply(tiers.request_tier(ledger, asked_x, "alice", "u"))
    ledger.apply(entries.delete_model_type(ledger, "modelTypes/x", ""))
    assert the_request(ledger).state is RequestState.WITHDRAWN
    granted = fleet(model("gone"))
    request = raise_tier(granted, f"{CTR}/models/gone", Tier.TIER1)
    granted.apply(entries.delete_model(granted, f"{CTR}/models/gone", ""))
    assert the_request(granted, request).state is RequestState.SUPERSEDED


class Criticality(RuleBasedStateMachine):
    """Whatever people, time and workers do: no tier without leave, and no leave without end."""

    names = st.sampled_from([CTR, "modelTypes/leaf", OLD])
    people = st.sampled_from(["alice", "bob"])

    @initialize()
    def begin(self) -> None:
        self.ledger = fleet(model_type("leaf", regions=()))
        upstream = model_type(upstream_types=("modelTypes/leaf",))
        self.ledger.apply(entries.update_model_type(self.ledger, upstream, ("upstream_types",)))
        self.now = START
        self.swept = START

    def entry(self, name: str) -> ModelType | Model:
        found = self.ledger.find(name)
        assert isinstance(found, (ModelType, Model))
        return found

    def requests(self, *states: RequestState) -> list[CriticalityRequest]:
        return [each for each in self.ledger.every(CriticalityRequest) if each.state in states]

    @rule(name=names, tier=st.sampled_from(BY_REQUEST), who=people, days=st.integers(1, 60))
    def ask(self, name: str, tier: Tier, who: str, days: int) -> None:
        current = tiers.tier_of(self.entry(name))
        request = CriticalityRequest(
            name=f"criticalityRequests/r{self.ledger.revision}",
            resource=name,
            tier=tier,
            evidence=EVIDENCE,
            lifetime=days * DAY,
        )
        try:
            edits = tiers.request_tier(self.ledger, request, who, "u")
        except RequestPending:
            assert any(each.resource == name for each in self.requests(RequestState.PENDING))
        except InvalidFields:
            assert current is not None
            assert current < tier
        else:
            self.ledger.apply(edits)
            assert tiers.tier_of(self.entry(name)) == current

    @precondition(lambda self: self.requests(RequestState.PENDING))
    @rule(data=st.data(), who=people, verb=st.sampled_from([tiers.approve, tiers.reject, tiers.withdraw]))
    def decide(self, data: st.DataObject, who: str, verb: Callable[..., Any]) -> None:
        request = data.draw(st.sampled_from(self.requests(RequestState.PENDING)))
        if verb is tiers.approve and who == request.requester:
            with pytest.raises(SelfApproval):
                verb(self.ledger, request.name, decision(who, self.now))
            return
        self.ledger.apply(verb(self.ledger, request.name, decision(who, self.now)))
        if verb is tiers.approve:
            assert tiers.tier_of(self.entry(request.resource)) is request.tier

    @rule(name=names, tier=st.none() | st.sampled_from(Tier))
    def set_directly(self, name: str, tier: Tier | None) -> None:
        entry = self.entry(name)
        current = tiers.tier_of(entry)
        try:
            if isinstance(entry, ModelType):
                asked_type = ModelType(name=name, tier=tier)
                edits = entries.update_model_type(self.ledger, asked_type, ("tier",))
            else:
                edits = entries.update_model(self.ledger, Model(name=name, tier_override=tier), ("tier_override",))
        except CriticalityNeedsApproval:
            assert tier in BY_REQUEST
            assert current is None or tier < current
        else:
            if edits:
                self.ledger.apply(edits)
            assert tier is None or tier not in BY_REQUEST or (current is not None and current <= tier)

    @rule(days=st.integers(1, 40), workers=st.integers(0, 2))
    def time_passes(self, days: int, workers: int) -> None:
        self.now += days * DAY
        for _ in range(workers):
            for name in (CTR, "modelTypes/leaf", OLD):
                due = tiers.lapse(self.ledger, name, self.now)
                if due is not None:
                    self.ledger.apply(due.edits)
                assert tiers.lapse(self.ledger, name, self.now) is None, "done once"
            self.swept = self.now

    @invariant()
    def tiers_rest_on_what_was_approved(self) -> None:
        for name in (CTR, "modelTypes/leaf", OLD):
            entry = self.entry(name)
            tier, grant = tiers.tier_of(entry), entry.tier_grant
            opened = [each for each in self.requests(*OPEN) if each.resource == name]
            approved = [each for each in opened if each.state is RequestState.APPROVED]
            assert (tier in BY_REQUEST) == (grant is not None) == (len(approved) == 1)
            assert len(opened) - len(approved) <= 1
            if grant is None:
                continue
            (request,) = approved
            assert tier is not None
            assert request.tier is not None
            assert request.name == grant.request
            assert request.tier <= tier
            assert request.requester != request.decided_by
            assert request.expire_time == grant.expire_time
            assert grant.falls_to not in BY_REQUEST
            assert grant.expire_time is not None
            assert self.swept < grant.expire_time + GRACE, "nothing lasts longer than it may"
            assert grant.overdue or self.swept < grant.expire_time

    @invariant()
    def what_is_consumed_is_required_to_be_as_critical(self) -> None:
        ctr, leaf = self.entry(CTR), self.entry("modelTypes/leaf")
        assert isinstance(ctr, ModelType)
        assert isinstance(leaf, ModelType)
        assert leaf.required_tier == ctr.tier


TestCriticality = Criticality.TestCase
TestCriticality.settings = settings(max_examples=40, stateful_step_count=25)
