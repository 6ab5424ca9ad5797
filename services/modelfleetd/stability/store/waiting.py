"""Predictions that wait for their labels, and labels that came before their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelfleetd.kit.db import Connection, Record
from modelfleetd.stability.domain.columns import Bytes, Keys, Labels, Predictions
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.store.copying import copy_rows

# Writers of one model type take turns: else a prediction and its label, written at the same moment, would each look for
# the other, not see it, and wait for it for ever.
_TAKE_TURN = """
SELECT pg_advisory_xact_lock(hashtextextended('stability ' || $1, 0)), set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
       set_config('plan_cache_mode', 'force_custom_plan', true)
"""

# As text: the driver takes several times as long to write a list of numbers as PostgreSQL takes to read one.
_ARRAYS = "$1::text::int[], $2::text::bigint[], $3::text::bigint[]"
_GIVEN = f"unnest({_ARRAYS}) WITH ORDINALITY AS given (series, high, low, place)"
_SAME = "w.high = given.high AND w.low = given.low AND w.series = given.series"
# LATERAL with OFFSET leaves one way only: a look into the index for each key. PostgreSQL believes that next to nothing
# is on the shelves that are named, and would compare all of it with every key.
_KNOWN_PREDICTIONS = f"""
SELECT array_agg(place - 1) FROM {_GIVEN}
CROSS JOIN LATERAL (SELECT FROM waiting_predictions w WHERE {_SAME} AND w.shelf = ANY ($4::int[]) OFFSET 0) AS known
"""
_FIND_PREDICTIONS = f"""
SELECT array_agg(place - 1) AS place, array_agg(shelf) AS shelf, array_agg(w.ctid::text) AS row,
       array_agg(event) AS event, array_agg(value) AS value, array_agg(is_logit) AS is_logit,
       array_agg(weight) AS weight, array_agg(label) AS label
FROM {_GIVEN} JOIN waiting_predictions w ON {_SAME}
"""
# Mostly labels come after their predictions: where none waits, no key is sent.
_ANY_LABELS = "SELECT EXISTS (SELECT FROM waiting_labels)"
_FIND_LABELS = f"""
SELECT array_agg(place - 1) AS place, array_agg(shelf) AS shelf, array_agg(w.ctid::text) AS row,
       array_agg(time) AS time, array_agg(label) AS label
FROM {_GIVEN} JOIN waiting_labels w ON {_SAME}
"""
# By where the rows lie, which cannot change since they were found: whoever could move them waits for this transaction.
# A shelf at a time, so that its pages are gone through in their order, and no other shelf is looked at.
_MARK = "UPDATE {table} SET label = $1 WHERE shelf = $2 AND ctid = ANY ($3::text::tid[])"
_MARK_PREDICTIONS = _MARK.format(table="waiting_predictions")
_MARK_LABELS = _MARK.format(table="waiting_labels")


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows lie, for the rest of the transaction; arrays of one length."""

    shelf: Integers
    row: npt.NDArray[Any]  # as PostgreSQL calls them

    def pick(self, chosen: npt.NDArray[Any]) -> Rows:
        """Returns some of them."""
        return Rows(self.shelf[chosen], self.row[chosen])


@dataclass(frozen=True, slots=True)
class FoundPredictions:
    """Waiting predictions of some keys; arrays of one length."""

    place: Integers  # position of the key
    at: Rows
    event: Integers
    value: Floats
    is_logit: npt.NDArray[np.bool_]
    weight: Floats
    label: Integers  # -1: none yet


@dataclass(frozen=True, slots=True)
class FoundLabels:
    """Waiting labels of some keys; arrays of one length."""

    place: Integers  # position of the key
    at: Rows
    time: Integers
    label: Integers


_NONE = np.empty(0, dtype=np.int64)
_NO_LABELS = FoundLabels(_NONE, Rows(_NONE, np.empty(0, dtype=np.object_)), _NONE, _NONE)


async def take_turn(conn: Connection, model_type: str) -> None:
    """Waits until no other transaction joins rows of this model type; until the end of the transaction.

    Has keys looked up in indexes, too: PostgreSQL has no statistics of a shelf that is a minute old, and would rather
    read all of it, at a cost that grows with what waits. For the same reason a plan that was made for an empty shelf is
    not used again.
    """
    await conn.execute(_TAKE_TURN, model_type)


async def known_predictions(conn: Connection, series: Integers, keys: Keys, shelves: Sequence[int]) -> Integers:
    """Returns the positions of those keys that have a prediction on one of the shelves."""
    order = _order(keys)
    found = await conn.fetchval(_KNOWN_PREDICTIONS, *_arrays(series, keys, order), shelves)
    return order[np.array(found or [], dtype=np.int64)]


