"""The node agent's tap on a real Envoy: what is recorded, what is not, what ends it; callers notice nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.recordings import Dataset
from modelfleetd.errors import NotConfigured, RequestIdReused, ResourceNotFound
from modelfleetd.platform.model import Fence, RecordingPlan, RecordingStatus, TargetKind
from tests.support.node import Caller, Node, replica_spec
from tests.support.serving import NEW, OLD, TARGET, serving
from tests.support.wait import until

SPEC = replica_spec()


def plan(
    node: Node,
    recording: str = "r1",
    *,
    permille: int = 1000,
    max_bytes: int = 1 << 30,
    max_requests: int = 0,
    seconds: float = 600,
) -> RecordingPlan:
    uri = str(node.folder / "recordings" / recording)
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    return RecordingPlan(f"recordings/{recording}", TARGET, uri, permille, max_bytes, max_requests, end)


def a_request(number: int, size: int = 40) -> inference.ModelInferRequest:
    request = inference.ModelInferRequest(model_name="ranker", id=str(number), raw_input_contents=[os.urandom(size)])
    request.inputs.add(name="x", datatype="BYTES", shape=[1])
    request.parameters["user"].int64_param = number
    return request


async def serve(node: Node) -> None:
    await node.reach(serving({NEW: 1, OLD: 1}, spec=SPEC))
    await node.reach(serving({NEW: 1, OLD: 1}, {NEW: 3_000, OLD: 7_000}, SPEC))


async def record(node: Node, wanted: RecordingPlan) -> None:
    """Starts a recording and waits until Envoy sends copies."""
    await node.platform.start_recording(wanted)

    async def recorded() -> bool:
        await caller.ask()
        return (await node.platform.observe_recording(wanted.recording)).requests > 0

    async with node.caller() as caller:
        await until(recorded, timeout=20)


async def ask_all(caller: Caller, requests: list[inference.ModelInferRequest]) -> Counter[str]:
    """Asks in parallel; says which model answered how often."""
    return Counter(await answers_to(caller, requests))


async def answers_to(caller: Caller, requests: list[inference.ModelInferRequest]) -> list[str]:
    """Asks in parallel, a hundred at a time; says which model answered each."""
    answers: list[str] = []
    for begin in range(0, len(requests), 100):
        answers += await asyncio.gather(*(caller.ask(request=each) for each in requests[begin : begin + 100]))
    return answers


async def has_recorded(node: Node, recording: str, requests: int) -> bool:
    return (await node.platform.observe_recording(recording)).requests >= requests


async def ended(node: Node, recording: str = "recordings/r1") -> RecordingStatus:
    async def over() -> RecordingStatus | None:
        status = await node.platform.observe_recording(recording)
        return None if status.active else status

    found: RecordingStatus | None = await until(over, timeout=20)
    assert found is not None
    return found


def recorded(wanted: RecordingPlan) -> list[bytes]:
    """Its requests, but for those that only waited for it to begin."""
    probe = inference.ModelInferRequest(model_name="ranker").SerializeToString()
    return [request for request in Dataset.open(wanted.uri).requests() if request != probe]


async def test_requests_are_recorded_as_they_were_sent_and_callers_notice_nothing(node: Node) -> None:
    await serve(node)
    wanted = plan(node)
    await record(node, wanted)
    before, begun = (
        await node.platform.observe(TARGET),
        (await node.platform.observe_recording("recordings/r1")).requests,
    )
    sent = [a_request(number) for number in range(400)] + [a_request(1_000, 3 << 20)]
    async with node.caller() as caller:
        answers: Counter[str] = Counter()
        for some in (sent[at : at + 100] for at in range(0, len(sent), 100)):
            answers += await ask_all(caller, some)
            # Copies that come faster than they are taken are dropped, by design.
            await until(partial(has_recorded, node, wanted.recording, begun + answers.total()))
        # What names a model (load tests, shadow traffic) is not live traffic.
        assert {await caller.ask(model=NEW, request=a_request(2_000)) for _ in range(5)} == {NEW}

        async def counted() -> bool:
            seen = await node.platform.observe(TARGET)
            return all(
                seen.model(model).requests == before.model(model).requests + answers[model] for model in (NEW, OLD)
            )

        # A copy that counted would be one too many for ever.
        await until(counted)
    status = await node.platform.stop_recording(wanted.recording)
    assert (status.active, status.failed, status.message) == (False, False, "It was stopped.")
    assert status.dropped_requests == 0
    assert Counter(recorded(wanted)) == Counter(request.SerializeToString() for request in sent)
    assert abs(answers[NEW] - 0.3 * len(sent)) < 5 * (0.21 * len(sent)) ** 0.5
    summary = Dataset.open(wanted.uri).summarize()
    assert (status.requests, status.bytes) == (summary.requests, summary.bytes)
    assert await node.platform.stop_recording(wanted.recording) == status, "again the same"
    assert await node.platform.start_recording(wanted) == status
    with pytest.raises(RequestIdReused):
        await node.platform.start_recording(plan(node, permille=7))
    async with node.caller() as caller:
        await ask_all(caller, [a_request(3_000)])
    assert Dataset.open(wanted.uri).summarize() == summary
    assert "request_mirror_policies" not in (node.folder / "envoy" / "routes.json").read_text()


async def test_the_sample_has_the_size_that_was_asked_for_and_shares_stay(node: Node) -> None:
    await serve(node)
    few, many = plan(node, "few", permille=55), plan(node, "many", permille=300)
    await node.platform.start_recording(few)
    await record(node, many)
    sent = [a_request(number) for number in range(2_000)]
    async with node.caller() as caller:
        answered = dict(zip((request.id for request in sent), await answers_to(caller, sent), strict=True))
    answers = Counter(answered.values())
    for wanted, share in ((few, 0.055), (many, 0.3)):
        await node.platform.stop_recording(wanted.recording)
        taken = recorded(wanted)
        assert len(set(taken)) == len(taken), "none twice"
        # Five standard deviations.
        assert abs(len(taken) - share * len(sent)) < 5 * (share * (1 - share) * len(sent)) ** 0.5, wanted
        # Whichever model answers: Envoy has one random number for both draws.
        new = sum(answered[inference.ModelInferRequest.FromString(request).id] == NEW for request in taken)
        assert abs(new - 0.3 * len(taken)) < 5 * (0.21 * len(taken)) ** 0.5, wanted
    assert abs(answers[NEW] - 0.3 * len(sent)) < 5 * (0.21 * len(sent)) ** 0.5


@pytest.mark.faults
async def test_a_recording_survives_its_agent_however_it_ends(node: Node) -> None:
    await serve(node)
    wanted = plan(node)
    await record(node, wanted)
    async with node.caller() as caller:
        await record_more(node, caller, wanted, 1)
        # Told to end, it writes what it has; while it is away nobody notices.
        node.kill(signal.SIGTERM)
        assert recorded(wanted)
        assert (await ask_all(caller, [a_request(2) for _ in range(300)])).total() == 300
        await node.start()
        await record_more(node, caller, wanted, 3)
        # Killed, it loses what is in no complete file yet.
        await node.restart(signal.SIGKILL)
        await record_more(node, caller, wanted, 4)
    status = await node.platform.stop_recording(wanted.recording)
    assert not status.failed
    # What Envoy could not send while it was away counts as dropped.
    assert status.dropped_requests >= 300
    ids = [inference.ModelInferRequest.FromString(request).id for request in recorded(wanted)]
    assert ids[0] == "1"
    assert ids[-1] == "4"
    assert set(ids) <= {"1", "3", "4"}
    assert status.requests == Dataset.open(wanted.uri).summarize().requests
    assert list((node.folder / "recordings").rglob("*.tmp")) == []


async def record_more(node: Node, caller: Caller, wanted: RecordingPlan, number: int) -> None:
    """Asks until one more is recorded: Envoy connects again a moment after the agent is back."""
    before = (await node.platform.observe_recording(wanted.recording)).requests

    async def more() -> bool:
        await caller.ask(request=a_request(number))
        return (await node.platform.observe_recording(wanted.recording)).requests > before

    await until(more, timeout=20)


async def test_a_recording_ends_by_each_of_its_limits(node: Node) -> None:
    await serve(node)
    by_count, by_size = plan(node, "count", max_requests=30), plan(node, "size", max_bytes=4_000)
    by_time = plan(node, "time", seconds=2.5)
    for wanted in (by_count, by_size, by_time):
        await node.platform.start_recording(wanted)
    await record(node, plan(node, "all"))
    async with node.caller() as caller:
        await ask_all(caller, [a_request(number, 100) for number in range(200)])
    count, size, time = [await ended(node, wanted.recording) for wanted in (by_count, by_size, by_time)]
    assert (count.requests, count.message) == (30, "30 requests are recorded.")
    assert 4_000 <= size.bytes < 4_000 + 200
    assert size.message == "4,000 bytes are recorded."
    assert time.message == "Its time is over."
    assert not (count.failed or size.failed or time.failed)
    assert Dataset.open(by_count.uri).summarize().requests == 30
    # The others go on.
    assert (await node.platform.observe_recording("recordings/all")).active


async def test_what_cannot_be_written_or_must_not_be_is_refused_or_fails_with_the_reason(node: Node) -> None:
    await serve(node)
    await node.platform.apply("targets/load", TargetKind.LOAD_TEST, Fence(1, "l"), serving({OLD: 0}, spec=SPEC))
    wanted = plan(node)
    root = node.folder / "recordings"
    root.mkdir()
    (root / "out").symlink_to(node.folder)
    elsewhere = [
        str(node.folder / "x"),
        str(root),
        f"{root}/../x",
        f"{root}/out/x",
        "s3://bucket/x",
        f"file://{root}/x",
    ]
    for uri in elsewhere:
        with pytest.raises(NotConfigured):
            await node.platform.start_recording(replace(wanted, uri=uri))
    with pytest.raises(ResourceNotFound):
        await node.platform.start_recording(replace(wanted, target="targets/load"))
    (root / "r1").write_bytes(b"a file where the dataset has to be")
    await node.platform.start_recording(wanted)

    async def tried() -> bool:
        await caller.ask()
        return not (await node.platform.observe_recording(wanted.recording)).active

    async with node.caller() as caller:
        await until(tried, timeout=20)
    status = await ended(node)
    assert status.failed
    assert status.message.startswith("The recording cannot be")
