"""A platform without machines: deterministic by its seed, on whatever clock it is given.

It passes the conformance suite of real agents and adds what they cannot do on demand: replicas that die, starts that
fail or wait for a machine that never comes, effects that are late or lost, terminations that take long, calls and
answers that are lost, looks that are old, traffic that is slow to follow its weights, and replicas that are overloaded.
Nothing runs by itself: each call first lets everything happen that was due by the clock, in order, so the same seed and
the same calls give the same ledger, whatever the machine does. What happens to one target costs nothing at the others.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import NamedTuple

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
from modelfleetd.platform.simulated_traffic import Conditions, Traffic

_NO_SERVING = DesiredServing()
_AT_ONCE = (0.0, 0.0)
# How often in a row the same order is lost at most.
_MOST_LOST = 20


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the simulated machines behave. Pairs are (least, most) seconds, drawn evenly; rates are probabilities.

    Attributes:
        start_seconds: from a replica's start until it is available.
        terminate_seconds: from draining until it is gone.
        acknowledge_seconds: until the proxy has taken new shares.
        retry_seconds: until a replica that ended by itself is started again; doubles with each failure in a row.
        start_failure_rate: replicas that end before they are available.
        mean_life_seconds: of a replica that is available; None: it does not die.
        pending_rate: replicas whose start waits for a machine.
        pending_seconds: for how long; None: it never comes.
        slow_termination_rate: replicas that take `slow_terminate_seconds` to end.
        slow_terminate_seconds: see there.
        effect_delay_seconds: from accepting a desired state until the agent begins to act by it.
        lost_effect_rate: of what the agent orders (a start, a termination, new shares for the proxy), what is lost
            and ordered again after `repeat_seconds`.
        repeat_seconds: see there.
        looks_every_seconds: how old an observation may be that the agent gives instead of looking anew.
        measures_every_seconds: how old the counters of requests may be in it.
        requests_per_second: of a route, unless `traffic` says otherwise.
        latency_ms: median of an answer on an idle replica.
        replica_requests_per_second: what one replica carries (see `simulated_traffic`); None: anything.
        traffic_lag_seconds: how long traffic takes to follow the weights that the proxy has taken; it moves evenly.
        lost_call_rate: calls that never reach the agent.
        lost_answer_rate: answers that never reach the caller; what was asked for was done.
    """

    start_seconds: tuple[float, float] = (1.0, 3.0)
    terminate_seconds: tuple[float, float] = (0.5, 2.0)
    acknowledge_seconds: tuple[float, float] = (0.05, 0.3)
    retry_seconds: float = 1.0
    start_failure_rate: float = 0.0
    mean_life_seconds: float | None = None
    pending_rate: float = 0.0
    pending_seconds: tuple[float, float] | None = None
    slow_termination_rate: float = 0.0
    slow_terminate_seconds: tuple[float, float] = (60.0, 120.0)
    effect_delay_seconds: tuple[float, float] = (0.0, 0.0)
    lost_effect_rate: float = 0.0
    repeat_seconds: float = 5.0
    looks_every_seconds: float = 0.0
    measures_every_seconds: float = 0.0
    requests_per_second: float = 100.0
    latency_ms: float = 5.0
    replica_requests_per_second: float | None = None
    traffic_lag_seconds: float = 0.0
    lost_call_rate: float = 0.0
    lost_answer_rate: float = 0.0


