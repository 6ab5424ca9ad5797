"""Statistics on a real PostgreSQL: every width of time holds the same to the last bit; what is old goes as a whole."""

from __future__ import annotations

import shutil
import types
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from modelfleetd.kit.db import Database
from modelfleetd.kit.migrations import migrate
from modelfleetd.stability import migrations
from modelfleetd.stability.domain.batch import BatchId
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.points import Evidence, Span
from modelfleetd.stability.domain.retention import DAY
from modelfleetd.stability.store import Store
from tests.support.stability import NOW

MODEL = "modelTypes/ctr/models/new"
SERIES = (MODEL, "click")
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
