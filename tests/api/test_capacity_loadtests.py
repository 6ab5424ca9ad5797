"""Load tests over gRPC: what is asked for and shown, what is refused, and many who watch the same one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.errors import FailedPrecondition, InvalidArgument
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.recordings import Digest
from modelfleetd.capacity.domain.loadtest import Outcome, Probe, State, Stoppers, digest_of
from modelfleetd.capacity.domain.loadtest import Wanted as WantedTest
from modelfleetd.capacity.domain.recording import Source, Wanted
from modelfleetd.capacity.store import loadtests, recordings
from modelfleetd.capacity.store.loadtests import Progress
from modelfleetd.kit.db import Database
from tests.support.capacity import CPU, CTR, EU, NEW, CapacityFleet, capacity_fleet
from tests.support.wait import until

SAMPLE, OTHER = (inference.ModelInferRequest(model_name="ctr", id=one).SerializeToString() for one in ("1", "2"))
NOW = datetime(2026, 11, 26, 18, 0, tzinfo=UTC)


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[CapacityFleet]:
    """Nothing listens where the region's agent should: load tests wait for it."""
    async with capacity_fleet(database_url) as running:
        yield running


@pytest.fixture
async def database(fleet: CapacityFleet) -> AsyncIterator[Database]:
    opened = await Database.open(fleet.database_url, "capacity", max_size=2)
    yield opened
    await opened.close()


def asked(**fields: Any) -> pb.LoadTest:
    samples = fields.pop("sample_requests", [SAMPLE])
    return pb.LoadTest(model=NEW, region=EU, sample_requests=samples, **fields)


async def record(
    database: Database, name: str, state: str, *, model_type: str = CTR, digest: str = "sha256:ab"
) -> None:
    """Stores a recording that is in a state."""
    async with database.transaction() as conn:
        wanted = Wanted(model_type, EU, Source.TAP)
        await recordings.insert(conn, name, wanted, f"/nowhere/{name}", "alice")
        await conn.execute(
            """UPDATE recordings SET state = $2, message = 'Nothing arrived.', digest = $3, look_time = 'infinity',
                   end_time = CASE WHEN $2 IN ('READY', 'FAILED') THEN now() END WHERE name = $1""",
            name,
            state,
            digest if state == "READY" else "",
        )


async def test_what_is_asked_for_is_shown_with_the_defaults_of_the_rest(fleet: CapacityFleet) -> None:
    stoppers = pb.Stoppers(latency_p99_ms=60, latencies=[pb.LatencyStopper(percentile=50, latency_ms=20)])
    made = await fleet.client.capacity.create_load_test(
        load_test=asked(
            stoppers=stoppers,
            sample_requests=[SAMPLE, OTHER],
            warm_up_duration=Duration(seconds=20),
            validity_duration=Duration(seconds=7200),
        )
    )
    found = await fleet.client.capacity.get_load_test(name=made.name)
    for test in (made, found):
        assert (test.start_qps, test.certification_requests, test.flavor) == (50.0, 50_000, CPU)
        assert (test.stoppers.latency_p99_ms, test.stoppers.error_rate) == (60, 0.001)
        assert list(test.stoppers.latencies) == list(stoppers.latencies)
        assert (test.warm_up_duration.seconds, test.validity_duration.seconds) == (20, 7200)
        assert not test.sample_requests
        digest = Digest()
        digest.add(SAMPLE)
        digest.add(OTHER)
        assert test.recording_digest == str(digest) == digest_of([SAMPLE, OTHER])
    assert made.state == pb.LoadTest.PENDING
    assert not made.HasField("start_time")
    default = await fleet.client.capacity.create_load_test(load_test=asked())
    assert not default.HasField("warm_up_duration")
    assert default.validity_duration.seconds == 90 * 86400


