"""Slices in PostgreSQL: written once, never revised, read as minutes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.store import slices

HOUR = 480_000
STABILITY, AVAILABILITY = Objective.STABILITY, Objective.AVAILABILITY


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, "stability", max_size=2)
    yield opened
    await opened.close()


async def write(database: Database, minute: int, **given: Slice) -> None:
    async with database.transaction() as conn:
        await slices.write(conn, minute, {(f"slos/{slo}", STABILITY): value for slo, value in given.items()})


async def test_slices_are_read_minute_by_minute_over_hours_and_what_is_missing_is_none(database: Database) -> None:
    first = HOUR * 60 + 58
    for offset, value in enumerate((Slice.GOOD, Slice.BAD, Slice.UNKNOWN)):
        await write(database, first + offset, ctr=value)
    await write(database, first + 130, ctr=Slice.BAD)
    found = await slices.read(database, ["slos/ctr", "slos/other"], STABILITY, first - 1, first + 132)
    assert found["slos/ctr"].tolist() == [0, 1, 2, 3, *[0] * 127, 2, 0]
    assert found["slos/other"].tolist() == [0] * 133
    assert (await slices.read(database, ["slos/ctr"], STABILITY, first + 1, first + 2))["slos/ctr"].tolist() == [2]
    assert not (await slices.read(database, ["slos/ctr"], AVAILABILITY, first, first + 5))["slos/ctr"].any()


async def test_a_minute_that_has_a_slice_keeps_it(database: Database) -> None:
    minute = HOUR * 60 + 7
    await write(database, minute, ctr=Slice.GOOD)
    await write(database, minute, ctr=Slice.BAD, new=Slice.BAD)
    found = await slices.read(database, ["slos/ctr", "slos/new"], STABILITY, minute, minute + 1)
    assert found["slos/ctr"].tolist() == [Slice.GOOD]
    assert found["slos/new"].tolist() == [Slice.BAD]


async def test_old_hours_are_forgotten(database: Database) -> None:
    for hour in (HOUR, HOUR + 1):
        await write(database, hour * 60, ctr=Slice.GOOD)
    await slices.forget(database, HOUR + 1)
    found = await slices.read(database, ["slos/ctr"], STABILITY, HOUR * 60, (HOUR + 2) * 60)
    assert found["slos/ctr"].tolist() == [*[0] * 60, 1, *[0] * 59]


async def test_the_minutes_of_an_hour_are_written_into_the_same_pages(database: Database) -> None:
    given = {(f"slos/type{index}", STABILITY): Slice.GOOD for index in range(200)}
    updated = in_place = 0
    for minute in range(20):
        async with database.transaction() as conn:
            await slices.write(conn, HOUR * 60 + minute, given)
            updated += await conn.fetchval("SELECT pg_stat_get_xact_tuples_updated('slices'::regclass)")
            # Counters go on over transactions until they are reported.
            await conn.execute("SELECT pg_stat_force_next_flush()")
            in_place += await conn.fetchval("SELECT pg_stat_get_xact_tuples_hot_updated('slices'::regclass)")
    assert updated == 19 * 200
    assert in_place > 0.9 * updated
