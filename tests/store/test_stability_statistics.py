"""Statistics on a real PostgreSQL: every width of time holds the same to the last bit; what is old goes as a whole."""

from __future__ import annotations

import asyncio
import shutil
import types
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from modelfleetd.kit.db import Database
from modelfleetd.kit.migrations import migrate
from modelfleetd.stability import migrations
from modelfleetd.stability.domain.batch import BatchId
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.points import Evidence, Span
from modelfleetd.stability.domain.retention import DAY, TABLES
from modelfleetd.stability.domain.segments import segments
from modelfleetd.stability.store import Store, delays, rollups
from tests.support.stability import NOW
from tests.support.stability_rows import SERIES, fill

MINUTE = minute_of(NOW)
BATCH = BatchId("modelTypes/ctr", "test", 1, b"digest")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, "stability")
    yield opened
    await opened.close()


async def total(store: Store, span: Span, now: datetime = NOW, mature_before: int = 0) -> Evidence:
    found = await store.evidence({SERIES: mature_before}, span, now)
    return sum(found.get(SERIES, {}).values(), Evidence())


async def test_what_was_there_before_partitions_is_there_after(empty_database_url: str, tmp_path: Path) -> None:
    folder = Path(next(iter(migrations.__path__)))
    shutil.copy(folder / "0001_initial.py", tmp_path)
    old = types.ModuleType("old")
    old.__path__ = [str(tmp_path)]
    await migrate(empty_database_url, "stability", old)
    now = datetime.now(UTC)
    minutes = [minute_of(now) - age for age in (3, 8, 600, 9 * DAY, 40 * DAY, 89 * DAY)]
    conn = await asyncpg.connect(empty_database_url, server_settings={"search_path": "stability"})
    await conn.execute("INSERT INTO series (model, prediction) VALUES ($1, $2)", *SERIES)
    await conn.execute(
        "INSERT INTO exposure SELECT 1, minute, false, 10, 1, 2, 3, 4, 5, 6, power(2::numeric, 90) "
        "FROM unnest($1::int[]) AS minute",
        minutes,
    )
    await conn.execute(
        "INSERT INTO positives SELECT 1, minute, false, age, 2, 1, 2, 3, -4, 5, 6 "
        "FROM unnest($1::int[]) AS minute, generate_series(0, 1) AS age",
        minutes,
    )
    await conn.execute("INSERT INTO rejections SELECT 1, minute, 3, 7 FROM unnest($1::int[]) AS minute", minutes)
    await conn.close()

    await migrate(empty_database_url, "stability", migrations)
    database = await Database.open(empty_database_url, "stability")
    try:
        store = Store(database)
        last = minute_of(now) + 1
        for start, rows in ((last - 60, 2), (last - 7 * DAY, 3), (last - 20 * DAY, 4), (last - 90 * DAY, 6)):
            found = await total(store, Span(start, last), now)
            exposure, positives = found.total.exposure, found.total.positives
            assert (exposure.n, exposure.w2, exposure.w2l2) == (10 * rows, 2 * rows, 2**90 * rows)
            assert (positives.n, positives.wl, found.rejected) == (4 * rows, -8 * rows, 7 * rows)
        # And goes on.
        await store.partitions.make(now, minutes[-1])
        await store.partitions.drop_old(now)
    finally:
        await database.close()


async def test_partitions_are_made_once_by_however_many_replicas_and_dropped_when_all_in_them_is_old(
    database: Database,
) -> None:
    stores = [Store(database) for _ in range(4)]
    await asyncio.gather(*(store.partitions.make(NOW, MINUTE - 30 * DAY) for store in stores))
    there = await partitions(database)
    # Nine days of minutes, from the one in which those begin that are still written, and two days ahead.
    assert there["exposure"] == [f"exposure_202502{day}" for day in range(21, 29)] + [
        f"exposure_2025030{day}" for day in range(1, 4)
    ]
    for table in TABLES:
        assert len(there[table.name]) == len(set(there[table.name])) > 0
    store = stores[0]
    await store.partitions.make(NOW, MINUTE - 30 * DAY)
    assert await partitions(database) == there
    # What is still written is there until nobody writes it any more.
    for hours, oldest in ((0, "20250221"), (14, "20250222"), (24 * 30, None)):
        await store.partitions.drop_old(NOW + timedelta(hours=hours))
        left = (await partitions(database))["exposure"]
        assert (left[0] if left else None) == (oldest and f"exposure_{oldest}")
    assert len((await partitions(database))["totals_hour"]) == len(there["totals_hour"])
    # And a writer finds what was dropped made again.
    await store.partitions.make(NOW)
    assert (await partitions(database))["exposure"][0] == "exposure_20250301"


