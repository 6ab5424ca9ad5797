"""GetModelType, with identity, permission and tracing at work, beside an empty grpc.aio method.

Server, empty server and client are processes of their own. They are measured in turn, a second each, and the ratio is
the median of the pairs', so that whatever else the machine does meets both. The client asks with raw bytes and with
more calls at a time than the server can take, so that the server is what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from modelfleet.common.v1 import permission_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from tests.bench.figures import Figure

_ROUNDS = 9
_SECONDS = 1.0
_CALLS_AT_A_TIME = 48
_NAME = "modelTypes/ig_stories_tray_mtml"
_POINT_GET = "/modelfleet.registry.v1.RegistryService/GetModelType"
_EMPTY = "/bench.Empty/Call"
_PRINCIPAL = (("x-modelfleet-principal", "alice"),)


@dataclass(frozen=True)
class Pair:
    """Calls a second of both, measured one right after the other."""

    empty: float
    point_get: float


async def run() -> list[Figure]:
    """Measures the pairs."""
    from tests.support.otlp import collector
    from tests.support.postgres import Postgres

    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        url = postgres.create()
        async with collector() as traces, process("serve-empty") as empty:
            arguments = ("serve-registry", url, traces.endpoint)
            async with process(*arguments) as registry:
                await _populate(registry.address)
                async with process("client", empty.address, registry.address) as client:
                    pairs = [Pair(**json.loads(await client.line())) for _ in range(_ROUNDS)]
    rate = statistics.median(pair.point_get for pair in pairs)
    yardstick = statistics.median(pair.empty for pair in pairs)
    return [
        Figure(
            name="registry.point_get",
            value=rate,
            unit="calls/s",
            yardstick=f"empty grpc.aio method in the same run, {yardstick:,.0f} calls/s",
            ratio=statistics.median(pair.point_get / pair.empty for pair in pairs),
            target=0.6,
            better="higher",
        )
    ]


async def _populate(address: str) -> None:
    """A team whose role bindings decide, and the model type that is asked for."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        binding = pb.RoleBinding(role=permission_pb2.ENGINEER, members=["alice"])
        team = pb.Team(on_call="stories-oncall", role_bindings=[binding])
        await stub.CreateTeam(pb.CreateTeamRequest(team_id="stories", team=team, request_id=_request_id()))
        model_type = pb.ModelType(
            purpose="Ranks the stories in the tray.",
            team="teams/stories",
            funnel_stage=pb.LATE_STAGE_RANKING,
            predictions=[pb.Prediction(id=name) for name in ("like", "comment", "follow")],
            labels={"surface": "stories", "placement": "tray"},
        )
        await stub.CreateModelType(
            pb.CreateModelTypeRequest(
                model_type_id=_NAME.split("/")[1], model_type=model_type, request_id=_request_id()
            )
        )


def _request_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Process:
    """Another process of this benchmark; a server's first line is its address."""

    process: asyncio.subprocess.Process
    address: str

    async def line(self) -> str:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark ended before its time")
        return line.decode().strip()


@asynccontextmanager
async def process(*arguments: str, module: str = __name__) -> AsyncIterator[Process]:
    """Runs this module, or another one like it, as another process."""
    command = (sys.executable, "-m", module, *arguments)
    running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        started = Process(running, "")
        yield Process(running, await started.line()) if arguments[0].startswith("serve") else started
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.terminate()
        await running.wait()


async def _serve_registry(url: str, otlp_endpoint: str) -> None:
    from modelfleetd.kit.app import Service
    from modelfleetd.kit.config import ServiceConfig
    from modelfleetd.registry.app import build

    config = ServiceConfig(database_url=url, otlp_endpoint=otlp_endpoint, trace_ratio=0.01)
    async with Service("registry", build, config) as service:
        print(service.address, flush=True)
        await asyncio.Event().wait()


async def _serve_empty() -> None:
    from google.protobuf.empty_pb2 import Empty

    async def call(request: Empty, context: Any) -> Empty:
        return Empty()

    method = grpc.unary_unary_rpc_method_handler(call, Empty.FromString, Empty.SerializeToString)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Empty", {"Call": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def _client(empty: str, registry: str) -> None:
    request = pb.GetModelTypeRequest(name=_NAME).SerializeToString()
    async with grpc.aio.insecure_channel(empty) as a, grpc.aio.insecure_channel(registry) as b:
        stub = registry_pb2_grpc.RegistryServiceStub(b)
        assert (await stub.GetModelType(pb.GetModelTypeRequest(name=_NAME), timeout=10)).name == _NAME
        for number in range(_ROUNDS + 1):
            rates = {"empty": await _rate(a, _EMPTY, b""), "point_get": await _rate(b, _POINT_GET, request)}
            if number:  # the first pair warms up
                print(json.dumps(rates), flush=True)


async def _rate(channel: grpc.aio.Channel, path: str, request: bytes) -> float:
    """Returns the calls a second of one method."""
    method: Any = channel.unary_unary(path)
    start = time.perf_counter()
    end = start + _SECONDS

    async def call_again_and_again() -> int:
        count = 0
        while time.perf_counter() < end:
            await method(request, metadata=_PRINCIPAL, timeout=10)
            count += 1
        return count

    counts = await asyncio.gather(*(call_again_and_again() for _ in range(_CALLS_AT_A_TIME)))
    return sum(counts) / (time.perf_counter() - start)


if __name__ == "__main__":
    import uvloop

    roles = {"serve-registry": _serve_registry, "serve-empty": _serve_empty, "client": _client}
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(roles[sys.argv[1]](*sys.argv[2:]))  # type: ignore[operator]