class _Event(NamedTuple):
    """Something that is due. No two have the same order, so what comes after it is never compared."""

    due: float
    order: int
    target: SimulatedTarget
    happen: Callable[[], None]
    # The model of which a replica becomes available then, if nothing befalls it before.
    readies: str = ""


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
        # Whether the proxy's counters can be read.
        self.measures = True
        # Models of which no replica becomes available, and models for which no machine comes.
        self.failing_models: set[str] = set()
        self.pending_models: set[str] = set()
        self.error_rates: dict[str, float] = {}
        # Median latencies in milliseconds of models that are not like the others.
        self.latencies: dict[str, float] = {}
        # Requests per second that one replica carries, of models that are not like the others.
        self.carried: dict[str, float] = {}
        self._seed = seed
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
        self._used: dict[str, int] = dict.fromkeys(self._capacity, 0)
        # Targets for which there was no room; looked at again when there is some.
        self._short: dict[str, SimulatedTarget] = {}

    # Platform

    async def agent(self) -> Agent:
        self._receive()
        capacity = tuple(FlavorUnits(flavor, units) for flavor, units in sorted(self._capacity.items()))
        return Agent(self._region, "simulator", "127.0.0.1:0", capacity, self._started, records=True)

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        self._receive()
        rules.check_request(target, kind, fence, desired)
        known = self._targets.get(target) or self._unknown(target)
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
        known = self._targets.get(target) or self._unknown(target)
        if epoch:
            rules.check_epoch(target, epoch, known.floor)
            if epoch > known.floor:
                self._targets[target] = known
                known.floor = epoch
                self._record(known, EffectKind.FLOOR_RAISED, epoch=epoch)
        self._answer()
        return self._observed(known)

    async def list(self) -> tuple[ServingObservation, ...]:
        self._receive()
        return tuple(self._observed(target) for _, target in sorted(self._targets.items()))

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

    def next_event_for(self, model: str, replicas: int) -> float | None:
        """When so many replicas of a model have become available that start now, or something else is due before.

        Args:
            model: the model.
            replicas: how many more; below 1 the next event of any kind is meant.
        """
        for event in sorted(self._events, key=attrgetter("due")):
            replicas -= event.readies == model
            if event.readies != model or replicas <= 0:
                return event.due
        return None

    def available(self, target: str, model: str) -> int:
        """How many replicas of a model take traffic on a target."""
        known = self._targets.get(target)
        return 0 if known is None else known.available(model)

    def desired(self, target: str) -> DesiredServing | None:
        """What a target is worked towards; None where nobody has asked for anything."""
        known = self._targets.get(target)
        return None if known is None else known.desired

    def requests(self, target: str, model: str) -> int:
        """How many requests a model has answered on a target so far."""
        self.catch_up()
        known = self._targets.get(target)
        if known is None:
            return 0
        self._serve(known)
        counters = known.traffic.counters.get(model)
        return 0 if counters is None else counters.requests

    def catch_up(self) -> None:
        """Lets everything happen that is due by the clock."""
        end = self._clock.monotonic()
        while self._events and self._events[0].due <= end:
            event = heapq.heappop(self._events)
            self._pass_time(event.due)
            self._serve(event.target)
            event.happen()
        self._pass_time(end)

    def kill(self, model: str, count: int = 1) -> int:
        """Kills available replicas of a model, oldest first; returns how many there were to kill."""
        self.catch_up()
        found = [(t, r) for t in self._targets.values() for r in t.of(model, Phase.AVAILABLE)][:count]
        for target, replica in found:
            self._serve(target)
            self._die(target, replica, "killed")
        return len(found)

    def traffic(self, target: str, requests_per_second: float) -> None:
        """Sets the traffic of a target from now on."""
        self.catch_up()
        self._serve(self._targets[target])
        self._targets[target].traffic.requests_per_second = requests_per_second

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
            for replica in target.everything(Phase.TERMINATING):
                self._end_later(target, replica)

    def settle_starts(self) -> None:
        """Gives a machine to every replica that waits for one (`pending_models` and `pending_rate` made them wait)."""
        self.pending_models.clear()
        self.catch_up()
        for target in self._targets.values():
            for replica in [r for r in target.everything(Phase.STARTING) if r.pending]:
                self._begin(target, replica)

    # What happens

    def _accept(
        self,
        target: SimulatedTarget,
        kind: TargetKind,
        fence: Fence,
        desired: DesiredServing,
    ) -> Applied:
        if target.kind is None and kind is TargetKind.ROUTE:
            target.traffic.requests_per_second = self.behaviour.requests_per_second
        self._serve(target)
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
        if self.behaviour.effect_delay_seconds == _AT_ONCE:
            self._act(target)
        else:
            self._later(target, self.behaviour.effect_delay_seconds, lambda: self._act(target))
        return Applied(sequence, target.generation)

    def _act(self, target: SimulatedTarget) -> None:
        self._render(target)
        self._reconcile(target)

    def _reconcile(self, target: SimulatedTarget) -> None:
        desired = target.desired or _NO_SERVING
        for name in target.model_names():
            surplus = target.live(name) - desired.replicas_of(name)
            # Weight leaves a model before its replicas do: none goes until the proxy has the newest shares.
            if surplus > 0 and target.acknowledged_generation == target.generation:
                # Those that are not available go first, then the newest.
                for replica in target.of(name, Phase.AVAILABLE, Phase.STARTING)[-surplus:]:
                    self._drain(target, replica)
        self._short.pop(target.name, None)
        for model in desired.models:
            missing = model.replicas - target.live(model.model) - target.waiting.get(model.model, 0)
            for _ in range(missing):
                if not self._fits(model):
                    self._short[target.name] = target
                    break
                self._start(target, model)

    def _start(self, target: SimulatedTarget, model: DesiredModel) -> None:
        replica = Replica(f"r{next(self._order)}", model.model, model.serving_spec)
        target.add(replica)
        self._take(replica, replica.spec.units)
        self._record(target, EffectKind.REPLICA_STARTED, replica=replica)
        if model.model in self.pending_models or self._happens(self.behaviour.pending_rate):
            replica.pending = True
            if self.behaviour.pending_seconds is not None and model.model not in self.pending_models:
                self._later(target, self.behaviour.pending_seconds, lambda: self._begin(target, replica))
        else:
            self._begin(target, replica)

    def _begin(self, target: SimulatedTarget, replica: Replica) -> None:
        """A replica has a machine, and begins to load."""
        if not target.has(replica, Phase.STARTING):
            return
        replica.pending = False
        fails = replica.model in self.failing_models or self._happens(self.behaviour.start_failure_rate)
        if fails:
            self._order_effect(target, self.behaviour.start_seconds, lambda: self._fail(target, replica))
        else:
            seconds = self.behaviour.start_seconds
            self._order_effect(target, seconds, lambda: self._ready(target, replica), readies=replica.model)

    def _ready(self, target: SimulatedTarget, replica: Replica) -> None:
        if not target.has(replica, Phase.STARTING):
            return
        target.move(replica, Phase.AVAILABLE)
        target.failures[replica.model] = 0
        self._record(target, EffectKind.REPLICA_AVAILABLE, replica=replica)
        if self.behaviour.mean_life_seconds is not None:
            life = self._draw.expovariate(1 / self.behaviour.mean_life_seconds)
            self._later(target, (life, life), lambda: self._die(target, replica, "died"))
        if target.available(replica.model) == 1:
            self._render(target)

    def _fail(self, target: SimulatedTarget, replica: Replica) -> None:
        if target.has(replica, Phase.STARTING):
            self._record(
                target,
                EffectKind.REPLICA_FAILED,
                replica=replica,
                message="ended before it was ready",
            )
            self._gone(target, replica)

    def _die(self, target: SimulatedTarget, replica: Replica, message: str) -> None:
        if target.has(replica, Phase.AVAILABLE):
            self._record(target, EffectKind.REPLICA_LOST, replica=replica, message=message)
            self._gone(target, replica)

    def _gone(self, target: SimulatedTarget, replica: Replica) -> None:
        """A replica has ended by itself: another is started after a pause that doubles with each failure."""
        model = replica.model
        self._terminated(target, replica)
        target.failures[model] = target.failures.get(model, 0) + 1
        target.waiting[model] = target.waiting.get(model, 0) + 1
        pause = self.behaviour.retry_seconds * 2 ** min(target.failures[model] - 1, 5)
        # The proxy's shares follow who has replicas at all.
        if target.available(model) == 0:
            self._render(target)
        self._later(target, (pause, pause), lambda: self._retry(target, model))

    def _retry(self, target: SimulatedTarget, model: str) -> None:
        target.waiting[model] -= 1
        self._reconcile(target)

    def _drain(self, target: SimulatedTarget, replica: Replica) -> None:
        target.move(replica, Phase.TERMINATING)
        self._record(target, EffectKind.REPLICA_DRAINING, replica=replica)
        if self.terminates:
            self._end_later(target, replica)

    def _end_later(self, target: SimulatedTarget, replica: Replica) -> None:
        slow = self._happens(self.behaviour.slow_termination_rate)
        seconds = self.behaviour.slow_terminate_seconds if slow else self.behaviour.terminate_seconds
        self._order_effect(target, seconds, lambda: self._terminated(target, replica))

    def _terminated(self, target: SimulatedTarget, replica: Replica) -> None:
        if target.remove(replica):
            self._record(target, EffectKind.REPLICA_TERMINATED, replica=replica)
            self._take(replica, -replica.spec.units)
            self._reconcile(target)
            for other in list(self._short.values()):
                self._serve(other)
                self._reconcile(other)

    def _render(self, target: SimulatedTarget) -> None:
        if self.acknowledges:
            self._order_effect(target, self.behaviour.acknowledge_seconds, lambda: self._acknowledge(target))

    def _acknowledge(self, target: SimulatedTarget) -> None:
        if not self.acknowledges:
            return
        target.acknowledged_generation = target.generation
        shares = rules.effective_shares((target.desired or _NO_SERVING).shares, target.available)
        if shares != target.acknowledged:
            target.split(shares, self._now(), self.behaviour.traffic_lag_seconds)
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
        return self._used[flavor] + model.serving_spec.units <= self._capacity[flavor]

    def _take(self, replica: Replica, units: int) -> None:
        if replica.spec.flavor in self._capacity:
            self._used[replica.spec.flavor] += units

    # Time, chance, ledger

    def _receive(self) -> None:
        self.catch_up()
        if self.partitioned or self._happens(self.behaviour.lost_call_rate):
            raise PartUnavailable("agent")

    def _answer(self) -> None:
        if self._happens(self.behaviour.lost_answer_rate):
            raise PartUnavailable("agent")

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self._draw.random() < rate

    def _unknown(self, name: str) -> SimulatedTarget:
        return SimulatedTarget(name, Traffic(random.Random(f"{self._seed} {name}")), served=self._at)

    def _observed(self, target: SimulatedTarget) -> ServingObservation:
        self._serve(target)
        behaviour = self.behaviour
        return target.observe(
            self._region,
            self._now(),
            self._conditions(),
            looks_every=behaviour.looks_every_seconds,
            measures_every=behaviour.measures_every_seconds if self.measures else math.inf,
        )

    def _conditions(self) -> Conditions:
        behaviour = self.behaviour
        return Conditions(
            latency_ms=behaviour.latency_ms,
            latencies=self.latencies,
            error_rates=self.error_rates,
            replica_requests_per_second=behaviour.replica_requests_per_second,
            carried=self.carried,
            lag_seconds=behaviour.traffic_lag_seconds,
        )

    def _serve(self, target: SimulatedTarget) -> None:
        """Counts the traffic of a target until now, before anything about it changes."""
        target.serve(self._at, self._conditions())

    def _now(self) -> datetime:
        return self._started + timedelta(seconds=self._at - self._origin)

    def _pass_time(self, end: float) -> None:
        passed, self._at = max(0.0, end - self._at), max(self._at, end)
        for recording in self._recordings.values():
            served = self._targets[recording.plan.target]
            rate = served.traffic.requests_per_second if served.acknowledged else 0.0
            recording.pass_time(self._now(), passed, rate)

    def _order_effect(
        self, target: SimulatedTarget, seconds: tuple[float, float], happen: Callable[[], None], readies: str = ""
    ) -> None:
        """Something that the agent orders, and orders again where that is lost."""
        lost = 0.0
        for _ in range(_MOST_LOST):
            if not self._happens(self.behaviour.lost_effect_rate):
                break
            lost += self.behaviour.repeat_seconds
        least, most = seconds
        self._later(target, (least + lost, most + lost), happen, readies)

    def _later(
        self, target: SimulatedTarget, seconds: tuple[float, float], happen: Callable[[], None], readies: str = ""
    ) -> None:
        due = self._at + self._draw.uniform(*seconds)
        heapq.heappush(self._events, _Event(due, next(self._order), target, happen, readies))

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
