"""A watch that was ended by anything but its launch goes on where the launch is, at whichever launcher answers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from modelfleet import AsyncClient
from modelfleet.errors import DeadlineExceeded, Unavailable
from modelfleet.launcher.v1 import launcher_pb2 as pb
from tests.support.launcher import another_launcher, launcher_fleet
from tests.support.servers import client_of
from tests.support.wait import until

L1 = "launches/l1"


async def _watch(client: AsyncClient, seen: list[pb.Launch], timeout: float = 60) -> None:
    async for launch in client.launcher.watch_launch(name=L1, timeout=timeout):
        if not seen or launch != seen[-1]:
            seen.append(launch)


async def test_a_watch_is_resumed_at_another_launcher_and_ends_with_the_launch(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10, launcher=False) as fleet, AsyncExitStack() as clients:
        before: list[pb.Launch] = []
        async with another_launcher(fleet) as first:
            # Outlives the launcher: it is not the client that ends the watch.
            client = await clients.enter_async_context(client_of(first))
            await client.launcher.create_launch(launch_id="l1", launch=fleet.request(bake=0.5))
            with pytest.raises(DeadlineExceeded):
                await _watch(client, [], timeout=0.3)
            watching = asyncio.create_task(_watch(client, before))
            await until(lambda: before)
        with pytest.raises(Unavailable):
            await watching
        after: list[pb.Launch] = []
        async with another_launcher(fleet) as second, client_of(second) as client:
            await asyncio.wait_for(_watch(client, after), 30)
        assert int(after[0].etag, 16) >= int(before[-1].etag, 16)
        assert after[-1].state == pb.Launch.SUCCEEDED
