"""Refuses calls that the server cannot take on now. Innermost: only work that would really be done is counted.

An own counter, because grpc.aio's `maximum_concurrent_rpcs` has queued where it should refuse, and has underflowed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from modelfleetd.errors import Overloaded
from modelfleetd.kit.interceptors.base import Context, Stream, Unary
from modelfleetd.kit.method import Method


@dataclass(slots=True)
class Gauge:
    """How many are under way, and how many may be."""

    limit: int
    retry_after: float
    active: int = 0

    def enter(self) -> None:
        """Counts one more.

        Raises:
            Overloaded: as many as may be are under way.
        """
        if self.active >= self.limit:
            raise Overloaded(self.retry_after)
        self.active += 1

    def leave(self) -> None:
        """Counts one less."""
        self.active -= 1


class LimiterInterceptor:
    """Counts plain calls, expensive calls and streams apart, so that none starves another."""

    def __init__(self, calls: Gauge, expensive: Gauge, streams: Gauge, expensive_methods: frozenset[str]) -> None:
        self._calls = calls
        self._expensive = expensive
        self._streams = streams
        self._expensive_methods = expensive_methods

    def _gauge(self, method: Method) -> Gauge:
        if method.is_stream:
            return self._streams
        return self._expensive if method.name in self._expensive_methods else self._calls

    def unary(self, method: Method, inner: Unary) -> Unary:
        gauge = self._gauge(method)

        async def limited(request: Any, context: Context) -> Any:
            gauge.enter()
            try:
                return await inner(request, context)
            finally:
                gauge.leave()

        return limited

    def stream(self, method: Method, inner: Stream) -> Stream:
        gauge = self._gauge(method)

        async def limited(request: Any, context: Context) -> AsyncIterator[Any]:
            gauge.enter()
            try:
                async with aclosing(inner(request, context)) as answers:  # type: ignore[type-var]
                    async for answer in answers:
                        yield answer
            finally:
                gauge.leave()

        return limited
