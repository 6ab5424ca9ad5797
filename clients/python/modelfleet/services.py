"""The services as Python objects: a method for each RPC, made from the services' descriptors.

What a type checker sees is in services.pyi, which is generated from the same descriptors. For `GetModelType` there is

    await registry.get_model_type(name="modelTypes/feed_ctr")        # fields as keywords
    await registry.get_model_type(request, timeout=2)                # or a request message

A missing request_id is filled in. Streaming methods return (async) iterators. For `ListModels` there is also
`list_models_all(…)`, an (async) iterator over the models of all pages.
"""

from __future__ import annotations

import functools
import importlib
import re
import uuid
from collections.abc import AsyncGenerator, Generator
from typing import Any, ClassVar

import grpc

from modelfleet.errors import from_rpc_error
from modelfleet.transport import DEFAULT_STREAM_TIMEOUT, AsyncChannel, Options, SyncChannel, has_request_id


class _Method:
    """One RPC, as its descriptor declares it."""

    def __init__(self, descriptor: Any) -> None:
        from google.protobuf.message_factory import GetMessageClass

        self.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", descriptor.name).lower()
        self.path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        self.request: Any = GetMessageClass(descriptor.input_type)
        self.response: Any = GetMessageClass(descriptor.output_type)
        self.streams_requests: bool = descriptor.client_streaming
        self.streams_responses: bool = descriptor.server_streaming
        self.has_request_id = has_request_id(descriptor)
        self.items = _items(descriptor)
        kinds = ("unary", "stream")
        # As grpc names them: unary_unary, unary_stream, stream_unary, stream_stream.
        self.kind = f"{kinds[self.streams_requests]}_{kinds[self.streams_responses]}"

    def build(self, request: Any, fields: dict[str, Any]) -> Any:
        """Returns the request made of a message or of fields, with a request_id where it has that field."""
        if request is None:
            message = self.request(**fields)
        elif fields:
            raise TypeError(f"{self.name} takes a {self.request.__name__} or its fields, not both")
        else:
            message = request
        if self.has_request_id and not message.request_id:
            if message is request:
                message = self.request()
                message.CopyFrom(request)
            message.request_id = str(uuid.uuid4())
        return message

    def call(self, channel: AsyncChannel | SyncChannel, request: Any, timeout: float | None) -> Any:
        """Starts the call."""
        options = channel.options
        if timeout is None:
            timeout = DEFAULT_STREAM_TIMEOUT if self.streams_responses else options.timeout
        invoke = channel.callable(self.path, self.kind, self.request, self.response)
        return invoke(request, timeout=options.limit(timeout), metadata=options.metadata())


def _items(descriptor: Any) -> str | None:
    """Returns the repeated field of a paged answer; None where the method does not list by pages."""
    answer = descriptor.output_type
    if "next_page_token" not in answer.fields_by_name or "page_token" not in descriptor.input_type.fields_by_name:
        return None
    name: str = next(field.name for field in answer.fields if field.is_repeated)
    return name


@functools.cache
def _methods(module: str, service: str) -> tuple[tuple[Any, ...], tuple[_Method, ...]]:
    descriptors = tuple(importlib.import_module(module).DESCRIPTOR.services_by_name[service].methods)
    return descriptors, tuple(_Method(descriptor) for descriptor in descriptors)


class _Service:
    """A service; the subclasses say which, and how calls are made."""

    _module: ClassVar[str]
    _service: ClassVar[str]
    _channel_class: ClassVar[Any]

    def __init__(self, address: str, options: Options | None = None) -> None:
        descriptors, methods = _methods(self._module, self._service)
        self._channel = self._channel_class(address, descriptors, options or Options())
        for method in methods:
            setattr(self, method.name, self._bind(method))
            if method.items is not None:
                setattr(self, f"{method.name}_all", self._bind_pages(method))

    def _bind(self, method: _Method) -> Any:
        raise NotImplementedError

    def _bind_pages(self, method: _Method) -> Any:
        raise NotImplementedError


