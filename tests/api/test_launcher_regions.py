"""Launches in several regions against real registry and capacity: planned, shown, launched and taken back in waves."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from modelfleet.cli.launch import view
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from tests.support.launcher import CTR, EU, NEW, OLD, PEAK_QPS, US, Fleet, launcher_fleet, refused


async def less_traffic(fleet: Fleet, region: str) -> None:
    """Has a region need half as many replicas as the others."""
    found = await fleet.client.registry.get_model_type(name=CTR)
    demand = [
        registry_pb2.RegionDemand(region=each, peak_qps=PEAK_QPS / 2 if each == region else PEAK_QPS)
        for each in found.regions
    ]
    found.demand_source.CopyFrom(registry_pb2.DemandSource(stated=demand))
    await fleet.client.registry.update_model_type(model_type=found)


def shown(launch: pb.Launch, width: int) -> str:
    """A plan as a terminal of that width shows it."""
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        for part in view.plan_parts(launch):
            console.print(part)
    return captured.get()


async def test_a_launch_goes_in_the_order_of_regions_that_is_asked_for(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=18, spare=6, regions=("eu", "us")) as fleet:
        await less_traffic(fleet, US)
        launcher = fleet.client.launcher
        one_by_one = await launcher.create_launch(launch=fleet.request(), validate_only=True)
        assert [(plan.region, plan.wave) for plan in one_by_one.plan.regions] == [(US, 1), (EU, 2)]
        together = pb.LaunchPolicy(region_order=pb.LaunchPolicy.TOGETHER, rollback_window=Duration())
        planned = await launcher.create_launch(launch=fleet.request(policy=together), validate_only=True)
        assert {plan.wave for plan in planned.plan.regions} == {1}
        assert planned.plan.cost_peak > one_by_one.plan.cost_peak
        assert planned.plan.expected_duration.ToTimedelta() < one_by_one.plan.expected_duration.ToTimedelta()
        ends = [plan.steps[-1].expected_end.ToTimedelta() for plan in one_by_one.plan.regions]
        assert ends[0] < ends[1] == one_by_one.plan.expected_duration.ToTimedelta()
        assert "wave 2 of 2\neu: 18 replicas of the candidate for 20 of the baseline" in shown(one_by_one, 80)
        for width in (80, 160):
            said = shown(planned, width)
            assert "wave 1 of 1: 2 regions together, step by step" in said
            assert "0 → " in said and "launch policy: ACCEPTED by free within quota" in " ".join(said.split())
            assert all(len(line) <= width for line in said.splitlines())
        await fleet.create(policy=together)
        done = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert {found.region: found.candidate.intended_basis_points for found in done.progress} == {
            EU: 10_000,
            US: 10_000,
        }
        route = await fleet.client.registry.get_model_type(name=CTR)
        assert route.baseline == NEW and {split.region for split in route.splits} == {EU, US}
        # Back again, and an abort while both regions have something of it.
        await fleet.create("l2", candidate=OLD, bake=600, policy=together)
        await fleet.waits("Baking", "launches/l2")
        await launcher.abort_launch(name="launches/l2", reason="it looks bad")
        back = await fleet.reaches(pb.Launch.ROLLED_BACK, "launches/l2")
        assert {found.candidate.intended_basis_points for found in back.progress} == {0}


async def test_what_is_missing_is_said_of_every_region_at_once(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=40, spare=3, regions=("eu", "us")) as fleet:
        with refused("PLAN_INFEASIBLE") as raised:
            await fleet.client.launcher.create_launch(launch=fleet.request(), validate_only=True)
        assert f"in {EU} going from 20" in str(raised.value) and f"in {US} going from 20" in str(raised.value)
