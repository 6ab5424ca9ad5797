"""What the agent decides: from desired and observed to what to start, to drain and to route. Pure.

A replica's phases, and who moves it on:

    STARTING ──ready──► READY ──Envoy has it──► AVAILABLE ◄──► UNAVAILABLE     (readiness, Envoy)
        │                 │                        │               │
        └── surplus, or failed ──► STOPPING ◄──idle or late── DRAINING         (reconciler)
                                       │
                                       ▼
                                      gone                                     (the process has ended)

A process that ends by itself is gone from whatever phase it was in. READY, AVAILABLE and DRAINING replicas are known to
Envoy; a draining one only finishes what it has.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from modelfleetd import names
from modelfleetd.platform.model import (
    FULL_SHARE,
    DesiredModel,
    DesiredServing,
    ModelShare,
    ObservedModel,
    ServingObservation,
    ServingSpec,
    TargetKind,
)

NO_SERVING = DesiredServing()


class Phase(enum.Enum):
    """Where a replica is in its life."""

    STARTING = "STARTING"
    READY = "READY"
    AVAILABLE = "AVAILABLE"
    UNAVAILABLE = "UNAVAILABLE"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"

    @property
    def counts(self) -> bool:
        """Whether the replica counts towards what is desired."""
        return self not in (Phase.DRAINING, Phase.STOPPING)


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine: its id, and its start as the system tells it, since ids are used again."""

    pid: int
    mark: str


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica. `since` is when it came into its phase; `process` is None from the intent to start to the start."""

    uid: str
    target: str
    model: str
    spec: ServingSpec
    port: int
    phase: Phase
    created: datetime
    since: datetime
    process: Process | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One target: what it shall be, and what the proxy has acknowledged of it."""

    name: str
    kind: TargetKind | None = None
    floor: int = 0
    desired: DesiredServing | None = None
    generation: int = 0
    acknowledged_generation: int = 0
    acknowledged: tuple[ModelShare, ...] = ()
    split_time: datetime | None = None
    unrouted: int = 0

    @property
    def wanted(self) -> DesiredServing:
        """The desired state; empty where there is none."""
        return self.desired or NO_SERVING


@dataclass(frozen=True, slots=True)
class Count:
    """Requests that a model has answered on a target and the failed ones of these; for ever, and at the last split."""

    requests: int = 0
    errors: int = 0
    requests_at_split: int = 0
    errors_at_split: int = 0

    def grown(self, requests: int, errors: int) -> Count:
        """After that many more."""
        return replace(self, requests=self.requests + requests, errors=self.errors + errors)

    def split(self) -> Count:
        """After the split has changed."""
        return replace(self, requests_at_split=self.requests, errors_at_split=self.errors)


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the proxy's last interval, in milliseconds."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Crashes:
    """How often replicas of one model ended by themselves in a row, and when the next may be started."""

    count: int = 0
    next_start: float = 0.0
    why: str = ""

    def after(self, now: float, why: str, *, lived: float) -> Crashes:
        """After one more. The first is replaced at once; then the pause doubles, to half a minute."""
        count = 1 if lived > _LIVED_WELL else self.count + 1
        pause = 0.0 if count == 1 else min(_LONGEST_PAUSE, 2.0 ** (count - 2))
        return Crashes(count, now + pause, why)


_LIVED_WELL = 60.0
_LONGEST_PAUSE = 30.0
NO_CRASHES = Crashes()


# Replicas of a target


def by_target(replicas: Iterable[Replica]) -> dict[str, list[Replica]]:
    """Replicas by the name of their target: rounds look at every target, and may not look at every replica for each."""
    found: dict[str, list[Replica]] = {}
    for replica in replicas:
        found.setdefault(replica.target, []).append(replica)
    return found


def available(target: str, model: str, replicas: Iterable[Replica]) -> int:
    """How many replicas of a model take traffic."""
    return sum(1 for r in replicas if (r.target, r.model, r.phase) == (target, model, Phase.AVAILABLE))


def model_names(target: Target, replicas: Iterable[Replica]) -> list[str]:
    """Models that are desired, exist, or have weight, in the order of their names."""
    desired = {model.model for model in target.wanted.models}
    existing = {replica.model for replica in replicas if replica.target == target.name}
    return sorted(desired | existing | {share.model for share in target.acknowledged})


# What is started and what is drained


def surplus(target: Target, replicas: Sequence[Replica]) -> list[Replica]:
    """Replicas to drain: unavailable ones first, then the newest.

    None until the proxy has the newest shares: weight leaves a model before its replicas do.
    """
    if target.acknowledged_generation != target.generation:
        return []
    found: list[Replica] = []
    for model in model_names(target, replicas):
        live = [r for r in replicas if (r.target, r.model) == (target.name, model) and r.phase.counts]
        extra = len(live) - target.wanted.replicas_of(model)
        if extra > 0:
            newest_first = sorted(live, key=lambda r: r.created, reverse=True)
            found += sorted(newest_first, key=lambda r: r.phase is Phase.AVAILABLE)[:extra]
    return found


