"""Gives every call a deadline: the caller's, or a default and a mark in the metrics where the caller set none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from modelfleetd.kit import deadline
from modelfleetd.kit.interceptors.base import Context, Stream, Unary
from modelfleetd.kit.method import Method
from modelfleetd.kit.metrics import CallMetrics

DEFAULT_SECONDS = 30.0
# A watch is resumed when it ends; this only bounds the ones that nobody reads any more.
DEFAULT_STREAM_SECONDS = 3600.0


class DeadlineInterceptor:
    """Makes the remaining time readable as `kit.deadline.remaining()`. grpc itself ends calls whose deadline passed."""

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics

    def unary(self, method: Method, inner: Unary) -> Unary:
        default = DEFAULT_STREAM_SECONDS if method.is_stream else DEFAULT_SECONDS

        async def limited(request: Any, context: Context) -> Any:
            left: float | None = context.time_remaining()
            if left is not None:
                deadline.start(left)
                return await inner(request, context)
            self._metrics.deadline_missing(method)
            deadline.start(default)
            async with asyncio.timeout(default):
                return await inner(request, context)

        return limited

    def stream(self, method: Method, inner: Stream) -> Stream:
        async def limited(request: Any, context: Context) -> AsyncIterator[Any]:
            left: float | None = context.time_remaining()
            if left is None:
                self._metrics.deadline_missing(method)
                left = DEFAULT_STREAM_SECONDS
            deadline.start(left)
            async with asyncio.timeout(left), aclosing(inner(request, context)) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    yield answer

        return limited
