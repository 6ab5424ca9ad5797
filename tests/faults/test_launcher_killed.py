"""A launcher that dies or stalls at a named place: the launch ends all the same, no effect twice, promises kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from modelfleet import AsyncClient
from modelfleet.errors import Cancelled, DeadlineExceeded, Unavailable
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.launcher.domain.record import Verdict
from tests.support.chance import chosen
from tests.support.launcher import ENDED, NEW, OLD, TARGET, Fleet, another_launcher, launcher_fleet
from tests.support.simulated_agent import simulated_agent
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_LEASE = 2.0
_PLACES = (
    "launcher.before_act.estimate:kill",
    "launcher.after_act.reserve:kill",
    "launcher.after_record.intent_start:kill",
    "launcher.after_act.shift:kill",
    "launcher.before_record.outcome:kill:6",
    "launcher.after_act.reduce:kill:2",
    "launcher.after_act.finalize:kill",
    "launcher.after_act.settle:kill",
)


class Process:
    """`modelfleetd launcher` as a process, begun again when it has died."""

    def __init__(self, fleet: Fleet, port: int, directory: Path, *arguments: str) -> None:
        self.address = f"127.0.0.1:{port}"
        self.once = directory / "failed-once"
        self._command = [sys.executable, "-m", "modelfleetd", "launcher", f"--listen={self.address}"]
        self._command += [f"--database-url={fleet.database_url}", f"--lease-seconds={_LEASE}", "--log-level=warning"]
        self._command += [f"--{name}-address={service.address}" for name, service in fleet.services.items()]
        self._command += arguments
        self.process: asyncio.subprocess.Process | None = None
        self.deaths = 0

    async def keep_running(self, failpoint: str) -> None:
        environment = {**os.environ, "MODELFLEET_FAILPOINT": failpoint, "MODELFLEET_FAILPOINT_ONCE": str(self.once)}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        while True:
            self.process = await asyncio.create_subprocess_exec(*self._command, env=environment)
            if await self.process.wait() == -signal.SIGKILL:
                self.deaths += 1


@asynccontextmanager
async def process_of(
    fleet: Fleet, directory: Path, failpoint: str, port: int, *arguments: str
) -> AsyncIterator[Process]:
    process = Process(fleet, port, directory, *arguments)
    running = asyncio.create_task(process.keep_running(failpoint))
    try:
        yield process
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        if process.process is not None and process.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.process.send_signal(signal.SIGCONT)
                process.process.kill()
            await process.process.wait()


@asynccontextmanager
async def fleet_with_agent(database_url: str) -> AsyncIterator[Fleet]:
    """A fleet without a launcher in this process, whose agent listens for one in another."""
    async with (
        launcher_fleet(database_url, old=10, new=8, spare=4, launcher=False) as fleet,
        simulated_agent(fleet.simulator) as address,
    ):
        region = await fleet.client.registry.get_region(name="regions/eu")
        region.agent_address = address
        await fleet.client.registry.update_region(region=region)
        fleet.platforms.agents[address] = fleet.simulator
        yield fleet


async def _ended(client: AsyncClient, seconds: float = 60) -> pb.Launch:
    found: pb.Launch | None = None

    async def over() -> bool:
        nonlocal found
        with contextlib.suppress(Unavailable, DeadlineExceeded, Cancelled):
            found = await client.launcher.get_launch(name="launches/l1", timeout=2)
        return found is not None and found.state in ENDED

    await until(over, seconds)
    assert found is not None
    return found


async def _create(client: AsyncClient, fleet: Fleet) -> None:
    async def created() -> bool:
        request = pb.CreateLaunchRequest(launch_id="l1", launch=fleet.request(bake=0.5), request_id=_REQUEST)
        with contextlib.suppress(Unavailable, DeadlineExceeded, Cancelled):
            await client.launcher.create_launch(request, timeout=3)
            return True
        return False

    await until(created, 40)


_REQUEST = "5d0a7d9e-52a7-4a56-9a0e-3f3a1c4b2f10"


async def _assert_all_agree(fleet: Fleet, launch: pb.Launch) -> None:
    assert launch.state == pb.Launch.SUCCEEDED, launch.summary
    assert fleet.broken_promises(launch) == []
    keys = [effect.key for effect in fleet.simulator.ledger if effect.key]
    assert len(keys) == len(set(keys))
    seen = await fleet.simulator.observe(TARGET)
    assert {m.model: m.existing_replicas for m in seen.models if m.existing_replicas} == {NEW: 8}
    assert (await fleet.client.registry.get_model_type(name="modelTypes/ctr")).baseline == NEW
    usage = await fleet.usage()
    assert (usage.serving_units, usage.held_units) == (8, 0)


@pytest.mark.parametrize("failpoint", chosen(_PLACES, 3))
async def test_a_launcher_that_is_killed_goes_on_where_it_was(
    database_url: str, tmp_path: Path, failpoint: str, unused_tcp_port: int
) -> None:
    async with (
        fleet_with_agent(database_url) as fleet,
        process_of(fleet, tmp_path, failpoint, unused_tcp_port) as process,
        AsyncClient(launcher=process.address) as client,
    ):
        await _create(client, fleet)
        launch = await _ended(client)
        assert process.deaths == 1, "the failpoint was never passed"
        await _assert_all_agree(fleet, launch)


async def test_a_holder_that_stalls_past_its_lease_can_do_nothing_more(
    database_url: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with (
        fleet_with_agent(database_url) as fleet,
        process_of(fleet, tmp_path, "launcher.before_act.shift:stop", unused_tcp_port) as process,
        AsyncClient(launcher=process.address) as client,
    ):
        await _create(client, fleet)
        await until(process.once.exists, 40)
        fleet.judge.verdicts = [Verdict.PASS]
        async with another_launcher(fleet) as second, AsyncClient(launcher=second.address) as healthy:
            launch = await _ended(healthy)
            await _assert_all_agree(fleet, launch)
            effects = len([effect for effect in fleet.simulator.ledger if effect.key])
            assert process.process is not None
            process.process.send_signal(signal.SIGCONT)
            # It serves again, and has not written what it was about to.
            await until(lambda: _answers(client), 20)
            assert len([effect for effect in fleet.simulator.ledger if effect.key]) == effects
            assert (await healthy.launcher.get_launch(name="launches/l1")).etag == launch.etag
            await _assert_all_agree(fleet, launch)


async def _answers(client: AsyncClient) -> bool:
    with contextlib.suppress(Unavailable, DeadlineExceeded, Cancelled):
        await client.launcher.get_launch(name="launches/l1", timeout=1)
        return True
    return False


async def test_two_launchers_share_the_work_and_never_an_act(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=8, spare=4) as fleet, another_launcher(fleet):
        await fleet.create()
        launch = await fleet.reaches(pb.Launch.SUCCEEDED)
        await _assert_all_agree(fleet, launch)
        assert launch.baseline == OLD
