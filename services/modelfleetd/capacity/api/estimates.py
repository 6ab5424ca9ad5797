"""Estimates: what a model needs."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity.api.base import Base, Context, before, new_name
from modelfleetd.capacity.domain.certificate import in_force
from modelfleetd.capacity.domain.estimate import Replica, estimate
from modelfleetd.capacity.registry import Model
from modelfleetd.capacity.store import certificates, flavors
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import estimates as wire
from modelfleetd.errors import ReferenceNotFound
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection


class Estimates(Base):
    """Implements the methods of estimates."""

    async def CreateEstimate(self, request: pb.CreateEstimateRequest, context: Context) -> pb.Estimate:
        headroom = wire.headroom_from_proto(request.estimate)
        model = await self._registry.model(request.estimate.model, "estimate.model")
        regions, demand = await self._registry.demand(model.model_type)
        name = new_name(names.ESTIMATE, "e")

        async def act(conn: Connection) -> pb.Estimate:
            replica = await self._replica(conn, model)
            made = estimate(name, model.name, regions, demand, replica, headroom, self._clock.now())
            answer = wire.estimate_to_proto(made)
            await certificates.insert_estimate(conn, name, model.name, answer.SerializeToString())
            return answer

        answer = await change(self._database, request, pb.Estimate, act)
        if request.validate_only:
            answer.ClearField("name")
        return answer

    async def _replica(self, conn: Connection, model: Model) -> Replica:
        """What a replica of a model carries and costs. Raises CertificateMissing, ReferenceNotFound."""
        flavor = model.spec.flavor
        known = await certificates.newest(conn, model.name, flavor)
        certificate = in_force(known, model.name, flavor, self._clock.now())
        if await flavors.missing(conn, [flavor]):
            raise ReferenceNotFound("serving_spec.flavor", flavor)
        cost = (await flavors.get(conn, flavor)).unit_cost
        return Replica(certificate.max_qps, certificate.name, flavor, cost, model.spec.units)

    async def GetEstimate(self, request: pb.GetEstimateRequest, context: Context) -> pb.Estimate:
        return pb.Estimate.FromString(await certificates.estimate(self._database, request.name))

    async def ListEstimates(self, request: pb.ListEstimatesRequest, context: Context) -> pb.ListEstimatesResponse:
        page = paging.read(request, int)
        found = await certificates.estimates_page(self._database, request.model, before(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.sequence,), lambda row: pb.Estimate.FromString(row.answer))
        return pb.ListEstimatesResponse(estimates=shown, next_page_token=token)
