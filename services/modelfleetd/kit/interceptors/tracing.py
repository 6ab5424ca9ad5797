"""One span a call, with the code that it ended with; and the figures of the call. Outermost, so it sees everything.

Most calls are not sampled: for these no span is made, but they still have ids, which logs and errors show and
onward calls carry.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from modelfleetd.errors import Code
from modelfleetd.kit.call import Call, enter_call
from modelfleetd.kit.interceptors.base import Context, Stream, Unary
from modelfleetd.kit.method import Method
from modelfleetd.kit.metrics import CallMetrics
from modelfleetd.kit.telemetry import Telemetry

_MAX_64 = (1 << 64) - 1


class TracingInterceptor:
    """Continues the caller's trace or begins one; samples as the parent did, or by the configured ratio."""

    def __init__(self, telemetry: Telemetry, metrics: CallMetrics) -> None:
        self._telemetry = telemetry
        self._metrics = metrics
        self._bound = round(telemetry.ratio * (1 << 64)) if telemetry.exports else 0

    def unary(self, method: Method, inner: Unary) -> Unary:
        figures = self._metrics.of(method)

        async def traced(request: Any, context: Context) -> Any:
            call, parent_id = self._begin(method, context)
            start, figures.in_flight = time.perf_counter(), figures.in_flight + 1
            span = self._telemetry.start_call_span(call, parent_id) if call.sampled else None
            try:
                return await inner(request, context)
            except BaseException as error:
                _note(call, error)
                raise
            finally:
                figures.done(call.code, time.perf_counter() - start)
                if span is not None:
                    self._telemetry.end_call_span(span, call)

        return traced

    def stream(self, method: Method, inner: Stream) -> Stream:
        figures = self._metrics.of(method)

        async def traced(request: Any, context: Context) -> AsyncIterator[Any]:
            call, parent_id = self._begin(method, context)
            start, figures.in_flight = time.perf_counter(), figures.in_flight + 1
            span = self._telemetry.start_call_span(call, parent_id) if call.sampled else None
            try:
                async with aclosing(inner(request, context)) as answers:  # type: ignore[type-var]
                    async for answer in answers:
                        yield answer
            except BaseException as error:
                _note(call, error)
                raise
            finally:
                figures.done(call.code, time.perf_counter() - start)
                if span is not None:
                    self._telemetry.end_call_span(span, call)

        return traced

    def _begin(self, method: Method, context: Context) -> tuple[Call, int]:
        metadata = dict(context.invocation_metadata() or ())
        parent = _parse(metadata.get("traceparent"))
        if parent is None:
            trace_id, parent_id = random.getrandbits(128), 0
            sampled = (trace_id & _MAX_64) < self._bound
        else:
            trace_id, parent_id, wanted = parent
            sampled = wanted and self._telemetry.exports
        call = Call(method, metadata, trace_id, random.getrandbits(64), sampled)
        enter_call(call)
        return call, parent_id


def _note(call: Call, error: BaseException) -> None:
    """Notes how a call ended of which the errors interceptor did not know: the caller went away, or grpc gave up."""
    if call.code is Code.OK and not isinstance(error, GeneratorExit):
        call.code = Code.CANCELLED if isinstance(error, asyncio.CancelledError) else Code.UNKNOWN


def _parse(header: Any) -> tuple[int, int, bool] | None:
    """Returns trace id, span id and sampling of a W3C traceparent; None where there is none, or a malformed one."""
    if not isinstance(header, str) or len(header) < 55:
        return None
    try:
        trace_id, span_id = int(header[3:35], 16), int(header[36:52], 16)
        flags = int(header[53:55], 16)
    except ValueError:
        return None
    return (trace_id, span_id, bool(flags & 1)) if trace_id and span_id else None
