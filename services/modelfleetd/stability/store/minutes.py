"""Sums by minute for the evaluation: those that have changed since they were last read.

What has changed is told by PostgreSQL's own numbers of transactions: a row whose writer the snapshot before had not yet
seen has changed since. That needs nothing of the writers, and misses nothing, whatever is written for whatever minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from modelfleetd.kit.db import Connection
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.domain.sums import Exposure, Positives
from modelfleetd.stability.store.copying import copied_rows

_EXPOSURE: Final = Exposure.names()[1:]
_POSITIVES: Final = Positives.names()[1:]
_KEYS: Final = {"series": ">i4", "minute": ">i4"}
Rows = npt.NDArray[np.void]  # with the columns below as fields
EXPOSURE_COLUMNS: Final = _KEYS | dict.fromkeys(("n", *_EXPOSURE, "waiting", "waiting_wp"), ">f8")
POSITIVES_COLUMNS: Final = _KEYS | dict.fromkeys(("n", *_POSITIVES), ">f8")


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


def _read(table: str, sums: str) -> str:
    # A minute is summed up anew as a whole when any of its rows has changed.
    return f"""
        WITH changed AS (
            SELECT DISTINCT series, minute FROM {table}
            WHERE minute >= $2 AND minute < $3 AND series = ANY ($1::int[])
              AND (minute >= $4 OR age(xmin) <= age((($5::bigint) % 4294967296)::text::xid))
        )
        SELECT series, minute, sum(n)::float8, {sums} FROM {table} JOIN changed USING (series, minute)
        GROUP BY series, minute
    """


def _sums(names: Sequence[str]) -> str:
    return ", ".join(f"sum({name})::float8" for name in names)


_WAITING = """
coalesce(sum(n) FILTER (WHERE NOT known), 0)::float8, coalesce(sum(wp) FILTER (WHERE NOT known), 0)::float8
"""
_READ_EXPOSURE = _read("exposure", f"{_sums(_EXPOSURE)}, {_WAITING}")
_READ_POSITIVES = _read("positives", _sums(_POSITIVES))
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


async def read_changed(
    conn: Connection, series: Sequence[int], span: Span, new_from: int, since: int | None
) -> tuple[Rows, Rows]:
    """Returns the exposure and the positives of minutes that are new or have changed; sums in units of 2^-40.

    Args:
        conn: with a transaction that sees one snapshot throughout.
        series: their numbers.
        span: what to read.
        new_from: from this minute on everything is read.
        since: before it, what transactions from this one on have written; None: nothing.
    """
    key = (list(series), span.start if since is not None else new_from, span.end, new_from, since)
    exposure = await copied_rows(conn, _READ_EXPOSURE, EXPOSURE_COLUMNS, *key)
    return exposure, await copied_rows(conn, _READ_POSITIVES, POSITIVES_COLUMNS, *key)
