"""How labels are delayed: F(age), the share of positives that have come when their events are so old.

Learned from events whose labels are complete, as a histogram over the buckets of age. A young series leans on the
prediction's other models, and where nothing has matured yet on a prior, which says of itself that nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

import numpy as np

from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.maturity import AGE_BOUNDS, MINUTE_MICROS, micros

# Buckets of age: from the event, and from each bound on.
BUCKETS: Final = len(AGE_BOUNDS) + 1
# The share is a divisor for whoever asks what a young minute's positives will come to.
MIN_SHARE: Final = 1e-4
# With so many positives of its own, half of what a series says is its own.
_LEANING: Final = 50.0
# With fewer behind it F is a guess, and what it would correct is no evidence.
TRUSTED_POSITIVES: Final = 50.0
# Of so many hours ago what was seen counts half: delays change with the pipelines that make them.
HALF_LIFE_HOURS: Final = 84.0
# What matured longer ago is not asked for when a series is learned for the first time.
LEARNED_HOURS: Final = 168

_BOUNDS: Final = AGE_BOUNDS / MINUTE_MICROS


@dataclass(frozen=True, slots=True)
class AgeHistogram:
    """Matured positives by bucket of their labels' age: by weight, the newer ones counting more."""

    positives: float = 0.0
    weights: tuple[float, ...] = (0.0,) * BUCKETS

    def __add__(self, other: AgeHistogram) -> AgeHistogram:
        weights = (one + more for one, more in zip(self.weights, other.weights, strict=True))
        return AgeHistogram(self.positives + other.positives, tuple(weights))

    def after(self, hours: float) -> AgeHistogram:
        """Returns what is left of it so many hours later."""
        factor = 0.5 ** (max(0.0, hours) / HALF_LIFE_HOURS)
        return AgeHistogram(self.positives * factor, tuple(weight * factor for weight in self.weights))


NO_AGES: Final = AgeHistogram()


@dataclass(frozen=True)
class Delays:
    """F(age) of a series, over the attribution window of its prediction."""

    window: timedelta
    densities: tuple[float, ...]  # share of the positives that come in each bucket of age; they sum to 1
    positives: float  # matured ones that it rests on, the newer ones counting more

    @property
    def learned(self) -> bool:
        """Whether anything is known; else it is the prior."""
        return self.positives > 0.0

    @property
    def trusted(self) -> bool:
        """Whether enough is known to go by: else only events whose labels are complete are judged."""
        return self.positives >= TRUSTED_POSITIVES

    def share(self, age_minutes: float) -> float:
        """Returns the share of the positives that have come when their events are so old: above 0, at most 1."""
        return float(self.shares(np.array([age_minutes]))[0])

    def shares(self, age_minutes: Floats) -> Floats:
        """Returns the share for each age. Within a bucket labels come evenly; from the window's end on it is 1."""
        ages, shares = self._knots
        found: Floats = np.maximum(np.interp(age_minutes, ages, shares), MIN_SHARE)
        return found

    @cached_property
    def _knots(self) -> tuple[Floats, Floats]:
        end = self.window / timedelta(minutes=1)
        inside = int(np.searchsorted(_BOUNDS, end))
        # Where the window was longer once, labels were counted that would come too late now.
        came = np.cumsum(self.densities[: inside + 1])
        shares = came[:-1] / came[-1] if came[-1] else np.zeros(inside)
        return np.concatenate(([0.0], _BOUNDS[:inside], [end])), np.concatenate(([0.0], shares, [1.0]))


def prior(window: timedelta) -> Delays:
    """Returns what is assumed before anything is known: that labels come evenly over the attribution window."""
    end = window / timedelta(minutes=1)
    edges = np.minimum(np.concatenate(([0.0], _BOUNDS, [np.inf])), end)
    return Delays(window, tuple((np.diff(edges) / end).tolist()), 0.0)


def learn(window: timedelta, own: AgeHistogram, others: AgeHistogram = NO_AGES) -> Delays:
    """Returns the delays of a series, shrunk towards those of its prediction's other models while it is young.

    Args:
        window: the attribution window of its prediction.
        own: ages of its own matured positives.
        others: ages of all matured positives of the prediction, whatever the model.
    """
    shared = _shrunk(prior(window), others)
    return _shrunk(shared, own)


def ages(minutes: Integers, now: datetime) -> Floats:
    """Returns how old the events of whole minutes are at a moment, on average, in minutes."""
    found: Floats = (micros(now) / MINUTE_MICROS - 0.5) - minutes.astype(np.float64)
    return found


def pooled(histograms: Iterable[AgeHistogram]) -> AgeHistogram:
    """Returns the ages of all of them together."""
    return sum(histograms, NO_AGES)


def histogram(positives: float, weights: Sequence[float]) -> AgeHistogram:
    """Returns the histogram of stored buckets, of which there may have been fewer."""
    return AgeHistogram(positives, (*map(float, weights), *(0.0,) * (BUCKETS - len(weights)))[:BUCKETS])


def _shrunk(towards: Delays, seen: AgeHistogram) -> Delays:
    total = sum(seen.weights)
    if not seen.positives or not total:
        return towards
    # A prior that nothing is known of weighs little beside the first positives that are.
    leaning = _LEANING if towards.learned else 1.0
    own = seen.positives / (seen.positives + leaning)
    densities = (
        own * weight / total + (1.0 - own) * density
        for weight, density in zip(seen.weights, towards.densities, strict=True)
    )
    # What is known of the others holds what is known of this one.
    return Delays(towards.window, tuple(densities), max(towards.positives, seen.positives))
