"""What the protos declare of a method: looked up once, when it is first called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from modelfleet.common.v1 import permission_pb2
from modelfleetd.kit.auth import Role


@dataclass(frozen=True, slots=True)
class Permission:
    """The rule of a method: any of these roles, on the team of the resource that this field of the request names."""

    any_of: frozenset[Role]
    resource: str

    @property
    def sufficient(self) -> frozenset[Role]:
        """The roles that suffice: ADMIN may do everything that anybody may."""
        return self.any_of | {Role.ADMIN} if self.any_of else frozenset()

    def resource_in(self, request: Any) -> str:
        """Returns the name of the resource in a request; empty where the rule names none."""
        value = request
        for name in self.resource.split(".") if self.resource else ():
            value = getattr(value, name)
        return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service."""

    # As it is called: /modelfleet.registry.v1.RegistryService/GetTeam.
    path: str
    service: str
    name: str
    request: type[Any]
    streams_requests: bool
    streams_responses: bool
    # None: nobody may call it.
    permission: Permission | None

    @property
    def is_stream(self) -> bool:
        """Whether it stays open: counted and limited apart from plain calls."""
        return self.streams_requests or self.streams_responses


def find_method(path: str) -> Method | None:
    """Returns what is declared of a method; None where no known service has it."""
    _, service_name, name = path.split("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
    except KeyError:
        return None
    declared = service.methods_by_name.get(name)
    if declared is None:
        return None
    return Method(
        path=path,
        service=service_name,
        name=name,
        request=GetMessageClass(declared.input_type),
        streams_requests=declared.client_streaming,
        streams_responses=declared.server_streaming,
        permission=_permission(declared.GetOptions()),
    )


def _permission(options: Any) -> Permission | None:
    if not options.HasExtension(permission_pb2.permission):
        return None
    declared = options.Extensions[permission_pb2.permission]
    return Permission(frozenset(Role(role) for role in declared.any_of), declared.resource)
