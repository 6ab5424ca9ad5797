"""Statistics, read: a span is summed again from the widest rows that make it up, in one statement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np

from modelfleetd.kit.db import Connection, Record
from modelfleetd.stability.domain.arrays import Windows
from modelfleetd.stability.domain.bins import Bin
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.points import Evidence, Span
from modelfleetd.stability.domain.retention import EXPOSURE
from modelfleetd.stability.domain.segments import Segment, mature_rows_before, segments
from modelfleetd.stability.domain.series import NOTHING_STORED, Coming, Parts, Stored, no_parts
from modelfleetd.stability.domain.sums import Exposure, Positives, Sums
from modelfleetd.stability.store.statistics import (
    EXPOSURE_COLUMNS,
    EXPOSURE_SUMS,
    POSITIVE_COLUMNS,
    POSITIVE_SUMS,
    REJECTED_COLUMNS,
    WELL_FORMED,
)

_COLUMNS: Final = (*EXPOSURE_COLUMNS, *POSITIVE_COLUMNS, *REJECTED_COLUMNS)
_KEYS: Final = "series, minute, known"


def _row(table: str, given: Mapping[str, str], key: str = _KEYS) -> str:
    columns = ", ".join(f"{given.get(name, '0')} AS {name}" for name in _COLUMNS)
    return f"SELECT {key}, {columns} FROM {table}"


_MALFORMED: Final = f"CASE WHEN reason IN ({', '.join(map(str, WELL_FORMED))}) THEN 0 ELSE n END"
_BY_MINUTE: Final = (
    _row("exposure", {name: name for name in EXPOSURE_COLUMNS}),
    _row("positives", dict(zip(POSITIVE_COLUMNS, ("n", *POSITIVE_SUMS), strict=True))),
    _row("rejections", {"rejected": "n", "malformed": _MALFORMED}, "series, minute, false AS known"),
)


def rows_of(parts: Sequence[Segment], arguments: list[object]) -> str:
    """Returns a query of the rows of some segments; its first argument are the series, what else it needs is added."""
    selects = []
    for part in parts:
        arguments += [part.span.start, part.span.end]
        where = f"WHERE series = ANY ($1::int[]) AND minute >= ${len(arguments) - 1} AND minute < ${len(arguments)}"
        if part.table is EXPOSURE:
            selects += [f"{select} {where}" for select in _BY_MINUTE]
        else:
            selects.append(f"{_row(part.table.name, {name: name for name in _COLUMNS})} {where}")
    return " UNION ALL ".join(selects)


def evidence_query(parts: Sequence[Segment], arguments: list[object]) -> str:
    """Returns the query of evidence by series, part of the span and maturity: see `read_evidence`.

    Arguments: the series, the span's start, minutes of a part, the first minute that is not mature.
    """
    sums = ", ".join(f"sum({name}) AS {name}" for name in _COLUMNS)
    return f"""
        SELECT series, CASE WHEN $3 = 0 THEN $2 ELSE minute / $3 * $3 END AS start, known OR minute < $4 AS mature,
               min(minute) FILTER (WHERE n > 0) AS first, {sums}
        FROM ({rows_of(parts, arguments)}) AS parts GROUP BY 1, 2, 3
    """


async def read_evidence(
    conn: Connection, series: Mapping[int, int], span: Span, resolution: int, now: datetime
) -> dict[int, dict[int, Evidence]]:
    """Returns the evidence of some series by the first minute of each part of a span.

    Args:
        conn: with a transaction that sees one snapshot throughout.
        series: for each series the first minute that is not mature.
        span: what to read.
        resolution: minutes of a part; 0: the whole span is one.
        now: decides what is kept.
    """
    found: dict[int, dict[int, Evidence]] = {number: defaultdict(Evidence) for number in series}
    # Predictions differ in their windows, and so in what is mature; usually there are one or two.
    for mature_before in sorted(set(series.values())):
        parts = segments(span, resolution, mature_before, now)
        if not parts:
            continue
        numbers = [number for number, before in series.items() if before == mature_before]
        arguments: list[object] = [numbers, span.start, resolution, mature_rows_before(mature_before, now)]
        query = evidence_query(parts, arguments)
        for record in await conn.fetch(query, *arguments):
            found[record["series"]][record["start"]] += _evidence(record)
    return found


def _evidence(record: Record) -> Evidence:
    exposure = Exposure(*_numbers(record, ("n", *EXPOSURE_SUMS)))
    sums = Sums(exposure, Positives(*_numbers(record, POSITIVE_COLUMNS)))
    rejected, malformed, seen = (int(record[name]) for name in (*REJECTED_COLUMNS, "seen"))
    if record["mature"]:
        return Evidence(matured=sums, rejected=rejected, malformed=malformed, seen=seen)
    return Evidence(waiting=sums, first_waiting=record["first"], rejected=rejected, malformed=malformed, seen=seen)


def _numbers(record: Record, columns: Sequence[str]) -> list[Any]:
    return [int(record[name]) for name in columns]


# Columns of arrays.Windows, in units of 2^-40 but for the counts.
_WINDOW: Final = {
    "examples": "sum(n)",
    "weight": "sum(w)",
    "weight_squares": "sum(w2)",
    "expected": "sum(wp)",
    "expected_variance": "sum(w2pq)",
    "loss": "sum(wl) + sum(p_wl)",
    "loss_by_squares": "sum(w2l) + sum(p_w2l)",
    "loss_squares": "sum(w2l2) + sum(p_w2l2)",
    "positives": "sum(p_n)",
    "observed": "sum(p_w)",
    "observed_squares": "sum(p_w2)",
    "positive_loss": "sum(p_w2l1)",
}
_SERIES_COLUMNS: Final = _WINDOW | {"seen": "sum(seen)", "rejected": "sum(rejected)"}
_PLAIN: Final = frozenset({"examples", "positives", "seen", "rejected"})


def series_query(parts: Sequence[Segment], arguments: list[object]) -> str:
    """Returns the query of a series by point and maturity, and of its totals, whose start is NULL.

    Arguments: the series in an array, minutes of a point, the first minute that is not mature.
    """
    sums = ", ".join(f"({value})::float8 AS {name}" for name, value in _SERIES_COLUMNS.items())
    return f"""
        SELECT start, mature, {sums}
        FROM (SELECT *, minute / $2 * $2 AS start, known OR minute < $3 AS mature
              FROM ({rows_of(parts, arguments)}) AS rows) AS placed
        GROUP BY GROUPING SETS ((start, mature), (mature)) ORDER BY start
    """


def coming_query(parts: Sequence[Segment], arguments: list[object]) -> str:
    """Returns the query of rows whose labels are still to come; its argument are the series in an array."""
    selects = []
    for part in parts:
        arguments += [part.span.start, part.span.end]
        table = "exposure" if part.table is EXPOSURE else part.table.name
        selects.append(
            f"SELECT minute, {part.table.width} AS width, wp::float8, w2pq::float8, w2::float8, w::float8 FROM {table} "
            f"WHERE series = ANY ($1::int[]) AND minute >= ${len(arguments) - 1} AND minute < ${len(arguments)} "
            "AND NOT known AND w > 0"
        )
    return " UNION ALL ".join(selects)


_READ_BINS: Final = """
SELECT bin, sum(w)::float8 AS w, sum(wp)::float8 AS wp, sum(wy)::float8 AS wy FROM bins
WHERE series = $1 AND minute >= $2 AND minute < $3 GROUP BY bin HAVING sum(w) > 0 ORDER BY bin
"""
_READ_BIN_ERRORS: Final = """
SELECT minute, sum(abs(wp - wy))::float8 / sum(w)::float8 AS error FROM bins
WHERE series = $1 AND minute >= $2 AND minute < $3 GROUP BY minute HAVING sum(w) > 0
"""


async def read_series(
    conn: Connection, number: int, span: Span, resolution: int, mature_before: int, now: datetime
) -> Stored:
    """Returns what is stored of a series.

    Args:
        conn: with a transaction that sees one snapshot throughout.
        number: of the series.
        span: what to read.
        resolution: minutes of a point.
        mature_before: the first minute that is not mature.
        now: decides what is kept.
    """
    parts = segments(span, resolution, mature_before, now)
    mature_before = mature_rows_before(mature_before, now)
    if not parts:
        return NOTHING_STORED
    arguments: list[object] = [[number], resolution, mature_before]
    query = series_query(parts, arguments)
    records = await conn.fetch(query, *arguments)
    of = {(mature, total): _parts(records, mature, total) for mature in (True, False) for total in (True, False)}
    coming = await _read_coming(conn, number, [part for part in parts if part.span.start >= mature_before])
    # Bins have no maturity of their own: while positives of an hour are still to come, it looks overestimated.
    waits = bool(of[False, True].windows.examples.any())
    last = min(span.end, mature_before) if waits else span.end
    hours = (number, -(-span.start // 60) * 60, last // 60 * 60)
    bins = [
        Bin(record["bin"], *(record[name] / SCALE for name in ("w", "wp", "wy")))
        for record in await conn.fetch(_READ_BINS, *hours)
    ]
    errors = await conn.fetch(_READ_BIN_ERRORS, *hours) if resolution == 60 and bins else ()
    return Stored(
        of[True, False], of[False, False], of[True, True], of[False, True], coming, tuple(bins),
        {record["minute"]: record["error"] for record in errors},
    )  # fmt: skip


async def _read_coming(conn: Connection, number: int, parts: Sequence[Segment]) -> Coming:
    if not parts:
        return NOTHING_STORED.coming
    arguments: list[object] = [[number]]
    query = coming_query(parts, arguments)
    records = await conn.fetch(query, *arguments)
    if not records:
        return NOTHING_STORED.coming
    minute, width, expected, variance, squares, weight = np.array([tuple(each.values()) for each in records]).T
    places = (minute.astype(np.int64), width.astype(np.int64))
    return Coming(*places, expected / SCALE, variance / SCALE, expected / SCALE * (squares / weight))


def _parts(records: Sequence[Record], mature: bool, total: bool) -> Parts:
    """Returns the points of one maturity, or their total, which is always one."""
    chosen = [each for each in records if each["mature"] is mature and (each["start"] is None) is total]
    if not chosen:
        return no_parts(1 if total else 0)
    start = np.array([each["start"] or 0 for each in chosen], dtype=np.int64)
    columns = {
        name: np.array([each[name] for each in chosen]) / (1 if name in _PLAIN else SCALE) for name in _SERIES_COLUMNS
    }
    seen, rejected = columns.pop("seen"), columns.pop("rejected")
    return Parts(start, Windows(**columns), seen, rejected)
