"""What a series of answers says about a replica: within its stoppers, over one, or not decided yet.

A percentile is judged by the share of requests that exceed it: p99 is within 60 ms where at most 1 % take longer.
Answers follow one another through one queue, so they are not independent: the interval of a share is the wider one of
batch means and of Wilson's formula for independent ones. Only counts by batch are kept, and a histogram.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelfleetd.capacity.domain.loadtest import DEFAULT_CERTIFICATION_REQUESTS, Outcome, Stoppers
from modelfleetd.capacity.loadtest.histogram import Histogram

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

CONFIDENCE = 0.95
_BATCHES = 20
# How far beyond a stopper, as a factor, the whole interval must lie to end a probe early. A symmetric early stop was
# the largest source of error in simulation.
GROSS = 3.0
# The halves of a probe differ in earnest where their mean logarithms of the latency are this far apart, and this many
# standard errors.
_DRIFT = math.log(1.3)
_DRIFT_ERRORS = 6.0

# A probe of the search has this share of the requests of the certification, and both last this long at least, so that
# they see what happens every few seconds only. All in a test of the default length; shorter ones take their share.
_SEARCH_SHARE = 0.1
_SEARCH_SECONDS = 30.0
_CERTIFICATION_SECONDS = 120.0
_FEWEST_REQUESTS = 1_000
# A probe that is not decided goes on until it is so many times as long as planned. A certification doubles up to eight
# times where that takes no longer than this.
_SEARCH_MOST = 4
_LONGEST_CERTIFICATION_SECONDS = 1200.0
# How the looks at a certification share the error that it may have, by how many times as long as planned it may become:
# most to the last, then to the first, at which most replicas are confirmed.
_LOOKS = {1: (1.0,), 2: (0.5, 0.5), 4: (0.25, 0.25, 0.5), 8: (0.25, 0.125, 0.125, 0.5)}

# A new clone warms up for so many windows of time at least and at most, until the mean logarithm of the latency has
# been alike in the last ones.
_WINDOWS, _MOST_WINDOWS = 10, 40
_ALIKE = 3
_SETTLED = math.log(1.2)


@dataclass(frozen=True, slots=True)
class Length:
    """How many requests a probe takes: multiples of a batch.

    Attributes:
        first: from here on it may end if it is grossly over.
        early: from here on it may end if it is grossly under.
        planned: from here on it ends as soon as its interval lies on one side of each stopper.
        most: here it ends.
    """

    batch: int
    first: int
    early: int
    planned: int
    most: int

    @classmethod
    def of_search(cls, qps: float, certification_requests: int) -> Length:
        """Returns the length of a probe of the search, which need not be as sure as the certification."""
        shortest = _shortest(qps, _SEARCH_SECONDS, certification_requests)
        wanted = max(_FEWEST_REQUESTS, certification_requests * _SEARCH_SHARE, shortest)
        return cls._of(wanted, shortest, _SEARCH_MOST)

    @classmethod
    def of_certification(cls, qps: float, certification_requests: int) -> Length:
        """Returns the length of the fresh run: never cut short where the result is good."""
        shortest = _shortest(qps, _CERTIFICATION_SECONDS, certification_requests)
        wanted = max(certification_requests, shortest)
        longest = _shortest(qps, _LONGEST_CERTIFICATION_SECONDS, certification_requests)
        most = max(n for n in _LOOKS if n == 1 or n * wanted <= longest)
        return cls._of(wanted, shortest, most)

    @classmethod
    def _of(cls, wanted: float, shortest: float, most: int) -> Length:
        batch = math.ceil(wanted / (16 * _BATCHES))
        look, looks = batch * _BATCHES, [1, 2, 4, 8, 16]
        # The first looks see enough of the time that no single pause of the replica fills it, nor is missed.
        first = next(n for n in looks if n * look >= shortest / 12 or n == 4)
        early = next(n for n in looks if (n * look >= shortest * 2 / 3 and n >= 4) or n == 16)
        return cls(batch, first * look, early * look, 16 * look, 16 * look * most)

    @property
    def checks(self) -> tuple[int, ...]:
        """After how many requests the probe is judged."""
        count = int(math.log2(self.most / self.first))
        return tuple(self.first * 2**n for n in range(count + 1))


def _shortest(qps: float, seconds: float, certification_requests: int) -> float:
    return qps * seconds * certification_requests / DEFAULT_CERTIFICATION_REQUESTS


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with its confidence interval."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.share >= 0.01 else 3
        return f"{self.share:.{digits}%} [{self.low:.{digits}%}, {self.high:.{digits}%}]"


def interval(counts: NDArray[np.int64], batch: int, error: float = 1 - CONFIDENCE) -> Interval:
    """Returns the share of what was counted, with its interval.

    Args:
        counts: of each batch, in the order in which its requests were sent: 20 batches, or a multiple of 20.
        batch: requests in each.
        error: probability that the truth lies outside: half of it above, half below.
    """
    # Takes longer to import than all else of the service, which mostly runs no load test.
    from scipy.special import ndtri, stdtrit

    student, normal = stdtrit(_BATCHES - 1, 1 - error / 2), ndtri(1 - error / 2)
    requests = batch * len(counts)
    share = float(counts.sum()) / requests
    means = counts.reshape(_BATCHES, -1).sum(axis=1) / (requests / _BATCHES)
    half = student * float(means.std(ddof=1)) / math.sqrt(_BATCHES)
    low, high = _wilson(share, requests, normal)
    return Interval(share, max(0.0, min(low, share - half)), min(1.0, max(high, share + half)))


def _wilson(share: float, count: int, normal: float) -> tuple[float, float]:
    square = normal * normal
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = normal * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return centre - half, centre + half


@dataclass(frozen=True, slots=True)
class _Limit:
    """One stopper, as a share that must not be exceeded."""

    share: float
    latency_ms: float | None = None

    def explain(self, found: Interval) -> str:
        what = "failed" if self.latency_ms is None else f"took longer than {self.latency_ms:g} ms"
        return f"{found} {what}, at most {100 * self.share:.4g}% may"


class Settling:
    """Says when a new clone's latency has settled: caches are filled, code is compiled, connections are made."""

    def __init__(self, seconds: float) -> None:
        """Begins.

        Args:
            seconds: that it takes at the least; at the most it takes four times as many.
        """
        self._window = seconds / _WINDOWS
        self._most = _MOST_WINDOWS * self._window
        self._means: list[float] = []
        self._sum, self._count, self._end = 0.0, 0, self._window

    def add(self, elapsed: float, latency_ms: float) -> bool:
        """Takes an answer and when it came, in seconds from the beginning; returns whether it has settled."""
        if elapsed >= self._end:
            if self._count:
                self._means = [*self._means[1 - _ALIKE :], self._sum / self._count]
            self._sum, self._count = 0.0, 0
            self._end = elapsed + self._window
            is_alike = len(self._means) == _ALIKE and max(self._means) - min(self._means) <= _SETTLED
            if elapsed >= self._most or (is_alike and elapsed >= _WINDOWS * self._window):
                return True
        self._sum += math.log(max(latency_ms, 1e-3))
        self._count += 1
        return False