async def test_everything_that_is_wrong_is_said_at_once(fleet: CapacityFleet) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await fleet.client.capacity.create_load_test(
            load_test=asked(
                recording="recordings/r1",
                start_qps=0.01,
                certification_requests=10,
                warm_up_duration=Duration(seconds=3600),
                validity_duration=Duration(seconds=60),
            )
        )
    assert {one.field.removeprefix("load_test."): one.description for one in refused.value.violations} == {
        "recording": "give this or sample_requests, not both",
        "start_qps": "must be 0 (the default) or 0.1 to 1,000,000",
        "certification_requests": "must be 3,689 to 1,000,000, or unset (the default): "
        "fewer cannot confirm an error rate of 0.001",
        "warm_up_duration": "must be unset (the default) or up to 30 min",
        "validity_duration": "must be unset (90 d) or 1 h to 365 d",
    }
    # A script, nothing at all, and bytes that parse as a field that no request has.
    wrong = [b"#!/bin/sh\nexit 0\n", SAMPLE, b"", b"\xfa\x06\x01x"]
    with pytest.raises(InvalidArgument) as refused:
        await fleet.client.capacity.create_load_test(load_test=asked(sample_requests=wrong, start_qps=0.01))
    assert [one.field for one in refused.value.violations] == [
        "load_test.start_qps",
        *(f"load_test.sample_requests[{index}]" for index in (0, 2, 3)),
    ]
    assert refused.value.violations[1].description == "must be an inference.ModelInferRequest in bytes"
    limits = [pb.LatencyStopper(percentile=40, latency_ms=1), pb.LatencyStopper(percentile=99)]
    with pytest.raises(InvalidArgument) as refused:
        await fleet.client.capacity.create_load_test(load_test=asked(stoppers=pb.Stoppers(latencies=limits)))
    assert [one.field for one in refused.value.violations] == [
        "load_test.stoppers.latencies[0].percentile",
        "load_test.stoppers.latencies[1].latency_ms",
    ]


async def test_only_a_recording_of_the_same_type_that_is_ready_can_be_replayed(
    fleet: CapacityFleet, database: Database
) -> None:
    create = fleet.client.capacity.create_load_test
    for state in ("PENDING", "RECORDING", "FAILED", "READY"):
        await record(database, f"recordings/{state.lower()}", state)
    await record(database, "recordings/other", "READY", model_type="modelTypes/other")
    with pytest.raises(FailedPrecondition, match="recordings/nope, which does not exist"):
        await create(load_test=asked(sample_requests=[], recording="recordings/nope"))
    with pytest.raises(InvalidArgument, match="is of modelTypes/other; the model is of modelTypes/ctr"):
        await create(load_test=asked(sample_requests=[], recording="recordings/other"))
    for state, why in (
        ("pending", "it has not begun"),
        ("recording", "it still records; stop it first"),
        ("failed", "it has failed: Nothing arrived."),
    ):
        with pytest.raises(FailedPrecondition, match=why) as refused:
            await create(load_test=asked(sample_requests=[], recording=f"recordings/{state}"))
        assert refused.value.reason == "RECORDING_UNREADABLE"
    made = await create(load_test=asked(sample_requests=[], recording="recordings/ready"))
    assert (made.recording, made.recording_digest) == ("recordings/ready", "sha256:ab")
    # It stays for as long as it is replayed.
    with pytest.raises(FailedPrecondition, match=made.name):
        await fleet.client.capacity.delete_recording(name="recordings/ready")
    await fleet.client.capacity.cancel_load_test(name=made.name)
    await fleet.client.capacity.delete_recording(name="recordings/ready")


