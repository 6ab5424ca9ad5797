"""A simulated model under watch: ranges proposed from its healthy days, then a verdict, a slice and alerts each minute.

All that decides is the product's: `ranges.propose_model`, `windows.decide_all`, `slo.firing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce

import numpy as np

from modelfleetd.stability.domain import slo
from modelfleetd.stability.domain.delays import Delays, histogram, learn
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.history import COLUMNS, History
from modelfleetd.stability.domain.judging import Verdicts
from modelfleetd.stability.domain.minute_series import MinuteSeries
from modelfleetd.stability.domain.ranges import propose_model
from modelfleetd.stability.domain.slices import Slice, Slices
from modelfleetd.stability.domain.window_verdict import Flags, Stability
from modelfleetd.stability.domain.windows import decide_all
from tests.support.simulated_streams import DAY, START, Fault, Life, Model, cut, joined

_STEP = 5
# Verdicts look back by two of the widest windows and the longest wait for labels.
_LOOKED_BACK = 2 * DAY + 420
_LONGEST_WINDOW = 360


@dataclass(frozen=True, slots=True)
class Key:
    """A metric of a task."""

    task: int
    metric: Metric


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """A model with its ranges, and its healthy days."""

    life: Life
    series: tuple[MinuteSeries, ...]
    delays: tuple[Delays, ...]
    ranges: Mapping[Key, HealthyRange]

    @property
    def model(self) -> Model:
        return self.life.model

    def verdicts(self, series: Sequence[MinuteSeries], first: int, end: int) -> dict[Key, Verdicts]:
        """Returns the verdicts of each minute from the first until before the end, counted from the beginning."""
        return {
            key: decide_all(
                series[key.task],
                healthy,
                self.model.tasks[key.task].declared(),
                self.delays[key.task],
                START + first,
                START + end,
            )
            for key, healthy in self.ranges.items()
        }

    def with_fault(self, fault: Fault, since: int, end: int, salt: int = 0) -> tuple[MinuteSeries, ...]:
        """Returns the series as they are when something goes wrong at a minute, from as far back as verdicts look."""
        first = since - _LONGEST_WINDOW
        wrong = self.life.draw(first, end, fault, since, salt)
        oldest = max(0, since - _LOOKED_BACK)
        return tuple(
            joined(cut(series, START + oldest, START + first), drawn)
            for series, drawn in zip(self.series, wrong, strict=True)
        )


def watch(life: Life, history_days: int, pages_per_week: float = 0.05) -> Watch:
    """Returns a model watched by the ranges that its first days propose."""
    series = life.draw(0, life.minutes)
    tasks = life.model.tasks
    past = [cut(one, START, START + history_days * DAY) for one in series]
    delays = tuple(_learned(one, task.window) for one, task in zip(past, tasks, strict=True))
    histories = {task.id: history_of(one) for one, task in zip(past, tasks, strict=True)}
    declared = {task.id: task.declared() for task in tasks}
    proposals = propose_model(
        histories,
        histories,
        declared,
        target=life.model.target,
        pages_per_week=pages_per_week,
        delays={task.id: known for task, known in zip(tasks, delays, strict=True)},
    )
    ids = [task.id for task in tasks]
    ranges = {Key(ids.index(p.range.prediction), p.range.metric): p.range for p in proposals}
    # All tasks score the same examples, so that the first one's volume is that of each.
    kept = {key: healthy for key, healthy in ranges.items() if key.metric is not Metric.VOLUME or key.task == 0}
    return Watch(life, series, delays, kept)


def _learned(series: MinuteSeries, window: timedelta) -> Delays:
    assert series.arrivals is not None
    recent = series.arrivals[:, -7 * DAY :].sum(axis=1)
    return learn(window, histogram(float(recent.sum()), recent.tolist()))


def history_of(series: MinuteSeries) -> History:
    """Returns a series as proposals take it: matured, by five minutes."""
    steps = series.minutes // _STEP
    sums = np.stack([getattr(series, name)[: steps * _STEP] for name in COLUMNS])
    return History(series.start, _STEP, sums.reshape(len(COLUMNS), steps, _STEP).sum(axis=2))


_SLICES = np.array([Slice.NONE, Slice.GOOD, Slice.BAD, Slice.UNKNOWN], dtype=np.uint8)  # by values of Stability


def model_slices(states: Iterable[Slices]) -> Slices:
    """Returns what a model's minutes count as, by the verdicts of its metrics: BAD by any, else UNKNOWN by any."""
    codes = [_SLICES[state] for state in states]
    bad: Flags = reduce(np.logical_or, (code == Slice.BAD for code in codes))
    unknown: Flags = reduce(np.logical_or, (code == Slice.UNKNOWN for code in codes))
    return np.where(bad, Slice.BAD, np.where(unknown, Slice.UNKNOWN, Slice.GOOD)).astype(np.uint8)


def begins(firing: Flags) -> Integers:
    """Returns the minutes at which something begins."""
    found: Integers = np.flatnonzero(firing & ~np.concatenate(([False], firing[:-1])))
    return found


def fires(slices: Slices, target: float, response: slo.Response = slo.Response.PAGE) -> Flags:
    """Returns the minutes at which an alert fires."""
    return slo.firing(slices, target, response)


def unstable(verdicts: Verdicts) -> Flags:
    """Returns the minutes that are unstable by a metric."""
    found: Flags = verdicts.state == Stability.UNSTABLE.value
    return found


def values(verdicts: Verdicts) -> tuple[Floats, Flags]:
    """Returns a metric's values, and which of them there are."""
    return verdicts.value, verdicts.value > 0.0
