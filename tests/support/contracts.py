"""What the descriptors say of every method: tests that must hold for all of them are made from this."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.api import field_behavior_pb2, resource_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import error_reason_pb2, permission_pb2
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.platform.v1 import platform_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import stability_pb2

SERVICES: dict[str, Any] = {
    "registry": registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
    "capacity": capacity_pb2.DESCRIPTOR.services_by_name["CapacityService"],
    "launcher": launcher_pb2.DESCRIPTOR.services_by_name["LauncherService"],
    "stability": stability_pb2.DESCRIPTOR.services_by_name["StabilityService"],
    "platform": platform_pb2.DESCRIPTOR.services_by_name["PlatformService"],
}


@dataclass(frozen=True)
class Rpc:
    """One method, callable with any message of its request type."""

    service: str
    name: str
    path: str
    request: type[Message]
    response: type[Message]
    streams: bool
    roles: frozenset[int]
    resource: str

    async def call(
        self, channel: grpc.aio.Channel, request: Message, principal: str = "", timeout: float = 5.0
    ) -> Message | None:
        """Calls it; of a stream, the first message. Raises grpc.aio.AioRpcError."""
        make: Any = channel.unary_stream if self.streams else channel.unary_unary
        method = make(
            self.path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.response.FromString,
        )
        metadata = (("x-modelfleet-principal", principal),) if principal else ()
        call = method(request, timeout=timeout, metadata=metadata)
        answer: Message | None = await (anext(call.__aiter__(), None) if self.streams else call)
        call.cancel()
        return answer


def rpcs(service: str) -> Iterator[Rpc]:
    """Every method of a service."""
    for method in SERVICES[service].methods:
        rule = method.GetOptions().Extensions[permission_pb2.permission]
        yield Rpc(
            service=service,
            name=method.name,
            path=f"/{SERVICES[service].full_name}/{method.name}",
            request=GetMessageClass(method.input_type),
            response=GetMessageClass(method.output_type),
            streams=method.server_streaming,
            roles=frozenset(rule.any_of),
            resource=rule.resource,
        )


@dataclass
class Refusal:
    """What a refused call carries."""

    code: grpc.StatusCode
    message: str
    infos: list[error_details_pb2.ErrorInfo] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """The one reason; fails where there is not exactly one, of this system, and declared."""
        assert len(self.infos) == 1, f"{self.code} {self.message!r} carries {len(self.infos)} ErrorInfos"
        (info,) = self.infos
        assert info.domain == "modelfleet"
        assert info.reason in error_reason_pb2.ErrorReason.keys(), info.reason  # noqa: SIM118
        return info.reason


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Reads what an error carries."""
    found = Refusal(error.code(), error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            for detail in status.details:
                info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
                if detail.Unpack(info):
                    found.infos.append(info)
                elif detail.Unpack(bad):
                    found.paths |= {violation.field: violation.description for violation in bad.field_violations}
    return found


async def refused(rpc: Rpc, channel: grpc.aio.Channel, request: Message, principal: str = "") -> Refusal | None:
    """Calls a method; how it was refused, or None where it was not."""
    try:
        await rpc.call(channel, request, principal)
    except grpc.aio.AioRpcError as error:
        return refusal(error)
    return None


def has_behavior(descriptor: Any, behavior: int) -> bool:
    """Whether a field is declared REQUIRED, OUTPUT_ONLY …"""
    declared: Any = descriptor.GetOptions().Extensions
    return behavior in declared[field_behavior_pb2.field_behavior]


def required_fields(rpc: Rpc) -> list[str]:
    """Paths of the top-level fields that a request must have."""
    return [f.name for f in rpc.request.DESCRIPTOR.fields if has_behavior(f, field_behavior_pb2.REQUIRED)]


def name_fields(rpc: Rpc) -> Iterator[tuple[Any, str]]:
    """Top-level string fields that hold a resource name, with the type that they refer to."""
    descriptor: Any
    for descriptor in rpc.request.DESCRIPTOR.fields:
        reference = descriptor.GetOptions().Extensions[resource_pb2.resource_reference]
        refers_to = reference.type or (f"parent of {reference.child_type}" if reference.child_type else "")
        if refers_to and not descriptor.is_repeated:
            yield descriptor, refers_to


_STRINGS = [
    "",
    "x",
    "a/b",
    "modelTypes/nope",
    "teams/-",
    "launches/" + "z" * 70,
    "\x00",
    "é" * 300,
    "%s'\";--",
    "-",
    "{port}",
]
_INTEGERS = [0, 1, -1, 7, 10_001, 2**31 - 1, -(2**31)]
_FLOATS = [0.0, -1.0, 1.5, float("nan"), float("inf"), -float("inf"), 1e308]


def arbitrary(message: Message, chance: random.Random, depth: int = 0) -> Message:
    """Fills a message with values that nobody should send; unknown enum values, NaN and huge numbers among them."""
    descriptor: Any
    for descriptor in message.DESCRIPTOR.fields:
        if chance.random() < (0.3 if depth < 2 else 0.7):
            continue
        if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
            continue
        count = chance.choice([1, 1, 2, 5]) if descriptor.is_repeated else 1
        for _ in range(count):
            _fill(message, descriptor, chance, depth)
    return message


def _fill(message: Message, descriptor: Any, chance: random.Random, depth: int) -> None:
    value: Any
    if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
        if depth > 3 or descriptor.message_type.full_name.startswith("google.protobuf.Struct"):
            return
        part = getattr(message, descriptor.name)
        if descriptor.is_repeated:
            arbitrary(part.add(), chance, depth + 1)
        else:
            part.SetInParent()
            arbitrary(part, chance, depth + 1)
        return
    if descriptor.type == FieldDescriptor.TYPE_STRING:
        value = chance.choice(_STRINGS)
    elif descriptor.type == FieldDescriptor.TYPE_BYTES:
        value = chance.randbytes(chance.choice([0, 1, 8, 16, 33]))
    elif descriptor.type == FieldDescriptor.TYPE_BOOL:
        value = chance.random() < 0.5
    elif descriptor.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        value = chance.choice(_FLOATS)
    elif descriptor.type == FieldDescriptor.TYPE_ENUM:
        value = chance.choice([0, 1, 2, 999, -5])
    else:
        value = chance.choice(_INTEGERS)
    if descriptor.is_repeated:
        getattr(message, descriptor.name).append(value)
    else:
        setattr(message, descriptor.name, value)
