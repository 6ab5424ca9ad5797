"""A platform without machines: deterministic by its seed, on whatever clock it is given.

It passes the conformance suite of real agents and adds what they cannot do on demand: replicas that die, starts that
fail, acknowledgements and terminations that take long, calls and answers that are lost. Nothing runs by itself: each
call first lets everything happen that was due by the clock, in order, so the same seed and the same calls give the same
ledger, whatever the machine does.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from modelfleetd import names
from modelfleetd.clock import Clock
from modelfleetd.errors import PartUnavailable, ReplicaCannotStart, RequestIdReused, ResourceNotFound
from modelfleetd.platform import rules, simulated_recording
from modelfleetd.platform.model import (
    Agent,
    Applied,
    DesiredModel,
    DesiredServing,
    Effect,
    EffectKind,
    EffectPage,
    Fence,
    FlavorUnits,
    ModelShare,
    RecordingPlan,
    RecordingStatus,
    ServingObservation,
    TargetKind,
)
from modelfleetd.platform.simulated_recording import SimulatedRecording
from modelfleetd.platform.simulated_target import Phase, Replica, SimulatedTarget

_NO_SERVING = DesiredServing()


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the simulated machines behave. Pairs are (least, most) seconds, drawn evenly; rates are probabilities."""

    start_seconds: tuple[float, float] = (1.0, 3.0)
    terminate_seconds: tuple[float, float] = (0.5, 2.0)
    acknowledge_seconds: tuple[float, float] = (0.05, 0.3)
    retry_seconds: float = 1.0
    start_failure_rate: float = 0.0
    mean_life_seconds: float | None = None
    requests_per_second: float = 100.0
    latency_ms: float = 5.0
    lost_call_rate: float = 0.0
    lost_answer_rate: float = 0.0


@dataclass(order=True, slots=True)
class _Event:
    due: float
    order: int
    happen: Callable[[], None] = field(compare=False)


