"""A model type in a registry, for benchmarks and fault tests that send a real stability what a real clock says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.registry.v1 import registry_pb2 as registry

TYPE: Final = "modelTypes/ctr"
MODELS: Final = (f"{TYPE}/models/a", f"{TYPE}/models/b")
# Of `click` a missing label is a negative; a `buy` counts with its label.
CLICK, BUY = "click", "buy"
PREDICTIONS: Final = (CLICK, BUY, "like")


async def register(registry_address: str) -> None:
    """Registers the model type with its models; labels come for ten minutes."""
    window = Duration(seconds=600)
    predictions = [registry.Prediction(id=name, attribution_window=window) for name in PREDICTIONS]
    predictions[1].missing_label = registry.Prediction.IGNORED
    spec = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
    async with AsyncClient("127.0.0.1:1", registry=registry_address) as client:
        await client.registry.create_team(team_id="feed", team=registry.Team())
        await client.registry.create_region(region_id="eu", region=registry.Region(agent_address="127.0.0.1:1"))
        made = registry.ModelType(team="teams/feed", regions=["regions/eu"], predictions=predictions)
        await client.registry.create_model_type(model_type_id="ctr", model_type=made)
        for model in MODELS:
            given = registry.Model(serving_spec=spec)
            await client.registry.create_model(parent=TYPE, model_id=model.rsplit("/", 1)[-1], model=given)


@asynccontextmanager
async def stability_at(address: str, **options: Any) -> AsyncIterator[AsyncClient]:
    """Gives a client of a stability that listens there."""
    async with AsyncClient("127.0.0.1:1", stability=address, **options) as client:
        yield client
