"""kill −9 of the real capacity process at each stage of a load test, with the real agent, Envoy and replicas.

`make faults` kills it at every stage; any other run at one, another each day.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.errors import Cancelled, DeadlineExceeded, Unavailable
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.domain.loadtest import LatencyStopper, Stoppers, Wanted
from modelfleetd.capacity.store import loadtests
from modelfleetd.kit.db import Database
from modelfleetd.platform.model import EffectKind
from modelfleetd.registry.app import build as build_registry
from tests.support import guardian
from tests.support.chance import chosen
from tests.support.node import Node, node, test_run
from tests.support.servers import running
from tests.support.wait import until

__all__ = ["node", "test_run"]

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(240)]

CTR, EU, CPU = "modelTypes/ctr", "regions/eu", "flavors/cpu"
MODEL = f"{CTR}/models/serial"
SERVER = Path(__file__).parents[1] / "support" / "serial_server.py"
SERVICE_MS = 3.0
LEASE_SECONDS = 1.5
GONE = (Unavailable, DeadlineExceeded, Cancelled)
MEASURING = {pb.LoadTest.SEARCHING, pb.LoadTest.CERTIFYING}
ENDED = {pb.LoadTest.SUCCEEDED, pb.LoadTest.FAILED, pb.LoadTest.CANCELLED}


@dataclass(frozen=True)
class Stage:
    """When the process dies: at a failpoint, or when a load test looks like this from outside.

    Attributes:
        bracket: that an attempt before has found already.
    """

    name: str
    failpoint: str = ""
    seen: Callable[[pb.LoadTest], bool] | None = None
    bracket: tuple[float, float] | None = None


STAGES = [
    Stage("before it asks for the clone", "capacity.before_act.start_clone:kill"),
    Stage("while the clone starts", "capacity.after_act.start_clone:kill"),
    Stage("warming up", seen=lambda test: test.message.startswith("Warming up")),
    Stage("searching", seen=lambda test: test.message.startswith("Trying")),
    Stage("certifying", seen=lambda test: test.state == pb.LoadTest.CERTIFYING, bracket=(100.0, 104.0)),
    Stage("before it removes the clone", "capacity.before_act.remove_clone:kill"),
    Stage("while the clone is removed", "capacity.after_act.remove_clone:kill"),
    Stage("before it records the end", "capacity.before_record.end:kill"),
    Stage("after it has recorded the end", "capacity.after_record.end:kill"),
]


class Capacity:
    """`modelfleetd capacity` as a process, begun again when it has been killed."""

    def __init__(self, port: int, database_url: str, registry: str, run: str, folder: Path, failpoint: str) -> None:
        self.address = f"127.0.0.1:{port}"
        self.deaths = 0
        self._command = [sys.executable, "-m", "modelfleetd", "capacity", f"--listen={self.address}"]
        self._command += [f"--database-url={database_url}", f"--registry-address={registry}"]
        self._command += [f"--lease-seconds={LEASE_SECONDS}", "--log-level=warning"]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), guardian.VARIABLE: run}
        if failpoint:
            once = {"MODELFLEET_FAILPOINT_ONCE": str(folder / "failed-once")}
            self._environment |= {"MODELFLEET_FAILPOINT": failpoint, **once}
        self._process: asyncio.subprocess.Process | None = None

    async def keep_running(self) -> None:
        while True:
            self._process = await asyncio.create_subprocess_exec(*self._command, env=self._environment)
            assert await self._process.wait() == -signal.SIGKILL
            self.deaths += 1

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class Fleet:
    """One load test of a real model, a real agent, and a capacity that dies once."""

    def __init__(self, capacity: Capacity, client: AsyncClient, node: Node, database: Database) -> None:
        self.capacity = capacity
        self.node = node
        self.database = database
        self._client = client
        self.name = ""

    async def answer(self, call: Callable[[], Any]) -> Any:
        """The answer of a service that may be away for a while."""

        async def answered() -> list[Any]:
            with contextlib.suppress(*GONE):
                return [await call()]
            return []

        return (await until(answered, 60))[0]

    async def found(self) -> pb.LoadTest:
        made: pb.LoadTest = await self.answer(lambda: self._client.capacity.get_load_test(name=self.name, timeout=2))
        return made

    async def begin(self, model: str, bracket: tuple[float, float] | None = None) -> None:
        """Stores a load test before a service sees it, as one that was interrupted where there is a bracket."""
        self.name = "loadTests/t1"
        stoppers = Stoppers(error_rate=0.004, latencies=(LatencyStopper(90.0, 50.0),))
        samples = (inference.ModelInferRequest(model_name="ctr").SerializeToString(),)
        wanted = Wanted(model, EU, CPU, samples, stoppers, 100.0, 1_000)
        async with self.database.transaction() as conn:
            await loadtests.insert(conn, self.name, wanted, "alice")
            if bracket is not None:
                await conn.execute(
                    """UPDATE load_tests SET attempt = 1, start_time = now(), highest_within_qps = $2,
                           lowest_beyond_qps = $3 WHERE name = $1""",
                    self.name,
                    *bracket,
                )

    async def cancel(self) -> None:
        await self.answer(lambda: self._client.capacity.cancel_load_test(name=self.name, timeout=5))

    async def has_died(self) -> None:
        await until(lambda: self.capacity.deaths == 1, 60)

    async def epoch(self) -> int:
        found: int = await self.database.fetchval("SELECT epoch FROM load_tests WHERE name = $1", self.name)
        return found

    async def is_clean(self) -> bool:
        """Nothing runs, nobody believes that something does, and there was one replica at most at any time."""
        row = await self.database.fetchrow("SELECT clone_present, end_time FROM load_tests WHERE name = $1", self.name)
        assert row is not None
        if row["clone_present"] or row["end_time"] is None or [p for p in self.node.processes() if p != "envoy"]:
            return False
        existing = 0
        for effect in (await self.node.platform.effects()).effects:
            existing += (effect.kind is EffectKind.REPLICA_STARTED) - (effect.kind is EffectKind.REPLICA_TERMINATED)
            assert existing <= 1
        return existing == 0


def _spec() -> ServingSpec:
    command = [sys.executable, str(SERVER), "--port", "{port}", "--model", "{model_type}"]
    return ServingSpec(
        command=[*command, "--service-ms", str(SERVICE_MS)],
        flavor=CPU,
        environment={"PYTHONPATH": os.pathsep.join(sys.path)},
        drain_timeout=Duration(seconds=1),
    )


@asynccontextmanager
async def fleet(
    database_url: str, node: Node, run: str, folder: Path, port: int, failpoint: str
) -> AsyncIterator[Fleet]:
    async with running("registry", build_registry, database_url) as registry:
        capacity = Capacity(port, database_url, registry.address, run, folder, failpoint)
        database = await Database.open(database_url, "capacity", max_size=2)
        keeping = asyncio.create_task(capacity.keep_running())
        try:
            async with AsyncClient(registry=registry.address, capacity=capacity.address) as client:
                await client.registry.create_team(team_id="feed", team=registry_pb2.Team())
                region = registry_pb2.Region(agent_address=f"127.0.0.1:{node.port}")
                await client.registry.create_region(region_id="eu", region=region)
                route = registry_pb2.ModelType(team="teams/feed", regions=[EU])
                await client.registry.create_model_type(model_type_id="ctr", model_type=route)
                await client.registry.create_model(
                    parent=CTR, model_id="serial", model=registry_pb2.Model(serving_spec=_spec())
                )
                yield Fleet(capacity, client, node, database)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await capacity.end()
            await database.close()


@pytest.mark.parametrize("stage", chosen(STAGES, 1), ids=lambda stage: stage.name)
async def test_a_capacity_service_that_is_killed_leaves_nothing_and_its_load_test_goes_on(
    database_url: str, node: Node, test_run: str, tmp_path: Path, unused_tcp_port: int, stage: Stage
) -> None:
    async with fleet(database_url, node, test_run, tmp_path, unused_tcp_port, stage.failpoint) as running_fleet:
        if "record" in stage.failpoint:
            await _dies_at_the_end(running_fleet)
        elif "remove" in stage.failpoint:
            await _dies_removing(running_fleet)
        else:
            await _dies_under_way(running_fleet, stage)
        await until(running_fleet.is_clean, 40)
        assert running_fleet.capacity.deaths == 1


async def _dies_under_way(fleet: Fleet, stage: Stage) -> None:
    await fleet.begin(MODEL, stage.bracket)
    if stage.seen is not None:
        seen = stage.seen

        async def is_there() -> bool:
            return seen(await fleet.found())

        await until(is_there, 60)
        fleet.capacity.kill()
    await fleet.has_died()
    epoch, attempts = await fleet.epoch(), 2 if stage.bracket is None else 3

    async def goes_on() -> pb.LoadTest | None:
        found = await fleet.found()
        return found if found.attempt == attempts and found.state in MEASURING else None

    again = await until(goes_on, 60)
    assert await fleet.epoch() > epoch
    if stage.bracket is not None:
        # What was found is not lost, whoever died.
        assert again.current_qps == stage.bracket[0]
    await fleet.cancel()
    assert (await fleet.found()).state == pb.LoadTest.CANCELLED


async def _dies_removing(fleet: Fleet) -> None:
    await fleet.begin(MODEL)

    async def is_searching() -> bool:
        return (await fleet.found()).state == pb.LoadTest.SEARCHING

    await until(is_searching, 60)
    await fleet.cancel()
    await fleet.has_died()
    assert (await fleet.found()).state == pb.LoadTest.CANCELLED


async def _dies_at_the_end(fleet: Fleet) -> None:
    await fleet.begin(f"{CTR}/models/gone")
    await fleet.has_died()

    async def has_ended() -> bool:
        return (await fleet.found()).state in ENDED

    await until(has_ended, 60)
    found = await fleet.found()
    assert (found.state, found.cause) == (pb.LoadTest.FAILED, pb.LoadTest.CLONE_UNAVAILABLE)
