"""Recordings over gRPC: asked for, recorded by an agent or a client, read, stopped, deleted, expired."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from modelfleet import AsyncClient, errors
from modelfleet.capacity.v1 import capacity_pb2 as capacity_pb
from modelfleet.capacity.v1 import recordings_pb2 as pb
from modelfleet.recordings import Dataset, DatasetWriter
from modelfleet.registry.v1 import registry_pb2 as registry_pb
from modelfleetd.capacity.domain.recording import Progress, State
from modelfleetd.capacity.store import recordings as store
from modelfleetd.capacity.wire.recordings import wanted_from_proto
from modelfleetd.clock import SystemClock
from modelfleetd.errors import InvalidFields
from modelfleetd.kit.db import Database
from modelfleetd.platform.model import DesiredModel, DesiredServing, Fence, ModelShare, ServingSpec, TargetKind
from modelfleetd.platform.simulator import Behaviour, Simulator
from tests.support.capacity import CTR, EU, OLD, CapacityFleet, capacity_fleet
from tests.support.simulated_agent import simulated_agent
from tests.support.wait import until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def simulator() -> Simulator:
    """An agent in the time of the test that serves 2,000 requests a second."""
    quick = Behaviour((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), requests_per_second=2_000)
    simulator = Simulator(SystemClock(), behaviour=quick, region=EU)
    models = (DesiredModel(OLD, ServingSpec(command=("serve",), flavor="flavors/cpu"), 1),)
    await simulator.apply("targets/ctr", TargetKind.ROUTE, Fence(1, "start"), DesiredServing(models))

    async def up() -> bool:
        return (await simulator.observe("targets/ctr")).model(OLD).available_replicas == 1

    await until(up)
    shares = (ModelShare(OLD, 10_000),)
    await simulator.apply("targets/ctr", TargetKind.ROUTE, Fence(1, "split"), DesiredServing(models, shares))
    return simulator


@pytest.fixture
async def fleet(simulator: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[CapacityFleet]:
    """Capacity with that agent in the region eu, and recordings in the test's folder."""
    async with (
        simulated_agent(simulator) as address,
        capacity_fleet(database_url, agent_address=address, recordings_uri=str(tmp_path)) as running,
    ):
        yield running


def tap(**fields: object) -> pb.Recording:
    return pb.Recording(**{"model_type": CTR, "region": EU, "sample_permille": 1_000, **fields})  # type: ignore[arg-type]


async def reached(client: AsyncClient, name: str, *states: pb.Recording.State.ValueType) -> pb.Recording:
    async def there() -> pb.Recording | None:
        found = await client.capacity.get_recording(name=name)
        return found if found.state in states else None

    found: pb.Recording | None = await until(there, timeout=20)
    assert found is not None
    return found


async def gone(client: AsyncClient, path: Path) -> None:
    await until(lambda: not path.exists(), timeout=20)


def write_dataset(folder: Path, requests: list[bytes]) -> str:
    writer = DatasetWriter(str(folder), "ctr")
    for index, request in enumerate(requests):
        writer.write(request, 1_795_690_800_000_000 + index, "/inference.GRPCInferenceService/ModelInfer")
    writer.complete()
    return Dataset.open(str(folder)).summarize().digest


async def test_an_agent_records_until_a_limit_and_what_it_recorded_is_read(
    fleet: CapacityFleet, tmp_path: Path
) -> None:
    made = await fleet.client.capacity.create_recording(recording=tap(max_requests=500))
    assert (made.state, made.source, made.max_bytes) == (pb.Recording.PENDING, pb.Recording.TAP, 1 << 30)
    assert made.uri == str(tmp_path / made.name.partition("/")[2])
    ready = await reached(fleet.client, made.name, pb.Recording.READY)
    assert (ready.requests, ready.message, ready.dropped_requests) == (500, "500 requests are recorded.", 0)
    summary = Dataset.open(ready.uri).summarize()
    assert (ready.digest, ready.bytes) == (summary.digest, summary.bytes)
    assert ready.last_request_time.ToMicroseconds() == summary.last_us
    kept = ready.expire_time.ToDatetime() - ready.end_time.ToDatetime()
    assert kept == timedelta(days=30)
    listed = await fleet.client.capacity.list_recordings(model_type=CTR)
    assert list(listed.recordings) == [ready]
    assert not (await fleet.client.capacity.list_recordings(model_type="modelTypes/other")).recordings
    await fleet.client.capacity.delete_recording(name=ready.name)
    with pytest.raises(errors.NotFound):
        await fleet.client.capacity.get_recording(name=ready.name)
    await gone(fleet.client, Path(ready.uri))


