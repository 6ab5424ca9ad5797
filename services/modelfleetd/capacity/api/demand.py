"""Demand: how much traffic a route must carry."""

from __future__ import annotations

from modelfleet.capacity.v1 import demand_pb2
from modelfleetd.capacity.api.base import Base, Context
from modelfleetd.capacity.wire import demand as wire
from modelfleetd.errors import ReferenceNotFound, ResourceNotFound


class DemandMethods(Base):
    """Implements the methods of demand."""

    async def GetDemand(self, request: demand_pb2.GetDemandRequest, context: Context) -> demand_pb2.Demand:
        try:
            route = await self._registry.route(request.model_type, "model_type")
        except ReferenceNotFound as error:
            # It is what is asked about, and nothing that the request refers to besides.
            raise ResourceNotFound(request.model_type) from error
        return wire.demand_to_proto(await self._demands.of(route))
