"""A fleet in virtual time: whatever goes wrong no promise is broken, and the same seed has the same story.

A planted bug is found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from modelfleetd.capacity.domain.ledger import Account, Entry
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.launcher.documents import from_document, to_document
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.observed import Observed
from modelfleetd.launcher.domain.policy import Approval, Policy
from modelfleetd.launcher.domain.states import State
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.capacity import MemoryCapacity
from modelfleetd.rehearsal.chance import Trouble
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.fleet_outcome import FleetOutcome
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.fleet_run import run_fleet
from modelfleetd.rehearsal.launches import MemoryLaunches, Row
from modelfleetd.rehearsal.parts import Parts
from modelfleetd.rehearsal.routes import FLAVOR, REGION, Route
from modelfleetd.rehearsal.team_rehearsal import TeamRehearsal

POLICY = Policy(bake_duration=timedelta(minutes=10))
HERE = Place(FLAVOR, REGION)


async def fleet_of(*sizes: int, spare: int, future_reservations: bool = True, **behaviour: Any) -> Fleet:
    """Routes `modelTypes/t0`, `modelTypes/t1` … of so many replicas, each with a model `new` that needs as many."""
    fleet = Fleet(spare=spare, future_reservations=future_reservations)
    for number, size in enumerate(sizes):
        machines = Behaviour(start_seconds=(20.0, 60.0), terminate_seconds=(5.0, 30.0))
        fleet.add_type(Route(f"modelTypes/t{number}", {REGION: size}, behaviour=replace(machines, **behaviour)))
    await fleet.start()
    for number, size in enumerate(sizes):
        fleet.add_model(f"modelTypes/t{number}", "new", {REGION: size})
    return fleet


def launch(fleet: Fleet, number: int = 0, *, policy: Policy = POLICY, trouble: Trouble | None = None) -> str:
    """Launches the new model of a route."""
    route = f"modelTypes/t{number}"
    return fleet.create(f"l{number}", route, f"{route}/models/new", policy=policy, trouble=trouble or Trouble())


async def finish(fleet: Fleet) -> None:
    """Lets everything come to its end, and judges it."""
    await fleet.run()
    fleet.check()
    assert fleet.oracle.broken == []


async def test_a_launch_takes_its_steps_and_everybody_agrees_on_its_end() -> None:
    fleet = await fleet_of(50, spare=10)
    name = launch(fleet)
    await finish(fleet)
    outcome = fleet.outcome(name)
    assert outcome.state is State.SUCCEEDED
    assert [event.type for event in outcome.events].count("WeightShifted") == 5
    assert outcome.booked == {REGION: {"modelTypes/t0/models/new": 50}}
    assert fleet.registry.split("modelTypes/t0", REGION) == {"modelTypes/t0/models/new": 10_000}
    # The peak of the swap, and not twice of everything.
    assert fleet.capacity.peak == 60
    # Its row could hold it.
    assert from_document(Launch, to_document(outcome.launch)) == outcome.launch


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        (Trouble(calibration=1.5), "gate/stability"),
        # Where no label comes, what was predicted did not happen.
        (Trouble(labels=0.0), "gate/stability"),
        (Trouble(error_rate=0.1), "gate/availability"),
        (Trouble(failing=True), "deadline"),
    ],
)
async def test_a_bad_candidate_goes_back_by_the_gate_that_finds_it(trouble: Trouble, cause: str) -> None:
    fleet = await fleet_of(12, spare=10)
    name = launch(fleet, trouble=trouble)
    await finish(fleet)
    found = fleet.outcome(name)
    assert found.state is State.ROLLED_BACK and found.launch.abort is not None
    assert found.launch.abort.author == cause
    assert found.booked == {REGION: {"modelTypes/t0/models/old": 12}}


async def test_a_launch_with_too_little_traffic_to_judge_pauses_and_waits_for_people() -> None:
    fleet = await fleet_of(12, spare=10, requests_per_second=0.2)
    name = launch(fleet)
    fleet.when(name, lambda found: found.paused, lambda fleet: fleet.after(3_600.0, lambda fleet: fleet.abort(name)))
    await finish(fleet)
    waited = fleet.outcome(name).launch.waits.times["Paused"]
    assert timedelta(minutes=59) < waited < timedelta(minutes=61)


async def test_a_baseline_that_was_short_when_the_launch_began_gets_back_what_it_had() -> None:
    fleet = await fleet_of(9, spare=12)
    # Demand has grown, and nobody has resized it.
    fleet.measure("modelTypes/t0/models/old", {REGION: 12})
    name = launch(fleet)
    fleet.at_step(name, 3, lambda fleet: fleet.abort(name))
    await finish(fleet)
    found = fleet.outcome(name)
    assert found.state is State.ROLLED_BACK
    assert found.booked == {REGION: {"modelTypes/t0/models/old": 9}}


async def test_machines_that_start_nothing_do_so_for_the_launch_that_meets_them_and_not_for_ever() -> None:
    fleet = await fleet_of(9, spare=12)
    route, old = "modelTypes/t0", "modelTypes/t0/models/old"
    fleet.measure(old, {REGION: 12})
    resize = fleet.create("r", route, old, strategy=Strategy.RESIZE, policy=POLICY, trouble=Trouble(failing=True))
    await finish(fleet)
    assert fleet.outcome(resize).state is State.ROLLED_BACK
    # The baseline has to start again on the way back of the next one.
    begin, name = fleet.clock.now(), launch(fleet)
    fleet.at_step(name, 4, lambda fleet: fleet.abort(name))
    await finish(fleet)
    found = fleet.outcome(name).launch
    assert found.state is State.ROLLED_BACK and found.end_time is not None
    assert found.end_time - begin < timedelta(hours=2)


async def test_who_finds_no_room_waits_for_what_the_other_frees_and_without_promises_asks_again() -> None:
    ends = {}
    for promised in (True, False):
        fleet = await fleet_of(12, 12, spare=6, future_reservations=promised)
        first = launch(fleet, 0, policy=replace(POLICY, max_steps=4, max_step_basis_points=5_000))
        second = launch(fleet, 1, policy=replace(POLICY, max_steps=4, max_step_basis_points=5_000))
        await finish(fleet)
        assert {fleet.outcome(name).state for name in (first, second)} == {State.SUCCEEDED}
        ends[promised] = fleet.outcome(second).launch
    assert "CapacityPromised" in ends[True].waits.times
    assert "Refused" in ends[False].waits.times and "CapacityPromised" not in ends[False].waits.times


async def test_people_approve_pause_skip_and_take_back() -> None:
    fleet = await fleet_of(12, spare=14)
    name = launch(fleet, policy=replace(POLICY, approval=Approval.REQUIRED))
    fleet.after(7_200.0, lambda fleet: fleet.approve(name))
    fleet.at_step(name, 2, lambda fleet: fleet.pause(name))
    fleet.after(14_400.0, lambda fleet: fleet.resume(name))
    fleet.at_step(name, 3, lambda fleet: fleet.skip_step(name))
    fleet.when(name, lambda found: found.state is State.SUCCEEDED, lambda fleet: fleet.roll_back(name, "back"))
    await finish(fleet)
    waits = fleet.outcome(name).launch.waits.times
    assert waits["AwaitingApproval"] > timedelta(hours=1.9) and waits["Paused"] > timedelta(hours=1)
    back = fleet.outcome("launches/back")
    assert (back.state, back.launch.strategy) == (State.SUCCEEDED, Strategy.ROLL_BACK)
    assert back.booked == {REGION: {"modelTypes/t0/models/old": 12}}


async def test_a_cut_of_the_quota_takes_nothing_away_and_nothing_more_is_given() -> None:
    fleet = await fleet_of(12, 12, spare=30)
    first, second = launch(fleet, 0), ""
    fleet.at_step(first, 2, lambda fleet: fleet.capacity.set_quota(HERE, 20))
    await finish(fleet)
    assert fleet.outcome(first).state is State.SUCCEEDED and fleet.capacity.free(HERE) == -4
    second = launch(fleet, 1)
    fleet.after(3_600.0, lambda fleet: fleet.capacity.set_quota(HERE, 40))
    await finish(fleet)
    waited = fleet.outcome(second).launch.waits.times
    assert fleet.outcome(second).state is State.SUCCEEDED and waited["Refused"] > timedelta(minutes=50)


def small(**given: Any) -> FleetOutcome:
    """Two teams, with more accidents than there are in most fleets."""
    plan = FleetPlan(types=8, launches=16, days=0.3, types_of_team=4, faults=2.0)
    return run_fleet(replace(plan, **given), processes=1)


def test_a_fleet_with_all_its_accidents_breaks_no_promise_and_the_same_seed_has_the_same_story() -> None:
    outcome = small(launches=24)
    assert outcome.first_broken == () and outcome.broken == 0
    assert outcome.unfinished == 0 and outcome.statistics.launches >= 24
    assert outcome.crashes and outcome.statistics.succeeded > 10 and outcome.statistics.rolled_back
    shorter = {"launches": 6, "types": 4, "days": 0.1}
    once, again, other = small(**shorter), small(**shorter), small(**shorter, seed=1)
    assert once.trace == again.trace != other.trace
    assert replace(once, seconds=0.0, cpu_seconds=0.0) == replace(again, seconds=0.0, cpu_seconds=0.0)


def test_one_process_and_two_have_the_same_story() -> None:
    # So many teams that each process has more than a few.
    plan = FleetPlan(types=18, launches=9, days=0.01, types_of_team=1, faults=0.0)
    one, two = run_fleet(plan, processes=1), run_fleet(plan, processes=2)
    assert one.trace == two.trace and one.effects > 50
    assert replace(one, seconds=0.0, cpu_seconds=0.0) == replace(two, seconds=0.0, cpu_seconds=0.0)


class Undisturbed(MemoryLaunches):
    """Launches with bad candidates and bad machines, but without what is drawn at each call: more looks draw more."""

    def insert(self, launch: Launch, trouble: Trouble) -> Row:
        calm = replace(trouble, crash_rate=0.0, stall_rate=0.0, lost_rate=0.0, agent_lost_rate=0.0, judge_away_rate=0.0)
        return super().insert(launch, calm)


def every_two_seconds(usual: Callable[[Launch, float], float], launch: Launch, seconds: float) -> float:
    """Looks at a launch that is under way; whatever it waits for takes longer than that."""
    return max(2.0, seconds) if launch.touched else usual(launch, seconds)


async def test_looks_that_are_left_out_change_no_outcome() -> None:
    ends, rounds = [], []
    for fine in (False, True):
        plan = FleetPlan(types=4, launches=6, days=0.2, types_of_team=4, faults=3.0)
        team = TeamRehearsal(plan, 0, parts=Parts(launches=Undisturbed))
        if fine:
            team.fleet.launches.patience = functools.partial(every_two_seconds, team.fleet.looks.patience)
        await team.run()
        assert team.fleet.oracle.broken == []
        launches = [row.launch for row in team.fleet.launches.rows.values()]
        rounds.append(team.fleet.rounds)
        ends.append(
            [
                (
                    launch.name,
                    launch.state,
                    launch.abort.author if launch.abort else "",
                    launch.step.number,
                    launch.end_time,
                )
                for launch in launches
            ]
        )
    assert [end[:-1] for end in ends[0]] == [end[:-1] for end in ends[1]]
    assert {State.SUCCEEDED, State.ROLLED_BACK} == {state for _, state, *_ in ends[0]}
    for one, other in zip(ends[0], ends[1], strict=True):
        assert one[-1] and other[-1] and abs(one[-1] - other[-1]) < timedelta(minutes=4)
    assert rounds[1] > 4 * rounds[0]


async def test_capacity_that_is_used_before_it_is_free_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if replicas that are terminating took nothing any more.
    slots = property(lambda seen: max(seen.desired, seen.starting + seen.available + seen.unavailable))
    monkeypatch.setattr(Observed, "slots", slots)
    fleet = await fleet_of(40, spare=4, terminate_seconds=(300.0, 400.0))
    launch(fleet)
    await fleet.run()
    assert any("what exists fits the hold" in what for what in fleet.oracle.broken)


async def test_a_pool_that_gives_what_it_has_not_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if what is held were free.
    written = MemoryCapacity._write

    def forgetful(pool: MemoryCapacity, entries: Sequence[Entry]) -> None:
        written(pool, [entry for entry in entries if entry.account is not Account.HELD or entry.delta_units < 0])

    monkeypatch.setattr(MemoryCapacity, "_write", forgetful)
    fleet = await fleet_of(12, spare=10)
    launch(fleet)
    await fleet.run()
    fleet.check()
    assert any("the books of" in what for what in fleet.oracle.broken)
