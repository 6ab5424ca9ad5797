"""Slices: what each minute counted as, a row per objective and hour. Written once, never revised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from modelfleetd.kit.db import Connection, Database
from modelfleetd.stability.domain.slices import MINUTES_OF_HOUR, Objective, Slice, Slices

# A minute that has a slice keeps it, whoever writes another one.
_WRITE = f"""
INSERT INTO slices AS kept (slo, objective, hour, minutes)
SELECT slo, objective, $1, set_byte(decode(repeat('00', {MINUTES_OF_HOUR}), 'hex'), $2, slice)
FROM unnest($3::text[], $4::smallint[], $5::int[]) AS given (slo, objective, slice) ORDER BY slo COLLATE "C", objective
ON CONFLICT (slo, objective, hour) DO UPDATE SET minutes = set_byte(kept.minutes, $2, get_byte(excluded.minutes, $2))
WHERE get_byte(kept.minutes, $2) = 0
"""
_READ = """
SELECT slo, array_agg(hour ORDER BY hour) AS hours, string_agg(minutes, ''::bytea ORDER BY hour) AS minutes
FROM slices WHERE slo = ANY ($1::text[]) AND objective = $2 AND hour >= $3 AND hour < $4 GROUP BY slo
"""
_FORGET = """
DELETE FROM slices WHERE ctid = ANY (ARRAY(SELECT ctid FROM slices WHERE hour < $1 ORDER BY hour LIMIT 10000))
"""
_MOST_SLOS: Final = 1000  # of 30 days each: 43 MB in one answer


async def write(conn: Connection, minute: int, slices: Mapping[tuple[str, Objective], Slice]) -> None:
    """Writes what a minute counted as.

    Args:
        conn: with the transaction of the evaluation.
        minute: since 1970-01-01 UTC.
        slices: by SLO and objective, STABILITY or AVAILABILITY; none of them NONE.
    """
    hour, place = divmod(minute, MINUTES_OF_HOUR)
    slos = [slo for slo, _ in slices]
    objectives = [objective.value for _, objective in slices]
    await conn.execute(_WRITE, hour, place, slos, objectives, [int(value) for value in slices.values()])


async def read(
    database: Database, slos: Sequence[str], objective: Objective, first_minute: int, end_minute: int
) -> dict[str, Slices]:
    """Returns the slices of SLOs from the first minute, inclusive, to the end, exclusive: NONE where there is none.

    Args:
        database: to read from.
        slos: their names; each gets an entry.
        objective: STABILITY (which says COVERAGE too) or AVAILABILITY.
        first_minute: since 1970-01-01 UTC.
        end_minute: likewise, after the first.
    """
    first_hour, end_hour = first_minute // MINUTES_OF_HOUR, -(-end_minute // MINUTES_OF_HOUR)
    start, end = first_minute - first_hour * MINUTES_OF_HOUR, end_minute - first_hour * MINUTES_OF_HOUR
    found = {slo: np.zeros(end - start, dtype=np.uint8) for slo in slos}
    for begin in range(0, len(slos), _MOST_SLOS):
        asked = list(slos[begin : begin + _MOST_SLOS])
        for record in await database.fetch(_READ, asked, objective.value, first_hour, end_hour):
            hours = np.zeros((end_hour - first_hour, MINUTES_OF_HOUR), dtype=np.uint8)
            minutes = np.frombuffer(record["minutes"], dtype=np.uint8).reshape(-1, MINUTES_OF_HOUR)
            hours[np.array(record["hours"]) - first_hour] = minutes
            found[record["slo"]] = hours.reshape(-1)[start:end]
    return found


async def newest_minute(database: Database) -> int:
    """Returns the minute that was evaluated last, since 1970-01-01 UTC; -1: none yet."""
    minute = await database.fetchval("SELECT minute FROM evaluation")
    return -1 if minute is None else int(minute)


async def forget(database: Database, before_hour: int) -> None:
    """Forgets slices of hours since 1970 before this one, a few thousand a transaction."""
    while await database.execute(_FORGET, before_hour) != "DELETE 0":
        pass
