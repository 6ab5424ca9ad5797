"""Makes messages of the bytes that came, so that damaged ones get an answer like every other bad input."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.message import DecodeError

from modelfleetd.errors import invalid
from modelfleetd.kit.interceptors.base import Context, Stream, Unary
from modelfleetd.kit.method import Method


class DecodingInterceptor:
    """Decodes requests; grpc would answer damaged ones with an error of its own making."""

    def unary(self, method: Method, inner: Unary) -> Unary:
        if method.streams_requests:
            return lambda requests, context: inner(_decoded(method.request, requests), context)
        decode = method.request.FromString

        async def decoded(request: bytes, context: Context) -> Any:
            try:
                message = decode(request)
            except DecodeError as error:
                raise _damaged(method.request) from error
            return await inner(message, context)

        return decoded

    def stream(self, method: Method, inner: Stream) -> Stream:
        async def decoded(request: Any, context: Context) -> AsyncIterator[Any]:
            given = _decoded(method.request, request) if method.streams_requests else _decode(method.request, request)
            async with aclosing(inner(given, context)) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    yield answer

        return decoded


def _decode(message_class: type[Any], data: bytes) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise _damaged(message_class) from error


async def _decoded(message_class: type[Any], requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for data in requests:
        yield _decode(message_class, data)


def _damaged(message_class: type[Any]) -> Exception:
    return invalid("request", f"must be a {message_class.DESCRIPTOR.full_name} in protobuf's encoding")
