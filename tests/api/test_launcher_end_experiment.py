"""Ending an experiment: one action, its traffic back with the baseline, which grows first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.platform.ledger import Promise, violations
from modelfleetd.platform.model import DesiredModel, DesiredServing, Fence, ModelShare, TargetKind
from tests.support.launcher import CPU, CTR, EU, NEW, OLD, POOL, SPEC, TARGET, Fleet, launcher_fleet, refused
from tests.support.servers import client_of
from tests.support.wait import until

BOTH = {OLD: (40, 8_000), NEW: (12, 2_000)}


@asynccontextmanager
async def experimenting(database_url: str, certified: tuple[str, ...] = (OLD, NEW)) -> AsyncIterator[Fleet]:
    """A route whose experiment has a fifth of the traffic, and ten units to spare."""
    async with launcher_fleet(database_url, old=50, new=60, spare=12, serving=False, certified=certified) as running:
        models = tuple(DesiredModel(model, SPEC, replicas) for model, (replicas, _) in BOTH.items())
        shares = tuple(ModelShare(model, share) for model, (_, share) in BOTH.items())
        agent = running.simulator
        await agent.apply(TARGET, TargetKind.ROUTE, Fence(1, "before"), DesiredServing(models))

        async def up() -> bool:
            seen = await agent.observe(TARGET)
            return all(seen.model(model).available_replicas == replicas for model, (replicas, _) in BOTH.items())

        await until(up)
        await agent.apply(TARGET, TargetKind.ROUTE, Fence(1, "before, traffic"), DesiredServing(models, shares))

        async def split() -> bool:
            return (await agent.observe(TARGET)).model(NEW).acknowledged_basis_points == 2_000

        await until(split)
        roles = {OLD: registry_pb2.Model.BASELINE, NEW: registry_pb2.Model.EXPERIMENT}
        await running.client.registry.adopt_serving(
            model_type=CTR,
            role_changes=[registry_pb2.RoleChange(model=model, role=role) for model, role in roles.items()],
            splits=[
                serving_pb2.RegionSplit(
                    region=EU,
                    shares=[
                        serving_pb2.ModelShare(model=model, share_basis_points=share)
                        for model, (_, share) in BOTH.items()
                    ],
                )
            ],
        )
        await running.client.capacity.book_usage(
            pool=POOL,
            usages=[
                capacity_pb2.ModelUnits(model=model, flavor=CPU, region=EU, units=replicas)
                for model, (replicas, _) in BOTH.items()
            ],
        )
        running.began = len(agent.ledger)
        yield running


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[Fleet]:
    async with experimenting(database_url) as running:
        yield running


def ending(candidate: str = NEW, **fields: object) -> pb.Launch:
    strategy = pb.Launch.END_EXPERIMENT
    return pb.Launch(model_type=CTR, candidate=candidate, pool=POOL, strategy=strategy, **fields)  # type: ignore[arg-type]


def broken(fleet: Fleet, launch: pb.Launch) -> object:
    (plan,) = launch.plan.regions
    # "New" is the side that grows.
    full = {OLD: plan.new_replicas_full, NEW: plan.old_replicas_full}

    def required(model: str, share: int) -> int:
        return 0 if share == 0 else max(2, -(-full[model] * share // 10_000))

    promise = Promise(TARGET, required, {CPU: plan.hold_units}, after=fleet.began)
    return violations(fleet.simulator.ledger, [promise])


async def test_the_on_call_ends_an_experiment_in_one_action(fleet: Fleet) -> None:
    await fleet.bind("oscar", "ONCALL")
    async with client_of(fleet.registry, fleet.services["capacity"], fleet.launcher, principal="oscar") as oscar:
        made = await oscar.launcher.create_launch(launch_id="l1", launch=ending(reason="hurts the metric"))
        assert made.policy.bake_duration.ToTimedelta().total_seconds() == 0
        assert made.policy.stability_gate.disabled
    launch = await fleet.reaches(pb.Launch.SUCCEEDED)
    assert [step.share_basis_points for step in launch.plan.regions[0].steps] == [10_000]
    (region,) = launch.progress
    assert (region.candidate.total_replicas, region.baseline.intended_basis_points) == (0, 10_000)
    kind = await fleet.client.registry.get_model_type(name=CTR)
    assert kind.baseline == OLD and [share.model for share in kind.splits[0].shares] == [OLD]
    ended = await fleet.client.registry.get_model(name=NEW)
    assert ended.role == registry_pb2.Model.RETIRED
    revision = await fleet.client.registry.get_revision(name=f"revisions/{launch.revision}")
    assert (revision.launch, revision.reason) == ("launches/l1", "hurts the metric")
    assert broken(fleet, launch) == []
    bookings = (await fleet.client.capacity.list_bookings(pool=POOL)).bookings
    assert {booking.model: booking.units for booking in bookings if booking.model in BOTH} == {OLD: 50}


async def test_an_abort_gives_the_experiment_its_share_back(fleet: Fleet) -> None:
    policy = pb.LaunchPolicy(max_step_basis_points=500)
    policy.bake_duration.FromSeconds(600)
    await fleet.client.launcher.create_launch(launch_id="l1", launch=ending(policy=policy))
    await fleet.waits("Baking")
    await fleet.client.launcher.abort_launch(name="launches/l1", reason="it is needed after all")
    launch = await fleet.reaches(pb.Launch.ROLLED_BACK)
    seen = await fleet.simulator.observe(TARGET)
    assert seen.desired is not None
    assert {model.model: model.replicas for model in seen.desired.models} == {m: r for m, (r, _) in BOTH.items()}
    assert {share.model: share.share_basis_points for share in seen.desired.shares} == {OLD: 8_000, NEW: 2_000}
    assert broken(fleet, launch) == []


async def test_it_needs_no_certificate(database_url: str) -> None:
    async with experimenting(database_url, certified=()) as fleet:
        plan = (await fleet.client.launcher.create_launch(launch=ending(), validate_only=True)).plan
    # Inferred: 40 replicas carry four fifths of the traffic.
    assert (plan.regions[0].new_replicas_full, plan.regions[0].old_replicas_full) == (50, 60)


async def test_what_is_no_experiment_is_not_ended_and_the_on_call_launches_nothing(fleet: Fleet) -> None:
    client = fleet.client
    with refused("INVALID_FIELDS") as raised:
        await client.launcher.create_launch(launch=ending(OLD))
    assert "must not be the baseline" in raised.value.message
    spec = serving_pb2.ServingSpec(command=["serve"], flavor=CPU)
    await client.registry.create_model(parent=CTR, model_id="idle", model=registry_pb2.Model(serving_spec=spec))
    with refused("INVALID_FIELDS") as raised:
        await client.launcher.create_launch(launch=ending(f"{CTR}/models/idle"))
    assert "must be an EXPERIMENT or a HOLDOUT to be ended, and is CANDIDATE" in raised.value.message
    with refused("INVALID_FIELDS") as raised:
        await client.launcher.create_launch(launch=ending(regions=[EU]))
    assert "an experiment or holdout ends everywhere" in raised.value.message
    await fleet.bind("oscar", "ONCALL")
    async with client_of(fleet.registry, fleet.services["capacity"], fleet.launcher, principal="oscar") as oscar:
        with refused("ROLE_MISSING"):
            await oscar.launcher.create_launch(launch=fleet.request())
