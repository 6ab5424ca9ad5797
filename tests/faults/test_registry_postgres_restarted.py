"""PostgreSQL crashes and comes back under load: reads go on, writes resume, nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support.postgres import Postgres
from tests.support.processes import registry_process
from tests.support.registry_calls import CTR, OLD, Registry, populate
from tests.support.registry_load import PASSING, Load, Watcher, caller, state_after, state_of, verified
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

_CALLERS, _READERS, _WATCHERS = 8, 3, 2
_CRASHES = 2
# Writes are asked for with this deadline: no call may take longer, whatever the database does.
_DEADLINE = 2.0
# How long the registry may take to notice that the database is back.
_RESUMED = 5.0


@dataclass
class Reader:
    """One who reads the present all the while, and fails when a single read does."""

    registry: Registry
    ended_at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Reader]:
        task = asyncio.create_task(self._read())
        try:
            yield self
        finally:
            if task.done():
                task.result()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            began = time.monotonic()
            assert (await self.registry.GetModelType(name=CTR)).baseline == OLD
            assert (await self.registry.ListModels(parent=CTR, filter="role = BASELINE")).models[0].name == OLD
            self.ended_at.append(time.monotonic())
            self.seconds.append(self.ended_at[-1] - began)
            # Others want to be served too.
            await asyncio.sleep(0.01)

    def count_after(self, moment: float) -> int:
        return sum(ended > moment for ended in self.ended_at)


async def keep_what_is_committed(url: str) -> None:
    """Has commits of a database wait for the log, as in production; the tests' server does without otherwise."""
    conn = await asyncpg.connect(url)
    await conn.execute(f"ALTER DATABASE {urlsplit(url).path.strip('/')} SET synchronous_commit = on")
    await conn.close()


async def crash(postgres: Postgres, load: Load, readers: Sequence[Reader]) -> None:
    """Stops PostgreSQL as a crash does, and starts it once everybody has met with that."""
    await asyncio.to_thread(postgres.stop, "immediate")
    try:
        await load.fail(_CALLERS)
        # By now the answers to what was committed before have come.
        down = time.monotonic()
        await load.fail(2 * _CALLERS)
        await until(lambda: all(reader.count_after(down) > 20 for reader in readers), timeout=30)
        assert load.answered_at[-1] < down, "only what is committed is answered"
    finally:
        await asyncio.to_thread(postgres.start)
    up = time.monotonic()
    await load.acknowledge(2 * _CALLERS)
    assert min(answered for answered in load.answered_at if answered > down) < up + _RESUMED


async def test_a_crash_of_postgresql_under_load_costs_seconds_and_nothing_else(
    postgres: Postgres, database_url: str
) -> None:
    await keep_what_is_committed(database_url)
    async with AsyncExitStack() as stack:
        process, address = await stack.enter_async_context(registry_process(database_url))
        registry = await stack.enter_async_context(caller(address))
        writing = await stack.enter_async_context(caller(address, timeout=_DEADLINE))
        before = (await populate(registry)).revision
        watchers = [await stack.enter_async_context(Watcher(registry).watching()) for _ in range(_WATCHERS)]
        readers = [await stack.enter_async_context(Reader(registry).reading()) for _ in range(_READERS)]
        load = Load([writing])
        async with load.running(_CALLERS):
            for _ in range(_CRASHES):
                await load.acknowledge(50)
                await crash(postgres, load, readers)
            await load.finish()
        assert process.process.returncode is None, "the registry lives on"
        last = (await registry.ListTeams()).revision

        # Each write is one revision, whether it was answered at once or only when it was repeated.
        assert last == before + len(load.acknowledged)
        await until(lambda: all(watcher.position >= last for watcher in watchers))
        for watcher in watchers:
            watcher.expect_linear(last)
        load.expect_each_once(watchers[0].revisions)
        assert await state_of(registry, last) == state_after(watchers[0].revisions)
        assert (await verified(registry)).head.revision == last

        assert max(second for reader in readers for second in reader.seconds) < 1.0, "no read waits for the database"
        for failure in load.failures:
            assert failure.code in PASSING and failure.took < _DEADLINE + 1.0
            assert "database" in failure.details or "eadline" in failure.details, failure
