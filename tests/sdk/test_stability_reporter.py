"""`modelfleet.StabilityReporter`: what is reported arrives once, and who serves never notices, whatever goes wrong."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from modelfleet import StabilityReporter, columns
from modelfleet.report_sender import Counts
from modelfleet.reporter import MAX_CALL_ROWS
from modelfleet.stability.v1 import stability_pb2 as pb
from tests.support.wait import until

NAMES: dict[str, Any] = {"model": "v7", "prediction": "click"}


@dataclass
class Service:
    """Keeps what it is sent, and answers as a test wants. What the real one makes of it, tests/api shows."""

    address: str = ""
    answers: list[Callable[[Any], Any]] = field(default_factory=list)
    received: list[Any] = field(default_factory=list)

    async def answer(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> pb.WriteResponse:
        self.received.append(request)
        wanted = self.answers.pop(0)(request) if self.answers else None
        if inspect.isawaitable(wanted):
            wanted = await wanted
        if isinstance(wanted, grpc.StatusCode):
            await context.abort(wanted, "as the test wants it")
        return wanted if isinstance(wanted, pb.WriteResponse) else pb.WriteResponse(accepted_rows=rows_of(request))

    @property
    def rows(self) -> int:
        return sum(map(rows_of, self.received))


def rows_of(request: Any) -> int:
    if isinstance(request, pb.WriteStatisticsRequest):
        return int(np.frombuffer(request.exposure.examples, "<i8").sum())
    return len(request.model_index)


def fails(code: grpc.StatusCode, times: int) -> list[Callable[[Any], Any]]:
    return [lambda request: code] * times


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    server, made = grpc.aio.server(), Service()
    kinds: dict[str, Any] = {
        "WriteExamples": pb.WriteExamplesRequest,
        "WritePredictions": pb.WritePredictionsRequest,
        "WriteLabels": pb.WriteLabelsRequest,
        "WriteStatistics": pb.WriteStatisticsRequest,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(made.answer, kind.FromString, pb.WriteResponse.SerializeToString)
        for name, kind in kinds.items()
    }
    generic = grpc.method_handlers_generic_handler("modelfleet.stability.v1.StabilityService", handlers)
    server.add_generic_rpc_handlers((generic,))
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield made
    await server.stop(0)


def a_reporter(service: Service, **options: Any) -> StabilityReporter:
    return StabilityReporter("feed_ctr", service.address, **({"flush_seconds": 0.05} | options))


def ids_of(count: int) -> list[uuid.UUID]:
    return [uuid.UUID(int=number) for number in range(count)]


async def test_all_three_kinds_arrive_as_they_were_reported(service: Service) -> None:
    async with a_reporter(service, flush_seconds=60) as reporter:
        scores = np.array([0.25, 0.5])
        reporter.report_examples(**NAMES, score=scores, label=[0, 1], weight=[1, 2], event_time=1_700_000_000_000_000)
        scores[:] = np.nan  # what is handed over is the caller's no longer
        before = time.time_ns() // 1000
        reporter.report_predictions(model=["v7", "v8"], prediction="click", request_id=ids_of(2), logit=[1.0, -1.0])
        reporter.report_labels(**NAMES, request_id=ids_of(1))
        assert await reporter.aflush()
        assert reporter.counts == Counts(accepted=5, rejected={}, dropped=0, waiting=0)
    examples, predictions, labels = sorted(
        service.received, key=lambda request: type(request).__name__ != "WriteExamplesRequest"
    )
    model = "modelTypes/feed_ctr/models/v7"
    assert (list(examples.batch.models), list(examples.batch.predictions)) == ([model], ["click"])
    assert np.frombuffer(examples.score).tolist() == [0.25, 0.5]
    assert np.frombuffer(examples.weight).tolist() == [1.0, 2.0]
    assert np.frombuffer(examples.event_time_micros, "<i8").tolist() == [1_700_000_000_000_000] * 2
    assert list(predictions.batch.models) == [model, "modelTypes/feed_ctr/models/v8"]
    assert predictions.model_index == b"\0\1"
    assert predictions.request_id == columns.pack_request_ids(ids_of(2))
    assert np.frombuffer(predictions.logit).tolist() == [1.0, -1.0]
    assert labels.request_id == columns.pack_request_ids(ids_of(1))
    assert labels.label == b""
    for column in (predictions.event_time_micros, labels.label_time_micros):
        assert before <= np.frombuffer(column, "<i8")[0] <= time.time_ns() // 1000
    assert sorted(request.batch.sequence for request in service.received) == [1, 2, 3]
    assert len({request.batch.producer for request in service.received}) == 1


async def test_a_batch_is_repeated_unchanged_until_it_is_answered(service: Service) -> None:
    service.answers = [
        *fails(grpc.StatusCode.UNAVAILABLE, 2),
        *fails(grpc.StatusCode.DEADLINE_EXCEEDED, 1),
        *fails(grpc.StatusCode.INTERNAL, 1),
    ]
    async with a_reporter(service) as reporter:
        reporter.report_examples(**NAMES, score=[0.5], label=[1])
        await until(lambda: service.received)
        await until(lambda: reporter.error.startswith("the service does not answer"))
        reporter.report_examples(**NAMES, score=[0.25], label=[1])
        assert await reporter.aflush()
        assert (reporter.counts.accepted, reporter.error) == (2, "")
    first, *_, last = service.received
    assert service.received[:-1] == [first] * 5
    assert (first.batch.sequence, last.batch.sequence) == (1, 2)


async def test_while_the_service_is_away_the_oldest_rows_are_dropped_and_that_is_said_once(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers = fails(grpc.StatusCode.UNAVAILABLE, 10_000)
    with caplog.at_level(logging.WARNING):
        async with a_reporter(service, buffer_rows=100) as reporter:
            reporter.report_examples(**NAMES, score=[1.0], label=[1])
            await until(lambda: service.received)
            for number in range(30):
                reporter.report_examples(**NAMES, score=[number / 100] * 10, label=[1] * 10)
            assert (reporter.counts.dropped, reporter.counts.waiting) == (200, 101)
            service.answers.clear()
            assert await reporter.aflush()
    assert reporter.counts.accepted == 101
    sent = np.concatenate([np.frombuffer(request.score) for request in service.received[-2:]])
    assert sent.tolist() == [1.0] + [number / 100 for number in range(20, 30) for _ in range(10)]
    assert len([record for record in caplog.records if "the buffer is full" in record.message]) == 1
    assert len([record for record in caplog.records if "does not answer" in record.message]) == 1


async def test_examples_added_up_outlast_an_absence_that_rows_would_not(service: Service) -> None:
    service.answers = fails(grpc.StatusCode.UNAVAILABLE, 10_000)
    rng = np.random.default_rng(1)
    score, label = rng.random(60_000), rng.integers(0, 2, 60_000)
    async with a_reporter(service, aggregate=True, buffer_rows=5_000) as reporter:
        for start in range(0, len(score), 1_000):
            part = slice(start, start + 1_000)
            reporter.report_examples(**NAMES, score=score[part], label=label[part], event_time=np.datetime64("now"))
            await until(lambda: reporter._sender._to_aggregate.rows < 3_000)
        service.answers.clear()
        assert await reporter.aflush()
        assert (reporter.counts.accepted, reporter.counts.dropped) == (60_000, 0)
    done = {request.batch.sequence: request for request in service.received}.values()
    assert sum(rows_of(request) for request in done) == 60_000
    assert sum(request.ByteSize() for request in done) < 5_000
    weights = [np.frombuffer(request.positives.weight, "<u8")[::2].sum() for request in done]
    assert sum(weights) == int(label.sum()) << 40


async def test_rows_that_cannot_be_added_up_go_as_they_are_for_the_service_to_count(service: Service) -> None:
    async with a_reporter(service, aggregate=True) as reporter:
        reporter.report_examples(**NAMES, score=[0.5, np.nan, 0.5, 0.5], label=[1, 1, 2, 0])
        reporter.report_examples(**NAMES, score=[0.5], label=[1], event_time=0)
        assert await reporter.aflush()
    kinds = Counter(type(request) for request in service.received for _ in range(rows_of(request)))
    assert kinds == {pb.WriteStatisticsRequest: 2, pb.WriteExamplesRequest: 3}


async def test_what_is_wrong_with_one_model_does_not_cost_the_others(service: Service) -> None:
    def knows_no_v8(request: Any) -> Any:
        return grpc.StatusCode.FAILED_PRECONDITION if any("v8" in name for name in request.batch.models) else None

    for aggregate in (False, True):
        service.received.clear()
        service.answers = [knows_no_v8] * 20
        async with a_reporter(service, aggregate=aggregate, flush_seconds=60) as reporter:
            for model in ("v7", "v8", "v9"):
                reporter.report_examples(model=model, prediction="click", score=[0.5] * 3, label=[1] * 3)
            assert await reporter.aflush()
            assert (reporter.counts.accepted, reporter.counts.dropped) == (6, 3)
            assert "refused" in reporter.error
        taken = [request for request in service.received if knows_no_v8(request) is None]
        assert sorted(name[-2:] for request in taken for name in request.batch.models) == ["v7", "v9"]
        # What was refused as a whole was not written: its rows come as new batches.
        sequences = [request.batch.sequence for request in service.received]
        assert len(set(sequences)) == len(sequences)


async def test_only_the_requests_of_the_sample_are_reported(service: Service) -> None:
    ids = np.random.default_rng(2).integers(0, 256, (20_000, 16), dtype=np.uint8)
    async with a_reporter(service, sample_permille=50) as reporter:
        reporter.report_predictions(**NAMES, request_id=ids, score=np.full(len(ids), 0.5))
        reporter.report_labels(**NAMES, request_id=ids)
        reporter.report_examples(**NAMES, score=[0.5] * 10, label=[1] * 10)
        assert await reporter.aflush()
    chosen = ids[columns.sampled(ids, 50)].tobytes()
    by_kind: dict[type, bytes] = {}
    for request in service.received:
        if isinstance(request, pb.WriteExamplesRequest):
            assert (request.batch.sample_permille, rows_of(request)) == (0, 10)
        else:
            by_kind[type(request)] = by_kind.get(type(request), b"") + request.request_id
            assert request.batch.sample_permille == 50
    assert list(by_kind.values()) == [chosen, chosen]


async def test_many_threads_report_and_every_row_arrives_once(service: Service) -> None:
    async with a_reporter(service, flush_seconds=0.01) as reporter:

        def report(thread: int) -> None:
            for number in range(100):
                given = np.arange(50) / 1e6 + number / 1e3 + thread / 10
                reporter.report_examples(model=f"m{thread}", prediction="click", score=given, label=np.zeros(50))

        await asyncio.gather(*(asyncio.to_thread(report, thread) for thread in range(8)))
        assert await reporter.aflush()
        assert reporter.counts.accepted == 8 * 100 * 50
    scores = np.concatenate([np.frombuffer(request.score) for request in service.received])
    assert len(np.unique(scores)) == len(scores) == 8 * 100 * 50


async def test_nothing_that_is_reported_wrongly_is_raised(service: Service) -> None:
    wrong: Sequence[tuple[str, dict[str, Any]]] = [
        ("report_examples", {"score": [0.5, 0.5], "label": [1]}),
        ("report_examples", {"score": ["x"], "label": [1]}),
        ("report_examples", {"score": [0.5], "label": [0.5]}),
        ("report_examples", {"score": [0.5], "label": [1], "event_time": object()}),
        ("report_examples", {"score": [0.5], "label": [1], "model": ["a", "b"]}),
        ("report_examples", {"score": object(), "label": [1]}),
        ("report_predictions", {"score": [0.5], "request_id": ["no uuid"]}),
        ("report_labels", {"request_id": [b"short"]}),
        ("report_labels", {"request_id": 7}),
    ]
    async with a_reporter(service) as reporter:
        for method, fields in wrong:
            before = reporter.counts.dropped
            getattr(reporter, method)(**(NAMES | fields))
            await reporter.aflush()
            assert reporter.counts.dropped > before, (method, fields)
        too_many = np.zeros(MAX_CALL_ROWS + 1)
        reporter.report_examples(**NAMES, score=too_many, label=too_many)
        assert "too large" in reporter.error
        reporter.report_examples(**NAMES, score=[0.5], label=[1])
        assert await reporter.aflush()
        assert (reporter.counts.accepted, reporter.counts.waiting) == (1, 0)
    reporter.report_examples(**NAMES, score=[0.5], label=[1])
    assert "closed" in reporter.error
    assert rows_of(service.received[-1]) == service.rows == 1


async def test_rows_that_the_service_rejects_are_counted_by_reason(service: Service) -> None:
    entry = pb.RejectedRows(reason=pb.RejectedRows.BAD_SCORE, rows=2)
    service.answers = [lambda request: pb.WriteResponse(accepted_rows=1, rejected=[entry])]
    async with a_reporter(service) as reporter:
        reporter.report_examples(**NAMES, score=[0.5, np.nan, np.nan], label=[1] * 3)
        assert await reporter.aflush()
        assert (reporter.counts.accepted, reporter.counts.rejected) == (1, {"BAD_SCORE": 2})


async def test_closing_ends_in_time_though_the_service_hangs(service: Service) -> None:
    service.answers = [lambda request: asyncio.Event().wait()]
    reporter = a_reporter(service)
    reporter.report_examples(**NAMES, score=[0.5] * 7, label=[1] * 7)
    assert not await reporter.aflush(0.2)
    began = time.monotonic()
    await reporter.aclose(0.3)
    assert time.monotonic() - began < 3
    assert (reporter.counts.dropped, reporter.counts.waiting) == (7, 0)
    thread = reporter._sender._thread
    assert thread is not None and not thread.is_alive()


async def test_the_child_of_a_fork_is_a_producer_of_its_own(service: Service) -> None:
    program = f"""