async def test_a_recording_can_be_stopped_and_stopping_again_is_nothing(fleet: CapacityFleet) -> None:
    made = await fleet.client.capacity.create_recording(recording=tap())
    with pytest.raises(errors.FailedPrecondition) as refused:
        await fleet.client.capacity.delete_recording(name=made.name)
    assert refused.value.reason == "WRONG_STATE"
    recording = await reached(fleet.client, made.name, pb.Recording.RECORDING)
    await until(lambda: _requests(fleet.client, recording.name), timeout=20)
    await fleet.client.capacity.stop_recording(name=made.name)
    ready = await reached(fleet.client, made.name, pb.Recording.READY)
    assert ready.requests > 0
    assert ready.message == "It was stopped."
    assert await fleet.client.capacity.stop_recording(name=made.name) == ready


async def _requests(client: AsyncClient, name: str) -> int:
    return (await client.capacity.get_recording(name=name)).requests


async def test_what_a_client_has_recorded_is_checked_and_read(fleet: CapacityFleet, tmp_path: Path) -> None:
    digest = write_dataset(tmp_path / "ctr" / "2026-11", [b"one", b"two"])
    theirs = pb.Recording(model_type=CTR, source=pb.Recording.CLIENT, path="ctr/2026-11")
    made = await fleet.client.capacity.create_recording(recording=theirs)
    ready = await reached(fleet.client, made.name, pb.Recording.READY)
    assert (ready.requests, ready.bytes, ready.digest) == (2, 6, digest)
    assert (ready.path, ready.region) == ("ctr/2026-11", "")
    # A dataset belongs to one recording, which deletes it.
    for path in ("ctr/2026-11", "ctr"):
        with pytest.raises(errors.InvalidArgument, match=ready.name):
            await fleet.client.capacity.create_recording(
                recording=pb.Recording(model_type=CTR, source=pb.Recording.CLIENT, path=path)
            )


