"""`modelfleetd up` as a person uses it: real processes, one port, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from modelfleet import AsyncClient, ModelfleetError
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncPlatform
from modelfleetd.kit.ports import free_port
from modelfleetd.local import leftovers
from modelfleetd.local.front_door import SERVICES
from tests.support.memory import memory
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.xdist_group("up")]

_PARTS = ("postgres", "front-door", "registry", "capacity", "launcher", "stability", "node")
_REGISTRY = SERVICES["registry"]


@dataclass
class Running:
    """An `up` that is ready."""

    process: asyncio.subprocess.Process
    ready: dict[str, Any]
    folder: Path

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    @property
    def processes(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder / "run" / "status.json").read_text())["processes"]
        return found

    async def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 60)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="modelfleet-tests-", dir=memory()) as path:
        yield Path(path)


async def spawn(*flags: str, **environment: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "modelfleetd", "up", *flags)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *command, stdout=pipe, stderr=pipe, env={**os.environ, **environment}, start_new_session=True
    )


@contextlib.asynccontextmanager
async def up(folder: Path, **environment: str) -> AsyncIterator[Running]:
    process = await spawn("--json", "--data-dir", str(folder), "--port", str(free_port()), **environment)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 90)
        assert line, (await process.stderr.read()).decode()
        yield Running(process, json.loads(line), folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), 60)
        await asyncio.to_thread(leftovers.end, folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Running]:
    """An `up` for the tests that leave one running."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-tests-", dir=memory()) as path:
        async with up(Path(path)) as running:
            yield running


async def refusal(*flags: str) -> tuple[int, str]:
    process = await spawn(*flags)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, said.decode()


def replaced(running: Running, part: str, before: int) -> bool:
    return running.processes.get(part, before) != before


async def answers(client: AsyncClient) -> bool:
    with contextlib.suppress(ModelfleetError):
        return bool((await client.registry.list_regions(timeout=2)).regions)
    return False


@pytest.mark.asyncio(loop_scope="module")
async def test_everything_answers_on_one_port(shared: Running) -> None:
    async with AsyncClient(shared.address) as client:
        (region,) = (await client.registry.list_regions()).regions
        assert region.name == "regions/local"
        assert region.agent_address == f"127.0.0.1:{shared.ready['ports']['node']}"
        await client.registry.create_team(team_id="answered", team=registry_pb2.Team(on_call="mei"))
        assert (await client.capacity.list_pools()).pools == []
        assert (await client.launcher.list_launches()).launches == []
        async with contextlib.aclosing(client.registry.watch_revisions(after_revision=0)) as revisions:
            assert (await anext(revisions)).current_revision == 2
    agent = AsyncPlatform(shared.address)
    assert (await agent.get_agent()).region == "regions/local"
    await agent.close()
    assert set(shared.processes) == set(_PARTS)


async def test_ctrl_c_leaves_no_process_and_after_it_or_a_kill_the_next_up_continues(folder: Path) -> None:
    async with up(folder) as running:
        async with AsyncClient(running.address) as client:
            await client.registry.create_team(team_id="kept", team=registry_pb2.Team(on_call="mei"))
        assert len(leftovers.processes_of(folder)) > len(running.processes)  # the node's proxy, the database's workers
        assert await running.stop() == 0
        assert leftovers.processes_of(folder) == []
        assert not (folder / "run" / "status.json").exists()

    async with up(folder) as running:
        async with AsyncClient(running.address) as client:
            assert (await client.registry.get_team(name="teams/kept")).on_call == "mei"
            await client.registry.create_team(team_id="killed", team=registry_pb2.Team())
        running.process.kill()
        await running.process.wait()
        async with up(folder) as again, AsyncClient(again.address) as client:
            assert (await client.registry.get_team(name="teams/killed")).name == "teams/killed"
            assert again.ready["ports"]["node"] == running.ready["ports"]["node"]
            assert await again.stop(signal.SIGTERM) == 0
        assert leftovers.processes_of(folder) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_up_on_the_folder_and_a_taken_port_are_refused_in_one_line(
    shared: Running, folder: Path
) -> None:
    port = str(shared.ready["ports"]["front_door"])
    status, said = await refusal("--data-dir", str(shared.folder), "--port", str(free_port()))
    assert (status, said.count("\n")) == (1, 1)
    assert f"running on {shared.folder} already (process {shared.process.pid})" in said

    status, said = await refusal("--data-dir", str(folder), "--port", port)
    assert (status, said) == (1, f"modelfleetd up: Port {port} is in use: choose another one with --port.\n")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_front_door_answers_only_to_this_machine_and_its_own_pages(shared: Running) -> None:
    async with httpx.AsyncClient(base_url=f"http://{shared.address}") as http:
        path, body = f"/{_REGISTRY}/ListRegions", b"\0\0\0\0\0"
        web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
        ours = await http.post(path, content=body, headers=web)
        assert ours.status_code == 200
        assert b"grpc-status:0" in ours.content
        same = await http.post(path, content=body, headers={**web, "origin": f"http://localhost:{shared.address[-4:]}"})
        assert b"grpc-status:0" in same.content
        foreign = await http.post(path, content=body, headers={**web, "origin": "https://example.com"})
        assert b"grpc-status:0" not in foreign.content
        assert "access-control-allow-origin" not in foreign.headers
        assert (await http.post(path, content=body, headers={**web, "host": "example.com"})).status_code == 404
        preflight = {"origin": "https://example.com", "access-control-request-method": "POST"}
        assert "access-control-allow-origin" not in (await http.options(path, headers=preflight)).headers

        async with grpc.aio.insecure_channel(shared.address) as channel:
            nowhere: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/modelfleet.registry.v9.RegistryService/GetTeam"
            )
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await nowhere(b"", timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


# The last one on the shared system: what it leaves has been started again.
@pytest.mark.asyncio(loop_scope="module")
async def test_a_part_that_dies_is_started_again_and_the_others_go_on(shared: Running) -> None:
    async with AsyncClient(shared.address) as client:
        for part in ("registry", "postgres", "front-door"):
            before = shared.processes[part]
            os.kill(before, signal.SIGKILL)
            await until(functools.partial(replaced, shared, part, before), 30)
            await until(functools.partial(answers, client), 30, every=0.1)
    assert await shared.stop() == 0
    assert leftovers.processes_of(shared.folder) == []


async def test_a_database_of_ones_own_replaces_the_embedded_one(folder: Path, empty_database_url: str) -> None:
    async with up(folder, MODELFLEET_DATABASE_URL=empty_database_url) as running:
        assert "postgres" not in running.processes
        assert not (folder / "postgres").exists()
        async with AsyncClient(running.address) as client:
            assert len((await client.registry.list_regions()).regions) == 1
        assert await running.stop() == 0


async def test_a_database_that_does_not_answer_is_said_in_one_line(folder: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"postgresql://nobody@127.0.0.1:{closed.getsockname()[1]}/none"
        status, said = await refusal("--data-dir", str(folder), "--port", str(free_port()), "--database-url", url)
    assert status == 1
    (line,) = said.splitlines()
    assert "The database could not be prepared" in line
    assert leftovers.processes_of(folder) == []
