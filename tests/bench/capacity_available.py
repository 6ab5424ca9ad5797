"""GetPool, and so what is available, with 10,000 pools of 100 organisations and 100,000 live reservations.

Pools are drawn at random, teams and organisations alike, and asked for in open loop: a call is sent when its time has
come and counts from then, whatever became of those before it. Services and client are processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import capacity_pb2_grpc
from modelfleetd.capacity.store import balances
from modelfleetd.kit.db import Database
from tests.bench.figures import Figure
from tests.bench.registry_point_get import process

NAMES = ("capacity.available_p99_ms",)
_ORGANISATIONS, _TEAMS, _RESERVATIONS = 100, 99, 100_000
# While they warm up the service has checked its books for the first time.
_CALLS, _WARM_UP, _CALLS_A_SECOND = 4_000, 1_500, 100

# What reserving writes, for all at once.
_FILL = f"""
SET search_path TO capacity;
INSERT INTO flavors (name, description, unit_cost) VALUES ('flavors/cpu', '', 1);
INSERT INTO pools (name, team) SELECT 'pools/o' || o, 'teams/t' || o FROM generate_series(1, {_ORGANISATIONS}) o;
INSERT INTO pools (name, team, parent) SELECT 'pools/o' || o || '-' || t, 'teams/t' || o, 'pools/o' || o
    FROM generate_series(1, {_ORGANISATIONS}) o, generate_series(1, {_TEAMS}) t;
CREATE TEMPORARY TABLE wanted AS
    SELECT 'r' || i AS id, 'regions/r' || 1 + (i / 7) % 3 AS region, 1 + i % 9 AS units,
        'pools/o' || 1 + i % {_ORGANISATIONS} || '-' || 1 + (i / {_ORGANISATIONS}) % {_TEAMS} AS pool
    FROM generate_series(1, {_RESERVATIONS}) i;
INSERT INTO reservations (name, pool, launch, state, replaced_models, expire_time, hold_time)
    SELECT 'reservations/' || id, pool, 'launches/' || id, 'HELD', '{{}}', now() + interval '7 days', now() FROM wanted;
INSERT INTO reservation_items (reservation, position, flavor, region, hold_units, moved_units)
    SELECT 'reservations/' || id, 0, 'flavors/cpu', region, units, 0 FROM wanted;
INSERT INTO ledger
    (pool, flavor, region, account, delta_units, end_delta_units, model, launch, reservation, actor, reason)
    SELECT pool, 'flavors/cpu', region, 'HELD', units, units, '', 'launches/' || id, 'reservations/' || id, 'a', ''
    FROM wanted;
CREATE TEMPORARY TABLE teams AS
    SELECT p.name AS pool, p.parent, 'regions/r' || r AS region, 100 AS nominal, 30 AS lends,
        coalesce(w.units, 0) AS held
    FROM pools p CROSS JOIN generate_series(1, 3) r
    LEFT JOIN (SELECT pool, region, sum(units) AS units FROM wanted GROUP BY pool, region) w
        ON w.pool = p.name AND w.region = 'regions/r' || r
    WHERE p.parent IS NOT NULL;
INSERT INTO balances (pool, flavor, region, nominal_units, ceiling_units, children_stored_units, children_used_units)
    SELECT parent, 'flavors/cpu', region, 50, 50 + sum(lends), sum(lends), sum(greatest(0, held - nominal + lends))
    FROM teams GROUP BY parent, region;
INSERT INTO balances (pool, parent, flavor, region, nominal_units, lending_limit_units, held_units, ending_units)
    SELECT pool, parent, 'flavors/cpu', region, nominal, lends, held, held FROM teams;
ANALYZE;
"""


async def run() -> list[Figure]:
    """Fills a database, and measures."""
    from tests.support.postgres import Postgres

    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        url = postgres.create()
        await _fill(url)
        async with (
            process("serve-registry", url, module=__name__) as registry,
            process("serve-capacity", url, registry.address, module=__name__) as capacity,
            process("client", capacity.address, module=__name__) as client,
        ):
            empty, latencies = (sorted(taken) for taken in json.loads(await client.line()))
    (empty_p50, empty_p99), (p50, p99) = (
        [taken[int(share * len(taken))] for share in (0.5, 0.99)] for taken in (empty, latencies)
    )
    return [
        Figure(
            name=NAMES[0],
            value=p99,
            unit="ms",
            yardstick=f"{len(latencies):,} calls, {_CALLS_A_SECOND} a second; median {p50:.2f} ms. An empty call in "
            f"the same open loop: median {empty_p50:.2f} ms, p99 {empty_p99:.2f} ms",
            target=5.0,
            better="lower",
        )
    ]


async def _fill(url: str) -> None:
    conn = await asyncpg.connect(url)
    try:
        await conn.execute(_FILL)
    finally:
        await conn.close()
    database = await Database.open(url, "capacity", max_size=1)
    try:
        pools, live = (
            await database.fetchval("SELECT count(*) FROM pools"),
            await database.fetchval("SELECT count(*) FROM reservations WHERE state = 'HELD'"),
        )
        if (pools, live) != (_ORGANISATIONS * (1 + _TEAMS), _RESERVATIONS) or await balances.differences(database):
            raise RuntimeError("the benchmark's books do not agree")
    finally:
        await database.close()


async def _serve(name: str, url: str, registry: str = "") -> None:
    import importlib

    from modelfleetd.kit.app import Service
    from modelfleetd.kit.config import ServiceConfig

    build = importlib.import_module(f"modelfleetd.{name}.app").build
    config = ServiceConfig(database_url=url, registry_address=registry or "127.0.0.1:1")
    async with Service(name, build, config) as service:
        print(service.address, flush=True)
        await asyncio.Event().wait()


async def _client(address: str) -> None:
    """Prints latencies in milliseconds, from when each call was to be sent: of empty calls, and of GetPool."""
    draw = random.Random(4)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = capacity_pb2_grpc.CapacityServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def get_pool() -> None:
            organisation, team = draw.randint(1, _ORGANISATIONS), draw.randint(0, _TEAMS)
            name = f"pools/o{organisation}-{team}" if team else f"pools/o{organisation}"
            found = await stub.GetPool(pb.GetPoolRequest(name=name), timeout=60)
            assert len(found.usages) == 3

        async def empty() -> None:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=60)

        taken = [await _open_loop(empty), await _open_loop(get_pool)]
    print(json.dumps(taken), flush=True)


async def _open_loop(call: Callable[[], Awaitable[None]]) -> list[float]:
    async def ask(due: float) -> float:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await call()
        return (time.perf_counter() - due) * 1000

    start = time.perf_counter() + 0.1
    taken = await asyncio.gather(*(ask(start + i / _CALLS_A_SECOND) for i in range(_WARM_UP + _CALLS)))
    return [round(one, 3) for one in taken[_WARM_UP:]]


if __name__ == "__main__":
    import uvloop

    role, *arguments = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        if role == "client":
            uvloop.run(_client(*arguments))
        else:
            uvloop.run(_serve(role.removeprefix("serve-"), *arguments))