async def test_what_is_no_dataset_is_refused_and_a_damaged_one_fails(fleet: CapacityFleet, tmp_path: Path) -> None:
    with pytest.raises(errors.FailedPrecondition, match="there is no dataset") as refused:
        await fleet.client.capacity.create_recording(
            recording=pb.Recording(model_type=CTR, source=pb.Recording.CLIENT, path="nothing")
        )
    assert refused.value.reason == "RECORDING_UNREADABLE"
    (tmp_path / "outside").symlink_to("/")
    with pytest.raises(errors.FailedPrecondition, match="not beneath the root"):
        await fleet.client.capacity.create_recording(
            recording=pb.Recording(model_type=CTR, source=pb.Recording.CLIENT, path="outside/etc")
        )
    write_dataset(tmp_path / "theirs", [b"a"])
    (tmp_path / "theirs" / "model_type=ctr").rename(tmp_path / "theirs" / "model_type=other")
    with pytest.raises(errors.FailedPrecondition, match="requests of other, not of ctr alone"):
        await fleet.client.capacity.create_recording(
            recording=pb.Recording(model_type=CTR, source=pb.Recording.CLIENT, path="theirs")
        )
    write_dataset(tmp_path / "damaged", [b"a"])
    (part,) = (tmp_path / "damaged").rglob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    made = await fleet.client.capacity.create_recording(
        recording=pb.Recording(model_type=CTR, source=pb.Recording.CLIENT, path="damaged")
    )
    failed = await reached(fleet.client, made.name, pb.Recording.FAILED)
    assert failed.message.startswith("It cannot be read")
    assert failed.digest == ""


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"sample_permille": 1_001}, "recording.sample_permille"),
        ({"sample_permille": -1}, "recording.sample_permille"),
        ({"max_bytes": 5}, "recording.max_bytes"),
        ({"max_requests": -1}, "recording.max_requests"),
        ({"max_duration": timedelta(days=8)}, "recording.max_duration"),
        ({"retention_duration": timedelta(minutes=1)}, "recording.retention_duration"),
        ({"region": ""}, "recording.region"),
        ({"path": "x"}, "recording.path"),
        *(
            ({"source": pb.Recording.CLIENT, "path": path}, "recording.path")
            for path in ("", "/abs", "a//b", "../up", "a/../b", "a/.", "..", "s3://b/x", "a b", "x" * 201, "a/")
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_field(fields: dict[str, object], path: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        wanted_from_proto(tap(**fields))
    assert [violation.path for violation in refused.value.violations] == [path]


async def test_what_it_refers_to_has_to_be_there(fleet: CapacityFleet) -> None:
    for wrong in (tap(region="regions/nope"), pb.Recording(model_type="modelTypes/nope", region=EU)):
        with pytest.raises(errors.FailedPrecondition) as refused:
            await fleet.client.capacity.create_recording(recording=wrong)
        assert refused.value.reason == "REFERENCE_NOT_FOUND"
    await fleet.client.registry.create_model_type(
        model_type_id="unserved", model_type=registry_pb.ModelType(team="teams/feed")
    )
    made = await fleet.client.capacity.create_recording(recording=tap(model_type="modelTypes/unserved"))
    failed = await reached(fleet.client, made.name, pb.Recording.FAILED)
    assert failed.message == "modelTypes/unserved is not served in regions/eu: there is nothing to record."


async def test_without_a_root_there_are_no_recordings(database_url: str) -> None:
    async with capacity_fleet(database_url) as running:
        with pytest.raises(errors.FailedPrecondition, match="--recordings-uri") as refused:
            await running.client.capacity.create_recording(recording=tap())
        assert refused.value.reason == "NOT_CONFIGURED"


async def test_what_a_load_test_replays_is_not_deleted(fleet: CapacityFleet, simulator: Simulator) -> None:
    made = await fleet.client.capacity.create_recording(recording=tap(max_requests=10))
    ready = await reached(fleet.client, made.name, pb.Recording.READY)
    async with replaying(fleet, simulator, ready.name) as load_test:
        with pytest.raises(errors.FailedPrecondition, match=load_test) as refused:
            await fleet.client.capacity.delete_recording(name=ready.name)
        assert refused.value.reason == "RESOURCE_IN_USE"
    await fleet.client.capacity.delete_recording(name=ready.name)


@asynccontextmanager
async def replaying(fleet: CapacityFleet, simulator: Simulator, recording: str) -> AsyncIterator[str]:
    """A load test that replays a recording, and waits for its agent."""
    simulator.partitioned = True
    wanted = capacity_pb.LoadTest(model=OLD, region=EU, recording=recording)
    made = await fleet.client.capacity.create_load_test(load_test=wanted)
    yield made.name
    await fleet.client.capacity.cancel_load_test(name=made.name)
    simulator.partitioned = False


async def test_an_agent_that_comes_back_is_asked_again(fleet: CapacityFleet, simulator: Simulator) -> None:
    simulator.partitioned = True
    made = await fleet.client.capacity.create_recording(recording=tap(max_requests=100))
    await until(lambda: _says(fleet.client, made.name, "does not answer"), timeout=20)
    assert (await fleet.client.capacity.get_recording(name=made.name)).state == pb.Recording.PENDING
    simulator.partitioned = False
    assert (await reached(fleet.client, made.name, pb.Recording.READY)).requests == 100


async def _says(client: AsyncClient, name: str, words: str) -> bool:
    return words in (await client.capacity.get_recording(name=name)).message


async def test_a_holder_that_was_stalled_may_write_nothing_any_more(
    fleet: CapacityFleet, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.partitioned = True
    made = await fleet.client.capacity.create_recording(recording=tap(max_requests=100))
    await until(lambda: _says(fleet.client, made.name, "does not answer"), timeout=20)
    database = await Database.open(fleet.database_url, "capacity", max_size=2)
    try:
        async with database.transaction() as conn:
            await conn.execute("UPDATE recordings SET look_time = now() - interval '1 minute'")
            stalled = await store.claim(conn, 0.0)
            assert stalled is not None
        async with database.transaction() as conn:
            newer = await store.claim(conn, 600.0)
            assert newer is not None
            progress = Progress("late")
            assert not await store.renew(conn, stalled, 60.0)
            assert not await store.advance(conn, stalled, State.FAILED, progress)
            assert await store.advance(conn, newer, State.FAILED, progress)
    finally:
        await database.close()


async def test_what_is_older_than_it_was_to_become_goes_with_its_dataset(
    fleet: CapacityFleet, simulator: Simulator
) -> None:
    made = await fleet.client.capacity.create_recording(recording=tap(max_requests=10))
    ready = await reached(fleet.client, made.name, pb.Recording.READY)
    database = await Database.open(fleet.database_url, "capacity", max_size=1)
    try:
        await database.execute("UPDATE recordings SET expire_time = now() - interval '1 s'")
        async with replaying(fleet, simulator, ready.name), database.transaction() as conn:
            assert await store.expire_one(conn) is None, "not while it is replayed"
        async with database.transaction() as conn:
            assert await store.expire_one(conn) == ready.name
    finally:
        await database.close()
    await gone(fleet.client, Path(ready.uri))
    with pytest.raises(errors.NotFound):
        await fleet.client.capacity.get_recording(name=ready.name)


async def test_a_repeated_call_answers_the_same(fleet: CapacityFleet) -> None:
    key = "0c2a5e7c-6f0e-4f5b-8f5e-0a4c7f3b9d10"
    first = await fleet.client.capacity.create_recording(recording=tap(), request_id=key)
    again = await fleet.client.capacity.create_recording(recording=tap(), request_id=key)
    assert again == first
    assert len((await fleet.client.capacity.list_recordings()).recordings) == 1
    with pytest.raises(errors.AlreadyExists):
        await fleet.client.capacity.create_recording(recording=tap(max_requests=1), request_id=key)
