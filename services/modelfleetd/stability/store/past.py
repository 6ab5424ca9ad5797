"""What was known at moments of the past, read once and grouped by the first moment that knew it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from modelfleetd.kit.db import Connection, Record
from modelfleetd.stability.domain.exact import Integers
from modelfleetd.stability.domain.replay import AGE_ENDS, Past, Rejections, Rows, Timing
from modelfleetd.stability.domain.sums import Exposure, Positives
from modelfleetd.stability.store.statistics import WELL_FORMED

_EXPOSURE: Final = Exposure.names()[1:]
_POSITIVES: Final = Positives.names()[1:]


def _read(table: str, sums: Sequence[str], label: str) -> str:
    """Reads rows by the index of the first moment that knows them: `width_bucket` counts the moments before."""
    totals = ", ".join(f"sum({name})::text AS {name}" for name in sums)
    return f"""
        SELECT series, width_bucket(minute + CASE WHEN known THEN 0 ELSE {label} END, $4::int[]) AS seen,
               width_bucket(minute + CASE WHEN known THEN 0 ELSE completion END, $4::int[]) AS matured,
               width_bucket(minute + completion, $4::int[]) AS settled,
               min(minute) AS first, sum(n)::bigint AS n, {totals}
        FROM unnest($1::int[], $2::int[], $3::int[]) AS given (series, longest, completion)
        JOIN {table} USING (series)
        WHERE series = ANY ($1::int[]) AND minute >= $5 AND minute < $6
        GROUP BY 1, 2, 3, 4
    """


_READ_EXPOSURE: Final = _read("exposure", _EXPOSURE, "0")
_READ_POSITIVES: Final = _read("positives", _POSITIVES, "least(longest, ($7::int[])[age + 1])")
_READ_REJECTIONS: Final = """
SELECT series, width_bucket(minute, $2::int[]) AS seen, sum(n)::bigint AS rejected,
       coalesce(sum(n) FILTER (WHERE reason <> ALL ($5::int[])), 0)::bigint AS malformed
FROM rejections WHERE series = ANY ($1::int[]) AND minute >= $3 AND minute < $4 GROUP BY 1, 2
"""


async def read_pasts(
    conn: Connection, timings: Mapping[int, Timing], start: int, moments: Sequence[int]
) -> dict[int, Past]:
    """Returns what was known of some series at each moment.

    Args:
        conn: with a transaction that sees one snapshot throughout.
        timings: for each series how long its labels take.
        start: the minute from which events count.
        moments: minutes, at whose beginnings is asked; ascending.
    """
    given = ([*timings], [each.window for each in timings.values()], [each.completion for each in timings.values()])
    key = (*given, list(moments), start, moments[-1])
    exposure = _by_series(await conn.fetch(_READ_EXPOSURE, *key))
    positives = _by_series(await conn.fetch(_READ_POSITIVES, *key, list(AGE_ENDS)))
    rejections = _by_series(await conn.fetch(_READ_REJECTIONS, given[0], *key[3:], WELL_FORMED))
    return {
        number: Past(
            len(moments),
            _rows(exposure[number], _EXPOSURE),
            _rows(positives[number], _POSITIVES),
            Rejections(*(_column(rejections[number], name) for name in ("seen", "rejected", "malformed"))),
        )
        for number in timings
    }


def _by_series(records: Sequence[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        found[record["series"]].append(record)
    return found


def _rows(records: Sequence[Record], sums: Sequence[str]) -> Rows:
    seen, matured, settled, first = (_column(records, name) for name in ("seen", "matured", "settled", "first"))
    values = np.zeros((len(records), 1 + len(sums)), dtype=object)
    for row, record in enumerate(records):
        values[row] = [record["n"], *(int(record[name]) for name in sums)]
    return Rows(seen, matured, settled, first, values)


def _column(records: Sequence[Record], name: str) -> Integers:
    return np.array([record[name] for record in records], dtype=np.int64)
