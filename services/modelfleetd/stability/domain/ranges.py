"""Healthy ranges proposed from a history that was healthy, and what they would have done to it.

Centre by hour of week, shrunk (`seasons`); spread pooled over the whole history, with the tolerance that its size needs
(`tolerance`); as far out as slices and burn rates allow for the pages that were declared (`false_alarms`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import Final

import numpy as np

from modelfleetd.stability.domain import false_alarms, slo
from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.history import (
    Flags,
    History,
    Values,
    Windows,
    calibrations,
    entropies,
    hours_of_week,
    volumes,
)
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.seasons import SEASONAL_DAYS, Centre, centre
from modelfleetd.stability.domain.slices import Slice, Slices
from modelfleetd.stability.domain.tolerance import ASSUMED, Reach, Spread, reach, spread

DEFAULT_PAGES_PER_WEEK: Final = 0.05
MIN_RESIDUALS: Final = 200
WIDTHS: Final = (5, 15, 30, 60, 360, 1440)
# Of 99 % intervals, which a window must know better than its range is wide.
_INTERVAL_SIGMAS: Final = 2.5758293
# So many of the windows must hold enough to be decided on.
_MOST: Final = 0.9
_HALF: Final = 0.5
# A history tells of a width once it holds so many windows of it.
_FEWEST_WINDOWS: Final = 5
# For how long ahead growth of the volume is allowed for.
_AHEAD_DAYS: Final = 28.0
_GROWTH_SIGMAS: Final = 3.0
# Among widths that see a big fault within so many minutes (or half as long again as the best), small faults decide.
_SOON: Final = 20.0
# What is less likely to be seen by the next window is not counted on.
_HOPE: Final = 0.01
_MOST_EPISODES: Final = 100
_MOST_POINTS: Final = 2000


class Basis(enum.Enum):
    """What a proposal rests on. The numbers are those of the protos."""

    SEASONAL = 1
    LEVEL = 2
    DEFAULT = 3


@dataclass(frozen=True, slots=True)
class Outside:
    """Windows outside a range, without a gap."""

    start_time: datetime
    end_time: datetime
    worst: float


@dataclass(frozen=True, slots=True)
class RangePoint:
    """A window of a history, and the range that holds for it."""

    end_time: datetime
    value: float
    range: Limits


@dataclass(frozen=True, slots=True)
class Replay:
    """What a range would have done to a history."""

    outside: tuple[Outside, ...]
    page_times: tuple[datetime, ...]
    windows: int  # that were decidable, those that overlap counted as one
    history: tuple[RangePoint, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed range, and what it would have done."""

    range: HealthyRange
    basis: Basis
    explanation: str
    current: Limits | None
    outside: tuple[Outside, ...]
    pages: int
    page_times: tuple[datetime, ...]
    windows: int
    history: tuple[RangePoint, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a range is for.

    Attributes:
        prediction: which.
        metric: which.
        target: of the model's stability objective.
        pages_per_week: false alarms to allow for the whole model.
        ranges: of the model, over all its predictions and metrics: they share these.
        width: of the windows, in minutes; 0: whichever sees faults soonest.
        delays: of labels that come later than their examples; None: they come together.
        current: the range in force.
    """

    prediction: DeclaredPrediction
    metric: Metric
    target: float
    pages_per_week: float = DEFAULT_PAGES_PER_WEEK
    ranges: int = 1
    width: int = 0
    delays: Delays | None = None
    current: HealthyRange | None = None


@dataclass(frozen=True, slots=True)
class _Fault:
    """How much of a fault is to be seen: factors of the value."""

    big: float
    small: float


_FAULTS: Final[Mapping[Metric, _Fault]] = {
    Metric.CALIBRATION: _Fault(1.3, 1.1),
    Metric.NE: _Fault(1.1, 1.03),
    Metric.VOLUME: _Fault(0.5, 0.8),
}
# Closer to the centre nothing is worth waking anybody for, however much is known.
_NARROWEST: Final[Mapping[Metric, float]] = {Metric.CALIBRATION: 0.01, Metric.NE: 0.002, Metric.VOLUME: 0.05}
# Where too little is known. NE of 1 is that of a constant; a little more is chance.
_DEFAULTS: Final[Mapping[Metric, Limits]] = {Metric.CALIBRATION: Limits(0.5, 2.0), Metric.NE: Limits(0.0, 1.1)}
_DEFAULT_VOLUME: Final = 10.0
_DEFAULT_WIDTH: Final = 60


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """A range for windows of one width."""

    values: Values
    centre: Centre
    spread: Spread
    reach: Reach
    growth: float  # of the logarithm, a day
    residuals: int
    decidable: Flags

    @property
    def share(self) -> float:
        """Of the windows with examples: those that hold enough."""
        return float(self.decidable.mean()) if len(self.decidable) else 0.0

    def minutes_to_see(self, factor: float) -> float:
        """Returns how long after a fault multiplies the value a window lies outside: soon, or by and by, by chance."""
        edge = self.reach.above if factor > 1.0 else self.reach.below
        sigma = math.sqrt(self.spread.variance(self.values))
        chance = NormalDist().cdf((abs(math.log(factor)) - edge) / sigma)
        part = abs(math.expm1(math.copysign(edge, factor - 1.0)) / (factor - 1.0))
        return self.values.width * (min(1.0, part) + 1.0 / chance - 1.0) if chance > _HOPE else math.inf


def propose(history: History, terms: Terms) -> Proposal | None:
    """Returns a range for one metric of one prediction; None for a volume of which nothing was ever seen.

    Args:
        history: matured sums; of the whole route for VOLUME.
        terms: what the range is for.
    """
    history = history.trimmed()
    fit = _best(history, terms) if history.steps else None
    if fit is None:
        return _default(history, terms)
    range_ = _range(fit, history, terms)
    replay = replay_on(history, range_, terms, growth=fit.growth)
    basis = Basis.LEVEL if fit.centre.hours is None else Basis.SEASONAL
    return _proposal(range_, basis, _words(fit, history, basis), replay, terms)


def propose_model(
    histories: Mapping[str, History],
    volumes: Mapping[str, History],
    declared: Mapping[str, DeclaredPrediction],
    *,
    target: float,
    pages_per_week: float = DEFAULT_PAGES_PER_WEEK,
    width: int = 0,
    delays: Mapping[str, Delays] | None = None,
    current: Mapping[tuple[str, Metric], HealthyRange] | None = None,
) -> list[Proposal]:
    """Returns the ranges of a model, prediction by prediction, metric by metric; they share its false alarms evenly.

    Args:
        histories: of the model, by prediction.
        volumes: of its route, by prediction; empty for a model whose volume nobody judges.
        declared: all predictions of the model's type: also those that no range is asked for have their share.
        target: of the model's stability objective.
        pages_per_week: false alarms to allow for the whole model.
        width: of the windows, in minutes; 0: whichever sees faults soonest.
        delays: by prediction, of labels that come later than their examples.
        current: the ranges in force.
    """
    found = []
    ranges = len(declared) * (3 if volumes else 2)
    for prediction, history in histories.items():
        sources = {Metric.CALIBRATION: history, Metric.NE: history, Metric.VOLUME: volumes.get(prediction)}
        for metric, source in sources.items():
            if source is not None:
                terms = Terms(
                    declared[prediction],
                    metric,
                    target,
                    pages_per_week,
                    ranges,
                    width,
                    (delays or {}).get(prediction),
                    (current or {}).get((prediction, metric)),
                )
                found.append(propose(source, terms))
    return [proposal for proposal in found if proposal is not None]


def replay_on(history: History, range_: HealthyRange, terms: Terms, *, growth: float = 0.0) -> Replay:
    """Returns what a range would have done to a history, its labels complete: by windows that end a step apart.

    Args:
        history: what is held against it.
        range_: the range.
        terms: whose objective tells what pages.
        growth: of the logarithm of the values, a day: the range is for those at the history's end.
    """
    width = range_.window // timedelta(minutes=1)
    values = _values(history.windows(width), terms)
    low, high = limits_at(range_, values.ends)
    value = np.exp(values.log - growth * _days(values, history))
    sigmas = _INTERVAL_SIGMAS * np.sqrt(values.variance)
    usable = values.usable
    if terms.metric is not Metric.VOLUME:
        # As the evaluator has it: wider than the range and reaching into it says nothing.
        ends = value * np.exp(-sigmas), value * np.exp(sigmas)
        usable = usable & ~((ends[1] - ends[0] > high - low) & (ends[0] <= high) & (ends[1] >= low))
    bad = usable & ((value < low) | (value > high))
    slices = np.where(bad, Slice.BAD, np.where(usable, Slice.GOOD, Slice.UNKNOWN)).astype(np.uint8)
    pages = _page_minutes(np.repeat(slices, history.step), terms.target)
    first = int(values.ends[0]) - history.step + 1 if len(values) else 0
    return Replay(
        _episodes(values, bad, np.where(value > high, value / high, low / np.maximum(value, 1e-300)), value),
        tuple(moment_of(first + int(minute)) for minute in pages),
        int(np.count_nonzero(usable)) // max(1, values.times),
        _points(values.ends[usable], value[usable], low[usable], high[usable]),
    )


def limits_at(range_: HealthyRange, ends: Integers) -> tuple[Floats, Floats]:
    """Returns both ends of a range for windows that end at these minutes: `HealthyRange.at`, of many."""
    if not range_.hour_of_week_factors:
        return np.full(len(ends), range_.low), np.full(len(ends), range_.high)
    factors = np.array(range_.hour_of_week_factors)[hours_of_week(ends)]
    return range_.low * factors, range_.high * factors


def _page_minutes(slices: Slices, target: float) -> Integers:
    """Returns the minutes at which a page begins."""
    if not (slices == Slice.BAD).any():
        return np.empty(0, dtype=np.int64)
    firing = slo.firing(slices, target, slo.Response.PAGE)
    return np.flatnonzero(firing & ~np.concatenate(([False], firing[:-1])))


def _episodes(values: Values, bad: Flags, distance: Floats, value: Floats) -> tuple[Outside, ...]:
    """Returns the runs of windows that are bad: the last hundred."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], bad.astype(np.int8), [0]))))
    found = []
    for first, end in list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))[-_MOST_EPISODES:]:
        worst = first + int(np.argmax(distance[first:end]))
        start, last = int(values.ends[first]) - values.width, int(values.ends[end - 1])
        found.append(Outside(moment_of(start), moment_of(last), float(value[worst])))
    return tuple(found)


