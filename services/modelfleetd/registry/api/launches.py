"""What launches own."""

from __future__ import annotations

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.errors import invalid
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry.api.base import Base, Context, author
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.roles import Adoption, Finalization, adopt_serving


class Launches(Base):
    """What launches own."""

    # What launches own.

    async def AdoptServing(self, request: pb.AdoptServingRequest, context: Context) -> pb.ModelType:
        names.MODEL_TYPE.parse(request.model_type, "model_type")
        adoption = from_proto(request, Adoption)

        def decide(ledger: Ledger) -> Edits:
            return adopt_serving(ledger, adoption)

        return await self._writer.change(request, pb.ModelType, adoption.model_type, author(request), decide)

    async def FinalizeLaunch(self, request: pb.FinalizeLaunchRequest, context: Context) -> pb.FinalizeLaunchResponse:
        names.MODEL_TYPE.parse(request.model_type, "model_type")
        names.LAUNCH.parse(request.launch, "launch")
        if request.attempt < 0:
            raise invalid("attempt", "must not be negative")
        return await self._writer.finalize(from_proto(request, Finalization), author(request, request.launch))
