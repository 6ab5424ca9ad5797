"""Exposure, positives, bins and rejections: added to. Every write reaches all widths of time in its own transaction.

Rows by 5 min and by hour are added to like those by minute, not made of these later: so they are right at any moment,
and what comes for a minute that is not kept any more still reaches the wider ones.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from modelfleetd.kit.db import Connection
from modelfleetd.stability.domain.columns import Reason
from modelfleetd.stability.domain.exact import Integers
from modelfleetd.stability.domain.retention import (
    BINS,
    EXPOSURE,
    POSITIVES,
    POSITIVES_HOUR,
    REJECTIONS,
    TOTALS_5MIN,
    TOTALS_HOUR,
    Table,
)
from modelfleetd.stability.domain.summary import BinRows, Places, RejectionRows, Statistics
from modelfleetd.stability.domain.sums import Exposure, Positives

EXPOSURE_SUMS: Final = Exposure.names()[1:]
POSITIVE_SUMS: Final = Positives.names()[1:]
# Columns of totals: the exposure, and the positives whatever their age.
EXPOSURE_COLUMNS: Final = ("seen", "n", *EXPOSURE_SUMS)
POSITIVE_COLUMNS: Final = tuple(f"p_{name}" for name in Positives.names())
REJECTED_COLUMNS: Final = ("rejected", "malformed")
_COUNTS: Final = frozenset({"seen", "n", "p_n", *REJECTED_COLUMNS})
# Rows that could have counted, had they come once and in time.
WELL_FORMED = [reason.value for reason in Reason if reason.name in {"DUPLICATE", "TOO_LATE", "NOT_SAMPLED"}]


def _add(table: Table, keys: Sequence[str], given: Sequence[str], added: Mapping[str, str]) -> str:
    """Returns a statement that adds groups to their rows, in the order of the keys: no two writers wait for each other.

    Args:
        table: to add to.
        keys: of its rows beside the minute.
        given: names of the arrays that are given, in order; the first is the minute from which on rows are written.
        added: what is added to each column, by its name.
    """
    kinds = {
        "series": "int[]",
        "minute": "int[]",
        "known": "boolean[]",
        "age": "int[]",
        "bin": "int[]",
        "reason": "int[]",
    }
    arrays = ", ".join(
        f"${index}::{kinds.get(name, 'bigint[]' if name in _COUNTS else 'text[]')}"
        for index, name in enumerate(given, start=2)
    )
    names = ("series", "minute", *keys)
    grouped = {**dict.fromkeys(names), "minute": f"minute / {table.width} * {table.width}"}
    chosen = ", ".join(f"{grouped[name] or name} AS {name}" for name in names)
    sums = ", ".join(f"sum({value}) AS {name}" for name, value in added.items())
    positions = ", ".join(str(index + 1) for index in range(len(names)))
    changes = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in added)
    return f"""
        INSERT INTO {table.name} ({", ".join((*names, *added))})
        SELECT {chosen}, {sums} FROM unnest({arrays}) AS given ({", ".join(given)})
        WHERE minute >= $1 GROUP BY {positions} ORDER BY {positions}
        ON CONFLICT ({", ".join(names)}) DO UPDATE SET {changes}
    """


def _same(names: Sequence[str]) -> dict[str, str]:
    return {name: name if name in _COUNTS else f"{name}::numeric" for name in names}


_ADD_EXPOSURE = _add(EXPOSURE, ("known",), ("series", "minute", "known", *EXPOSURE_COLUMNS), _same(EXPOSURE_COLUMNS))
_GIVEN_POSITIVES = ("series", "minute", "known", "age", "n", *POSITIVE_SUMS)
_ADD_POSITIVES, _ADD_POSITIVES_HOUR = (
    _add(table, ("known", "age"), _GIVEN_POSITIVES, _same(("n", *POSITIVE_SUMS)))
    for table in (POSITIVES, POSITIVES_HOUR)
)
_TOTALS: Final = (*EXPOSURE_COLUMNS, *POSITIVE_COLUMNS, *REJECTED_COLUMNS)
_ADD_TOTALS = {
    table: _add(table, ("known",), ("series", "minute", "known", *_TOTALS), _same(_TOTALS))
    for table in (TOTALS_5MIN, TOTALS_HOUR)
}
_ADD_BINS = _add(BINS, ("bin",), ("series", "minute", "bin", "w", "wp", "wy"), _same(("w", "wp", "wy")))
_ADD_REJECTIONS = _add(REJECTIONS, ("reason",), ("series", "minute", "reason", "n"), _same(("n",)))


async def add(
    conn: Connection, series: Integers, rows: Mapping[bool, Statistics], rejected: RejectionRows, now: datetime
) -> None:
    """Adds statistics to all that is kept of their minutes. Once a transaction, so that no two wait for each other.

    Args:
        conn: with an open transaction.
        series: the number of each model's (first index) prediction (second index).
        rows: by whether the labels of these examples are all known; else they come until the attribution window ends.
        rejected: rows that were not taken.
        now: decides what is kept.
    """
    exposure, positives, rejections = _exposure(series, rows), _positives(series, rows), _rejections(series, rejected)
    if exposure[0]:
        await conn.execute(_ADD_EXPOSURE, EXPOSURE.written_from(now), *exposure)
    if positives[0]:
        await conn.execute(_ADD_POSITIVES, POSITIVES.written_from(now), *positives)
        await conn.execute(_ADD_POSITIVES_HOUR, POSITIVES_HOUR.written_from(now), *positives)
    totals = _totals(exposure, positives, rejections)
    if totals[0]:
        for table, statement in _ADD_TOTALS.items():
            await conn.execute(statement, table.written_from(now), *totals)
    bins = functools.reduce(operator.add, (each.bins for each in rows.values()), BinRows.none())
    if len(bins):
        columns = (*_keys(series, bins.places), bins.places.age.tolist(), *_texts(bins.columns))
        await conn.execute(_ADD_BINS, BINS.written_from(now), *columns)
    if rejections[0]:
        await conn.execute(_ADD_REJECTIONS, REJECTIONS.written_from(now), *rejections)


def _exposure(series: Integers, rows: Mapping[bool, Statistics]) -> list[list[Any]]:
    """Returns the columns series, minute, known, seen, n and the sums."""
    found: list[list[Any]] = [[] for _ in range(3 + len(EXPOSURE_COLUMNS))]
    for known, each in rows.items():
        made = each.exposure
        columns = (*_keys(series, made.places), [known] * len(made), made.predictions.tolist(), made.counts.tolist())
        _extend(found, (*columns, *_texts(made.columns)))
    return found


def _positives(series: Integers, rows: Mapping[bool, Statistics]) -> list[list[Any]]:
    """Returns the columns series, minute, known, age, n and the sums."""
    found: list[list[Any]] = [[] for _ in range(4 + len(POSITIVE_COLUMNS))]
    for known, each in rows.items():
        made = each.positives
        columns = (*_keys(series, made.places), [known] * len(made), made.places.age.tolist(), made.counts.tolist())
        _extend(found, (*columns, *_texts(made.columns)))
    return found


def _rejections(series: Integers, rejected: RejectionRows) -> list[list[Any]]:
    """Returns the columns series, minute, reason and n."""
    return [*_keys(series, rejected.places), rejected.places.age.tolist(), rejected.counts.tolist()]


def _totals(exposure: list[list[Any]], positives: list[list[Any]], rejections: list[list[Any]]) -> list[list[Any]]:
    """Returns the columns of totals: the rows of all three, each with nothing of the others."""
    ours, theirs, others = len(exposure[0]), len(positives[0]), len(rejections[0])
    found = [exposure[place] + positives[place] + rejections[place] for place in range(2)]
    found.append(exposure[2] + positives[2] + [False] * others)
    found += [column + [0] * (theirs + others) for column in exposure[3:5]]
    found += [column + ["0"] * (theirs + others) for column in exposure[5:]]
    found.append([0] * ours + positives[4] + [0] * others)
    found += [["0"] * ours + column + ["0"] * others for column in positives[5:]]
    malformed = [0 if reason in WELL_FORMED else n for reason, n in zip(*rejections[2:], strict=True)]
    found += [[0] * (ours + theirs) + column for column in (rejections[3], malformed)]
    return found


def _extend(found: list[list[Any]], columns: Sequence[list[Any]]) -> None:
    for column, more in zip(found, columns, strict=True):
        column += more


def _keys(series: Integers, places: Places) -> tuple[list[int], list[int]]:
    return _series(series, places), places.minute.tolist()


def _series(series: Integers, places: Places) -> list[int]:
    numbers: list[int] = series[places.model, places.prediction].tolist()
    return numbers


def _texts(columns: Sequence[Sequence[int]]) -> list[list[str]]:
    """Sums may be longer than 64 bits; as text they become `numeric` faster than as Python's decimals."""
    return [list(map(str, column)) for column in columns]
