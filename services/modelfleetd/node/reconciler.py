"""Makes what is into what shall be: one round after another, each when something has changed or become due.

A round reads as a recipe: start what is missing; drain what is too much; keep Envoy running; let Envoy take the routing
that follows; acknowledge what it has taken; move on the replicas that waited for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sqlite3
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from modelfleetd.clock import Clock
from modelfleetd.node import domain, processes
from modelfleetd.node.admin import Cluster, Host, ProxyUnreachable
from modelfleetd.node.domain import Phase, Process, Replica
from modelfleetd.node.logs import bound_logs
from modelfleetd.node.meter import Meter
from modelfleetd.node.proxy import NotAcknowledged, Proxy
from modelfleetd.node.replicas import Replicas
from modelfleetd.node.routing import Backend, Routing, routing_of
from modelfleetd.node.state import State
from modelfleetd.node.store import Store
from modelfleetd.platform.model import EffectKind

_log = logging.getLogger(__name__)

# Seconds between rounds: while replicas wait for Envoy, and while nothing happens.
_BUSY, _IDLE = 0.05, 5.0
# A replica that has drained long enough for requests that were on their way to it to have arrived.
_LEAST_DRAIN = timedelta(milliseconds=100)
# From SIGTERM to SIGKILL: the time to drain within these limits, since nothing is left to drain.
_LEAST_TERMINATION, _MOST_TERMINATION = timedelta(seconds=2), timedelta(seconds=15)
_ENVOY_START = 15.0
_STOP_WITHIN = 10.0
_AFTER_REFUSAL = 1.0
_BOUND_LOGS = 30.0


class Reconciler:
    """The agent's loop.

    Args:
        state: what shall be and what is.
        store: where the state is durable.
        envoy: the proxy before the replicas.
        folder: where replicas run and their logs are.
        clock: the time.
        taps: of how many of 100 requests the agent wants copies, by target.
        terminate: whether replicas and Envoy end with the agent; else they stay, and the next agent finds them.
    """

    name = "reconciler"

    def __init__(
        self,
        state: State,
        store: Store,
        envoy: Proxy,
        folder: Path,
        clock: Clock,
        *,
        taps: Callable[[], Mapping[str, int]],
        terminate: bool,
    ) -> None:
        self.meter = Meter(state, store, envoy)
        self._state = state
        self._store = store
        self._proxy = envoy
        self._folder = folder
        self._clock = clock
        self._taps = taps
        self._terminate = terminate
        self._envoy: Process | None = None
        self._envoy_exit: processes.Exit | None = None
        self._envoy_started = 0.0
        self._envoy_crashes = domain.NO_CRASHES
        self._told_to_end: set[str] = set()
        self._routed: Routing | None = None
        self._bound_logs_at = 0.0

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            replicas = Replicas(self._state, self._folder, tasks)
            try:
                self._adopt(replicas.recover())
                while True:
                    pause = await self._careful_round(replicas)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._state.changed.wait(), pause)
            except asyncio.CancelledError:
                # Told to stop. Whatever else goes wrong, what serves goes on serving.
                if self._terminate:
                    await self._end_everything(replicas)
                raise
            finally:
                replicas.close()
                if self._envoy_exit is not None:
                    self._envoy_exit.close()

    async def _careful_round(self, replicas: Replicas) -> float:
        """A round; a machine that refuses a file or a port is asked again, and nothing that serves is touched."""
        try:
            return await self._round(replicas)
        except (OSError, sqlite3.Error):
            _log.exception("the machine refused what the agent needs; it tries again")
            return _AFTER_REFUSAL

    async def _round(self, replicas: Replicas) -> float:
        """Does what there is to do; returns in how many seconds to look again, if nothing changes before."""
        self._state.changed.clear()
        try:
            self._start_missing(replicas)
            self._drain_surplus()
            await self._keep_envoy()
            await self._route()
            await self._advance()
        except (NotAcknowledged, ProxyUnreachable) as problem:
            _log.warning("Envoy does not follow: %s", problem)
        self._end_stopped(replicas)
        self._give_up_late(replicas)
        await self.meter.refresh(max_age=_IDLE)
        if self._clock.monotonic() >= self._bound_logs_at:
            self._bound_logs_at = self._clock.monotonic() + _BOUND_LOGS
            bound_logs(replicas.logs, frozenset(f"{uid}.log" for uid in self._state.replicas), self._proxy.log_file)
        return self._pause()

    # Envoy

    async def _keep_envoy(self) -> None:
        if self._envoy is not None:
            return
        if self._clock.monotonic() < self._envoy_crashes.next_start:
            raise NotAcknowledged("it waits to be started again")
        self._envoy_started = self._clock.monotonic()
        process = self._proxy.start()
        with self._store.transaction("envoy"):
            self._store.save_process("envoy", process)
        _log.info("Envoy runs as process %d", process.pid)
        self._adopt(process)
        if self._envoy is None:
            self._envoy_ended()
        if not await self._proxy.live(_ENVOY_START, lambda: self._envoy is process):
            raise NotAcknowledged(f"it does not start; see {self._proxy.log_file}")

    def _adopt(self, found: Process | None) -> None:
        """Takes on an Envoy that runs: just started, or left by the agent's last life."""
        known = found or self._store.process("envoy")
        if known is None or not processes.runs(known):
            return
        self._envoy = known
        self._envoy_exit = processes.Exit(known, self._envoy_ended)
        self.meter.follow(known)

    def _envoy_ended(self) -> None:
        now = self._clock.monotonic()
        self._envoy_crashes = self._envoy_crashes.after(now, "it has ended", lived=now - self._envoy_started)
        _log.warning("Envoy has ended and is started again in %g s", self._envoy_crashes.next_start - now)
        self._envoy = self._envoy_exit = self._routed = None
        self._state.changed.set()

    # Replicas

    def _start_missing(self, replicas: Replicas) -> None:
        of_target = domain.by_target(self._state.replicas.values())
        for target in list(self._state.targets.values()):
            for model in target.wanted.models:
                crashes = self._state.crashes.get((target.name, model.model), domain.NO_CRASHES)
                if self._clock.monotonic() < crashes.next_start:
                    continue
                for _ in range(domain.missing(target, of_target.get(target.name, ()), model)):
                    if domain.fits(model.serving_spec, self._state.replicas.values(), self._state.capacity):
                        replicas.start(target, model)

    def _drain_surplus(self) -> None:
        of_target = domain.by_target(self._state.replicas.values())
        for target in list(self._state.targets.values()):
            for replica in domain.surplus(target, of_target.get(target.name, ())):
                routed = replica.phase in (Phase.READY, Phase.AVAILABLE)
                phase = Phase.DRAINING if routed else Phase.STOPPING
                self._state.move(replica.uid, phase, EffectKind.REPLICA_DRAINING)

    async def _route(self) -> None:
        """Lets Envoy take the routing of this moment, and acknowledges it for the generations of this moment."""
        replicas = list(self._state.replicas.values())
        targets = list(self._state.targets.values())
        routing = routing_of(targets, replicas, self._taps())
        if routing != self._routed:
            # Counted to the end under the old split, and before a cluster's counters go with it.
            await self.meter.refresh(max_age=0)
            await self._proxy.apply(routing)
            self._routed = routing
            await self.meter.refresh(max_age=0)
        shares = {split.target: split.shares for split in routing.splits}
        of_target = domain.by_target(self._state.replicas.values())
        for target in targets:
            taken = shares.get(target.name, ())
            # Where a replica has died meanwhile the next round gives Envoy other shares; these were never in force.
            now = of_target.get(target.name, ())
            if target.kind is not None and all(domain.available(target.name, s.model, now) for s in taken):
                self._state.acknowledge(target.name, target.generation, taken)

    async def _advance(self) -> None:
        """Moves on the replicas that wait for Envoy to see them as healthy, or without requests."""
        waiting = [r for r in self._state.replicas.values() if r.phase in (Phase.READY, Phase.DRAINING)]
        if not waiting:
            return
        clusters = await self._proxy.clusters()
        for replica in waiting:
            hosts = _hosts(clusters, replica)
            current = self._state.replicas.get(replica.uid)
            if current is None or current.phase is not replica.phase:
                continue
            if replica.phase is Phase.READY and len(hosts) == _CLUSTERS and all(host.healthy for host in hosts):
                self._state.move(replica.uid, Phase.AVAILABLE, EffectKind.REPLICA_AVAILABLE)
            elif replica.phase is Phase.DRAINING and self._drained(replica, hosts):
                self._state.move(replica.uid, Phase.STOPPING)

    def _drained(self, replica: Replica, hosts: list[Host]) -> bool:
        age = self._clock.now() - replica.since
        idle = all(host.draining and not host.active for host in hosts)
        return (idle and age >= _LEAST_DRAIN) or age >= replica.spec.drain_limit

    def _end_stopped(self, replicas: Replicas) -> None:
        """Tells replicas to end that Envoy knows no more, and kills those that do not."""
        self._told_to_end &= self._state.replicas.keys()
        for replica in [r for r in self._state.replicas.values() if r.phase is Phase.STOPPING]:
            age = self._clock.now() - replica.since
            if replica.uid not in self._told_to_end and (self._unrouted(replica) or age >= _LEAST_TERMINATION):
                self._told_to_end.add(replica.uid)
                replicas.terminate(replica)
            if age >= _termination(replica):
                replicas.kill(replica)

    def _unrouted(self, replica: Replica) -> bool:
        backends = self._routed.backends if self._routed else ()
        return all(replica.port != endpoint.port for backend in backends for endpoint in backend.endpoints)

    def _give_up_late(self, replicas: Replicas) -> None:
        """Ends replicas that do not become ready in time, or not again."""
        for replica in list(self._state.replicas.values()):
            late = self._clock.now() - replica.since >= replica.spec.startup_limit
            if late and replica.phase in (Phase.STARTING, Phase.UNAVAILABLE):
                why = f"it was not ready within {replica.spec.startup_limit.total_seconds():g} s"
                failed = EffectKind.REPLICA_FAILED if replica.phase is Phase.STARTING else None
                self._state.crashed(replica, why)
                self._state.move(replica.uid, Phase.STOPPING, failed, why)
                replicas.terminate(replica)
                self._told_to_end.add(replica.uid)

    def _pause(self) -> float:
        """Seconds until something is due by itself."""
        phases = {replica.phase for replica in self._state.replicas.values()}
        if phases & {Phase.READY, Phase.DRAINING}:
            return _BUSY
        now, moment = self._clock.monotonic(), self._clock.now()
        due = [crashes.next_start - now for crashes in self._state.crashes.values() if crashes.next_start > now]
        if self._envoy is None:
            due.append(self._envoy_crashes.next_start - now)
        for replica in self._state.replicas.values():
            limit = {
                Phase.STARTING: replica.spec.startup_limit,
                Phase.UNAVAILABLE: replica.spec.startup_limit,
                Phase.STOPPING: _termination(replica),
            }.get(replica.phase)
            if limit is not None:
                due.append((replica.since + limit - moment).total_seconds())
            if replica.phase is Phase.STOPPING and replica.uid not in self._told_to_end:
                due.append(_BUSY)
        return max(_BUSY, min([_IDLE, *due]))

    async def _end_everything(self, replicas: Replicas) -> None:
        for replica in list(self._state.replicas.values()):
            if replica.phase.counts:
                self._state.move(replica.uid, Phase.STOPPING, EffectKind.REPLICA_DRAINING, "the agent ends")
            replicas.terminate(replica)
        deadline = self._clock.monotonic() + _STOP_WITHIN
        while self._state.replicas and self._clock.monotonic() < deadline:
            self._state.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._state.changed.wait(), _BUSY)
        for replica in list(self._state.replicas.values()):
            replicas.kill(replica)
        if self._envoy is not None:
            processes.end(self._envoy, signal.SIGTERM)


def _termination(replica: Replica) -> timedelta:
    return min(max(replica.spec.drain_limit, _LEAST_TERMINATION), _MOST_TERMINATION)


# A model's split and its direct cluster.
_CLUSTERS = 2


def _hosts(clusters: Mapping[str, Cluster], replica: Replica) -> list[Host]:
    """A replica as every cluster of its model sees it."""
    backend = Backend(replica.target, replica.model)
    return [
        clusters[name].hosts[replica.port]
        for name in (backend.split_cluster, backend.direct_cluster)
        if name in clusters and replica.port in clusters[name].hosts
    ]
