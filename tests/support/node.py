"""A real node agent for tests: its own process, real Envoy, real replicas; all of it ends with the test."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
import pytest

from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.inference.v2 import open_inference_pb2_grpc as inference_rpc
from modelfleet.services import AsyncPlatform
from modelfleet.transport import Options
from modelfleetd.errors import FleetError
from modelfleetd.kit.ports import free_port
from modelfleetd.platform.client import PlatformClient
from modelfleetd.platform.model import DesiredServing, Fence, ServingObservation, ServingSpec, TargetKind
from tests.support import guardian
from tests.support.serving import CPU, TARGET
from tests.support.wait import until

_ROOT = Path(__file__).parents[2]
_SERVER = Path(__file__).with_name("oip_server.py")


def replica_spec(*flags: str, says: str = "", drain: float = 5.0, startup: float = 30.0) -> ServingSpec:
    """How to run the test replica with these flags of its own."""
    from datetime import timedelta

    return ServingSpec(
        command=(
            sys.executable,
            str(_SERVER),
            *("--port", "{port}", "--model", "{model_type}", "--says", says or "{model}"),
            *flags,
        ),
        flavor=CPU,
        environment={"PYTHONPATH": os.pathsep.join(sys.path)},
        startup_timeout=timedelta(seconds=startup),
        drain_timeout=timedelta(seconds=drain),
    )


class Node:
    """One agent in a folder; may be killed and started again."""

    def __init__(self, folder: Path, run: str, *flags: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._run = run
        self._flags = flags
        self._acts = 0
        self._agent = AsyncPlatform(f"127.0.0.1:{self.port}", Options(timeout=20.0))
        self.platform = PlatformClient(self._agent, timeout=20.0)

    async def start(self) -> None:
        """Starts the agent's process and waits until it answers."""
        environment = {**os.environ, guardian.VARIABLE: self._run, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [
            *(sys.executable, "-m", "modelfleetd", "node", "--log-format", "console", "--region", "testland"),
            *("--listen", f"127.0.0.1:{self.port}", "--data-dir", str(self.folder), *self._flags),
        ]
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220
                command, env=environment, cwd=_ROOT, stdout=log, stderr=log, start_new_session=True
            )

        async def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "agent.log").read_text()
            try:
                await self.platform.agent()
            except FleetError:
                return False
            return True

        await until(answers, timeout=30)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Ends the agent's process, and only that; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    async def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends the agent and starts it again on the same folder."""
        self.kill(number)
        await self.start()

    async def apply(self, desired: DesiredServing, target: str = TARGET, kind: TargetKind = TargetKind.ROUTE) -> None:
        """Makes it the desired state."""
        self._acts += 1
        await self.platform.apply(target, kind, Fence(1, f"test/{self._acts}"), desired)

    async def reach(self, desired: DesiredServing, target: str = TARGET, timeout: float = 60.0) -> ServingObservation:
        """Makes it the desired state and waits until it is reached."""
        await self.apply(desired, target)
        return await self.reached(target, timeout)

    async def reached(self, target: str = TARGET, timeout: float = 60.0) -> ServingObservation:
        """Waits until what is desired is there, and acknowledged."""

        async def there() -> ServingObservation | None:
            seen = await self.platform.observe(target)
            settled = all(m.available_replicas == m.desired_replicas == m.existing_replicas for m in seen.models)
            return seen if settled and seen.acknowledged_generation == seen.generation else None

        found: ServingObservation | None = await until(there, timeout=timeout)
        assert found is not None
        return found

    def processes(self) -> dict[str, int]:
        """Process ids by replica, and Envoy's by `envoy`; only leaders of sessions."""
        found: dict[str, int] = {}
        for process in guardian.carriers(self._run):
            try:
                variables = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
                leads = os.getsid(process) == process
            except OSError:
                continue
            for variable in variables:
                if variable.startswith("MODELFLEET_REPLICA=") and leads:
                    found[variable.rpartition("/")[2]] = process
        return found

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """A caller of models through the agent's Envoy."""
        address = (await self.platform.agent()).traffic_address
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield Caller(channel)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._agent.close()
        guardian.kill_carriers(self._run)
        if self.process is not None:
            self.process.wait(30)


class Caller:
    """Calls a model type and says who answered."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = inference_rpc.GRPCInferenceServiceStub(channel)

    async def ask(
        self,
        *,
        key: str = "",
        model: str = "",
        model_type: str = "ranker",
        timeout: float = 10.0,
        request: inference.ModelInferRequest | None = None,
    ) -> str:
        """Infers once; returns the model that answered.

        Raises:
            grpc.aio.AioRpcError: the call failed.
        """
        metadata = [("x-modelfleet-model-type", model_type)]
        metadata += [("x-modelfleet-split-key", key)] if key else []
        metadata += [("x-modelfleet-model", model)] if model else []
        request = request or inference.ModelInferRequest(model_name="ranker")
        call = self._stub.ModelInfer(request, metadata=metadata, timeout=timeout)
        answer = await call
        marked = dict(await call.initial_metadata())["x-modelfleet-model"]
        assert answer.outputs[0].contents.bytes_contents[0] in (str(marked).encode(), b"any")
        return str(marked)


class Load:
    """Calls at a steady rate until the block ends; counts answers by model, and failures."""

    def __init__(self, caller: Caller, rate: float = 200.0) -> None:
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self._caller = caller
        self._rate = rate
        self._calls: set[asyncio.Task[None]] = set()
        self._pacer: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """Calls that have ended."""
        return sum(self.answers.values()) + len(self.failures)

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            call = asyncio.create_task(self._call())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            due += 1 / self._rate
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _call(self) -> None:
        try:
            model = await self._caller.ask()
        except grpc.aio.AioRpcError as error:
            self.failures.append(f"{error.code().name}: {error.details()}")
        else:
            self.answers[model] = self.answers.get(model, 0) + 1

    async def __aenter__(self) -> Self:
        self._pacer = asyncio.create_task(self._pace())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pacer is not None
        self._pacer.cancel()
        await asyncio.gather(*self._calls, self._pacer, return_exceptions=True)


@pytest.fixture(scope="session")
def test_run() -> Iterator[str]:
    """The id of this run, whose processes a guardian ends, whatever happens to the run."""
    with guardian.guarded() as run:
        yield run


@pytest.fixture
async def node(tmp_path: Path, test_run: str) -> AsyncIterator[Node]:
    """A running agent."""
    async with Node(tmp_path / "node", f"{test_run}-{uuid.uuid4().hex[:8]}") as running:
        yield running
