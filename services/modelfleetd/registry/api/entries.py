"""Teams, regions, model types and models."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.kit.auth import Role, current_principal, expect_role_on_destination
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry.api.base import Base, Context, author, new_uid
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resources import Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.rules import check_waiver_times


class Entries(Base):
    """Teams, regions, model types and models."""

    # Teams.

    async def GetTeam(self, request: pb.GetTeamRequest, context: Context) -> pb.Team:
        return await self._get(request, pb.Team)

    async def ListTeams(self, request: pb.ListTeamsRequest, context: Context) -> pb.ListTeamsResponse:
        teams, token, revision = await self._list(request, pb.Team)
        return pb.ListTeamsResponse(teams=teams, next_page_token=token, revision=revision)

    async def CreateTeam(self, request: pb.CreateTeamRequest, context: Context) -> pb.Team:
        name = names.TEAM.format(names.check_id(request.team_id, "team_id"))
        team, uid = from_proto(request.team, Team, name=name), new_uid()

        def decide(ledger: Ledger) -> Edits:
            return entries.create_team(ledger, team, uid)

        return await self._writer.change(request, pb.Team, name, author(request), decide)

    async def UpdateTeam(self, request: pb.UpdateTeamRequest, context: Context) -> pb.Team:
        names.TEAM.parse(request.team.name, "team.name")
        team, caller = from_proto(request.team, Team), current_principal()
        is_admin = Role.ADMIN in caller.roles_everywhere

        def decide(ledger: Ledger) -> Edits:
            return entries.update_team(ledger, team, request.update_mask.paths, caller.name, is_admin=is_admin)

        return await self._writer.change(request, pb.Team, team.name, author(request), decide)

    async def DeleteTeam(self, request: pb.DeleteTeamRequest, context: Context) -> Empty:
        names.TEAM.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return entries.delete_team(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, author(request), decide)

    # Regions.

    async def GetRegion(self, request: pb.GetRegionRequest, context: Context) -> pb.Region:
        return await self._get(request, pb.Region)

    async def ListRegions(self, request: pb.ListRegionsRequest, context: Context) -> pb.ListRegionsResponse:
        regions, token, revision = await self._list(request, pb.Region)
        return pb.ListRegionsResponse(regions=regions, next_page_token=token, revision=revision)

    async def CreateRegion(self, request: pb.CreateRegionRequest, context: Context) -> pb.Region:
        name = names.REGION.format(names.check_id(request.region_id, "region_id"))
        region, uid = from_proto(request.region, Region, name=name), new_uid()

        def decide(ledger: Ledger) -> Edits:
            return entries.create_region(ledger, region, uid)

        return await self._writer.change(request, pb.Region, name, author(request), decide)

    async def UpdateRegion(self, request: pb.UpdateRegionRequest, context: Context) -> pb.Region:
        names.REGION.parse(request.region.name, "region.name")
        region = from_proto(request.region, Region)

        def decide(ledger: Ledger) -> Edits:
            return entries.update_region(ledger, region, request.update_mask.paths)

        return await self._writer.change(request, pb.Region, region.name, author(request), decide)

    async def DeleteRegion(self, request: pb.DeleteRegionRequest, context: Context) -> Empty:
        names.REGION.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return entries.delete_region(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, author(request), decide)

    # Model types.

    async def GetModelType(self, request: pb.GetModelTypeRequest, context: Context) -> pb.ModelType:
        return await self._get(request, pb.ModelType)

    async def ListModelTypes(self, request: pb.ListModelTypesRequest, context: Context) -> pb.ListModelTypesResponse:
        model_types, token, revision = await self._list(request, pb.ModelType)
        return pb.ListModelTypesResponse(model_types=model_types, next_page_token=token, revision=revision)

    async def CreateModelType(self, request: pb.CreateModelTypeRequest, context: Context) -> pb.ModelType:
        name = names.MODEL_TYPE.format(names.check_id(request.model_type_id, "model_type_id"))
        model_type, uid = from_proto(request.model_type, ModelType, name=name), new_uid()
        check_waiver_times(model_type.lint_waivers, self._clock.now(), "model_type")

        def decide(ledger: Ledger) -> Edits:
            return entries.create_model_type(ledger, model_type, uid)

        return await self._writer.change(request, pb.ModelType, name, author(request), decide)

    async def UpdateModelType(self, request: pb.UpdateModelTypeRequest, context: Context) -> pb.ModelType:
        names.MODEL_TYPE.parse(request.model_type.name, "model_type.name")
        await expect_role_on_destination(request.model_type.team, request.update_mask.paths)
        model_type = from_proto(request.model_type, ModelType)
        check_waiver_times(model_type.lint_waivers, self._clock.now(), "model_type")

        def decide(ledger: Ledger) -> Edits:
            return entries.update_model_type(ledger, model_type, request.update_mask.paths)

        return await self._writer.change(request, pb.ModelType, model_type.name, author(request), decide)

    async def DeleteModelType(self, request: pb.DeleteModelTypeRequest, context: Context) -> Empty:
        names.MODEL_TYPE.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return entries.delete_model_type(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, author(request), decide)

    # Models.

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:
        return await self._get(request, pb.Model)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        models, token, revision = await self._list(request, pb.Model)
        return pb.ListModelsResponse(models=models, next_page_token=token, revision=revision)

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.Model:
        (model_type,) = names.MODEL_TYPE.parse(request.parent, "parent")
        name = names.MODEL.format(model_type, names.check_id(request.model_id, "model_id"))
        model, uid = from_proto(request.model, Model, name=name), new_uid()
        check_waiver_times(model.lint_waivers, self._clock.now(), "model")

        def decide(ledger: Ledger) -> Edits:
            return entries.create_model(ledger, model, uid)

        return await self._writer.change(request, pb.Model, name, author(request), decide)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> pb.Model:
        names.MODEL.parse(request.model.name, "model.name")
        model = from_proto(request.model, Model)
        check_waiver_times(model.lint_waivers, self._clock.now(), "model")

        def decide(ledger: Ledger) -> Edits:
            return entries.update_model(ledger, model, request.update_mask.paths)

        return await self._writer.change(request, pb.Model, model.name, author(request), decide)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> Empty:
        names.MODEL.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return entries.delete_model(ledger, request.name, request.etag)

        return await self._writer.change(
            request, Empty, request.name, author(request), decide, evidence_of=[request.name]
        )
