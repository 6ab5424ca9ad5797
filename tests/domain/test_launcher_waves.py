"""Launches in several regions: their plans, and whole launches in virtual time with everything that can go wrong."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.plan import Plan, RegionPlan
from modelfleetd.launcher.domain.planning import Inputs, Pace, Room, make
from modelfleetd.launcher.domain.policy import Policy, RegionOrder, StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.states import State
from tests.support.regional import A, B, C, Place, RegionalRehearsal
from tests.support.rehearsal import CPU, NEW, OLD

TWO = {A: Place(16, 14, 4), B: Place(5, 5, 10)}
THREE = {**TWO, C: Place(3, 4, 6)}
GATED = Policy(bake_duration=timedelta(seconds=4), max_step_basis_points=4_000, stability_gate=StabilityGate())


def region_plan(region: str, place: Place, pace: Pace | None = None) -> RegionPlan:
    new = Side(NEW, CPU, place.new, unit_cost=1.0)
    old = Side(OLD, CPU, place.old, running=max(2, place.old), share=10_000, unit_cost=1.0)
    return make(Inputs(region, new, old, {CPU: Room(max(2, place.old), place.free)}), pace or Pace())


places = st.builds(Place, st.integers(1, 60), st.integers(1, 60), st.integers(62, 90))
routes = st.dictionaries(st.sampled_from([f"regions/{letter}" for letter in "abcdef"]), places, min_size=1)


@given(routes, st.sampled_from(RegionOrder))
def test_every_region_is_in_one_wave_and_the_one_with_the_least_traffic_comes_first(
    route: dict[str, Place], order: RegionOrder
) -> None:
    plan = Plan(waves.ordered((region_plan(region, place) for region, place in route.items()), order))
    assert sorted(found.region for found in plan.regions) == sorted(route)
    sizes = [len(wave) for wave in plan.waves]
    match order:
        case RegionOrder.ONE_BY_ONE:
            assert sizes == [1] * len(route)
            assert all((a.candidate.full, a.region) < (b.candidate.full, b.region) for a, b in pairwise(plan.regions))
        case RegionOrder.TOGETHER:
            assert sizes == [len(route)]
        case RegionOrder.CANARY_REGION:
            assert sizes == [1, len(route) - 1][: len(sizes)]
            assert plan.regions[0].candidate.full == min(place.new for place in route.values())
    for wave in plan.waves:
        assert all(len(wave[0].steps) >= len(region.steps) for region in wave)
    for position in range(len(plan.regions)):
        assert position in waves.members(plan, position)


@given(routes, st.sampled_from(RegionOrder))
def test_a_plans_peak_and_duration_follow_from_what_swaps_at_the_same_time(
    route: dict[str, Place], order: RegionOrder
) -> None:
    plan = Plan(waves.ordered((region_plan(region, place) for region, place in route.items()), order))
    alone = sum((region.expected_duration for region in plan.regions), timedelta(0))
    longest = max(region.expected_duration for region in plan.regions)
    assert longest <= plan.expected_duration <= alone
    assert (plan.expected_duration == alone) or order is not RegionOrder.ONE_BY_ONE
    most = sum(region.cost_peak for region in plan.regions)
    assert max(plan.cost_before, plan.cost_after) <= plan.cost_peak + 1e-6 <= most + 1e-3
    ends = [plan.ends(at, step.number) for at, wave in enumerate(plan.waves) for step in wave[0].steps]
    assert all(earlier < later for earlier, later in pairwise(ends)) and ends[-1] == plan.expected_duration


def test_regions_that_swap_together_cost_more_at_the_peak_than_one_after_another() -> None:
    plans = [region_plan(region, Place(50, 50, 60)) for region in (A, B)]
    peaks = {order: Plan(waves.ordered(plans, order)).cost_peak for order in RegionOrder}
    assert peaks[RegionOrder.ONE_BY_ONE] == 110 and peaks[RegionOrder.TOGETHER] == 120


def test_plans_of_old_which_know_no_waves_go_region_by_region() -> None:
    plan = Plan((region_plan(A, TWO[A]), region_plan(B, TWO[B])))
    assert [len(wave) for wave in plan.waves] == [1, 1] and list(waves.members(plan, 1)) == [1]


async def ends_as(rehearsal: RegionalRehearsal, state: State) -> None:
    launch = await rehearsal.run()
    assert launch.state is state, "\n".join(rehearsal.store.events)
    assert rehearsal.broken_promises() == []


@pytest.mark.parametrize("order", RegionOrder)
async def test_a_launch_succeeds_in_every_region_in_the_order_that_is_asked_for(order: RegionOrder) -> None:
    rehearsal = RegionalRehearsal(THREE, order)
    await rehearsal.prepare()
    begun: list[str] = []

    def between() -> None:
        shares = rehearsal.shares()
        begun.extend(region for region, share in shares.items() if share and region not in begun)
        if order is RegionOrder.ONE_BY_ONE:
            assert sum(0 < share < 10_000 for share in shares.values()) <= 1
        if order is RegionOrder.CANARY_REGION and len(begun) > 1:
            assert shares[C] == 10_000

    launch = await rehearsal.run(between=between)
    assert launch.state is State.SUCCEEDED, "\n".join(rehearsal.store.events)
    assert rehearsal.broken_promises() == []
    assert await rehearsal.serves(NEW) == {region: place.new for region, place in THREE.items()}
    assert set(rehearsal.books.splits) == set(THREE)
    assert begun[0] == C if order is not RegionOrder.TOGETHER else len(begun) == 3
    assert begun == [C, B, A] or order is not RegionOrder.ONE_BY_ONE
    assert {held.outcome for pool in rehearsal.pools.values() for held in pool.reservations.values()} == {"succeeded"}


async def test_together_no_region_is_a_step_ahead_of_the_slowest() -> None:
    rehearsal = RegionalRehearsal(TWO, RegionOrder.TOGETHER)
    await rehearsal.prepare()

    def between() -> None:
        launch = rehearsal.launch
        if launch.state is State.SHIFTING and launch.plan is not None:
            shares = rehearsal.shares()
            for plan in launch.plan.regions:
                allowed = (0, *(step.share for step in plan.steps))
                assert shares[plan.region] <= allowed[min(launch.step.number, len(plan.steps))]
                assert shares[plan.region] >= allowed[min(launch.step.number - 1, len(plan.steps))]

    launch = await rehearsal.run(between=between)
    assert launch.state is State.SUCCEEDED
    assert launch.plan is not None and len({len(plan.steps) for plan in launch.plan.regions}) == 2
    begun = [event for event in rehearsal.store.events if event.startswith("BakeBegan")]
    assert len(begun) == max(len(plan.steps) for plan in launch.plan.regions)


STEPS = [(RegionOrder.TOGETHER, 1), (RegionOrder.TOGETHER, 3), (RegionOrder.ONE_BY_ONE, 2), (RegionOrder.ONE_BY_ONE, 5)]


@pytest.mark.parametrize(("order", "bakes"), STEPS)
async def test_an_abort_at_any_step_leads_back_in_every_region(order: RegionOrder, bakes: int) -> None:
    rehearsal = RegionalRehearsal(TWO, order)
    await rehearsal.prepare()

    def between() -> None:
        if sum(event.startswith("BakeBegan") for event in rehearsal.store.events) >= bakes:
            rehearsal.abort()

    launch = await rehearsal.run(between=between)
    assert launch.state is State.ROLLED_BACK, "\n".join(rehearsal.store.events)
    assert rehearsal.broken_promises() == []
    assert await rehearsal.serves(OLD) == {region: place.old for region, place in TWO.items()}
    assert {held.outcome for pool in rehearsal.pools.values() for held in pool.reservations.values()} == {"released"}


async def test_a_gate_that_fails_in_the_second_region_takes_the_first_one_back_as_well() -> None:
    rehearsal = RegionalRehearsal(TWO, RegionOrder.ONE_BY_ONE, policy=GATED)
    await rehearsal.prepare()

    def between() -> None:
        if rehearsal.shares()[A] > 0:
            rehearsal.books.verdict = Verdict.FAIL

    launch = await rehearsal.run(between=between)
    assert launch.state is State.ROLLED_BACK and launch.abort is not None and "gate/" in launch.abort.author
    assert rehearsal.broken_promises() == []
    assert await rehearsal.serves(OLD) == {region: place.old for region, place in TWO.items()}


async def test_a_region_that_loses_its_candidate_turns_the_whole_wave_round() -> None:
    rehearsal = RegionalRehearsal(TWO, RegionOrder.TOGETHER)
    await rehearsal.prepare()
    lost = False

    def between() -> None:
        nonlocal lost
        if not lost and rehearsal.launch.step.number == 2:
            lost = True
            rehearsal.simulators[B].failing_models.add(NEW)
            rehearsal.simulators[B].kill(NEW, 100)

    launch = await rehearsal.run(between=between)
    assert lost and launch.state is State.ROLLED_BACK and launch.abort is not None
    assert launch.abort.author == "availability"
    assert rehearsal.broken_promises() == []
    assert await rehearsal.serves(OLD) == {region: place.old for region, place in TWO.items()}


async def test_a_region_that_cannot_be_observed_holds_the_wave_and_its_deadlines() -> None:
    rehearsal = RegionalRehearsal(TWO, RegionOrder.TOGETHER)
    await rehearsal.prepare()
    await rehearsal.run(6)
    assert rehearsal.launch.state is State.SHIFTING
    rehearsal.platforms[B].away = True
    await rehearsal.run(1)
    before, ledger = rehearsal.shares(), len(rehearsal.simulators[A].ledger)
    await rehearsal.run(3_000)
    assert rehearsal.store.state is State.SHIFTING and rehearsal.shares() == before
    held = rehearsal.launch.condition("Waiting")
    assert held is not None and held.reason == "PartUnavailable" and B in held.message and A not in held.message
    assert all(e.desired is None for e in rehearsal.simulators[A].ledger[ledger:])
    rehearsal.platforms[B].away = False
    await ends_as(rehearsal, State.SUCCEEDED)


@pytest.mark.parametrize("order", [RegionOrder.TOGETHER, RegionOrder.ONE_BY_ONE])
@pytest.mark.parametrize("away", [A, B])
async def test_a_region_that_cannot_be_observed_keeps_no_other_from_going_back(order: RegionOrder, away: str) -> None:
    rehearsal = RegionalRehearsal(TWO, order)
    await rehearsal.prepare()

    def moved() -> None:
        if all(rehearsal.shares().values()) and not rehearsal.platforms[away].away:
            rehearsal.platforms[away].away = True
            rehearsal.abort()

    await rehearsal.run(600, between=moved)
    (other,) = {A, B} - {away}
    assert rehearsal.platforms[away].away and rehearsal.shares()[other] == 0 and rehearsal.shares()[away] > 0
    assert rehearsal.launch.state is State.ROLLING_BACK
    waiting = rehearsal.launch.condition("Waiting")
    assert waiting is not None and away in waiting.message
    rehearsal.platforms[away].away = False
    await ends_as(rehearsal, State.ROLLED_BACK)
    assert await rehearsal.serves(OLD) == {region: place.old for region, place in TWO.items()}


async def test_an_act_of_which_nobody_knows_keeps_no_other_region_from_going_back() -> None:
    rehearsal = RegionalRehearsal(TWO, RegionOrder.TOGETHER)
    await rehearsal.prepare()
    await rehearsal.run(9)

    def unsettled() -> bool:
        intent = rehearsal.launch.intent
        return intent is not None and intent.region == A

    rehearsal.crashes.rate = 0.3
    for _ in range(2_000):
        await rehearsal.round()
        if unsettled():
            break
        await rehearsal.clock.advance(0.3)
    assert unsettled() and rehearsal.shares()[B] > 0
    rehearsal.crashes.rate, rehearsal.platforms[A].away = 0.0, True
    rehearsal.abort()
    await rehearsal.run(300)
    assert rehearsal.shares()[B] == 0 and rehearsal.launch.state is State.ROLLING_BACK
    rehearsal.platforms[A].away = False
    await ends_as(rehearsal, State.ROLLED_BACK)
    assert await rehearsal.serves(OLD) == {region: place.old for region, place in TWO.items()}


@settings(max_examples=6, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    order=st.sampled_from(RegionOrder),
    three=st.booleans(),
    seed=st.integers(0, 1 << 20),
    crash_rate=st.sampled_from([0.0, 0.02, 0.1]),
    deaths=st.sampled_from([0.0, 0.05]),
    abort_after=st.one_of(st.none(), st.integers(0, 60)),
)
def test_whatever_goes_wrong_the_promises_hold_in_every_region_and_the_launch_converges(
    order: RegionOrder, three: bool, seed: int, crash_rate: float, deaths: float, abort_after: int | None
) -> None:
    async def story() -> None:
        places = THREE if three else TWO
        rehearsal = RegionalRehearsal(places, order, seed=seed, crash_rate=crash_rate)
        await rehearsal.prepare()
        rounds = 0

        def between() -> None:
            nonlocal rounds
            rounds += 1
            for simulator in rehearsal.simulators.values():
                if rehearsal.draw.random() < deaths:
                    simulator.kill(rehearsal.draw.choice((OLD, NEW)), 1)
            if abort_after is not None and rounds >= abort_after:
                rehearsal.abort()

        launch = await rehearsal.run(between=between)
        assert launch.ended, "\n".join(rehearsal.store.events[-20:])
        assert rehearsal.broken_promises() == []
        if launch.state is State.SUCCEEDED:
            assert await rehearsal.serves(NEW) == {region: place.new for region, place in places.items()}
        else:
            assert await rehearsal.serves(OLD) == {region: place.old for region, place in places.items()}

    asyncio.run(story())
