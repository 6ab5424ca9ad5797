"""The newest decidable window of a metric, and its verdict: of one series, of a fleet at once, or at every past minute.

A range is for windows of one width. Each minute the newest such window that can be decided is judged:

- Which one that is depends on what was predicted, not on the positives that came: enough of them must be *expected* by
  now. Were it chosen by the positives found, a rare prediction would be judged on its luckiest windows, and one that
  loses its labels on the last window that still had them.
- While labels are still to come, a minute's predicted positives count with the share F(age) of labels that should have
  come by now, so that positives that are merely late are no evidence.
- Where that share has not been learned yet, as of a new type, calibration is of mature windows only; NE always is.
- A verdict is not carried on for ever. The oldest window looked at is one width older than the labels make necessary:
  their coverage reaches its floor at some age, NE is mature at one. If none is decidable, the answer is UNKNOWN.
- VOLUME is judged up to the newest minute that has data, since the last minutes may still be on their way; what is
  missing for longer than data may be late counts as missing, so that silence is a drop and not a gap.

All is arithmetic over arrays of minutes. The only loop is over the lags of a replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import numpy as np

from modelfleetd.stability.domain.choosing import (
    choose_calibration,
    choose_entropy,
    newest_volume,
    replay_calibration,
    replay_entropy,
    volume_ends,
)
from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.cumulated import Cumulated
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.judging import Verdicts, WindowVerdict, judge_volume_windows, judge_windows
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.minute_series import COLUMNS, MinuteSeries, as_matrix
from modelfleetd.stability.domain.window_kinds import Case, WindowKind

# Of series that are decided together: more of them cost memory and save nothing.
_ROWS: Final = 128


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
    groups: dict[WindowKind, list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault(WindowKind.of(case.healthy, case.prediction), []).append(index)
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
    kind = WindowKind.of(healthy, prediction)
    moments = np.arange(first, end)
    if kind.metric is Metric.VOLUME:
        ends = volume_ends(kind, series, moments)
        return judge_volume_windows(kind, Cumulated(as_matrix(series), kind.width), ends[np.newaxis], [healthy])
    cumulated = Cumulated(as_matrix(series), kind.width)
    if kind.metric is Metric.NE:
        chosen = replay_entropy(kind, cumulated, moments)
        return judge_windows(kind, cumulated, chosen, moments[np.newaxis], [healthy])
    chosen = replay_calibration(kind, series, cumulated, healthy, delays, moments)
    return judge_windows(kind, cumulated, chosen, moments[np.newaxis], [healthy])


def minutes_needed(healthy: HealthyRange, prediction: DeclaredPrediction) -> int:
    """Returns how many minutes before now a verdict may look at."""
    return WindowKind.of(healthy, prediction).needed


def _decide_group(series: MinuteSeries, kind: WindowKind, cases: Sequence[Case], now: int) -> Verdicts:
    """Returns the verdicts of cases of one kind at a minute."""
    cumulated = Cumulated(series, kind.width, [case.row for case in cases], (now - kind.needed, now))
    ranges = [case.healthy for case in cases]
    moments = np.full((len(cases), 1), now)
    if kind.metric is Metric.VOLUME:
        return judge_volume_windows(kind, cumulated, newest_volume(kind, cumulated, now), ranges)
    if kind.metric is Metric.NE:
        return judge_windows(kind, cumulated, choose_entropy(kind, cumulated, now), moments, ranges)
    return judge_windows(kind, cumulated, choose_calibration(kind, cumulated, cases, now), moments, ranges)
