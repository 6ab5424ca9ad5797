"""Stability's statements on a real PostgreSQL: what they cost, and what they survive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import numpy as np
import pytest

from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.db import Connection, Database
from modelfleetd.stability.domain.batch import BatchId, Outcome
from modelfleetd.stability.domain.columns import Keys, Predictions, Reason, RejectedRows
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.maturity import live_shelves, micros, minute_of
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.domain.summary import ExposureRows, Places, Statistics
from modelfleetd.stability.store import Store, batches, waiting
from tests.support.stability import NOW, at

WINDOW = timedelta(hours=3)
MODEL = "modelTypes/ctr/models/new"
MINUTE = minute_of(NOW)
BATCH = BatchId("modelTypes/ctr", "test", 1, b"digest")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, "stability")
    yield opened
    await opened.close()


@pytest.fixture
async def store(database: Database) -> Store:
    return Store(database)


async def series_of(store: Store, count: int = 1) -> Any:
    models = [f"{MODEL}{index}" for index in range(count)]
    return await store.series_of(models, ["click"], [(index, 0) for index in range(count)])


def exposure(minute: int, n: int, value: int) -> dict[bool, Statistics]:
    zero = np.zeros(1, dtype=np.int64)
    rows = ExposureRows(Places(zero, zero, zero + minute, zero), zero + n, ((value,),) * 7)
    return {True: replace(Statistics.none(), exposure=rows)}


def some_predictions(count: int, seed: int = 1) -> Predictions:
    rng = np.random.default_rng(seed)
    nothing, place = np.zeros(count, dtype=np.uint8), np.arange(count, dtype=np.int64)
    high, low = rng.integers(-(2**63), 2**63 - 1, (2, count))
    event = np.full(count, micros(NOW))
    return Predictions(place, nothing, nothing, high, low, event, rng.random(count), False, None)


async def keep(store: Store, database: Database, rows: Predictions, series: int) -> list[int]:
    shelves = list(live_shelves(WINDOW, NOW))
    await store.shelves.make(shelves)
    numbers = np.full(len(rows), series)
    shelf = np.full(len(rows), shelves[0])
    async with database.transaction() as conn:
        await waiting.keep_predictions(conn, numbers, shelf, rows, np.full(len(rows), -1))
    return shelves


async def plan(database: Database | Connection, statement: str, *arguments: object) -> str:
    return "\n".join(row["QUERY PLAN"] for row in await database.fetch(f"EXPLAIN {statement}", *arguments))


async def test_sums_grow_beyond_64_bits(store: Store, database: Database) -> None:
    series = await series_of(store)
    large = 2**93
    for sequence in range(1, 4):
        async with store.write(replace(BATCH, sequence=sequence), NOW, MINUTE) as write:
            await write.add(series, exposure(MINUTE, 1, large))
    evidence = (await store.evidence({(f"{MODEL}0", "click"): 0}, Span(MINUTE - 90, MINUTE + 1), NOW))[
        f"{MODEL}0", "click"
    ]
    (found,) = evidence.values()
    assert (found.total.exposure.n, found.total.exposure.w2l2) == (3, 3 * large)
    assert found.total.weight == 3 * large / SCALE


async def test_repeated_predictions_are_found_by_index_on_the_shelves_that_they_may_lie_on(
    store: Store, database: Database
) -> None:
    series = int((await series_of(store))[0, 0])
    rows = some_predictions(50_000)
    shelves = await keep(store, database, rows, series)
    # Nobody has gathered statistics of a shelf that is a minute old.
    given = waiting._arrays(np.ones(50_000, dtype=np.int64), rows, np.arange(3000))
    for _ in range(7):  # from the sixth time on PostgreSQL may choose a plan that knows no values
        async with database.transaction() as conn:
            await waiting.take_turn(conn, "modelTypes/ctr")
            shown = await plan(conn, waiting._KNOWN_PREDICTIONS, *given, shelves[:1])
        assert f"waiting_predictions_{shelves[0]}" in shown
        assert f"waiting_predictions_{shelves[1]} " not in shown
        assert "Seq Scan" not in shown, shown
    numbers = np.full(len(rows), series)
    async with database.transaction() as conn:
        known = await waiting.known_predictions(conn, numbers, rows, shelves)
        strangers = await waiting.known_predictions(conn, numbers, some_predictions(50_000, 2), shelves)
    assert sorted(known.tolist()) == list(range(50_000))
    assert len(strangers) == 0


async def test_columns_are_copied_as_they_are(store: Store, database: Database) -> None:
    series = int((await series_of(store))[0, 0])
    rows = some_predictions(100)
    await keep(store, database, rows, series)
    async with database.transaction() as conn:
        found = await waiting.find_predictions(conn, np.full(100, series), rows)
    order = np.argsort(found.place)
    assert found.value[order].tolist() == rows.value.tolist()
    assert found.event.tolist() == rows.event.tolist()
    assert set(found.weight.tolist()) == {1.0}
    assert set(found.label.tolist()) == {-1}
    assert not found.is_logit.any()
    absent = Keys(rows.row, rows.model, rows.prediction, rows.low, rows.high)
    async with database.transaction() as conn:
        assert len((await waiting.find_predictions(conn, np.full(100, series), absent)).place) == 0


async def test_replicas_may_make_the_same_shelves_at_once(database: Database) -> None:
    shelves = list(live_shelves(WINDOW, NOW))
    await asyncio.gather(*(Store(database).shelves.make(shelves) for _ in range(6)))
    count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'waiting_labels'::regclass"
    assert await database.fetchval(count) == len(shelves)


async def test_a_shelf_that_is_in_use_is_dropped_another_time(store: Store, database: Database) -> None:
    await store.shelves.make(live_shelves(WINDOW, NOW))
    async with database.transaction() as conn:
        await conn.fetch("SELECT 1 FROM waiting_predictions")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await store.sweep(at(days=2))
    await store.sweep(at(days=2))
    assert await database.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = 'waiting_labels'::regclass") == 0


async def test_a_series_that_a_failover_lost_is_made_again(store: Store, database: Database) -> None:
    series = await series_of(store)
    await database.execute("DELETE FROM series")
    with pytest.raises(PartUnavailable):
        async with store.write(BATCH, NOW) as write:
            await write.add(series, exposure(MINUTE, 1, 1))
    series = await series_of(store)
    async with store.write(BATCH, NOW) as write:
        assert write.written is None
        await write.add(series, exposure(MINUTE, 1, 1))


async def test_a_batch_that_fails_leaves_nothing_behind(store: Store, database: Database) -> None:
    series = await series_of(store)
    with pytest.raises(RuntimeError):
        async with store.write(BATCH, NOW) as write:
            await write.add(series, exposure(MINUTE, 1, 1))
            raise RuntimeError
    assert await database.fetchval("SELECT count(*) FROM exposure") == 0
    assert await database.fetchval("SELECT count(*) FROM batches") == 0


async def test_outcomes_are_remembered_for_a_week(store: Store, database: Database) -> None:
    outcome = Outcome(5, (RejectedRows(Reason.BAD_SCORE, 2, 1),))
    async with store.write(BATCH, NOW) as write:
        await write.conclude(outcome)
    await store.sweep(NOW)
    async with store.write(BATCH, NOW) as write:
        assert write.written == Outcome(5, outcome.rejected, duplicate=True)
    await database.execute("UPDATE batches SET create_time = now() - interval '8 days'")
    await batches.forget(database, timedelta(days=7))
    async with store.write(BATCH, NOW) as write:
        assert write.written is None