async def test_a_partition_in_use_is_dropped_another_time(database: Database) -> None:
    store = Store(database)
    await store.partitions.make(NOW)
    later = NOW + timedelta(days=20)
    async with database.transaction() as conn:
        await conn.fetch("SELECT 1 FROM exposure")
        await store.partitions.drop_old(later)
        assert (await partitions(database))["exposure"]
    await store.partitions.drop_old(later)
    assert not (await partitions(database))["exposure"]


async def test_a_span_is_read_from_the_widest_rows_by_indexes_of_the_partitions_that_it_lies_in(
    database: Database,
) -> None:
    store = Store(database)
    await store.partitions.make(NOW, MINUTE - 30 * DAY)
    await fill(database, NOW, days=30, series=2)
    span, before = Span(MINUTE - 28 * DAY + 7, MINUTE + 1), MINUTE - 3 * DAY
    for resolution in (0, 1, 5, 60):
        parts = segments(Span(MINUTE - 7 * DAY, MINUTE) if resolution == 1 else span, resolution, before, NOW)
        for query, given in (
            (rollups.evidence_query, [[1], span.start, resolution, before]),
            (rollups.series_query, [[1], resolution or 60, before]),
            (rollups.coming_query, [[1]]),
        ):
            arguments: list[object] = list(given)
            shown = await plan(database, query(parts, arguments), *arguments)
            assert "Seq Scan" not in shown, shown
            assert "Index" in shown
    hour = segments(Span(MINUTE - 120, MINUTE + 1), 1, before, NOW)
    arguments = [[1], 1, before]
    shown = await plan(database, rollups.series_query(hour, arguments), *arguments)
    assert "exposure_20250301" in shown
    assert "exposure_20250228" not in shown
    for statement in (rollups._READ_BINS, rollups._READ_BIN_ERRORS):
        assert "Seq Scan" not in await plan(database, statement, 1, span.start, span.end)
    ages = await plan(database, delays._READ_AGES, [1, 2], [span.start] * 2, [span.start + 60] * 2)
    assert "Seq Scan" not in ages

    # From a minute 28 days ago that is no 5 minutes' first until now: rows by hour, by 5 min and by minute make it up.
    for start in (MINUTE - 28 * DAY + 5, MINUTE - 7 * DAY + 13, MINUTE - 61):
        found = await total(store, Span(start, MINUTE), mature_before=MINUTE - 77)
        exact = -(-start // 5) * 5 if start < MINUTE - 8 * DAY else start
        assert found.total.examples == found.seen == 10 * (MINUTE - exact)
        assert found.total.positives.n == MINUTE - exact
        assert found.waiting.examples == 10 * min(MINUTE - exact, 77)


async def partitions(database: Database) -> dict[str, list[str]]:
    rows = await database.fetch(
        "SELECT parent.relname AS parent, child.relname AS child FROM pg_inherits "
        "JOIN pg_class parent ON parent.oid = inhparent JOIN pg_class child ON child.oid = inhrelid ORDER BY 2"
    )
    return {table.name: [row["child"] for row in rows if row["parent"] == table.name] for table in TABLES}


async def plan(database: Database, statement: str, *arguments: object) -> str:
    async with database.transaction() as conn:
        # Of a handful of rows PostgreSQL would rather read all; what is asked here is whether it has to.
        await conn.execute("SET LOCAL enable_seqscan = off")
        return "\n".join(row["QUERY PLAN"] for row in await conn.fetch(f"EXPLAIN {statement}", *arguments))