async def find_predictions(conn: Connection, series: Integers, keys: Keys) -> FoundPredictions:
    """Returns the predictions of some keys, on whatever shelf."""
    order = _order(keys)
    record = await conn.fetchrow(_FIND_PREDICTIONS, *_arrays(series, keys, order))
    assert record is not None
    place, first = _first_of_each(record["place"], order)
    return FoundPredictions(
        place,
        _rows(record, first),
        _column(record["event"], np.int64, first),
        _column(record["value"], np.float64, first),
        _column(record["is_logit"], np.bool_, first),
        _column(record["weight"], np.float64, first),
        _column(record["label"], np.int64, first),
    )


async def find_labels(conn: Connection, series: Integers, keys: Keys) -> FoundLabels:
    """Returns the labels that came before the predictions of some keys, on whatever shelf."""
    if not len(keys) or not await conn.fetchval(_ANY_LABELS):
        return _NO_LABELS
    order = _order(keys)
    record = await conn.fetchrow(_FIND_LABELS, *_arrays(series, keys, order))
    assert record is not None
    place, first = _first_of_each(record["place"], order)
    return FoundLabels(
        place,
        _rows(record, first),
        _column(record["time"], np.int64, first),
        _column(record["label"], np.int64, first),
    )


async def keep_predictions(
    conn: Connection, series: Integers, shelf: Integers, rows: Predictions, label: Integers
) -> None:
    """Has predictions wait; `label` is -1 where there is none yet."""
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    order = _order(rows)
    await copy_rows(
        conn,
        "waiting_predictions",
        {
            "shelf": (">i4", shelf[order]),
            "series": (">i4", series[order]),
            "high": (">i8", rows.high[order]),
            "low": (">i8", rows.low[order]),
            "event": (">i8", rows.event[order]),
            "value": (">f8", rows.value[order]),
            "is_logit": ("?", np.full(len(rows), rows.is_logit)),
            "weight": (">f8", weight[order]),
            "label": (">i2", label[order]),
        },
    )


async def keep_labels(conn: Connection, series: Integers, shelf: Integers, rows: Labels) -> None:
    """Has labels wait for their predictions."""
    await copy_rows(
        conn,
        "waiting_labels",
        {
            "shelf": (">i4", shelf),
            "series": (">i4", series),
            "high": (">i8", rows.high),
            "low": (">i8", rows.low),
            "time": (">i8", rows.time),
            "label": (">i2", rows.label),
        },
    )


async def mark_predictions(conn: Connection, at: Rows, label: Bytes) -> None:
    """Gives waiting predictions their labels."""
    await _mark(conn, _MARK_PREDICTIONS, at, label)


async def mark_labels(conn: Connection, at: Rows, label: Bytes) -> None:
    """Replaces waiting labels."""
    await _mark(conn, _MARK_LABELS, at, label)


async def _mark(conn: Connection, statement: str, at: Rows, label: Bytes) -> None:
    for value in np.unique(label).tolist():
        of_value = at.pick(label == value)
        for shelf in np.unique(of_value.shelf).tolist():
            rows = of_value.row[of_value.shelf == shelf].tolist()
            await conn.execute(statement, value, shelf, '{"' + '","'.join(rows) + '"}')


def _rows(record: Record, first: npt.NDArray[np.intp]) -> Rows:
    return Rows(_column(record["shelf"], np.int64, first), _column(record["row"], np.object_, first))


def _order(keys: Keys) -> Integers:
    """Returns the order of the index: neighbours are looked up, and put in, on the same of its pages."""
    return np.argsort(keys.high)


def _arrays(series: Integers, keys: Keys, order: Integers) -> tuple[str, str, str]:
    return _array(series[order]), _array(keys.high[order]), _array(keys.low[order])


def _array(numbers: Integers) -> str:
    """Returns an array as PostgreSQL writes it."""
    return "{" + ",".join(map(str, numbers.tolist())) + "}"


def _first_of_each(rows: list[int] | None, order: Integers) -> tuple[Integers, npt.NDArray[np.intp]]:
    """Returns each position once. A change of the attribution window may have left a key on two kinds of shelves."""
    return np.unique(order[np.array(rows or [], dtype=np.int64)], return_index=True)


def _column(values: list[Any] | None, dtype: type[Any], chosen: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    return np.array(values or [], dtype=dtype)[chosen]
