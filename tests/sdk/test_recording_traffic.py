"""`modelfleet.TrafficRecorder`: what a gRPC client sends is sampled, and calls never notice, whatever goes wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import modelfleet
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.inference.v2 import open_inference_pb2_grpc as rpc
from modelfleet.recordings import Dataset, Limits, Recorder, TrafficRecorder
from tests.support.wait import until

HEADER = (("x-modelfleet-model-type", "ranker"),)


class Model(rpc.GRPCInferenceServiceServicer):
    """Answers with what it was asked."""

    async def ModelInfer(self, request, context):  # type: ignore[no-untyped-def]
        return inference.ModelInferResponse(id=request.id)

    async def ModelReady(self, request, context):  # type: ignore[no-untyped-def]
        return inference.ModelReadyResponse(ready=True)


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server = grpc.aio.server()
    rpc.add_GRPCInferenceServiceServicer_to_server(Model(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


def a_request(number: int) -> inference.ModelInferRequest:
    request = inference.ModelInferRequest(model_name="ranker", id=str(number), raw_input_contents=[bytes(number % 300)])
    request.parameters["position"].int64_param = number
    return request


async def send(address: str, recorder: TrafficRecorder, numbers: range, header: Any = HEADER) -> None:
    async with grpc.aio.insecure_channel(address, interceptors=[recorder.aio_interceptor]) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        for number in numbers:
            answer = await stub.ModelInfer(a_request(number), metadata=header)
            assert answer.id == str(number)


def recorded(folder: Path) -> list[bytes]:
    return list(Dataset.open(str(folder)).requests())


async def test_both_kinds_of_channels_are_recorded_as_they_send(address: str, tmp_path: Path) -> None:
    async with TrafficRecorder(str(tmp_path / "set"), "modelTypes/ranker", sample_permille=1000) as recorder:
        await send(address, recorder, range(50))
        await send(address, recorder, range(50, 60), header=None)
        # What is meant for another type, or is no inference, is not recorded.
        await send(address, recorder, range(5), header=(("x-modelfleet-model-type", "other"),))

        def synchronously() -> None:
            with grpc.insecure_channel(address) as plain:
                channel = grpc.intercept_channel(plain, recorder.interceptor)
                stub = rpc.GRPCInferenceServiceStub(channel)
                for number in range(60, 100):
                    assert stub.ModelInfer(a_request(number), metadata=HEADER).id == str(number)
                assert stub.ModelReady(inference.ModelReadyRequest(name="ranker")).ready

        await asyncio.to_thread(synchronously)
    assert recorded(tmp_path / "set") == [a_request(number).SerializeToString() for number in range(100)]
    assert (recorder.requests, recorder.dropped_requests, recorder.error, recorder.active) == (100, 0, "", False)
    rows = list(Dataset.open(str(tmp_path / "set")))
    assert {row.method for row in rows} == {"/inference.GRPCInferenceService/ModelInfer"}


async def test_the_sample_has_the_size_that_was_asked_for(address: str, tmp_path: Path) -> None:
    with TrafficRecorder(str(tmp_path / "set"), "ranker", sample_permille=100) as recorder:
        await send(address, recorder, range(1_000))
    taken = recorded(tmp_path / "set")
    assert abs(len(taken) - 100) < 5 * (0.09 * 1_000) ** 0.5
    # In the order in which they were sent, none twice.
    ids = [int(inference.ModelInferRequest.FromString(request).id) for request in taken]
    assert ids == sorted(set(ids))


async def test_calls_go_on_when_nothing_can_be_written(address: str, tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(b"a file where the dataset has to be")
    with TrafficRecorder(str(tmp_path / "set"), "ranker", sample_permille=1000) as recorder:
        await send(address, recorder, range(20))
        await until(lambda: not recorder.active)
        await send(address, recorder, range(20))
    assert "cannot be written" in recorder.error
    assert recorder.requests == 0
    # A place that no filesystem knows, likewise.
    with TrafficRecorder("nowhere://x", "ranker", sample_permille=1000) as lost:
        await send(address, lost, range(5))
    assert "no place" in lost.error


async def test_a_request_that_cannot_be_serialized_is_counted_and_sent_all_the_same(tmp_path: Path) -> None:
    with TrafficRecorder(str(tmp_path / "set"), "ranker", sample_permille=1000) as recorder:

        def called(details: Any, request: Any) -> Any:
            return "answered"

        details = grpc.ClientCallDetails()
        details.method, details.metadata = "/inference.GRPCInferenceService/ModelInfer", None
        answer: Any = recorder.interceptor.intercept_unary_unary(called, details, object())
        assert answer == "answered"
        assert recorder.dropped_requests == 1


def redacted(tmp_path: Path, redact: Any) -> tuple[list[bytes], int]:
    with Recorder(str(tmp_path / "set"), "ranker", redact=redact) as recorder:
        for number in range(6):
            recorder.offer(b"user=%d" % number, "/m")
    return recorded(tmp_path / "set"), recorder.dropped_requests


def test_redaction_decides_what_is_kept(tmp_path: Path) -> None:
    def odd_ones_without_their_user(request: bytes) -> bytes | None:
        return b"user=*" if int(request[5:]) % 2 else None

    assert redacted(tmp_path, odd_ones_without_their_user) == ([b"user=*"] * 3, 3)


def test_what_cannot_be_redacted_is_not_kept(tmp_path: Path) -> None:
    def fails_for_some(request: bytes) -> bytes | None:
        if request.endswith(b"3"):
            raise ValueError("no idea")
        return request

    requests, dropped = redacted(tmp_path, fails_for_some)
    assert b"user=3" not in requests
    assert (len(requests), dropped) == (5, 1)


def test_a_slow_writer_costs_requests_and_never_time_or_memory(tmp_path: Path) -> None:
    release = threading.Event()

    def blocks(request: bytes) -> bytes:
        assert release.wait(30)
        return request

    recorder = Recorder(str(tmp_path / "set"), "ranker", redact=blocks, buffer_bytes=10_000)
    taken = sum(recorder.offer(bytes(1_000), "/m") for _ in range(50))
    # One may be in the writer's hands already.
    assert taken in (10, 11)
    release.set()
    recorder.close()
    assert (recorder.written.requests, recorder.dropped_requests) == (taken, 50 - taken)
    assert not recorder.offer(b"late", "/m")


def test_many_threads_may_offer_at_once(tmp_path: Path) -> None:
    with Recorder(str(tmp_path / "set"), "ranker") as recorder, ThreadPoolExecutor(8) as threads:
        offered = [request.to_bytes(4, "big") for request in range(4_000)]
        assert all(threads.map(lambda request: recorder.offer(request, "/m"), offered))
    assert sorted(recorded(tmp_path / "set")) == offered


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(max_requests=7), "7 requests are recorded"), (Limits(max_bytes=70), "70 bytes are recorded")],
)
async def test_it_ends_by_itself_at_a_limit(tmp_path: Path, limits: Limits, reason: str) -> None:
    told = threading.Event()
    recorder = Recorder(str(tmp_path / "set"), "ranker", limits=limits, on_end=told.set)
    for _ in range(20):
        recorder.offer(bytes(10), "/m")
    await until(told.is_set)
    assert (recorder.active, recorder.end_reason, recorder.written.requests) == (False, reason, 7)
    assert len(recorded(tmp_path / "set")) == 7


@pytest.mark.parametrize("wrong", [{"sample_permille": 0}, {"max_seconds": 0}, {"max_bytes": -1}])
def test_numbers_out_of_range_are_refused_at_once(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        TrafficRecorder(str(tmp_path), "ranker", **wrong)


def test_the_client_needs_no_pyarrow_until_something_is_recorded() -> None:
    program = """
import sys
sys.modules["pyarrow"] = None
import modelfleet
from modelfleet.recordings import Dataset, RecordingError
with modelfleet.TrafficRecorder("somewhere", "ranker") as recorder:
    pass
print(recorder.error)
try:
    Dataset.open("somewhere")
except RecordingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["recordings need pyarrow: pip install modelfleet[recordings]"] * 2


def test_it_is_part_of_the_client() -> None:
    assert modelfleet.TrafficRecorder is TrafficRecorder
