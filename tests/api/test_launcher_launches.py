"""Launches from end to end: real registry and capacity, a simulated platform, the launcher through its channel."""

from __future__ import annotations

from dataclasses import replace

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.launcher.domain.record import Verdict
from tests.support.capacity import hold
from tests.support.launcher import CTR, EU, NEW, OLD, QUICK, TARGET, US, launcher_fleet, refused
from tests.support.wait import until


async def test_a_candidate_takes_over_and_everything_agrees(database_url: str) -> None:
    async with launcher_fleet(database_url, old=50, new=42, spare=10) as fleet:
        await fleet.create(policy=pb.LaunchPolicy(max_step_basis_points=5_000))
        launch = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert fleet.broken_promises(launch) == []
        assert fleet.peak() <= launch.plan.regions[0].hold_units
        kind = await fleet.client.registry.get_model_type(name=CTR)
        assert kind.baseline == NEW and kind.revision == launch.revision
        assert [(s.model, s.share_basis_points) for s in kind.splits[0].shares] == [(NEW, 10_000)]
        assert (await fleet.client.registry.get_model(name=OLD)).role == registry_pb2.Model.RETIRED
        usage = await fleet.usage()
        held = launch.plan.regions[0].hold_units
        assert (usage.serving_units, usage.held_units, usage.retained_units) == (42, 0, held - 42)
        seen = await fleet.simulator.observe(TARGET)
        assert {m.model: m.existing_replicas for m in seen.models if m.existing_replicas} == {NEW: 42}
        assert sum(model.errors for model in seen.models) == 0 and seen.unrouted_errors == fleet.unrouted
        assert launch.summary.startswith("Succeeded after")
        states = [pb.Launch.State.Name(phase.state) for phase in launch.phase_times]
        assert states == ["PENDING", "ESTIMATING", "PREPARING", "SHIFTING", "FINALIZING", "SUCCEEDED"]


