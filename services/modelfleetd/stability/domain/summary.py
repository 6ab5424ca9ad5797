"""From rows to statistics: the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleetd.stability.domain.columns import Bytes, Examples, Predictions, Refusals
from modelfleetd.stability.domain.exact import BLOCK, SCALE_BITS, Floats, GroupSummer, GroupSums, Integers, in_runs
from modelfleetd.stability.domain.losses import negative_losses, positive_losses, probabilities
from modelfleetd.stability.domain.maturity import MINUTE_MICROS

_AGE_BITS: Final = 6
_INDEX_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class Places:
    """Where each group's sums belong; arrays of one length."""

    model: Integers
    prediction: Integers
    minute: Integers  # of the event, since 1970
    age: Integers  # bucket of the labels' age


@dataclass(frozen=True, slots=True)
class ExposureRows:
    """Exposure by model, prediction and minute; columns as the fields of sums.Exposure, the count apart."""

    places: Places
    counts: Integers
    columns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class PositiveRows:
    """Positives by model, prediction, minute and age; columns as the fields of sums.Positives, the count apart."""

    places: Places
    counts: Integers
    columns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """What the kernel needs of scored rows; arrays of one length."""

    model: Bytes
    prediction: Bytes
    event: Integers
    value: Floats
    is_logit: bool
    weight: Floats | None


def scored(rows: Examples | Predictions) -> Scored:
    """Returns the scored part of rows."""
    return Scored(rows.model, rows.prediction, rows.event, rows.value, rows.is_logit, rows.weight)


def summarise_examples(rows: Examples) -> tuple[ExposureRows, PositiveRows]:
    """Returns the statistics of rows whose labels are known: their labels have age 0."""
    everything = scored(rows)
    chosen = np.flatnonzero(rows.label)
    positives = pick(everything, chosen)
    return expose(everything), count_positives(positives, np.zeros(len(chosen), dtype=np.int64))


def pick(rows: Scored, chosen: Integers | np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Scored:
    """Returns some of the rows."""
    weight = None if rows.weight is None else rows.weight[chosen]
    columns = (rows.model[chosen], rows.prediction[chosen], rows.event[chosen], rows.value[chosen])
    return Scored(*columns, rows.is_logit, weight)


def expose(rows: Scored) -> ExposureRows:
    """Returns the exposure of rows: as if every label were negative."""
    keys = _keys(rows, None)
    if (order := in_runs(keys)) is not None:
        rows, keys = pick(rows, order), keys[order]
    weighted = rows.weight is not None
    summer = GroupSummer(7 if weighted else 4)
    for start in range(0, len(keys), BLOCK):
        block = slice(start, start + BLOCK)
        value = rows.value[block]
        out = summer.scratch[:, : len(value)]
        p, loss = probabilities(value, is_logit=rows.is_logit), negative_losses(value, is_logit=rows.is_logit)
        if rows.weight is None:
            out[0], out[2] = p, loss
            np.multiply(p, 1.0 - p, out=out[1])
            np.multiply(loss, loss, out=out[3])
        else:
            w = rows.weight[block]
            w2 = w * w
            out[0], out[1] = w, w2
            np.multiply(w, p, out=out[2])
            np.multiply(w2, p * (1.0 - p), out=out[3])
            np.multiply(w, loss, out=out[4])
            np.multiply(w2, loss, out=out[5])
            np.multiply(w2, loss * loss, out=out[6])
        summer.add(keys[block])
    sums = summer.result()
    if weighted:
        return ExposureRows(_places(sums.keys), sums.counts, sums.columns)
    ones = _ones(sums)
    wp, w2pq, wl, w2l2 = sums.columns
    return ExposureRows(_places(sums.keys), sums.counts, (ones, ones, wp, w2pq, wl, wl, w2l2))


def count_positives(rows: Scored, age: Integers) -> PositiveRows:
    """Returns what positive rows change: the loss of a positive in place of that of a negative."""
    keys = _keys(rows, age)
    if (order := in_runs(keys)) is not None:
        rows, keys = pick(rows, order), keys[order]
    weighted = rows.weight is not None
    summer = GroupSummer(8 if weighted else 4)
    for start in range(0, len(keys), BLOCK):
        block = slice(start, start + BLOCK)
        value = rows.value[block]
        out = summer.scratch[:, : len(value)]
        l1 = positive_losses(value, is_logit=rows.is_logit)
        l0 = negative_losses(value, is_logit=rows.is_logit)
        if rows.weight is None:
            out[0], out[1] = l1, l0
            np.multiply(l1, l1, out=out[2])
            np.multiply(l0, l0, out=out[3])
        else:
            w = rows.weight[block]
            w2 = w * w
            out[0], out[1] = w, w2
            np.multiply(w, l1, out=out[2])
            np.multiply(w, l0, out=out[3])
            np.multiply(w2, l1, out=out[4])
            np.multiply(w2, l0, out=out[5])
            np.multiply(w2, l1 * l1, out=out[6])
            np.multiply(w2, l0 * l0, out=out[7])
        summer.add(keys[block])
    sums = summer.result()
    if weighted:
        sw, sw2, wl1, wl0, w2l1, w2l0, w2l11, w2l00 = sums.columns
    else:
        sw = sw2 = _ones(sums)
        wl1, wl0, w2l11, w2l00 = sums.columns
        w2l1, w2l0 = wl1, wl0
    # Differences of the scaled sums, so that exposure and positives together are the sum of the rows' true losses.
    columns = (sw, sw2, w2l1, _minus(wl1, wl0), _minus(w2l1, w2l0), _minus(w2l11, w2l00))
    return PositiveRows(_places(sums.keys), sums.counts, columns)


def count_refusals(refusals: Refusals) -> tuple[Places, Integers]:
    """Returns how many rows were refused by model, prediction, minute and, in the place of the age, reason."""
    keys = _join(refusals.model, refusals.prediction, refusals.minute, refusals.reason.astype(np.int64))
    found, counts = np.unique(keys, return_counts=True)
    return _places(found), counts


def _keys(rows: Scored, age: Integers | None) -> Integers:
    return _join(rows.model, rows.prediction, rows.event // MINUTE_MICROS, age)


def _join(model: Bytes, prediction: Bytes, minute: Integers, age: Integers | None) -> Integers:
    keys = (minute << _INDEX_BITS) | model
    keys = (keys << _INDEX_BITS) | prediction
    return keys << _AGE_BITS if age is None else (keys << _AGE_BITS) | age


def _places(keys: Integers) -> Places:
    age = keys & ((1 << _AGE_BITS) - 1)
    prediction = (keys >> _AGE_BITS) & 0xFF
    model = (keys >> (_AGE_BITS + _INDEX_BITS)) & 0xFF
    return Places(model, prediction, keys >> (_AGE_BITS + 2 * _INDEX_BITS), age)


def _ones(sums: GroupSums) -> tuple[int, ...]:
    return tuple(count << SCALE_BITS for count in sums.counts.tolist())


def _minus(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(one, other, strict=True))
