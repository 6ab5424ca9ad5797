"""Histories: matured sums by 5 minutes, of a model and of its whole route. One query each, whatever their length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from modelfleetd.kit.db import Database, Record
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.history import COLUMNS, STEP, History
from modelfleetd.stability.domain.points import Span

# What each of COLUMNS is: what positives change is added to what holds as if all were negative.
_SUMS: Final = dict(
    zip(
        COLUMNS,
        (
            *("n", "w", "w2", "wp", "w2pq", "wl + p_wl", "w2l + p_w2l", "w2l2 + p_w2l2"),
            *("p_w", "p_w2", "p_w2l1", "seen"),
        ),
        strict=True,
    )
)
# Counts are no scaled integers.
_SCALES: Final = {name: 1.0 if name in ("examples", "seen") else SCALE for name in COLUMNS}
# Columns come as one array each: what is read is long and narrow.
_READ: Final = f"""
SELECT prediction, bool_or(waits) AS waits, array_agg(minute) AS minutes,
       {", ".join(f"array_agg({name}) AS {name}" for name in COLUMNS)}
FROM (
    SELECT prediction, minute, bool_or(NOT known) AS waits,
           {", ".join(f"sum({sum_})::float8 AS {name}" for name, sum_ in _SUMS.items())}
    FROM unnest($2::text[], $3::int[]) AS wanted (prediction, mature_before)
    JOIN series USING (prediction) JOIN totals_5min ON totals_5min.series = series.id
    WHERE model = $1 AND minute >= $4 AND minute < $5 AND (known OR minute + {STEP} <= mature_before)
    GROUP BY 1, 2
) AS stepwise GROUP BY 1
"""
_READ_ROUTE: Final = """
SELECT prediction, array_agg(minute) AS minutes, array_agg(seen) AS seen
FROM (
    SELECT prediction, minute, sum(seen)::float8 AS seen
    FROM series JOIN totals_5min ON totals_5min.series = series.id
    WHERE starts_with(model, $1) AND prediction = ANY ($2::text[]) AND minute >= $3 AND minute < $4 GROUP BY 1, 2
) AS stepwise GROUP BY 1
"""


async def read_histories(
    database: Database, model: str, mature_before: Mapping[str, int], span: Span
) -> dict[str, tuple[History, bool]]:
    """Returns the histories of a model's predictions, and whether their labels come later than they do.

    Args:
        database: stability's.
        model: whose.
        mature_before: for each prediction the first minute that is not mature.
        span: what to read, in whole steps.
    """
    arguments = (model, list(mature_before), list(mature_before.values()), span.start, span.end)
    records = await database.fetch(_READ, *arguments)
    return {record["prediction"]: (_history(record, COLUMNS, span), record["waits"]) for record in records}


async def read_routes(
    database: Database, model_type: str, predictions: Sequence[str], span: Span
) -> dict[str, History]:
    """Returns what all models of a type predicted together, by prediction: of its sums only `seen`."""
    records = await database.fetch(_READ_ROUTE, f"{model_type}/models/", list(predictions), span.start, span.end)
    return {record["prediction"]: _history(record, ("seen",), span) for record in records}


def _history(record: Record, names: Sequence[str], span: Span) -> History:
    """Returns the steps of a span, with zeros where nothing is."""
    columns = np.zeros((len(COLUMNS), (span.end - span.start) // STEP))
    places = (np.array(record["minutes"]) - span.start) // STEP
    for name in names:
        columns[COLUMNS.index(name), places] = np.array(record[name]) / _SCALES[name]
    return History(span.start, STEP, columns)