def missing(target: Target, replicas: Sequence[Replica], model: DesiredModel) -> int:
    """How many replicas of a desired model have to be started."""
    live = sum(1 for r in replicas if (r.target, r.model) == (target.name, model.model) and r.phase.counts)
    return max(0, model.replicas - live)


def fits(spec: ServingSpec, replicas: Iterable[Replica], capacity: Mapping[str, int]) -> bool:
    """Whether one more replica fits this machine. Terminating ones still take their units."""
    if not capacity:
        return True
    used = sum(replica.spec.units for replica in replicas if replica.spec.flavor == spec.flavor)
    return used + spec.units <= capacity.get(spec.flavor, 0)


def cannot_start(spec: ServingSpec, capacity: Mapping[str, int], find: Callable[[str], str | None]) -> str | None:
    """Why this machine can never run a replica, where that can be known without trying; else None."""
    if not spec.command:
        return "this machine runs commands, not images"
    if capacity and spec.units > capacity.get(spec.flavor, 0):
        return (
            f"this machine has {capacity.get(spec.flavor, 0)} units of {spec.flavor} and a replica takes {spec.units}"
        )
    program = spec.command[0].replace("{artifact}", spec.artifact)
    if find(program) is None:
        return f"{program} is no command of this machine"
    return None


def command_of(replica: Replica) -> list[str]:
    """The command of a replica, argument by argument."""
    model_type, _ = names.MODEL.parse(replica.model)
    values = {
        "{port}": str(replica.port),
        "{artifact}": replica.spec.artifact,
        "{model}": replica.model,
        "{model_type}": model_type,
    }
    # One pass: what is filled in is never searched for placeholders again.
    return [_PLACEHOLDER.sub(lambda found: values[found[0]], argument) for argument in replica.spec.command]


_PLACEHOLDER = re.compile(r"{(?:port|artifact|model|model_type)}")


# What is observed


def observe(
    target: Target,
    replicas: Sequence[Replica],
    *,
    region: str,
    now: datetime,
    counts: Mapping[str, Count],
    latencies: Mapping[str, Latency],
    crashes: Mapping[str, Crashes],
    capacity: Mapping[str, int],
    statistics_age: timedelta,
) -> ServingObservation:
    """What a target really looks like. The mappings are by model."""
    known = model_names(target, replicas)
    total = sum(c.requests - c.requests_at_split for c in (counts.get(model, Count()) for model in known))

    def observed(model: str) -> ObservedModel:
        phases = [r.phase for r in replicas if (r.target, r.model) == (target.name, model)]
        count = counts.get(model, Count())
        since = count.requests - count.requests_at_split
        desired = next((m for m in target.wanted.models if m.model == model), None)
        lacking = missing(target, replicas, desired) if desired else 0
        crashed = crashes.get(model, NO_CRASHES)
        waiting = lacking if crashed.count else 0
        latency = latencies.get(model)
        return ObservedModel(
            model=model,
            desired_replicas=desired.replicas if desired else 0,
            starting_replicas=phases.count(Phase.STARTING) + phases.count(Phase.READY),
            available_replicas=phases.count(Phase.AVAILABLE),
            unavailable_replicas=phases.count(Phase.UNAVAILABLE) + waiting,
            terminating_replicas=phases.count(Phase.DRAINING) + phases.count(Phase.STOPPING),
            acknowledged_basis_points=next(
                (share.share_basis_points for share in target.acknowledged if share.model == model), 0
            ),
            observed_basis_points=round(FULL_SHARE * since / total) if total else 0,
            requests_since_split=since,
            errors_since_split=count.errors - count.errors_at_split,
            requests=count.requests,
            errors=count.errors,
            latency_p50_ms=latency.p50_ms if latency else None,
            latency_p99_ms=latency.p99_ms if latency else None,
            message=_why(phases, lacking, crashed, desired, replicas, capacity),
        )

    return ServingObservation(
        target=target.name,
        kind=target.kind,
        region=region,
        models=tuple(observed(model) for model in known),
        desired=target.desired,
        generation=target.generation,
        acknowledged_generation=target.acknowledged_generation,
        split_time=target.split_time,
        observe_time=now,
        epoch_floor=target.floor,
        unrouted_errors=target.unrouted,
        statistics_age=statistics_age,
    )


def _why(
    phases: Sequence[Phase],
    lacking: int,
    crashed: Crashes,
    desired: DesiredModel | None,
    replicas: Sequence[Replica],
    capacity: Mapping[str, int],
) -> str:
    if lacking and desired and not fits(desired.serving_spec, replicas, capacity):
        return f"{lacking} replicas wait for free units of {desired.serving_spec.flavor}."
    if lacking and crashed.why:
        return f"{lacking} replicas wait to be started again: {crashed.why}."
    if phases.count(Phase.UNAVAILABLE):
        return f"{phases.count(Phase.UNAVAILABLE)} replicas run but do not say that they are ready."
    if crashed.count > 1 and desired and phases.count(Phase.AVAILABLE) < desired.replicas:
        return f"The last {crashed.count} replicas ended by themselves: {crashed.why}."
    return ""
