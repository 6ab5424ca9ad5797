"""The past of a series: sums of matured minutes, and the values of windows that slide over them.

Values are in logarithms: calibration and volume are ratios, and what doubles is as far away as what halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HOURS_OF_WEEK
from modelfleetd.stability.domain.minute_series import MinuteSeries

Flags = npt.NDArray[np.bool_]

COLUMNS: Final = (
    "examples",
    "weight",
    "weight_squares",
    "expected",
    "expected_variance",
    "loss",
    "loss_by_squares",
    "loss_squares",
    "observed",
    "observed_squares",
    "positive_loss",
    "seen",
)
STEP: Final = 5  # minutes
_MINUTES_OF_HOUR: Final = 60
# 1970-01-01 was a Thursday.
_EPOCH_HOUR: Final = 72


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Sums of one series by steps of equal width, in natural units as `Sums` has them; gaps are zeros."""

    start: int  # the first minute, since 1970
    step: int  # minutes of a step
    sums: Floats  # COLUMNS × steps

    @property
    def steps(self) -> int:
        return int(self.sums.shape[1])

    @property
    def end(self) -> int:
        return self.start + self.steps * self.step

    @property
    def days(self) -> float:
        return self.steps * self.step / 1440.0

    def column(self, name: str) -> Floats:
        """Returns one of COLUMNS."""
        found: Floats = self.sums[COLUMNS.index(name)]
        return found

    def trimmed(self) -> History:
        """Returns the history from the first prediction to the last."""
        there = np.flatnonzero(self.column("seen"))
        if not len(there):
            return History(self.start, self.step, self.sums[:, :0])
        first, last = int(there[0]), int(there[-1]) + 1
        return History(self.start + first * self.step, self.step, self.sums[:, first:last])

    def coarser(self, step: int) -> History:
        """Returns the same by wider steps, that begin at multiples of their width; what is left at the ends is cut."""
        skip = (-self.start % step) // self.step
        times = step // self.step
        count = max(0, (self.steps - skip) // times)
        kept = self.sums[:, skip : skip + count * times]
        return History(self.start + skip * self.step, step, kept.reshape(len(COLUMNS), count, times).sum(axis=2))

    def windows(self, width: int) -> Windows:
        """Returns the sums of all windows of so many minutes, a multiple of the step, that slide by one step."""
        times = width // self.step
        running = np.concatenate((np.zeros((len(COLUMNS), 1)), np.cumsum(self.sums, axis=1)), axis=1)
        count = max(0, self.steps - times + 1)
        found = running[:, times : times + count] - running[:, :count]
        # What is left of rounding where nothing was.
        found[:, found[COLUMNS.index("seen")] < 0.5] = 0.0
        ends = self.start + (np.arange(count, dtype=np.int64) + times) * self.step
        return Windows(width, times, ends, found)


def of_minutes(start: int, columns: Mapping[str, Floats], step: int = STEP) -> History:
    """Returns a history by steps from columns by minute, those of COLUMNS that are known; parts of steps are cut."""
    examples = columns["examples"]
    others = {"seen": examples}
    nothing = np.zeros(len(examples))
    sums = np.stack([columns.get(name, others.get(name, nothing)) for name in COLUMNS])
    return History(start, 1, sums).coarser(step)


def of_series(series: MinuteSeries, step: int = STEP) -> History:
    """Returns the history of one series, all of which has matured."""
    return of_minutes(series.start, {name: getattr(series, name) for name in COLUMNS}, step)


def hours_of_week(ends: Integers) -> Integers:
    """Returns the hour of the week, Monday 00:00 UTC first, that the last minute of each window lies in."""
    found: Integers = ((ends - 1) // _MINUTES_OF_HOUR + _EPOCH_HOUR) % HOURS_OF_WEEK
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Sums of windows of one width."""

    width: int  # minutes
    times: int  # steps in a window: so many places on, a window begins where this one ends
    ends: Integers  # minute after the last one of each
    sums: Floats  # COLUMNS × windows

    def of(self, name: str) -> Floats:
        """Returns one of COLUMNS."""
        found: Floats = self.sums[COLUMNS.index(name)]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """What windows say of one metric."""

    width: int
    times: int
    ends: Integers
    log: Floats  # logarithm of the value
    variance: Floats  # of the logarithm, by sampling alone
    count: Floats  # how many events of a Poisson would vary as much; infinite where that is no count
    usable: Flags  # those that hold enough to be looked at

    def __len__(self) -> int:
        return len(self.ends)


def calibrations(windows: Windows, min_positives: int) -> Values:
    """Returns calibration; usable where enough positives are expected.

    Were they chosen by the positives that came, those that by chance have few of them would be missing.
    """
    expected, observed = windows.of("expected"), windows.of("observed")
    level = float(expected.sum() / max(1e-300, observed.sum()))
    units = _ratio(windows.of("weight"), windows.of("weight_squares"))
    usable = (expected * units >= min_positives * max(level, 1.0)) & (observed > 0.0)
    # By what is predicted, since what came is what varies: Var(P) = S-ish, less for labels that are hardly rare.
    variance = level * _ratio(windows.of("expected_variance"), expected**2)
    log = np.log(np.where(usable, expected, 1.0)) - np.log(np.where(usable, observed, 1.0))
    return _values(windows, log, variance, _ratio(1.0, variance), usable)


def entropies(windows: Windows, min_positives: int) -> Values:
    """Returns NE, with its variance by the delta method (see `estimates.normalized_entropy`)."""
    weight, observed = windows.of("weight"), windows.of("observed")
    k = observed * _ratio(observed, windows.of("observed_squares"))
    loss = windows.of("loss")
    usable = (k >= min_positives) & (observed < weight) & (loss > 0.0)
    rate = np.where(usable, _ratio(observed, weight), 0.5)
    entropy = -rate * np.log(rate) - (1.0 - rate) * np.log1p(-rate)
    value = np.where(usable, _ratio(loss, weight) / entropy, 1.0)
    c = value * np.log((1.0 - rate) / rate)
    mean = _ratio(loss, weight) - c * rate
    squares = (
        windows.of("loss_squares") - 2.0 * c * windows.of("positive_loss") + c * c * windows.of("observed_squares")
    )
    crossed = windows.of("loss_by_squares") - c * windows.of("observed_squares")
    variance = np.maximum(0.0, squares - 2.0 * mean * crossed + mean * mean * windows.of("weight_squares"))
    relative = _ratio(variance, (weight * entropy * value) ** 2)
    return _values(windows, np.log(value), relative, np.full(len(relative), np.inf), usable)


def volumes(windows: Windows) -> Values:
    """Returns the number of predictions, those without a label included."""
    seen = windows.of("seen")
    usable = seen >= 1.0
    log = np.log(np.where(usable, seen, 1.0))
    return _values(windows, log, _ratio(1.0, seen), np.full(len(seen), np.inf), usable)


def _values(windows: Windows, log: Floats, variance: Floats, count: Floats, usable: Flags) -> Values:
    return Values(windows.width, windows.times, windows.ends, log, variance, count, usable)


def _ratio(one: Floats | float, other: Floats | float) -> Floats:
    """Returns one over the other; 0 where that is nothing."""
    return np.divide(one, other, out=np.zeros(np.broadcast(one, other).shape), where=np.asarray(other) > 0)
