"""How a series of metrics is drawn: calibration and NE with their ranges, and beneath them what they rest on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from modelfleet.plot import Chart, Limit, Series
from modelfleet.stability.v1 import stability_pb2 as pb

# A value by fewer positives says nothing about the scale that a chart should have.
_POSITIVES_FOR_SCALE = 10
# A chart shows this much beyond its values and ranges, as a part of their distance.
_ROOM = 0.15
_WIDE = 8.0
_SMALL, _LARGE = 0.5, 0.9


@dataclass(frozen=True, slots=True)
class RangeWindows:
    """Widths of the windows that the ranges of a prediction are for, in seconds."""

    calibration: int = 3600
    ne: int = 3600


@dataclass(frozen=True, slots=True)
class _Line:
    """Values from place to place; NaN is a gap."""

    x: list[float]
    y: list[float]

    @property
    def is_begin(self) -> bool:
        """Whether at most its first value is there."""
        return all(map(math.isnan, self.y[1:]))

    @property
    def is_empty(self) -> bool:
        return all(map(math.isnan, self.y))


def is_outside(value: pb.Estimate, limits: pb.Limits, width: int, window: int) -> bool:
    """Whether a value lies outside its range; what has neither does not.

    A range is for windows of some width (`window`, in seconds). What is of less time (`width`) strays further by
    chance: its whole interval has to lie outside.
    """
    if not limits.high or value.state != pb.Estimate.VALUE:
        return False
    low, high = (value.low, value.high) if width < window else (value.value, value.value)
    return low > limits.high or high < limits.low


def is_final(point: pb.Point) -> bool:
    """Whether no label can change the point any more: its time is over, or all labels came with their examples."""
    return point.mature or point.matured_share == 1


def best_calibration(point: pb.Point) -> pb.Estimate:
    """Returns what is known best: the plain value once all labels are there, before that the corrected one."""
    return point.calibration if is_final(point) else point.corrected_calibration


def charts(
    what: str,
    answer: pb.QuerySeriesResponse,
    width_seconds: int,
    step: str,
    windows: RangeWindows,
    now: float,
) -> list[Chart]:
    """Returns the panels for one prediction.

    Args:
        what: model and prediction, for the titles.
        answer: its series.
        width_seconds: of a point.
        step: the same in words.
        windows: of its ranges.
        now: the time, in seconds since 1970: a point that ends later is not whole.
    """
    points = [point for point in answer.points if point.examples]
    if not points:
        return []
    panels = [
        _calibration(what, points, width_seconds, windows.calibration),
        _entropy(what, points, width_seconds, windows.ne),
        _coverage(points, width_seconds),
        _volume(points, width_seconds, step, now),
        _reliability(answer.bins),
    ]
    return [panel for panel in panels if panel is not None]


def _calibration(what: str, points: Sequence[pb.Point], width: int, range_window: int) -> Chart:
    firm = [point for point in points if is_final(point)]
    window = _window(
        (point.calibration.value for point in firm if _is_firm(point)),
        (point.corrected_calibration.value for point in points if not is_final(point) and _is_firm(point)),
        *((point.calibration_range.low, point.calibration_range.high) for point in points),
        (1.0,),
    )
    plain = _line(points, width, lambda p: _value(p.calibration) if is_final(p) else math.nan)
    # From the last firm value on, so that the eye follows it.
    begun = _first_waiting(points)
    immature = _line(points[begun:], width, lambda p: _value(p.calibration))
    corrected = _line(
        points[begun:], width, lambda p: _value(p.calibration if is_final(p) else p.corrected_calibration)
    )
    series = [
        *_interval(points, width, best_calibration, window),
        *_range(points, width, lambda p: p.calibration_range, window),
        *_drawn("labels still to come", immature, window, "immature"),
        *_drawn("corrected for their delay", corrected, window, "corrected"),
        *_drawn("calibration", plain, window, "value"),
        *_outside(points, best_calibration, lambda p: p.calibration_range, (width, range_window), window),
    ]
    title = f"Calibration of {what}"
    wide = window[0] > 0 and window[1] / window[0] > _WIDE
    as_predicted = [Limit(1.0, "observed = predicted")]
    return Chart(title, "", "predicted / observed", series, as_predicted, log_y=wide, time_x=True, height=_LARGE)


def _entropy(what: str, points: Sequence[pb.Point], width: int, range_window: int) -> Chart | None:
    values = [point.ne.value for point in points if _is_firm(point) and point.ne.state == pb.Estimate.VALUE]
    if not values:
        return None
    window = _window(values, *((point.ne_range.low, point.ne_range.high) for point in points))
    line = _line(points, width, lambda p: _value(p.ne) if is_final(p) else math.nan)
    partly = _line(points[_first_waiting(points) :], width, lambda p: _value(p.ne))
    series = [
        *_interval(points, width, lambda p: p.ne, window),
        *_range(points, width, lambda p: p.ne_range, window),
        *_drawn("of those that are mature", partly, window, "immature"),
        *_drawn("normalized entropy", line, window, "value"),
        *_outside(points, lambda p: p.ne, lambda p: p.ne_range, (width, range_window), window),
    ]
    base = [Limit(1.0, "no better than the base rate")] if window[0] <= 1.0 <= window[1] else []
    return Chart(f"Normalized entropy of {what}", "", "lower is better", series, base, time_x=True, height=_LARGE)


def _coverage(points: Sequence[pb.Point], width: int) -> Chart | None:
    line = _line(points, width, lambda p: p.label_coverage)
    if not any(point.label_coverage for point in points):
        return None
    series = [Series("label coverage", line.x, line.y, "line", mark="value")]
    return Chart("Labels that have come", "", "of those that will", series, time_x=True, zero_y=True, height=_SMALL)


def _volume(points: Sequence[pb.Point], width: int, step: str, now: float) -> Chart:
    # A point that goes on would look like a drop.
    examples = _line(points, width, lambda p: float(p.examples) if _x(p) + width <= now else math.nan)
    # Where none was refused there is nothing to see.
    rejected = _line(points, width, lambda p: float(p.rejected_rows) or math.nan)
    series = [Series("examples", examples.x, examples.y, "steps", mark="value")]
    if any(point.rejected_rows for point in points):
        series.append(Series("rows refused", rejected.x, rejected.y, "steps", mark="bad"))
    return Chart("Volume", "", f"per {step}", series, time_x=True, zero_y=True, height=_SMALL)


def _reliability(bins: Sequence[pb.CalibrationBin]) -> Chart | None:
    # On logarithmic axes, where rare events are not all in one corner.
    shown = [each for each in bins if each.mean_label > 0 and each.mean_prediction > 0]
    if not shown:
        return None
    means = [each.mean_prediction for each in shown]
    ends = [min(*means, *(each.mean_label for each in shown)), max(*means, *(each.mean_label for each in shown))]
    series = [
        Series("calibrated", ends, ends, "line", mark="range"),
        Series("bins of the whole span", means, [each.mean_label for each in shown], "points", mark="value"),
    ]
    return Chart("Reliability", "mean prediction", "share of positives", series, log_x=True, log_y=True, height=_LARGE)


def _range(
    points: Sequence[pb.Point], width: int, limits: Callable[[pb.Point], pb.Limits], window: tuple[float, float]
) -> Iterator[Series]:
    low = _line(points, width, lambda p: limits(p).low if limits(p).high else math.nan)
    high = _line(points, width, lambda p: limits(p).high or math.nan)
    if not low.is_empty:
        yield Series("healthy range", low.x, _within(low.y, window), "band", _within(high.y, window), mark="range")


def _interval(
    points: Sequence[pb.Point], width: int, estimate: Callable[[pb.Point], pb.Estimate], window: tuple[float, float]
) -> Iterator[Series]:
    def end(name: str) -> _Line:
        return _line(
            points, width, lambda p: getattr(estimate(p), name) if estimate(p).state == pb.Estimate.VALUE else math.nan
        )

    low, high = end("low"), end("high")
    if not low.is_empty:
        yield Series("99 % interval", low.x, _within(low.y, window), "band", _within(high.y, window), mark="interval")


def _drawn(label: str, line: _Line, window: tuple[float, float], mark: str) -> Iterator[Series]:
    # One value is what the line before it ends with.
    if not line.is_begin or (mark == "value" and not line.is_empty):
        yield Series(label, line.x, _within(line.y, window), "line", mark=mark)  # type: ignore[arg-type]


def _outside(
    points: Sequence[pb.Point],
    estimate: Callable[[pb.Point], pb.Estimate],
    limits: Callable[[pb.Point], pb.Limits],
    widths: tuple[int, int],
    window: tuple[float, float],
) -> Iterator[Series]:
    """What lies out of its range; `widths` are those of a point, and of the windows that the range is for."""
    found = [point for point in points if is_outside(estimate(point), limits(point), *widths)]
    if found:
        values = _within([estimate(point).value for point in found], window)
        yield Series("out of range", [_x(point) for point in found], values, "points", mark="bad")


def _line(points: Sequence[pb.Point], width: int, value: Callable[[pb.Point], float]) -> _Line:
    """Returns a value from point to point, cut where points are missing between."""
    line = _Line([], [])
    for before, point in itertools.pairwise([None, *points]):
        if before is not None and point is not None and _x(point) - _x(before) > 1.5 * width:
            line.x.append(_x(before) + width)
            line.y.append(math.nan)
        if point is not None:
            line.x.append(_x(point))
            line.y.append(value(point))
    return line


def _window(*values: Iterable[float]) -> tuple[float, float]:
    """Returns what a chart shows: all these values and a little more."""
    found = [value for value in itertools.chain(*values) if math.isfinite(value) and value > 0]
    low, high = min(found, default=0.0), max(found, default=1.0)
    room = _ROOM * (high - low) or 0.1 * high
    return max(low - room, low / 2), high + room


def _within(values: Iterable[float], window: tuple[float, float]) -> list[float]:
    """Returns values kept to the chart: what lies beyond is drawn at its edge."""
    return [value if math.isnan(value) else min(max(value, window[0]), window[1]) for value in values]


def _first_waiting(points: Sequence[pb.Point]) -> int:
    """Returns the place of the last mature point before those that are not."""
    first = next((place for place, point in enumerate(points) if not is_final(point)), len(points))
    return max(0, first - 1) if first < len(points) else first


def _is_firm(point: pb.Point) -> bool:
    return point.positives >= _POSITIVES_FOR_SCALE and point.calibration.state == pb.Estimate.VALUE


def _value(estimate: pb.Estimate) -> float:
    return estimate.value if estimate.state == pb.Estimate.VALUE else math.nan


def _x(point: pb.Point) -> float:
    return float(point.start_time.seconds)
