"""A registry is killed around its commits while many write: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
import random
import signal

import pytest

from modelfleetd.kit.db import Database
from tests.support.chance import chosen
from tests.support.processes import registry_process
from tests.support.registry_calls import populate
from tests.support.registry_load import Load, Watcher, caller, state_after, state_of, verified
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

_CALLERS = 12
_LIVES = 2


async def head(url: str) -> int:
    """The newest revision, as the database has it."""
    database = await Database.open(url, "registry", max_size=1)
    try:
        return int(await database.fetchval("SELECT number FROM head"))
    finally:
        await database.close()


@pytest.mark.parametrize("place", chosen(["registry.before_commit.[A-Z]*", "registry.after_commit.[A-Z]*"], 1))
async def test_a_registry_that_dies_at_a_commit_loses_nothing_and_repeats_nothing(
    database_url: str, place: str
) -> None:
    async with registry_process(database_url) as (_, address), caller(address) as registry:
        before = (await populate(registry)).revision
    chance = random.Random(place)
    async with caller(address) as registry:
        load, watcher = Load([registry]), Watcher(registry)
        async with watcher.watching(), load.running(_CALLERS):
            for _ in range(_LIVES):
                # A commit is of several writes at once, so that some of them die in the middle and others wait.
                environment = {"MODELFLEET_FAILPOINT": f"{place}:kill:{chance.randint(5, 15)}"}
                known = len(load.acknowledged)
                async with registry_process(database_url, address, environment) as (process, _):
                    assert await asyncio.wait_for(process.process.wait(), 30) == -signal.SIGKILL
                assert len(load.acknowledged) > known
                told, committed = load.newest, await head(database_url)
                assert committed >= told
                if place == "registry.after_commit.[A-Z]*":
                    assert committed > told, "of the last commit nobody was told"
            # The last life is one without an accident: whoever was cut off learns what became of it.
            async with registry_process(database_url, address):
                await load.acknowledge(2 * _CALLERS)
                await load.finish()
                last = (await registry.ListTeams()).revision
                await until(lambda: watcher.position >= last)
                assert len(load.failures) >= _LIVES

                # Each write is one revision, whether it was answered at once or only when it was repeated.
                assert last == before + len(load.acknowledged)
                watcher.expect_linear(last)
                load.expect_each_once(watcher.revisions)
                assert (await verified(registry)).head.revision == last
                assert await state_of(registry, last) == state_after(watcher.revisions)

                answers = await asyncio.gather(*(write.again(registry) for write in load.acknowledged[-100:]))
                assert answers == [write.answer for write in load.acknowledged[-100:]]
                assert (await registry.ListTeams()).revision == last
