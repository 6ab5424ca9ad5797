"""What a freeze window does to a launch: decision by decision, and in whole launches in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain import frozen
from modelfleetd.launcher.domain.actions import Action, Advance, Apply, Call, Judge, Wait
from modelfleetd.launcher.domain.deadlines import begin_step
from modelfleetd.launcher.domain.decide import next_action
from modelfleetd.launcher.domain.freeze import FreezeWindow, Occurrence, Schedule
from modelfleetd.launcher.domain.frozen import Open, conflicts, looked_at
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.observed import Seen
from modelfleetd.launcher.domain.outcomes import looked
from modelfleetd.launcher.domain.policy import AvailabilityGate, Policy, StabilityGate
from modelfleetd.launcher.domain.record import Act, FreezeOverride, PhaseTime, Verdict
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.summary import sentence
from modelfleetd.launcher.domain.verbs import abort, override_freeze, pause, resume
from modelfleetd.launcher.domain.waves import forward
from modelfleetd.platform.model import EffectKind
from modelfleetd.rehearsal.chance import Trouble
from tests.domain.test_launcher_decisions import EU, T0, at_step, facts, pending, planned, says, shifting
from tests.support.rehearsal import LAUNCH, NEW, OLD, QUICK, TYPE, Rehearsal, rehearse

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
UNGATED = Policy(stability_gate=StabilityGate(disabled=True), availability_gate=AvailabilityGate(disabled=True))
NO_LEAD = timedelta(0)


def window(name: str = "holidays", uid: str = "", **scope: Any) -> FreezeWindow:
    schedule = Schedule(T0.replace(tzinfo=None), HOUR)
    return FreezeWindow(f"freezeWindows/{name}", "few are there", schedule, uid=uid or name, **scope)


def opened(start: datetime = T0, lasts: timedelta = HOUR, of: FreezeWindow | None = None) -> Open:
    return Open(of or window(), Occurrence(start, start + lasts))


def freeze(launch: Launch, now: datetime = T0, *near: Open) -> Launch:
    """The launch as it is while a window is open."""
    return looked_at(launch, near or (opened(now),), now, NO_LEAD)[0]


def preparing(**fields: object) -> Launch:
    """Its plan is made and nothing is reserved."""
    return replace(
        pending(UNGATED),
        state=State.PREPARING,
        plan=planned(),
        plan_time=T0,
        deadline=T0 + UNGATED.launch_deadline,
        phase_times=(PhaseTime(State.PREPARING, T0),),
        **fields,  # type: ignore[arg-type]
    )


def after_step(launch: Launch) -> Seen:
    """A step is over: the old replicas that it has replaced are gone."""
    seen, kept = at_step(launch), launch.step_plan.old_after
    return replace(seen, baseline=replace(seen.baseline, desired=kept, available=kept))


def waits(action: Action) -> str:
    assert isinstance(action, Wait), action
    return action.reason


def test_a_window_has_a_launch_wait_before_it_reserves_and_says_why_and_until_when() -> None:
    launch = preparing()
    assert isinstance(action := next_action(launch, None, T0), Call) and action.act is Act.RESERVE
    action = next_action(freeze(launch), None, T0)
    assert isinstance(action, Wait) and action.reason == "Frozen"
    assert action.message == "waits until 2025-01-01 01:00 UTC, when freezeWindows/holidays closes (few are there)"
    assert action.seconds <= 60


def test_a_window_lets_a_launch_be_estimated_and_approved() -> None:
    estimating = replace(preparing(), state=State.ESTIMATING)
    assert isinstance(action := next_action(freeze(estimating), None, T0), Call) and action.act is Act.ESTIMATE
    queue = pending()
    assert isinstance(action := next_action(freeze(queue), None, T0), Advance)
    assert action.launch.state is State.ESTIMATING


def test_a_window_holds_back_replicas_of_the_next_step_and_its_weight_but_not_what_finishes_the_last() -> None:
    launch = freeze(shifting(UNGATED, number=2))
    assert waits(next_action(launch, after_step(shifting(UNGATED)), T0)) == "Frozen"
    # The replicas are there already: the weight waits all the same.
    there = at_step(launch)
    started = replace(there, candidate=replace(there.candidate, share=2_000, observed=2_000, acknowledged=2_000))
    assert waits(next_action(launch, started, T0)) == "Frozen"
    assert isinstance(action := next_action(replace(launch, frozen=None), started, T0), Apply)
    assert action.act is Act.SHIFT
    # The step is over: old replicas go.
    done = replace(launch, step=replace(launch.step, bake_start=T0, passed=True))
    assert isinstance(action := next_action(done, at_step(launch), T0), Apply) and action.act is Act.REDUCE


def test_of_several_regions_those_that_only_give_back_go_on_in_a_window() -> None:
    launch = freeze(shifting(UNGATED, number=2))
    start, reduce = (Apply(act, EU, 20, 30, 2_000, "does") for act in (Act.START, Act.REDUCE))
    assert frozen.held_back(launch, start) is frozen.HELD
    assert frozen.held_back(launch, reduce) is reduce
    seen = after_step(shifting(UNGATED))
    there = forward(launch, [(seen, frozen.held_back(launch, action)) for action in (start, reduce)])
    assert there is reduce


def test_a_step_that_bakes_finishes_its_bake_in_a_window() -> None:
    launch = freeze(shifting(UNGATED))
    seen = at_step(launch)
    action = next_action(launch, seen, T0)
    assert isinstance(action, Advance) and action.event == "BakeBegan"
    baking = action.launch
    assert waits(next_action(baking, seen, T0 + MINUTE)) == "Baking"
    action = next_action(baking, seen, T0 + 6 * MINUTE)
    assert isinstance(action, Advance) and action.event == "BakeEnded"


def test_gates_are_measured_while_a_window_holds_back_the_next_step() -> None:
    launch = freeze(replace(shifting(number=2), weight_time=T0))
    before = after_step(shifting())
    assert isinstance(next_action(launch, before, T0), Judge)
    asked = says(launch, Verdict.PASS, T0, final=False)
    assert waits(next_action(asked, before, T0)) == "Frozen"
    fails = says(launch, Verdict.FAIL, T0, final=False)
    assert isinstance(action := next_action(fails, before, T0), Advance)
    assert action.launch.state is State.ROLLING_BACK


def test_lost_replicas_and_aborts_lead_back_in_a_window() -> None:
    launch = freeze(shifting(UNGATED, number=2))
    before = at_step(shifting(UNGATED, number=1))
    gone = replace(before, candidate=replace(before.candidate, available=0))
    assert isinstance(action := next_action(launch, gone, T0), Advance) and action.event == "SafetyRollback"
    aborted = freeze(abort(launch, "oncall", "bad", T0))
    assert aborted.frozen is None
    assert isinstance(action := next_action(aborted, before, T0), Advance)
    assert action.launch.state is State.ROLLING_BACK


def test_a_mitigation_is_never_held_back() -> None:
    launch = freeze(preparing(strategy=Strategy.END_EXPERIMENT, candidate_facts=facts(NEW)))
    assert launch.frozen is None
    assert isinstance(next_action(launch, None, T0), Call)


def test_only_launches_in_scope_without_an_override_of_this_very_window_are_held_back() -> None:
    launch = replace(preparing(), team="teams/ads", surface="feed", tier="TIER1")
    inside: list[dict[str, Any]] = [
        {},
        {"teams": ("teams/ads",)},
        {"surfaces": ("feed", "reels")},
        {"tiers": ("TIER1",)},
    ]
    for scope in inside:
        assert freeze(launch, T0, opened(of=window(**scope))).frozen is not None, scope
    outside: list[dict[str, Any]] = [
        {"teams": ("teams/x",)},
        {"surfaces": ("reels",)},
        {"teams": ("teams/ads",), "tiers": ("TIER0",)},
    ]
    for scope in outside:
        assert freeze(launch, T0, opened(of=window(**scope))).frozen is None, scope
    let = override_freeze(launch, FreezeOverride("freezeWindows/holidays", "a fix", "bob", T0, "holidays"))
    assert freeze(let).frozen is None
    # It was deleted, and made anew under its name.
    assert freeze(let, T0, opened(of=window(uid="another"))).frozen is not None
    # Another window is open as well.
    both = freeze(let, T0, opened(), opened(of=window("audit"))).frozen
    assert both is not None and both.freeze_window == "freezeWindows/audit"


def test_of_several_windows_the_one_that_closes_last_is_named() -> None:
    launch = freeze(preparing(), T0, opened(of=window("short")), opened(lasts=2 * HOUR, of=window("long")))
    assert launch.frozen is not None and launch.frozen.freeze_window == "freezeWindows/long"
    assert sentence(launch, T0) == "Reserves capacity; since 00:00:00."


def test_nothing_is_begun_just_before_a_window_that_would_land_inside_it() -> None:
    soon, lead = opened(T0 + timedelta(seconds=4)), timedelta(seconds=5)
    assert looked_at(preparing(), [soon], T0, lead)[0].frozen is not None
    assert looked_at(preparing(), [soon], T0 - timedelta(seconds=2), lead)[0].frozen is None


def test_opening_and_closing_are_said_once() -> None:
    launch, said = looked_at(preparing(), [opened()], T0, NO_LEAD)
    assert said is not None and said[0] == "Frozen" and "freezeWindows/holidays" in said[1]
    launch, said = looked_at(launch, [opened()], T0 + MINUTE, NO_LEAD)
    assert said is None and launch.frozen is not None and launch.frozen.since == T0
    launch, said = looked_at(launch, [opened()], T0 + HOUR, NO_LEAD)
    assert said == ("Thawed", "freezeWindows/holidays holds it back no more, after 60 min")
    # What was free before says little about now.
    assert launch.frozen is None and launch.plan_time is None
    assert looked_at(launch, [opened()], T0 + HOUR, NO_LEAD)[1] is None


def remaining(launch: Launch, now: datetime) -> tuple[timedelta, timedelta]:
    """What is left of both deadlines."""
    assert launch.deadline is not None and launch.step.deadline is not None
    return launch.deadline - now, launch.step.deadline - now


def at(minutes: float) -> datetime:
    return T0 + minutes * MINUTE


@given(
    marks=st.lists(st.integers(1, 300), min_size=4, max_size=4, unique=True).map(sorted),
    order=st.permutations(["freeze", "thaw", "pause", "resume"]),
    looks=st.lists(st.integers(0, 310), max_size=4),
)
def test_deadlines_stand_still_exactly_while_it_is_frozen_or_paused(
    marks: list[int], order: Sequence[str], looks: list[int]
) -> None:
    times = dict(zip(order, marks, strict=True))
    if times["thaw"] < times["freeze"] or times["resume"] < times["pause"]:
        times |= {"freeze": min(times["freeze"], times["thaw"]), "thaw": max(times["freeze"], times["thaw"])}
        times |= {"pause": min(times["pause"], times["resume"]), "resume": max(times["pause"], times["resume"])}
    near = [opened(at(times["freeze"]), (times["thaw"] - times["freeze"]) * MINUTE)]
    launch = shifting(UNGATED)
    begun = remaining(launch, T0)
    for minute in sorted({*looks, *times.values(), 320}):
        launch = looked_at(launch, near, at(minute), NO_LEAD)[0]
        if minute == times["pause"]:
            launch = pause(launch, "bob", "a look", at(minute))
        if minute == times["resume"]:
            launch = resume(launch, "bob", at(minute))
    still = set(range(times["freeze"], times["thaw"])) | set(range(times["pause"], times["resume"]))
    assert remaining(launch, at(320)) == tuple(left - (320 - len(still)) * MINUTE for left in begun)


def test_a_judge_that_cannot_be_reached_in_a_window_stops_no_clock_twice() -> None:
    launch = replace(shifting(number=2), weight_time=T0)
    begun = remaining(launch, T0)
    launch = freeze(launch, T0, opened(lasts=HOUR))
    launch = says(launch, Verdict.ERROR, at(10), final=False)
    thawed = freeze(launch, at(60), opened(lasts=HOUR))
    assert remaining(thawed, at(60)) == begun
    # The next step bakes as long as any: the outage was before it.
    assert thawed.step.held_since is None and thawed.step.gate_errors == 0


def test_a_launch_that_nobody_could_look_at_in_a_window_is_given_that_time_once() -> None:
    launch = freeze(replace(shifting(UNGATED), watched_until=at(1)), T0, opened(lasts=HOUR))
    begun = remaining(shifting(UNGATED), T0)
    late = looked(launch, at(90))
    thawed = looked_at(late, [opened(lasts=HOUR)], at(90), NO_LEAD)[0]
    assert remaining(thawed, at(90)) == begun


def test_no_deadline_passes_in_a_window_and_the_next_step_begins_with_all_its_time() -> None:
    launch = freeze(shifting(UNGATED), T0, opened(lasts=1_000 * HOUR))
    seen = at_step(launch)
    lagging = replace(seen, candidate=replace(seen.candidate, observed=0))
    assert waits(next_action(launch, lagging, at(50_000))) == "ShareDiffers"
    assert isinstance(next_action(replace(launch, frozen=None), lagging, at(50_000)), Advance)
    following = freeze(begin_step(launch, 2, at(100)), at(160), opened(lasts=160 * MINUTE))
    assert remaining(following, at(160))[1] == UNGATED.step_deadline + UNGATED.bake_duration
    approval = replace(preparing(), state=State.AWAITING_APPROVAL, approval_deadline=at(10))
    assert waits(next_action(freeze(approval, T0, opened(lasts=HOUR)), None, at(30))) == "AwaitingApproval"


# What stands in the way of a plan


def daily(name: str, start: str, hours: float, **scope: Any) -> FreezeWindow:
    schedule = Schedule(datetime.fromisoformat(start), hours * HOUR, "UTC", "FREQ=DAILY")
    return FreezeWindow(f"freezeWindows/{name}", "nights", schedule, uid=name, **scope)


def test_a_plan_names_the_windows_that_are_open_or_open_before_it_is_done() -> None:
    nights = daily("nights", "2024-12-01T18:00:00", 12)
    launch = replace(pending(), team="teams/ads")
    named = conflicts(launch, [nights], T0 + 7 * HOUR, 2 * HOUR)
    assert named == ()
    (one,) = conflicts(launch, [nights], T0 + 17 * HOUR, 2 * HOUR)
    assert (one.start_time, one.end_time, one.overridden) == (T0 + 18 * HOUR, T0 + 30 * HOUR, False)
    assert conflicts(launch, [daily("theirs", "2024-12-01T18:00:00", 12, teams=("teams/x",))], T0, 48 * HOUR) == ()
    assert conflicts(replace(launch, strategy=Strategy.END_EXPERIMENT), [nights], T0, 48 * HOUR) == ()


def test_what_holds_a_launch_back_makes_it_meet_further_windows() -> None:
    nights = daily("nights", "2024-12-01T18:00:00", 12)
    # 20 hours of work, 12 a day: two nights. Without them it would have met one.
    assert len(conflicts(pending(), [nights], T0 + 6 * HOUR, 20 * HOUR)) == 1
    assert len(conflicts(pending(), [nights], T0 + 6 * HOUR, 30 * HOUR)) == 2
    let = replace(pending(), freeze_overrides=(FreezeOverride("freezeWindows/nights", "a fix", "bob", T0, "nights"),))
    overridden = conflicts(let, [nights], T0 + 6 * HOUR, 30 * HOUR)
    assert [each.overridden for each in overridden] == [True]


def test_a_window_that_is_always_open_is_named_a_bounded_number_of_times() -> None:
    assert len(conflicts(pending(), [daily("always", "2024-12-01T00:00:00", 24)], T0, HOUR)) == 20


# Whole launches


def raised(fleet: Rehearsal, start: datetime, end: datetime) -> list[str]:
    """What was asked of the agent between two moments that gave the candidate more weight, or replicas to start."""
    found, weight, replicas = [], 0, 0
    for effect in fleet.simulator(TYPE).ledger:
        if effect.kind is not EffectKind.ACCEPTED or effect.desired is None:
            continue
        share, running = effect.desired.share_of(NEW), effect.desired.replicas_of(NEW)
        if start <= effect.time < end and (share > weight or running > replicas):
            found.append(f"{effect.time}: {weight} > {share}, {replicas} > {running}")
        weight, replicas = share, running
    return found


def meets(fleet: Rehearsal, after: float, lasts: float) -> tuple[datetime, datetime]:
    """Has the launch meet a window."""
    start = fleet.clock.now() + timedelta(seconds=after)
    schedule = Schedule(start.replace(tzinfo=None), timedelta(seconds=lasts))
    fleet.freeze(replace(window(), schedule=schedule))
    return start, start + timedelta(seconds=lasts)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    after=st.floats(0, 40),
    lasts=st.floats(10, 90),
    crash_rate=st.sampled_from([0.0, 0.03]),
    hang_rate=st.sampled_from([0.0, 0.05]),
    free=st.integers(2, 14),
)
async def test_a_launch_never_raises_weight_or_starts_replicas_inside_a_window_and_succeeds_after_it(
    seed: int, after: float, lasts: float, crash_rate: float, hang_rate: float, free: int
) -> None:
    trouble = Trouble(crash_rate=crash_rate, stall_rate=hang_rate)
    fleet = await rehearse(old=12, new=10, free=free, seed=seed, trouble=trouble)
    start, end = meets(fleet, after, lasts)
    launch = await fleet.pass_by()
    assert raised(fleet, start, end) == []
    assert launch.state is State.SUCCEEDED, fleet.said()
    assert fleet.broken() == []


@pytest.mark.parametrize("seconds", [3.0, 15.0])
async def test_an_abort_inside_a_window_leads_back_at_once(seconds: float) -> None:
    fleet = await rehearse(old=30, new=26, free=10)
    start, end = meets(fleet, seconds, 10_000)
    await fleet.pass_by(60)
    assert fleet.launch().frozen is not None
    waiting = fleet.launch().condition("Waiting")
    assert waiting is not None and waiting.reason == "Frozen"
    assert fleet.abort(LAUNCH) == ""
    launch = await fleet.pass_by(1_000)
    assert launch.state in (State.ROLLED_BACK, State.CANCELLED) and fleet.clock.now() < end
    assert fleet.serving() == {OLD: (10_000, 30)}
    assert raised(fleet, start, end) == [] and fleet.broken() == []


async def test_an_experiment_ends_inside_a_window() -> None:
    fleet = await rehearse(old=50, new=60, free=40, experiment_share=2_000)
    meets(fleet, 0, 10_000)
    launch = await fleet.pass_by()
    assert launch.state is State.SUCCEEDED and fleet.broken() == []


async def test_a_launch_that_is_frozen_past_its_deadlines_goes_on_and_its_history_says_so() -> None:
    policy = replace(QUICK, launch_deadline=timedelta(minutes=3), availability_gate=AvailabilityGate(disabled=True))
    fleet = await rehearse(old=30, new=26, free=10, policy=policy)
    meets(fleet, 12, 300)
    launch = await fleet.pass_by(1_000)
    assert launch.state is State.SUCCEEDED, fleet.said()
    said = [event for event in fleet.history() if event.startswith(("Frozen", "Thawed"))]
    assert len(said) == 2 and "freezeWindows/holidays" in said[0]
    assert frozen.is_exempt(launch) is False and launch.end_time is not None
    assert launch.end_time.tzinfo is UTC
