"""A series: the metrics of one model and prediction point by point, and of the whole span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.arrays import Estimates, Metrics, Windows
from modelfleetd.stability.domain.bins import Bin, calibration_error
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.points import Span

_HOUR: Final = 60


@dataclass(frozen=True, slots=True)
class Parts:
    """Sums by point, of those events that are mature, or of those that are not."""

    start: Integers  # first minute of each point; ascending
    windows: Windows
    seen: Floats  # predictions, also those that do not count without a label
    rejected: Floats


@dataclass(frozen=True, slots=True)
class Coming:
    """Rows of events whose labels are still to come."""

    minute: Integers
    width: Integers  # minutes of each row
    expected: Floats  # Σwp
    variance: Floats  # Σw²p(1 − p)
    squares: Floats  # Σw²p, as far as it is known: Σwp · Σw² / Σw


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored of a series over a span. The totals are one point."""

    mature: Parts
    waiting: Parts
    mature_total: Parts
    waiting_total: Parts
    coming: Coming
    bins: tuple[Bin, ...]  # of the whole hours of the span whose labels are all there
    bin_errors: dict[int, float]  # by the first minute of such an hour


def no_parts(points: int) -> Parts:
    """Returns parts of so many points without anything."""
    zero = np.zeros(points)
    return Parts(np.zeros(points, dtype=np.int64), Windows(*(zero,) * len(fields(Windows))), zero, zero)


_NO_ROWS: Final = np.zeros(0, dtype=np.int64)
_NO_SUMS: Final = np.zeros(0)
NOTHING_STORED: Final = Stored(
    *(no_parts(0),) * 2, *(no_parts(1),) * 2, Coming(_NO_ROWS, _NO_ROWS, *(_NO_SUMS,) * 3), (), {}
)


@dataclass(frozen=True, slots=True)
class Points:
    """Points of a series; arrays of one length."""

    start: Integers  # minutes since 1970
    end: Integers
    calibration: Estimates
    ne: Estimates
    base_rate: Estimates
    corrected_calibration: Estimates
    mean_prediction: Floats
    examples: Floats
    positives: Floats
    matured_share: Floats
    rejected_rows: Floats
    rejected_share: Floats
    label_coverage: Floats
    mature: npt.NDArray[np.bool_]
    bin_errors: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """Points, oldest first, those without anything left out, and the whole span as one."""

    points: Points
    total: Points
    bins: tuple[Bin, ...]
    delays: Delays


@dataclass(frozen=True, slots=True)
class Asked:
    """What a series is made for."""

    span: Span
    resolution: int  # minutes of a point
    mature_before: int  # the first minute that is not mature
    now: float  # minutes since 1970
    confidence: float
    matured_only: bool
    ignores_missing: bool  # a prediction without a label does not count


def make_series(stored: Stored, asked: Asked, delays: Delays) -> Series:
    """Returns the metrics of what is stored."""
    starts = np.union1d(stored.mature.start, stored.waiting.start)
    ends = np.minimum(starts + asked.resolution, asked.span.end)
    place = np.searchsorted(starts, stored.coming.minute // asked.resolution * asked.resolution)
    errors = tuple(stored.bin_errors.get(start) if asked.resolution == _HOUR else None for start in starts.tolist())
    # The first point begins where the span does.
    shown = np.maximum(starts, asked.span.start)
    points = _points(
        asked, delays, shown, ends, _placed(stored.mature, starts), _placed(stored.waiting, starts), stored.coming,
        place, errors,
    )  # fmt: skip
    only = np.array([asked.span.start])
    total = _points(
        asked, delays, only, np.array([asked.span.end]), stored.mature_total, stored.waiting_total, stored.coming,
        np.zeros_like(stored.coming.minute), (calibration_error(stored.bins),),
    )  # fmt: skip
    return Series(points, total, stored.bins, delays)


def _points(
    asked: Asked,
    delays: Delays,
    start: Integers,
    end: Integers,
    mature: Parts,
    waiting: Parts,
    coming: Coming,
    place: Integers,
    bin_errors: Sequence[float | None],
) -> Points:
    everything = mature.windows + waiting.windows
    counted = mature.windows if asked.matured_only else everything
    all_metrics = Metrics(everything, asked.confidence)
    metrics = Metrics(counted, asked.confidence) if asked.matured_only else all_metrics
    seen, rejected = mature.seen + waiting.seen, mature.rejected + waiting.rejected
    expected, variance = everything.expected, everything.expected_variance
    if asked.ignores_missing:
        # These count once their label has come, be it positive or negative.
        coverage = _share(everything.examples, np.maximum(seen, everything.examples))
    else:
        share = delays.shares(asked.now - coming.minute - coming.width / 2)
        come = np.bincount(place, coming.expected * share, len(start))
        # A positive that is there is one that was to be, and whose label has come.
        spread = share * (1.0 - share) * coming.squares + share**2 * coming.variance
        expected = mature.windows.expected + come
        variance = mature.windows.expected_variance + np.bincount(place, spread, len(start))
        coverage = np.where(everything.examples > 0.0, _share(expected, everything.expected, 1.0), 0.0)
    return Points(
        start=start,
        end=end,
        calibration=metrics.calibrations(),
        ne=Metrics(mature.windows, asked.confidence).entropies(),
        base_rate=metrics.base_rates(),
        corrected_calibration=all_metrics.calibrations_of(expected, variance),
        mean_prediction=_share(counted.expected, counted.weight),
        examples=counted.examples,
        positives=counted.positives,
        matured_share=_share(mature.windows.examples, everything.examples),
        rejected_rows=rejected,
        rejected_share=_share(rejected, rejected + np.maximum(seen, everything.examples)),
        label_coverage=np.minimum(coverage, 1.0),
        mature=end <= asked.mature_before,
        bin_errors=tuple(bin_errors),
    )


def _placed(parts: Parts, starts: Integers) -> Parts:
    """Returns the parts with a place for each of the starts."""
    place = np.searchsorted(starts, parts.start)

    def spread(column: Floats) -> Floats:
        made = np.zeros(len(starts))
        made[place] = column
        return made

    windows = Windows(*(spread(getattr(parts.windows, field.name)) for field in fields(Windows)))
    return Parts(starts, windows, spread(parts.seen), spread(parts.rejected))


def _share(part: Floats, whole: Floats, otherwise: float = 0.0) -> Floats:
    return np.divide(part, whole, out=np.full_like(whole, otherwise), where=whole != 0.0)
