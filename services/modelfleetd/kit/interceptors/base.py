"""The shape of an interceptor: it wraps a method's handler once, at the first call of the method.

Handlers are wrapped rather than called through grpc's interceptor chain, so that whatever depends only on the method
(its rule, its validation plan) is looked up once and a call pays for nothing but the checks themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeAlias

import grpc

from modelfleetd.kit.method import Method

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
# Of a request, or of an iterator of requests where the method streams them.
Unary: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
Stream: TypeAlias = Callable[[Any, Context], AsyncIterator[Any]]


class Interceptor(Protocol):
    """Wraps handlers that answer once, and handlers that answer with a stream."""

    def unary(self, method: Method, inner: Unary) -> Unary: ...

    def stream(self, method: Method, inner: Stream) -> Stream: ...


Check: TypeAlias = Callable[[Any, Context], Awaitable[None]]


class CheckingInterceptor:
    """An interceptor that looks at a call before it goes on, and raises where it must not."""

    def prepare(self, method: Method) -> Check | None:
        """Returns the check of a method; None where there is nothing to check. Called once a method."""
        raise NotImplementedError

    def unary(self, method: Method, inner: Unary) -> Unary:
        check = self.prepare(method)
        if check is None:
            return inner
        if method.streams_requests:
            return lambda requests, context: inner(_checked(requests, context, check), context)

        async def checked(request: Any, context: Context) -> Any:
            await check(request, context)
            return await inner(request, context)

        return checked

    def stream(self, method: Method, inner: Stream) -> Stream:
        check = self.prepare(method)
        if check is None:
            return inner

        async def checked(request: Any, context: Context) -> AsyncIterator[Any]:
            if method.streams_requests:
                request = _checked(request, context, check)
            else:
                await check(request, context)
            async with aclosing(inner(request, context)) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    yield answer

        return checked


async def _checked(requests: AsyncIterator[Any], context: Context, check: Check) -> AsyncIterator[Any]:
    """Checks each request of a stream as it comes."""
    async for request in requests:
        await check(request, context)
        yield request
