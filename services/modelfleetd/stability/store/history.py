"""Histories: matured sums by 5 minutes, of some series and of whole routes. One query each, whatever their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from modelfleetd.kit.db import Connection, Record
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.history import COLUMNS, STEP, History
from modelfleetd.stability.domain.points import Span

# In the order of COLUMNS. Columns come as one array a series: what is read is long and narrow.
_SUMS: Final = (
    *("n", "w", "w2", "wp", "w2pq", "wl", "w2l", "w2l2", "p_w", "p_w2", "p_w2l1"),
    "seen",
)
_READ: Final = f"""
SELECT series, array_agg(step) AS steps, {", ".join(f"array_agg({name}) AS {name}" for name in _SUMS)}
FROM (
    SELECT series, step, {", ".join(f"sum({name})::float8 AS {name}" for name in _SUMS)}
    FROM (
        SELECT series, minute / 5 * 5 AS step, n, w, w2, wp, w2pq, wl, w2l, w2l2, 0 AS p_w, 0 AS p_w2, 0 AS p_w2l1,
               n AS seen
        FROM unnest($1::int[], $2::int[]) AS wanted (series, mature_before) JOIN exposure USING (series)
        WHERE minute >= $3 AND minute < $4 AND (known OR minute < mature_before)
        UNION ALL
        SELECT series, minute / 5 * 5, 0, 0, 0, 0, 0, wl, w2l, w2l2, w, w2, w2l1, 0
        FROM unnest($1::int[], $2::int[]) AS wanted (series, mature_before) JOIN positives USING (series)
        WHERE minute >= $3 AND minute < $4 AND (known OR minute < mature_before)
    ) AS rows GROUP BY 1, 2
) AS stepwise GROUP BY 1
"""
_READ_ROUTE: Final = """
SELECT prediction, array_agg(step) AS steps, array_agg(seen) AS seen
FROM (
    SELECT prediction, minute / 5 * 5 AS step, sum(n)::float8 AS seen
    FROM series JOIN exposure ON series.id = exposure.series
    WHERE starts_with(model, $1) AND prediction = ANY ($2::text[]) AND minute >= $3 AND minute < $4 GROUP BY 1, 2
) AS stepwise GROUP BY 1
"""
# Counts are no scaled integers.
_SCALES: Final = {
    name: 1.0 if column in ("examples", "seen") else SCALE for name, column in zip(_SUMS, COLUMNS, strict=True)
}


async def read_histories(conn: Connection, series: Mapping[int, int], span: Span) -> dict[int, History]:
    """Returns the histories of series by their numbers; `series` gives for each the first minute that is not mature."""
    records = await conn.fetch(_READ, list(series), list(series.values()), span.start, span.end)
    return {record["series"]: _history(record, _SUMS, span) for record in records}


async def read_routes(conn: Connection, model_type: str, predictions: Sequence[str], span: Span) -> dict[str, History]:
    """Returns what all models of a type predicted together, by prediction: of its sums only `seen`."""
    records = await conn.fetch(_READ_ROUTE, f"{model_type}/models/", list(predictions), span.start, span.end)
    return {record["prediction"]: _history(record, ("seen",), span) for record in records}


def _history(record: Record, names: Sequence[str], span: Span) -> History:
    """Returns whole steps of a span, with zeros where nothing is."""
    start = -(-span.start // STEP) * STEP
    columns = np.zeros((len(COLUMNS), max(0, span.end - start) // STEP))
    places = (np.array(record["steps"]) - start) // STEP
    whole = (places >= 0) & (places < columns.shape[1])
    for name in names:
        columns[_SUMS.index(name), places[whole]] = np.array(record[name])[whole] / _SCALES[name]
    return History(start, STEP, columns)
