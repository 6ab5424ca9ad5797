"""A model that serves, for tests of what is said of it."""

from __future__ import annotations

from modelfleet import AsyncClient
from modelfleet.common.v1.serving_pb2 import ModelShare, RegionSplit, ServingSpec
from modelfleet.registry.v1 import registry_pb2

MODEL = "modelTypes/ctr/models/main"


async def adopt(client: AsyncClient) -> None:
    """Registers a model type with one model, its baseline, which serves all of its traffic."""
    await client.registry.create_team(team_id="feed", team=registry_pb2.Team())
    await client.registry.create_region(region_id="eu", region=registry_pb2.Region(agent_address="127.0.0.1:1"))
    model_type = registry_pb2.ModelType(team="teams/feed", regions=["regions/eu"])
    await client.registry.create_model_type(model_type_id="ctr", model_type=model_type)
    spec = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
    await client.registry.create_model(
        parent="modelTypes/ctr", model_id="main", model=registry_pb2.Model(serving_spec=spec)
    )
    await client.registry.adopt_serving(
        model_type="modelTypes/ctr",
        role_changes=[registry_pb2.RoleChange(model=MODEL, role=registry_pb2.Model.BASELINE)],
        splits=[RegionSplit(region="regions/eu", shares=[ModelShare(model=MODEL, share_basis_points=10_000)])],
    )
