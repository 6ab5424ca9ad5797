"""What verdicts mean: nothing from silence, the same in any order, and nothing from a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields, SelfApproval
from modelfleetd.launcher.domain import gates, people
from modelfleetd.launcher.domain.actions import Advance, Apply, Call, Judge, Wait
from modelfleetd.launcher.domain.launch import Launch, enter
from modelfleetd.launcher.domain.policy import (
    AvailabilityGate,
    EvidenceGate,
    PeopleGate,
    Policy,
    StabilityGate,
    WebhookGate,
    When,
    check,
)
from modelfleetd.launcher.domain.record import Act, GateVerdict, Verdict
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.verbs import approve, is_allowed, pause, reject, resume
from tests.domain.test_launcher_decisions import MINUTE, T0, baking, decides, estimates, pending, shifting

EVERY = (
    WebhookGate("board"),
    WebhookGate("load", When.EVERY_STEP),
    WebhookGate("audit", When.BEFORE_FINALIZE),
)
VERDICTS = st.sampled_from(list(Verdict))
KEEPING: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def every(*, dry: frozenset[str] = frozenset()) -> Policy:
    """A policy with each kind of gate; those that are named only record."""
    return Policy(
        stability_gate=StabilityGate(dry_run="stability" in dry),
        availability_gate=AvailabilityGate(dry_run="availability" in dry),
        evidence_gate=EvidenceGate(dry_run="evidence" in dry),
        webhook_gates=tuple(replace(gate, dry_run=gate.webhook in dry) for gate in EVERY),
    )


def planned(policy: Policy) -> Launch:
    """A launch whose plan is made, before anything is reserved."""
    return estimates(replace(pending(policy), state=State.ESTIMATING))


def preparing(policy: Policy) -> Launch:
    """The same, of a model type with evidence rules."""
    return replace(planned(policy), evidence_rules=2)


def finalizing(policy: Policy) -> Launch:
    launch = shifting(policy, number=5)
    return enter(launch, State.FINALIZING, T0)


def at(point: str, policy: Policy) -> Launch:
    return {"start": preparing, "bake": baking, "finalize": finalizing}[point](policy)


def hears(launch: Launch, said: dict[str, Verdict], now: datetime, *, order: Sequence[str] = ()) -> Launch:
    """Those gates have answered, in that order; the others are silent."""
    names = order or list(said)
    verdicts = [GateVerdict(name, "regions/eu", launch.step.number, said[name], f"{name} says", now) for name in names]
    return gates.judged(launch, verdicts, final=True, now=now)


def goes_on(launch: Launch) -> bool:
    """Whether the gates of this point have let it pass."""
    return launch.step.passed if launch.state is State.SHIFTING else launch.asked.passed


def names(launch: Launch) -> list[str]:
    return [gate.name for gate in gates.asked(launch, final=True)]


def ripe(launch: Launch) -> datetime:
    return launch.bake_end or T0


POINTS = pytest.mark.parametrize("point", ["start", "bake", "finalize"])


@POINTS
@settings(max_examples=60, **KEEPING)
@given(data=st.data())
def test_only_a_pass_of_every_gate_lets_a_launch_on_and_silence_is_none(point: str, data: st.DataObject) -> None:
    launch = at(point, every())
    said = {name: data.draw(VERDICTS) for name in names(launch) if data.draw(st.booleans())}
    after = hears(launch, said, ripe(launch))
    all_pass = set(said) == set(names(launch)) and set(said.values()) <= {Verdict.PASS}
    assert goes_on(after) is all_pass
    failed = {name for name, verdict in said.items() if verdict is Verdict.FAIL} - {"evidence"}
    assert (after.abort is not None) is bool(failed)
    if failed:
        assert after.abort is not None and after.abort.author.removeprefix("gate/") in failed


@POINTS
@settings(max_examples=60, **KEEPING)
@given(data=st.data())
def test_the_order_of_the_answers_does_not_matter(point: str, data: st.DataObject) -> None:
    launch = at(point, every())
    said = {name: data.draw(VERDICTS) for name in names(launch)}
    order = data.draw(st.permutations(names(launch)))
    assert hears(launch, said, ripe(launch), order=order) == hears(launch, said, ripe(launch))


@POINTS
@settings(max_examples=60, **KEEPING)
@given(data=st.data())
def test_what_a_dry_run_says_or_does_not_say_changes_nothing(point: str, data: st.DataObject) -> None:
    asked = names(at(point, every()))
    short = {name: name.removeprefix("webhook/") for name in asked}
    dry = data.draw(st.sets(st.sampled_from(asked)))
    launch = at(point, every(dry=frozenset(short[name] for name in dry)))
    enforced = {name: data.draw(VERDICTS) for name in asked if name not in dry}
    recorded = {name: data.draw(VERDICTS) for name in dry if data.draw(st.booleans())}
    assert hears(launch, enforced | recorded, ripe(launch)) == hears(launch, enforced, ripe(launch))


@POINTS
def test_a_gate_that_cannot_be_asked_holds_with_growing_pauses_and_costs_the_launch_no_time(point: str) -> None:
    launch, now, pauses = replace(at(point, every()), deadline=T0 + 60 * MINUTE), T0, []
    now = ripe(launch)
    for _ in range(12):
        action = decides(launch, now)
        if not isinstance(action, Judge):
            assert isinstance(action, Wait) and action.reason == "GateErrored" and action.alarming
            pauses.append(action.seconds)
            now += timedelta(seconds=action.seconds)
            continue
        launch = hears(launch, dict.fromkeys(names(launch), Verdict.ERROR), now)
        assert launch.abort is None and not launch.paused and not goes_on(launch)
    assert len(pauses) >= 5 and all(before <= after for before, after in pairwise(pauses))
    back = now + 300 * MINUTE
    assert not isinstance(decides(launch, back), Advance)
    launch = hears(launch, dict.fromkeys(names(launch), Verdict.PASS), back)
    assert launch.deadline is not None and launch.deadline >= back and launch.abort is None


def test_an_undecided_bake_is_extended_three_times_and_then_each_undecided_gate_has_its_reason_to_pause() -> None:
    launch = baking(every())
    said = {"availability": Verdict.INCONCLUSIVE, "stability": Verdict.INCONCLUSIVE, "webhook/load": Verdict.PASS}
    for extensions in (1, 2, 3):
        launch = hears(launch, said, ripe(launch))
        assert launch.step.extensions == extensions and not launch.paused
    launch = hears(launch, said, ripe(launch))
    assert [reason.author for reason in launch.pause_reasons] == ["gate/availability", "gate/stability"]


def test_for_want_of_evidence_a_launch_pauses_before_it_reserves_and_goes_on_once_it_is_there() -> None:
    launch = preparing(Policy())
    assert isinstance(decides(launch, T0), Judge)
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        lacks = hears(launch, {"evidence": verdict}, T0)
        assert [reason.author for reason in lacks.pause_reasons] == ["gate/evidence"] and lacks.abort is None
        waits = decides(lacks, T0 + 59 * timedelta(seconds=1))
        assert isinstance(waits, Wait) and not waits.seconds > 60
        assert isinstance(decides(lacks, T0 + MINUTE), Judge)
        there = hears(lacks, {"evidence": Verdict.PASS}, T0 + MINUTE)
        assert not there.paused
        reserves = decides(there, T0 + MINUTE)
        assert isinstance(reserves, Call) and reserves.act is Act.RESERVE
        # What was free an hour ago says little.
        late = hears(lacks, {"evidence": Verdict.PASS}, T0 + 60 * MINUTE)
        plans = decides(late, T0 + 60 * MINUTE)
        assert isinstance(plans, Call) and plans.act is Act.ESTIMATE


def test_evidence_that_fails_ends_the_launch_where_the_policy_says_so() -> None:
    launch = preparing(Policy(evidence_gate=EvidenceGate(reject=True)))
    failed = hears(launch, {"evidence": Verdict.FAIL}, T0)
    ends = decides(failed, T0)
    assert isinstance(ends, Advance) and ends.launch.state is State.CANCELLED


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS])
def test_a_skip_spares_the_bake_and_never_availability(verdict: Verdict) -> None:
    launch = replace(baking(every()), step=replace(baking(every()).step, skipped_by="oncall"))
    assert isinstance(decides(launch, T0), Judge)
    verdicts = [GateVerdict("availability", "regions/eu", 1, verdict, "as it is", T0)]
    after = gates.judged(launch, verdicts, final=False, now=T0)
    assert after.step.passed is (verdict in (Verdict.PASS, Verdict.INCONCLUSIVE))
    assert (after.abort is not None) is (verdict is Verdict.FAIL)


# People's gates

ASKS = Policy(
    stability_gate=StabilityGate(disabled=True),
    availability_gate=AvailabilityGate(disabled=True),
    people_gates=(PeopleGate("the dashboards", 2_000), PeopleGate("the revenue", 7_000)),
)


def stands(launch: Launch, now: datetime = T0) -> Launch:
    """The launch has come to a people's gate."""
    arrives = decides(launch, now)
    assert isinstance(arrives, Advance) and arrives.event == "AwaitingPeople"
    waits = decides(arrives.launch, now)
    assert isinstance(waits, Wait) and waits.reason == "AwaitingPeople"
    return arrives.launch


