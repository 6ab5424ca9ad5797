"""History stays linear, complete and what was acknowledged, whatever happens to processes, PostgreSQL and watchers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

from modelfleet import AsyncClient, errors, ledger
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from tests.support.postgres import Postgres
from tests.support.processes import Part, registry_process
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

RETRIED = (errors.Unavailable, errors.DeadlineExceeded)


@dataclass
class Written:
    """What writers were told: revision by request_id, and the text that each wrote."""

    revisions: dict[str, int] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)


async def prepare(address: str, teams: int) -> None:
    async with AsyncClient(address) as client:
        for number in range(teams):
            await client.registry.create_team(team_id=f"t{number}", team=pb.Team())


async def write(addresses: list[str], writer: int, writes: int, written: Written, rest: asyncio.Event) -> None:
    """Writes one after the other, each until it is acknowledged, to whichever replica answers."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(each, timeout=5)) for each in addresses]
        for number in range(writes):
            text, request_id = f"{writer}-{number}", str(uuid.uuid4())
            attempt = writer
            while True:
                attempt += 1
                try:
                    made = await clients[attempt % len(clients)].registry.update_team(
                        team=pb.Team(name=f"teams/t{writer}", on_call=text), request_id=request_id
                    )
                except RETRIED:
                    await asyncio.sleep(0.05)
                    continue
                written.revisions[request_id] = made.revision
                written.texts[made.revision] = made.on_call
                break
            if number == writes // 4:
                rest.set()


async def watch(addresses: list[str], seen: list[int], stop: asyncio.Event) -> None:
    """Follows from the first revision on, at another replica after each break, and keeps every number it is told."""
    attempt = 0
    while not stop.is_set():
        attempt += 1
        async with AsyncClient(addresses[attempt % len(addresses)]) as client:
            stream = client.registry.watch_revisions(after_revision=seen[-1] if seen else 0)
            with contextlib.suppress(errors.ModelfleetError):
                async for message in stream:
                    # One by one: what came before the stream broke counts.
                    seen += [message.revision.number] if message.HasField("revision") else []
        await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(addresses: list[str], watchers: int = 2) -> AsyncIterator[list[list[int]]]:
    """Watchers of all replicas; what each was told."""
    stop = asyncio.Event()
    seen: list[list[int]] = [[] for _ in range(watchers)]
    tasks = [asyncio.create_task(watch(addresses[at:] + addresses[:at], each, stop)) for at, each in enumerate(seen)]
    try:
        yield seen
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def expect_one_history(address: str, written: Written, acknowledged: int, before: int) -> None:
    """Every acknowledged write is in it once, nothing else is, and it is what was written."""
    async with AsyncClient(address) as client:
        messages = [each async for each in client.registry.read_history(with_state=True)]
        verified = ledger.verify(messages)
        assert verified.revisions == before + acknowledged, "each write is there, and none twice"
        assert len(set(written.revisions.values())) == acknowledged
        for revision, text in random.Random(1).sample(sorted(written.texts.items()), 20):
            found = await client.registry.get_revision(name=f"revisions/{revision}")
            assert found.changes[0].team.on_call == text


@asynccontextmanager
async def replicas(url: str, environments: list[dict[str, str]]) -> AsyncIterator[tuple[list[Part], list[str]]]:
    async with contextlib.AsyncExitStack() as stack:
        started = [await stack.enter_async_context(registry_process(url, environment=each)) for each in environments]
        yield [process for process, _ in started], [address for _, address in started]


async def test_writers_at_two_replicas_make_one_history_and_every_watcher_hears_all_of_it(database_url: str) -> None:
    async with replicas(database_url, [{}, {}]) as (_, addresses):
        await prepare(addresses[0], 8)
        written = Written()
        async with watching(addresses, 4) as seen:
            await asyncio.gather(*(write(addresses, each, 40, written, asyncio.Event()) for each in range(8)))
            newest = 8 + 8 * 40
            await until(lambda: all(each and each[-1] == newest for each in seen), timeout=30)
        for each in seen:
            assert each == list(range(1, newest + 1))
        await expect_one_history(addresses[1], written, 8 * 40, 8)


