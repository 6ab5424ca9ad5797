"""The registry's methods: parse, decide, store, reply."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd import names
from modelfleetd.clock import Clock
from modelfleetd.errors import ResourceNotFound, invalid
from modelfleetd.kit import paging
from modelfleetd.kit.auth import Role, current_principal, expect_role_on_destination
from modelfleetd.kit.codec import from_proto, to_proto
from modelfleetd.registry import wire
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.observed import ServingStatus, check_statuses, newest
from modelfleetd.registry.domain.resources import Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Author, Edits
from modelfleetd.registry.domain.roles import Adoption, Finalization, adopt_serving
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.snapshot import MODEL_TYPES, MODELS_OF_ALL, REGIONS, TEAMS, Snapshot, models_of
from modelfleetd.registry.store import Store
from modelfleetd.registry.watch import Watches
from modelfleetd.registry.writer import Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
M = TypeVar("M", pb.Team, pb.Region, pb.ModelType, pb.Model)


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Answers reads from the snapshot and hands writes to the writer."""

    def __init__(self, store: Store, follower: Follower, writer: Writer, watches: Watches, clock: Clock) -> None:
        self._store = store
        self._follower = follower
        self._writer = writer
        self._watches = watches
        self._clock = clock

    # Teams.

    async def GetTeam(self, request: pb.GetTeamRequest, context: Context) -> pb.Team:
        return _found(request.name, (await self._at(request.min_revision)).teams)

    async def ListTeams(self, request: pb.ListTeamsRequest, context: Context) -> pb.ListTeamsResponse:
        snapshot = await self._at(request.min_revision)
        teams, token = _page(request, snapshot, TEAMS, snapshot.teams)
        return pb.ListTeamsResponse(teams=teams, next_page_token=token, revision=snapshot.revision)

    async def CreateTeam(self, request: pb.CreateTeamRequest, context: Context) -> pb.Team:
        name = names.TEAM.format(names.check_id(request.team_id, "team_id"))
        team, uid = from_proto(request.team, Team, name=name), _new_uid()

        def decide(ledger: Ledger) -> Edits:
            return entries.create_team(ledger, team, uid)

        return await self._writer.change(request, pb.Team, name, _author(request), decide)

    async def UpdateTeam(self, request: pb.UpdateTeamRequest, context: Context) -> pb.Team:
        names.TEAM.parse(request.team.name, "team.name")
        team, caller = from_proto(request.team, Team), current_principal()
        is_admin = Role.ADMIN in caller.roles_everywhere

        def decide(ledger: Ledger) -> Edits:
            return entries.update_team(ledger, team, request.update_mask.paths, caller.name, is_admin=is_admin)

        return await self._writer.change(request, pb.Team, team.name, _author(request), decide)

    async def DeleteTeam(self, request: pb.DeleteTeamRequest, context: Context) -> Empty:
        names.TEAM.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return entries.delete_team(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, _author(request), decide)

    # Regions.

    async def GetRegion(self, request: pb.GetRegionRequest, context: Context) -> pb.Region:
        return _found(request.name, (await self._at(request.min_revision)).regions)

    async def ListRegions(self, request: pb.ListRegionsRequest, context: Context) -> pb.ListRegionsResponse:
        snapshot = await self._at(request.min_revision)
        regions, token = _page(request, snapshot, REGIONS, snapshot.regions)
        return pb.ListRegionsResponse(regions=regions, next_page_token=token, revision=snapshot.revision)

    async def CreateRegion(self, request: pb.CreateRegionRequest, context: Context) -> pb.Region:
        name = names.REGION.format(names.check_id(request.region_id, "region_id"))
        region, uid = from_proto(request.region, Region, name=name), _new_uid()

        def decide(ledger: Ledger) -> Edits:
            return entries.create_region(ledger, region, uid)

        return await self._writer.change(request, pb.Region, name, _author(request), decide)

    async def UpdateRegion(self, request: pb.UpdateRegionRequest, context: Context) -> pb.Region:
        names.REGION.parse(request.region.name, "region.name")
        region = from_proto(request.region, Region)

        def decide(ledger: Ledger) -> Edits:
            return entries.update_region(ledger, region, request.update_mask.paths)

        return await self._writer.change(request, pb.Region, region.name, _author(request), decide)

    async def DeleteRegion(self, request: pb.DeleteRegionRequest, context: Context) -> Empty:
        names.REGION.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return entries.delete_region(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, _author(request), decide)

    # Model types.

    async def GetModelType(self, request: pb.GetModelTypeRequest, context: Context) -> pb.ModelType:
        return _found(request.name, (await self._at(request.min_revision)).model_types)

    async def ListModelTypes(self, request: pb.ListModelTypesRequest, context: Context) -> pb.ListModelTypesResponse:
        snapshot = await self._at(request.min_revision)
        model_types, token = _page(request, snapshot, MODEL_TYPES, snapshot.model_types)
        return pb.ListModelTypesResponse(model_types=model_types, next_page_token=token, revision=snapshot.revision)

    async def CreateModelType(self, request: pb.CreateModelTypeRequest, context: Context) -> pb.ModelType:
        name = names.MODEL_TYPE.format(names.check_id(request.model_type_id, "model_type_id"))
        model_type, uid = from_proto(request.model_type, ModelType, name=name), _new_uid()

        def decide(ledger: Ledger) -> Edits:
            return entries.create_model_type(ledger, model_type, uid)

        return await self._writer.change(request, pb.ModelType, name, _author(request), decide)

    async def UpdateModelType(self, request: pb.UpdateModelTypeRequest, context: Context) -> pb.ModelType:
        names.MODEL_TYPE.parse(request.model_type.name, "model_type.name")
        await expect_role_on_destination(request.model_type.team, request.update_mask.paths)
        model_type = from_proto(request.model_type, ModelType)

        def decide(ledger: Ledger) -> Edits:
            return entries.update_model_type(ledger, model_type, request.update_mask.paths)

        return await self._writer.change(request, pb.ModelType, model_type.name, _author(request), decide)

    async def DeleteModelType(self, request: pb.DeleteModelTypeRequest, context: Context) -> Empty:
        names.MODEL_TYPE.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return entries.delete_model_type(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, _author(request), decide)

    # Models.

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:
        return _found(request.name, (await self._at(request.min_revision)).models)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        (model_type,) = names.MODEL_TYPE.parse(request.parent, "parent", wildcard=True)
        snapshot = await self._at(request.min_revision)
        collection = MODELS_OF_ALL if model_type == names.WILDCARD else models_of(request.parent)
        if model_type != names.WILDCARD and request.parent not in snapshot.model_types:
            raise ResourceNotFound(request.parent)
        models, token = _page(request, snapshot, collection, snapshot.models)
        return pb.ListModelsResponse(models=models, next_page_token=token, revision=snapshot.revision)

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.Model:
        (model_type,) = names.MODEL_TYPE.parse(request.parent, "parent")
        name = names.MODEL.format(model_type, names.check_id(request.model_id, "model_id"))
        model, uid = from_proto(request.model, Model, name=name), _new_uid()

        def decide(ledger: Ledger) -> Edits:
            return entries.create_model(ledger, model, uid)

        return await self._writer.change(request, pb.Model, name, _author(request), decide)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> pb.Model:
        names.MODEL.parse(request.model.name, "model.name")
        model = from_proto(request.model, Model)

        def decide(ledger: Ledger) -> Edits:
            return entries.update_model(ledger, model, request.update_mask.paths)

        return await self._writer.change(request, pb.Model, model.name, _author(request), decide)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> Empty:
        names.MODEL.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return entries.delete_model(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, _author(request), decide)

    # What launches own.

    async def AdoptServing(self, request: pb.AdoptServingRequest, context: Context) -> pb.ModelType:
        names.MODEL_TYPE.parse(request.model_type, "model_type")
        adoption = from_proto(request, Adoption)

        def decide(ledger: Ledger) -> Edits:
            return adopt_serving(ledger, adoption)

        return await self._writer.change(request, pb.ModelType, adoption.model_type, _author(request), decide)

    async def FinalizeLaunch(self, request: pb.FinalizeLaunchRequest, context: Context) -> pb.FinalizeLaunchResponse:
        names.MODEL_TYPE.parse(request.model_type, "model_type")
        names.LAUNCH.parse(request.launch, "launch")
        return await self._writer.finalize(from_proto(request, Finalization), _author(request, request.launch))

    # History.

    async def GetRevision(self, request: pb.GetRevisionRequest, context: Context) -> pb.Revision:
        (number,) = names.REVISION.parse(request.name)
        stored = await self._store.revision(int(number))
        if stored is None:
            raise ResourceNotFound(request.name)
        return wire.revision_of(stored)

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Context) -> pb.ListRevisionsResponse:
        if request.resource and not any(kind.pattern.match(request.resource) for kind in wire.KINDS):
            accepted = ", ".join(kind.pattern.template for kind in wire.KINDS)
            raise invalid("resource", f"must be empty or a name of the form {accepted}")
        page = paging.read(request, int)
        before = None if page.position is None else int(page.position[0])
        stored = await self._store.revisions_before(request.resource, before, page.size + 1)
        shown, token = page.answer(stored, lambda revision: (revision.number,), wire.revision_of)
        return pb.ListRevisionsResponse(revisions=shown, next_page_token=token)

    async def WatchRevisions(
        self, request: pb.WatchRevisionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchRevisionsResponse]:
        async for response in self._watches.after(request.after_revision):
            yield response

    # What really serves.

    async def ReportServing(self, request: pb.ReportServingRequest, context: Context) -> pb.ReportServingResponse:
        statuses = [from_proto(status, ServingStatus) for status in request.statuses]
        checked = newest(check_statuses(statuses, self._clock.now()))
        stored = await self._store.keep_serving([to_proto(status, pb.ServingStatus) for status in checked])
        return pb.ReportServingResponse(stored=stored)

    async def ListServingStatuses(
        self, request: pb.ListServingStatusesRequest, context: Context
    ) -> pb.ListServingStatusesResponse:
        page = paging.read(request, str, str)
        after = None if page.position is None else (str(page.position[0]), str(page.position[1]))
        found = await self._store.serving(request.model_type, after, page.size + 1)
        shown, token = page.cut(found, key=lambda status: (status.model_type, status.region))
        return pb.ListServingStatusesResponse(statuses=shown, next_page_token=token)

    async def _at(self, min_revision: int) -> Snapshot:
        """Returns the snapshot, at a revision or a later one."""
        if min_revision:
            await self._follower.reach(min_revision)
        return self._follower.snapshot


def _found(name: str, table: Mapping[str, M]) -> M:
    message = table.get(name)
    if message is None:
        raise ResourceNotFound(name)
    return message


def _page(request: Any, snapshot: Snapshot, collection: str, table: Mapping[str, M]) -> tuple[Sequence[M], str]:
    """Returns the messages of a page of a collection, and the token of the next one."""
    page = paging.read(request, str)
    after = None if page.position is None else str(page.position[0])
    found = snapshot.page(collection, after, page.size + 1)
    return page.answer(found, lambda name: (name,), table.__getitem__)


def _author(request: Any, launch: str = "") -> Author:
    principal = current_principal()
    return Author(principal.name, principal.asserted, principal.on_behalf_of or "", request.reason, launch)


def _new_uid() -> str:
    return str(uuid.uuid4())