def passed(number: int, policy: Policy = ASKS) -> Launch:
    """A launch whose step has baked."""
    launch = replace(shifting(policy, number=number), envelope=planned(policy).envelope)
    return replace(launch, step=replace(launch.step, bake_start=T0, passed=True))


def digest(launch: Launch) -> str:
    assert launch.envelope is not None
    return launch.envelope.digest


def test_it_stands_before_each_share_is_exceeded_until_somebody_else_lets_it_on() -> None:
    launch = stands(passed(1))
    assert is_allowed(launch, "ApproveLaunch") and is_allowed(launch, "RejectLaunch")
    with pytest.raises(SelfApproval):
        approve(launch, launch.actor, digest(launch), T0)
    on = approve(launch, "carol", digest(launch), T0 + MINUTE)
    reduces = decides(on, T0 + MINUTE)
    assert isinstance(reduces, Apply) and reduces.act is Act.REDUCE
    assert not is_allowed(on, "ApproveLaunch")
    assert [(found.gate, found.approved_by) for found in on.people_approvals] == [(0, "carol")]
    # 70 % is between the steps to 60 and 80 %: it stands at 60.
    approvals = on.people_approvals
    assert people.stand(replace(passed(2), people_approvals=approvals), T0) is None
    second = stands(replace(passed(3), people_approvals=approvals))
    assert second.people_wait is not None and second.people_wait.gate == 1


