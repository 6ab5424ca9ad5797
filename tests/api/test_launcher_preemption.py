"""A mitigation during a launch, on real registry and capacity: it comes first, the launch goes on, the books agree."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.platform.ledger import Promise, violations
from modelfleetd.platform.model import DesiredModel, DesiredServing, Fence, ModelShare, TargetKind
from tests.support.launcher import CPU, CTR, EU, NEW, OLD, POOL, SPEC, TARGET, Fleet, certify, launcher_fleet, refused
from tests.support.wait import until

EXPERIMENT = f"{CTR}/models/experiment"
SERVING = {OLD: (40, 8_000), EXPERIMENT: (12, 2_000)}
FULL = {OLD: 50, NEW: 42, EXPERIMENT: 60}


async def serve_both(fleet: Fleet) -> None:
    """A baseline with four fifths of the traffic, and an experiment with the rest."""
    client, agent = fleet.client, fleet.simulator
    spec = serving_pb2.ServingSpec(command=["serve", "{port}"], flavor=CPU)
    await client.registry.create_model(parent=CTR, model_id="experiment", model=registry_pb2.Model(serving_spec=spec))
    await certify(client, EXPERIMENT, FULL[EXPERIMENT])
    models = tuple(DesiredModel(model, SPEC, replicas) for model, (replicas, _) in SERVING.items())
    shares = tuple(ModelShare(model, share) for model, (_, share) in SERVING.items())
    await agent.apply(TARGET, TargetKind.ROUTE, Fence(1, "before"), DesiredServing(models))

    async def up() -> bool:
        seen = await agent.observe(TARGET)
        return all(seen.model(model).available_replicas == replicas for model, (replicas, _) in SERVING.items())

    await until(up)
    await agent.apply(TARGET, TargetKind.ROUTE, Fence(1, "traffic"), DesiredServing(models, shares))

    async def split() -> bool:
        return (await agent.observe(TARGET)).model(EXPERIMENT).acknowledged_basis_points == 2_000

    await until(split)
    roles = {OLD: registry_pb2.Model.BASELINE, EXPERIMENT: registry_pb2.Model.EXPERIMENT}
    split_now = [serving_pb2.ModelShare(model=model, share_basis_points=share) for model, (_, share) in SERVING.items()]
    await client.registry.adopt_serving(
        model_type=CTR,
        role_changes=[registry_pb2.RoleChange(model=model, role=role) for model, role in roles.items()],
        splits=[serving_pb2.RegionSplit(region=EU, shares=split_now)],
    )
    usages = [
        capacity_pb2.ModelUnits(model=model, flavor=CPU, region=EU, units=replicas)
        for model, (replicas, _) in SERVING.items()
    ]
    await client.capacity.book_usage(pool=POOL, usages=usages)
    fleet.began = len(agent.ledger)


async def booked(fleet: Fleet) -> dict[str, int]:
    found = await fleet.client.capacity.list_bookings(pool=POOL)
    return {booking.model: booking.units for booking in found.bookings if booking.units}


async def test_an_experiment_ends_during_a_launch_which_holds_and_then_succeeds(database_url: str) -> None:
    async with launcher_fleet(database_url, old=50, new=42, spare=30, serving=False) as fleet:
        await serve_both(fleet)
        await fleet.create(bake=1.0)
        await fleet.waits("Baking")
        ending = pb.Launch(model_type=CTR, candidate=EXPERIMENT, pool=POOL, strategy=pb.Launch.END_EXPERIMENT)
        await fleet.client.launcher.create_launch(launch_id="m1", launch=ending)
        held = await fleet.get()
        assert held.preempted_by == "launches/m1"
        assert [pause.author for pause in held.pause_reasons] == ["mitigation/m1"]
        assert "launches/m1 has ended" in held.summary, held.summary
        with refused("ROUTE_BUSY") as raised:
            await fleet.client.launcher.create_launch(launch=ending)
        assert raised.value.metadata["launch"] == "launches/m1"
        resumed = await fleet.client.launcher.resume_launch(name="launches/l1", any_author=True)
        assert not resumed.preempted_by or [pause.author for pause in resumed.pause_reasons] == ["mitigation/m1"]
        mitigation = await fleet.reaches(pb.Launch.SUCCEEDED, "launches/m1")
        assert mitigation.revision > 0
        # The launch has not recorded anything by then: several bakes are still to come.
        (recorded,) = (await fleet.client.registry.get_model_type(name=CTR)).splits
        assert [(share.model, share.share_basis_points) for share in recorded.shares] == [(OLD, 10_000)]
        launch = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert launch.preempted_by == "" and await booked(fleet) == {NEW: 42}
        seen = await fleet.simulator.observe(TARGET)
        assert seen.desired is not None and {m.model: m.replicas for m in seen.desired.models} == {NEW: 42}
        events = [event.type async for event in fleet.client.launcher.list_launch_events_all(name="launches/l1")]
        assert events.count("Preempted") == events.count("PreemptionEnded") == 1

        def required(model: str, share: int) -> int:
            return 0 if share == 0 else max(2, -(-FULL[model] * share // 10_000))

        promise = Promise(TARGET, required, {CPU: 80}, after=fleet.began)
        assert violations(fleet.simulator.ledger, [promise]) == []
