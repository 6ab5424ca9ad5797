"""Standings and the lease in PostgreSQL: who may write, and that what is read is what was written."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.availability import Availability, AvailabilityState, Interval, Report
from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.estimates import Estimate, State
from modelfleetd.stability.domain.fleet import Metric
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.standing import ModelState, Standing
from modelfleetd.stability.domain.window_verdict import Demand, Reason, Stability
from modelfleetd.stability.store import standings
from tests.support.stability import NOW

MINUTE = minute_of(NOW)
NOON = NOW.replace(second=0)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, "stability", max_size=3)
    yield opened
    await opened.close()


async def conclude(database: Database, lease: standings.Lease, minute: int) -> None:
    async with database.transaction() as conn:
        await standings.conclude(conn, lease, minute, 7)


async def test_one_at_a_time_evaluates_and_a_minute_is_evaluated_once(database: Database) -> None:
    first = await standings.claim(database, "a", 60, MINUTE)
    assert first is not None
    assert await standings.claim(database, "b", 60, MINUTE) is None
    assert await standings.claim(database, "a", 60, MINUTE) == first  # renewed
    await conclude(database, first, MINUTE)
    assert await standings.claim(database, "a", 60, MINUTE) is None  # done
    with pytest.raises(standings.Superseded):
        await conclude(database, first, MINUTE)
    assert await standings.claim(database, "a", 60, MINUTE + 1) == first
    found = await standings.progress(database)
    assert (found.minute, found.revision, found.holder, found.is_free) == (MINUTE, 7, "a", False)


async def test_a_lease_that_has_ended_writes_nothing_though_nobody_took_it(database: Database) -> None:
    lease = await standings.claim(database, "a", 0, MINUTE)
    assert lease is not None
    with pytest.raises(standings.Superseded):
        await conclude(database, lease, MINUTE)


async def test_a_lease_that_passed_on_writes_nothing_also_when_it_comes_back(database: Database) -> None:
    old = await standings.claim(database, "a", 0, MINUTE)
    new = await standings.claim(database, "b", 60, MINUTE)
    assert old is not None and new is not None
    assert new.fence == old.fence + 1
    with pytest.raises(standings.Superseded):
        await conclude(database, old, MINUTE)
    await standings.resign(database, "a")  # holds nothing
    assert not (await standings.progress(database)).is_free
    await standings.resign(database, "b")
    again = await standings.claim(database, "a", 60, MINUTE)
    assert again is not None and again.fence == new.fence + 1
    with pytest.raises(standings.Superseded):
        await conclude(database, old, MINUTE)
    await conclude(database, again, MINUTE)


def standing(model: str, **fields: object) -> Standing:
    metric = WindowVerdict(
        "click", Metric.CALIBRATION, Stability.UNSTABLE, Reason.EVIDENCE,
        Estimate(State.UNDEFINED, 0.0, 3.5, math.inf), Limits(0.5, math.inf),
        NOON - timedelta(hours=1), NOON, True, 0.75, 0, 400, Demand(10, 0.5),
    )  # fmt: skip
    availability = Availability(AvailabilityState.AVAILABLE, 0.995, 200, 3.3, 41.5, NOW)
    intervals = {"regions/eu": Interval(Report(1000, 5, None, NOW), 200, 1, 60.0)}
    made = Standing(model, ModelState.UNSTABLE, NOON, ("click", Metric.CALIBRATION), (metric,), availability, intervals)
    return Standing(**{name: getattr(made, name) for name in Standing.__match_args__} | fields)  # type: ignore[arg-type]


async def test_what_is_kept_is_read_as_it_was_and_only_what_changed_since(database: Database) -> None:
    both = {name: standing(name) for name in ("modelTypes/ctr/models/a", "modelTypes/ctr/models/b")}
    bare = Standing("modelTypes/ctr/models/c", ModelState.NOT_APPLICABLE, NOON)
    async with database.transaction() as conn:
        await standings.keep(conn, MINUTE, [*both.values(), bare], [*both, bare.model])
    assert await standings.read(database, None) == {**both, bare.model: bare}
    assert await standings.read(database, MINUTE) == {}
    changed = standing("modelTypes/ctr/models/a", state=ModelState.UNKNOWN)
    async with database.transaction() as conn:
        await standings.keep(conn, MINUTE + 1, [changed], [changed.model, bare.model])
    assert await standings.read(database, MINUTE) == {changed.model: changed}
    # What serves no more is dropped.
    assert await standings.read(database, None) == {changed.model: changed, bare.model: bare}