import os, modelfleet
reporter = modelfleet.StabilityReporter("feed_ctr", "{service.address}", flush_seconds=0.05)
pid = os.fork()
name = "child" if pid == 0 else "parent"
reporter.report_examples(model=name, prediction="click", score=[0.5], label=[1])
assert reporter.flush()
reporter.close()
if pid:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    await run(program)
    assert len(service.received) == 2
    assert len({request.batch.producer for request in service.received}) == 2
    assert {request.batch.sequence for request in service.received} == {1}


async def test_what_was_reported_before_a_fork_is_sent_once_and_no_lock_is_inherited(service: Service) -> None:
    reporter = a_reporter(service, flush_seconds=60)
    reporter.report_examples(**NAMES, score=[0.5] * 3, label=[1] * 3)
    held = reporter._sender
    with held._lock:  # as a thread may that hands over while another one forks
        reporter._begin_anew()
    reporter.report_examples(**NAMES, score=[0.5], label=[1])
    assert reporter.counts.waiting == 1
    assert held._producer != reporter._sender._producer
    await reporter.aclose()
    await asyncio.to_thread(held.close, 5)
    assert sorted(map(rows_of, service.received)) == [1, 3]


async def test_the_end_of_a_process_sends_what_is_left(service: Service) -> None:
    program = f"""
import modelfleet
reporter = modelfleet.StabilityReporter("feed_ctr", "{service.address}", flush_seconds=60)
reporter.report_examples(model="v7", prediction="click", score=[0.5], label=[1])
"""
    await run(program)
    assert service.rows == 1
    began = time.monotonic()
    await run(program.replace(service.address, "127.0.0.1:1"))
    assert time.monotonic() - began < 20


