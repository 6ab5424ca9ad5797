"""A registry without a database, for what the kit does around any servicer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit import deadline
from modelfleetd.kit.app import Service
from modelfleetd.kit.auth import NO_ROLES, Principal, Role, current_principal
from modelfleetd.kit.trace import current_ids


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Answers some methods from memory, and shows how it was called."""

    def __init__(self) -> None:
        self.principal: Principal | None = None
        self.remaining: float | None = None
        self.traceparent = ""
        self.request: Any = None
        # Calls of GetRegion wait for it.
        self.gate = asyncio.Event()
        self.waiting = 0
        self.streams = 0

    def _note(self, request: Any) -> None:
        self.request = request
        self.principal = current_principal()
        self.remaining = deadline.remaining()
        ids = current_ids()
        self.traceparent = ids.traceparent if ids else ""

    async def GetTeam(self, request: pb.GetTeamRequest, context: Any) -> pb.Team:
        self._note(request)
        if request.name == "teams/nope":
            raise ResourceNotFound(request.name)
        if request.name == "teams/broken":
            raise RuntimeError("password=hunter2 at postgresql://root:hunter2@db/")
        return pb.Team(name=request.name, display_name="Ranking")

    async def ListTeams(self, request: pb.ListTeamsRequest, context: Any) -> pb.ListTeamsResponse:
        self._note(request)
        start = int(request.page_token or 0)
        teams = [pb.Team(name=f"teams/t{index}") for index in range(start, min(start + 2, 5))]
        return pb.ListTeamsResponse(teams=teams, next_page_token=str(start + 2) if start + 2 < 5 else "")

    async def GetRegion(self, request: pb.GetRegionRequest, context: Any) -> pb.Region:
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return pb.Region(name=request.name)

    async def GetModelType(self, request: pb.GetModelTypeRequest, context: Any) -> pb.ModelType:
        return pb.ModelType(name=request.name, team="teams/ranking")

    async def CreateModelType(self, request: pb.CreateModelTypeRequest, context: Any) -> pb.ModelType:
        self._note(request)
        return request.model_type

    async def UpdateModelType(self, request: pb.UpdateModelTypeRequest, context: Any) -> pb.ModelType:
        self._note(request)
        return request.model_type

    async def DeleteModelType(self, request: pb.DeleteModelTypeRequest, context: Any) -> empty_pb2.Empty:
        self._note(request)
        raise ResourceNotFound(request.name)

    async def CreateTeam(self, request: pb.CreateTeamRequest, context: Any) -> pb.Team:
        self._note(request)
        return pb.Team(name=f"teams/{request.team_id}", uid=request.request_id)

    async def WatchRevisions(
        self, request: pb.WatchRevisionsRequest, context: Any
    ) -> AsyncIterator[pb.WatchRevisionsResponse]:
        self._note(request)
        self.streams += 1
        try:
            yield pb.WatchRevisionsResponse(current_revision=request.after_revision + 1)
            if request.after_revision == 13:
                raise ResourceNotFound("revisions/13")
            await self.gate.wait()
            yield pb.WatchRevisionsResponse(current_revision=request.after_revision + 2)
        finally:
            self.streams -= 1


class FakeRoles:
    """Role bindings from a dict: (principal, team) to roles."""

    def __init__(self, bound: dict[tuple[str, str], set[Role]] | None = None) -> None:
        self.bound = bound or {}

    async def roles(self, principal: Principal, team: str | None) -> frozenset[Role]:
        found = (self.bound.get((member, team or ""), set()) for member in principal.members)
        return NO_ROLES.union(*found)

    async def roles_anywhere(self, principal: Principal) -> frozenset[Role]:
        return NO_ROLES.union(*(roles for (member, _), roles in self.bound.items() if member in principal.members))


async def team_of(name: str) -> str | None:
    """Model types whose ids begin with `ranking` are the ranking team's; others do not exist."""
    if name.startswith("teams/"):
        return name
    return "teams/ranking" if name.startswith("modelTypes/ranking") else None


def build_with(fake: FakeRegistry, roles: FakeRoles | None = None, expensive: tuple[str, ...] = ()) -> Any:
    """Returns the build of a service that serves the fake."""

    async def build(service: Service) -> None:
        server = service.server(roles=roles, team_of=team_of, expensive=expensive)
        server.add(fake, registry_pb2_grpc.add_RegistryServiceServicer_to_server)

    return build