@pytest.mark.parametrize("place", ["registry.before_commit", "registry.after_commit"])
async def test_a_replica_killed_while_it_writes_several_loses_nothing_and_does_nothing_twice(
    database_url: str, place: str
) -> None:
    """It dies at a commit of many writes; their callers repeat them at the other one, with the same request_id."""
    dying = {"MODELFLEET_FAILPOINT": f"{place}:kill:30"}
    async with replicas(database_url, [{}, dying]) as (processes, addresses):
        await prepare(addresses[0], 8)
        written = Written()
        async with watching(addresses) as seen:
            await asyncio.gather(*(write(addresses, each, 60, written, asyncio.Event()) for each in range(8)))
            assert await asyncio.wait_for(processes[1].process.wait(), 30) < 0
            newest = 8 + 8 * 60
            await until(lambda: all(each and each[-1] == newest for each in seen), timeout=30)
        for each in seen:
            assert each == list(range(1, newest + 1))
        await expect_one_history(addresses[0], written, 8 * 60, 8)


@pytest.fixture
def durable() -> Iterator[tuple[Postgres, str]]:
    """A server that keeps what it acknowledged, also when it is stopped at once."""
    with TemporaryDirectory(prefix="modelfleet-tests-") as folder:
        # As root the server runs as another user, who has to reach the folder.
        Path(folder).chmod(0o755)
        data = Path(folder) / "data"
        data.mkdir()
        server = Postgres(data, "")
        try:
            yield server, server.create()
        finally:
            with contextlib.suppress(Exception):
                server.stop()


async def test_postgresql_stopped_and_started_under_load_costs_seconds_and_no_write(
    durable: tuple[Postgres, str],
) -> None:
    postgres, url = durable
    async with replicas(url, [{}, {}]) as (_, addresses):
        await prepare(addresses[0], 6)
        written, rest = Written(), asyncio.Event()
        async with watching(addresses) as seen:
            writers = asyncio.gather(*(write(addresses, each, 80, written, rest) for each in range(6)))
            await rest.wait()
            for mode in ("immediate", "fast"):
                known = len(written.revisions)
                await asyncio.to_thread(postgres.stop, mode)
                await asyncio.to_thread(postgres.start)
                await until(lambda known=known: len(written.revisions) > known or writers.done(), timeout=30)  # type: ignore[misc]
            await writers
            newest = 6 + 6 * 80
            await until(lambda: all(each and each[-1] == newest for each in seen), timeout=30)
        for each in seen:
            assert each == list(range(1, newest + 1))
        await expect_one_history(addresses[0], written, 6 * 80, 6)


async def test_a_watcher_that_reads_nothing_holds_up_nobody_costs_little_and_misses_nothing(database_url: str) -> None:
    """2,000 revisions of 12 KB, while twenty watchers read nothing: 480 MB if somebody kept it for them."""
    writes, most_mib = 2000, 100
    async with registry_process(database_url) as (process, address), grpc.aio.insecure_channel(address) as channel:
        await prepare(address, 16)
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        silent = [stub.WatchRevisions(pb.WatchRevisionsRequest(after_revision=16)) for _ in range(20)]
        for stream in silent:
            await stream.read()
        async with AsyncClient(address) as client, watching([address], 1) as (seen,):
            before = resident_mib(process)

            async def load(writer: int) -> None:
                for number in range(writes // 16):
                    contacts = [f"{at}-{number}".ljust(190, "x") for at in range(20)]
                    team = pb.Team(name=f"teams/t{writer}", contacts=contacts)
                    await client.registry.update_team(team=team, timeout=30)

            await asyncio.gather(*map(load, range(16)))
            newest = 16 + writes // 16 * 16
            await until(lambda: seen and seen[-1] == newest, timeout=30)
            grown = resident_mib(process) - before
        numbers: list[int] = []
        while not numbers or numbers[-1] < newest:
            message: Any = await asyncio.wait_for(silent[0].read(), 30)
            if message.HasField("revision"):
                numbers.append(message.revision.number)
        assert numbers == list(range(17, newest + 1))
        assert grown < most_mib, f"{grown:.0f} MiB more for twenty watchers that read nothing"


def resident_mib(process: Part) -> float:
    fields = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(fields.split("VmRSS:")[1].split()[0]) / 1024
