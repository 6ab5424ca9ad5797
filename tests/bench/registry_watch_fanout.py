"""From the sending of a write to the last of 100 watchers that has it, over gRPC, each watcher on its own connection.

Registry, watchers and writer are processes of their own, on PostgreSQL with its default durability. Writes begin at
fixed times, whether the one before has been answered or not, so that a stall counts for all that it delays. The clock
is the machine's monotonic one, which all processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from tests.bench.figures import Figure
from tests.support.postgres import Postgres
from tests.support.processes import part, registry_process
from tests.support.registry_calls import request_id

NAMES = ("registry.watch_fanout_p99_ms",)
_WATCHERS = 100
_WRITES = 300
_WARM_UP = 20
_EVERY_SECONDS = 0.05
_NAME = "modelTypes/ig_stories_tray_mtml"


async def run() -> list[Figure]:
    """Measures each write."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder), "")
        stack.callback(postgres.stop)
        async with registry_process(postgres.create()) as (_, address), part(__name__, "write", address) as writer:
            first = int(await writer.line())
            async with part(__name__, "watch", address, str(first), str(first + _WARM_UP + _WRITES)) as watchers:
                await watchers.line()
                writer.send("go")
                written: dict[str, tuple[float, float]] = json.loads(await writer.line())
                arrived: dict[str, tuple[float, float]] = json.loads(await watchers.line())
    measured = sorted(written, key=int)[_WARM_UP:]
    last = [1e3 * (arrived[number][1] - written[number][0]) for number in measured]
    typical = [1e3 * (arrived[number][0] - written[number][0]) for number in measured]
    answers = [1e3 * (answered - sent) for sent, answered in (written[number] for number in measured)]
    return [
        Figure(
            name=NAMES[0],
            value=_p99(last),
            unit="ms",
            yardstick=(
                f"from the sending of a write to the last of {_WATCHERS} watchers, {len(last)} writes, one each "
                f"{1e3 * _EVERY_SECONDS:.0f} ms; median {statistics.median(last):.1f} ms, most {max(last):.1f} ms; "
                f"the first watcher has it after {statistics.median(typical):.1f} ms (p99 {_p99(typical):.1f} ms), "
                f"the writer its answer after {statistics.median(answers):.1f} ms (p99 {_p99(answers):.1f} ms)"
            ),
            target=50.0,
            better="lower",
        )
    ]


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


async def _write(address: str) -> None:
    """Tells which revision comes before the first write; then, of each write, when it was sent and answered."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        await stub.CreateTeam(pb.CreateTeamRequest(team_id="stories", team=pb.Team(), request_id=request_id()))
        model_type = pb.ModelType(
            purpose="Ranks the stories in the tray.",
            team="teams/stories",
            funnel_stage=pb.LATE_STAGE_RANKING,
            predictions=[pb.Prediction(id=name) for name in ("like", "comment", "follow")],
            labels={"surface": "stories", "placement": "tray"},
        )
        made = await stub.CreateModelType(
            pb.CreateModelTypeRequest(model_type_id=_NAME.split("/")[1], model_type=model_type, request_id=request_id())
        )
        print(made.revision, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def write(number: int) -> tuple[int, tuple[float, float]]:
            request = pb.UpdateModelTypeRequest(
                model_type=pb.ModelType(name=_NAME, labels={"site": str(number)}), request_id=request_id()
            )
            request.update_mask.paths.append("labels.site")
            await asyncio.sleep(began + number * _EVERY_SECONDS - time.monotonic())
            sent = time.monotonic()
            answer = await stub.UpdateModelType(request, timeout=10)
            return answer.revision, (sent, time.monotonic())

        began = time.monotonic()
        print(json.dumps(dict(await asyncio.gather(*map(write, range(_WARM_UP + _WRITES))))), flush=True)


async def _watch(address: str, after: str, until: str) -> None:
    """Tells when all are there; then, of each revision, when the first and the last of the watchers had it."""
    seen: dict[int, list[float]] = {}

    async def watch(stream: Any) -> None:
        position = int(after)
        while position < int(until):
            message = await stream.read()
            if message.HasField("revision"):
                if message.position != position + 1:
                    raise RuntimeError(f"revision {message.position} came after {position}")
                position = message.position
                seen.setdefault(position, []).append(time.monotonic())

    async with AsyncExitStack() as stack:
        streams: list[Any] = []
        for _ in range(_WATCHERS):
            own = (("grpc.use_local_subchannel_pool", 1),)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, own))
            stub = registry_pb2_grpc.RegistryServiceStub(channel)
            streams.append(stub.WatchRevisions(pb.WatchRevisionsRequest(after_revision=int(after)), timeout=120))
            await streams[-1].read()
        print("ready", flush=True)
        await asyncio.gather(*map(watch, streams))
    print(json.dumps({number: (min(moments), max(moments)) for number, moments in seen.items()}), flush=True)


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        duty, *arguments = sys.argv[1:]
        uvloop.run(_write(*arguments) if duty == "write" else _watch(*arguments))
