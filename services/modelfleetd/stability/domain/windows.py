"""The newest decidable window of a metric, and its verdict: of one series, of a fleet at once, or at every past minute.

A range is for windows of one width. Each minute the newest such window that can be decided is judged:

- Which one that is depends on what was predicted, not on the positives that came: enough of them must be *expected* by
  now. Were it chosen by the positives found, a rare prediction would be judged on its luckiest windows, and one that
  loses its labels on the last window that still had them.
- While labels are still to come, a minute's predicted positives count with the share F(age) of labels that should have
  come by now, so that positives that are merely late are no evidence.
- NE is of mature windows only.
- A verdict is not carried on for ever. The oldest window looked at is one width older than the labels make necessary:
  their coverage reaches its floor at some age, NE is mature at one. If none is decidable, the answer is UNKNOWN.
- VOLUME is judged up to the newest minute that has data, since the last minutes may still be on their way; what is
  missing for longer than data may be late counts as missing, so that silence is a drop and not a gap.

All is arithmetic over arrays of minutes. The only loop is over the lags of a replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

import numpy as np

from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.estimates import Estimate, State
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HealthyRange, Metric, hour_of_week
from modelfleetd.stability.domain.maturity import AGE_BOUNDS, DELIVERY, MINUTE_MICROS, completion, minute_of, moment_of
from modelfleetd.stability.domain.window_verdict import (
    Codes,
    Demand,
    Flags,
    Judged,
    Reason,
    Stability,
    WindowSums,
    explain,
    is_decidable,
    is_decidable_by_entropy,
    judge_calibration,
    judge_entropy,
    judge_volume,
)

# A window of volume ends at least so many minutes before now.
SETTLING: Final = 2

_MINUTE: Final = timedelta(minutes=1)
# Of series that are decided together: more of them cost memory and save nothing.
_ROWS: Final = 128
# Wide windows are looked for in steps of a sixtieth of their width.
_STEPS: Final = 60


@dataclass(frozen=True, slots=True, eq=False)
class MinuteSeries:
    """What is known of series by minute of event time: minutes along the last axis, one of series before it or none.

    All are sums in natural units, as `Sums` has them; positives as far as they have come. Other minutes have no data.
    """

    start: int  # the first minute, since 1970
    examples: Floats
    weight: Floats  # Σw
    weight_squares: Floats  # Σw²
    expected: Floats  # S = Σwp
    expected_variance: Floats  # Σw²p(1 − p)
    loss: Floats  # Σwl
    loss_by_squares: Floats  # Σw²l
    loss_squares: Floats  # Σw²l²
    positives: Floats
    observed: Floats  # Σwy
    observed_squares: Floats  # Σw²y
    positive_loss: Floats  # Σw²ly
    waiting: Floats  # examples whose labels come later than they do
    waiting_expected: Floats  # Σwp of these
    seen: Floats  # predictions, also those that have no label and do not count for that
    # Of the observed those that came later than their examples, by bucket of age: (buckets, minutes). For replays.
    arrivals: Floats | None = None

    @property
    def minutes(self) -> int:
        return int(self.examples.shape[-1])

    @property
    def end(self) -> int:
        """The minute after the last."""
        return self.start + self.minutes

    def between(self, start: int, end: int) -> MinuteSeries:
        """Returns the minutes of a span, whether or not they are known. Without arrivals."""
        low, high = max(start, self.start), min(end, self.end)

        def cut(column: Floats) -> Floats:
            if low == start and high == end:
                return column[..., low - self.start : high - self.start]
            padded = np.zeros((*column.shape[:-1], end - start))
            if low < high:
                padded[..., low - start : high - start] = column[..., low - self.start : high - self.start]
            return padded

        return MinuteSeries(start, *(cut(getattr(self, name)) for name in COLUMNS))


COLUMNS: Final = tuple(field.name for field in fields(MinuteSeries))[1:-1]


def empty_series(start: int, *shape: int) -> MinuteSeries:
    """Returns series without data, whose columns can be filled: of this number of series, if any, and minutes."""
    return MinuteSeries(start, *(np.zeros(shape) for _ in COLUMNS))


@dataclass(frozen=True, slots=True)
class WindowVerdict:
    """The verdict of a metric's newest decidable window; where there is none, of the newest that might have been."""

    prediction: str
    metric: Metric
    state: Stability
    reason: Reason
    estimate: Estimate
    limits: Limits
    start: datetime
    end: datetime
    immature: bool  # labels of the window are still to come; the value is corrected for their delay
    label_coverage: float
    positives: int
    examples: int
    demand: Demand

    @property
    def explanation(self) -> str:
        """Returns in words what was found, over which time, and what it is held against."""
        return explain(
            self.prediction,
            self.metric,
            self.reason,
            self.estimate,
            self.limits,
            self.demand,
            (self.start, self.end),
            self.positives,
            self.examples,
            self.label_coverage,
            immature=self.immature,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """Verdicts of windows of one width, as arrays."""

    metric: Metric
    width: int  # minutes
    demand: Demand
    judged: Judged
    limit_low: Floats
    limit_high: Floats
    end: Integers  # the minute after the window's last
    immature: Flags
    label_coverage: Floats
    positives: Floats
    examples: Floats

    @property
    def state(self) -> Codes:
        """Values of Stability."""
        return self.judged.state

    @property
    def value(self) -> Floats:
        """0 where there is none."""
        return self.judged.value

    def all(self, predictions: Sequence[str]) -> list[WindowVerdict]:
        """Returns them one by one; of the prediction of each."""
        judged, ends = self.judged, self.end.tolist()
        # Most of them end together.
        times = {end: (moment_of(end - self.width), moment_of(end)) for end in set(ends)}
        estimates = zip(
            judged.known.tolist(), judged.value.tolist(), judged.low.tolist(), judged.high.tolist(), strict=True
        )
        limits = zip(self.limit_low.tolist(), self.limit_high.tolist(), strict=True)
        columns = zip(
            predictions,
            judged.state.tolist(),
            judged.reason.tolist(),
            estimates,
            limits,
            ends,
            self.immature.tolist(),
            self.label_coverage.tolist(),
            self.positives.tolist(),
            self.examples.tolist(),
            strict=True,
        )
        return [
            WindowVerdict(
                prediction,
                self.metric,
                _STABILITIES[state],
                _REASONS[reason],
                Estimate(_STATES[known], *numbers),
                Limits(*range_),
                *times[end],
                immature,
                coverage,
                round(positives),
                round(examples),
                self.demand,
            )
            for (
                prediction, state, reason, (known, *numbers), range_, end, immature, coverage, positives, examples,
            ) in columns
        ]  # fmt: skip


# By value: calling the class is several times slower.
_STABILITIES: Final = {each.value: each for each in Stability}
_REASONS: Final = {each.value: each for each in Reason}
_STATES: Final = {each.value: each for each in State}


@dataclass(frozen=True, slots=True)
class Case:
    """A metric of a series, and what it is held against."""

    row: int  # of the series
    healthy: HealthyRange
    prediction: DeclaredPrediction
    delays: Delays


def decide(
    series: MinuteSeries, healthy: HealthyRange, prediction: DeclaredPrediction, delays: Delays, now: datetime
) -> WindowVerdict:
    """Returns the verdict of the newest decidable window of one series; for VOLUME, of the route's.

    The series should go back by `minutes_needed`; what is before its start counts as empty.
    """
    one = MinuteSeries(series.start, *(getattr(series, name)[np.newaxis] for name in COLUMNS))
    return decide_many(one, [Case(0, healthy, prediction, delays)], now)[0]


def decide_many(series: MinuteSeries, cases: Sequence[Case], now: datetime) -> list[WindowVerdict]:
    """Returns the verdict of each case, as `decide` does, in their order. Those of one kind are decided together.

    Args:
        series: a matrix of series × minutes.
        cases: metrics of these series.
        now: the moment, cut to the minute.
    """
    groups: dict[_Kind, list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault(_Kind.of(case.healthy, case.prediction), []).append(index)
    found: dict[int, WindowVerdict] = {}
    for kind, indexes in groups.items():
        for first in range(0, len(indexes), _ROWS):
            chosen = indexes[first : first + _ROWS]
            group = [cases[index] for index in chosen]
            verdicts = _decide_group(series, kind, group, minute_of(now))
            found |= zip(chosen, verdicts.all([case.healthy.prediction for case in group]), strict=True)
    return [found[index] for index in range(len(cases))]


def decide_all(
    series: MinuteSeries,
    healthy: HealthyRange,
    prediction: DeclaredPrediction,
    delays: Delays,
    first: int,
    end: int,
) -> Verdicts:
    """Returns what `decide` would have said of one series at each minute of the past, from `first` until before `end`.

    Examples count from their minute on. Labels count from when they came (`series.arrivals`), evenly over each bucket
    of age, as `Delays` has it; without arrivals they came with their examples.
    """
    kind = _Kind.of(healthy, prediction)
    moments = np.arange(first, end)
    if kind.metric is Metric.VOLUME:
        ends = _volume_ends(kind, series, moments)
        return _judge_volume(kind, _Cumulated(_matrix(series), kind.width), ends[np.newaxis], [healthy])
    cumulated = _Cumulated(_matrix(series), kind.width)
    if kind.metric is Metric.NE:
        chosen = _replay_entropy(kind, cumulated, moments)
        return _judge(kind, cumulated, chosen, moments[np.newaxis], [healthy])
    chosen = _replay_calibration(kind, series, cumulated, healthy, delays, moments)
    return _judge(kind, cumulated, chosen, moments[np.newaxis], [healthy])


def minutes_needed(healthy: HealthyRange, prediction: DeclaredPrediction) -> int:
    """Returns how many minutes before now a verdict may look at."""
    return _Kind.of(healthy, prediction).needed


@dataclass(frozen=True, slots=True)
class _Kind:
    """What cases have in common that are decided together."""

    metric: Metric
    width: int  # minutes
    maturity: int  # minutes after which labels are complete
    ignores_missing: bool
    demand: Demand

    @staticmethod
    def of(healthy: HealthyRange, prediction: DeclaredPrediction) -> _Kind:
        return _kind(
            healthy.metric,
            healthy.window,
            prediction.attribution_window,
            prediction.ignores_missing,
            prediction.min_positives,
            prediction.min_label_coverage,
        )

    @property
    def step(self) -> int:
        return max(1, self.width // _STEPS)

    @property
    def needed(self) -> int:
        """Minutes before now that a verdict may look at."""
        return 2 * self.width + self.maturity + self.tolerance

    @property
    def tolerance(self) -> int:
        """Minutes that data may be late by, beyond the wait for labels of examples that are sent with them."""
        return DELIVERY // _MINUTE


@lru_cache(maxsize=1024)
def _kind(
    metric: Metric,
    window: timedelta,
    attribution_window: timedelta,
    ignores_missing: bool,
    min_positives: int,
    min_label_coverage: float,
) -> _Kind:
    """A fleet's thousands of metrics are of a few kinds."""
    maturity = -(-completion(attribution_window) // _MINUTE)
    return _Kind(metric, window // _MINUTE, maturity, ignores_missing, Demand(min_positives, min_label_coverage))


class _Cumulated:
    """Sums of windows of a matrix of series, each the difference of two cumulated sums."""

    def __init__(
        self, series: MinuteSeries, width: int, rows: Sequence[int] = (0,), span: tuple[int, int] | None = None
    ) -> None:
        """Makes them; of all minutes of the series, or of a span, whether or not all of it is known."""
        self.start, self.end = (series.start, series.end) if span is None else span
        self.width = width
        self._series, self._rows = series, np.array(rows)[:, np.newaxis]
        low, high = max(self.start, series.start), max(min(self.end, series.end), self.start)
        self._known = np.arange(low, max(low, high)) - series.start
        self._offset = low - self.start
        self._columns: dict[str, Floats] = {}

    def column(self, name: str) -> Floats:
        """Returns a column of the series that these are: rows × minutes. Only what is looked at is ever copied."""
        found: Floats = getattr(self._series, name)[self._rows, self._known]
        if found.shape[1] == self.end - self.start:
            return found
        padded = np.zeros((len(found), self.end - self.start))
        padded[:, self._offset : self._offset + found.shape[1]] = found
        return padded

    @property
    def waits(self) -> Flags:
        """Which series have examples whose labels come later: (series, 1)."""
        found: Flags = np.any(self.column("waiting") > 0, axis=1, keepdims=True)
        return found

    def window(self, column: str, ends: Integers) -> Floats:
        """Returns the sums of windows that end before these minutes: (series or 1, points)."""
        return self.between(column, ends - self.width, ends)

    def between(self, column: str, starts: Integers, ends: Integers) -> Floats:
        if column not in self._columns:
            self._columns[column] = _cumulate(self.column(column))
        return self.difference(self._columns[column], starts, ends)

    def difference(self, cumulated: Floats, starts: Integers, ends: Integers) -> Floats:
        """Returns the sums between minutes by a column that has been cumulated."""
        high, low = (np.clip(minutes - self.start, 0, self.end - self.start) for minutes in (ends, starts))
        if len(ends) == 1:
            return cumulated[:, high[0]] - cumulated[:, low[0]]
        return np.take_along_axis(cumulated, high, axis=1) - np.take_along_axis(cumulated, low, axis=1)


def _cumulate(column: Floats) -> Floats:
    found = np.zeros((column.shape[0], column.shape[1] + 1))
    np.cumsum(column, axis=1, out=found[:, 1:])
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """Windows that were chosen, or looked at: (series, points)."""

    ends: Integers
    expected: Floats  # Σ S·F
    observed: Floats  # by then


def _decide_group(series: MinuteSeries, kind: _Kind, cases: Sequence[Case], now: int) -> Verdicts:
    """Returns the verdicts of cases of one kind at a minute."""
    cumulated = _Cumulated(series, kind.width, [case.row for case in cases], (now - kind.needed, now))
    ranges = [case.healthy for case in cases]
    moments = np.full((len(cases), 1), now)
    if kind.metric is Metric.VOLUME:
        return _judge_volume(kind, cumulated, _newest_volume(kind, cumulated, now), ranges)
    if kind.metric is Metric.NE:
        return _judge(kind, cumulated, _choose_entropy(kind, cumulated, now), moments, ranges)
    return _judge(kind, cumulated, _choose_calibration(kind, cumulated, cases, now), moments, ranges)


def _choose_calibration(kind: _Kind, cumulated: _Cumulated, cases: Sequence[Case], now: int) -> _Chosen:
    """Returns the newest decidable window of each series at one moment."""
    ages = np.arange(now - cumulated.start, now - cumulated.end, -1, dtype=np.float64) - 0.5
    shares = {id(case.delays): _shares(kind, case.delays, ages) for case in cases}
    share = np.stack([shares[id(case.delays)] for case in cases])
    by_now = _cumulate(cumulated.column("expected") - cumulated.column("waiting_expected") * (1.0 - share))
    waits = cumulated.waits[:, 0].tolist()
    need = np.array([_label_lag(kind, case.delays) if wait else 0 for case, wait in zip(cases, waits, strict=True)])
    lags = np.arange(0, int(need.max()) + kind.width + 1, kind.step)
    ends = (now - lags)[np.newaxis]
    expected = cumulated.difference(by_now, ends - kind.width, ends)
    observed = cumulated.window("observed", ends)
    sums = _decisive(kind, cumulated, ends, expected, observed, cumulated.window("observed_squares", ends))
    low, _ = _all_limits([case.healthy for case in cases], np.broadcast_to(ends, (len(cases), len(lags))))
    allowed = lags <= need[:, np.newaxis] + kind.width
    lag = _first(is_decidable(sums, low, kind.demand) & allowed, default=-(-need // kind.step))
    rows = np.arange(len(cases))
    chosen = now - lags[lag]
    return _Chosen(chosen[:, np.newaxis], expected[rows, lag][:, np.newaxis], observed[rows, lag][:, np.newaxis])


def _replay_calibration(
    kind: _Kind,
    series: MinuteSeries,
    cumulated: _Cumulated,
    healthy: HealthyRange,
    delays: Delays,
    moments: Integers,
) -> _Chosen:
    """Returns the window that would have been chosen at each moment."""
    need = _label_lag(kind, delays) if series.waiting.any() else 0
    default = -(-need // kind.step) * kind.step
    ends, expected, observed = (np.zeros(len(moments), dtype=kind_of) for kind_of in (np.int64, float, float))
    undecided = np.ones(len(moments), dtype=bool)
    for lag, by_now, came in _sliding(kind, series, delays, moments, need + kind.width):
        if lag % kind.step == 0:
            end = (moments - lag)[undecided]
            # What is visible of the positives is taken to weigh as all of them do.
            total = cumulated.window("observed", end[np.newaxis])
            weighing = cumulated.window("observed_squares", end[np.newaxis]) / np.where(total > 0, total, 1.0)
            now, there = by_now[undecided], came[undecided]
            sums = _decisive(kind, cumulated, end[np.newaxis], now[np.newaxis], there[np.newaxis], weighing * there)
            found = is_decidable(sums, _limits(healthy, end)[0][np.newaxis], kind.demand)[0]
            if lag == default:
                ends[undecided], expected[undecided], observed[undecided] = end, now, there
            chosen = np.flatnonzero(undecided)[found]
            ends[chosen], expected[chosen], observed[chosen] = end[found], now[found], there[found]
            undecided[chosen] = False
            if not undecided.any():
                break
    return _Chosen(ends[np.newaxis], expected[np.newaxis], observed[np.newaxis])


def _sliding(
    kind: _Kind, series: MinuteSeries, delays: Delays, moments: Integers, last: int
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yields for each lag what was expected, and had been observed, by each moment of the window that ended then.

    From one lag to the next a window loses its newest minute and gains an older one: in age, not in time, so that both
    are weighed with the share of labels that had come at that age.
    """
    oldest = last + kind.width + 1
    first = int(moments[0]) - oldest
    part = series.between(first, int(moments[-1]) + 1)
    known = part.expected - part.waiting_expected
    come = None if series.arrivals is None else _come(series, first, int(moments[-1]) + 1)
    at_once = part.observed if come is None else np.maximum(part.observed - come[-1], 0.0)
    ages = np.arange(oldest, dtype=np.float64) + 0.5
    shares = _shares(kind, delays, ages)
    # How many buckets of age are over at each age, and how much of the next: in the last one labels come until the
    # attribution window ends.
    bounds = AGE_BOUNDS / MINUTE_MICROS
    bounds = np.concatenate(([0.0], bounds[bounds < delays.window / _MINUTE], [delays.window / _MINUTE]))
    places = np.interp(ages, bounds, np.arange(len(bounds)))
    places[ages >= bounds[-1]] = len(AGE_BOUNDS) + 1

    def of_age(age: int) -> tuple[Floats, Floats]:
        """Returns what the minute of this age, at each moment, had expected and observed by then."""
        at = slice(oldest - age, oldest - age + len(moments))
        expected = known[at] + part.waiting_expected[at] * shares[age - 1]
        if come is None:
            return expected, at_once[at]
        whole, share = divmod(float(places[age - 1]), 1.0)
        lower = come[int(whole)][at]
        return expected, at_once[at] + (lower if not share else lower + share * (come[int(whole) + 1][at] - lower))

    complete = min(kind.width, kind.maturity)
    rest = _Cumulated(_matrix(part), kind.width)
    older = (moments - kind.width)[np.newaxis], (moments - complete)[np.newaxis]
    expected, observed = rest.between("expected", *older)[0], rest.between("observed", *older)[0]
    for age in range(1, complete + 1):
        _add((expected, observed), of_age(age))
    # What rounding leaves of a positive that came and went is none, and not a very small one.
    nothing = _RESIDUE * float(part.observed.sum())
    for lag in range(last + 1):
        yield lag, expected, np.where(observed > nothing, observed, 0.0)
        _add((expected, observed), of_age(lag + 1 + kind.width))
        _add((expected, observed), of_age(lag + 1), np.subtract)


_RESIDUE: Final = 1e-10


def _add(totals: tuple[Floats, Floats], addends: tuple[Floats, Floats], operation: np.ufunc = np.add) -> None:
    for total, addend in zip(totals, addends, strict=True):
        operation(total, addend, out=total)


def _come(series: MinuteSeries, start: int, end: int) -> Floats:
    """Returns what had come by the end of each bucket of age, of the minutes of a span: (none and buckets, minutes)."""
    assert series.arrivals is not None
    come = np.zeros((len(AGE_BOUNDS) + 2, end - start))
    low, high = max(start, series.start), min(end, series.end)
    if low < high:
        part = series.arrivals[:, low - series.start : high - series.start]
        np.cumsum(part, axis=0, out=come[1 : len(part) + 1, low - start : high - start])
        come[len(part) + 1 :] = come[len(part)]
    return come


def _choose_entropy(kind: _Kind, cumulated: _Cumulated, now: int) -> _Chosen:
    """Returns the newest decidable window of mature minutes, of each series at one moment."""
    ends = now - _mature_lags(kind, cumulated)
    found = _is_decidable_by_entropy(kind, cumulated, ends)
    place = _first(found, default=np.zeros(len(found), dtype=np.int64))
    return _by_entropy(cumulated, np.take_along_axis(ends, place[:, np.newaxis], axis=1))


def _replay_entropy(kind: _Kind, cumulated: _Cumulated, moments: Integers) -> _Chosen:
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


def _mature_lags(kind: _Kind, cumulated: _Cumulated) -> Integers:
    """Returns how long before now windows may end: (series, lags). Labels that come with their examples are there."""
    newest = np.where(cumulated.waits, kind.maturity, 0)
    return newest + np.arange(0, kind.width + 1, kind.step)


def _is_decidable_by_entropy(kind: _Kind, cumulated: _Cumulated, ends: Integers) -> Flags:
    chosen = _by_entropy(cumulated, ends)
    squares = cumulated.window("observed_squares", ends)
    return is_decidable_by_entropy(
        _decisive(kind, cumulated, ends, chosen.expected, chosen.observed, squares), kind.demand
    )


def _by_entropy(cumulated: _Cumulated, ends: Integers) -> _Chosen:
    return _Chosen(ends, cumulated.window("expected", ends), cumulated.window("observed", ends))


def _decisive(
    kind: _Kind, cumulated: _Cumulated, ends: Integers, expected: Floats, observed: Floats, squares: Floats
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
        label_coverage=_coverage(kind, cumulated, ends, expected),
        loss=nothing,
        loss_by_squares=nothing,
        loss_squares=nothing,
        positive_loss=nothing,
    )


def _coverage(kind: _Kind, cumulated: _Cumulated, ends: Integers, expected: Floats) -> Floats:
    """Returns the share of the labels that have come: by the delays; where only what has one counts, by count."""
    if kind.ignores_missing:
        have, all_ = cumulated.window("examples", ends), cumulated.window("seen", ends)
        all_ = np.maximum(have, all_)
    else:
        have, all_ = expected, cumulated.window("expected", ends)
    # Nothing predicted means that there is nothing to wait for.
    return np.divide(have, all_, out=np.ones(have.shape), where=all_ > 0)


def _immature(kind: _Kind, cumulated: _Cumulated, ends: Integers, moments: Integers) -> Flags:
    first = np.maximum(ends - kind.width, moments - kind.maturity)
    found: Flags = (first < ends) & (cumulated.between("waiting", np.minimum(first, ends), ends) > 0)
    return found


def _judge(
    kind: _Kind, cumulated: _Cumulated, chosen: _Chosen, moments: Integers, ranges: Sequence[HealthyRange]
) -> Verdicts:
    """Returns the verdicts of the windows that were chosen: one range for each series."""
    ends, by_entropy = chosen.ends, kind.metric is Metric.NE
    total, everything = cumulated.window("observed", ends), cumulated.window("expected", ends)
    weight, squares = cumulated.window("weight", ends), cumulated.window("weight_squares", ends)
    visible = np.divide(chosen.observed, total, out=np.zeros(total.shape), where=total > 0)
    due = np.divide(chosen.expected, everything, out=np.ones(total.shape), where=everything > 0)
    one_weighs = np.divide(squares, weight, out=np.zeros(total.shape), where=weight > 0)
    sums = WindowSums(
        examples=cumulated.window("examples", ends),
        weight=weight,
        weight_squares=squares,
        expected=chosen.expected,
        # Each positive that is due has come or not, which adds to the variance of there being one.
        variance=due * (1.0 - due) * everything * one_weighs + due**2 * cumulated.window("expected_variance", ends),
        positives=cumulated.window("positives", ends) * visible,
        observed=chosen.observed,
        observed_squares=cumulated.window("observed_squares", ends) * visible,
        label_coverage=_coverage(kind, cumulated, ends, chosen.expected),
        **{name: cumulated.window(name, ends) if by_entropy else total for name in _LOSSES},
    )
    low, high = _all_limits(ranges, ends)
    judged = (judge_entropy if by_entropy else judge_calibration)(sums, low, high, kind.demand)
    immature = _immature(kind, cumulated, ends, moments)
    return _flat(kind, judged, low, high, ends, immature, sums.label_coverage, sums.positives, sums.examples)


_LOSSES: Final = ("loss", "loss_by_squares", "loss_squares", "positive_loss")


def _judge_volume(kind: _Kind, cumulated: _Cumulated, ends: Integers, ranges: Sequence[HealthyRange]) -> Verdicts:
    low, high = _all_limits(ranges, ends)
    seen = cumulated.window("seen", ends)
    positives = cumulated.window("positives", ends)
    judged = judge_volume(seen, low, high)
    return _flat(kind, judged, low, high, ends, np.zeros(ends.shape, bool), np.ones(ends.shape), positives, seen)


def _flat(
    kind: _Kind,
    judged: Judged,
    low: Floats,
    high: Floats,
    ends: Integers,
    immature: Flags,
    coverage: Floats,
    positives: Floats,
    examples: Floats,
) -> Verdicts:
    flat = Judged(*(getattr(judged, field.name).ravel() for field in fields(Judged)))
    arrays = (array.ravel() for array in (low, high, ends, immature, coverage, positives, examples))
    return Verdicts(kind.metric, kind.width, kind.demand, flat, *arrays)  # type: ignore[arg-type]


def _newest_volume(kind: _Kind, cumulated: _Cumulated, now: int) -> Integers:
    """Returns the end of each series' newest window of volume: (series, 1)."""
    there = cumulated.column("seen") > 0
    newest = np.where(there.any(axis=1), cumulated.end - 1 - np.argmax(there[:, ::-1], axis=1), 0)
    late = _lateness(kind, cumulated.waits[:, 0])
    return np.clip(newest, now - late, now - SETTLING)[:, np.newaxis]


def _volume_ends(kind: _Kind, series: MinuteSeries, moments: Integers) -> Integers:
    minutes = np.arange(series.start, series.end)
    newest = np.maximum.accumulate(np.where(series.seen > 0, minutes, 0))
    places = moments - 1 - series.start
    found = np.where(places >= 0, newest[np.clip(places, 0, series.minutes - 1)], 0)
    late = _lateness(kind, np.any(series.waiting > 0, keepdims=True))
    return np.clip(found, moments - late, moments - SETTLING)


def _lateness(kind: _Kind, waits: Flags) -> Integers:
    """Returns how late data may be: examples that are sent with their labels come when these are known."""
    return np.where(waits, kind.tolerance, kind.tolerance + kind.maturity)


# Delays are learned by the hour, and asked for by the minute.
@lru_cache(maxsize=1 << 14)
def _label_lag(kind: _Kind, delays: Delays) -> int:
    """Returns how long before now a window of even traffic has to end for enough of its labels to have come."""
    return int(np.argmax(_coverage_by_lag(kind, delays) >= kind.demand.min_label_coverage))


def _coverage_by_lag(kind: _Kind, delays: Delays) -> Floats:
    """Returns the share of labels that has come, by how long before now a window ended, until all have."""
    ages = np.arange(kind.maturity + kind.width + 1, dtype=np.float64) + 0.5
    cumulated = np.concatenate(([0.0], np.cumsum(delays.shares(ages))))
    found: Floats = (cumulated[kind.width :] - cumulated[: -kind.width]) / kind.width
    return found


def _shares(kind: _Kind, delays: Delays, ages: Floats) -> Floats:
    """Returns which share of the labels has come at each age. Of examples that count with their label alone, all."""
    return np.ones(len(ages)) if kind.ignores_missing else delays.shares(ages)


def _all_limits(ranges: Sequence[HealthyRange], ends: Integers) -> tuple[Floats, Floats]:
    """Returns the ends of one range for each row of windows."""
    low, high = (
        np.repeat(np.array(limits)[:, np.newaxis], ends.shape[1], axis=1)
        for limits in ([healthy.low for healthy in ranges], [healthy.high for healthy in ranges])
    )
    for row, healthy in enumerate(ranges):
        if healthy.hour_of_week_factors:
            low[row], high[row] = _limits(healthy, ends[row])
    return low, high


def _limits(healthy: HealthyRange, ends: Integers) -> tuple[Floats, Floats]:
    """Returns the range's ends for windows that end before these minutes: `HealthyRange.at` of many."""
    if not healthy.hour_of_week_factors:
        return np.full(ends.shape, healthy.low), np.full(ends.shape, healthy.high)
    hours = (ends - 1) // 60 + _FIRST_HOUR
    factors = np.array(healthy.hour_of_week_factors)[hours % len(healthy.hour_of_week_factors)]
    return healthy.low * factors, healthy.high * factors


_FIRST_HOUR: Final = hour_of_week(moment_of(0))


def _first(flags: Flags, default: Integers) -> Integers:
    """Returns the first place of each row that is set."""
    found: Integers = np.where(flags.any(axis=1), np.argmax(flags, axis=1), np.minimum(default, flags.shape[1] - 1))
    return found


def _matrix(series: MinuteSeries) -> MinuteSeries:
    return MinuteSeries(series.start, *(getattr(series, name)[np.newaxis] for name in COLUMNS))