def test_nothing_is_reserved_before_a_gate_at_share_0_is_passed() -> None:
    policy = replace(ASKS, people_gates=(PeopleGate("the plan"),))
    launch = stands(planned(policy))
    assert launch.state is State.PREPARING
    rejected = reject(launch, "carol", "not today", T0)
    ends = decides(rejected, T0)
    assert isinstance(ends, Advance) and ends.launch.state is State.CANCELLED
    reserves = decides(approve(launch, "carol", digest(launch), T0), T0)
    assert isinstance(reserves, Call) and reserves.act is Act.RESERVE


def test_the_wait_for_people_counts_against_the_gates_deadline_only_and_a_pause_against_none() -> None:
    day = timedelta(days=1)
    launch = stands(replace(passed(1), deadline=T0 + day))
    assert launch.step.deadline is not None
    before = launch.step.deadline
    waits = decides(launch, T0 + 6 * day)
    assert isinstance(waits, Wait)
    launch = pause(launch, "bob", "holidays", T0 + 2 * day)
    launch = resume(launch, "bob", T0 + 5 * day)
    assert isinstance(decides(launch, T0 + 9 * day), Wait)
    late = decides(launch, T0 + 10 * day)
    assert isinstance(late, Advance) and late.event == "Rejected" and late.launch.abort is not None
    on = approve(launch, "carol", digest(launch), T0 + 9 * day)
    assert on.deadline == T0 + 10 * day and on.step.deadline == before + 9 * day


def test_gates_are_measured_while_people_are_waited_for() -> None:
    policy = replace(ASKS, availability_gate=AvailabilityGate())
    arrives = decides(passed(1, policy), T0)
    assert isinstance(arrives, Advance) and arrives.event == "AwaitingPeople"
    assert isinstance(decides(arrives.launch, T0), Judge)
    failed = hears(arrives.launch, {"availability": Verdict.FAIL}, T0)
    assert failed.abort is not None and failed.people_wait is None


def test_policies_name_every_gate_that_is_out_of_range() -> None:
    wrong = Policy(
        availability_gate=AvailabilityGate(max_error_rate_basis_points=10_001, max_latency_p99_increase=float("nan")),
        webhook_gates=(WebhookGate("No Name"), WebhookGate("board"), WebhookGate("board")),
        people_gates=(PeopleGate("a", 2_000), PeopleGate(" ", 2_000, timedelta(0))),
    )
    with pytest.raises(InvalidFields) as raised:
        check(wrong, "policy")
    assert [violation.path for violation in raised.value.violations] == [
        "policy.availability_gate.max_error_rate_basis_points",
        "policy.availability_gate.max_latency_p99_increase",
        "policy.webhook_gates[0].webhook",
        "policy.webhook_gates[2]",
        "policy.people_gates[1].reason",
        "policy.people_gates[1].deadline",
        "policy.people_gates[1].after_share_basis_points",
    ]
