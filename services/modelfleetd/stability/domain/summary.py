"""From rows to statistics: the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.bins import bins_of
from modelfleetd.stability.domain.columns import Bytes, Examples, Predictions, Refusals, Rows
from modelfleetd.stability.domain.exact import (
    BLOCK,
    SCALE,
    SCALE_BITS,
    Floats,
    GroupSummer,
    GroupSums,
    Integers,
    Runs,
    ScatterSummer,
    in_runs,
)
from modelfleetd.stability.domain.losses import Block
from modelfleetd.stability.domain.maturity import MINUTE_MICROS
from modelfleetd.stability.domain.sums import Exposure, Positives

_AGE_BITS: Final = 6
_INDEX_BITS: Final = 8
# Bins stand where an age does.
_BIN_BITS: Final = _AGE_BITS

_SERIES_MASK: Final = (1 << 2 * _INDEX_BITS) - 1
# Arrays, since numbers of Python have to be made into such at every use.
_SCALE: Final = np.array(float(SCALE))
_ONE: Final = np.array(1.0)

K = TypeVar("K", int, Integers)
Columns: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Places:
    """Where each group's sums belong; arrays of one length."""

    model: Integers
    prediction: Integers
    minute: Integers  # of the event, since 1970
    age: Integers  # bucket of the labels' age


_NONE: Final = np.empty(0, dtype=np.int64)
_NOWHERE: Final = Places(_NONE, _NONE, _NONE, _NONE)


@dataclass(frozen=True, slots=True)
class ExposureRows:
    """Exposure by model, prediction and minute; columns as the fields of sums.Exposure, the count apart."""

    places: Places
    counts: Integers
    columns: Columns
    seen: Integers | None = None  # predictions, also those that do not count without a label; None: as the count

    @classmethod
    def none(cls) -> ExposureRows:
        return cls(_NOWHERE, _NONE, ((),) * len(Exposure.names()[1:]))

    def __len__(self) -> int:
        return len(self.counts)

    def __add__(self, other: ExposureRows) -> ExposureRows:
        seen = np.concatenate((self.predictions, other.predictions))
        return ExposureRows(*_both(self, other), seen)

    @property
    def predictions(self) -> Integers:
        return self.counts if self.seen is None else self.seen


@dataclass(frozen=True, slots=True)
class PositiveRows:
    """Positives by model, prediction, minute and age; columns as the fields of sums.Positives, the count apart."""

    places: Places
    counts: Integers
    columns: Columns

    @classmethod
    def none(cls) -> PositiveRows:
        return cls(_NOWHERE, _NONE, ((),) * len(Positives.names()[1:]))

    def __len__(self) -> int:
        return len(self.counts)

    def __add__(self, other: PositiveRows) -> PositiveRows:
        return PositiveRows(*_both(self, other))


@dataclass(frozen=True, slots=True)
class BinRows:
    """Σw, Σwp and Σwy by model, prediction, hour and bin: the places' minute is the hour's first, their age the bin."""

    places: Places
    columns: Columns

    @classmethod
    def none(cls) -> BinRows:
        return cls(_NOWHERE, ((),) * 3)

    def __len__(self) -> int:
        return len(self.places.minute)

    def __add__(self, other: BinRows) -> BinRows:
        return BinRows(_joined(self.places, other.places), _longer(self.columns, other.columns))


