"""Whoever evaluates dies, or is stopped past its lease: no minute is written twice, nothing old over what is newer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from modelfleet import AsyncClient
from modelfleet.errors import ModelfleetError
from modelfleetd.kit.db import Database
from modelfleetd.registry.app import build
from tests.support.processes import stability_process
from tests.support.servers import client_of, running
from tests.support.standings import adopt
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]


@dataclass
class World:
    """A registry with one model that serves, and the database of the evaluation."""

    database: Database
    url: str
    registry: str

    async def evaluation(self) -> dict[str, Any]:
        row = await self.database.fetchrow("SELECT holder, fence, minute FROM evaluation")
        assert row is not None
        return dict(row)

    async def slices(self) -> int:
        """How many minutes of the model have a slice."""
        rows = await self.database.fetch("SELECT minutes FROM slices WHERE slo = 'slos/ctr' AND objective = 3")
        return sum(sum(1 for minute in row["minutes"] if minute) for row in rows)

    async def standings(self) -> list[dict[str, Any]]:
        return [dict(row) for row in await self.database.fetch("SELECT model, minute, standing FROM standings")]

    async def let_lease_end(self) -> None:
        """As if the time of the lease had passed."""
        await self.database.execute("UPDATE evaluation SET expire_time = now()")

    async def is_evaluated(self, after: int | None = None) -> bool:
        minute = (await self.evaluation())["minute"]
        return minute is not None and (after is None or minute > after)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with running("registry", build, database_url) as registry, client_of(registry) as client:
        await adopt(client)
        database = await Database.open(database_url, "stability", max_size=2)
        yield World(database, database_url, registry.address)
        await database.close()


async def evaluate_time(address: str) -> int | None:
    """What a replica says of when the fleet was last evaluated, as a minute; None: not yet."""
    async with AsyncClient("127.0.0.1:1", stability=address) as client:
        try:
            answer = await client.stability.list_model_stabilities()
        except ModelfleetError:
            return None
    return answer.evaluate_time.seconds // 60 if answer.HasField("evaluate_time") else None


async def test_one_that_is_killed_around_its_commit_writes_a_minute_as_a_whole_or_not_at_all(world: World) -> None:
    for place, is_written in (("before_commit", False), ("after_record", True)):
        environment = {"MODELFLEET_FAILPOINT": f"stability.{place}.evaluation:kill"}
        async with stability_process(world.url, world.registry, environment=environment) as (process, _):
            assert await asyncio.wait_for(process.process.wait(), 60) == -signal.SIGKILL
        before = await world.evaluation()
        assert (before["minute"] is not None) == is_written
        assert (await world.slices(), len(await world.standings())) == ((1, 1) if is_written else (0, 0))
        await world.let_lease_end()
    async with stability_process(world.url, world.registry) as (_, address):
        await until(world.is_evaluated, timeout=60)
        after = await world.evaluation()
        # In the same minute there is nothing left to do: what the dead one said is told.
        assert await until(lambda: evaluate_time(address), timeout=60) >= after["minute"]
        assert await world.slices() == (1 if after["minute"] == before["minute"] else 2)


async def test_one_that_was_stopped_past_its_lease_writes_nothing_when_it_goes_on(world: World) -> None:
    environment = {"MODELFLEET_FAILPOINT": "stability.before_record.evaluation:stop"}
    async with stability_process(world.url, world.registry, environment=environment) as (stopped, its_address):
        await until(lambda: _is_stopped(stopped.process.pid), timeout=60)
        old = await world.evaluation()
        assert old["minute"] is None
        await world.let_lease_end()
        async with stability_process(world.url, world.registry):
            await until(world.is_evaluated, timeout=60)
            new, written, slices = await world.evaluation(), await world.standings(), await world.slices()
            assert new["holder"] != old["holder"]
            assert new["fence"] == old["fence"] + 1
            os.kill(stopped.process.pid, signal.SIGCONT)
            # It learns that it is not in charge any more, and tells what the other one found.
            assert await until(lambda: evaluate_time(its_address), timeout=60) >= new["minute"]
            now = await world.evaluation()
            assert (now["holder"], now["fence"]) == (new["holder"], new["fence"])
            if now["minute"] == new["minute"]:
                assert (await world.standings(), await world.slices()) == (written, slices)


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0] == "T"
