"""`stability show` over 28 days: QuerySeries over gRPC, among the statistics of 100 other series.

Server and client are processes of their own; one call after the other, as somebody at a terminal asks. What the command
shows are points of an hour; points of 5 minutes, 8,064 of them, are measured beside it. Rows by minute
are those of the last day: of what is older, wider ones are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient
from modelfleet.registry.v1 import registry_pb2 as registry_pb
from modelfleetd.kit.app import Service
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.db import Database
from modelfleetd.stability.store import Store
from tests.bench.figures import Figure
from tests.support.processes import part, registry_process
from tests.support.stability_rows import MODEL_SPEC, SERIES, fill

NAMES = ("stability.show_28_days_p99_ms", "stability.show_28_days_by_5min_p99_ms")

_SERIES = 101
_DAYS = 28
_CALLS = {3600: 300, 300: 100}


async def run() -> list[Figure]:
    """Measures both widths of points."""
    from tests.support.postgres import Postgres

    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        url = postgres.create()
        now = datetime.now(UTC)
        await _fill(url, now)
        async with registry_process(url) as (_, registry), part(__name__, url, registry) as server:
            address = await server.line()
            async with AsyncClient(registry=registry, stability=address) as client:
                await _register(client)
                found = {seconds: await _p99_ms(client, seconds, calls, now) for seconds, calls in _CALLS.items()}
    return [
        Figure(
            name=name,
            value=found[seconds],
            unit="ms",
            yardstick=f"{_DAYS} d in points of {seconds} s, {_CALLS[seconds]} calls, {_SERIES} series in the tables",
            target=target,
            better="lower",
        )
        for name, seconds, target in zip(NAMES, _CALLS, (100, 500), strict=True)
    ]


async def _fill(url: str, now: datetime) -> None:
    database = await Database.open(url, "stability", max_size=1)
    try:
        start = now - timedelta(days=_DAYS)
        await Store(database).partitions.make(now, int(start.timestamp()) // 60)
        await fill(database, now, days=_DAYS, series=_SERIES, ages=3, days_by_minute=1)
    finally:
        await database.close()


async def _register(client: AsyncClient) -> None:
    model_type, model_id = SERIES[0].split("/")[1], SERIES[0].rpartition("/")[2]
    await client.registry.create_team(team_id="feed", team=registry_pb.Team())
    await client.registry.create_region(region_id="eu", region=registry_pb.Region(agent_address="127.0.0.1:1"))
    prediction = registry_pb.Prediction(id=SERIES[1], attribution_window=Duration(seconds=600))
    declared = registry_pb.ModelType(team="teams/feed", regions=["regions/eu"], predictions=[prediction])
    await client.registry.create_model_type(model_type_id=model_type, model_type=declared)
    parent, model = f"modelTypes/{model_type}", registry_pb.Model(serving_spec=MODEL_SPEC)
    await client.registry.create_model(parent=parent, model_id=model_id, model=model)


async def _p99_ms(client: AsyncClient, seconds: int, calls: int, now: datetime) -> float:
    asked: dict[str, Any] = {
        "model": SERIES[0],
        "start_time": now - timedelta(days=_DAYS),
        "end_time": now,
        "resolution": Duration(seconds=seconds),
    }
    times = []
    for _ in range(calls + 5):
        start = time.perf_counter()
        answer = await client.stability.query_series(**asked)
        times.append(time.perf_counter() - start)
    assert len(answer.points) >= _DAYS * 86400 // seconds
    # The first calls prepare statements and fill caches, as those of the day's first users do.
    return sorted(times[5:])[int(calls * 0.99) - 1] * 1000


async def _serve(url: str, registry: str) -> None:
    from modelfleetd.stability.app import build

    config = ServiceConfig(database_url=url, listen="127.0.0.1:0", registry_address=registry)
    async with Service("stability", build, config) as service:
        sys.stdout.write(f"{service.address}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(*sys.argv[1:]))
