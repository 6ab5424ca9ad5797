"""What Envoy says of itself, over its admin socket: acknowledged versions, replicas' health, counters, latencies."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from modelfleetd.kit.failpoint import failpoint
from modelfleetd.node.domain import Latency

_TIMEOUT = 5.0
_COUNTERS = r"^cluster\.(split|unrouted)/.*\.grpc\.(success|failure)$|^cluster\.split/[^.]*\.upstream_rq_time$"
# Copies of requests that never reached the agent: it was away, or had too many under way.
_GIVEN_UP = r"^cluster\.tap\.upstream_rq_5xx$"
_VERSIONS = r"version_text$|update_rejected$"
_PERCENTILES = re.compile(r"P(50|99)\(([^,]+),")


class ProxyUnreachable(Exception):
    """Envoy does not answer on its admin socket: it starts, or it has died."""


@dataclass(frozen=True, slots=True)
class Host:
    """A replica as Envoy sees it, over all clusters that have it."""

    healthy: bool
    draining: bool
    active: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """An active cluster: its replicas by port."""

    hosts: Mapping[int, Host]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters by their full name; percentiles of the last interval by cluster, where it had requests."""

    counters: Mapping[str, int] = field(default_factory=dict)
    latencies: Mapping[str, Latency] = field(default_factory=dict)


class Admin:
    """A client of one Envoy's admin socket."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path

    async def live(self) -> bool:
        """Whether Envoy serves."""
        try:
            return (await self._get("/ready")).strip() == "LIVE"
        except ProxyUnreachable:
            return False

    async def versions(self) -> dict[str, str]:
        """The version of each thing that Envoy follows, by the statistic's name; `…update_rejected` counts refusals."""
        lines = (await self._get(f"/stats?filter={quote(_VERSIONS)}")).splitlines()
        pairs = (line.partition(": ") for line in lines if line)
        return {name: value.strip().strip('"') for name, _, value in pairs}

    async def clusters(self) -> dict[str, Cluster]:
        """Active clusters by name. A cluster that still warms up is not among them."""
        told = json.loads(await self._get("/clusters?format=json"))
        return {status["name"]: _cluster(status) for status in told.get("cluster_statuses", ())}

    async def statistics(self) -> Statistics:
        """What was counted so far."""
        counters: dict[str, int] = {}
        latencies: dict[str, Latency] = {}
        for line in (await self._get(f"/stats?filter={quote(_COUNTERS)}")).splitlines():
            name, _, value = line.partition(": ")
            if value.isdigit():
                counters[name] = int(value)
            elif percentiles := dict(_PERCENTILES.findall(value)):
                median, high = (float(percentiles.get(p, "nan")) for p in ("50", "99"))
                if median == median and high == high:  # Not a number where the interval had no requests.
                    latencies[name.removeprefix("cluster.").removesuffix(".upstream_rq_time")] = Latency(median, high)
        return Statistics(counters, latencies)

    async def given_up_copies(self) -> int:
        """How many copies of requests were given up since they are made."""
        _, _, value = (await self._get(f"/stats?filter={quote(_GIVEN_UP)}")).strip().partition(": ")
        return int(value or 0)

    async def _get(self, target: str) -> str:
        try:
            async with asyncio.timeout(_TIMEOUT):
                failpoint("node.before_call.envoy")
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    writer.write(f"GET {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as problem:
            raise ProxyUnreachable(str(problem)) from problem
        failpoint("node.after_call.envoy")
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.split()[1:2] != [b"200"]:
            raise ProxyUnreachable(head.decode(errors="replace").partition("\r\n")[0])
        return (_unchunked(body) if b"transfer-encoding: chunked" in head.lower() else body).decode()


def _unchunked(body: bytes) -> bytes:
    """The content of a body that came in chunks, each with its size in hexadecimal before it."""
    content = bytearray()
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            return bytes(content)
        content += body[:length]
        body = body[length + 2 :]


def _cluster(status: dict[str, object]) -> Cluster:
    hosts: dict[int, Host] = {}
    told = status.get("host_statuses", ())
    for host in told if isinstance(told, list) else ():
        if "socket_address" not in host["address"]:
            continue  # The agent's own socket, where copies of requests go.
        health = dict(host.get("health_status", {}))
        told_by_us = health.pop("eds_health_status", "HEALTHY")
        stats = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
        hosts[host["address"]["socket_address"]["port_value"]] = Host(
            # Whatever remains says why not: failed checks, ejected, not checked yet.
            healthy=told_by_us == "HEALTHY" and not any(health.values()),
            draining=told_by_us == "DRAINING",
            active=stats.get("rq_active", 0) + stats.get("rq_pending_active", 0),
        )
    return Cluster(hosts)
