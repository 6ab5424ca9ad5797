"""A part of the fleet rehearsal, repeated on real stores: the same story to the last event, and the same books.

Registry, capacity and stability are the services themselves, the launcher's store its own, all on PostgreSQL.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import pytest

from modelfleetd.capacity.domain.policy import LaunchPolicy, NoRegression
from modelfleetd.kit.db import Database
from modelfleetd.launcher.domain.figures import cause_of
from modelfleetd.launcher.domain.policy import Criterion, EvidenceGate, Policy, StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.states import State
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.registry.domain.evidence import (
    Direction,
    EvaluationReport,
    EvaluationResult,
    Evaluator,
    EvaluatorKind,
    EvidenceRule,
)
from modelfleetd.rehearsal.chance import Trouble
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.parts import IN_MEMORY, Parts
from modelfleetd.rehearsal.routes import REGION, Route
from modelfleetd.rehearsal.team import TEAM
from modelfleetd.rehearsal.team_rehearsal import TeamRehearsal
from tests.support.chance import ALL, SEED
from tests.support.stored.capacity import StoredCapacity
from tests.support.stored.launches import StoredLaunches
from tests.support.stored.parts import StoredParts
from tests.support.stored.registry import StoredRegistry
from tests.support.stored.services import stored_parts
from tests.support.stored.stability import StoredStability
from tests.support.stored.virtual_time import virtual_time
from tests.support.stored.world import StoredWorld


@dataclass(frozen=True)
class Stored:
    """Real stores for one fleet."""

    parts: StoredParts
    launches: Database
    made_of: Parts


@pytest.fixture
async def stored(database_url: str) -> AsyncIterator[Stored]:
    async with virtual_time(database_url) as time, stored_parts(time) as parts:
        launches = await time.database("launcher")
        made_of = Parts(
            clock=lambda: parts.clock,
            launches=partial(StoredLaunches, launches, time),
            registry=partial(StoredRegistry, parts),
            capacity=partial(StoredCapacity, parts),
            stability=partial(StoredStability, parts),
            world=partial(StoredWorld, parts),
        )
        yield Stored(parts, launches, made_of)


async def test_launches_have_the_same_story_on_real_stores(stored: Stored) -> None:
    plan = FleetPlan(types=3, launches=4, days=0.1, types_of_team=3, faults=2.0)
    on_stores = await expect_same(plan, 0, None, stored)
    # The judge has sent one of them back.
    assert "gate/stability" in {ended.figures.cause for ended in on_stores.outcome(0.0, 0.0).ended}
    stability = on_stores.fleet.stability
    assert isinstance(stability, StoredStability) and stability.verdicts.keys() >= {Verdict.PASS, Verdict.FAIL}


async def two_on_a_pool_for_one(parts: Parts) -> Fleet:
    """Two launches in a pool with room for one of them."""
    fleet = Fleet(spare=6, parts=parts)
    routes = [f"modelTypes/t{number}" for number in range(2)]
    for route in routes:
        fleet.add_type(Route(route, {REGION: 12}))
    await fleet.start()
    policy = Policy(bake_duration=timedelta(minutes=10), max_steps=2, max_step_basis_points=5_000)
    for number, route in enumerate(routes):
        fleet.create(f"l{number}", route, fleet.add_model(route, "new", {REGION: 12}), policy=policy)
    await fleet.run()
    fleet.check()
    return fleet


async def test_who_waits_for_another_launch_is_told_the_same_by_capacity(stored: Stored) -> None:
    in_memory, on_stores = await two_on_a_pool_for_one(IN_MEMORY), await two_on_a_pool_for_one(stored.made_of)
    await expect_no_differences(on_stores, stored.parts)
    assert "CapacityPromised" in on_stores.outcome("launches/l1").launch.waits.times
    assert on_stores.trace() == in_memory.trace() and on_stores.oracle.broken == []


RULE = EvidenceRule(id="accurate", metric="accuracy", minimum=0.7)
MACHINES = Behaviour(start_seconds=(20.0, 60.0), requests_per_second=100.0)


def evaluation(model: str, accuracy: float, time: datetime) -> EvaluationReport:
    return EvaluationReport(
        name=f"{model}/evaluationReports/held-out",
        suite="held_out",
        evaluator=Evaluator(kind=EvaluatorKind.INTERNAL, name="its team"),
        evaluate_time=time,
        results=(EvaluationResult(metric="accuracy", value=accuracy, direction=Direction.HIGHER_IS_BETTER),),
    )


async def two_that_need_evidence(parts: Parts) -> Fleet:
    """The evidence of one is late, and its labels too; that of the other is bad, and it costs more than is accepted."""
    fleet = Fleet(spare=12, parts=parts)
    routes = [f"modelTypes/t{number}" for number in range(2)]
    for route in routes:
        fleet.add_type(Route(route, {REGION: 6}, behaviour=MACHINES))
    await fleet.start()
    for route in routes:
        fleet.registry.set_evidence_rules(route, [RULE])
    fleet.capacity.set_policy(
        LaunchPolicy("launchPolicies/frugal", TEAM, team_default=True, no_regression=NoRegression())
    )
    late, dear = fleet.add_model(routes[0], "late", {REGION: 6}), fleet.add_model(routes[1], "dear", {REGION: 7})
    fleet.registry.report(evaluation(dear, 0.6, fleet.clock.now()))
    compared = StabilityGate(criteria=(Criterion("click", max_calibration_difference=0.3),))
    policy = Policy(bake_duration=timedelta(minutes=10), max_steps=2, max_step_basis_points=5_000)
    fleet.create(
        "l0",
        routes[0],
        late,
        policy=replace(policy, stability_gate=compared),
        trouble=Trouble(calibration=1.1, label_delay_seconds=40.0),
    )
    dears = fleet.create("l1", routes[1], dear, policy=replace(policy, evidence_gate=EvidenceGate(reject=True)))
    fleet.after(300.0, lambda fleet: fleet.registry.report(evaluation(late, 0.8, fleet.clock.now())))
    fleet.when(dears, lambda launch: launch.state is State.AWAITING_APPROVAL, lambda fleet: fleet.approve(dears))
    await fleet.run()
    fleet.check()
    return fleet


async def test_evidence_and_launch_policies_say_the_same_on_real_stores(stored: Stored) -> None:
    in_memory, on_stores = await two_that_need_evidence(IN_MEMORY), await two_that_need_evidence(stored.made_of)
    await expect_no_differences(on_stores, stored.parts)
    late, dear = on_stores.outcome("launches/l0"), on_stores.outcome("launches/l1")
    said = [event.message for event in late.events if event.message.startswith("evidence: ")]
    assert "INCONCLUSIVE" in said[0] and "PASS" in said[-1]
    # So much was predicted, and so few labels were there in time.
    assert cause_of(late.launch) == "gate/stability" and late.state is State.ROLLED_BACK
    assert dear.launch.decision is not None and dear.launch.decision.needs_approval
    assert cause_of(dear.launch) == "gate/evidence"
    assert on_stores.trace() == in_memory.trace() and on_stores.oracle.broken == []


@pytest.mark.faults
@pytest.mark.timeout(2_400)
async def test_one_in_a_hundred_launches_has_the_same_story_on_real_stores(stored: Stored) -> None:
    # Launches of a team wait for each other: of one team that is drawn, those that it creates first.
    plan = FleetPlan()
    launches = plan.launches // 100 if ALL else 4
    await expect_same(plan, random.Random(SEED).randrange(plan.teams), launches, stored)


async def expect_same(plan: FleetPlan, team: int, first: int | None, stored: Stored) -> TeamRehearsal:
    in_memory = TeamRehearsal(plan, team, first)
    on_stores = TeamRehearsal(plan, team, first, stored.made_of)
    await in_memory.run()
    await on_stores.run()
    await expect_no_differences(on_stores.fleet, stored.parts)
    ours, theirs = in_memory.outcome(0.0, 0.0), on_stores.outcome(0.0, 0.0)
    assert theirs.first_broken == ()
    # States, causes, times, what agents did, and every event.
    assert theirs == ours and theirs.unfinished == 0 and len(theirs.ended) >= (first or plan.launches)
    kept = await stored.launches.fetch("SELECT id, state FROM launches ORDER BY id")
    assert {f"launches/{row['id']}": row["state"] for row in kept} == {
        name: row.launch.state.name for name, row in on_stores.fleet.launches.rows.items()
    }
    return on_stores


async def expect_no_differences(fleet: Fleet, parts: StoredParts) -> None:
    """Every answer was that of memory, and so is what there is at the end."""
    launches, registry, capacity = fleet.launches, fleet.registry, fleet.capacity
    assert isinstance(launches, StoredLaunches)
    assert isinstance(registry, StoredRegistry)
    assert isinstance(capacity, StoredCapacity)
    await parts.catch_up()
    await registry.compare()
    await capacity.compare()
    assert launches.differences == [] and launches.statements > 10 * len(launches.rows)
    assert parts.differences == [] and parts.asked > 10 * len(launches.rows)
