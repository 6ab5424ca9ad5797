"""Exact sufficient statistics of examples, to the bit as the service computes them. numpy only.

    statistics = Statistics()
    statistics.add(model, prediction, event_micros, value, is_logit=False, label=label, weight=None)
    exposure, positives, bins = statistics.rows()

Every addend x becomes the integer round(x · 2^40), half to even, before anything is added, so that no order, batching
or merging changes a bit of a sum. Sums are kept as limbs of 32 bits, least significant first, in 64-bit integers.
`modelfleet.columns.statistics` and `modelfleet.StabilityReporter` are made of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfleet.stability.v1 import statistics_pb2 as pb

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_WEIGHT: Final = 1e6
_SCALE: Final = float(1 << 40)
# As the service clips: probabilities and log-odds, for the loss only.
_CLIP: Final = 1e-12
_MAX_LOGIT: Final = 100.0
_MINUTE_MICROS: Final = 60_000_000
_HOUR_MICROS: Final = 3600_000_000
_LIMB: Final = float(1 << 32)
_MASK: Final = (1 << 32) - 1
_SERIES: Final = 0xFFFF
_BINS: Final = 32
_BIN_BITS: Final = 5
_EXACT: Final = float(1 << 62)
# Rows whose columns stay in the cache together, and a piece of work that other threads need not wait for.
BLOCK: Final = 8192


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums by key: `limbs[c, i]` are those of column c of the rows of key i, `counts[i]` how many rows these are."""

    keys: Integers
    counts: Integers
    limbs: Integers

    @classmethod
    def none(cls, columns: int) -> Totals:
        """Returns sums of nothing."""
        empty = np.empty(0, dtype=np.int64)
        return cls(empty, empty, np.empty((columns, 0, 3), dtype=np.int64))

    @classmethod
    def of(cls, keys: Integers, columns: Sequence[Floats]) -> Totals:
        """Returns the sums of rows; no addend is negative."""
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = _starts(keys)
        limbs = np.stack([_run_limbs(column[order], starts) for column in columns])
        return cls(keys[starts], np.diff(starts, append=len(keys)), limbs)

    def where(self, chosen: Mask) -> Totals:
        """Returns those of some keys."""
        return Totals(self.keys[chosen], self.counts[chosen], self.limbs[:, chosen])

    def __add__(self, other: Totals) -> Totals:
        keys = np.concatenate((self.keys, other.keys))
        if not len(keys):
            return self
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = _starts(keys)
        counts = np.add.reduceat(np.concatenate((self.counts, other.counts))[order], starts)
        limbs = np.add.reduceat(np.concatenate((self.limbs, other.limbs), axis=1)[:, order], starts, axis=1)
        return Totals(keys[starts], counts, _carried(limbs))

    def packed(self, column: int, minus: int | None = None) -> bytes:
        """Returns a column, or its difference from another one, as integers of 128 bits, little-endian."""
        limbs = self.limbs[column] if minus is None else self.limbs[column] - self.limbs[minus]
        limbs = _carried(limbs)
        halves = np.empty((len(limbs), 2), dtype="<i8")
        halves[:, 0] = limbs[:, 0] | (limbs[:, 1] << 32)
        halves[:, 1] = limbs[:, 2]
        return halves.tobytes()