def _points(ends: Integers, value: Floats, low: Floats, high: Floats) -> tuple[RangePoint, ...]:
    """Returns the window that is furthest from the middle of its range, of each stretch of equal length."""
    if not len(ends):
        return ()
    width = -(-len(ends) // _MOST_POINTS)
    starts = np.arange(0, len(ends), width)
    distance = np.abs(np.log(np.maximum(value, 1e-300) / np.sqrt(np.maximum(low, 1e-6) * high)))
    chosen = [first + int(np.argmax(distance[first : first + width])) for first in starts.tolist()]
    return tuple(
        RangePoint(moment_of(int(ends[index])), float(value[index]), Limits(float(low[index]), float(high[index])))
        for index in chosen
    )


def _values(windows: Windows, terms: Terms) -> Values:
    if terms.metric is Metric.CALIBRATION:
        return calibrations(windows, terms.prediction.min_positives)
    if terms.metric is Metric.NE:
        return entropies(windows, terms.prediction.min_positives)
    return volumes(windows)


def _best(history: History, terms: Terms) -> _Fit | None:
    """Returns the fit for the width that is asked for, else for the one that sees faults soonest; None: too few."""
    base = _base(history, terms)
    if base is None:
        return None
    wanted = (terms.width,) if terms.width else WIDTHS
    fits = []
    for width in wanted:
        if width >= base.width and history.steps * history.step >= _FEWEST_WINDOWS * width:
            fit = _fit(history, base, width, terms)
            if fit is not None:
                fits.append(fit)
    if not fits:
        return None
    fault = _FAULTS[terms.metric]
    known = [fit for fit in fits if fit.share >= _MOST] or [max(fits, key=lambda fit: fit.share)]
    big = {fit.values.width: fit.minutes_to_see(fault.big) for fit in known}
    best = min(big.values())
    if math.isinf(best):
        return min(known, key=lambda fit: fit.reach.above + fit.reach.below)
    soon = [fit for fit in known if big[fit.values.width] <= max(_SOON, 1.5 * best)]
    return min(soon, key=lambda fit: (fit.minutes_to_see(fault.small), big[fit.values.width]))


def _base(history: History, terms: Terms) -> Values | None:
    """Returns the shortest windows of which most hold enough, else the widest of which half do; None: too few."""
    half = None
    for width in sorted({history.step, *WIDTHS}):
        if width % history.step or width > history.steps * history.step:
            continue
        windows = history.windows(width)
        values = _values(windows, terms)
        used = int(np.count_nonzero(values.usable))
        share = used / max(1, int(np.count_nonzero(windows.of("seen"))))
        enough = used // values.times >= MIN_RESIDUALS
        if share >= _MOST:
            return values if enough else half
        half = values if enough and share >= _HALF else half
    return half


def _fit(history: History, base: Values, width: int, terms: Terms) -> _Fit | None:
    windows = history.windows(width)
    values = _values(windows, terms)
    if not values.usable.any():
        return None
    values, growth = _without_growth(values, history) if terms.metric is Metric.VOLUME else (values, 0.0)
    base = replace(base, log=base.log - growth * _days(base, history))
    seasonal = history.days >= SEASONAL_DAYS
    middle = centre(values, _weights(values), seasonal=seasonal)
    base_middle = centre(base, _weights(base), seasonal=seasonal)
    varies = spread(values, base, middle.residuals, base_middle.residuals)
    alpha = _alpha(terms, width, wander=varies.share)
    coverage = _coverage(terms, width)
    variance, count = values.variance[values.usable], values.count[values.usable]
    found = reach(varies, variance, count, alpha, coverage=coverage)
    least = _NARROWEST[terms.metric]
    ahead = growth * _AHEAD_DAYS
    found = Reach(max(least, found.below) + max(0.0, -ahead), max(least, found.above) + max(0.0, ahead))
    there = windows.of("seen") > 0.0
    wide = math.exp(middle.level) * (math.exp(found.above) - math.exp(-found.below))
    interval = math.exp(middle.level) * 2.0 * np.sinh(_INTERVAL_SIGMAS * np.sqrt(values.variance / coverage))
    decidable = values.usable if terms.metric is Metric.VOLUME else values.usable & (interval <= wide)
    residuals = int(np.count_nonzero(base.usable)) // base.times
    return _Fit(values, middle, varies, found, growth, residuals, decidable[there])


def _coverage(terms: Terms, width: int) -> float:
    """Returns the share of the labels that have come when a window is judged: as soon as there are enough of them."""
    if terms.delays is None or terms.metric is not Metric.CALIBRATION:
        return 1.0
    minutes = width + terms.prediction.attribution_window // timedelta(minutes=1) + 1
    running: Floats = np.zeros(minutes + 1)
    running[1:] = np.cumsum(terms.delays.shares(np.arange(minutes, dtype=np.float64) + 0.5))
    shares = (running[width:] - running[:-width]) / width
    enough = np.flatnonzero(shares >= terms.prediction.min_label_coverage)
    return float(shares[enough[0] if len(enough) else -1])


def _table_width(width: int) -> int:
    """Returns the width of WIDTHS that is nearest, as ratios go."""
    ratios = np.array(WIDTHS, dtype=np.float64) / width
    return WIDTHS[int(np.argmin(np.abs(np.log(ratios))))]


def _weights(values: Values) -> Floats:
    """Returns what windows say: less where sampling blurs it, but never as if nothing else did."""
    usual = float(np.median(values.variance[values.usable]))
    return 1.0 / (values.variance + usual + 1e-12)


def _days(values: Values, history: History) -> Floats:
    """Returns how many days before the end of the history windows end; negative."""
    return (values.ends - history.end) / 1440.0


def _without_growth(values: Values, history: History) -> tuple[Values, float]:
    """Returns the values as they would be at the history's end, and their growth a day where it is more than chance."""
    if history.days < SEASONAL_DAYS:
        return values, 0.0
    days = _days(values, history)
    whole = np.floor(days[values.usable]).astype(np.int64)
    _, place, number = np.unique(whole, return_inverse=True, return_counts=True)
    means = np.bincount(place, values.log[values.usable]) / number
    # Days of the week differ: a week earlier is compared with the same day.
    if len(means) < 14:
        return values, 0.0
    steps = means[7:] - means[:-7]
    slope = float(np.median(steps)) / 7.0
    # Of the median of steps, seven of which share a week with each other; days cut short do not count for much.
    varies = 1.4826 * float(np.median(np.abs(steps - np.median(steps))))
    error = 1.2533 * varies / 7.0 / math.sqrt(max(1.0, len(means) / 7.0 - 1.0))
    if abs(slope) <= _GROWTH_SIGMAS * error:
        return values, 0.0
    return replace(values, log=values.log - slope * days), slope


def _range(fit: _Fit, history: History, terms: Terms) -> HealthyRange:
    hours = fit.centre.hours
    factors = () if hours is None else tuple(np.round(np.exp(np.clip(hours, -6.9, 6.9)), 6).tolist())
    level = fit.centre.level
    return HealthyRange(
        prediction=terms.prediction.id,
        metric=terms.metric,
        low=_digits(math.exp(level - fit.reach.below), up=False),
        high=_digits(math.exp(level + fit.reach.above), up=True),
        hour_of_week_factors=factors,
        window=timedelta(minutes=fit.values.width),
        history_start_time=moment_of(history.start),
        history_end_time=moment_of(history.end),
        residuals=fit.residuals,
        pages_per_week=terms.pages_per_week,
    )


def _default(history: History, terms: Terms) -> Proposal | None:
    """Returns a range that is wide and safe."""
    width, limits = _default_limits(history, terms)
    if limits is None:
        return None
    range_ = HealthyRange(
        terms.prediction.id,
        terms.metric,
        limits.low,
        limits.high,
        window=timedelta(minutes=width),
        history_start_time=moment_of(history.start) if history.steps else None,
        history_end_time=moment_of(history.end) if history.steps else None,
        pages_per_week=terms.pages_per_week,
    )
    replay = replay_on(history, range_, terms) if _holds(history, width) else Replay((), (), 0, ())
    text = f"Fewer than {MIN_RESIDUALS} windows hold enough to go by: a wide, safe default"
    return _proposal(range_, Basis.DEFAULT, text, replay, terms)


def _default_limits(history: History, terms: Terms) -> tuple[int, Limits | None]:
    """Returns a width and what is safe there: of calibration, more than its usual default where positives are few."""
    width = terms.width or _DEFAULT_WIDTH
    if terms.metric is Metric.NE:
        return width, _DEFAULTS[terms.metric]
    if terms.metric is Metric.VOLUME:
        if not _holds(history, width):
            return width, None
        examples = history.windows(width).of("seen")
        low, high = float(examples.min()) / _DEFAULT_VOLUME, float(examples.max()) * _DEFAULT_VOLUME
        return width, Limits(_digits(low, up=False), _digits(high, up=True))
    usual = safe = _DEFAULTS[terms.metric]
    for tried in (terms.width,) if terms.width else WIDTHS[WIDTHS.index(_DEFAULT_WIDTH) :]:
        values = _values(history.windows(tried), terms) if _holds(history, tried) else None
        if values is None or not values.usable.any():
            continue
        alpha = _alpha(terms, tried, wander=1.0)
        found = reach(ASSUMED, values.variance[values.usable], values.count[values.usable], alpha)
        low, high = _digits(math.exp(-found.below), up=False), _digits(math.exp(found.above), up=True)
        width, safe = tried, Limits(min(usual.low, low), max(usual.high, high))
        if safe == usual:
            break
    return width, safe


def _alpha(terms: Terms, width: int, *, wander: float) -> float:
    """Returns the share of windows that may lie outside."""
    pages = terms.pages_per_week / terms.ranges
    return false_alarms.tail(_table_width(width), terms.target, pages, wander=wander, metrics=terms.ranges)


def _holds(history: History, width: int) -> bool:
    return history.steps * history.step >= width


def _proposal(range_: HealthyRange, basis: Basis, text: str, replay: Replay, terms: Terms) -> Proposal:
    current = terms.current
    now = None if current is None else Limits(current.low, current.high)
    text = f"{text}. {_would_have(replay, range_)}"
    return Proposal(
        range_,
        basis,
        text,
        now,
        replay.outside,
        len(replay.page_times),
        replay.page_times,
        replay.windows,
        replay.history,
    )


def _would_have(replay: Replay, range_: HealthyRange) -> str:
    times = replay.page_times
    start, end = range_.history_start_time, range_.history_end_time
    if start is None or end is None:
        return "There is no history to try it on."
    days = (end - start) / timedelta(days=1)
    over = f"in the {days:.0f} days" if days >= 2 else f"in the {days * 24:.0f} hours"
    if not times:
        return f"It would not have paged {over} of the history."
    when = ", ".join(f"{moment:%Y-%m-%d %H:%M}" for moment in times[:3]) + (" …" if len(times) > 3 else "")
    return f"It would have paged {len(times)} {'time' if len(times) == 1 else 'times'} {over} of the history: {when}."


def _words(fit: _Fit, history: History, basis: Basis) -> str:
    days = history.days
    span = f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"
    seasons = "a centre for each hour of the week" if basis is Basis.SEASONAL else "one centre"
    parts = [f"{fit.residuals} windows of {span}, {seasons}"]
    if fit.spread.tails:
        parts.append("tails heavier than normal")
    if fit.growth:
        parts.append(f"growth of {math.expm1(7 * fit.growth):+.1%} a week allowed for over four weeks")
    if fit.share < _MOST:
        parts.append(f"{fit.share:.0%} of the windows hold enough to decide on")
    return "; ".join(parts)


def _digits(value: float, *, up: bool) -> float:
    """Returns a number with four digits that mean something, rounded outwards."""
    if value <= 0.0:
        return 0.0
    scale = 10.0 ** (3 - math.floor(math.log10(value)))
    return (math.ceil if up else math.floor)(value * scale) / scale