class Simulator:
    """Implements `Platform`. Everything else is for tests: faults to switch on, and a look at the ledger."""

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 0,
        behaviour: Behaviour | None = None,
        region: str = "regions/local",
        capacity: tuple[FlavorUnits, ...] = (),
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.ledger: list[Effect] = []
        self.partitioned = False
        self.acknowledges = True
        self.terminates = True
        self.failing_models: set[str] = set()
        self.error_rates: dict[str, float] = {}
        # Median latencies in milliseconds of models that are not like the others.
        self.latencies: dict[str, float] = {}
        self._clock = clock
        self._draw = random.Random(seed)
        self._region = region
        self._capacity = {units.flavor: units.units for units in capacity}
        self._started = clock.now()
        self._origin = clock.monotonic()
        self._at = self._origin
        self._order = itertools.count()
        self._events: list[_Event] = []
        self._targets: dict[str, SimulatedTarget] = {}
        self._answered: dict[str, rules.Answered] = {}
        self._recordings: dict[str, SimulatedRecording] = {}

    # Platform

    async def agent(self) -> Agent:
        self._receive()
        capacity = tuple(FlavorUnits(flavor, units) for flavor, units in sorted(self._capacity.items()))
        return Agent(self._region, "simulator", "127.0.0.1:0", capacity, self._started, records=True)

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        self._receive()
        rules.check_request(target, kind, fence, desired)
        known = self._targets.get(target) or SimulatedTarget(target)
        rules.check_epoch(target, fence.epoch, known.floor)
        content = rules.content_of(target, kind, desired)
        applied = rules.repeated(self._answered.get(fence.key), fence, content)
        if applied is None:
            rules.check_kind(kind, known.kind)
            before = known.desired or _NO_SERVING
            for model in desired.models:
                if before.starts(model):
                    self._check_startable(target, model)
            rules.check_shares(target, desired, before, known.available)
            applied = self._accept(known, kind, fence, desired)
            self._answered[fence.key] = rules.Answered(content, applied)
        known.floor = max(known.floor, fence.epoch)
        self._answer()
        return applied

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        self._receive()
        names.TARGET.parse(target, "target")
        known = self._targets.get(target) or SimulatedTarget(target)
        if epoch:
            rules.check_epoch(target, epoch, known.floor)
            if epoch > known.floor:
                self._targets[target] = known
                known.floor = epoch
                self._record(known, EffectKind.FLOOR_RAISED, epoch=epoch)
        self._answer()
        return known.observe(self._region, self._now(), self.behaviour.latency_ms, self.latencies)

    async def list(self) -> tuple[ServingObservation, ...]:
        self._receive()
        latency, other = self.behaviour.latency_ms, self.latencies
        return tuple(t.observe(self._region, self._now(), latency, other) for _, t in sorted(self._targets.items()))

    async def effects(self, after: int = 0, target: str = "", limit: int = 1000) -> EffectPage:
        self._receive()
        found = [effect for effect in self.ledger[after:] if target in ("", effect.target)]
        return EffectPage(tuple(found[:limit]), len(found) > limit)

    async def start_recording(self, plan: RecordingPlan) -> RecordingStatus:
        self._receive()
        rules.check_plan(plan)
        known = self._recordings.get(plan.recording)
        if known is not None and known.plan != plan:
            raise RequestIdReused(plan.recording)
        if known is None:
            target = self._targets.get(plan.target)
            if target is None or target.kind is not TargetKind.ROUTE:
                raise ResourceNotFound(plan.target)
            known = self._recordings[plan.recording] = simulated_recording.begin(plan, self._now())
        self._answer()
        return known.status()

    async def observe_recording(self, recording: str) -> RecordingStatus:
        self._receive()
        return self._recording(recording).status()

    async def stop_recording(self, recording: str) -> RecordingStatus:
        self._receive()
        known = self._recording(recording)
        known.end("It was stopped.")
        self._answer()
        return known.status()

    def _recording(self, recording: str) -> SimulatedRecording:
        if recording not in self._recordings:
            raise ResourceNotFound(recording)
        return self._recordings[recording]

    # Faults and conditions, for tests

    @property
    def next_event(self) -> float | None:
        """When something is due next, in the clock's monotonic seconds; None while nothing is."""
        return self._events[0].due if self._events else None

    def desired(self, target: str) -> DesiredServing | None:
        """What a target is worked towards; None where nobody has asked for anything."""
        known = self._targets.get(target)
        return None if known is None else known.desired

    def requests(self, target: str, model: str) -> int:
        """How many requests a model has answered on a target so far."""
        self.catch_up()
        known = self._targets.get(target)
        return 0 if known is None or model not in known.counters else known.counters[model].requests

    def catch_up(self) -> None:
        """Lets everything happen that is due by the clock."""
        end = self._clock.monotonic()
        while self._events and self._events[0].due <= end:
            event = heapq.heappop(self._events)
            self._pass_time(event.due)
            event.happen()
        self._pass_time(end)

    def kill(self, model: str, count: int = 1) -> int:
        """Kills available replicas of a model, oldest first; returns how many there were to kill."""
        self.catch_up()
        found = [(t, r) for t in self._targets.values() for r in t.of(model, Phase.AVAILABLE)][:count]
        for target, replica in found:
            self._die(target, replica, "killed")
        return len(found)

    def traffic(self, target: str, requests_per_second: float) -> None:
        """Sets the traffic of a target from now on."""
        self.catch_up()
        self._targets[target].requests_per_second = requests_per_second

    def settle_acknowledgements(self) -> None:
        """Makes the proxy acknowledge again (`acknowledges = False` stopped it)."""
        self.acknowledges = True
        self.catch_up()
        for target in self._targets.values():
            self._render(target)

    def settle_terminations(self) -> None:
        """Makes replicas end again (`terminates = False` stopped them)."""
        self.terminates = True
        self.catch_up()
        for target in self._targets.values():
            for replica in [r for r in target.replicas.values() if r.phase is Phase.TERMINATING]:
                self._end_later(target, replica)

    # What happens

    def _accept(
        self,
        target: SimulatedTarget,
        kind: TargetKind,
        fence: Fence,
        desired: DesiredServing,
    ) -> Applied:
        if target.kind is None and kind is TargetKind.ROUTE:
            target.requests_per_second = self.behaviour.requests_per_second
        self._targets[target.name] = target
        target.kind = kind
        target.desired = desired
        target.generation += 1
        sequence = self._record(
            target,
            EffectKind.ACCEPTED,
            epoch=fence.epoch,
            key=fence.key,
            desired=desired,
        )
        self._render(target)
        self._reconcile(target)
        return Applied(sequence, target.generation)

    def _reconcile(self, target: SimulatedTarget) -> None:
        desired = target.desired or _NO_SERVING
        for name in target.model_names():
            wanted = desired.replicas_of(name)
            live = target.of(name, Phase.AVAILABLE, Phase.STARTING)
            surplus = len(live) - wanted
            # Weight leaves a model before its replicas do: none goes until the proxy has the newest shares.
            if surplus > 0 and target.acknowledged_generation == target.generation:
                # Those that are not available go first, then the newest.
                for replica in sorted(live, key=lambda r: r.phase is Phase.STARTING)[-surplus:]:
                    self._drain(target, replica)
        for model in desired.models:
            live = target.of(model.model, Phase.AVAILABLE, Phase.STARTING)
            missing = model.replicas - len(live) - target.waiting.get(model.model, 0)
            for _ in range(missing):
                if self._fits(model):
                    self._start(target, model)

    def _start(self, target: SimulatedTarget, model: DesiredModel) -> None:
        replica = Replica(f"r{next(self._order)}", model.model, model.serving_spec)
        target.replicas[replica.name] = replica
        self._record(target, EffectKind.REPLICA_STARTED, replica=replica)
        fails = model.model in self.failing_models or self._draw.random() < self.behaviour.start_failure_rate
        happen = self._fail if fails else self._ready
        self._later(self.behaviour.start_seconds, lambda: happen(target, replica))

    def _ready(self, target: SimulatedTarget, replica: Replica) -> None:
        if replica.phase is not Phase.STARTING or replica.name not in target.replicas:
            return
        replica.phase = Phase.AVAILABLE
        target.failures[replica.model] = 0
        self._record(target, EffectKind.REPLICA_AVAILABLE, replica=replica)
        if self.behaviour.mean_life_seconds is not None:
            life = self._draw.expovariate(1 / self.behaviour.mean_life_seconds)
            self._later((life, life), lambda: self._die(target, replica, "died"))
        self._render(target)

    def _fail(self, target: SimulatedTarget, replica: Replica) -> None:
        if replica.phase is Phase.STARTING and replica.name in target.replicas:
            self._record(
                target,
                EffectKind.REPLICA_FAILED,
                replica=replica,
                message="ended before it was ready",
            )
            self._gone(target, replica)

    def _die(self, target: SimulatedTarget, replica: Replica, message: str) -> None:
        if replica.phase is Phase.AVAILABLE and replica.name in target.replicas:
            self._record(target, EffectKind.REPLICA_LOST, replica=replica, message=message)
            self._gone(target, replica)

    def _gone(self, target: SimulatedTarget, replica: Replica) -> None:
        """A replica has ended by itself: another is started after a pause that doubles with each failure."""
        model = replica.model
        self._terminated(target, replica)
        target.failures[model] = target.failures.get(model, 0) + 1
        target.waiting[model] = target.waiting.get(model, 0) + 1
        pause = self.behaviour.retry_seconds * 2 ** min(target.failures[model] - 1, 5)
        self._render(target)
        self._later((pause, pause), lambda: self._retry(target, model))

    def _retry(self, target: SimulatedTarget, model: str) -> None:
        target.waiting[model] -= 1
        self._reconcile(target)

    def _drain(self, target: SimulatedTarget, replica: Replica) -> None:
        replica.phase = Phase.TERMINATING
        self._record(target, EffectKind.REPLICA_DRAINING, replica=replica)
        if self.terminates:
            self._end_later(target, replica)

    def _end_later(self, target: SimulatedTarget, replica: Replica) -> None:
        self._later(self.behaviour.terminate_seconds, lambda: self._terminated(target, replica))

    def _terminated(self, target: SimulatedTarget, replica: Replica) -> None:
        if target.replicas.pop(replica.name, None) is not None:
            self._record(target, EffectKind.REPLICA_TERMINATED, replica=replica)
            for other in self._targets.values():
                self._reconcile(other)

    def _render(self, target: SimulatedTarget) -> None:
        if self.acknowledges:
            self._later(self.behaviour.acknowledge_seconds, lambda: self._acknowledge(target))

    def _acknowledge(self, target: SimulatedTarget) -> None:
        if not self.acknowledges:
            return
        target.acknowledged_generation = target.generation
        shares = rules.effective_shares((target.desired or _NO_SERVING).shares, target.available)
        if shares != target.acknowledged:
            target.split(shares, self._now())
            self._record(target, EffectKind.SHARES_ACKNOWLEDGED, shares=shares)
        self._reconcile(target)

    # Capacity

    def _check_startable(self, target: str, model: DesiredModel) -> None:
        flavor = model.serving_spec.flavor
        if self._capacity and flavor not in self._capacity:
            raise ReplicaCannotStart(target, model.model, f"this agent has no {flavor}")

    def _fits(self, model: DesiredModel) -> bool:
        flavor = model.serving_spec.flavor
        if flavor not in self._capacity:
            return True
        used = sum(r.spec.units for t in self._targets.values() for r in t.replicas.values() if r.spec.flavor == flavor)
        return used + model.serving_spec.units <= self._capacity[flavor]

    # Time, chance, ledger

    def _receive(self) -> None:
        self.catch_up()
        if self.partitioned or self._draw.random() < self.behaviour.lost_call_rate:
            raise PartUnavailable("agent")

    def _answer(self) -> None:
        if self._draw.random() < self.behaviour.lost_answer_rate:
            raise PartUnavailable("agent")

    def _now(self) -> datetime:
        return self._started + timedelta(seconds=self._at - self._origin)

    def _pass_time(self, end: float) -> None:
        for target in self._targets.values():
            target.serve(end - self._at, self._draw, self.error_rates)
        passed, self._at = max(0.0, end - self._at), max(self._at, end)
        for recording in self._recordings.values():
            served = self._targets[recording.plan.target]
            rate = served.requests_per_second if served.acknowledged else 0.0
            recording.pass_time(self._now(), passed, rate)

    def _later(self, seconds: tuple[float, float], happen: Callable[[], None]) -> None:
        heapq.heappush(
            self._events,
            _Event(self._at + self._draw.uniform(*seconds), next(self._order), happen),
        )

    def _record(
        self,
        target: SimulatedTarget,
        kind: EffectKind,
        *,
        replica: Replica | None = None,
        epoch: int = 0,
        key: str = "",
        desired: DesiredServing | None = None,
        shares: tuple[ModelShare, ...] = (),
        message: str = "",
    ) -> int:
        effect = Effect(
            sequence=len(self.ledger) + 1,
            time=self._now(),
            target=target.name,
            kind=kind,
            model=replica.model if replica else "",
            replica=replica.name if replica else "",
            epoch=epoch,
            key=key,
            desired=desired,
            shares=shares,
            generation=target.generation,
            message=message,
        )
        self.ledger.append(effect)
        return effect.sequence
