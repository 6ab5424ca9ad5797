"""Usage over time on PostgreSQL: nothing is missed, coarser rows say what finer ones did, old ones go."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from modelfleetd.capacity import holds
from modelfleetd.capacity.domain.history import DAY, FIVE_MINUTES, HOUR, MINUTE, Series, Window, series, window
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.store import usage
from modelfleetd.kit.db import Database
from tests.support.organisations import EU, US, change, make, make_flavor, nodes_of, quota

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
POOL, MODEL = "pools/a", "modelTypes/ctr/models/m"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, "capacity", max_size=2)
    await make_flavor(opened)
    yield opened
    await opened.close()


async def book(database: Database, units: int) -> None:
    async with database.transaction() as conn:
        await holds.book_usage(conn, POOL, (ModelUnits(MODEL, EU.flavor, EU.region, units),), "alice", "")


async def read(database: Database, start: datetime, end: datetime, step: timedelta | None = None) -> Series:
    return await read_window(database, window(start, end, step, datetime.now(UTC)))


async def read_window(database: Database, asked: Window) -> Series:
    levels = await usage.before(database, POOL, [EU], asked.start)
    changes = await usage.changes(database, POOL, [EU], asked)
    return series(POOL, EU, asked, levels.get(EU), changes.get(EU, {}))


async def test_the_most_of_a_minute_is_kept_also_where_nobody_looked_and_how_it_ended(database: Database) -> None:
    start = datetime.now(UTC)
    await make(database, POOL, None, [quota(EU, 100), quota(US, 1)])
    for units in (30, 80, 10):
        await book(database, units)
    await change(database, POOL, None, [quota(EU, 70)])
    points = (await read(database, start - MINUTE, datetime.now(UTC), MINUTE)).points
    assert max(point.serving_units for point in points) == max(point.used_units for point in points) == 80
    assert points[-1].nominal_units == 70
    rows = await database.fetch("SELECT * FROM usage_points WHERE region = 'regions/us' ORDER BY time")
    # Also of a quota that was taken away, that it ended as nothing.
    assert rows[-1]["nominal_units"] == 0


async def test_coarser_rows_say_what_finer_ones_did_however_often_they_are_made(database: Database) -> None:
    await make(database, POOL, None, [quota(EU, 1000)])
    await database.execute("DELETE FROM usage_points")
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    start, draw = now - timedelta(hours=30), random.Random(7)
    # What a minute-by-minute look would have seen: a random walk that changes in one minute of four.
    level, levels = 0, {}
    for minute in range(30 * 60):
        most = level
        if minute == 0 or draw.random() < 0.25:
            ups = [draw.randint(0, 1000) for _ in range(3)]
            most, level = max(level, *ups), ups[-1]
            await database.execute(
                "INSERT INTO usage_points VALUES (60, $1, $2, $3, $4, $5, 0, 0, $5, 1000, $6, 0, 0)",
                POOL, EU.flavor, EU.region, start + minute * MINUTE, most, level,
            )  # fmt: skip
        levels[start + minute * MINUTE] = most
        if minute in (600, 1000, 1799):
            for _ in range(2):
                for resolution in (FIVE_MINUTES, HOUR, DAY):
                    await usage.roll_up(database, resolution)
    for resolution in (MINUTE, FIVE_MINUTES, HOUR):
        # As time does, but for the newest: forgets what is finer.
        await database.execute(
            "DELETE FROM usage_points WHERE make_interval(secs => seconds) < $1 AND time < now() - interval '2 hours'",
            resolution,
        )
        for step in (resolution, 7 * resolution):
            first = _EPOCH + -((_EPOCH - start) // step) * step
            found = await read_window(database, Window(first, now, step, resolution))
            assert [point.time for point in found.points] == list(Window(first, now, step, resolution).times)
            for point in found.points:
                within = [most for time, most in levels.items() if point.time <= time < point.time + step]
                assert point.used_units == point.serving_units == max(within), (step, resolution, point.time)


async def test_what_is_old_is_forgotten_but_not_what_has_not_changed_since(database: Database) -> None:
    await make(database, POOL, None, [quota(EU, 5)])
    await database.execute("DELETE FROM usage_points")
    for seconds, days in ((60, 1), (60, 3), (300, 13), (300, 15), (3600, 399), (3600, 401), (86400, 500), (86400, 450)):
        await database.execute(
            """INSERT INTO usage_points VALUES ($1, $2, $3, $4, now() - make_interval(days => $5),
                   0, 0, 0, 0, $5, 0, 0, 0)""",
            seconds, POOL, EU.flavor, EU.region, days,
        )  # fmt: skip
    await usage.forget(database)
    rows = await database.fetch("SELECT seconds, nominal_units AS days FROM usage_points ORDER BY time DESC")
    assert [(row["seconds"], row["days"]) for row in rows] == [(60, 1), (300, 13), (3600, 399), (86400, 450)]
    now = datetime.now(UTC)
    assert (await read(database, now - timedelta(days=400), now)).points[0].nominal_units == 450


async def test_a_window_is_read_by_the_key_whatever_other_pools_have_and_how_long_history_is(
    database: Database,
) -> None:
    await make(database, POOL, None, [quota(EU, 5)])
    await database.execute(
        """INSERT INTO usage_points
           SELECT 60, 'pools/p' || p, 'flavors/cpu', 'regions/eu', now() - make_interval(mins => m),
               1, 1, 1, 1, 1, 1, 1, 1
           FROM generate_series(1, 20) p, generate_series(1, 2880) m"""
    )
    await database.execute("ANALYZE usage_points")
    start, end = datetime.now(UTC) - timedelta(hours=3), datetime.now(UTC)
    plan = await database.fetchval(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {usage.CHANGES}",
        "pools/p7", [EU.flavor], [EU.region], MINUTE, 60, start, end, usage.NEWEST,
    )  # fmt: skip
    scans = [node for node in nodes_of(plan) if node.get("Relation Name") == "usage_points"]
    assert {scan["Index Name"] for scan in scans if scan["Actual Loops"]} == {"usage_points_pkey"}
    assert sum(scan["Actual Rows"] * scan["Actual Loops"] for scan in scans) <= 181
