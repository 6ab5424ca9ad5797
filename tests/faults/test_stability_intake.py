"""Stability dies, PostgreSQL dies, answers get lost: what was acknowledged is in the tables once, to the last bit."""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support.chance import chosen
from tests.support.postgres import Postgres
from tests.support.processes import registry_process, stability_process
from tests.support.stability_load import Load, register, stability_at, stored

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_PRODUCERS = 6


@pytest.mark.parametrize("place", chosen(["stability.before_commit.batch", "stability.after_commit.batch"], 1))
async def test_a_service_that_dies_at_a_commit_loses_nothing_and_counts_nothing_twice(
    database_url: str, place: str
) -> None:
    chance = random.Random(place)
    async with registry_process(database_url) as (_, registry):
        await register(registry)
        environment = {"MODELFLEET_FAILPOINT": f"{place}:kill:{chance.randint(8, 20)}"}
        # The service outlives the producers.
        async with AsyncExitStack() as stack:
            process, address = await stack.enter_async_context(
                stability_process(database_url, registry, environment=environment)
            )
            load = Load([await stack.enter_async_context(stability_at(address))])
            async with load.running(_PRODUCERS):
                assert await asyncio.wait_for(process.process.wait(), 60) == -signal.SIGKILL
                # Another life, without an accident: whoever was cut off learns what became of it.
                await stack.enter_async_context(stability_process(database_url, registry, address))
                await load.acknowledge(4 * _PRODUCERS)
    assert load.failures.total() > 0
    if place == "stability.after_commit.batch":
        assert load.repeated >= 1, "of a commit nobody was told, and it was not written again"
    assert await stored(database_url) == load.expected()


async def test_a_crash_of_postgresql_costs_two_replicas_nothing_and_neither_do_answers_that_come_too_late(
    postgres: Postgres, database_url: str
) -> None:
    await _keep_what_is_committed(database_url)
    async with AsyncExitStack() as stack:
        _, registry = await stack.enter_async_context(registry_process(database_url))
        await register(registry)
        replicas = [await stack.enter_async_context(stability_process(database_url, registry)) for _ in range(2)]
        clients = [await stack.enter_async_context(stability_at(address)) for _, address in replicas]
        # Too little time for many a first attempt: it is repeated at the other replica, while this one may write it.
        load = Load(clients, first_timeout=0.03)
        async with load.running(_PRODUCERS):
            for _ in range(2):
                await load.acknowledge(3 * _PRODUCERS)
                await asyncio.to_thread(postgres.stop, "immediate")
                try:
                    await load.fail(2 * _PRODUCERS)
                finally:
                    await asyncio.to_thread(postgres.start)
            await load.acknowledge(3 * _PRODUCERS)
            await load.repeat(3)
        assert all(process.process.returncode is None for process, _ in replicas), "both live on"
    assert load.failures["Unavailable"] > 0
    assert load.failures["DeadlineExceeded"] > 0
    assert await stored(database_url) == load.expected()


async def _keep_what_is_committed(url: str) -> None:
    """Has commits of a database wait for the log, as in production; the tests' server does without otherwise."""
    conn = await asyncpg.connect(url)
    await conn.execute(f"ALTER DATABASE {urlsplit(url).path.strip('/')} SET synchronous_commit = on")
    await conn.close()
