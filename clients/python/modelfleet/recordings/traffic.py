"""`modelfleet.TrafficRecorder`: records a sample of what a gRPC client sends."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from modelfleet.recordings.recorder import Limits, Recorder, Redact

TYPE_HEADER = "x-modelfleet-model-type"
# Serializing so much takes about a millisecond, in the thread that serves.
_MAX_REQUEST_BYTES = 4 << 20
_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


class TrafficRecorder:
    """Records a sample of the requests that a client sends to one model type, for replay in load tests.

        with modelfleet.TrafficRecorder("recordings/feed_ctr/2026-11", "feed_ctr", sample_permille=10) as recorder:
            channel = grpc.intercept_channel(grpc.insecure_channel(address), recorder.interceptor)
            # or grpc.aio.insecure_channel(address, interceptors=[recorder.aio_interceptor])

    A call that is not sampled costs a random number. One that is costs the serialization of its message and a place in
    a buffer; files are written by a thread. Nothing is ever raised into a call: what the recorder cannot take is
    counted in `dropped_requests`, and why it stopped writing stands in `error`.

    Args:
        uri: the dataset's folder: a local path, or a URI (`s3://`, `gs://` …). Several processes may write into one.
        model_type: id or name of the model type. Calls whose header `x-modelfleet-model-type` names another are not
            recorded.
        sample_permille: how many of 1,000 requests are recorded, at random; 1 to 1,000.
        methods: the unary methods that are recorded; default the Open Inference Protocol's ModelInfer.
        max_bytes: it ends when it has so many bytes of requests. Default 1 GiB.
        max_requests: it ends when it has so many requests; 0: no limit.
        max_seconds: it ends after so long. Default one hour.
        redact: given the bytes of each sampled request, returns what is recorded instead, or None to drop it. Called in
            the writer's thread; where it raises, the request is dropped.
        part_seconds: a file is complete, and seen by readers, after so long.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        uri: str,
        model_type: str,
        *,
        sample_permille: int = 10,
        methods: Iterable[str] = (_MODEL_INFER,),
        max_bytes: int = 1 << 30,
        max_requests: int = 0,
        max_seconds: float = 3600.0,
        redact: Redact | None = None,
        part_seconds: float = 60.0,
    ) -> None:
        if not 1 <= sample_permille <= 1000:
            raise ValueError("sample_permille must be 1 to 1,000")
        if max_bytes < 0 or max_requests < 0 or not max_seconds > 0 or not part_seconds > 0:
            raise ValueError("limits must not be negative, and durations positive")
        self._model_type = model_type.removeprefix("modelTypes/")
        self._threshold = sample_permille / 1000
        self._methods = frozenset(methods)
        self._draw = random.random
        limits = Limits(max_bytes, max_requests, int((time.time() + max_seconds) * 1e6))
        self._recorder = Recorder(uri, self._model_type, limits=limits, redact=redact, part_seconds=part_seconds)
        self.interceptor: grpc.UnaryUnaryClientInterceptor = _Interceptor(self._sample)
        self.aio_interceptor: grpc.aio.UnaryUnaryClientInterceptor = _AioInterceptor(self._sample)

    @property
    def active(self) -> bool:
        """Whether it still records."""
        return self._recorder.active

    @property
    def requests(self) -> int:
        """Requests that are in complete files."""
        return self._recorder.written.requests

    @property
    def dropped_requests(self) -> int:
        """Sampled requests that are not recorded: too large, the writer too slow, or dropped by `redact`."""
        return self._recorder.dropped_requests

    @property
    def error(self) -> str:
        """Why it cannot write; empty while nothing is wrong."""
        return self._recorder.error

    def close(self) -> None:
        """Ends the recording; returns once the last file is written. May be repeated."""
        self._recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _sample(self, details: Any, request: Any) -> None:
        if self._draw() >= self._threshold or not self._recorder.active:
            return
        try:
            method = details.method
            method = method.decode() if isinstance(method, bytes) else method
            if method in self._methods and self._is_ours(details.metadata):
                self._record(request, method)
        except Exception:  # noqa: BLE001
            # A recorder is a guest in the calls of others.
            self._recorder.drop()

    def _is_ours(self, metadata: Any) -> bool:
        return all(value == self._model_type for key, value in metadata or () if key == TYPE_HEADER)

    def _record(self, request: Any, method: str) -> None:
        if request.ByteSize() > _MAX_REQUEST_BYTES:
            self._recorder.drop()
        else:
            self._recorder.offer(request.SerializeToString(), method)


_Sample = Callable[[Any, Any], None]


class _Interceptor(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, sample: _Sample) -> None:
        self._sample = sample

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self._sample(client_call_details, request)
        return continuation(client_call_details, request)


class _AioInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, sample: _Sample) -> None:
        self._sample = sample

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self._sample(client_call_details, request)
        return await continuation(client_call_details, request)
