"""A part of the fleet rehearsal, repeated with the launcher's store on PostgreSQL: the same story to the last event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest

from modelfleetd.kit.db import Database
from modelfleetd.rehearsal.fleet_outcome import TeamOutcome
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.team_rehearsal import TeamRehearsal
from tests.support.stored_launches import StoredLaunches, virtual_database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = await virtual_database(database_url)
    try:
        yield made
    finally:
        await made.close()


async def both(plan: FleetPlan, database: Database) -> tuple[TeamOutcome, TeamOutcome, TeamRehearsal]:
    """One team, in memory and on the store."""
    in_memory, stored = TeamRehearsal(plan, 0), TeamRehearsal(plan, 0, partial(StoredLaunches, database))
    await in_memory.run()
    await stored.run()
    return in_memory.outcome(0.0, 0.0), stored.outcome(0.0, 0.0), stored


async def test_launches_have_the_same_story_on_the_real_store(database: Database) -> None:
    await expect_same(FleetPlan(types=3, launches=4, days=0.1, types_of_team=3, faults=2.0), database)


@pytest.mark.faults
async def test_one_in_a_hundred_launches_has_the_same_story_on_the_real_store(database: Database) -> None:
    await expect_same(FleetPlan(types=10, launches=100, days=7.0, types_of_team=10), database)


async def expect_same(plan: FleetPlan, database: Database) -> None:
    in_memory, on_store, stored = await both(plan, database)
    launches = stored.fleet.launches
    assert isinstance(launches, StoredLaunches)
    assert launches.differences == [] and launches.statements > 10 * plan.launches
    assert on_store.first_broken == ()
    # States, causes, times, what agents did, and every event.
    assert on_store == in_memory and on_store.unfinished == 0
    kept = await database.fetch("SELECT id, state FROM launches ORDER BY id")
    assert {f"launches/{row['id']}": row["state"] for row in kept} == {
        name: row.launch.state.name for name, row in launches.rows.items()
    }
