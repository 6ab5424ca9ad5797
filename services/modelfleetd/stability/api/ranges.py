"""Healthy ranges: proposals."""

from __future__ import annotations

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.names import MODEL
from modelfleetd.stability.api.base import Base, Context
from modelfleetd.stability.wire import ranges as wire


class Ranges(Base):
    """Hands questions about ranges to the proposer."""

    async def ProposeRanges(self, request: pb.ProposeRangesRequest, context: Context) -> pb.ProposeRangesResponse:
        MODEL.parse(request.model, "model")
        declared = await self._registry.declared_of_model(request.model)
        found = await self._proposer.propose(declared, request.model, wire.wish(request))
        return wire.proposals(found, with_history=request.include_history)
