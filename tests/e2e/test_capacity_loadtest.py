"""A real load test: a clone behind a real Envoy, until a certificate, and nothing is left of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import recordings_pb2
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.errors import DeadlineExceeded
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.recordings import DatasetWriter
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.kit.db import Database
from tests.support import chance
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


def wanted(model: str, **replayed: Any) -> pb.LoadTest:
    return pb.LoadTest(
        model=model,
        region=EU,
        # A queue with one server keeps this up to some 90 % of 250 requests/s, less what Envoy and this machine add.
        stoppers=pb.Stoppers(
            error_rate=0.004, latencies=[pb.LatencyStopper(percentile=90, latency_ms=15 * SERVICE_MS)]
        ),
        start_qps=180,
        certification_requests=1_000,
        **replayed,
    )


async def recorded(fleet: CapacityFleet, root: Path) -> recordings_pb2.Recording:
    """Requests that a client has recorded."""
    writer = DatasetWriter(str(root / "ctr"), "ctr")
    method = "/inference.GRPCInferenceService/ModelInfer"
    for number in range(200):
        request = inference.ModelInferRequest(model_name="ctr", id=str(number))
        writer.write(request.SerializeToString(), 1_795_716_000_000_000 + number, method)
    writer.complete()
    asked = recordings_pb2.Recording(model_type=CTR, source=recordings_pb2.Recording.CLIENT, path="ctr")
    made = await fleet.client.capacity.create_recording(recording=asked)

    async def is_ready() -> recordings_pb2.Recording | None:
        found = await fleet.client.capacity.get_recording(name=made.name)
        return found if found.state == recordings_pb2.Recording.READY else None

    ready: recordings_pb2.Recording = await until(is_ready, timeout=30)
    return ready


async def ended(fleet: CapacityFleet, name: str) -> list[pb.LoadTest]:
    """Everything that is seen of a load test until it ends; skips on a machine that is too busy to measure on."""
    seen: list[pb.LoadTest] = []
    try:
        async for found in fleet.client.capacity.watch_load_test(name=name, timeout=180):
            seen.append(found)  # noqa: PERF401
    except DeadlineExceeded:
        await fleet.client.capacity.cancel_load_test(name=name)
        pytest.skip(f"three minutes were not enough on this machine: {seen[-1].message}")
    if seen[-1].cause in {pb.LoadTest.GENERATOR_LIMIT, pb.LoadTest.UNSTABLE_LATENCY}:
        pytest.skip(f"this machine is too busy to measure anything, and the load test says so: {seen[-1].message}")
    return seen


# A search, of a dozen runs, takes minutes of a core: its rules are tested by themselves (test_capacity_search_*,
# faults/test_capacity_loadtest), that a real one runs by the cancelled one below, and `make faults` has the whole.
# Also a machine with other work keeps up with the rate that is confirmed: a quarter of what the replica can do.
_BRACKET = (60.0, 63.0)


async def expect_bracket(database_url: str) -> None:
    """Gives load tests what those have whose holder died when its search was over: the next one begins behind it."""
    database = await Database.open(database_url, "capacity", max_size=1)
    try:
        low, high = _BRACKET
        await database.execute(
            f"""ALTER TABLE load_tests ALTER COLUMN highest_within_qps SET DEFAULT {low},
                    ALTER COLUMN lowest_beyond_qps SET DEFAULT {high}"""
        )
    finally:
        await database.close()


_SEARCHES = pytest.mark.parametrize("searches", [False, True] if chance.ALL else [False])


@pytest.mark.faults
@pytest.mark.timeout(300)
@_SEARCHES
async def test_a_load_test_replays_a_recording_to_a_real_replica_ends_in_a_certificate_and_leaves_nothing(
    database_url: str, node: Node, tmp_path: Path, searches: bool
) -> None:
    if not searches:
        await expect_bracket(database_url)
    root = tmp_path / "recordings"
    address = f"127.0.0.1:{node.port}"
    async with capacity_fleet(database_url, agent_address=address, recordings_uri=str(root)) as fleet:
        capacity = fleet.client.capacity
        recording = await recorded(fleet, root)
        made = await capacity.create_load_test(load_test=wanted(await model_of(fleet), recording=recording.name))
        seen = await ended(fleet, made.name)
        last = seen[-1]
        assert [name for name in node.processes() if name != "envoy"] == []
        assert last.state == pb.LoadTest.SUCCEEDED, (last.message, list(last.probes))
        states = [found.state for found in seen]
        wanted_states = [*([pb.LoadTest.SEARCHING] if searches else []), pb.LoadTest.CERTIFYING, pb.LoadTest.SUCCEEDED]
        seen_states = [state for i, state in enumerate(states) if state not in states[:i]]
        assert seen_states[-len(wanted_states) :] == wanted_states
        # What is going on was always said, with a rate and an end.
        trying = [found for found in seen if found.state in (pb.LoadTest.SEARCHING, pb.LoadTest.CERTIFYING)]
        assert all(found.current_qps > 0 and found.HasField("expected_end_time") for found in trying)
        found = await capacity.get_certificate(name=last.certificate)
        assert (found.source, found.load_test, found.flavor) == (pb.Certificate.LOAD_TEST, made.name, CPU)
        assert (found.recording, found.recording_digest) == (recording.name, recording.digest)
        assert (found.region, found.stoppers, found.requests) == (EU, made.stoppers, last.probes[-1].requests)
        model = await fleet.client.registry.get_model(name=made.model)
        assert found.serving_spec_digest == model.serving_spec.digest
        assert found.generator_health.rate_ratio >= 0.98
        assert found.generator_health.cpu_fraction > 0
        # So short a run does not claim to be exact, but one server cannot do more than its service time allows.
        assert found.confidence == 0
        assert last.highest_within_qps == found.max_qps <= 1000 / SERVICE_MS


async def test_cancelling_a_real_load_test_ends_its_clone(database_url: str, node: Node) -> None:
    async with capacity_fleet(database_url, agent_address=f"127.0.0.1:{node.port}") as fleet:
        capacity = fleet.client.capacity
        samples = [inference.ModelInferRequest(model_name="ctr").SerializeToString()]
        made = await capacity.create_load_test(load_test=wanted(await model_of(fleet), sample_requests=samples))

        async def is_searching() -> bool:
            return (await capacity.get_load_test(name=made.name)).state == pb.LoadTest.SEARCHING

        await until(is_searching, timeout=60)
        assert [name for name in node.processes() if name != "envoy"] != []
        cancelled = await capacity.cancel_load_test(name=made.name)
        assert cancelled.state == pb.LoadTest.CANCELLED
        await until(lambda: [name for name in node.processes() if name != "envoy"] == [], timeout=15)
        again = await capacity.cancel_load_test(name=made.name)
        assert again.message == "Cancelled by local."
