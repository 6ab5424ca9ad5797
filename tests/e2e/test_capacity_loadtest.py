"""A real load test: a clone behind a real Envoy, until a certificate, and nothing is left of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.domain.loadtest import Cause
from tests.support.capacity import CPU, CTR, EU, CapacityFleet, capacity_fleet
from tests.support.node import Node, node, test_run
from tests.support.wait import until

__all__ = ["node", "test_run"]

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SERVICE_MS = 4.0
SERVER = Path(__file__).parents[1] / "support" / "serial_server.py"


async def model_of(fleet: CapacityFleet) -> str:
    """A model whose replicas serve one request at a time."""
    arguments = [sys.executable, str(SERVER), "--port", "{port}", "--model", "{model_type}"]
    spec = ServingSpec(
        command=[*arguments, "--service-ms", str(SERVICE_MS)],
        flavor=CPU,
        environment={"PYTHONPATH": os.pathsep.join(sys.path)},
        drain_timeout=Duration(seconds=1),
    )
    model = registry_pb2.Model(serving_spec=spec)
    return (await fleet.client.registry.create_model(parent=CTR, model_id="serial", model=model)).name


def wanted(model: str) -> pb.LoadTest:
    return pb.LoadTest(
        model=model,
        region=EU,
        sample_requests=[inference.ModelInferRequest(model_name="ctr").SerializeToString()],
        # A queue with one server keeps this up to 85 % of 250 requests/s, less what Envoy and this machine add.
        stoppers=pb.Stoppers(latency_p99_ms=15 * SERVICE_MS, error_rate=0.004),
        start_qps=180,
        certification_requests=1_000,
    )


async def test_a_load_test_of_a_real_replica_ends_in_a_certificate_and_leaves_nothing(
    database_url: str, node: Node
) -> None:
    async with capacity_fleet(database_url, agent_address=f"127.0.0.1:{node.port}") as fleet:
        capacity = fleet.client.capacity
        made = await capacity.create_load_test(load_test=wanted(await model_of(fleet)))
        states, last = [], made
        async for last in capacity.watch_load_test(name=made.name, timeout=110):
            states.append(last.state)
        assert [name for name in node.processes() if name != "envoy"] == []
        if last.state == pb.LoadTest.FAILED and Cause.GENERATOR_LIMIT.advice in last.message:
            pytest.skip("this machine is too busy to measure anything, and the load test says so")
        assert last.state == pb.LoadTest.SUCCEEDED, (last.message, list(last.probes))
        assert [state for i, state in enumerate(states) if state not in states[:i]][-3:] == [
            pb.LoadTest.SEARCHING,
            pb.LoadTest.CERTIFYING,
            pb.LoadTest.SUCCEEDED,
        ]
        found = await capacity.get_certificate(name=last.certificate)
        assert (found.source, found.load_test, found.flavor) == (pb.Certificate.LOAD_TEST, made.name, CPU)
        # So short a run does not claim to be exact, but one server cannot do more than its service time allows.
        assert found.confidence == 0
        assert found.max_qps <= 0.95 * 1000 / SERVICE_MS


async def test_cancelling_a_real_load_test_ends_its_clone(database_url: str, node: Node) -> None:
    async with capacity_fleet(database_url, agent_address=f"127.0.0.1:{node.port}") as fleet:
        capacity = fleet.client.capacity
        made = await capacity.create_load_test(load_test=wanted(await model_of(fleet)))

        async def is_searching() -> bool:
            return (await capacity.get_load_test(name=made.name)).state == pb.LoadTest.SEARCHING

        await until(is_searching, timeout=30)
        assert [name for name in node.processes() if name != "envoy"] != []
        cancelled = await capacity.cancel_load_test(name=made.name)
        assert cancelled.state == pb.LoadTest.CANCELLED
        await until(lambda: [name for name in node.processes() if name != "envoy"] == [], timeout=15)
        again = await capacity.cancel_load_test(name=made.name)
        assert again.message == "Cancelled by local."
