"""Capacity with a registry behind it, and the fleet that its tests speak of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.registry.v1 import registry_pb2 as registry_pb
from modelfleetd.capacity.app import build as build_capacity
from modelfleetd.capacity.store import balances
from modelfleetd.kit.app import Service
from modelfleetd.kit.db import Database
from modelfleetd.registry.app import build as build_registry
from tests.support.servers import client_of, running

CPU, GPU = "flavors/cpu", "flavors/gpu"
EU, US = "regions/eu", "regions/us"
POOL = "pools/feed"
CTR = "modelTypes/ctr"
OLD, NEW = f"{CTR}/models/old", f"{CTR}/models/new"


@dataclass(frozen=True)
class CapacityFleet:
    """A registry and capacity, with a client that may do everything."""

    registry: Service
    capacity: Service
    client: AsyncClient
    database_url: str

    async def differences(self) -> list[str]:
        """Where the books do not agree."""
        database = await Database.open(self.database_url, "capacity", max_size=1)
        try:
            return await balances.differences(database)
        finally:
            await database.close()

    async def usage(self, region: str = EU, pool: str = POOL) -> pb.Usage:
        """What a pool uses of the flavor cpu in a region."""
        found = await self.client.capacity.get_pool(name=pool)
        return next(usage for usage in found.usages if (usage.flavor, usage.region) == (CPU, region))


@asynccontextmanager
async def capacity_fleet(
    database_url: str, *, agent_address: str = "127.0.0.1:1", is_new: bool = True, **config: Any
) -> AsyncIterator[CapacityFleet]:
    """Runs both services, capacity with these fields of ServiceConfig.

    Registers a team, two regions, a type with two models; makes two flavors and no pool; unless the database has them.
    """
    async with (
        running("registry", build_registry, database_url) as registry,
        running("capacity", build_capacity, database_url, registry_address=registry.address, **config) as capacity,
        client_of(registry, capacity) as client,
    ):
        if is_new:
            await _register(client, agent_address)
        yield CapacityFleet(registry, capacity, client, database_url)


async def _register(client: AsyncClient, agent_address: str) -> None:
    await client.registry.create_team(team_id="feed", team=registry_pb.Team())
    for region in ("eu", "us"):
        await client.registry.create_region(region_id=region, region=registry_pb.Region(agent_address=agent_address))
    demand = registry_pb.DemandSource(stated=[registry_pb.RegionDemand(region=EU, peak_qps=686.0)])
    route = registry_pb.ModelType(team="teams/feed", regions=[EU], demand_source=demand)
    await client.registry.create_model_type(model_type_id="ctr", model_type=route)
    for flavor, cost in (("cpu", 2.5), ("gpu", 40.0)):
        await client.capacity.create_flavor(flavor_id=flavor, flavor=pb.Flavor(unit_cost=cost))
    spec = ServingSpec(command=["serve", "{port}"], flavor=CPU, units_per_replica=1)
    for model in ("old", "new"):
        await client.registry.create_model(parent=CTR, model_id=model, model=registry_pb.Model(serving_spec=spec))


async def make_pool(client: AsyncClient, units: int = 600, pool_id: str = "feed", region: str = EU) -> pb.Pool:
    """Makes a pool that owns units of the flavor cpu in a region."""
    quotas = [pb.Quota(flavor=CPU, region=region, nominal_units=units)]
    return await client.capacity.create_pool(pool_id=pool_id, pool=pb.Pool(team="teams/feed", quotas=quotas))


def hold(
    launch: str, units: int, *, pool: str = POOL, replaced: tuple[str, ...] = (), region: str = EU
) -> pb.Reservation:
    """What a launch asks for."""
    items = [pb.HoldItem(flavor=CPU, region=region, hold_units=units)]
    return pb.Reservation(pool=pool, launch=f"launches/{launch}", items=items, replaced_models=replaced)


def uses(model: str, units: int, region: str = EU) -> pb.ModelUnits:
    """What a model uses."""
    return pb.ModelUnits(model=model, flavor=CPU, region=region, units=units)
