"""A range that fits a history: its centre by hour of week, its spread, and how far out pages allow it to be.

Of all widths of windows the one is taken that sees faults soonest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from statistics import NormalDist
from typing import Final

import numpy as np

from modelfleetd.stability.domain import false_alarms
from modelfleetd.stability.domain.exact import Floats
from modelfleetd.stability.domain.fleet import Metric
from modelfleetd.stability.domain.history import (
    Flags,
    History,
    Values,
)
from modelfleetd.stability.domain.range_terms import Terms, values_of
from modelfleetd.stability.domain.seasons import SEASONAL_DAYS, Centre, centre
from modelfleetd.stability.domain.tolerance import Reach, Spread, reach, spread

MIN_RESIDUALS: Final = 200
WIDTHS: Final = (5, 15, 30, 60, 360, 1440)
# Of 99 % intervals, which a window must know better than its range is wide.
INTERVAL_SIGMAS: Final = 2.5758293
# So many of the windows must hold enough to be decided on.
MOST: Final = 0.9
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


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
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


def best_fit(history: History, terms: Terms) -> Fit | None:
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
    known = [fit for fit in fits if fit.share >= MOST] or [max(fits, key=lambda fit: fit.share)]
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
        values = values_of(windows, terms)
        used = int(np.count_nonzero(values.usable))
        share = used / max(1, int(np.count_nonzero(windows.of("seen"))))
        enough = used // values.times >= MIN_RESIDUALS
        if share >= MOST:
            return values if enough else half
        half = values if enough and share >= _HALF else half
    return half


def _fit(history: History, base: Values, width: int, terms: Terms) -> Fit | None:
    windows = history.windows(width)
    values = values_of(windows, terms)
    if not values.usable.any():
        return None
    values, growth = _without_growth(values, history) if terms.metric is Metric.VOLUME else (values, 0.0)
    base = replace(base, log=base.log - growth * days_before(base, history))
    seasonal = history.days >= SEASONAL_DAYS
    middle = centre(values, _weights(values), seasonal=seasonal)
    base_middle = centre(base, _weights(base), seasonal=seasonal)
    varies = spread(values, base, middle.residuals, base_middle.residuals)
    alpha = alpha_of(terms, width, wander=varies.share)
    coverage = _coverage(terms, width)
    variance, count = values.variance[values.usable], values.count[values.usable]
    found = reach(varies, variance, count, alpha, coverage=coverage)
    least = _NARROWEST[terms.metric]
    ahead = growth * _AHEAD_DAYS
    found = Reach(max(least, found.below) + max(0.0, -ahead), max(least, found.above) + max(0.0, ahead))
    there = windows.of("seen") > 0.0
    wide = math.exp(middle.level) * (math.exp(found.above) - math.exp(-found.below))
    interval = math.exp(middle.level) * 2.0 * np.sinh(INTERVAL_SIGMAS * np.sqrt(values.variance / coverage))
    decidable = values.usable if terms.metric is Metric.VOLUME else values.usable & (interval <= wide)
    residuals = int(np.count_nonzero(base.usable)) // base.times
    return Fit(values, middle, varies, found, growth, residuals, decidable[there])


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


def days_before(values: Values, history: History) -> Floats:
    """Returns how many days before the end of the history windows end; negative."""
    return (values.ends - history.end) / 1440.0


def _without_growth(values: Values, history: History) -> tuple[Values, float]:
    """Returns the values as they would be at the history's end, and their growth a day where it is more than chance."""
    if history.days < SEASONAL_DAYS:
        return values, 0.0
    days = days_before(values, history)
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


def alpha_of(terms: Terms, width: int, *, wander: float) -> float:
    """Returns the share of windows that may lie outside."""
    pages = terms.pages_per_week / terms.ranges
    return false_alarms.tail(_table_width(width), terms.target, pages, wander=wander, metrics=terms.ranges)