class Judge:
    """Looks at answers in the order in which their requests were sent."""

    def __init__(self, stoppers: Stoppers, length: Length, *, certification: bool) -> None:
        self.length = length
        self.requests = 0
        self.errors = 0
        self.histogram = Histogram()
        self._certification = certification
        self._limits = [_Limit(limit.share, limit.latency_ms) for limit in stoppers.latency_limits]
        self._limits.append(_Limit(stoppers.error_rate))
        batches = length.most // length.batch
        # By limit and batch: requests beyond it. By batch: the sum of the logarithms of the latencies.
        self._beyond = np.zeros((len(self._limits), batches), dtype=np.int64)
        self._logs = np.zeros(batches)
        self._checks = list(length.checks)
        self._latencies: list[float] = []
        self._failed: list[bool] = []

    @property
    def until_check(self) -> int:
        """Requests until there may be a verdict."""
        return self._checks[0] - self.requests - len(self._latencies)

    def add(self, latency_ms: float, *, failed: bool) -> Outcome | None:
        """Takes one answer; returns the verdict where there is one now. A failed request is slow as well."""
        self._latencies.append(latency_ms)
        self._failed.append(failed)
        if len(self._latencies) < self.length.batch:
            return None
        latencies, flags = np.array(self._latencies), np.array(self._failed)
        self._latencies.clear()
        self._failed.clear()
        return self.add_batches(latencies, flags)

    def add_batches(self, latencies_ms: Floats, failed: Flags) -> Outcome | None:
        """Takes whole batches, at most until the next check; returns the verdict where there is one now."""
        batch = self.length.batch
        first = self.requests // batch
        place = slice(first, first + len(failed) // batch)
        for row, limit in zip(self._beyond, self._limits, strict=True):
            beyond = failed if limit.latency_ms is None else failed | (latencies_ms > limit.latency_ms)
            row[place] = beyond.reshape(-1, batch).sum(axis=1)
        self._logs[place] = np.log(np.maximum(latencies_ms, 1e-3)).reshape(-1, batch).sum(axis=1)
        self.histogram.record(latencies_ms)
        self.errors += int(failed.sum())
        self.requests += len(failed)
        if self.requests < self._checks[0]:
            return None
        self._checks.pop(0)
        return self._verdict()

    def _verdict(self) -> Outcome | None:
        judged = [(found, limit.share) for found, limit in zip(self._intervals(), self._limits, strict=True)]
        if any(found.low > limit * GROSS for found, limit in judged):
            return Outcome.OVER
        if self.requests < self.length.planned:
            if self._certification or self.requests < self.length.early:
                return None
            grossly_under = all(found.high * GROSS < limit for found, limit in judged)
            return self._unless_unstable(Outcome.WITHIN) if grossly_under else None
        if any(found.low > limit for found, limit in judged):
            return Outcome.OVER
        if all(found.high <= limit for found, limit in judged):
            return self._unless_unstable(Outcome.WITHIN)
        return self._unless_unstable(Outcome.UNDECIDED) if self.requests >= self.length.most else None

    def _intervals(self) -> list[Interval]:
        batches = self.requests // self.length.batch
        return [interval(row[:batches], self.length.batch, self._error) for row in self._beyond]

    @property
    def _error(self) -> float:
        """The error of an interval now: in a certification, the part of the whole that this look may have.

        A run that is looked at several times until it is within would claim too much otherwise.
        """
        whole = 1 - CONFIDENCE
        if not self._certification or self.requests < self.length.planned:
            return whole
        looks = _LOOKS[self.length.most // self.length.planned]
        return whole * looks[int(math.log2(self.requests // self.length.planned))]

    def _unless_unstable(self, outcome: Outcome) -> Outcome:
        return Outcome.UNSTABLE if self.is_unstable else outcome

    @property
    def _halves(self) -> tuple[Floats, Floats]:
        """The mean logarithms of the latency in ten parts of each half."""
        means = self._logs[: self.requests // self.length.batch].reshape(_BATCHES, -1).mean(axis=1) / self.length.batch
        return means[: _BATCHES // 2], means[_BATCHES // 2 :]

    @property
    def is_unstable(self) -> bool:
        """Whether the latency of the two halves differs far beyond its noise."""
        early, late = self._halves
        error = math.sqrt(float(early.var(ddof=1) + late.var(ddof=1)) / len(early))
        difference = abs(float(late.mean() - early.mean()))
        return difference > max(_DRIFT, _DRIFT_ERRORS * error)

    def explain(self, outcome: Outcome) -> str:
        """Returns the figures behind a verdict, in a sentence."""
        if not self.requests:
            return "No request was answered."
        parts = [limit.explain(found) for limit, found in zip(self._limits, self._intervals(), strict=True)]
        if outcome is Outcome.UNSTABLE:
            early, late = (math.exp(float(half.mean())) for half in self._halves)
            parts.insert(
                0, f"the typical latency went from {early:.3g} ms in the first half to {late:.3g} ms in the second"
            )
        return f"{outcome.name}: {'; '.join(parts)} ({self.requests:,} requests)."
