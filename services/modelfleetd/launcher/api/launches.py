"""Reading and watching launches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.kit import paging
from modelfleetd.launcher.api.base import Base, Context
from modelfleetd.launcher.wire import launches as wire

_HEARTBEAT_SECONDS: Final = 15.0


class Launches(Base):
    """Reading and watching launches."""

    async def GetLaunch(self, request: pb.GetLaunchRequest, context: Context) -> pb.Launch:
        return await self._shown(await self._store.get(request.name))

    async def ListLaunches(self, request: pb.ListLaunchesRequest, context: Context) -> pb.ListLaunchesResponse:
        page = paging.read(request, int)
        before = int(page.position[0]) if page.position else None
        rows = await self._store.page(
            before=before, limit=page.size + 1, model_type=request.model_type, active_only=request.active_only
        )
        verdicts = await self._store.verdicts([launch.name for _, launch in rows])
        now = await self._store.now()
        shown, token = page.answer(
            rows,
            lambda row: (row[0],),
            lambda row: wire.launch_to_proto(row[1], verdicts.get(row[1].name, ()), now),
        )
        return pb.ListLaunchesResponse(launches=shown, next_page_token=token)

    async def WatchLaunch(self, request: pb.WatchLaunchRequest, context: Context) -> AsyncIterator[pb.Launch]:
        async with self._notifier.watching(request.name) as changed:
            sent: tuple[int, object] | None = None
            while True:
                changed.clear()
                launch = await self._store.get(request.name)
                seen = (launch.version, launch.progress)
                if sent != seen:
                    yield await self._shown(launch)
                    sent = seen
                if launch.ended:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), _HEARTBEAT_SECONDS)
                except TimeoutError:
                    sent = None

    async def ListLaunchEvents(
        self, request: pb.ListLaunchEventsRequest, context: Context
    ) -> pb.ListLaunchEventsResponse:
        page = paging.read(request, int)
        after = int(page.position[0]) if page.position else 0
        rows = await self._store.events(request.name, after=after, limit=page.size + 1)
        shown, token = page.answer(rows, lambda event: (event.sequence,), wire.event_to_proto)
        return pb.ListLaunchEventsResponse(events=shown, next_page_token=token)
