"""What was known at moments of the past, read once and grouped by the first moment that knew it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelfleetd.kit.db import Connection, Record
from modelfleetd.stability.domain.columns import Reason
from modelfleetd.stability.domain.exact import Integers
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.domain.replay import AGE_ENDS, Past, Rejections, Rows, Timing
from modelfleetd.stability.domain.retention import EXPOSURE, TOTALS_5MIN, TOTALS_HOUR, Table
from modelfleetd.stability.store.statistics import EXPOSURE_SUMS, POSITIVE_COLUMNS, POSITIVE_SUMS

# Rows that could have counted, had they come once and in time.
_WELL_FORMED: Final = [reason.value for reason in Reason if reason.name in {"DUPLICATE", "TOO_LATE", "NOT_SAMPLED"}]
_IS_MALFORMED: Final = f"reason NOT IN ({', '.join(map(str, _WELL_FORMED))})"


def _read(table: str, width: int, columns: Sequence[str], label: str) -> str:
    """Reads rows by the index of the first moment that knows them: `width_bucket` counts the moments before."""
    count, *sums = columns
    totals = ", ".join(f"sum({name})::text AS {name}" for name in sums)
    last = f"minute + {width - 1}"
    return f"""
        SELECT series, width_bucket({last} + CASE WHEN known THEN 0 ELSE {label} END, $4::int[]) AS seen,
               width_bucket({last} + CASE WHEN known THEN 0 ELSE completion END, $4::int[]) AS matured,
               width_bucket({last} + completion, $4::int[]) AS settled,
               min(minute) AS first, sum({count})::text AS {count}, {totals}
        FROM unnest($1::int[], $2::int[], $3::int[]) AS given (series, longest, completion)
        JOIN {table} USING (series)
        WHERE series = ANY ($1::int[]) AND minute >= $5 AND minute < $6 AND {count} > 0
        GROUP BY 1, 2, 3, 4
    """


_EXPOSURE: Final = ("n", *EXPOSURE_SUMS)
_POSITIVES: Final = ("n", *POSITIVE_SUMS)
_AGE: Final = f"least(longest, (ARRAY{list(AGE_ENDS)})[age + 1])"
# Wider rows do not know the ages of their labels: these count once all of them are there.
_READ: Final = {
    EXPOSURE: (_read("exposure", 1, _EXPOSURE, "0"), _read("positives", 1, _POSITIVES, _AGE)),
    **{
        table: (
            _read(table.name, table.width, _EXPOSURE, "0"),
            _read(table.name, table.width, POSITIVE_COLUMNS, "completion"),
        )
        for table in (TOTALS_5MIN, TOTALS_HOUR)
    },
}
_READ_REJECTIONS: Final = f"""
SELECT series, width_bucket(minute, $2::int[]) AS seen, sum(n)::bigint AS rejected,
       coalesce(sum(n) FILTER (WHERE {_IS_MALFORMED}), 0)::bigint AS malformed
FROM rejections WHERE series = ANY ($1::int[]) AND minute >= $3 AND minute < $4 GROUP BY 1, 2
"""
_READ_MALFORMED: Final = f"""
SELECT series, sum(n)::bigint AS n FROM rejections
WHERE series = ANY ($1::int[]) AND minute >= $2 AND minute < $3 AND {_IS_MALFORMED} GROUP BY 1
"""


async def read_pasts(
    conn: Connection, timings: Mapping[int, Timing], table: Table, start: int, moments: Sequence[int]
) -> dict[int, Past]:
    """Returns what was known of some series at each moment.

    Args:
        conn: with a transaction that sees one snapshot throughout.
        timings: for each series how long its labels take.
        table: whose rows are read: those by minute, or wider ones.
        start: the minute from which events count; the first of a row.
        moments: minutes, at whose beginnings is asked; ascending.
    """
    given = ([*timings], [each.window for each in timings.values()], [each.completion for each in timings.values()])
    key = (*given, list(moments), start, moments[-1])
    read_exposure, read_positives = _READ[table]
    exposure = _by_series(await conn.fetch(read_exposure, *key))
    positives = _by_series(await conn.fetch(read_positives, *key))
    rejections = _by_series(await conn.fetch(_READ_REJECTIONS, given[0], *key[3:]))
    columns = _POSITIVES if table is EXPOSURE else POSITIVE_COLUMNS
    return {
        number: Past(
            len(moments),
            _rows(exposure[number], _EXPOSURE),
            _rows(positives[number], columns),
            Rejections(*(_column(rejections[number], name) for name in ("seen", "rejected", "malformed"))),
        )
        for number in timings
    }


async def read_malformed(conn: Connection, series: Sequence[int], span: Span) -> dict[int, int]:
    """Returns how many rows of some series were refused in a span because they cannot be right; not where none was."""
    records = await conn.fetch(_READ_MALFORMED, list(series), span.start, span.end)
    return {record["series"]: record["n"] for record in records}


def _by_series(records: Sequence[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        found[record["series"]].append(record)
    return found


def _rows(records: Sequence[Record], columns: Sequence[str]) -> Rows:
    seen, matured, settled, first = (_column(records, name) for name in ("seen", "matured", "settled", "first"))
    values: Any = np.zeros((len(records), len(columns)), dtype=object)
    for row, record in enumerate(records):
        values[row] = [int(record[name]) for name in columns]
    return Rows(seen, matured, settled, first, values)


def _column(records: Sequence[Record], name: str) -> Integers:
    return np.array([record[name] for record in records], dtype=np.int64)