class Statistics:
    """Adds examples up by model, prediction and minute. Models and predictions are numbers up to 255."""

    def __init__(self) -> None:
        self._exposure = Totals.none(7)
        self._positives = Totals.none(8)
        self._bins = Totals.none(3)

    @property
    def examples(self) -> int:
        """How many examples were added."""
        return int(self._exposure.counts.sum())

    @property
    def size(self) -> int:
        """How many rows `rows` would give."""
        return len(self._exposure.keys) + len(self._positives.keys) + len(self._bins.keys)

    def add(
        self,
        model: npt.NDArray[np.uint8],
        prediction: npt.NDArray[np.uint8],
        event_micros: Integers,
        value: Floats,
        *,
        is_logit: bool,
        label: npt.NDArray[np.uint8],
        weight: Floats | None,
    ) -> None:
        """Adds rows that `countable` marks."""
        for start in range(0, len(value), BLOCK):
            block = slice(start, start + BLOCK)
            w = np.ones(len(value[block])) if weight is None else weight[block]
            keys = ((event_micros[block] // _MINUTE_MICROS) << 16) | (model[block].astype(np.int64) << 8)
            keys |= prediction[block]
            l0 = negative_losses(value[block], is_logit=is_logit)
            w2, p = w * w, probabilities(value[block], is_logit=is_logit)
            hours = (event_micros[block] // _HOUR_MICROS << 16 | keys & _SERIES) << _BIN_BITS
            binned = hours | bins_of(value[block], is_logit=is_logit)
            self._bins += Totals.of(binned, (w, w * p, w * label[block]))
            self._exposure += Totals.of(keys, (w, w2, w * p, w2 * (p * (1.0 - p)), w * l0, w2 * l0, w2 * (l0 * l0)))
            chosen = np.flatnonzero(label[block])
            if len(chosen):
                w, w2, l0 = w[chosen], w2[chosen], l0[chosen]
                l1 = positive_losses(value[block][chosen], is_logit=is_logit)
                columns = (w, w2, w * l1, w * l0, w2 * l1, w2 * l0, w2 * (l1 * l1), w2 * (l0 * l0))
                self._positives += Totals.of(keys[chosen], columns)

    def only(self, model: int, prediction: int) -> Statistics:
        """Returns what was added of one model's prediction, which becomes the first prediction of the first model."""
        made = Statistics()
        series = model << 8 | prediction
        for name, shift in (("_exposure", 0), ("_positives", 0), ("_bins", _BIN_BITS)):
            totals: Totals = getattr(self, name)
            found = totals.where((totals.keys >> shift & _SERIES) == series)
            setattr(made, name, Totals(found.keys & ~(_SERIES << shift), found.counts, found.limbs))
        return made

    def rows(self) -> tuple[pb.ExposureRows, pb.PositiveRows, pb.BinRows]:
        """Returns the rows of WriteStatistics: of examples whose labels are known."""
        exposure, positives, bins = self._exposure, self._positives, self._bins
        sums = [exposure.packed(column) for column in range(7)]
        return (
            pb.ExposureRows(
                **_places(exposure.keys),
                examples=exposure.counts.astype("<i8").tobytes(),
                weight=sums[0],
                weight_squares=sums[1],
                expected=sums[2],
                expected_variance=sums[3],
                loss=sums[4],
                loss_by_squares=sums[5],
                loss_squares=sums[6],
            ),
            pb.PositiveRows(
                **_places(positives.keys),
                positives=positives.counts.astype("<i8").tobytes(),
                weight=positives.packed(0),
                weight_squares=positives.packed(1),
                positive_loss=positives.packed(4),
                loss_change=positives.packed(2, minus=3),
                loss_by_squares_change=positives.packed(4, minus=5),
                loss_squares_change=positives.packed(6, minus=7),
            ),
            pb.BinRows(
                **_places(bins.keys >> _BIN_BITS, "hour"),
                bin=(bins.keys & (_BINS - 1)).astype(np.uint8).tobytes(),
                weight=bins.packed(0),
                expected=bins.packed(1),
                observed=bins.packed(2),
            ),
        )


def countable(value: Floats, *, is_logit: bool, label: npt.NDArray[Any], weight: Floats | None) -> Mask:
    """Marks rows that the service would not refuse for their score, weight or label."""
    good: Mask = np.isfinite(value) if is_logit else (value >= 0.0) & (value <= 1.0)
    good = good & ((label == 0) | (label == 1))
    return good if weight is None else good & (weight >= 0.0) & (weight <= MAX_WEIGHT)


def probabilities(value: Floats, *, is_logit: bool) -> Floats:
    """Returns p for scores (as they are) or logits."""
    if not is_logit:
        return value
    small = np.exp(-np.abs(value))
    return np.where(value >= 0, 1.0, small) / (1.0 + small)


def negative_losses(value: Floats, *, is_logit: bool) -> Floats:
    """Returns l₀ = −ln(1 − p), the loss where the label is 0."""
    if is_logit:
        return _softplus(np.clip(value, -_MAX_LOGIT, _MAX_LOGIT))
    return -np.log1p(-np.clip(value, _CLIP, 1.0 - _CLIP))


def positive_losses(value: Floats, *, is_logit: bool) -> Floats:
    """Returns l₁ = −ln p, the loss where the label is 1."""
    if is_logit:
        return _softplus(-np.clip(value, -_MAX_LOGIT, _MAX_LOGIT))
    return -np.log(np.clip(value, _CLIP, 1.0 - _CLIP))


def bins_of(value: Floats, *, is_logit: bool) -> Integers:
    """Returns the bin of each value's log-odds: 32 of equal width over -8 to 8, the first and the last open."""
    if is_logit:
        log_odds = np.clip(value, -_MAX_LOGIT, _MAX_LOGIT)
    else:
        clipped = np.clip(value, _CLIP, 1.0 - _CLIP)
        log_odds = np.log(clipped) - np.log1p(-clipped)
    return np.clip((log_odds + 8.0) * 2.0, 0.0, _BINS - 1.0).astype(np.int64)


def _softplus(value: Floats) -> Floats:
    """ln(1 + e^x) without overflow."""
    return np.maximum(value, 0.0) + np.log1p(np.exp(-np.abs(value)))


def _places(keys: Integers, time: str = "minute") -> dict[str, bytes]:
    return {
        "model_index": ((keys >> 8) & 0xFF).astype(np.uint8).tobytes(),
        "prediction_index": (keys & 0xFF).astype(np.uint8).tobytes(),
        time: (keys >> 16).astype("<i4").tobytes(),
    }


def _starts(keys: Integers) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))


def _run_limbs(values: Floats, starts: npt.NDArray[np.intp]) -> Integers:
    """Returns the limbs of the sums of runs. All steps are exact: integers of 53 bits, cut at powers of two."""
    scaled = np.rint(values * _SCALE)
    limbs = np.zeros((len(starts), 3), dtype=np.int64)
    if scaled.max() * len(scaled) < _EXACT:
        limbs[:, 0] = np.add.reduceat(scaled.astype(np.int64), starts)
        return _carried(limbs)
    for place in (2, 1):
        unit = _LIMB**place
        upper = np.floor(scaled / unit)
        scaled = scaled - upper * unit
        limbs[:, place] = np.add.reduceat(upper.astype(np.int64), starts)
    limbs[:, 0] = np.add.reduceat(scaled.astype(np.int64), starts)
    return _carried(limbs)


def _carried(limbs: Integers) -> Integers:
    """Returns the same numbers with the lower limbs within 0 to 2^32 − 1; the last one has the sign."""
    first = limbs[..., 0]
    second = limbs[..., 1] + (first >> 32)
    third = limbs[..., 2] + (second >> 32)
    return np.stack((first & _MASK, second & _MASK, third), axis=-1)
