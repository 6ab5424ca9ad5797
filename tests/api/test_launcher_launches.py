"""Launches from end to end: real registry and capacity, a simulated platform, the launcher through its channel."""

from __future__ import annotations

from modelfleet.launcher.v1 import launcher_pb2 as pb
from tests.support.launcher import NEW, launcher_fleet


async def test_a_candidate_takes_over_and_everything_agrees(database_url: str) -> None:
    async with launcher_fleet(database_url, old=50, new=42, spare=10) as fleet:
        await fleet.create()
        launch = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert fleet.broken_promises(launch) == []
        assert fleet.peak() <= launch.plan.regions[0].hold_units
        usage = await fleet.usage()
        kind = await fleet.client.registry.get_model_type(name="modelTypes/ctr")
        assert kind.baseline == NEW
        print(usage, launch.summary)
        async for event in fleet.client.launcher.list_launch_events_all(name=launch.name):
            print(event.time.ToDatetime().time(), event.type, event.message)
