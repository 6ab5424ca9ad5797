"""Rows of statistics as weeks of traffic leave them, put into the tables by COPY."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.delays import BUCKETS
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.retention import (
    BINS,
    DAY,
    EXPOSURE,
    POSITIVES,
    POSITIVES_HOUR,
    TABLES,
    TOTALS_5MIN,
    TOTALS_HOUR,
    Table,
)

MODEL_SPEC: Final = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
SERIES: Final = ("modelTypes/ctr/models/new", "click")
_PARTITIONS: Final = """
SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = ANY ($1::text[]::regclass[])
"""
# Series that one statement copies: it has to end in time.
_AT_ONCE: Final = 2
# Of each minute 10 examples of p = 0.1, of which one is a positive whose label came at its event.
_P: Final = 0.1
_L0: Final = float(-np.log1p(-_P))
_L1: Final = float(-np.log(_P))


async def fill(
    database: Database,
    now: datetime,
    *,
    days: int,
    series: int,
    ages: int = 1,
    examples: int = 10,
    days_by_minute: int | None = None,
) -> None:
    """Fills all tables with the days before a moment, as far as each is kept; labels come later than examples.

    Args:
        database: its partitions are there.
        now: the last row is of the minute before it.
        days: how many.
        series: how many; the first is SERIES.
        ages: buckets of age that the positives of a minute, or of an hour, are spread over.
        examples: of each minute; a tenth of them positives.
        days_by_minute: fewer days of the rows by minute, which are most of all rows, where nothing reads the others.
    """
    await database.execute(
        "INSERT INTO series (model, prediction) SELECT CASE n WHEN 1 THEN $1 ELSE $1 || n END, $2 "
        "FROM generate_series(1, $3::int) AS n",
        *SERIES,
        series,
    )
    last = minute_of(now)
    for table in (EXPOSURE, POSITIVES, TOTALS_5MIN, TOTALS_HOUR, POSITIVES_HOUR, BINS):
        kept = days if days_by_minute is None or table not in (EXPOSURE, POSITIVES) else min(days, days_by_minute)
        first = max(last - kept * DAY, table.written_from(now)) // table.width * table.width
        minutes = np.arange(first, last, table.width)
        weight = np.minimum(minutes + table.width, last) - np.maximum(minutes, last - days * DAY)
        parts = {POSITIVES: ages, POSITIVES_HOUR: ages, BINS: 12}.get(table, 1)
        part = np.tile(np.arange(parts), len(minutes))
        columns = {"series": np.ones_like(part), "minute": np.repeat(minutes, parts)}
        columns |= _sums(table, np.repeat(weight, parts) * examples, part, parts)
        await _copy(database, table.name, columns, series)
    for record in await database.fetch(_PARTITIONS, [table.name for table in TABLES]):
        await database.execute(f"ANALYZE {record['relname']}")


def _sums(
    table: Table, examples: npt.NDArray[np.int64], part: npt.NDArray[np.int64], parts: int
) -> Mapping[str, npt.NDArray[Any]]:
    if table is BINS:
        addends = {name: _scaled(share * examples) for name, share in (("w", 1 / 12), ("wp", _P / 12), ("wy", _P / 12))}
        return {"bin": part + 4, **addends}
    known = {"known": np.zeros(len(examples), dtype=np.bool_)}
    # No label comes in minutes that are not there: 1 of 10 is a positive, in one of the parts.
    ones = np.maximum(examples // 10 // parts, 1)
    positives = {"n": ones, **_positive(ones)}
    if table in (POSITIVES, POSITIVES_HOUR):
        return known | {"age": part % BUCKETS} | positives
    exposure = {
        "seen": examples,
        "n": examples,
        "w": _scaled(examples),
        "w2": _scaled(examples),
        "wp": _scaled(_P * examples),
        "w2pq": _scaled(_P * (1 - _P) * examples),
        "wl": _scaled(_L0 * examples),
        "w2l": _scaled(_L0 * examples),
        "w2l2": _scaled(_L0 * _L0 * examples),
    }
    if table is EXPOSURE:
        return known | exposure
    nothing = np.zeros(len(examples), dtype=np.int64)
    return known | exposure | {"rejected": nothing, "malformed": nothing} | {f"p_{k}": v for k, v in positives.items()}


def _positive(ones: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    change = _L1 - _L0
    return {
        "w": _scaled(ones),
        "w2": _scaled(ones),
        "w2l1": _scaled(_L1 * ones),
        "wl": _scaled(change * ones),
        "w2l": _scaled(change * ones),
        "w2l2": _scaled((_L1 * _L1 - _L0 * _L0) * ones),
    }


def _scaled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns sums as they are stored."""
    return np.rint(values * float(SCALE)).astype(np.int64)


async def _copy(database: Database, table: str, columns: Mapping[str, npt.NDArray[Any]], series: int) -> None:
    """Copies the rows of the first series, and these for each of the others."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    source = io.BytesIO("".join(",".join(map(str, row)) + "\n" for row in rows).encode())
    names = list(columns)
    async with database.transaction() as conn:
        copying: Any = conn
        await copying.copy_to_table(table, source=source, columns=names, format="csv")
    others = ", ".join(["number", *names[1:]])
    for first in range(2, series + 1, _AT_ONCE):
        await database.execute(
            f"INSERT INTO {table} ({', '.join(names)}) SELECT {others} FROM {table}, "
            "generate_series($1::int, $2::int) AS number WHERE series = 1",
            first,
            min(first + _AT_ONCE - 1, series),
        )
