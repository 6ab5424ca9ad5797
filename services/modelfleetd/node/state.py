"""What the agent knows: held in memory, written through to the store, each change one transaction with its effect."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from modelfleetd import names
from modelfleetd.clock import Clock
from modelfleetd.errors import ReplicaCannotStart
from modelfleetd.node import domain
from modelfleetd.node.domain import Count, Crashes, Latency, Phase, Process, Replica, Target
from modelfleetd.node.store import Store
from modelfleetd.platform import rules
from modelfleetd.platform.model import (
    Applied,
    DesiredModel,
    DesiredServing,
    EffectKind,
    Fence,
    ModelShare,
    ServingObservation,
    TargetKind,
)

V = TypeVar("V")


class State:
    """Targets, replicas and counters of one agent. `changed` is set whenever there may be something to do.

    Args:
        store: where everything is written before it counts.
        clock: the time.
        region: the agent's region.
        capacity: units by flavor; empty means no limit.
        find_command: where a command is, or None.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        region: str,
        capacity: Mapping[str, int],
        find_command: Callable[[str], str | None],
    ) -> None:
        self.region = region
        self.capacity = dict(capacity)
        self.changed = asyncio.Event()
        self.targets = store.targets()
        self.replicas = store.replicas()
        self.crashes: dict[tuple[str, str], Crashes] = {}
        self._counts = store.counts()
        self._latencies: dict[tuple[str, str], Latency] = {}
        self._counted_at = clock.monotonic()
        self._store = store
        self._clock = clock
        self._find_command = find_command
        self._numbers = itertools.count(1)
        with store.transaction("life"):
            self.agent_id = store.agent_id()
            # Uids are unique for ever: each life of the agent has its own number.
            life = int(store.fact("lives") or 0) + 1
            store.remember("lives", str(life))
        self._life = life

    # What callers ask

    def apply(self, target: str, kind: TargetKind | None, fence: Fence, desired: DesiredServing) -> Applied:
        """Accepts a desired state, durably, or refuses it and changes nothing (see `Platform.apply`)."""
        rules.check_request(target, kind, fence, desired)
        assert kind is not None
        known = self.targets.get(target) or Target(target)
        rules.check_epoch(target, fence.epoch, known.floor)
        content = rules.content_of(target, kind, desired)
        applied = rules.repeated(self._store.answered(fence.key), fence, content)
        if applied is not None:
            self._raise_floor(known, fence.epoch)
            return applied
        rules.check_kind(kind, known.kind)
        for model in desired.models:
            # Only where replicas would have to be started: what cannot be started any more may still lose its weight.
            if known.wanted.starts(model):
                self._check_startable(target, model)
        rules.check_shares(target, desired, known.wanted, lambda model: self._available(target, model))
        after = replace(
            known,
            kind=kind,
            desired=desired,
            generation=known.generation + 1,
            floor=max(known.floor, fence.epoch),
        )
        with self._store.transaction("accepted"):
            effect = self._store.append(
                self._clock.now(), after, EffectKind.ACCEPTED, epoch=fence.epoch, key=fence.key, desired=desired
            )
            applied = Applied(effect, after.generation)
            self._store.save_target(after)
            self._store.save_answer(fence.key, rules.Answered(content, applied))
        self.targets[target] = after
        self.changed.set()
        return applied

    def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        """Says what a target looks like, after raising its floor durably (see `Platform.observe`)."""
        names.TARGET.parse(target, "target")
        known = self.targets.get(target) or Target(target)
        if epoch:
            rules.check_epoch(target, epoch, known.floor)
            self._raise_floor(known, epoch)
        return self._observation(self.targets.get(target, known))

    def list(self) -> list[ServingObservation]:
        """Every target, in the order of their names."""
        return [self._observation(target) for _, target in sorted(self.targets.items())]

    # What the reconciler does

    def intend(self, target: Target, model: DesiredModel, port: int) -> Replica:
        """Writes down, before it is done, that a replica is started."""
        now = self._clock.now()
        uid = f"{names.TARGET.parse(target.name)[0]}-{self._life}-{next(self._numbers)}"
        made = Replica(uid, target.name, model.model, model.serving_spec, port, Phase.STARTING, now, now)
        self._write(made, EffectKind.REPLICA_STARTED)
        return made

    def started(self, uid: str, process: Process) -> None:
        """A replica's process runs."""
        self._write(replace(self.replicas[uid], process=process))

    def move(self, uid: str, phase: Phase, effect: EffectKind | None = None, message: str = "") -> None:
        """A replica comes into another phase."""
        self._write(replace(self.replicas[uid], phase=phase, since=self._clock.now()), effect, message)
        self.changed.set()

    def gone(self, uid: str, message: str) -> None:
        """A replica's process has ended: expected where it was told to, else lost or failed, and a crash."""
        replica = self.replicas[uid]
        target = self.targets[replica.target]
        now = self._clock.now()
        by_itself = {
            Phase.STARTING: EffectKind.REPLICA_FAILED,
            Phase.READY: EffectKind.REPLICA_FAILED,
            Phase.AVAILABLE: EffectKind.REPLICA_LOST,
        }
        with self._store.transaction("replica_ended"):
            if replica.phase in by_itself:
                self._store.append(now, target, by_itself[replica.phase], replica=replica, message=message)
            self._store.append(now, target, EffectKind.REPLICA_TERMINATED, replica=replica, message=message)
            self._store.delete_replica(uid)
        del self.replicas[uid]
        if replica.phase.counts:
            self.crashed(replica, message)
        self.changed.set()

    def crashed(self, replica: Replica, why: str) -> None:
        """Another replica of that model is to be blamed: the next waits longer."""
        lived = (self._clock.now() - replica.created).total_seconds()
        key = (replica.target, replica.model)
        before = self.crashes.get(key, domain.NO_CRASHES)
        self.crashes[key] = before.after(self._clock.monotonic(), why, lived=lived)

    def acknowledge(self, target: str, generation: int, shares: tuple[ModelShare, ...]) -> None:
        """The proxy has taken the shares of a generation; where they are other ones, counting begins anew."""
        known = self.targets[target]
        if generation == known.acknowledged_generation and shares == known.acknowledged:
            return
        after = replace(known, acknowledged_generation=max(generation, known.acknowledged_generation))
        counts: dict[tuple[str, str], Count] = {}
        now = self._clock.now()
        if shares != known.acknowledged:
            after = replace(after, acknowledged=shares, split_time=now)
            counts = {key: count.split() for key, count in self._counts.items() if key[0] == target}
        with self._store.transaction("shares_acknowledged"):
            if shares != known.acknowledged:
                self._store.append(now, after, EffectKind.SHARES_ACKNOWLEDGED, shares=shares)
            self._store.save_target(after)
            for (_, model), count in counts.items():
                self._store.save_count(target, model, count)
        self.targets[target] = after
        self._counts.update(counts)
        self.changed.set()

    def count(
        self,
        envoy: str,
        values: Mapping[str, int],
        grown: Mapping[tuple[str, str], tuple[int, int]],
        unrouted: Mapping[str, int],
        latencies: Mapping[tuple[str, str], Latency],
    ) -> None:
        """Adds what the proxy has counted since it was last asked: requests and errors by target and model."""
        counts = {key: self._counts.get(key, Count()).grown(*more) for key, more in grown.items() if any(more)}
        targets = [
            replace(self.targets[name], unrouted=self.targets[name].unrouted + more)
            for name, more in unrouted.items()
            if more and name in self.targets
        ]
        if counts or targets:
            with self._store.transaction("counts"):
                for (target, model), count in counts.items():
                    self._store.save_count(target, model, count)
                for known in targets:
                    self._store.save_target(known)
                self._store.save_readings(envoy, values)
        self._counts.update(counts)
        self.targets.update({known.name: known for known in targets})
        self._latencies = dict(latencies)
        self._counted_at = self._clock.monotonic()

    @property
    def statistics_age(self) -> float:
        """How old the proxy's numbers are, in seconds."""
        return self._clock.monotonic() - self._counted_at

    # Inside

    def _write(self, replica: Replica, effect: EffectKind | None = None, message: str = "") -> None:
        target = self.targets[replica.target]
        with self._store.transaction(effect.name.lower() if effect else replica.phase.name.lower()):
            self._store.save_replica(replica)
            if effect is not None:
                self._store.append(self._clock.now(), target, effect, replica=replica, message=message)
        self.replicas[replica.uid] = replica

    def _raise_floor(self, target: Target, epoch: int) -> None:
        if epoch <= target.floor:
            return
        after = replace(target, floor=epoch)
        with self._store.transaction("floor_raised"):
            self._store.save_target(after)
            self._store.append(self._clock.now(), after, EffectKind.FLOOR_RAISED, epoch=epoch)
        self.targets[target.name] = after

    def _check_startable(self, target: str, model: DesiredModel) -> None:
        why = domain.cannot_start(model.serving_spec, self.capacity, self._find_command)
        if why is not None:
            raise ReplicaCannotStart(target, model.model, why)

    def _available(self, target: str, model: str) -> int:
        return domain.available(target, model, self.replicas.values())

    def _observation(self, target: Target) -> ServingObservation:
        def mine(by_pair: Mapping[tuple[str, str], V]) -> dict[str, V]:
            return {model: value for (name, model), value in by_pair.items() if name == target.name}

        return domain.observe(
            target,
            list(self.replicas.values()),
            region=self.region,
            now=self._clock.now(),
            counts=mine(self._counts),
            latencies=mine(self._latencies),
            crashes=mine(self.crashes),
            capacity=self.capacity,
            statistics_age=timedelta(seconds=self.statistics_age),
        )
