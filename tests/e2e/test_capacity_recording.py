"""A recording from the wish to the replay: capacity, a real agent with its Envoy, real requests."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import recordings_pb2 as pb
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.recordings import Dataset, Digest, Replay
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.app import build as build_capacity
from modelfleetd.registry.app import build as build_registry
from tests.support.node import Caller, Node, replica_spec, test_run
from tests.support.servers import client_of, running
from tests.support.serving import OLD, serving
from tests.support.wait import until

__all__ = ["test_run"]

pytestmark = pytest.mark.e2e


async def test_live_traffic_becomes_what_a_load_test_replays(database_url: str, tmp_path: Path, test_run: str) -> None:
    root, spec = str(tmp_path / "recordings"), replica_spec()
    requests = [inference.ModelInferRequest(model_name="ranker", id=str(number)) for number in range(100)]
    async with (
        Node(tmp_path / "node", f"{test_run}-{uuid.uuid4().hex[:8]}", "--recordings-uri", root) as node,
        running("registry", build_registry, database_url) as registry,
    ):
        await node.reach(serving({OLD: 1}, spec=spec))
        await node.reach(serving({OLD: 1}, {OLD: 10_000}, spec))
        config: dict[str, Any] = {"registry_address": registry.address, "recordings_uri": root}
        async with (
            running("capacity", build_capacity, database_url, **config) as capacity,
            client_of(registry, capacity) as client,
        ):
            await client.registry.create_team(team_id="feed", team=registry_pb2.Team())
            await client.registry.create_region(
                region_id="testland", region=registry_pb2.Region(agent_address=f"127.0.0.1:{node.port}")
            )
            route = registry_pb2.ModelType(team="teams/feed", regions=["regions/testland"])
            await client.registry.create_model_type(model_type_id="ranker", model_type=route)
            wanted = pb.Recording(
                model_type="modelTypes/ranker", region="regions/testland", sample_permille=1000, max_requests=100
            )
            made = await client.capacity.create_recording(recording=wanted)

            async def copied() -> bool:
                return "request_mirror_policies" in (node.folder / "envoy" / "routes.json").read_text()

            await until(copied, timeout=20)
        # Nobody looks after it: the agent records, and ends it, all the same.
        async with node.caller() as caller:
            await until(lambda: _taken(node, caller, made.name, requests[0]), timeout=20)
            for request in requests[1:]:
                await caller.ask(request=request)

        async def over() -> bool:
            return not (await node.platform.observe_recording(made.name)).active

        await until(over, timeout=20)
        async with (
            running("capacity", build_capacity, database_url, **config) as capacity,
            client_of(registry, capacity) as client,
        ):
            ready = await _ended(client, made.name)
    assert ready.state == pb.Recording.READY, ready.message
    recorded = list(Dataset.open(ready.uri).requests())
    assert len(recorded) == ready.requests == 100
    assert {inference.ModelInferRequest.FromString(request).id for request in recorded} <= {r.id for r in requests}
    digest = Digest()
    for each in recorded:
        digest.add(each)
    assert ready.digest == str(digest)
    async with Replay(Dataset.open(ready.uri)) as replay:
        assert [await anext(replay) for _ in range(150)] == recorded + recorded[:50]


async def _taken(node: Node, caller: Caller, name: str, request: inference.ModelInferRequest) -> bool:
    """Asks once more, until the first copy has arrived."""
    await caller.ask(request=request)
    return (await node.platform.observe_recording(name)).requests > 0


async def _ended(client: AsyncClient, name: str) -> pb.Recording:
    async def ended() -> pb.Recording | None:
        found = await client.capacity.get_recording(name=name)
        return found if found.state in (pb.Recording.READY, pb.Recording.FAILED) else None

    found: pb.Recording | None = await until(ended, timeout=20)
    assert found is not None
    return found
