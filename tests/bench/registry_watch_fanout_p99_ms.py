"""100 watchers: from the moment a write is sent until the last of them has it, with writes one after the other.

Registry, writer with 50 watchers, and another 50 watchers are processes of their own; PostgreSQL commits to the disk.
All processes read one clock (CLOCK_MONOTONIC), so what is measured includes the write itself and its commit; the time
from the answer on is stated beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from tests.bench.figures import Figure
from tests.support.postgres import Postgres
from tests.support.processes import part, registry_process
from tests.support.registry_calls import request_id

_WATCHERS = 100
_WRITES = 300
_PAUSE_SECONDS = 0.02


async def run() -> list[Figure]:
    """Measures each write."""
    half = str(_WATCHERS // 2)
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder), "")
        stack.callback(postgres.stop)
        url = postgres.create()
        async with (
            registry_process(url) as (_, address),
            part(__name__, "watch", address, half) as others,
            part(__name__, "write", address, half) as own,
        ):
            await others.line()
            await own.line()
            own.send("go")
            mine, theirs = json.loads(await own.line()), json.loads(await others.line())
    last = {number: max(mine["seen"][number], theirs["seen"][number]) for number in mine["sent"]}
    from_sent = [(last[number] - sent) * 1000 for number, sent in mine["sent"].items()]
    from_answer = [(last[number] - answered) * 1000 for number, answered in mine["answered"].items()]
    return [
        Figure(
            name="registry.watch_fanout_p99_ms",
            value=_quantile(from_sent, 0.99),
            unit="ms",
            yardstick=f"from sending a write until the last of {_WATCHERS} watchers has it, {len(last)} writes; median "
            f"{_quantile(from_sent, 0.5):.1f} ms; after its answer p99 {max(0.0, _quantile(from_answer, 0.99)):.1f} ms",
            target=50.0,
            better="lower",
        )
    ]


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


async def _watch(channel: grpc.aio.Channel, count: int) -> tuple[dict[int, float], list[asyncio.Task[None]]]:
    """Starts watchers; when the last of them had each revision, and when each has all of them."""
    stub = registry_pb2_grpc.RegistryServiceStub(channel)
    seen: dict[int, float] = {}
    streams: list[Any] = [stub.WatchRevisions(pb.WatchRevisionsRequest()) for _ in range(count)]
    for stream in streams:
        await stream.read()

    async def follow(stream: Any) -> None:
        while True:
            message = await stream.read()
            if message.HasField("revision"):
                seen[message.revision.number] = time.monotonic()
                if message.revision.number == _WRITES + 1:
                    return

    return seen, [asyncio.create_task(follow(stream)) for stream in streams]


async def _watch_only(address: str, count: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        seen, tasks = await _watch(channel, int(count))
        print("ready", flush=True)
        await asyncio.gather(*tasks)
        print(json.dumps({"seen": seen}), flush=True)


async def _write(address: str, count: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        await stub.CreateTeam(pb.CreateTeamRequest(team_id="feed", team=pb.Team(), request_id=request_id()), timeout=10)
        seen, tasks = await _watch(channel, int(count))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        sent: dict[int, float] = {}
        answered: dict[int, float] = {}
        for number in range(_WRITES):
            team = pb.Team(name="teams/feed", on_call=f"pager {number}")
            begin = time.monotonic()
            made = await stub.UpdateTeam(pb.UpdateTeamRequest(team=team, request_id=request_id()), timeout=10)
            sent[made.revision], answered[made.revision] = begin, time.monotonic()
            await asyncio.sleep(_PAUSE_SECONDS)
        await asyncio.gather(*tasks)
        print(json.dumps({"seen": seen, "sent": sent, "answered": answered}), flush=True)


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run({"watch": _watch_only, "write": _write}[sys.argv[1]](*sys.argv[2:]))
