"""One target of the simulator: its replicas, and what an agent would say of it. It is told what happens, and when."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field, replace
from datetime import datetime

from modelfleetd.platform.model import (
    FULL_SHARE,
    DesiredServing,
    ModelShare,
    ObservedModel,
    ServingObservation,
    ServingSpec,
    TargetKind,
)
from modelfleetd.platform.simulated_traffic import TAIL, Conditions, Counters, Traffic


class Phase(enum.IntEnum):
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
    # Whether it waits for a machine, and nothing else.
    pending: bool = False


@dataclass(slots=True)
class SimulatedTarget:
    """What the simulator knows of one target."""

    name: str
    traffic: Traffic = field(default_factory=lambda: Traffic(random.Random(0)))
    kind: TargetKind | None = None
    floor: int = 0
    desired: DesiredServing | None = None
    generation: int = 0
    acknowledged_generation: int = 0
    acknowledged: tuple[ModelShare, ...] = ()
    split_time: datetime | None = None
    waiting: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    # When its traffic was counted last, by the clock's monotonic seconds.
    served: float = 0.0
    _replicas: dict[str, dict[Phase, dict[str, Replica]]] = field(default_factory=dict)
    _numbers: tuple[datetime, dict[str, ObservedModel], int] | None = None
    _look: ServingObservation | None = None

    # Replicas

    def add(self, replica: Replica) -> None:
        """A replica begins to start."""
        phases = self._replicas.setdefault(replica.model, {phase: {} for phase in Phase})
        phases[replica.phase][replica.name] = replica

    def has(self, replica: Replica, phase: Phase) -> bool:
        """Whether a replica is there and in that phase."""
        return replica.phase is phase and replica.name in self._replicas.get(replica.model, {}).get(phase, {})

    def move(self, replica: Replica, phase: Phase) -> None:
        """A replica comes to another phase of its life."""
        phases = self._replicas[replica.model]
        del phases[replica.phase][replica.name]
        replica.phase = phase
        phases[phase][replica.name] = replica

    def remove(self, replica: Replica) -> bool:
        """A replica is gone; False where it was before."""
        phases = self._replicas.get(replica.model)
        return phases is not None and phases[replica.phase].pop(replica.name, None) is not None

    def of(self, model: str, *phases: Phase) -> list[Replica]:
        """Replicas of a model in these phases, phase by phase, those first that have been in it for longest."""
        known = self._replicas.get(model, {})
        return [replica for phase in phases for replica in known.get(phase, {}).values()]

    def count(self, model: str, phase: Phase) -> int:
        """How many replicas of a model are in a phase."""
        return len(self._replicas.get(model, {}).get(phase, ()))

    def live(self, model: str) -> int:
        """Replicas of a model that start or take traffic."""
        return self.count(model, Phase.AVAILABLE) + self.count(model, Phase.STARTING)

    def available(self, model: str) -> int:
        """Replicas of a model that take traffic."""
        return self.count(model, Phase.AVAILABLE)

    def everything(self, *phases: Phase) -> list[Replica]:
        """Replicas of every model in these phases."""
        return [replica for model in self._replicas for replica in self.of(model, *phases)]

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
                *(model for model, phases in self._replicas.items() if any(phases.values())),
                *(s.model for s in self.acknowledged),
            }
        )

    # Traffic

    def split(self, shares: tuple[ModelShare, ...], now: datetime, lag_seconds: float) -> None:
        """The proxy has acknowledged other shares."""
        self.acknowledged = shares
        self.split_time = now
        self.traffic.split(shares, lag_seconds)
        # Numbers of before say nothing about it.
        self._numbers = None

    def serve(self, until: float, conditions: Conditions) -> None:
        """Counts the traffic since it was counted last; nothing has changed since."""
        if until > self.served:
            if self.kind is not None:
                available = {model: len(phases[Phase.AVAILABLE]) for model, phases in self._replicas.items()}
                self.traffic.serve(until - self.served, available, conditions)
            self.served = until

    # What an agent says

    def observe(
        self,
        region: str,
        now: datetime,
        conditions: Conditions,
        *,
        looks_every: float = 0.0,
        measures_every: float = 0.0,
    ) -> ServingObservation:
        """What the agent would say of this target now.

        Args:
            region: of the agent.
            now: the time of the simulator.
            conditions: how models answer.
            looks_every: a look at replicas and proxy that is not older than so many seconds is good enough.
            measures_every: the same of the proxy's counters; infinite while the proxy cannot be asked.
        """
        look = self._look
        if look is None or look.observe_time is None or (now - look.observe_time).total_seconds() >= looks_every:
            look = self._look = self._observed(region, now, conditions, measures_every)
            return look
        # What it was told to do, and by whom, an agent knows without looking.
        return replace(look, kind=self.kind, desired=self.desired, generation=self.generation, epoch_floor=self.floor)

    def _observed(self, region: str, now: datetime, conditions: Conditions, every: float) -> ServingObservation:
        measured, numbers, unrouted = self._measured(now, conditions, every)
        return ServingObservation(
            target=self.name,
            kind=self.kind,
            region=region,
            models=tuple(self._model(model, numbers.get(model, ObservedModel(model))) for model in self.model_names()),
            desired=self.desired,
            generation=self.generation,
            acknowledged_generation=self.acknowledged_generation,
            split_time=self.split_time,
            observe_time=now,
            epoch_floor=self.floor,
            unrouted_errors=unrouted,
            statistics_age=now - measured,
        )

    def _measured(
        self, now: datetime, conditions: Conditions, every: float
    ) -> tuple[datetime, dict[str, ObservedModel], int]:
        """The proxy's counters: when they were read, by model, and what went nowhere."""
        if self._numbers is not None and (now - self._numbers[0]).total_seconds() < every:
            return self._numbers
        counted = {model: self.traffic.counters.get(model, Counters()) for model in self.model_names()}
        total = sum(c.requests - c.requests_at_split for c in counted.values())
        found = {model: self._counted(model, c, total, conditions) for model, c in counted.items()}
        self._numbers = (now, found, self.traffic.unrouted)
        return self._numbers

    def _counted(self, model: str, counters: Counters, total: int, conditions: Conditions) -> ObservedModel:
        since = counters.requests - counters.requests_at_split
        latency = conditions.latency(model, self.traffic.utilisation(model, self.available(model), conditions))
        return ObservedModel(
            model=model,
            observed_basis_points=round(FULL_SHARE * since / total) if total else 0,
            requests_since_split=since,
            errors_since_split=counters.errors - counters.errors_at_split,
            requests=counters.requests,
            errors=counters.errors,
            latency_p50_ms=latency if since else None,
            latency_p99_ms=TAIL * latency if since else None,
        )

    def _model(self, model: str, numbers: ObservedModel) -> ObservedModel:
        wanted = self.desired.replicas_of(model) if self.desired else 0
        starting, available = self.count(model, Phase.STARTING), self.available(model)
        waiting = max(0, min(self.waiting.get(model, 0), wanted - starting - available))
        return ObservedModel(
            model=model,
            desired_replicas=wanted,
            starting_replicas=starting,
            available_replicas=available,
            unavailable_replicas=waiting,
            terminating_replicas=self.count(model, Phase.TERMINATING),
            acknowledged_basis_points=self.weight(model),
            observed_basis_points=numbers.observed_basis_points,
            requests_since_split=numbers.requests_since_split,
            errors_since_split=numbers.errors_since_split,
            requests=numbers.requests,
            errors=numbers.errors,
            latency_p50_ms=numbers.latency_p50_ms,
            latency_p99_ms=numbers.latency_p99_ms,
            message=self._message(model, waiting),
        )

    def _message(self, model: str, waiting: int) -> str:
        if waiting:
            return f"{waiting} replicas wait to be started again"
        pending = sum(1 for replica in self.of(model, Phase.STARTING) if replica.pending)
        return f"{pending} replicas wait for a machine" if pending else ""
