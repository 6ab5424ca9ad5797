"""What a range would have done to a history: when windows were outside, and when somebody had been woken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from modelfleetd.stability.domain import slo
from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.history import (
    Flags,
    History,
    Values,
    hours_of_week,
)
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.range_fit import INTERVAL_SIGMAS, days_before
from modelfleetd.stability.domain.range_terms import Terms, values_of
from modelfleetd.stability.domain.slices import Slice, Slices

_MOST_EPISODES: Final = 100
_MOST_POINTS: Final = 2000


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


def replay_on(history: History, range_: HealthyRange, terms: Terms, *, growth: float = 0.0) -> Replay:
    """Returns what a range would have done to a history, its labels complete: by windows that end a step apart.

    Args:
        history: what is held against it.
        range_: the range.
        terms: whose objective tells what pages.
        growth: of the logarithm of the values, a day: the range is for those at the history's end.
    """
    width = range_.window // timedelta(minutes=1)
    values = values_of(history.windows(width), terms)
    low, high = limits_at(range_, values.ends)
    value = np.exp(values.log - growth * days_before(values, history))
    sigmas = INTERVAL_SIGMAS * np.sqrt(values.variance)
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