async def test_the_next_load_test_of_a_type_begins_at_its_newest_certificate(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    await capacity.create_certificate(certificate=pb.Certificate(model=f"{CTR}/models/old", flavor=CPU, max_qps=321))
    assert (await capacity.create_load_test(load_test=asked())).start_qps == 321
    assert (await capacity.create_load_test(load_test=asked(start_qps=12))).start_qps == 12


async def test_who_waits_is_told_his_place_and_what_is_under_way(fleet: CapacityFleet, database: Database) -> None:
    capacity, names = fleet.client.capacity, [f"loadTests/t{number}" for number in (1, 2, 3)]
    async with database.transaction() as conn:
        for name in names:
            await loadtests.insert(conn, name, WantedTest(NEW, EU, CPU, (SAMPLE,), Stoppers(), 50.0, 50_000), "alice")
        # None is taken by the service's own worker; the first one was begun.
        await conn.execute(
            """UPDATE load_tests SET lease_expire_time = now() + interval '1 hour',
                   attempt = CASE WHEN name = $1 THEN 1 ELSE 0 END""",
            names[0],
        )
    said = {one.name: one.message async for one in capacity.list_load_tests_all()}
    assert said[names[1]] == "Waits for its turn: number 1 in line, behind loadTests/t1, which is under way."
    assert said[names[2]] == "Waits for its turn: number 2 in line, behind loadTests/t1, which is under way."
    watch = capacity.watch_load_test(name=names[2])
    assert (await anext(watch)).message == said[names[2]] == (await capacity.get_load_test(name=names[2])).message
    await capacity.cancel_load_test(name=names[1])
    assert (await anext(watch)).message == said[names[1]]
    await capacity.cancel_load_test(name=names[0])
    assert (await anext(watch)).message == "Waits for its turn."


async def test_progress_is_shown_as_it_was_recorded_and_samples_are_forgotten_at_the_end(
    fleet: CapacityFleet, database: Database
) -> None:
    capacity = fleet.client.capacity
    name = (await capacity.create_load_test(load_test=asked())).name
    epoch = await _held(database, name)
    probe = Probe(
        50.0, 49.9, 5000, 2, 12.0, Outcome.WITHIN, False, "WITHIN: …", 3.0, 6.0, 20.0, 0.5, NOW, NOW, 1.0, 0.25
    )
    async with database.transaction() as conn:
        now = Progress(State.SEARCHING, "Trying 55 requests/s.", 55.0, 50.0, 0.0, NOW + timedelta(minutes=5))
        assert await loadtests.progress(conn, name, epoch, now, probe)
    found = await capacity.get_load_test(name=name)
    assert (found.state, found.message, found.attempt) == (pb.LoadTest.SEARCHING, "Trying 55 requests/s.", 1)
    assert (found.current_qps, found.highest_within_qps, found.lowest_beyond_qps) == (55.0, 50.0, 0.0)
    assert found.expected_end_time.ToDatetime(tzinfo=UTC) == NOW + timedelta(minutes=5)
    (shown,) = found.probes
    assert (shown.latency_p50_ms, shown.latency_p90_ms, shown.latency_p99_ms, shown.latency_p999_ms) == (3, 6, 12, 20)
    assert (shown.send_late_p99_ms, shown.generator_cpu_fraction, shown.errors) == (0.5, 0.25, 2)
    assert shown.start_time.ToDatetime(tzinfo=UTC) == NOW
    cancelled = await capacity.cancel_load_test(name=name)
    assert (cancelled.state, cancelled.current_qps) == (pb.LoadTest.CANCELLED, 0)
    assert not cancelled.HasField("expected_end_time")
    # What was found stays, what was sent does not.
    assert len(cancelled.probes) == 1
    assert await database.fetchval("SELECT cardinality(sample_requests) FROM load_tests WHERE name = $1", name) == 0
    assert [one.name async for one in capacity.list_load_tests_all(model=NEW)] == [name]


async def test_however_many_watch_a_load_test_it_is_looked_at_four_times_a_second(
    fleet: CapacityFleet, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    capacity = fleet.client.capacity
    name = (await capacity.create_load_test(load_test=asked())).name
    epoch = await _held(database, name)
    looks = 0
    version = loadtests.version

    async def counted(reads: Any, of: str) -> int | None:
        nonlocal looks
        looks += 1
        return await version(reads, of)

    monkeypatch.setattr(loadtests, "version", counted)
    seen: list[list[float]] = [[] for _ in range(12)]

    async def watch(rates: list[float]) -> None:
        async for found in capacity.watch_load_test(name=name):
            rates += [found.current_qps]

    begun = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as watchers:
        for rates in seen:
            watchers.create_task(watch(rates))
        wanted: list[float] = []
        for rate in (50.0, 55.0, 64.0):
            async with database.transaction() as conn:
                assert await loadtests.progress(conn, name, epoch, Progress(State.SEARCHING, "", rate))
            wanted.append(rate)
            await until(lambda: all([rate for rate in rates if rate] == wanted for rates in seen))
        await capacity.cancel_load_test(name=name)
    seconds = asyncio.get_running_loop().time() - begun
    assert looks <= 4 * seconds + 2
    # Each change reached everybody, the end too.
    assert all(rates[-1] == 0 for rates in seen)


async def _held(database: Database, name: str) -> int:
    """Takes a load test from the service's own worker, for long; returns the epoch."""
    row = await database.fetchrow(
        """UPDATE load_tests SET epoch = nextval('fence'), attempt = 1, start_time = now(), lease_holder = 'test',
               lease_expire_time = now() + interval '1 hour' WHERE name = $1 RETURNING epoch""",
        name,
    )
    assert row is not None
    epoch: int = row["epoch"]
    return epoch
