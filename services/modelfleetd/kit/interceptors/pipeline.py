"""Puts the interceptors around each handler, once a method, and hands grpc the result."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import reduce
from typing import Any

import grpc

from modelfleetd.errors import MethodUnknown
from modelfleetd.kit.interceptors.base import Context, Interceptor, Unary
from modelfleetd.kit.method import Method, find_method

# Servers' own services, which every caller may use: they tell nothing of the fleet.
_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_UNKNOWN_SERVICE = "unknown"


class Pipeline(grpc.aio.ServerInterceptor):
    """The one interceptor that grpc knows of."""

    def __init__(self, interceptors: Sequence[Interceptor], when_unknown: Sequence[Interceptor]) -> None:
        """Makes the pipeline.

        Args:
            interceptors: outermost first.
            when_unknown: the ones for calls of methods that do not exist.
        """
        self._interceptors = tuple(reversed(interceptors))
        self._when_unknown = tuple(reversed(when_unknown))
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        path: str = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is not None:
            return handler
        found = await continuation(handler_call_details)
        if found is not None and path.startswith(_OPEN):
            return found
        method = find_method(path) if found is not None else None
        if found is None or method is None:
            # Not kept: callers could fill the memory with names.
            return self._unknown(path)
        handler = self._handlers[path] = self._wrap(method, found)
        return handler

    def _wrap(self, method: Method, found: Any) -> grpc.RpcMethodHandler[Any, Any]:
        # Requests stay bytes here: the decoding interceptor makes messages of them.
        serializer = found.response_serializer
        if method.streams_responses:
            serve = found.stream_stream if method.streams_requests else found.unary_stream
            if not inspect.isasyncgenfunction(serve):
                raise TypeError(f"{method.path} must be an async generator")
            serve = reduce(lambda inner, interceptor: interceptor.stream(method, inner), self._interceptors, serve)
            make = (
                grpc.stream_stream_rpc_method_handler
                if method.streams_requests
                else grpc.unary_stream_rpc_method_handler
            )
            return make(serve, None, _SerializedOnce(serializer))
        serve = found.stream_unary if method.streams_requests else found.unary_unary
        if not inspect.iscoroutinefunction(serve):
            raise TypeError(f"{method.path} must be a coroutine function")
        serve = reduce(lambda inner, interceptor: interceptor.unary(method, inner), self._interceptors, serve)
        if method.streams_requests:
            return grpc.stream_unary_rpc_method_handler(serve, None, serializer)
        return grpc.unary_unary_rpc_method_handler(serve, None, serializer)

    def _unknown(self, path: str) -> grpc.RpcMethodHandler[Any, Any]:
        method = Method(path, _UNKNOWN_SERVICE, _UNKNOWN_SERVICE, object, False, False, None)

        async def refuse(_request: Any, _context: Context) -> Any:
            raise MethodUnknown(path[:200])

        serve: Unary = refuse
        for interceptor in self._when_unknown:
            serve = interceptor.unary(method, serve)
        return grpc.unary_unary_rpc_method_handler(serve, None, None)


class _SerializedOnce:
    """Serialises a message once when it is sent to many, one right after the other: those who watch the same.

    A handler must not change a message that it has sent.
    """

    def __init__(self, serialize: Callable[[Any], bytes]) -> None:
        self._serialize = serialize
        self._last: tuple[Any, bytes] = (None, b"")

    def __call__(self, message: Any) -> bytes:
        last, serialized = self._last
        if last is not message:
            serialized = self._serialize(message)
            self._last = (message, serialized)
        return serialized
