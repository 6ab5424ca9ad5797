"""Service level objectives: how fast a budget is spent, what fires, and what is left.

Source of the pairs of windows: "The Site Reliability Workbook" (2018), chapter 5, on
alerts by several windows and burn rates.
Added to it: a window says nothing unless half of its minutes are valid, and two bad minutes never fire.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.fleet import ServiceLevel
from modelfleetd.stability.domain.slices import Objective, Slice, Slices

PERIOD: Final = timedelta(days=30)
MIN_BAD: Final = 3  # bad minutes that the long window needs
_MINUTE: Final = timedelta(minutes=1)

Flags: TypeAlias = npt.NDArray[np.bool_]
Counts: TypeAlias = npt.NDArray[np.int32]


class Response(enum.Enum):
    """What fires. The numbers are those of the protos."""

    PAGE = 1
    TICKET = 2


@dataclass(frozen=True, slots=True)
class Pair:
    """A long window, and the short one that tells whether it still goes on."""

    response: Response
    long_window: timedelta
    short_window: timedelta
    factor: float  # burn rate that both must exceed; it spends `budget_spent` of the period's budget in the long window
    budget_spent: float

    @property
    def minutes(self) -> tuple[int, int]:
        """Widths of the long and of the short window."""
        return self.long_window // _MINUTE, self.short_window // _MINUTE


PAIRS: Final = (
    Pair(Response.PAGE, timedelta(hours=1), timedelta(minutes=5), 14.4, 0.02),
    Pair(Response.PAGE, timedelta(hours=6), timedelta(minutes=30), 6.0, 0.05),
    Pair(Response.TICKET, timedelta(days=1), timedelta(hours=2), 3.0, 0.10),
    Pair(Response.TICKET, timedelta(days=3), timedelta(hours=6), 1.0, 0.10),
)
# Minutes that all pairs together look at: more than that changes nothing about what fires.
LONGEST_WINDOW: Final = max(minutes for pair in PAIRS for minutes in pair.minutes)
WINDOWS: Final = tuple(sorted({minutes for pair in PAIRS for minutes in pair.minutes}))


@dataclass(frozen=True, slots=True)
class BurnRate:
    """How fast a budget is spent, by one pair. 1 spends it exactly within the period."""

    response: Response
    long_window: timedelta
    short_window: timedelta
    factor: float
    long_burn_rate: float | None  # None: fewer than half of the window's minutes are valid
    short_burn_rate: float | None
    bad: int  # minutes of the long window
    firing: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """How many minutes count as what; those that were not evaluated are none of these."""

    good: int = 0
    bad: int = 0
    unknown: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.good + other.good, self.bad + other.bad, self.unknown + other.unknown)

    @property
    def coverage(self) -> Tally:
        """The same minutes for the objective of COVERAGE: good is what was decidable, and nothing is unknown."""
        return Tally(good=self.good + self.bad, bad=self.unknown)

    def budget_left(self, target: float) -> float | None:
        """Returns what is left of the budget, as a share of all of it; None where no minute counts.

        The budget is (1 - target) of the minutes that count, so while there is less than a period of them it is
        smaller, and each bad minute weighs more. Above 0: kept so far; below 0: overdrawn.
        """
        valid = self.good + self.bad
        return None if valid == 0 else 1.0 - self.bad / (valid * (1.0 - target))


@dataclass(frozen=True, slots=True)
class ObjectiveState:
    """One objective, and what is left of its budget."""

    kind: Objective
    target: float
    good: int
    bad: int
    unknown: int
    budget_left: float | None
    burn_rates: tuple[BurnRate, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Burning:
    """How fast many subjects spend their budgets."""

    targets: npt.NDArray[np.float64]  # of subjects
    bad: Counts  # subjects × WINDOWS
    valid: Counts  # subjects × WINDOWS
    firing: Flags  # subjects × PAIRS

    def fires(self, response: Response) -> Flags:
        """Returns for each subject whether any pair of this response fires."""
        found: Flags = np.logical_or.reduce(self.firing[:, [pair.response is response for pair in PAIRS]], axis=1)
        return found

    def rate(self, subject: int, minutes: int) -> float | None:
        """Returns the burn rate of a subject over one of WINDOWS; None where fewer than half of it is valid."""
        at = (subject, WINDOWS.index(minutes))
        bad, valid = int(self.bad[at]), int(self.valid[at])
        return bad / (valid * (1.0 - float(self.targets[subject]))) if 2 * valid >= minutes else None

    def of(self, subject: int) -> tuple[BurnRate, ...]:
        """Returns what the pairs say of one subject."""
        found = []
        for index, pair in enumerate(PAIRS):
            long, short = pair.minutes
            found.append(
                BurnRate(
                    pair.response,
                    pair.long_window,
                    pair.short_window,
                    pair.factor,
                    long_burn_rate=self.rate(subject, long),
                    short_burn_rate=self.rate(subject, short),
                    bad=int(self.bad[subject, WINDOWS.index(long)]),
                    firing=bool(self.firing[subject, index]),
                )
            )
        return tuple(found)


def burn_rates(slices: Slices, target: float) -> tuple[BurnRate, ...]:
    """Returns what the pairs say of one subject now.

    Args:
        slices: minute by minute, oldest first, the newest minute last; those before the first count as NONE.
        target: the share of minutes that shall be good.
    """
    return burning(slices[np.newaxis, :], np.array([target])).of(0)


def burning(slices: Slices, targets: npt.NDArray[np.float64]) -> Burning:
    """Returns what the pairs say of many subjects now: `slices` is subjects × minutes, `targets` of subjects."""
    slices = slices[:, -LONGEST_WINDOW:]
    bad, valid = (_newest(flags) for flags in (_is_bad(slices), _is_valid(slices)))
    fires = []
    for pair in PAIRS:
        long, short = ((bad[:, at], valid[:, at]) for at in map(WINDOWS.index, pair.minutes))
        fires.append(_fires(pair, long, short, 1.0 - targets))
    return Burning(targets, bad, valid, np.stack(fires, axis=1))


def firing(slices: Slices, target: float, response: Response) -> Flags:
    """Returns for each minute whether any pair of a response fires then, going by the minutes up to it.

    For replays and simulations: the last value is what `burn_rates` says of all of it.

    Args:
        slices: minute by minute along the last axis, oldest first; any number of subjects before it.
        target: the share of minutes that shall be good.
        response: PAGE or TICKET.
    """
    bad, valid = (_running(flags) for flags in (_is_bad(slices), _is_valid(slices)))
    found: Flags = np.zeros(slices.shape, dtype=np.bool_)
    for pair in PAIRS:
        if pair.response is response:
            long, short = ((_trailing(bad, minutes), _trailing(valid, minutes)) for minutes in pair.minutes)
            found |= _fires(pair, long, short, np.float64(1.0 - target))
    return found


def coverage_slices(slices: Slices) -> Slices:
    """Returns what minutes of STABILITY count as for COVERAGE: decidable is good, UNKNOWN bad."""
    return _AS_COVERAGE[slices]


def tally(slices: Slices) -> Tally:
    """Returns how many minutes count as what."""
    counts = np.bincount(slices.ravel(), minlength=len(Slice))
    return Tally(int(counts[Slice.GOOD]), int(counts[Slice.BAD]), int(counts[Slice.UNKNOWN]))


def target_of(level: ServiceLevel, objective: Objective) -> float:
    """Returns the share of minutes that shall be good."""
    return {
        Objective.STABILITY: level.stability,
        Objective.COVERAGE: level.coverage,
        Objective.AVAILABILITY: level.availability,
    }[objective]


def _fires(
    pair: Pair,
    long: tuple[Counts, Counts],
    short: tuple[Counts, Counts],
    spare: npt.NDArray[np.float64] | np.float64,
) -> Flags:
    """Returns where a pair fires, from bad and valid minutes of both windows; `spare` is the share that may be bad."""
    (long_bad, long_valid), (short_bad, short_valid) = long, short
    long_minutes, short_minutes = pair.minutes
    fires: Flags = (
        (long_bad >= MIN_BAD)
        & (2 * long_valid >= long_minutes)
        & (2 * short_valid >= short_minutes)
        & (_rates(long_bad, long_valid, spare) > pair.factor)
        & (_rates(short_bad, short_valid, spare) > pair.factor)
    )
    return fires


def _rates(bad: Counts, valid: Counts, spare: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.float64]:
    # Where nothing is valid nothing is bad either, and the window does not count anyway.
    return bad / (np.maximum(valid, 1) * spare)


def _is_bad(slices: Slices) -> Flags:
    flags: Flags = slices == Slice.BAD
    return flags


def _is_valid(slices: Slices) -> Flags:
    flags: Flags = (slices == Slice.GOOD) | (slices == Slice.BAD)
    return flags


def _newest(flags: Flags) -> Counts:
    """Returns how many are set in the newest minutes: subjects × WINDOWS. Each minute is looked at once."""
    minutes = flags.shape[1]
    edges = [max(0, minutes - width) for width in (0, *WINDOWS)]
    parts = [flags[:, start:end].sum(axis=1, dtype=np.int32) for end, start in itertools.pairwise(edges)]
    return np.cumsum(np.stack(parts, axis=1), axis=1, dtype=np.int32)


def _running(flags: Flags) -> Counts:
    return np.cumsum(flags, axis=-1, dtype=np.int32)


def _trailing(running: Counts, width: int) -> Counts:
    """Returns how many were set in the newest `width` minutes, at each minute."""
    found = running.copy()
    found[..., width:] -= running[..., :-width]
    return found


_AS_COVERAGE: Final = np.array([Slice.NONE, Slice.GOOD, Slice.GOOD, Slice.BAD], dtype=np.uint8)