async def test_an_abort_leads_back_and_the_registry_never_lets_it_succeed(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        await fleet.create(bake=60)
        await fleet.waits("Baking")
        aborted = await fleet.client.launcher.abort_launch(name="launches/l1", reason="it looks bad")
        assert aborted.abort.reason == "it looks bad"
        launch = await fleet.reaches(pb.Launch.ROLLED_BACK)
        assert fleet.broken_promises(launch) == []
        usage = await fleet.usage()
        assert (usage.serving_units, usage.held_units, usage.retained_units) == (50, 0, 0)
        seen = await fleet.simulator.observe(TARGET)
        assert {m.model: m.existing_replicas for m in seen.models if m.existing_replicas} == {OLD: 50}
        with refused("LAUNCH_ENDED"):
            await fleet.client.registry.finalize_launch(
                model_type=CTR,
                launch="launches/l1",
                outcome=registry_pb2.FinalizeLaunchRequest.SUCCEEDED,
                expected_revision=1,
            )
        # Idempotent, and it stays what it is.
        again = await fleet.client.launcher.abort_launch(name="launches/l1", reason="again")
        assert again.state == pb.Launch.ROLLED_BACK and again.abort.reason == "it looks bad"


async def test_a_failing_gate_leads_back_and_its_verdict_is_shown_with_its_figures(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        fleet.judge.verdicts = [Verdict.PASS, Verdict.FAIL]
        await fleet.create(gate=True)
        launch = await fleet.reaches(pb.Launch.ROLLED_BACK)
        assert launch.abort.author == "gate/stability"
        assert [v.figures["click.calibration"] for v in launch.gate_verdicts if v.gate == "stability"] == [1.01, 1.01]
        assert fleet.judge.asked[0] == fleet.judge.asked[1]
        kind = await fleet.client.registry.get_model_type(name=CTR)
        assert kind.baseline == OLD


async def test_validate_only_gives_the_whole_plan_and_creates_nothing(database_url: str) -> None:
    async with launcher_fleet(database_url, old=500, new=420, spare=100) as fleet:
        planned = await fleet.client.launcher.create_launch(launch=fleet.request(), validate_only=True)
        (region,) = planned.plan.regions
        assert [step.peak_units for step in region.steps] == [584, 568, 552, 536, 520]
        assert (region.hold_units, region.moved_units, region.extra_units) == (584, 500, 84)
        assert (planned.plan.cost_before, planned.plan.cost_after, planned.plan.cost_peak) == (500, 420, 584)
        assert planned.envelope.digest.startswith("sha256:")
        assert [launch async for launch in fleet.client.launcher.list_launches_all()] == []


async def test_a_plan_that_does_not_fit_says_what_is_missing(database_url: str) -> None:
    async with launcher_fleet(database_url, old=500, new=600, spare=100) as fleet:
        with refused("PLAN_INFEASIBLE") as raised:
            await fleet.create()
        assert raised.value.metadata["missing_units"] == "4"
        assert "needs 104 free, and then takes 19 steps" in raised.value.message


async def test_the_first_model_of_a_route_becomes_its_baseline(database_url: str) -> None:
    async with launcher_fleet(database_url, serving=False) as fleet:
        await fleet.create()
        launch = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert launch.baseline == "" and len(launch.plan.regions[0].steps) == 1
        assert (await fleet.client.registry.get_model_type(name=CTR)).baseline == NEW


async def test_the_first_model_of_a_route_is_taken_away_again_by_an_abort(database_url: str) -> None:
    async with launcher_fleet(database_url, serving=False) as fleet:
        await fleet.create(bake=60)
        await fleet.waits("Baking")
        await fleet.client.launcher.abort_launch(name="launches/l1", reason="no")
        await fleet.reaches(pb.Launch.ROLLED_BACK)
        seen = await fleet.simulator.observe(TARGET)
        assert sum(model.existing_replicas for model in seen.models) == 0
        assert (await fleet.usage()).available_units == 60


async def test_regions_are_launched_one_after_another_and_undone_in_reverse(database_url: str) -> None:
    async with launcher_fleet(database_url, regions=("eu", "us"), old=10, new=10, spare=4) as fleet:
        await fleet.create("done", policy=pb.LaunchPolicy(max_step_basis_points=10_000, max_steps=20))
        done = await fleet.reaches(pb.Launch.SUCCEEDED, "launches/done")
        assert [progress.region for progress in done.progress] == [EU, US]
        kind = await fleet.client.registry.get_model_type(name=CTR)
        assert {split.region: split.shares[0].model for split in kind.splits} == {EU: NEW, US: NEW}


async def test_a_second_region_that_fails_undoes_the_first_as_well(database_url: str) -> None:
    async with launcher_fleet(database_url, regions=("eu", "us"), old=10, new=10, spare=4) as fleet:
        await fleet.create(bake=0.1)

        async def second() -> bool:
            return len((await fleet.get()).progress) == 2

        await until(second, 30)
        await fleet.client.launcher.abort_launch(name="launches/l1", reason="us looks bad")
        await fleet.reaches(pb.Launch.ROLLED_BACK)
        for agent in fleet.platforms.agents.values():
            seen = await agent.observe(TARGET)
            assert {m.model: m.existing_replicas for m in seen.models if m.existing_replicas} == {OLD: 10}


async def test_a_baseline_without_certificate_is_sized_by_what_serves(database_url: str) -> None:
    async with launcher_fleet(database_url, certified=(NEW,)) as fleet:
        planned = await fleet.client.launcher.create_launch(launch=fleet.request(), validate_only=True)
        (region,) = planned.plan.regions
        assert region.old_inferred and region.old_replicas_full == 50


async def test_little_traffic_is_said_and_does_not_stop_a_launch(database_url: str) -> None:
    quiet = replace(QUICK, requests_per_second=2.0)
    async with launcher_fleet(database_url, behaviour=quiet, old=10, new=10) as fleet:
        await fleet.create(bake=1.0, policy=pb.LaunchPolicy(max_step_basis_points=10_000))
        launch = await fleet.waits("FewRequests")
        assert any(condition.type == "LowTraffic" for condition in launch.conditions)
        await fleet.reaches(pb.Launch.SUCCEEDED)


async def test_capacity_that_another_launch_holds_is_waited_for(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10, spare=6) as fleet:
        client = fleet.client
        await fleet.create(bake=60, policy=pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED))
        await fleet.reaches(pb.Launch.AWAITING_APPROVAL)
        other = await client.capacity.create_reservation(reservation=hold("other", 6))
        shown = await fleet.get()
        await fleet.approve(shown.envelope.digest)
        await fleet.waits("Refused")
        await client.capacity.cancel_reservation(name=other.name)
        await fleet.waits("Baking")
        await client.launcher.abort_launch(name="launches/l1", reason="enough")
        await fleet.reaches(pb.Launch.ROLLED_BACK)


async def test_the_fleet_is_observed_and_reported_beside_the_ledger(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        await fleet.observe()
        statuses = [s async for s in fleet.client.registry.list_serving_statuses_all()]
        (status,) = statuses
        assert (status.model_type, status.region) == (CTR, EU)
        assert [(m.model, m.available_replicas, m.share_basis_points) for m in status.models] == [(OLD, 50, 10_000)]
