"""Estimates: what a model needs, and what changes when it takes over."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity.api.base import Base, Context, before, new_name
from modelfleetd.capacity.store import estimates
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import estimates as wire
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection


class Estimates(Base):
    """Implements the methods of estimates."""

    async def CreateEstimate(self, request: pb.CreateEstimateRequest, context: Context) -> pb.Estimate:
        wanted = wire.wanted_from_proto(request.estimate)
        found = await self._estimator.estimate(new_name(names.ESTIMATE, "e"), wanted)
        made = wire.estimate_to_proto(found.estimate)

        async def act(conn: Connection) -> pb.Estimate:
            await estimates.insert(conn, made.name, made.model, made.SerializeToString())
            return made

        answer = await change(self._database, request, pb.Estimate, act)
        if request.validate_only:
            answer.ClearField("name")
        return answer

    async def GetEstimate(self, request: pb.GetEstimateRequest, context: Context) -> pb.Estimate:
        return pb.Estimate.FromString(await estimates.get(self._database, request.name))

    async def ListEstimates(self, request: pb.ListEstimatesRequest, context: Context) -> pb.ListEstimatesResponse:
        page = paging.read(request, int)
        found = await estimates.page(self._database, request.model, before(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.sequence,), lambda row: pb.Estimate.FromString(row.answer))
        return pb.ListEstimatesResponse(estimates=shown, next_page_token=token)
