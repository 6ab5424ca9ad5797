"""Sums by minute for the evaluation: those that have changed since they were last read.

What has changed is told by PostgreSQL's own numbers of transactions: a row whose writer the snapshot before had not yet
seen has changed since. That needs nothing of the writers, and misses nothing, whatever is written for whatever minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from modelfleetd.kit.db import Connection
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.store.copying import copied_rows
from modelfleetd.stability.store.statistics import EXPOSURE_COLUMNS, POSITIVE_COLUMNS

Rows = npt.NDArray[np.void]  # with `series`, `minute` and some of SUMS as fields

_EXPOSED: Final = (*EXPOSURE_COLUMNS, "waiting", "waiting_wp")
# Counts, and sums in units of 2^-40: exposure, what of it waits for labels, and positives whatever their age.
SUMS: Final = (*_EXPOSED, *POSITIVE_COLUMNS)


@dataclass(frozen=True, slots=True)
class Seen:
    """How far the database was read: all that earlier transactions have written."""

    transaction: int
    start_time: datetime  # of the server: another one may have other transactions under the same numbers

    def is_followed_by(self, other: Seen) -> bool:
        """Whether the other was seen later, of the same server."""
        return self.start_time == other.start_time and self.transaction <= other.transaction


_SEEN = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS transaction, pg_postmaster_start_time() AS start_time
"""


def _columns(sums: Mapping[str, str]) -> dict[str, str]:
    return {"series": ">i4", "minute": ">i4"} | dict.fromkeys(sums, ">f8")


def _read(table: str, sums: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Returns a query of all minutes, and the types of its columns."""
    query = f"""
        SELECT series, minute, {", ".join(sums.values())} FROM {table}
        WHERE minute >= $2 AND minute < $3 AND series = ANY ($1::int[]) GROUP BY series, minute
    """
    return query, _columns(sums)


def _read_changed(table: str, sums: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Returns a query of what has changed, and the types of its columns."""
    # What any row of has changed is summed up anew as a whole.
    query = f"""
        WITH changed AS MATERIALIZED (
            SELECT DISTINCT series, minute FROM {table}
            WHERE minute >= $2 AND minute < $3 AND series = ANY ($1::int[])
              AND (minute >= $4 OR age(xmin) <= age((($5::bigint) % 4294967296)::text::xid))
        )
        SELECT series, minute, {", ".join(sums.values())} FROM {table} JOIN changed USING (series, minute)
        WHERE minute >= $2 AND minute < $3 GROUP BY series, minute
    """
    return query, _columns(sums)


_EXPOSURE: Final = {name: f"sum({name})::float8" for name in EXPOSURE_COLUMNS} | {
    "waiting": "coalesce(sum(n) FILTER (WHERE NOT known), 0)::float8",
    "waiting_wp": "coalesce(sum(wp) FILTER (WHERE NOT known), 0)::float8",
}
_BY_MINUTE: Final = (
    _read("exposure", _EXPOSURE),
    _read("positives", {name: f"sum({name.removeprefix('p_')})::float8" for name in POSITIVE_COLUMNS}),
)
_BY_FIVE: Final = _read_changed("totals_5min", _EXPOSURE | {name: f"sum({name})::float8" for name in POSITIVE_COLUMNS})
_FIND_SERIES = """
SELECT id, series.model, series.prediction FROM series
JOIN unnest($1::text[], $2::text[]) AS given (model, prediction) USING (model, prediction)
"""


async def seen_now(conn: Connection) -> Seen:
    """Returns how far a transaction that sees one snapshot throughout reads."""
    row = await conn.fetchrow(_SEEN)
    assert row is not None
    return Seen(row["transaction"], row["start_time"])


async def find_series(conn: Connection, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Returns the numbers of those series, by model and prediction, of which anything was ever written."""
    models, predictions = [model for model, _ in wanted], [prediction for _, prediction in wanted]
    rows = await conn.fetch(_FIND_SERIES, models, predictions)
    return {(row["model"], row["prediction"]): row["id"] for row in rows}


async def read_changed(conn: Connection, series: Sequence[int], span: Span, new_from: int, since: int | None) -> Rows:
    """Returns the rows by 5 minutes that are new or have changed; `minute` is the first of each.

    Args:
        conn: with a transaction that sees one snapshot throughout.
        series: their numbers.
        span: what to read.
        new_from: from this minute on everything is read.
        since: before it, what transactions from this one on have written; None: nothing.
    """
    query, columns = _BY_FIVE
    start = span.start if since is not None else max(span.start, new_from)
    return await copied_rows(conn, query, columns, list(series), start, span.end, new_from, since)


async def read_minutes(conn: Connection, series: Sequence[int], span: Span) -> list[Rows]:
    """Returns the exposure and the positives of all minutes of a span."""
    key = (list(series), span.start, span.end)
    return [await copied_rows(conn, query, columns, *key) for query, columns in _BY_MINUTE]
