"""A launch in line for its capacity: what it says, does when its turn comes or is lost, and tells others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import EndStateExceedsQuota, PartUnavailable, PlanInfeasible, WrongState
from modelfleetd.launcher.domain import outcomes, verbs
from modelfleetd.launcher.domain.actions import Advance, Call, Wait
from modelfleetd.launcher.domain.deadlines import begin_step
from modelfleetd.launcher.domain.decide import awaits_hold, next_action
from modelfleetd.launcher.domain.hold import HeldPlace, Hold, HoldState, Promise
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.plan import Plan, RegionPlan
from modelfleetd.launcher.domain.planning import Inputs, Pace, Room, make
from modelfleetd.launcher.domain.policy import Policy
from modelfleetd.launcher.domain.record import Act, PhaseTime
from modelfleetd.launcher.domain.release import RENEW, RETRY, Told, expected_release, is_due
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.verbs import abort, pause
from modelfleetd.launcher.intents import intent_of
from modelfleetd.launcher.renewal import Renewer

TYPE, CPU, GPU, EU, US = "modelTypes/ctr", "flavors/cpu", "flavors/gpu", "regions/eu", "regions/us"
OLD, NEW = f"{TYPE}/models/old", f"{TYPE}/models/new"
T0 = datetime(2025, 1, 1, 13, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def swap(old: int, new: int, free: int, *, running: int = 0, patient: bool = False, flavor: str = CPU) -> RegionPlan:
    candidate = Side(NEW, flavor, new)
    baseline = Side(OLD, CPU, old, running=running or old, share=10_000)
    room = {CPU: Room(running or old, free)} | ({flavor: Room(free=free)} if flavor != CPU else {})
    return make(Inputs(EU, candidate, baseline, room), Pace(), patient=patient)


def preparing(**fields: object) -> Launch:
    """A launch whose plan is made."""
    launch = Launch(
        name="launches/l",
        uid="u",
        model_type=TYPE,
        candidate=NEW,
        strategy=Strategy.REPLACE_BASELINE,
        pool="pools/p",
        regions=(EU,),
        policy=Policy(),
        actor="alice",
        trace_id="0" * 32,
        create_time=T0,
        update_time=T0,
        baseline=OLD,
        state=State.PREPARING,
        plan=Plan((swap(500, 420, 0, patient=True),)),
        plan_time=T0,
        tier="TIER1",
        deadline=T0 + DAY,
        phase_times=(PhaseTime(State.PREPARING, T0),),
    )
    return replace(launch, **fields)  # type: ignore[arg-type]


def promised(units: int = 84, launch: str = "launches/x", time: datetime | None = T0 + 65 * MINUTE) -> Promise:
    return Promise(launch, CPU, EU, units, time)


def pending(*promises: Promise, **fields: object) -> Hold:
    found = Hold("reservations/r", HoldState.PENDING, promises=promises or (promised(),), time=T0 + HOUR, position=1)
    return replace(found, **fields)  # type: ignore[arg-type]


HELD = Hold("reservations/r", HoldState.HELD, (HeldPlace(CPU, EU, 584, 500),))


def in_line(hold: Hold | None = None) -> Launch:
    """A launch that capacity has put in line."""
    return outcomes.reserved(preparing(), hold or pending(), T0 + HOUR, T0)


# What it says


def test_a_launch_in_line_says_for_how_much_it_waits_whose_until_when_and_at_which_place() -> None:
    action = next_action(in_line(), None, T0)
    assert isinstance(action, Wait) and action.reason == "CapacityPromised"
    assert action.message == ("waits for 84 units of cpu in eu that launches/x frees at about 14:05; first in line")


@pytest.mark.parametrize(
    ("hold", "sentence"),
    [
        (
            pending(promised(20, "launches/y", T0 + 2 * HOUR), promised(64), position=2),
            "waits for 64 units of cpu in eu that launches/x frees at about 14:05 and 20 units of cpu in eu that "
            "launches/y frees at about 15:00; second in line",
        ),
        (
            pending(promised(40), promised(44), position=12),
            "waits for 84 units of cpu in eu that launches/x frees at about 14:05; number 12 in line",
        ),
        (
            pending(promised(time=T0 + 3 * DAY)),
            "waits for 84 units of cpu in eu that launches/x frees at about 2025-01-04 13:00; first in line",
        ),
        (
            pending(promised(time=None)),
            "waits for 84 units of cpu in eu that launches/x frees at a time that it cannot say; first in line",
        ),
        (
            pending(promised(time=T0 - 5 * MINUTE)),
            "waits for 84 units of cpu in eu that launches/x was expected to free by 12:55; first in line",
        ),
        (
            pending(*(promised(1, f"launches/x{n}") for n in range(5))),
            "waits for 1 unit of cpu in eu that launches/x0 frees at about 14:05 and 1 unit of cpu in eu that "
            "launches/x1 frees at about 14:05 and 1 unit of cpu in eu that launches/x2 frees at about 14:05 and "
            "2 units of 2 more; first in line",
        ),
        (
            replace(pending(), promises=(), message="what was promised has slipped away."),
            "waits for capacity: what was promised has slipped away; first in line",
        ),
    ],
)
def test_every_kind_of_promise_is_a_sentence(hold: Hold, sentence: str) -> None:
    assert hold.waits(T0) == sentence


def test_it_is_looked_at_every_few_seconds_and_oftener_when_it_is_near() -> None:
    assert pending(time=T0 + HOUR).due(T0) == 10
    assert pending(time=None).due(T0) == 10
    assert pending(time=T0 + MINUTE / 2).due(T0) == 5
    assert pending(time=T0 - HOUR).due(T0) == 5


# What it does


def test_a_launch_in_line_asks_what_became_of_its_reservation_and_one_that_holds_does_not() -> None:
    assert awaits_hold(in_line())
    assert awaits_hold(replace(in_line(), hold=None))
    assert not awaits_hold(preparing())
    assert not awaits_hold(in_line(HELD))
    assert not awaits_hold(abort(in_line(), "bob", "no", T0))


def test_what_is_held_at_once_is_activated_at_once() -> None:
    action = next_action(in_line(HELD), None, T0)
    assert isinstance(action, Call) and action.act is Act.ACTIVATE


def test_when_its_turn_comes_the_plan_is_made_again_before_anything_starts() -> None:
    launch = outcomes.told(in_line(), HELD)
    action = next_action(launch, None, T0 + MINUTE)
    assert isinstance(action, Call) and action.act is Act.ESTIMATE


def test_a_hold_that_has_been_there_for_long_is_planned_anew() -> None:
    action = next_action(in_line(HELD), None, T0 + HOUR)
    assert isinstance(action, Call) and action.act is Act.ESTIMATE


@pytest.mark.parametrize("state", [HoldState.EXPIRED, HoldState.CANCELLED])
def test_a_reservation_that_is_lost_is_made_anew_with_another_key(state: HoldState) -> None:
    launch = outcomes.told(in_line(), replace(pending(), state=state))
    first = intent_of(Call(Act.RESERVE, ""), preparing(), None, T0)
    action = next_action(launch, None, T0)
    assert isinstance(action, Advance) and action.event == "ReservationLost"
    assert action.launch.reservation == "" and action.launch.hold is None
    again = next_action(action.launch, None, T0)
    assert isinstance(again, Call) and again.act is Act.ESTIMATE
    planned = replace(action.launch, plan_time=T0, intents=1)
    assert intent_of(Call(Act.RESERVE, ""), planned, None, T0).key != first.key


def test_a_hold_that_ran_out_while_the_launch_was_paused_is_found_out_at_the_activation() -> None:
    refused = WrongState("reservations/r", "EXPIRED", [])
    launch = outcomes.refused(in_line(HELD), Act.ACTIVATE, refused, T0)
    assert launch.reservation and awaits_hold(launch)


def test_a_hold_that_carries_no_plan_any_more_is_given_back() -> None:
    infeasible = PlanInfeasible("the old side has grown", missing_units=3, flavor=CPU, region=EU)
    launch = outcomes.refused(outcomes.told(in_line(), HELD), Act.ESTIMATE, infeasible, T0)
    action = next_action(launch, None, T0)
    assert isinstance(action, Call) and action.act is Act.CANCEL_RESERVATION
    after = outcomes.reservation_gone(launch)
    assert (after.reservation, after.hold, after.plan_time) == ("", None, None)


def test_an_abort_gives_its_place_in_line_away() -> None:
    action = next_action(abort(in_line(), "bob", "no", T0), None, T0)
    assert isinstance(action, Call) and action.act is Act.CANCEL_RESERVATION


def test_the_deadline_counts_on_while_it_waits() -> None:
    action = next_action(in_line(), None, T0 + DAY)
    assert isinstance(action, Advance) and action.event == "DeadlinePassed"
    assert "waits for 84 units" in action.message


def test_a_launch_that_may_not_end_where_it_wants_names_the_lenders_command() -> None:
    error = EndStateExceedsQuota("pools/feed", CPU, EU, 120, 100)
    launch = outcomes.refused(preparing(), Act.RESERVE, error, T0)
    assert launch.plan_time is None and not launch.reservation
    command = "modelfleet capacity loan create LENDER feed --units 20 --flavor cpu --region eu --until 30d"
    assert command in outcomes.advice(error)


# What it asks for


def test_a_reservation_says_what_the_launch_uses_in_the_end_and_when_that_is() -> None:
    launch = preparing()
    assert launch.plan is not None
    content = intent_of(Call(Act.RESERVE, ""), launch, None, T0).content
    assert content["items"] == [{"flavor": CPU, "region": EU, "units": 584, "end": 420}]
    assert content["tier"] == "TIER1" and content["retain_seconds"] == 7_200
    assert content["release_time"] == (T0 + launch.plan.expected_duration).isoformat()


def test_a_patient_plan_has_the_policys_steps_and_says_what_is_really_free() -> None:
    plan = swap(500, 600, 100, patient=True)
    assert [step.share for step in plan.steps] == [2_000, 4_000, 6_000, 8_000, 10_000]
    (hold,) = plan.holds
    assert (hold.free_units, hold.hold_units, hold.extra_units) == (100, 700, 200)


# What is kept for a rollback


def test_after_500_to_420_a_rollback_needs_164_more_units_all_of_the_rest() -> None:
    plan = swap(500, 420, 84)
    (hold,) = plan.holds
    assert hold.hold_units - plan.at_end[CPU] == 164
    # Back in the same steps: at the last one all of the old side and the new side's first step, 500 + 84.
    assert plan.for_rollback == {CPU: 500 + 84 - 420}


def test_after_420_to_500_a_rollback_needs_84() -> None:
    plan = swap(420, 500, 200)
    assert plan.holds[0].hold_units == 584 and plan.for_rollback == {CPU: 500 + 84 - 500}


def test_what_ran_beyond_the_need_is_not_kept() -> None:
    plan = swap(500, 420, 84, running=600)
    assert plan.holds[0].hold_units == 684 and plan.for_rollback == {CPU: 164}


def test_on_two_flavors_the_old_sides_is_kept() -> None:
    assert swap(500, 40, 40, flavor=GPU).for_rollback == {CPU: 500}


def test_a_settlement_names_what_is_kept_and_keeps_nothing_where_nothing_is_needed() -> None:
    settle = Call(Act.SETTLE, "")
    content = intent_of(settle, preparing(), None, T0).content
    assert content["retain"] == [{"flavor": CPU, "region": EU, "units": 164}] and content["retain_seconds"] == 7_200
    first = make(Inputs(EU, Side(NEW, CPU, 40), None, {CPU: Room(free=40)}), Pace())
    content = intent_of(settle, preparing(plan=Plan((first,))), None, T0).content
    assert (content["retain"], content["retain_seconds"]) == ([], 0)


@pytest.mark.parametrize("strategy", [each for each in Strategy if each is not Strategy.REPLACE_BASELINE])
def test_nothing_is_kept_for_a_rollback_that_there_cannot_be(strategy: Strategy) -> None:
    launch = preparing(strategy=strategy)
    assert not verbs.is_allowed(replace(launch, state=State.SUCCEEDED), "RollBackLaunch")
    settled = intent_of(Call(Act.SETTLE, ""), launch, None, T0).content
    assert (settled["retain"], settled["retain_seconds"]) == ([], 0)
    assert intent_of(Call(Act.RESERVE, ""), launch, None, T0).content["retain_seconds"] == 0


@given(
    old=st.integers(2, 600),
    new=st.integers(2, 600),
    free=st.integers(0, 700),
    surplus=st.integers(0, 50),
    patient=st.booleans(),
)
def test_what_a_rollback_needs_is_within_the_rest_of_the_hold_and_suffices_step_by_step(
    old: int, new: int, free: int, surplus: int, patient: bool
) -> None:
    try:
        plan = swap(old, new, free, running=old + surplus, patient=patient)
    except PlanInfeasible:
        return
    (hold,) = plan.holds
    end, kept = plan.at_end[CPU], plan.for_rollback.get(CPU, 0)
    assert 0 <= end <= hold.hold_units and kept <= hold.hold_units - end
    assert plan.baseline is not None
    before = 0
    for step in plan.steps:
        # The way back over this step: the old side is all there before the new one gives its share.
        assert plan.candidate.needs(step.share) + plan.baseline.needs(10_000 - before) <= end + kept
        before = step.share


# What it tells


def shifting(number: int = 1, **fields: object) -> Launch:
    launch = preparing(state=State.SHIFTING, activated=True, touched=True, reservation="reservations/r")
    return replace(begin_step(launch, number, T0, region=0), **fields)  # type: ignore[arg-type]


def test_a_launch_on_time_ends_when_its_plan_says() -> None:
    launch = shifting()
    assert launch.plan is not None
    assert expected_release(launch, T0) == T0 + launch.plan.expected_duration
    steps = launch.region_plan.steps
    last = replace(begin_step(launch, 5, T0), step=replace(begin_step(launch, 5, T0).step, bake_start=T0))
    assert expected_release(last, T0) == T0 + launch.policy.bake_duration
    assert expected_release(shifting(4), T0) == T0 + steps[4].expected_end - steps[2].expected_end


def test_a_step_that_is_late_puts_the_end_off() -> None:
    launch, plan = shifting(), shifting().plan
    assert plan is not None
    late = expected_release(launch, T0 + HOUR)
    assert late == T0 + HOUR + plan.expected_duration - launch.region_plan.steps[0].expected_end


def test_a_launch_that_goes_back_says_how_long_that_takes_at_worst() -> None:
    back = replace(shifting(3), state=State.ROLLING_BACK, phase_times=(PhaseTime(State.ROLLING_BACK, T0),))
    assert expected_release(back, T0 + MINUTE) == T0 + back.region_plan.steps[2].worst_undo


def test_of_a_launch_that_is_paused_nobody_knows() -> None:
    assert expected_release(pause(shifting(), "bob", "a look", T0), T0) is None


def test_a_launch_in_line_ends_so_much_after_its_turn() -> None:
    launch = in_line()
    assert launch.plan is not None
    assert expected_release(launch, T0) == T0 + HOUR + launch.plan.expected_duration
    assert expected_release(in_line(pending(time=None)), T0) is None


@pytest.mark.parametrize(
    ("moved", "left", "due"),
    [
        (0.5 * MINUTE, 5 * MINUTE, False),
        (1.5 * MINUTE, 5 * MINUTE, True),
        (5 * MINUTE, HOUR, False),
        (8 * MINUTE, HOUR, True),
        (-8 * MINUTE, HOUR, True),
    ],
)
def test_an_end_is_told_at_once_where_it_has_moved_by_more_than_a_minute_and_a_tenth(
    moved: timedelta, left: timedelta, due: bool
) -> None:
    told = Told(T0 + left - moved, T0 + RENEW)
    assert is_due(told, T0 + left, T0) is due


def test_a_holder_is_heard_of_every_few_minutes_also_when_nothing_moves() -> None:
    told = Told(T0 + HOUR, T0 + RENEW)
    assert not is_due(told, None, T0 + RENEW - MINUTE)
    assert is_due(told, None, T0 + RENEW)


@dataclass
class Ears:
    """Capacity, as far as it hears of holders; while it is away nobody gets an answer."""

    away: bool = False
    asked: int = 0
    heard: list[datetime | None] = field(default_factory=list)

    async def renew(self, reservation: str, release: datetime | None, key: str) -> None:
        self.asked += 1
        if self.away:
            raise PartUnavailable("capacity")
        self.heard.append(release)


def renewer(ears: Ears) -> Renewer:
    return Renewer(cast("Any", SimpleNamespace(capacity=ears)))


async def test_a_process_tells_once_until_it_is_due_again_and_at_once_when_the_end_has_moved() -> None:
    ears = Ears()
    telling = renewer(ears)
    launch = shifting(reserve_time=T0, told_release=expected_release(shifting(), T0))
    await telling.renew(launch, T0 + MINUTE)
    assert ears.heard == []
    await telling.renew(launch, T0 + RENEW)
    await telling.renew(launch, T0 + RENEW + MINUTE)
    assert len(ears.heard) == 1
    # From here on the step is late.
    await telling.renew(launch, T0 + 2 * RENEW)
    await telling.renew(launch, T0 + 2 * RENEW + MINUTE)
    assert len(ears.heard) == 2
    # By more than a tenth of what is left: that is not kept until it is due.
    await telling.renew(launch, T0 + 3 * RENEW - MINUTE / 2)
    assert len(ears.heard) == 3
    await telling.renew(replace(launch, settled=True), T0 + HOUR)
    assert len(ears.heard) == 3


async def test_a_process_that_has_just_come_tells_what_it_finds_of_a_hold_that_is_old() -> None:
    ears = Ears()
    launch = shifting(reserve_time=T0, told_release=T0)
    await renewer(ears).renew(launch, T0 + HOUR)
    assert ears.heard == [expected_release(launch, T0 + HOUR)]


async def test_what_capacity_did_not_answer_is_told_again_soon_but_not_at_every_look() -> None:
    ears = Ears(away=True)
    telling = renewer(ears)
    launch = shifting(reserve_time=T0 - HOUR, told_release=expected_release(shifting(), T0))
    for seconds in range(60):
        await telling.renew(launch, T0 + timedelta(seconds=seconds))
    assert ears.asked == 60 / RETRY.total_seconds()
    ears.away = False
    await telling.renew(launch, T0 + MINUTE)
    assert len(ears.heard) == 1
