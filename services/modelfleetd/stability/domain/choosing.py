"""Which window is the newest that can be decided: of many series at one moment, or of one at each of the past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleetd.stability.domain.cumulated import Cumulated, cumulate
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HealthyRange
from modelfleetd.stability.domain.minute_series import MinuteSeries
from modelfleetd.stability.domain.sliding import sliding
from modelfleetd.stability.domain.window_kinds import Case, WindowKind, corrects, label_lag, shares_at
from modelfleetd.stability.domain.window_limits import all_limits, limits_at
from modelfleetd.stability.domain.window_verdict import Flags, WindowSums, is_decidable, is_decidable_by_entropy

# A window of volume ends at least so many minutes before now.
SETTLING: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Windows that were chosen, or looked at: (series, points)."""

    ends: Integers
    expected: Floats  # Σ S·F
    observed: Floats  # by then


def choose_calibration(kind: WindowKind, cumulated: Cumulated, cases: Sequence[Case], now: int) -> Chosen:
    """Returns the newest decidable window of each series at one moment."""
    ages = np.arange(now - cumulated.start, now - cumulated.end, -1, dtype=np.float64) - 0.5
    shares = {id(case.delays): shares_at(kind, case.delays, ages) for case in cases}
    share = np.stack([shares[id(case.delays)] for case in cases])
    by_now = cumulate(cumulated.column("expected") - cumulated.column("waiting_expected") * (1.0 - share))
    waits = cumulated.waits[:, 0].tolist()
    need = np.array([label_lag(kind, case.delays) if wait else 0 for case, wait in zip(cases, waits, strict=True)])
    lags = np.arange(0, int(need.max()) + kind.width + 1, kind.step)
    ends = (now - lags)[np.newaxis]
    expected = cumulated.difference(by_now, ends - kind.width, ends)
    observed = cumulated.window("observed", ends)
    sums = _decisive(kind, cumulated, ends, expected, observed, cumulated.window("observed_squares", ends))
    low, _ = all_limits([case.healthy for case in cases], np.broadcast_to(ends, (len(cases), len(lags))))
    newest = np.where([corrects(kind, case.delays) for case in cases], 0, need)
    allowed = (lags >= newest[:, np.newaxis]) & (lags <= need[:, np.newaxis] + kind.width)
    lag = _first(is_decidable(sums, low, kind.demand) & allowed, default=-(-need // kind.step))
    rows = np.arange(len(cases))
    chosen = now - lags[lag]
    return Chosen(chosen[:, np.newaxis], expected[rows, lag][:, np.newaxis], observed[rows, lag][:, np.newaxis])


def replay_calibration(
    kind: WindowKind,
    series: MinuteSeries,
    cumulated: Cumulated,
    healthy: HealthyRange,
    delays: Delays,
    moments: Integers,
) -> Chosen:
    """Returns the window that would have been chosen at each moment."""
    need = label_lag(kind, delays) if series.waiting.any() else 0
    newest = 0 if corrects(kind, delays) else need
    default = -(-need // kind.step) * kind.step
    ends, expected, observed = (np.zeros(len(moments), dtype=kind_of) for kind_of in (np.int64, float, float))
    undecided = np.ones(len(moments), dtype=bool)
    for lag, by_now, came in sliding(kind, series, delays, moments, need + kind.width):
        if lag >= newest and lag % kind.step == 0:
            end = (moments - lag)[undecided]
            # What is visible of the positives is taken to weigh as all of them do.
            total = cumulated.window("observed", end[np.newaxis])
            weighing = cumulated.window("observed_squares", end[np.newaxis]) / np.where(total > 0, total, 1.0)
            now, there = by_now[undecided], came[undecided]
            sums = _decisive(kind, cumulated, end[np.newaxis], now[np.newaxis], there[np.newaxis], weighing * there)
            found = is_decidable(sums, limits_at(healthy, end)[0][np.newaxis], kind.demand)[0]
            if lag == default:
                ends[undecided], expected[undecided], observed[undecided] = end, now, there
            chosen = np.flatnonzero(undecided)[found]
            ends[chosen], expected[chosen], observed[chosen] = end[found], now[found], there[found]
            undecided[chosen] = False
            if not undecided.any():
                break
    return Chosen(ends[np.newaxis], expected[np.newaxis], observed[np.newaxis])


def choose_entropy(kind: WindowKind, cumulated: Cumulated, now: int) -> Chosen:
    """Returns the newest decidable window of mature minutes, of each series at one moment."""
    ends = now - _mature_lags(kind, cumulated)
    found = _is_decidable_by_entropy(kind, cumulated, ends)
    place = _first(found, default=np.zeros(len(found), dtype=np.int64))
    return _by_entropy(cumulated, np.take_along_axis(ends, place[:, np.newaxis], axis=1))


def replay_entropy(kind: WindowKind, cumulated: Cumulated, moments: Integers) -> Chosen:
    """Returns the window of one series that would have been chosen at each moment."""
    lags = _mature_lags(kind, cumulated)[0].tolist()
    ends = moments - lags[0]
    undecided = np.arange(len(moments))
    for lag in lags:
        end = (moments - lag)[undecided]
        found = _is_decidable_by_entropy(kind, cumulated, end[np.newaxis])[0]
        ends[undecided[found]] = end[found]
        undecided = undecided[~found]
        if not len(undecided):
            break
    return _by_entropy(cumulated, ends[np.newaxis])


def _mature_lags(kind: WindowKind, cumulated: Cumulated) -> Integers:
    """Returns how long before now windows may end: (series, lags). Labels that come with their examples are there."""
    newest = np.where(cumulated.waits, kind.maturity, 0)
    return newest + np.arange(0, kind.width + 1, kind.step)


def _is_decidable_by_entropy(kind: WindowKind, cumulated: Cumulated, ends: Integers) -> Flags:
    chosen = _by_entropy(cumulated, ends)
    squares = cumulated.window("observed_squares", ends)
    return is_decidable_by_entropy(
        _decisive(kind, cumulated, ends, chosen.expected, chosen.observed, squares), kind.demand
    )


def _by_entropy(cumulated: Cumulated, ends: Integers) -> Chosen:
    return Chosen(ends, cumulated.window("expected", ends), cumulated.window("observed", ends))


def _decisive(
    kind: WindowKind, cumulated: Cumulated, ends: Integers, expected: Floats, observed: Floats, squares: Floats
) -> WindowSums:
    """Returns those sums of windows that say whether they can be decided; the others are 0."""
    nothing = np.zeros(expected.shape)
    return WindowSums(
        examples=cumulated.window("examples", ends),
        weight=cumulated.window("weight", ends),
        weight_squares=cumulated.window("weight_squares", ends),
        expected=expected,
        variance=nothing,
        positives=nothing,
        observed=observed,
        observed_squares=squares,
        label_coverage=coverage(kind, cumulated, ends, expected),
        loss=nothing,
        loss_by_squares=nothing,
        loss_squares=nothing,
        positive_loss=nothing,
    )


def coverage(kind: WindowKind, cumulated: Cumulated, ends: Integers, expected: Floats) -> Floats:
    """Returns the share of the labels that have come: by the delays; where only what has one counts, by count."""
    if kind.ignores_missing:
        have, all_ = cumulated.window("examples", ends), cumulated.window("seen", ends)
        all_ = np.maximum(have, all_)
    else:
        have, all_ = expected, cumulated.window("expected", ends)
    # Nothing predicted means that there is nothing to wait for.
    return np.divide(have, all_, out=np.ones(have.shape), where=all_ > 0)


def newest_volume(kind: WindowKind, cumulated: Cumulated, now: int) -> Integers:
    """Returns the end of each series' newest window of volume: (series, 1)."""
    there = cumulated.column("seen") > 0
    newest = np.where(there.any(axis=1), cumulated.end - 1 - np.argmax(there[:, ::-1], axis=1), 0)
    late = _lateness(kind, cumulated.waits[:, 0])
    return np.clip(newest, now - late, now - SETTLING)[:, np.newaxis]


def volume_ends(kind: WindowKind, series: MinuteSeries, moments: Integers) -> Integers:
    minutes = np.arange(series.start, series.end)
    newest = np.maximum.accumulate(np.where(series.seen > 0, minutes, 0))
    places = moments - 1 - series.start
    found = np.where(places >= 0, newest[np.clip(places, 0, series.minutes - 1)], 0)
    late = _lateness(kind, np.any(series.waiting > 0, keepdims=True))
    return np.clip(found, moments - late, moments - SETTLING)


def _lateness(kind: WindowKind, waits: Flags) -> Integers:
    """Returns how late data may be: examples that are sent with their labels come when these are known."""
    return np.where(waits, kind.tolerance, kind.tolerance + kind.maturity)


def _first(flags: Flags, default: Integers) -> Integers:
    """Returns the first place of each row that is set."""
    found: Integers = np.where(flags.any(axis=1), np.argmax(flags, axis=1), np.minimum(default, flags.shape[1] - 1))
    return found
