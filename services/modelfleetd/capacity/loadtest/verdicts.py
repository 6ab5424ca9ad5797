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
# Quantiles for an interval of 95 %: Student's t with 19 degrees of freedom, and the normal one.
_T = 2.093
_Z = 1.960
# How far beyond a stopper, as a factor, the whole interval must lie to end a probe early. A symmetric early stop was
# the largest source of error in simulation.
GROSS = 3.0
# The halves of a probe differ in earnest where their mean logarithms of the latency are this far apart, and this many
# standard errors.
_DRIFT = math.log(1.3)
_DRIFT_ERRORS = 6.0

# A probe of the search has this share of the requests of the certification, and lasts this long at least; both in a
# test of the default length, shorter ones take their share. So it sees what happens every few seconds only.
_SEARCH_SHARE = 0.1
_SEARCH_SECONDS = 10.0
_CERTIFICATION_SECONDS = 60.0
_FEWEST_REQUESTS = 1_000

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
        scale = certification_requests / DEFAULT_CERTIFICATION_REQUESTS
        wanted = max(_FEWEST_REQUESTS, certification_requests * _SEARCH_SHARE, qps * _SEARCH_SECONDS * scale)
        return cls._of(wanted, qps * _SEARCH_SECONDS * scale, most=4)

    @classmethod
    def of_certification(cls, qps: float, certification_requests: int) -> Length:
        """Returns the length of the fresh run: never cut short where the result is good."""
        scale = certification_requests / DEFAULT_CERTIFICATION_REQUESTS
        wanted = max(certification_requests, qps * _CERTIFICATION_SECONDS * scale)
        return cls._of(wanted, qps * _SEARCH_SECONDS * scale, most=4)

    @classmethod
    def _of(cls, wanted: float, pausing: float, most: int) -> Length:
        batch = math.ceil(wanted / (16 * _BATCHES))
        look = batch * _BATCHES
        # A first look sees at least a quarter of the shortest time, so that no single pause of the replica fills it.
        first = next((n for n in (look, 2 * look) if n >= pausing / 4), 4 * look)
        return cls(batch, first, 4 * look, 16 * look, 16 * look * most)

    @property
    def checks(self) -> tuple[int, ...]:
        """After how many requests the probe is judged."""
        doubling = [self.first * 2**n for n in range(5) if self.first * 2**n < self.planned]
        return (*doubling, *range(self.planned, self.most + 1, self.planned // 2))


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with its confidence interval."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.share >= 0.01 else 3
        return f"{self.share:.{digits}%} [{self.low:.{digits}%}, {self.high:.{digits}%}]"


def interval(counts: NDArray[np.int64], batch: int) -> Interval:
    """Returns the share of what was counted, with its 95 % interval.

    Args:
        counts: of each batch, in the order in which its requests were sent: 20 batches, or a multiple of 20.
        batch: requests in each.
    """
    requests = batch * len(counts)
    share = float(counts.sum()) / requests
    means = counts.reshape(_BATCHES, -1).sum(axis=1) / (requests / _BATCHES)
    half = _T * float(means.std(ddof=1)) / math.sqrt(_BATCHES)
    low, high = _wilson(share, requests)
    return Interval(share, max(0.0, min(low, share - half)), min(1.0, max(high, share + half)))


def _wilson(share: float, count: int) -> tuple[float, float]:
    square = _Z * _Z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return centre - half, centre + half


@dataclass(frozen=True, slots=True)
class _Limit:
    """One stopper, as a share that must not be exceeded."""

    share: float
    latency_ms: float | None = None

    def explain(self, found: Interval) -> str:
        if self.latency_ms is None:
            return f"{found} failed, at most {self.share:.3%} may"
        return f"{found} took longer than {self.latency_ms:g} ms, at most {self.share:.4g} may"


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
        found = [interval(row[:batches], self.length.batch) for row in self._beyond]
        errors, most = found[-1], self._limits[-1].share
        if not self._certification and errors.share <= most:
            # A short probe cannot confirm a small rate; the certification will.
            found[-1] = Interval(errors.share, errors.low, errors.share)
        return found

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
