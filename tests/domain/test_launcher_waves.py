"""Launches in several regions: their plans, and whole launches in virtual time with everything that can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.plan import Plan, RegionPlan
from modelfleetd.launcher.domain.planning import Inputs, Pace, Room, make
from modelfleetd.launcher.domain.policy import Policy, RegionOrder, StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.states import State
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.chance import NO_TROUBLE, Trouble
from modelfleetd.rehearsal.routes import Route
from tests.support.rehearsal import LAUNCH, NEW, OLD, TYPE, Rehearsal

CPU = "flavors/cpu"
A, B, C = "regions/a", "regions/b", "regions/c"


@dataclass(frozen=True)
class Place:
    """One region: replicas of the old and the new model for its traffic, and units to spare."""

    old: int
    new: int
    free: int


TWO = {A: Place(16, 14, 4), B: Place(5, 5, 10)}
THREE = {**TWO, C: Place(3, 4, 6)}
UNGATED = Policy(
    bake_duration=timedelta(seconds=2), max_step_basis_points=4_000, stability_gate=StabilityGate(disabled=True)
)
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


async def launched(
    places: Mapping[str, Place],
    order: RegionOrder,
    *,
    policy: Policy = UNGATED,
    seed: int = 0,
    trouble: Trouble = NO_TROUBLE,
) -> Rehearsal:
    """A launch in several regions, whose machines are quick."""
    fleet = Rehearsal(seed=seed, spare={region: place.free for region, place in places.items()})
    machines = Behaviour(start_seconds=(0.5, 1.5), terminate_seconds=(0.2, 0.5))
    needs = {region: place.old for region, place in places.items()}
    fleet.add_type(Route(TYPE, needs, startup=timedelta(seconds=60), behaviour=machines))
    fleet.add_model(TYPE, "new", {region: place.new for region, place in places.items()})
    await fleet.start()
    fleet.create("l", TYPE, NEW, policy=replace(policy, region_order=order))
    fleet.troubled(trouble)
    return fleet


def shares(fleet: Rehearsal) -> dict[str, int]:
    """The new model's share by region, as it is asked for."""
    return {region: fleet.serving(region=region).get(NEW, (0, 0))[0] for region in fleet.routes[TYPE].needs}


def bakes(fleet: Rehearsal) -> int:
    return sum(event.startswith("BakeBegan") for event in fleet.history())


def assert_everywhere(fleet: Rehearsal, places: Mapping[str, Place], model: str) -> None:
    """A model serves alone in every region, and no promise was broken on the way."""
    assert fleet.broken() == [], fleet.said()
    for region, place in places.items():
        replicas = place.new if model == NEW else place.old
        assert fleet.serving(region=region) == {model: (10_000, replicas)}, region


@pytest.mark.parametrize("order", RegionOrder)
async def test_a_launch_succeeds_in_every_region_in_the_order_that_is_asked_for(order: RegionOrder) -> None:
    fleet, begun = await launched(THREE, order), list[str]()

    def after_round(_: Launch) -> None:
        found = shares(fleet)
        begun.extend(region for region, share in found.items() if share and region not in begun)
        if order is RegionOrder.ONE_BY_ONE:
            assert sum(0 < share < 10_000 for share in found.values()) <= 1
        if order is RegionOrder.CANARY_REGION and len(begun) > 1:
            assert found[C] == 10_000

    launch = await fleet.pass_by(after_round=after_round)
    assert launch.state is State.SUCCEEDED, fleet.said()
    assert_everywhere(fleet, THREE, NEW)
    assert all(fleet.registry.split(TYPE, region) == {NEW: 10_000} for region in THREE)
    assert begun[0] == C if order is not RegionOrder.TOGETHER else len(begun) == 3
    assert begun == [C, B, A] or order is not RegionOrder.ONE_BY_ONE
    assert fleet.settled() == "SUCCEEDED"


async def test_together_no_region_is_a_step_ahead_of_the_slowest() -> None:
    fleet = await launched(TWO, RegionOrder.TOGETHER)

    def after_round(launch: Launch) -> None:
        if launch.state is State.SHIFTING and launch.plan is not None:
            found = shares(fleet)
            for plan in launch.plan.regions:
                allowed = (0, *(step.share for step in plan.steps))
                assert found[plan.region] <= allowed[min(launch.step.number, len(plan.steps))]
                assert found[plan.region] >= allowed[min(launch.step.number - 1, len(plan.steps))]

    launch = await fleet.pass_by(after_round=after_round)
    assert launch.state is State.SUCCEEDED
    assert launch.plan is not None and len({len(plan.steps) for plan in launch.plan.regions}) == 2
    assert bakes(fleet) == max(len(plan.steps) for plan in launch.plan.regions)


STEPS = [(RegionOrder.TOGETHER, 1), (RegionOrder.TOGETHER, 3), (RegionOrder.ONE_BY_ONE, 2), (RegionOrder.ONE_BY_ONE, 5)]