class _AsyncService(_Service):
    _channel_class = AsyncChannel

    async def close(self) -> None:
        await self._channel.close()

    def _bind(self, method: _Method) -> Any:
        channel = self._channel
        if method.streams_responses:

            async def stream(
                request: Any = None, /, *, timeout: float | None = None, **fields: Any
            ) -> AsyncGenerator[Any, None]:
                message = request if method.streams_requests else method.build(request, fields)
                call = method.call(channel, message, timeout)
                try:
                    async for answer in call:
                        yield answer
                except grpc.aio.AioRpcError as error:
                    raise from_rpc_error(error, method.path) from error
                finally:
                    call.cancel()

            return stream

        async def unary(request: Any = None, /, *, timeout: float | None = None, **fields: Any) -> Any:
            message = request if method.streams_requests else method.build(request, fields)
            try:
                with channel.options.around(method.path):
                    return await method.call(channel, message, timeout)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error, method.path) from error

        return unary

    def _bind_pages(self, method: _Method) -> Any:
        items, listing = method.items or "", getattr(self, method.name)

        async def pages(
            request: Any = None, /, *, timeout: float | None = None, **fields: Any
        ) -> AsyncGenerator[Any, None]:
            message = method.request()
            message.CopyFrom(method.build(request, fields))
            while True:
                answer = await listing(message, timeout=timeout)
                for item in getattr(answer, items):
                    yield item
                if not answer.next_page_token:
                    return
                message.page_token = answer.next_page_token

        return pages


class _SyncService(_Service):
    _channel_class = SyncChannel

    def close(self) -> None:
        self._channel.close()

    def _bind(self, method: _Method) -> Any:
        channel = self._channel
        if method.streams_responses:

            def stream(
                request: Any = None, /, *, timeout: float | None = None, **fields: Any
            ) -> Generator[Any, None, None]:
                message = request if method.streams_requests else method.build(request, fields)
                call = method.call(channel, message, timeout)
                try:
                    yield from call
                except grpc.RpcError as error:
                    raise from_rpc_error(error, method.path) from error
                finally:
                    call.cancel()

            return stream

        def unary(request: Any = None, /, *, timeout: float | None = None, **fields: Any) -> Any:
            message = request if method.streams_requests else method.build(request, fields)
            try:
                return method.call(channel, message, timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error, method.path) from error

        return unary

    def _bind_pages(self, method: _Method) -> Any:
        items, listing = method.items or "", getattr(self, method.name)

        def pages(request: Any = None, /, *, timeout: float | None = None, **fields: Any) -> Generator[Any, None, None]:
            message = method.request()
            message.CopyFrom(method.build(request, fields))
            while True:
                answer = listing(message, timeout=timeout)
                yield from getattr(answer, items)
                if not answer.next_page_token:
                    return
                message.page_token = answer.next_page_token

        return pages


class AsyncRegistry(_AsyncService):
    """The ledger of what is live, for asyncio."""

    _module, _service = "modelfleet.registry.v1.registry_pb2", "RegistryService"


class AsyncCapacity(_AsyncService):
    """Quota, reservations, load tests, estimates, for asyncio."""

    _module, _service = "modelfleet.capacity.v1.capacity_pb2", "CapacityService"


class AsyncLauncher(_AsyncService):
    """Launches, for asyncio."""

    _module, _service = "modelfleet.launcher.v1.launcher_pb2", "LauncherService"


class AsyncStability(_AsyncService):
    """Calibration, normalized entropy, verdicts, for asyncio."""

    _module, _service = "modelfleet.stability.v1.stability_pb2", "StabilityService"


class AsyncPlatform(_AsyncService):
    """A platform agent, for asyncio."""

    _module, _service = "modelfleet.platform.v1.platform_pb2", "PlatformService"


class Registry(_SyncService):
    """The ledger of what is live."""

    _module, _service = "modelfleet.registry.v1.registry_pb2", "RegistryService"


class Capacity(_SyncService):
    """Quota, reservations, load tests, estimates."""

    _module, _service = "modelfleet.capacity.v1.capacity_pb2", "CapacityService"


class Launcher(_SyncService):
    """Launches."""

    _module, _service = "modelfleet.launcher.v1.launcher_pb2", "LauncherService"


class Stability(_SyncService):
    """Calibration, normalized entropy, verdicts."""

    _module, _service = "modelfleet.stability.v1.stability_pb2", "StabilityService"


class Platform(_SyncService):
    """A platform agent."""

    _module, _service = "modelfleet.platform.v1.platform_pb2", "PlatformService"
