"""What `modelfleet.TrafficRecorder` adds to a call, in the thread that serves.

Its interceptor is called with a continuation that does nothing, so that what is measured is its own work and nothing of
gRPC's: at the default sample (10 of 1,000), and with every request sampled while a thread writes them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import grpc

from modelfleet import TrafficRecorder
from modelfleet.inference.v2 import open_inference_pb2 as inference
from tests.bench.figures import Figure

NAMES = ("capacity.traffic_recorder_us", "capacity.traffic_recorder_sampled_p999_us")

_REQUEST_BYTES = 4096
_CALLS, _ROUNDS = 10_000, 21
_SAMPLED_CALLS = 20_000
# Between sampled calls, so that the writer follows: about what one serving process carries.
_PACE_SECONDS = 0.0005


async def run() -> list[Figure]:
    """Measures both on one thread, with the writer's thread beside it."""
    request = inference.ModelInferRequest(model_name="feed_ctr", raw_input_contents=[bytes(_REQUEST_BYTES)])
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        with TrafficRecorder(f"{folder}/sampled", "feed_ctr", sample_permille=10) as recorder:
            added = statistics.median(_added(recorder, request) for _ in range(_ROUNDS))
        with TrafficRecorder(f"{folder}/all", "feed_ctr", sample_permille=1000) as recorder:
            _call(recorder, request, 100)
            times = _paced(recorder, request)
        assert recorder.requests == _SAMPLED_CALLS + 100
        assert not recorder.error
    said = f"{_REQUEST_BYTES:,} bytes a request; the continuation does nothing"
    return [
        Figure(
            name="capacity.traffic_recorder_us",
            value=added * 1e6,
            unit="µs/call",
            yardstick=f"CPU time of the serving thread, 10 of 1,000 sampled, mean of {_CALLS:,} calls, median of "
            f"{_ROUNDS} rounds, {said}",
            target=2.0,
            better="lower",
        ),
        Figure(
            name="capacity.traffic_recorder_sampled_p999_us",
            value=statistics.quantiles(times, n=1000)[-1] * 1e6,
            unit="µs/call",
            yardstick=f"99.9th percentile of {_SAMPLED_CALLS:,} sampled calls, {said}",
            target=1000.0,
            better="lower",
        ),
    ]


class _Details(grpc.ClientCallDetails):
    method = "/inference.GRPCInferenceService/ModelInfer"
    metadata: Any = (("x-modelfleet-model-type", "feed_ctr"),)


_DETAILS = _Details()


def _continuation(details: Any, request: Any) -> Any:
    return None


def _added(recorder: TrafficRecorder, request: Any) -> float:
    """Seconds of the serving thread that a call takes longer with the recorder than without."""
    began = time.thread_time()
    _call(recorder, request, _CALLS)
    between = time.thread_time()
    for _ in range(_CALLS):
        _continuation(_DETAILS, request)
    return ((between - began) - (time.thread_time() - between)) / _CALLS


def _call(recorder: TrafficRecorder, request: Any, times: int) -> None:
    call = recorder.interceptor.intercept_unary_unary
    for _ in range(times):
        call(_continuation, _DETAILS, request)


def _paced(recorder: TrafficRecorder, request: Any) -> Sequence[float]:
    call = recorder.interceptor.intercept_unary_unary
    times: list[float] = []
    for _ in range(_SAMPLED_CALLS):
        began = time.perf_counter()
        call(_continuation, _DETAILS, request)
        times.append(time.perf_counter() - began)
        time.sleep(_PACE_SECONDS)
    return times
