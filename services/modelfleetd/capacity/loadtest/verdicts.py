"""What a series of answers says about a replica: within its stoppers, over one, or not decided yet.

A percentile is judged by the share of requests that exceed it: p99 is within 60 ms where at most 1 % take longer.
Answers follow one another through one queue, so they are not independent: the interval of a share is the wider one of
batch means and of Wilson's formula for independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelfleetd.capacity.domain.loadtest import Outcome, Stoppers

SLOW_SHARE = 0.01
CONFIDENCE = 0.95
_BATCHES = 20
# Quantiles for an interval of 95 %: Student's t with 19 degrees of freedom, and the normal one.
_T = 2.093
_Z = 1.960
# How far beyond a stopper, as a factor, the whole interval must lie to end a probe early. A symmetric early stop was
# the largest source of error in simulation.
GROSS = 3.0


@dataclass(frozen=True, slots=True)
class Length:
    """How many requests a probe takes."""

    early: int
    planned: int
    most: int

    @classmethod
    def of_search(cls, certification_requests: int) -> Length:
        """Returns the length of a probe of the search, which need not be as sure as the certification."""
        planned = max(1_000, certification_requests // 10)
        return cls(planned // 4, planned, planned * 4)

    @classmethod
    def of_certification(cls, certification_requests: int) -> Length:
        """Returns the length of the fresh run: never cut short where the result is good."""
        return cls(certification_requests // 4, certification_requests, certification_requests)


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with its confidence interval."""

    share: float
    low: float
    high: float


def interval(flags: Sequence[bool]) -> Interval:
    """Returns the share of true flags, in the order in which the requests were sent, with its 95 % interval."""
    count, share = len(flags), sum(flags) / len(flags)
    low, high = _wilson(share, count)
    size = count // _BATCHES
    if size:
        means = [sum(flags[start : start + size]) / size for start in range(0, size * _BATCHES, size)]
        centre = sum(means) / _BATCHES
        spread = math.sqrt(sum((mean - centre) ** 2 for mean in means) / (_BATCHES - 1))
        half = _T * spread / math.sqrt(_BATCHES)
        low, high = min(low, share - half), max(high, share + half)
    return Interval(share, max(0.0, low), min(1.0, high))


def _wilson(share: float, count: int) -> tuple[float, float]:
    square = _Z * _Z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return centre - half, centre + half


class Judge:
    """Looks at answers in the order in which their requests were sent."""

    def __init__(self, stoppers: Stoppers, length: Length, *, certification: bool) -> None:
        self.length = length
        self._stoppers = stoppers
        self._certification = certification
        self.latencies: list[float] = []
        self._slow: list[bool] = []
        self._failed: list[bool] = []
        self._checks = sorted(
            {length.early, length.most, *range(length.planned, length.most + 1, max(1, length.planned // 2))}
        )

    @property
    def requests(self) -> int:
        return len(self.latencies)

    @property
    def errors(self) -> int:
        return sum(self._failed)

    @property
    def latency_p99_ms(self) -> float:
        """The 99th percentile of the latencies so far; 0 before the first."""
        ordered = sorted(self.latencies)
        return ordered[math.ceil(len(ordered) * (1 - SLOW_SHARE)) - 1] if ordered else 0.0

    def add(self, latency_ms: float, *, failed: bool) -> Outcome | None:
        """Takes one answer; returns the verdict where there is one now. A failed request is slow as well."""
        self.latencies.append(latency_ms)
        self._slow.append(failed or latency_ms > (self._stoppers.latency_p99_ms or math.inf))
        self._failed.append(failed)
        if self._checks and len(self.latencies) == self._checks[0]:
            self._checks.pop(0)
            return self._verdict()
        return None

    def _verdict(self) -> Outcome | None:
        limits = self._limits()
        if any(found.low > limit * GROSS for found, limit in limits):
            return Outcome.OVER
        if self.requests < self.length.planned:
            grossly_under = all(found.high * GROSS < limit for found, limit in limits)
            return Outcome.WITHIN if grossly_under and not self._certification else None
        if any(found.low > limit for found, limit in limits):
            return Outcome.OVER
        if all(found.high <= limit for found, limit in limits):
            return Outcome.WITHIN
        return Outcome.UNDECIDED if self.requests >= self.length.most else None

    def _limits(self) -> list[tuple[Interval, float]]:
        limits = []
        if self._stoppers.latency_p99_ms:
            limits.append((interval(self._slow), SLOW_SHARE))
        errors, most = interval(self._failed), self._stoppers.error_rate
        if not self._certification and errors.share <= most:
            # A short probe cannot confirm a small rate; the certification will.
            errors = Interval(errors.share, errors.low, errors.share)
        limits.append((errors, most))
        return limits

    def explain(self, outcome: Outcome) -> str:
        """Returns the figures behind a verdict, in a sentence."""
        if not self.latencies:
            return "No request was answered."
        parts = []
        if self._stoppers.latency_p99_ms:
            slow = interval(self._slow)
            parts.append(
                f"{slow.share:.2%} [{slow.low:.2%}, {slow.high:.2%}] took longer than "
                f"{self._stoppers.latency_p99_ms:g} ms, at most {SLOW_SHARE:.0%} may"
            )
        errors, most = interval(self._failed), self._stoppers.error_rate
        parts.append(f"{errors.share:.3%} [{errors.low:.3%}, {errors.high:.3%}] failed, at most {most:.3%} may")
        return f"{outcome.name}: {'; '.join(parts)} ({self.requests:,} requests)."