@dataclass(frozen=True, slots=True)
class RejectionRows:
    """Rows that were not taken, by model, prediction, minute and reason: the number in the place of the age."""

    places: Places
    counts: Integers

    @classmethod
    def none(cls) -> RejectionRows:
        return cls(_NOWHERE, _NONE)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What some rows add. Groups may come more than once; their order says nothing."""

    exposure: ExposureRows
    positives: PositiveRows
    bins: BinRows

    @classmethod
    def none(cls) -> Statistics:
        return cls(ExposureRows.none(), PositiveRows.none(), BinRows.none())

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.exposure + other.exposure, self.positives + other.positives, self.bins + other.bins)


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


def summarise_examples(rows: Examples) -> Statistics:
    """Returns the statistics of rows whose labels are known: their labels have age 0."""
    everything = scored(rows)
    chosen = np.flatnonzero(rows.label.view(np.bool_))
    return expose(everything) + count_positives(pick(everything, chosen), np.zeros(len(chosen), dtype=np.int64))


def pick(rows: Scored, chosen: Integers | np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Scored:
    """Returns some of the rows."""
    weight = None if rows.weight is None else rows.weight[chosen]
    columns = (rows.model[chosen], rows.prediction[chosen], rows.event[chosen], rows.value[chosen])
    return Scored(*columns, rows.is_logit, weight)


def expose(rows: Scored) -> Statistics:
    """Returns the exposure of rows: as if every label were negative."""
    weighted = rows.weight is not None
    terms = Block(is_logit=rows.is_logit)
    summer, binned = GroupSummer(7 if weighted else 4), ScatterSummer(2 if weighted else 1, _BIN_BITS)
    # Addends are scaled before they are multiplied: by a power of two, so that not a bit is different.
    for runs, value, w in _blocks(rows, None):
        terms.load(value)
        out = summer.scratch[:, : runs.rows]
        p, loss = terms.probabilities, terms.negative_losses
        most = max(1.0, float(np.maximum.reduce(loss)))
        if w is None:
            np.multiply(p, _SCALE, out=out[0])
            np.subtract(_ONE, p, out=out[1])
            np.multiply(out[0], out[1], out=out[1])
            np.multiply(loss, _SCALE, out=out[2])
            np.multiply(out[2], loss, out=out[3])
            binned.add(_hours(runs), bins_of(terms.log_odds), (out[0],), 1.0)
            summer.add(runs, most * most)
        else:
            heaviest = max(1.0, float(w.max()))
            np.multiply(w, _SCALE, out=out[0])
            np.multiply(out[0], w, out=out[1])
            np.multiply(out[0], p, out=out[2])
            np.multiply(out[1], p * (1.0 - p), out=out[3])
            np.multiply(out[0], loss, out=out[4])
            np.multiply(out[1], loss, out=out[5])
            np.multiply(out[1], loss * loss, out=out[6])
            binned.add(_hours(runs), bins_of(terms.log_odds), (out[0], out[2]), heaviest)
            summer.add(runs, (heaviest * most) ** 2)
    sums, bins = summer.result(), binned.result()
    if weighted:
        w_by_bin, wp_by_bin = bins.columns
        exposure = ExposureRows(_places(sums.keys), sums.counts, sums.columns)
    else:
        w_by_bin, (wp_by_bin,) = _ones(bins), bins.columns
        ones = _ones(sums)
        wp, w2pq, wl, w2l2 = sums.columns
        exposure = ExposureRows(_places(sums.keys), sums.counts, (ones, ones, wp, w2pq, wl, wl, w2l2))
    nothing = (0,) * len(w_by_bin)
    return Statistics(exposure, PositiveRows.none(), BinRows(_bin_places(bins.keys), (w_by_bin, wp_by_bin, nothing)))


def count_positives(rows: Scored, age: Integers) -> Statistics:
    """Returns what positive rows change: the loss of a positive in place of that of a negative."""
    weighted = rows.weight is not None
    terms = Block(is_logit=rows.is_logit, positives=True)
    summer, binned = GroupSummer(8 if weighted else 4), ScatterSummer(1 if weighted else 0, _BIN_BITS)
    for runs, value, w in _blocks(rows, age):
        terms.load(value)
        out = summer.scratch[:, : runs.rows]
        l0, l1 = terms.negative_losses, terms.positive_losses
        most = max(1.0, float(l0.max()), float(l1.max()))
        if w is None:
            np.multiply(l1, _SCALE, out=out[0])
            np.multiply(l0, _SCALE, out=out[1])
            np.multiply(out[0], l1, out=out[2])
            np.multiply(out[1], l0, out=out[3])
            binned.add(_hours(runs), bins_of(terms.log_odds), (), 1.0)
            summer.add(runs, most * most)
        else:
            heaviest = max(1.0, float(w.max()))
            np.multiply(w, _SCALE, out=out[0])
            np.multiply(out[0], w, out=out[1])
            np.multiply(out[0], l1, out=out[2])
            np.multiply(out[0], l0, out=out[3])
            np.multiply(out[1], l1, out=out[4])
            np.multiply(out[1], l0, out=out[5])
            np.multiply(out[1], l1 * l1, out=out[6])
            np.multiply(out[1], l0 * l0, out=out[7])
            binned.add(_hours(runs), bins_of(terms.log_odds), (out[0],), heaviest)
            summer.add(runs, (heaviest * most) ** 2)
    sums, bins = summer.result(), binned.result()
    if weighted:
        sw, sw2, wl1, wl0, w2l1, w2l0, w2l11, w2l00 = sums.columns
        (wy_by_bin,) = bins.columns
    else:
        sw = sw2 = _ones(sums)
        wl1, wl0, w2l11, w2l00 = sums.columns
        w2l1, w2l0 = wl1, wl0
        wy_by_bin = _ones(bins)
    # Differences of the scaled sums, so that exposure and positives together are the sum of the rows' true losses.
    columns = (sw, sw2, w2l1, _minus(wl1, wl0), _minus(w2l1, w2l0), _minus(w2l11, w2l00))
    nothing = (0,) * len(wy_by_bin)
    return Statistics(
        ExposureRows.none(),
        PositiveRows(_places(sums.keys), sums.counts, columns),
        BinRows(_bin_places(bins.keys), (nothing, nothing, wy_by_bin)),
    )


def count_seen(rows: Rows, event: Integers) -> Statistics:
    """Returns that predictions came, whose examples count only once their label has."""
    keys = _join(rows.model, rows.prediction, event // MINUTE_MICROS, np.zeros(len(rows), dtype=np.int64))
    found, counts = np.unique(keys, return_counts=True)
    nothing = ((0,) * len(found),) * len(Exposure.names()[1:])
    exposure = ExposureRows(_places(found), np.zeros_like(counts), nothing, counts)
    return Statistics(exposure, PositiveRows.none(), BinRows.none())


def unseen(statistics: Statistics) -> Statistics:
    """Returns statistics of examples that were counted as seen before."""
    exposure = statistics.exposure
    return replace(statistics, exposure=replace(exposure, seen=np.zeros_like(exposure.counts)))


def count_refusals(refusals: Refusals) -> RejectionRows:
    """Returns how many rows were refused by model, prediction, minute and reason."""
    keys = _join(refusals.model, refusals.prediction, refusals.minute, refusals.reason.astype(np.int64))
    found, counts = np.unique(keys, return_counts=True)
    return RejectionRows(_places(found), counts)


def _blocks(rows: Scored, age: Integers | None) -> Iterator[tuple[Runs, Floats, Floats | None]]:
    """Gives some rows at a time, those of one key together: where their keys change, their values, their weights."""
    one_series = all(_is_one(column) for column in (rows.model, rows.prediction, age) if column is not None)
    for start in range(0, len(rows.value), BLOCK):
        block = slice(start, start + BLOCK)
        value, weight = rows.value[block], None if rows.weight is None else rows.weight[block]
        event = rows.event[block]
        if one_series and np.minimum.reduce(event) // MINUTE_MICROS == np.maximum.reduce(event) // MINUTE_MICROS:
            # The usual case costs next to nothing.
            event = event[:1]
        block = slice(start, start + len(event))
        ages = None if age is None else age[block]
        keys = _join(rows.model[block], rows.prediction[block], event // MINUTE_MICROS, ages)
        if len(keys) < len(value):
            yield Runs.one(len(value), int(keys[0])), value, weight
            continue
        if (order := in_runs(keys)) is not None:
            keys, value = keys[order], value[order]
            weight = None if weight is None else weight[order]
        yield Runs.of(keys), value, weight


def _is_one(column: npt.NDArray[Any]) -> bool:
    return not len(column) or bool((column == column[0]).all())


def _join(model: Bytes, prediction: Bytes, minute: Integers, age: Integers | None) -> Integers:
    keys = minute << _INDEX_BITS
    # Most batches are of one model and one prediction, the first.
    if model.any():
        keys |= model
    keys <<= _INDEX_BITS
    if prediction.any():
        keys |= prediction
    keys <<= _AGE_BITS
    if age is not None:
        keys |= age
    return keys


def _places(keys: Integers) -> Places:
    age = keys & ((1 << _AGE_BITS) - 1)
    prediction = (keys >> _AGE_BITS) & 0xFF
    model = (keys >> (_AGE_BITS + _INDEX_BITS)) & 0xFF
    return Places(model, prediction, keys >> (_AGE_BITS + 2 * _INDEX_BITS), age)


def _hours(runs: Runs) -> Runs:
    """Returns the runs of whole hours, whatever the age."""
    if len(runs.keys) == 1:
        return Runs.one(runs.rows, _hour_key(int(runs.keys[0])))
    return runs.merged(_hour_key(runs.keys))


def _hour_key(key: K) -> K:
    """Returns the key of an hour and a series, of that of a minute, a series and an age."""
    hour = (key >> (_AGE_BITS + 2 * _INDEX_BITS)) // 60
    return (hour << 2 * _INDEX_BITS) | ((key >> _AGE_BITS) & _SERIES_MASK)


def _bin_places(keys: Integers) -> Places:
    places = _places(keys)
    return Places(places.model, places.prediction, places.minute * 60, places.age)


def _ones(sums: GroupSums) -> tuple[int, ...]:
    return tuple(count << SCALE_BITS for count in sums.counts.tolist())


def _minus(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(one, other, strict=True))


def _both(one: ExposureRows | PositiveRows, other: ExposureRows | PositiveRows) -> tuple[Places, Integers, Columns]:
    counts = np.concatenate((one.counts, other.counts))
    return _joined(one.places, other.places), counts, _longer(one.columns, other.columns)


def _joined(one: Places, other: Places) -> Places:
    names = ("model", "prediction", "minute", "age")
    return Places(*(np.concatenate((getattr(one, name), getattr(other, name))) for name in names))


def _longer(one: Columns, other: Columns) -> Columns:
    return tuple(ours + theirs for ours, theirs in zip(one, other, strict=True))
