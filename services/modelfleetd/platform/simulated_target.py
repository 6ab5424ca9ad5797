"""One target of the simulator: its replicas and its counted traffic. No time of its own: it is told what happens."""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from modelfleetd.platform.model import (
    FULL_SHARE,
    DesiredServing,
    ModelShare,
    ObservedModel,
    ServingObservation,
    ServingSpec,
    TargetKind,
)

# Above this many expected requests a normal draw is as good as a binomial one, and far cheaper.
_NORMAL_FROM = 64


class Phase(enum.Enum):
    """Where a replica is in its life."""

    STARTING = 1
    AVAILABLE = 2
    TERMINATING = 3


@dataclass(slots=True)
class Replica:
    """One replica; gone from the target once it has terminated."""

    name: str
    model: str
    spec: ServingSpec
    phase: Phase = Phase.STARTING


@dataclass(slots=True)
class Counters:
    """Requests answered by one model, of these the failed ones; for ever, and at the moment of the last split."""

    requests: int = 0
    errors: int = 0
    requests_at_split: int = 0
    errors_at_split: int = 0


@dataclass(slots=True)
class SimulatedTarget:
    """What the simulator knows of one target."""

    name: str
    kind: TargetKind | None = None
    floor: int = 0
    desired: DesiredServing | None = None
    generation: int = 0
    acknowledged_generation: int = 0
    acknowledged: tuple[ModelShare, ...] = ()
    split_time: datetime | None = None
    replicas: dict[str, Replica] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    counters: dict[str, Counters] = field(default_factory=dict)
    unrouted: int = 0
    requests_per_second: float = 0.0
    fraction: float = 0.0

    def of(self, model: str, *phases: Phase) -> list[Replica]:
        """Replicas of a model in these phases, oldest first."""
        return [r for r in self.replicas.values() if r.model == model and r.phase in phases]

    def available(self, model: str) -> int:
        """Replicas of a model that take traffic."""
        return len(self.of(model, Phase.AVAILABLE))

    def weight(self, model: str) -> int:
        """The acknowledged share of a model in basis points."""
        return next(
            (share.share_basis_points for share in self.acknowledged if share.model == model),
            0,
        )

    def model_names(self) -> list[str]:
        """Models that are desired, exist, or have weight; in the order of their names."""
        desired = [model.model for model in self.desired.models] if self.desired else []
        return sorted(
            {
                *desired,
                *(r.model for r in self.replicas.values()),
                *(s.model for s in self.acknowledged),
            }
        )

    def split(self, shares: tuple[ModelShare, ...], now: datetime) -> None:
        """The proxy has acknowledged other shares."""
        self.acknowledged = shares
        self.split_time = now
        for counters in self.counters.values():
            counters.requests_at_split = counters.requests
            counters.errors_at_split = counters.errors

    def serve(self, seconds: float, draw: random.Random, error_rates: Mapping[str, float]) -> None:
        """Counts the traffic of an interval in which nothing changed, drawn by the acknowledged shares."""
        exact = self.requests_per_second * seconds + self.fraction
        requests = int(exact)
        self.fraction = exact - requests
        left, weight_left = requests, FULL_SHARE
        for share in self.acknowledged:
            count = _binomial(draw, left, share.share_basis_points / weight_left) if weight_left > 0 else 0
            left -= count
            weight_left -= share.share_basis_points
            counters = self.counters.setdefault(share.model, Counters())
            counters.requests += count
            if self.available(share.model) == 0:
                counters.errors += count
            else:
                counters.errors += _binomial(draw, count, error_rates.get(share.model, 0.0))
        self.unrouted += left

    def observe(
        self, region: str, now: datetime, latency_ms: float, latencies: Mapping[str, float]
    ) -> ServingObservation:
        """What the agent would say of this target now."""
        counted = {model: self.counters.get(model, Counters()) for model in self.model_names()}
        total = sum(c.requests - c.requests_at_split for c in counted.values())
        return ServingObservation(
            target=self.name,
            kind=self.kind,
            region=region,
            models=tuple(
                self._observed(model, c, total, latencies.get(model, latency_ms)) for model, c in counted.items()
            ),
            desired=self.desired,
            generation=self.generation,
            acknowledged_generation=self.acknowledged_generation,
            split_time=self.split_time,
            observe_time=now,
            epoch_floor=self.floor,
            unrouted_errors=self.unrouted,
            statistics_age=timedelta(0),
        )

    def _observed(self, model: str, counters: Counters, total: int, latency_ms: float) -> ObservedModel:
        since = counters.requests - counters.requests_at_split
        wanted = self.desired.replicas_of(model) if self.desired else 0
        starting, available = len(self.of(model, Phase.STARTING)), self.available(model)
        waiting = max(0, min(self.waiting.get(model, 0), wanted - starting - available))
        return ObservedModel(
            model=model,
            desired_replicas=wanted,
            starting_replicas=starting,
            available_replicas=available,
            unavailable_replicas=waiting,
            terminating_replicas=len(self.of(model, Phase.TERMINATING)),
            acknowledged_basis_points=self.weight(model),
            observed_basis_points=round(FULL_SHARE * since / total) if total else 0,
            requests_since_split=since,
            errors_since_split=counters.errors - counters.errors_at_split,
            requests=counters.requests,
            errors=counters.errors,
            latency_p50_ms=latency_ms if since else None,
            latency_p99_ms=3 * latency_ms if since else None,
            message=f"{waiting} replicas wait to be started again" if waiting else "",
        )


def _binomial(draw: random.Random, n: int, p: float) -> int:
    """How many of n happen, each with probability p."""
    if n <= 0 or p <= 0:
        return 0
    if p >= 1:
        return n
    if n * min(p, 1 - p) < _NORMAL_FROM and n < 10_000:
        return sum(draw.random() < p for _ in range(n))
    return min(n, max(0, round(draw.gauss(n * p, (n * p * (1 - p)) ** 0.5))))
