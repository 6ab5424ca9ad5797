"""A quota is cut below what is used while launches come and go: nothing is taken away, admitted or leaked."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.errors import FailedPrecondition, ResourceExhausted
from tests.support.capacity import CPU, EU, NEW, CapacityFleet, capacity_fleet, hold, uses

TEAMS, UNITS, CLIENTS = ("pools/a", "pools/b"), 60, 24
ROLLED_BACK = pb.SettleReservationRequest.ROLLED_BACK


@dataclass
class Launches:
    """Clients that reserve in both teams, and give back what they got."""

    fleet: CapacityFleet
    draw: random.Random = field(default_factory=lambda: random.Random(11))
    held: list[str] = field(default_factory=list)
    refused: int = 0

    async def run(self, client: int, attempts: int) -> None:
        capacity = self.fleet.client.capacity
        for attempt in range(attempts):
            wanted = hold(f"l{client}-{attempt}", self.draw.randint(1, 25), pool=self.draw.choice(TEAMS))
            wanted.items[0].end_units = 0
            try:
                made = await capacity.create_reservation(reservation=wanted, timeout=30)
            except ResourceExhausted:
                self.refused += 1
                continue
            if self.draw.random() < 0.8:
                await capacity.cancel_reservation(name=made.name, timeout=30)
            else:
                await capacity.activate_reservation(name=made.name, timeout=30)
                self.held.append(made.name)

    async def end(self) -> None:
        while self.held:
            await self.fleet.client.capacity.settle_reservation(name=self.held.pop(), outcome=ROLLED_BACK, timeout=30)


async def set_quota(fleet: CapacityFleet, pool: str, units: int) -> None:
    quota = pb.Quota(flavor=CPU, region=EU, nominal_units=units)
    await fleet.client.capacity.update_pool(pool=pb.Pool(name=pool, quotas=[quota]), timeout=30)


async def used(fleet: CapacityFleet) -> int:
    usages = [await fleet.usage(pool=pool) for pool in TEAMS]
    return sum(usage.serving_units + usage.held_units for usage in usages)


async def test_cuts_below_usage_amid_launches_take_nothing_and_admit_nothing(database_url: str) -> None:
    async with capacity_fleet(database_url) as fleet:
        capacity = fleet.client.capacity
        await capacity.create_pool(pool_id="org", pool=pb.Pool(team="teams/feed"))
        for pool in TEAMS:
            quota = pb.Quota(flavor=CPU, region=EU, nominal_units=UNITS)
            wanted = pb.Pool(team="teams/feed", parent="pools/org", quotas=[quota])
            await capacity.create_pool(pool_id=pool.removeprefix("pools/"), pool=wanted)
        await capacity.book_usage(pool=TEAMS[0], usages=[uses(NEW, 40)])
        launches = Launches(fleet)
        for number in range(3):
            async with asyncio.TaskGroup() as group:
                for client in range(CLIENTS):
                    group.create_task(launches.run(1000 * number + client, 4))
                # In the middle of it, in both teams, there and back.
                for pool in TEAMS:
                    await set_quota(fleet, pool, 5)
                    await set_quota(fleet, pool, UNITS)
            before = await used(fleet)
            for pool in TEAMS:
                await set_quota(fleet, pool, 5)
            assert await used(fleet) == before, "nothing is taken away"
            for pool in TEAMS:
                assert (await fleet.usage(pool=pool)).available_units == 10 - before < 0
                with pytest.raises(ResourceExhausted) as refused:
                    await capacity.create_reservation(reservation=hold(f"cut{number}", 1, pool=pool))
                assert f"{NEW}" in refused.value.metadata["remedy"]
            with pytest.raises((ResourceExhausted, FailedPrecondition)):
                await capacity.book_usage(pool=TEAMS[1], usages=[uses(NEW, 1)])
            # Whoever runs may end as before.
            await launches.end()
            assert await used(fleet) == 40
            for pool in TEAMS:
                await set_quota(fleet, pool, UNITS)
                assert await fleet.differences() == []
        assert launches.refused
        for pool in TEAMS:
            assert (await fleet.usage(pool=pool)).available_units == 2 * UNITS - 40
