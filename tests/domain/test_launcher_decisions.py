"""What a launch does next, decision by decision: made-up launches and observations, no machinery."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from modelfleetd.errors import FleetError, QuotaExceeded, QuotaShortage, ResourceNotFound, RevisionMismatch, invalid
from modelfleetd.launcher.domain import gates
from modelfleetd.launcher.domain.actions import Action, Advance, Apply, Call, Judge, Wait
from modelfleetd.launcher.domain.deadlines import begin_step
from modelfleetd.launcher.domain.decide import next_action
from modelfleetd.launcher.domain.decision import Decision, Outcome
from modelfleetd.launcher.domain.hold import Hold, HoldState
from modelfleetd.launcher.domain.launch import Launch, Strategy, enter
from modelfleetd.launcher.domain.observed import Observed, Seen, ShareState, share_state
from modelfleetd.launcher.domain.outcomes import (
    backoff,
    confirmed,
    estimated,
    evidence_asked,
    evidence_found,
    finalized,
    forgone,
    intended,
    refused,
    reserved,
)
from modelfleetd.launcher.domain.plan import Plan
from modelfleetd.launcher.domain.planning import Inputs, Pace, Room, make
from modelfleetd.launcher.domain.policy import Approval, Policy, StabilityGate
from modelfleetd.launcher.domain.record import Act, GateVerdict, Intent, ModelFacts, PhaseTime, Verdict
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.verbs import abort, approve, pause, resume, skip_step

TYPE, CPU, EU = "modelTypes/ctr", "flavors/cpu", "regions/eu"
OLD, NEW = f"{TYPE}/models/old", f"{TYPE}/models/new"
T0 = datetime(2025, 1, 1, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
POLICY = Policy()
SHORT = QuotaShortage("pools/p", CPU, EU, 70, 60)


def planned(old: int = 50, new: int = 50, free: int = 20) -> Plan:
    """A swap in five steps."""
    candidate, baseline = Side(NEW, CPU, new), Side(OLD, CPU, old, running=old, share=10_000)
    return Plan((make(Inputs(EU, candidate, baseline, {CPU: Room(old, free)}), Pace()),))


def facts(model: str) -> ModelFacts:
    return ModelFacts(model, "sha256:0", {})


def pending(policy: Policy = POLICY) -> Launch:
    """A launch that has just been created."""
    return Launch(
        name="launches/l",
        uid="u",
        model_type=TYPE,
        candidate=NEW,
        strategy=Strategy.REPLACE_BASELINE,
        pool="pools/p",
        regions=(EU,),
        policy=policy,
        actor="alice",
        trace_id="0" * 31 + "1",
        create_time=T0,
        update_time=T0,
        baseline=OLD,
        phase_times=(PhaseTime(State.PENDING, T0),),
    )


def shifting(policy: Policy = POLICY, number: int = 1, **fields: object) -> Launch:
    """A launch at the beginning of a step."""
    launch = replace(
        pending(policy),
        state=State.SHIFTING,
        plan=planned(),
        gated=not policy.stability_gate.disabled,
        reservation="reservations/r",
        activated=True,
        touched=True,
        deadline=T0 + policy.launch_deadline,
        phase_times=(PhaseTime(State.SHIFTING, T0),),
        **fields,  # type: ignore[arg-type]
    )
    return begin_step(launch, number, T0, region=0)


def at_step(launch: Launch, **changes: object) -> Seen:
    """Both sides are just as the step wants them, and the traffic as well."""
    step = launch.step_plan

    def side(replicas: int, share: int) -> Observed:
        return Observed(replicas, share, available=replicas, acknowledged=share, observed=share)

    seen = Seen(
        EU,
        side(step.new_replicas, step.share),
        side(step.old_before, step.old_share),
        requests=1_000,
        split_age=MINUTE,
        time=T0,
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def baking(policy: Policy = POLICY) -> Launch:
    """A launch whose first step has just begun to bake."""
    launch = shifting(policy)
    begins = next_action(launch, at_step(launch), T0)
    return begins.launch  # type: ignore[union-attr]


def says(launch: Launch, verdict: Verdict, now: datetime, *, final: bool) -> Launch:
    """The stability gate has answered so, and whatever else is asked has passed."""
    others = [gate.name for gate in gates.asked(launch, final=final) if gate.name != "stability"]
    found = [
        GateVerdict(gate, EU, launch.step.number, said, "as the test wants", now)
        for gate, said in [("stability", verdict), *((other, Verdict.PASS) for other in others)]
    ]
    return gates.judged(launch, found, final=final, now=now)


def decides(launch: Launch, now: datetime) -> Action:
    return next_action(launch, at_step(launch) if launch.state is State.SHIFTING else None, now)


def judges(launch: Launch, verdict: Verdict, until: datetime, start: datetime = T0) -> tuple[Launch, list[datetime]]:
    """Lets the gate answer the same as often as it is asked; the moments at which it was."""
    asked: list[datetime] = []
    now = start
    while now < until:
        action = decides(launch, now)
        if isinstance(action, Judge):
            asked.append(now)
            launch = says(launch, verdict, now, final=action.final)
            assert len(asked) < 10_000
            continue
        assert isinstance(action, Wait), action
        now += max(0.05, action.seconds) * SECOND
    return launch, asked


# Before anything is changed


def estimates(launch: Launch, now: datetime = T0, *, baseline: str = OLD, free: int = 20) -> Launch:
    """Registry and capacity have answered."""
    return estimated(
        launch,
        plan=planned(free=free),
        candidate=facts(NEW),
        baseline=facts(baseline),
        revision=1,
        gated=True,
        tier="TIER2",
        now=now,
    )


def test_a_queued_launch_takes_over_from_whatever_the_one_before_it_has_made_the_baseline() -> None:
    waiting = replace(pending(), queued=True, baseline="")
    begins = decides(replace(waiting, queued=False), T0)
    assert isinstance(begins, Advance) and begins.launch.state is State.ESTIMATING
    launch = estimates(begins.launch, baseline=f"{TYPE}/models/newer")
    assert launch.state is State.PREPARING and launch.baseline == f"{TYPE}/models/newer"
    # From then on it is pinned.
    again = estimates(replace(launch, state=State.ESTIMATING), baseline=OLD)
    assert again.abort is not None and "no longer" in again.abort.reason


def test_a_queued_launch_whose_candidate_has_become_the_baseline_is_cancelled_and_says_so() -> None:
    waiting = replace(pending(), state=State.ESTIMATING, baseline="")
    for launch in (
        estimates(waiting, baseline=NEW),
        refused(waiting, Act.ESTIMATE, invalid("launch.candidate", "must not be the baseline already"), T0),
    ):
        assert launch.abort is not None and "baseline" in launch.abort.reason
        ends = decides(launch, T0)
        assert isinstance(ends, Advance) and ends.launch.state is State.CANCELLED


def awaiting(now: datetime = T0) -> Launch:
    """A launch whose plan is made and that nobody has approved."""
    launch = estimates(replace(pending(Policy(approval=Approval.REQUIRED)), state=State.ESTIMATING), now)
    assert launch.state is State.AWAITING_APPROVAL
    return launch


def approved(launch: Launch, now: datetime) -> Launch:
    assert launch.envelope is not None
    return approve(launch, "carol", launch.envelope.digest, now)


def test_a_pause_stops_the_deadline_of_an_approval() -> None:
    day = timedelta(days=1)
    launch = resume(pause(awaiting(), "bob", "holidays", T0 + day), "bob", T0 + 11 * day)
    # The launch's own deadline began with it and is as long.
    launch = replace(launch)
    assert isinstance(decides(launch, T0 + 16 * day), Wait)
    late = decides(launch, T0 + 17 * day)
    assert isinstance(late, Advance) and late.event == "Rejected"


def test_missing_evidence_is_asked_for_ever_less_often_until_the_approval_is_overdue_or_the_evidence_is_there() -> None:
    lacks = Decision("", Outcome.EVIDENCE_MISSING, "there is no result of time_spent")
    launch = estimates(replace(pending(), state=State.ESTIMATING, decision=lacks))
    assert launch.state is State.AWAITING_APPROVAL
    now, asked = T0, list[timedelta]()
    while isinstance(action := next_action(launch, None, now), Wait | Call):
        if isinstance(action, Call):
            assert action.act is Act.ESTIMATE
            asked.append(now - T0)
            assert evidence_found(launch, lacks, now) is None
            launch = evidence_asked(launch, now)
        else:
            assert action.reason == "EvidenceMissing"
            now += timedelta(seconds=action.seconds)
    pauses = [after - before for before, after in pairwise(asked)]
    assert asked[0] == pauses[0] == timedelta(seconds=30) and max(pauses) <= timedelta(minutes=10)
    assert pauses == sorted(pauses)
    assert isinstance(action, Advance) and action.event == "Rejected"
    assert timedelta(0) <= now - T0 - POLICY.approval_deadline <= MINUTE
    # Somebody who has brought it does not wait; a pause holds the question back.
    early = evidence_asked(launch, T0)
    assert isinstance(next_action(early, None, T0), Wait)
    assert isinstance(next_action(resume(early, "bob", T0), None, T0), Call)
    held = pause(replace(early, evidence_time=None), "bob", "wait for me", T0)
    assert isinstance(stays := next_action(held, None, T0), Wait) and stays.reason == "Paused"
    found = evidence_found(early, replace(lacks, outcome=Outcome.ACCEPTED), T0)
    assert found is not None and found.state is State.ESTIMATING


def test_a_plan_that_waited_long_for_its_approval_is_made_again_and_stays_approved_within_its_envelope() -> None:
    soon = decides(approved(awaiting(), T0 + MINUTE), T0 + MINUTE)
    assert isinstance(soon, Advance) and soon.launch.state is State.PREPARING
    now = T0 + timedelta(days=3)
    late = decides(approved(awaiting(), now), now)
    assert isinstance(late, Advance) and late.launch.state is State.ESTIMATING
    within = estimates(late.launch, now, free=6)
    assert within.state is State.PREPARING and within.envelope is not None
    assert within.envelope.approved_by == "carol"
    beyond = estimated(
        late.launch,
        plan=planned(new=60),
        candidate=facts(NEW),
        baseline=facts(OLD),
        revision=1,
        gated=True,
        tier="TIER2",
        now=now,
    )
    assert beyond.state is State.AWAITING_APPROVAL and beyond.envelope is not None
    assert beyond.envelope.approved_by == "" and beyond.approval_deadline == now + timedelta(days=7)


def test_capacity_that_is_refused_again_and_again_is_asked_for_ever_less_often_and_in_one_phase() -> None:
    launch = replace(
        estimates(replace(pending(), state=State.ESTIMATING, phase_times=(PhaseTime(State.ESTIMATING, T0),))),
        deadline=T0 + timedelta(days=7),
    )
    for _ in range(10):
        reserves = decides(launch, T0)
        assert isinstance(reserves, Call) and reserves.act is Act.RESERVE
        launch = refused(launch, Act.RESERVE, QuotaExceeded([SHORT]), T0)
        asks = decides(launch, T0)
        assert isinstance(asks, Call) and asks.act is Act.ESTIMATE
        launch = estimates(launch)
    assert launch.retries == 10 and backoff(launch.retries) == 30
    assert [phase.state for phase in launch.phase_times] == [State.ESTIMATING, State.PREPARING]
    given_up = decides(launch, T0 + timedelta(days=7))
    assert isinstance(given_up, Advance) and given_up.event == "DeadlinePassed"
    assert reserved(launch, Hold("reservations/r", HoldState.HELD), None, T0).retries == 0


def test_a_plan_that_leaves_the_envelope_while_capacity_is_short_is_shown_to_people_again() -> None:
    prepares = decides(approved(awaiting(), T0), T0)
    assert isinstance(prepares, Advance)
    launch = refused(prepares.launch, Act.RESERVE, QuotaExceeded([SHORT]), T0)
    launch = estimated(
        launch,
        plan=planned(new=60),
        candidate=facts(NEW),
        baseline=facts(OLD),
        revision=1,
        gated=True,
        tier="TIER2",
        now=T0,
    )
    assert launch.state is State.AWAITING_APPROVAL


# Gates


def test_a_gate_that_has_paused_a_launch_is_asked_at_its_interval_and_no_oftener() -> None:
    launch, asked = judges(baking(), Verdict.INCONCLUSIVE, T0 + 60 * MINUTE)
    assert launch.paused and launch.step.extensions == 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(asked) <= 61 and min(gaps) >= 60 * SECOND


def test_a_gate_is_always_asked_when_the_bake_ends() -> None:
    policy = Policy(bake_duration=90 * SECOND, stability_gate=StabilityGate(max_extensions=0))
    launch, asked = judges(baking(policy), Verdict.INCONCLUSIVE, T0 + 91 * SECOND)
    assert T0 + 90 * SECOND in asked and launch.paused


def held(launch: Launch, until: datetime, start: datetime = T0) -> Launch:
    """The judge is away for a while; the launch waits and does nothing else."""
    launch, _ = judges(launch, Verdict.ERROR, until, start)
    assert launch.abort is None and launch.step.gate_errors > 0
    return launch


def test_an_outage_of_the_judge_costs_a_launch_no_time_at_its_last_step() -> None:
    begun = shifting(number=5)
    begun = replace(begun, deadline=T0 + 60 * MINUTE)
    begins = decides(begun, T0)
    assert isinstance(begins, Advance)
    back = T0 + 3 * 60 * MINUTE
    launch = says(held(begins.launch, back), Verdict.PASS, back, final=True)
    # What was held is no bake: the rest of it is still to come, and then there is time to give up the old replicas.
    assert launch.bake_end is not None and back < launch.bake_end <= back + 5 * MINUTE
    launch = says(launch, Verdict.PASS, launch.bake_end, final=True)
    assert launch.step.passed and launch.bake_end is not None
    step = launch.step_plan
    draining = replace(
        at_step(launch),
        baseline=Observed(step.old_after, step.old_share, available=step.old_after, terminating=3),
    )
    for later in (MINUTE, 9 * MINUTE):
        action = next_action(launch, draining, launch.bake_end + later)
        assert isinstance(action, Wait) and action.reason == "Terminating"


def test_an_outage_of_the_judge_uses_up_no_extension() -> None:
    back = T0 + 60 * MINUTE
    launch, asked = judges(held(baking(), back), Verdict.INCONCLUSIVE, back + 15 * MINUTE, back)
    assert launch.step.extensions == 3 and not launch.paused and launch.abort is None
    launch, _ = judges(launch, Verdict.INCONCLUSIVE, back + 21 * MINUTE, asked[-1] + MINUTE)
    assert launch.paused and launch.abort is None


def test_a_skip_during_an_outage_of_the_judge_leaves_time_for_the_rest_of_the_step() -> None:
    late = T0 + 60 * MINUTE
    launch = skip_step(held(baking(), late), "oncall", 1)
    # Availability is heard at once; the judge need not be.
    assert isinstance(decides(launch, late), Judge)
    skipped = says(launch, Verdict.ERROR, late, final=False)
    assert skipped.step.passed and skipped.step.deadline is not None
    assert skipped.step.deadline >= late + 10 * MINUTE


def test_a_pause_within_an_outage_of_the_judge_is_not_counted_twice() -> None:
    launch = held(baking(), T0 + 20 * MINUTE)
    since = launch.step.held_since
    assert since is not None and launch.step.deadline is not None
    before = launch.step.deadline
    launch = pause(launch, "bob", "lunch", T0 + 20 * MINUTE)
    launch = resume(launch, "bob", T0 + 30 * MINUTE)
    launch = says(launch, Verdict.PASS, T0 + 40 * MINUTE, final=False)
    assert launch.step.deadline == before + (T0 + 40 * MINUTE - since)
    assert launch.step.bake_start == T0 + (T0 + 40 * MINUTE - since)


def test_an_outage_of_the_judge_rolls_back_where_the_policy_says_so() -> None:
    launch, _ = judges(
        baking(Policy(stability_gate=StabilityGate(roll_back_on_error=True))), Verdict.ERROR, T0 + 14 * MINUTE
    )
    action = decides(launch, T0 + 16 * MINUTE)
    if isinstance(action, Judge):
        action = decides(says(launch, Verdict.ERROR, T0 + 16 * MINUTE, final=True), T0 + 16 * MINUTE)
    assert isinstance(action, Advance) and action.event == "DeadlinePassed"


@pytest.mark.parametrize("verdict", [Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_a_dry_run_gate_lets_every_step_pass_whatever_it_says(verdict: Verdict) -> None:
    launch = baking(Policy(stability_gate=StabilityGate(dry_run=True)))
    assert launch.bake_end is not None
    launch = says(launch, verdict, launch.bake_end, final=True)
    assert launch.step.passed and launch.abort is None and launch.step.gate_errors == 0


@pytest.mark.parametrize("others", [False, True])
def test_a_bake_that_begins_anew_after_a_pause_has_all_of_its_time(others: bool) -> None:
    launch, _ = judges(baking(), Verdict.INCONCLUSIVE, T0 + 30 * MINUTE)
    assert launch.paused
    now = T0 + 60 * MINUTE
    if others:
        launch = pause(launch, "bob", "lunch", T0 + 30 * MINUTE)
        launch = resume(launch, "gate/stability", now)
        assert launch.paused
        launch = resume(launch, "bob", now)
    else:
        launch = resume(launch, "alice", now, any_author=True)
    assert not launch.paused and launch.bake_end == now + 5 * MINUTE
    assert launch.step.deadline == now + 15 * MINUTE
    launch, asked = judges(launch, Verdict.INCONCLUSIVE, now + 20 * MINUTE, now)
    assert asked and launch.abort is None and launch.step.extensions == 3


# Going back


def going(launch: Launch, now: datetime = T0) -> Launch:
    """A launch that has just begun to go back."""
    turns = next_action(abort(launch, "oncall", "it looks bad", now), at_step(launch), now)
    assert isinstance(turns, Advance) and turns.launch.state is State.ROLLING_BACK
    return turns.launch


def returning(candidate: Observed, baseline: Observed, **changes: object) -> Seen:
    seen = Seen(EU, candidate, baseline, requests=1_000, split_age=10 * SECOND, time=T0)
    return replace(seen, **changes)  # type: ignore[arg-type]


def test_stragglers_hold_the_way_back_for_a_bounded_time_only() -> None:
    launch = going(shifting())
    # Two in a hundred went to the candidate after the split, and then traffic stopped.
    seen = returning(
        Observed(10, 0, available=10, observed=200), Observed(50, 10_000, available=50, acknowledged=10_000)
    )
    waits = next_action(launch, seen, T0 + SECOND)
    assert isinstance(waits, Wait) and waits.reason == "ShareReturning" and not waits.alarming
    goes_on = next_action(launch, replace(seen, split_age=MINUTE), T0 + MINUTE)
    assert isinstance(goes_on, Apply) and goes_on.act is Act.SHED
    # Also where nobody knows how old the split is.
    late = next_action(launch, replace(seen, split_age=timedelta(0)), T0 + 10 * MINUTE)
    assert isinstance(late, Apply) and late.act is Act.SHED


@pytest.mark.parametrize("ending", range(0, 31, 5))
def test_a_baseline_that_everything_went_back_to_at_once_grows_only_as_its_old_replicas_end(ending: int) -> None:
    launch = going(shifting(number=2))
    assert launch.plan is not None
    (hold,) = launch.plan.regions[0].holds
    old = Observed(40, 10_000, available=40, terminating=ending, acknowledged=10_000, observed=10_000)
    action = next_action(launch, returning(Observed(), old), T0)
    room = hold.hold_units - 40 - ending
    if room > 0:
        assert isinstance(action, Apply) and (action.act, action.old_replicas) == (Act.RESTORE, min(50, 40 + room))
    else:
        assert isinstance(action, Wait) and action.reason == "Terminating"


def test_a_share_that_a_third_model_has_dropped_does_not_hold_the_way_back() -> None:
    launch = going(shifting())
    seen = returning(
        Observed(10, 0, available=10), Observed(50, 9_000, available=50, acknowledged=10_000, observed=10_000)
    )
    action = next_action(launch, seen, T0 + SECOND)
    assert isinstance(action, Apply) and action.act is Act.SHED


def test_whatever_the_way_back_waits_for_calls_people_after_a_while() -> None:
    launch = going(shifting())
    stuck = (
        returning(Observed(10, 2_000, available=10, acknowledged=2_000), Observed(50, 8_000, starting=50)),
        returning(Observed(10, 0, available=10), Observed(50, 10_000, available=50), current=False),
        returning(Observed(0, 0, terminating=10), Observed(50, 10_000, available=50, acknowledged=10_000)),
    )
    for seen in stuck:
        early, late = (next_action(launch, seen, T0 + wait) for wait in (9 * MINUTE, 10 * MINUTE))
        assert isinstance(early, Wait) and not early.alarming
        assert isinstance(late, Wait) and late.alarming
    # What gets on gives it time again.
    act = Intent(1, Act.GROW, "k", 1, EU, False, {}, T0 + 9 * MINUTE)
    again = next_action(confirmed(intended(launch, act)), stuck[0], T0 + 18 * MINUTE)
    assert isinstance(again, Wait) and not again.alarming


def test_a_share_counts_as_there_when_both_sides_have_more_because_a_third_model_dropped_its_own() -> None:
    def state(new: tuple[int, int], old: tuple[int, int]) -> ShareState:
        (share, given), (rest, left) = new, old
        candidate = Observed(9, share, available=9, acknowledged=given, observed=given)
        return share_state(Seen(EU, candidate, Observed(9, rest, 9, 9, acknowledged=left, observed=left), requests=500))

    assert state((1_800, 2_000), (7_200, 8_000)) is ShareState.OBSERVED
    assert state((1_000, 1_111), (8_000, 8_889)) is ShareState.OBSERVED
    assert state((1_800, 1_800), (7_200, 7_200)) is ShareState.OBSERVED
    # One of the two sides has dropped its share, or has not got it yet.
    assert state((1_800, 0), (7_200, 8_000)) is ShareState.PENDING
    assert state((1_800, 10_000), (7_200, 0)) is ShareState.PENDING
    assert state((1, 0), (9_999, 10_000)) is ShareState.PENDING
    assert state((3_600, 1_800), (5_400, 7_200)) is ShareState.PENDING


# Refusals


@pytest.mark.parametrize("past", [timedelta(minutes=16), timedelta(days=8)])
def test_an_act_that_is_refused_for_ever_is_given_up_at_the_deadline(past: timedelta) -> None:
    launch = refused(shifting(), Act.START, invalid("desired.models[0]", "must be something else"), T0)
    nothing = Seen(EU, Observed(), Observed(50, 10_000, available=50, acknowledged=10_000, observed=10_000))
    again = next_action(launch, nothing, T0 + MINUTE)
    assert isinstance(again, Apply)
    given_up = next_action(launch, nothing, T0 + past)
    assert isinstance(given_up, Advance) and given_up.launch.abort is not None
    assert given_up.launch.abort.author == "deadline"


@pytest.mark.parametrize("error", [invalid("splits", "must sum to 10,000"), ResourceNotFound(TYPE)])
def test_a_launch_that_the_registry_will_never_have_goes_back(error: FleetError) -> None:
    ready = enter(shifting(number=5), State.FINALIZING, T0)
    launch = refused(ready, Act.FINALIZE, error, T0)
    assert launch.abort is not None and launch.abort.author == "registry"
    goes = decides(launch, T0)
    assert isinstance(goes, Call) and goes.act is Act.FORGO
    goes = decides(forgone(launch), T0)
    assert isinstance(goes, Advance) and goes.launch.state is State.ROLLING_BACK


def test_a_launch_that_the_registry_always_finds_changed_ends_at_its_deadline() -> None:
    ready = enter(shifting(number=5), State.FINALIZING, T0)
    launch = refused(ready, Act.FINALIZE, RevisionMismatch(1, 2), T0)
    assert launch.abort is None and isinstance(decides(launch, T0 + MINUTE), Call)
    late = decides(launch, T0 + timedelta(days=8))
    assert isinstance(late, Advance) and late.launch.abort is not None
    # Once the registry has made it the baseline, nothing but settling is left.
    done = replace(finalized(launch, 7), retries=3)
    settles = decides(done, T0 + timedelta(days=8))
    assert isinstance(settles, Call) and settles.act is Act.SETTLE
