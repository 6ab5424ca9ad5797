"""Counts requests from Envoy's counters, so that the sums survive both Envoy and the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from modelfleetd.node.admin import ProxyUnreachable, Statistics
from modelfleetd.node.domain import Latency, Process, model_names
from modelfleetd.node.routing import Backend, Split
from modelfleetd.node.state import State
from modelfleetd.node.store import Store
from modelfleetd.platform.model import TargetKind

# Within this time callers that ask together share one look at the proxy.
_FRESH = 0.05


class _Source(Protocol):
    async def statistics(self) -> Statistics: ...


class Meter:
    """Reads Envoy's counters and adds what they grew by to the state.

    A counter that is smaller than it was, or that another Envoy shows, has begun anew: all of it is new.
    """

    def __init__(self, state: State, store: Store, source: _Source) -> None:
        self._state = state
        self._store = store
        self._source = source
        self._envoy = ""
        self._readings: dict[str, int] = {}
        self._lock = asyncio.Lock()

    def follow(self, process: Process) -> None:
        """Reads this Envoy from now on."""
        self._envoy = f"{process.pid}/{process.mark}"
        self._readings = self._store.readings(self._envoy)

    async def refresh(self, *, max_age: float = _FRESH) -> None:
        """Makes the numbers at most that old, in seconds, where Envoy answers; else they stay as they are."""
        if self._state.statistics_age <= max_age:
            return
        async with self._lock:
            if self._state.statistics_age <= max_age:
                return
            try:
                seen = await self._source.statistics()
            except ProxyUnreachable:
                return
            self._add(seen)

    def _add(self, seen: Statistics) -> None:
        def grown(counter: str) -> int:
            now, before = seen.counters.get(counter, 0), self._readings.get(counter, 0)
            return now - before if now >= before else now

        requests: dict[tuple[str, str], tuple[int, int]] = {}
        latencies: dict[tuple[str, str], Latency] = {}
        for backend in self._backends():
            cluster = backend.split_cluster
            good, bad = grown(f"cluster.{cluster}.grpc.success"), grown(f"cluster.{cluster}.grpc.failure")
            requests[backend.target, backend.model] = (good + bad, bad)
            if cluster in seen.latencies:
                latencies[backend.target, backend.model] = seen.latencies[cluster]
        unrouted = {
            target.name: grown(f"cluster.{Split(target.name).unrouted_cluster}.grpc.failure")
            for target in self._state.targets.values()
            if target.kind is TargetKind.ROUTE
        }
        self._state.count(self._envoy, seen.counters, requests, unrouted, latencies)
        self._readings = dict(seen.counters)

    def _backends(self) -> Iterable[Backend]:
        replicas = list(self._state.replicas.values())
        for target in self._state.targets.values():
            if target.kind is TargetKind.ROUTE:
                for model in model_names(target, replicas):
                    yield Backend(target.name, model)
