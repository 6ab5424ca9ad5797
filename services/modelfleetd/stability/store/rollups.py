"""Statistics, read: a span is summed again from the widest rows that make it up, in one statement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from modelfleetd.kit.db import Connection, Record
from modelfleetd.stability.domain.points import Evidence, Span
from modelfleetd.stability.domain.retention import EXPOSURE
from modelfleetd.stability.domain.segments import Segment, mature_rows_before, segments
from modelfleetd.stability.domain.sums import Exposure, Positives, Sums
from modelfleetd.stability.store.statistics import EXPOSURE_COLUMNS, EXPOSURE_SUMS, POSITIVE_COLUMNS, POSITIVE_SUMS

_COLUMNS: Final = (*EXPOSURE_COLUMNS, *POSITIVE_COLUMNS, "rejected")
_KEYS: Final = "series, minute, known"


def _row(table: str, given: Mapping[str, str], key: str = _KEYS) -> str:
    columns = ", ".join(f"{given.get(name, '0')} AS {name}" for name in _COLUMNS)
    return f"SELECT {key}, {columns} FROM {table}"


_BY_MINUTE: Final = (
    _row("exposure", {name: name for name in EXPOSURE_COLUMNS}),
    _row("positives", dict(zip(POSITIVE_COLUMNS, ("n", *POSITIVE_SUMS), strict=True))),
    _row("rejections", {"rejected": "n"}, "series, minute, false AS known"),
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
    seen, rejected = int(record["seen"]), int(record["rejected"])
    if record["mature"]:
        return Evidence(matured=sums, rejected=rejected, seen=seen)
    return Evidence(waiting=sums, first_waiting=record["first"], rejected=rejected, seen=seen)


def _numbers(record: Record, columns: Sequence[str]) -> list[Any]:
    return [int(record[name]) for name in columns]
