"""Exposure, positives and rejections by minute: added to, and summed up again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from modelfleetd.kit.db import Connection, Record
from modelfleetd.stability.domain.columns import Reason
from modelfleetd.stability.domain.exact import Integers
from modelfleetd.stability.domain.points import Evidence, Span
from modelfleetd.stability.domain.summary import ExposureRows, Places, PositiveRows
from modelfleetd.stability.domain.sums import Exposure, Positives, Sums

# Rows that could have counted, had they come once and in time.
WELL_FORMED = [reason.value for reason in Reason if reason.name in {"DUPLICATE", "TOO_LATE", "NOT_SAMPLED"}]
_EXPOSURE, _POSITIVES = Exposure.names()[1:], Positives.names()[1:]


def _upsert(table: str, keys: Sequence[str], sums: Sequence[str]) -> str:
    """Adds groups to their rows. Always in the order of the keys, so that no two writers wait for each other."""
    columns = (*keys, "known", "n", *sums)
    types = ["int[]"] * len(keys) + ["bigint[]"] + ["text[]"] * len(sums)
    arrays = ", ".join(f"${index}::{kind}" for index, kind in enumerate(types, start=2))
    given = ", ".join((*keys, "$1::boolean", "n", *(f"{name}::numeric" for name in sums)))
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in ("n", *sums))
    return f"""
        INSERT INTO {table} ({", ".join(columns)})
        SELECT {given} FROM unnest({arrays}) AS given ({", ".join((*keys, "n", *sums))}) ORDER BY {", ".join(keys)}
        ON CONFLICT ({", ".join((*keys[:2], "known", *keys[2:]))}) DO UPDATE SET {added}
    """


_ADD_EXPOSURE = _upsert("exposure", ("series", "minute"), _EXPOSURE)
_ADD_POSITIVES = _upsert("positives", ("series", "minute", "age"), _POSITIVES)
_ADD_REJECTIONS = """
INSERT INTO rejections (series, minute, reason, n)
SELECT * FROM unnest($1::int[], $2::int[], $3::int[], $4::bigint[]) AS given (series, minute, reason, n)
ORDER BY series, minute, reason
ON CONFLICT (series, minute, reason) DO UPDATE SET n = rejections.n + excluded.n
"""


def _read(table: str, sums: Sequence[str]) -> str:
    totals = ", ".join(f"sum({name}) AS {name}" for name in sums)
    # Without a resolution ($4 = 0) all is one span.
    return f"""
        SELECT series, CASE WHEN $4 = 0 THEN $2 ELSE minute / $4 * $4 END AS start, known OR minute < $5 AS mature,
               min(minute) AS first, sum(n)::bigint AS n, {totals}
        FROM {table} WHERE series = ANY ($1::int[]) AND minute >= $2 AND minute < $3 GROUP BY 1, 2, 3
    """


_READ_EXPOSURE = _read("exposure", _EXPOSURE)
_READ_POSITIVES = _read("positives", _POSITIVES)
_READ_REJECTIONS = """
SELECT series, CASE WHEN $4 = 0 THEN $2 ELSE minute / $4 * $4 END AS start, sum(n)::bigint AS n,
       coalesce(sum(n) FILTER (WHERE reason <> ALL ($5::int[])), 0)::bigint AS malformed
FROM rejections WHERE series = ANY ($1::int[]) AND minute >= $2 AND minute < $3 GROUP BY 1, 2
"""


async def add_exposure(conn: Connection, series: Integers, rows: ExposureRows, *, known: bool) -> None:
    """Adds exposure. `series` gives the number of each model's (first index) prediction (second index)."""
    if len(rows.counts):
        places, counts = rows.places, rows.counts.tolist()
        keys = (_series(series, places), places.minute.tolist())
        await conn.execute(_ADD_EXPOSURE, known, *keys, counts, *_texts(rows.columns))


async def add_positives(conn: Connection, series: Integers, rows: PositiveRows, *, known: bool) -> None:
    """Adds positives."""
    if len(rows.counts):
        places, counts = rows.places, rows.counts.tolist()
        keys = (_series(series, places), places.minute.tolist(), places.age.tolist())
        await conn.execute(_ADD_POSITIVES, known, *keys, counts, *_texts(rows.columns))


async def add_rejections(conn: Connection, series: Integers, places: Places, counts: Integers) -> None:
    """Adds rows that were not taken; the places' age is the number of the reason."""
    if len(counts):
        keys = (_series(series, places), places.minute.tolist(), places.age.tolist())
        await conn.execute(_ADD_REJECTIONS, *keys, counts.tolist())


async def read_evidence(
    conn: Connection, series: Mapping[int, int], span: Span, resolution: int
) -> dict[int, dict[int, Evidence]]:
    """Returns the evidence of some series by the first minute of each part of a span.

    Args:
        conn: with a transaction that sees one snapshot throughout.
        series: for each series the first minute that is not mature.
        span: what to read.
        resolution: minutes of a part; 0: the whole span is one.
    """
    found: dict[int, dict[int, Evidence]] = {number: defaultdict(Evidence) for number in series}
    # Predictions differ in their windows, and so in what is mature; usually there are one or two.
    for mature_before in set(series.values()):
        numbers = [number for number, before in series.items() if before == mature_before]
        key = (numbers, span.start, span.end, resolution)
        for record in await conn.fetch(_READ_EXPOSURE, *key, mature_before):
            sums = Sums(exposure=Exposure(*_numbers(record, ("n", *_EXPOSURE))))
            found[record["series"]][record["start"]] += _evidence(record, sums)
        for record in await conn.fetch(_READ_POSITIVES, *key, mature_before):
            sums = Sums(positives=Positives(*_numbers(record, ("n", *_POSITIVES))))
            found[record["series"]][record["start"]] += _evidence(record, sums)
        for record in await conn.fetch(_READ_REJECTIONS, *key, WELL_FORMED):
            rejected = Evidence(rejected=record["n"], malformed=record["malformed"])
            found[record["series"]][record["start"]] += rejected
    return found


def _evidence(record: Record, sums: Sums) -> Evidence:
    if record["mature"]:
        return Evidence(matured=sums)
    return Evidence(waiting=sums, first_waiting=record["first"])


def _numbers(record: Record, columns: Sequence[str]) -> list[int]:
    return [int(record[name]) for name in columns]


def _series(series: Integers, places: Places) -> Any:
    return series[places.model, places.prediction].tolist()


def _texts(columns: Sequence[Sequence[int]]) -> list[list[str]]:
    """Sums may be longer than 64 bits; as text they become `numeric` faster than as Python's decimals."""
    return [list(map(str, column)) for column in columns]
