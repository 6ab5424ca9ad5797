"""What really serves."""

from __future__ import annotations

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit import paging
from modelfleetd.kit.codec import from_proto, to_proto
from modelfleetd.registry.api.base import Base, Context
from modelfleetd.registry.domain.observed import ServingStatus, check_statuses, newest


class Serving(Base):
    """What really serves."""

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
