"""How launches go: figures of many launches."""

from __future__ import annotations

from modelfleet.launcher.v1 import kpis_pb2 as pb
from modelfleetd.launcher.api.base import Base, Context
from modelfleetd.launcher.wire import statistics as wire


class Statistics(Base):
    """Figures of launches that have ended."""

    async def GetLaunchStatistics(
        self, request: pb.GetLaunchStatisticsRequest, context: Context
    ) -> pb.GetLaunchStatisticsResponse:
        asked = wire.asked(request, await self._store.now())
        return wire.answer(await self._store.statistics(asked), asked)
