"""Traffic of one target of the simulator: who gets it, how long an answer takes, and what fails.

A target is told when something about it changes, and counts what came in since then in one go. Its draws are its own,
so that how often somebody looks changes nothing about what befalls the machines.

**By utilisation.** With `replica_requests_per_second` known, a model's utilisation is what is offered to it over what
its available replicas carry. Every percentile of the response time of an M/M/1 queue is that of an idle server divided
by (1 - utilisation), and so it is here, up to `MOST_QUEUED` times: queues are bounded. Beyond saturation the replicas
answer what they carry, and the rest fails: 1 - 1 / utilisation of the requests.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from modelfleetd.platform.model import FULL_SHARE, ModelShare

# How many times longer an answer takes at most than on an idle replica.
MOST_QUEUED: Final = 20.0
# The 99th percentile of an answer's time over its median.
TAIL: Final = 3.0
# Above this many expected requests a normal draw is as good as a binomial one, and far cheaper.
_NORMAL_FROM: Final = 64


@dataclass(slots=True)
class Counters:
    """Requests answered by one model, of these the failed ones; for ever, and at the moment of the last split."""

    requests: int = 0
    errors: int = 0
    requests_at_split: int = 0
    errors_at_split: int = 0


@dataclass(frozen=True, slots=True)
class Conditions:
    """How models answer; what is not said of a model is as for the others.

    Attributes:
        latency_ms: median on an idle replica.
        latencies: the same of models that are not like the others.
        error_rates: share of a model's requests that fail whatever the load.
        replica_requests_per_second: what one replica carries; None: anything.
        carried: the same of models that are not like the others.
        lag_seconds: how long it takes until the traffic has moved once the proxy has taken other weights.
    """

    latency_ms: float
    latencies: Mapping[str, float]
    error_rates: Mapping[str, float]
    replica_requests_per_second: float | None = None
    carried: Mapping[str, float] = field(default_factory=dict)
    lag_seconds: float = 0.0

    def capacity_of(self, model: str) -> float | None:
        """Requests per second that one replica of a model carries; None: anything."""
        return self.carried.get(model, self.replica_requests_per_second)

    def latency(self, model: str, utilisation: float) -> float:
        """The median time of an answer in milliseconds."""
        return self.latencies.get(model, self.latency_ms) * queueing(utilisation)


@dataclass(slots=True)
class Traffic:
    """What callers send to one target."""

    draw: random.Random
    requests_per_second: float = 0.0
    weights: Mapping[str, int] = field(default_factory=dict)
    counters: dict[str, Counters] = field(default_factory=dict)
    unrouted: int = 0
    _fraction: float = 0.0
    # Weights from which the traffic moves to those in force, and how long ago these came.
    _before: Mapping[str, float] = field(default_factory=dict)
    _since: float = 0.0

    def split(self, shares: tuple[ModelShare, ...], lag_seconds: float) -> None:
        """The proxy has taken other shares; counting since the split begins."""
        self._before = self.shares(lag_seconds)
        self.weights = {share.model: share.share_basis_points for share in shares}
        self._since = 0.0
        for counters in self.counters.values():
            counters.requests_at_split = counters.requests
            counters.errors_at_split = counters.errors

    def shares(self, lag_seconds: float, over: float = 0.0) -> Mapping[str, float]:
        """How the traffic is split in basis points: now, or on average over the next seconds."""
        if not self._before or self._since >= lag_seconds:
            return self.weights
        moved = _moved(self._since, over, lag_seconds)
        # In the order of the weights, so that draws are.
        models = dict.fromkeys((*self.weights, *self._before))
        return {m: self._before.get(m, 0) * (1 - moved) + self.weights.get(m, 0) * moved for m in models}

    def utilisation(self, model: str, available: int, conditions: Conditions, share: float | None = None) -> float:
        """What is offered to a model over what its replicas carry; 0 where they carry anything."""
        carries = conditions.capacity_of(model)
        if carries is None:
            return 0.0
        if share is None:
            share = self.shares(conditions.lag_seconds).get(model, 0)
        offered = self.requests_per_second * share / FULL_SHARE
        return offered / (available * carries) if available and carries else (MOST_QUEUED if offered else 0.0)

    def serve(self, seconds: float, available: Mapping[str, int], conditions: Conditions) -> None:
        """Counts the traffic of an interval in which no weight and no replica changed."""
        exact = self.requests_per_second * seconds + self._fraction
        requests = int(exact)
        self._fraction = exact - requests
        if requests and (self.weights or self._before):
            self._count(requests, self.shares(conditions.lag_seconds, seconds), available, conditions)
        else:
            self.unrouted += requests
        self._since += seconds

    def _count(
        self, requests: int, shares: Mapping[str, float], available: Mapping[str, int], conditions: Conditions
    ) -> None:
        left, weight_left = requests, float(FULL_SHARE)
        for model, share in shares.items():
            count = binomial(self.draw, left, share / weight_left) if weight_left > 1e-9 else 0
            left -= count
            weight_left -= share
            counters = self.counters.setdefault(model, Counters())
            counters.requests += count
            running = available.get(model, 0)
            if running == 0:
                counters.errors += count
                continue
            shed = overload(self.utilisation(model, running, conditions, share))
            failing = 1 - (1 - conditions.error_rates.get(model, 0.0)) * (1 - shed)
            counters.errors += binomial(self.draw, count, failing)
        self.unrouted += left


def queueing(utilisation: float) -> float:
    """How many times longer an answer takes than on an idle replica."""
    return min(MOST_QUEUED, 1 / (1 - utilisation)) if utilisation < 1 else MOST_QUEUED


def overload(utilisation: float) -> float:
    """The share of the requests that fails because the replicas cannot carry them."""
    return 1 - 1 / utilisation if utilisation > 1 else 0.0


def _moved(since: float, over: float, lag: float) -> float:
    """How much of the traffic has moved at a moment, or on average over the seconds after it; it moves evenly."""
    if over <= 0:
        return min(1.0, since / lag)
    moving = min(over, lag - since)
    return (moving * (since + moving / 2) / lag + (over - moving)) / over


def binomial(draw: random.Random, n: int, p: float) -> int:
    """How many of n happen, each with probability p."""
    if n <= 0 or p <= 0:
        return 0
    if p >= 1:
        return n
    if n * min(p, 1 - p) < _NORMAL_FROM and n < 10_000:
        return sum(draw.random() < p for _ in range(n))
    return min(n, max(0, round(draw.gauss(n * p, (n * p * (1 - p)) ** 0.5))))
