"""Finding out what a launch needs: again and again while there is no plan, and of many regions at once."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from modelfleetd.kit.db import Database
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.record import PhaseTime
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.estimation import AT_ONCE
from modelfleetd.launcher.store import Store
from modelfleetd.platform.model import ServingObservation
from modelfleetd.platform.simulator import Simulator
from tests.support.launcher import CTR, EU, NEW, OLD, POOL, another_launcher, launcher_fleet
from tests.support.servers import client_of
from tests.support.wait import until


def stored() -> Launch:
    """A launch that nobody has planned yet."""
    now = datetime.now(UTC)
    return Launch(
        name="launches/l1",
        uid=str(uuid.uuid4()),
        model_type=CTR,
        candidate=NEW,
        strategy=Strategy.REPLACE_BASELINE,
        pool=POOL,
        regions=(EU,),
        policy=Policy(bake_duration=timedelta(seconds=0.1), stability_gate=StabilityGate(disabled=True)),
        actor="alice",
        trace_id=uuid.uuid4().hex,
        create_time=now,
        update_time=now,
        baseline=OLD,
        phase_times=(PhaseTime(State.PENDING, now),),
    )


async def test_a_launch_that_cannot_be_planned_leaves_nothing_behind_at_each_attempt(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10, spare=0, launcher=False) as fleet:
        database = await Database.open(database_url, "launcher", max_size=2)
        store = Store(database)
        async with store.transaction() as conn:
            await store.insert(conn, stored())

        async def tried() -> bool:
            return (await store.get("launches/l1")).retries >= 3

        async def counted(what: str) -> int:
            return int(await database.fetchval(f"SELECT count(*) FROM {what}"))

        async with another_launcher(fleet) as launcher, client_of(launcher, *fleet.services.values()) as client:
            await until(tried, 30)
            assert [found async for found in client.capacity.list_estimates_all()] == []
            assert await counted("intents") == 1
            assert await counted("events WHERE type = 'Refused'") == 1
            pool = await client.capacity.get_pool(name=POOL)
            pool.quotas[0].nominal_units += 4
            await client.capacity.update_pool(pool=pool)

            async def over() -> bool:
                return (await store.get("launches/l1")).state is State.SUCCEEDED

            await until(over, 30)
            launch = await client.launcher.get_launch(name="launches/l1")
            assert launch.plan.candidate_estimate and launch.plan.baseline_estimate
        await database.close()


@dataclass
class Asked:
    """How many agents are asked at a time."""

    now: int = 0
    most: int = 0
    as_many_as_may_be: asyncio.Event = field(default_factory=asyncio.Event)


class Slow(Simulator):
    """An agent that answers only once as many are asked as may be."""

    def __init__(self, agent: Simulator, asked: Asked) -> None:
        self._agent = agent
        self._asked = asked

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        self._asked.now += 1
        self._asked.most = max(self._asked.most, self._asked.now)
        if self._asked.now == AT_ONCE:
            self._asked.as_many_as_may_be.set()
        await self._asked.as_many_as_may_be.wait()
        self._asked.now -= 1
        return await self._agent.observe(target, epoch)


async def test_agents_are_asked_together_but_not_all_of_them(database_url: str) -> None:
    names = tuple(f"r{index:02}" for index in range(AT_ONCE + 4))
    async with launcher_fleet(database_url, old=2, new=2, spare=4, regions=names, serving=False) as fleet:
        asked = Asked()
        for address, agent in fleet.platforms.agents.items():
            assert isinstance(agent, Simulator)
            fleet.platforms.agents[address] = Slow(agent, asked)
        planned = await fleet.client.launcher.create_launch(launch=fleet.request(), validate_only=True)
        assert len(planned.plan.regions) == len(names)
        assert asked.most == AT_ONCE