@pytest.mark.parametrize(("order", "number"), STEPS)
async def test_an_abort_at_any_step_leads_back_in_every_region(order: RegionOrder, number: int) -> None:
    fleet = await launched(TWO, order)
    fleet.when(LAUNCH, lambda _: bakes(fleet) >= number, lambda fleet: fleet.abort(LAUNCH))
    launch = await fleet.pass_by()
    assert launch.state is State.ROLLED_BACK, fleet.said()
    assert_everywhere(fleet, TWO, OLD)
    assert fleet.settled() == "ROLLED_BACK"


async def test_a_gate_that_fails_in_the_second_region_takes_the_first_one_back_as_well() -> None:
    fleet = await launched(TWO, RegionOrder.ONE_BY_ONE, policy=GATED)

    def after_round(_: Launch) -> None:
        if shares(fleet)[A] > 0:
            fleet.judge.verdict = Verdict.FAIL

    launch = await fleet.pass_by(after_round=after_round)
    assert launch.state is State.ROLLED_BACK and launch.abort is not None and "gate/" in launch.abort.author
    assert_everywhere(fleet, TWO, OLD)


async def test_a_region_that_loses_its_candidate_turns_the_whole_wave_round() -> None:
    fleet = await launched(TWO, RegionOrder.TOGETHER)
    fleet.at_step(LAUNCH, 2, lambda _: fleet.let_die(NEW, B))
    launch = await fleet.pass_by()
    assert launch.state is State.ROLLED_BACK and launch.abort is not None
    assert launch.abort.author == "availability"
    assert_everywhere(fleet, TWO, OLD)


async def test_a_region_that_cannot_be_observed_holds_the_wave_and_its_deadlines() -> None:
    fleet = await launched(TWO, RegionOrder.TOGETHER)
    await fleet.pass_by(6)
    assert fleet.launch().state is State.SHIFTING
    fleet.cut_off(TYPE, B, 3_001)
    await fleet.pass_by(1)
    before, ledger = shares(fleet), len(fleet.simulator(TYPE, A).ledger)
    await fleet.pass_by(3_000)
    assert fleet.launch().state is State.SHIFTING and shares(fleet) == before
    held = fleet.launch().condition("Waiting")
    assert held is not None and held.reason == "PartUnavailable" and B in held.message and A not in held.message
    assert all(effect.desired is None for effect in fleet.simulator(TYPE, A).ledger[ledger:])
    assert (await fleet.pass_by()).state is State.SUCCEEDED, fleet.said()
    assert fleet.broken() == []


@pytest.mark.parametrize("order", [RegionOrder.TOGETHER, RegionOrder.ONE_BY_ONE])
@pytest.mark.parametrize("away", [A, B])
async def test_a_region_that_cannot_be_observed_keeps_no_other_from_going_back(order: RegionOrder, away: str) -> None:
    fleet = await launched(TWO, order)

    def cut_off(_: object) -> None:
        fleet.cut_off(TYPE, away, 600)
        assert fleet.abort(LAUNCH) == ""

    fleet.when(LAUNCH, lambda _: all(shares(fleet).values()), cut_off)
    await fleet.pass_by(500)
    (other,) = {A, B} - {away}
    assert shares(fleet)[other] == 0 and shares(fleet)[away] > 0
    assert fleet.launch().state is State.ROLLING_BACK
    waiting = fleet.launch().condition("Waiting")
    assert waiting is not None and away in waiting.message
    assert (await fleet.pass_by()).state is State.ROLLED_BACK, fleet.said()
    assert_everywhere(fleet, TWO, OLD)


async def test_an_act_of_which_nobody_knows_keeps_no_other_region_from_going_back() -> None:
    fleet, unsettled = await launched(TWO, RegionOrder.TOGETHER), list[bool]()
    await fleet.pass_by(9)
    fleet.troubled(Trouble(crash_rate=0.3))

    def is_unsettled(launch: Launch) -> bool:
        return launch.intent is not None and launch.intent.region == A

    def cut_off(_: object) -> None:
        unsettled.append(is_unsettled(fleet.launch()) and shares(fleet)[B] > 0)
        fleet.heal()
        fleet.cut_off(TYPE, A, 400)
        assert fleet.abort(LAUNCH) == ""

    fleet.when(LAUNCH, is_unsettled, cut_off)
    await fleet.pass_by(300)
    assert unsettled == [True]
    assert shares(fleet)[B] == 0 and fleet.launch().state is State.ROLLING_BACK
    assert (await fleet.pass_by()).state is State.ROLLED_BACK, fleet.said()
    assert_everywhere(fleet, TWO, OLD)


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
        fleet = await launched(places, order, seed=seed, trouble=Trouble(crash_rate=crash_rate))
        rounds, draw = count(1), fleet.chance.draw

        def after_round(_: Launch) -> None:
            for simulator in fleet.routes.simulators.values():
                if draw.random() < deaths:
                    simulator.kill(draw.choice((OLD, NEW)), 1)
            if next(rounds) == abort_after:
                fleet.abort(LAUNCH)

        launch = await fleet.pass_by(after_round=after_round)
        assert launch.ended, fleet.said()
        assert_everywhere(fleet, places, NEW if launch.state is State.SUCCEEDED else OLD)

    asyncio.run(story())
