"""Minutes that were evaluated: slices as the evaluator writes them, without its rounds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.slices import MINUTES_OF_HOUR, Objective, Slice, Slices
from modelfleetd.stability.store import slices as store


async def write_history(database_url: str, minute: int, slices: Mapping[tuple[str, Objective], Slices]) -> None:
    """Writes what the minutes until and with one counted as, and that it was the newest that was evaluated.

    Args:
        database_url: of stability's database, its schema made.
        minute: the newest, since 1970-01-01 UTC.
        slices: by SLO and objective, the newest minute last.
    """
    rows = []
    for (slo, objective), values in slices.items():
        first = minute + 1 - len(values)
        hours = np.zeros((minute // MINUTES_OF_HOUR - first // MINUTES_OF_HOUR + 1, MINUTES_OF_HOUR), dtype=np.uint8)
        start = first % MINUTES_OF_HOUR
        hours.reshape(-1)[start : start + len(values)] = values
        rows += [
            (slo, objective.value, first // MINUTES_OF_HOUR + number, hour.tobytes())
            for number, hour in enumerate(hours)
        ]
    database = await Database.open(database_url, "stability", max_size=1)
    try:
        async with database.transaction() as conn:
            await conn.execute("DELETE FROM slices WHERE slo = ANY ($1::text[])", [slo for slo, _ in slices])
            await conn.copy_records_to_table("slices", records=rows, columns=("slo", "objective", "hour", "minutes"))
            await conn.execute("UPDATE evaluation SET minute = $1", minute)
    finally:
        await database.close()


async def write_minute(database_url: str, minute: int, slices: Mapping[tuple[str, Objective], Slice]) -> None:
    """Writes what one minute counted as, and that it was the newest that was evaluated."""
    database = await Database.open(database_url, "stability", max_size=1)
    try:
        async with database.transaction() as conn:
            await store.write(conn, minute, slices)
            await conn.execute("UPDATE evaluation SET minute = $1", minute)
    finally:
        await database.close()