async def test_a_call_takes_well_under_a_millisecond(service: Service) -> None:
    """What is measured exactly, `make bench` says; here it is that nothing waits for the thread that sends."""
    service.answers = fails(grpc.StatusCode.UNAVAILABLE, 10_000)
    async with a_reporter(service) as reporter:
        score, label = np.full(500, 0.1), np.zeros(500)
        took = []

        def serve() -> None:
            for _ in range(2_000):
                began = time.thread_time()
                reporter.report_examples(**NAMES, score=score, label=label)
                took.append(time.thread_time() - began)

        await asyncio.to_thread(serve)
        assert np.quantile(took, 0.999) < 0.001
        service.answers.clear()


def test_importing_modelfleet_stays_light() -> None:
    program = """
import sys, modelfleet
assert not {"numpy", "modelfleet.reporter", "modelfleet.stability.v1.stability_pb2"} & set(sys.modules)
assert modelfleet.StabilityReporter.__name__ == "StabilityReporter"
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


@pytest.mark.parametrize(
    "wrong", [{"sample_permille": 0}, {"flush_seconds": 0}, {"buffer_rows": 0}, {"principal": "é"}]
)
def test_options_that_cannot_be_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|cannot"):
        StabilityReporter("feed_ctr", **wrong)


async def run(program: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await asyncio.wait_for(process.wait(), 60) == 0
