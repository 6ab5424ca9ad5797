"""Every strategy on real registry and capacity: roles, splits, bookings and the platform agree at the end of each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelfleet.errors import PermissionDenied
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from tests.support.launcher import CTR, EU, NEW, OLD, POOL, TARGET, US, Fleet, certify, launcher_fleet, refused
from tests.support.servers import client_of
from tests.support.wait import until

Role = registry_pb2.Model.Role


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[Fleet]:
    async with launcher_fleet(database_url, old=50, new=60, spare=14) as running:
        yield running


def asked(strategy: str, candidate: str = NEW, **fields: object) -> pb.Launch:
    """A launch that nothing judges, and that keeps no capacity once it is done."""
    policy = pb.LaunchPolicy(stability_gate=pb.StabilityGate(disabled=True))
    policy.bake_duration.FromMilliseconds(100)
    policy.rollback_window.FromSeconds(0)
    given = {"model_type": CTR, "candidate": candidate, "pool": POOL, "policy": policy} | fields
    return pb.Launch(strategy=pb.Launch.Strategy.Value(strategy), **given)  # type: ignore[arg-type]


async def done(fleet: Fleet, launch: pb.Launch) -> pb.Launch:
    made = await fleet.client.launcher.create_launch(launch=launch)
    return await fleet.reaches(pb.Launch.SUCCEEDED, made.name)


async def agree(fleet: Fleet, shares: dict[str, int], replicas: dict[str, int], roles: dict[str, str]) -> None:
    """Registry, capacity and platform say the same of who serves."""
    kind = await fleet.client.registry.get_model_type(name=CTR)
    assert {share.model: share.share_basis_points for share in kind.splits[0].shares} == shares
    models = {model: await fleet.client.registry.get_model(name=model) for model in (OLD, NEW)}
    assert {name: Role.Name(model.role) for name, model in models.items()} == roles
    assert [kind.baseline] == [name for name, role in roles.items() if role == "BASELINE"]
    bookings = (await fleet.client.capacity.list_bookings(pool=POOL)).bookings
    assert {booking.model: booking.units for booking in bookings if booking.units} == replicas
    seen = await fleet.simulator.observe(TARGET)
    assert {model.model: model.existing_replicas for model in seen.models if model.existing_replicas} == replicas
    assert {m.model: m.acknowledged_basis_points for m in seen.models if m.acknowledged_basis_points} == shares


async def test_a_model_lives_through_every_strategy_and_everybody_agrees_after_each(fleet: Fleet) -> None:
    roles = {OLD: "BASELINE", NEW: "EXPERIMENT"}
    launch = await done(fleet, asked("START_EXPERIMENT", target_share_basis_points=1_000))
    await agree(fleet, {OLD: 9_000, NEW: 1_000}, {OLD: 45, NEW: 6}, roles)
    assert launch.envelope.target_share_basis_points == 1_000

    await done(fleet, asked("RAMP", target_share_basis_points=3_000))
    await agree(fleet, {OLD: 7_000, NEW: 3_000}, {OLD: 35, NEW: 18}, roles)

    with refused("INVALID_FIELDS") as raised:
        await fleet.client.launcher.create_launch(launch=asked("RAMP", target_share_basis_points=3_000))
    same = "must be another share than the 30 % that new has already: more or less, and below 100 %"
    assert same in raised.value.message

    launch = await done(fleet, asked("RAMP", target_share_basis_points=500))
    await agree(fleet, {OLD: 9_500, NEW: 500}, {OLD: 48, NEW: 3}, roles)
    # The baseline grows and is what a plan calls new; progress goes on to speak of candidate and baseline.
    assert (launch.plan.regions[0].new_model, launch.plan.regions[0].old_model) == (OLD, NEW)
    assert launch.progress[0].candidate.intended_basis_points == 500
    assert launch.envelope.target_share_basis_points == 500

    launch = await done(fleet, asked("REPLACE_BASELINE", holdout_share_basis_points=1_000))
    await agree(fleet, {OLD: 1_000, NEW: 9_000}, {OLD: 5, NEW: 54}, {OLD: "HOLDOUT", NEW: "BASELINE"})
    assert launch.envelope.holdout_share_basis_points == 1_000

    # A replica carries more than was thought: fewer do, and then it is the other way round.
    await certify(fleet.client, NEW, 40)
    before = (await fleet.client.registry.get_model_type(name=CTR)).revision
    launch = await done(fleet, asked("RESIZE"))
    await agree(fleet, {OLD: 1_000, NEW: 9_000}, {OLD: 5, NEW: 36}, {OLD: "HOLDOUT", NEW: "BASELINE"})
    assert launch.summary.endswith("; capacity has booked its replicas."), "the registry has nothing to say of it"
    assert launch.revision == before == (await fleet.client.registry.get_model_type(name=CTR)).revision
    await certify(fleet.client, OLD, 70)
    await done(fleet, asked("RESIZE", OLD))
    await agree(fleet, {OLD: 1_000, NEW: 9_000}, {OLD: 7, NEW: 36}, {OLD: "HOLDOUT", NEW: "BASELINE"})
    with refused("INVALID_FIELDS") as raised:
        await fleet.client.launcher.create_launch(launch=asked("RESIZE", OLD))
    assert "old has those that its share needs already: 7 in eu" in raised.value.message

    launch = await done(fleet, asked("END_EXPERIMENT", OLD))
    (region,) = launch.plan.regions
    assert (region.new_called, region.old_called) == ("baseline", "holdout")
    told = [event.message async for event in fleet.client.launcher.list_launch_events_all(name=launch.name)]
    assert any("the holdout" in message for message in told) and not any("experiment" in message for message in told)
    await agree(fleet, {NEW: 10_000}, {NEW: 40}, {OLD: "RETIRED", NEW: "BASELINE"})


async def test_the_on_call_rolls_back_to_what_was_the_baseline_before_also_without_a_certificate(
    database_url: str,
) -> None:
    async with launcher_fleet(database_url, old=50, new=42, spare=20, certified=(NEW,)) as fleet:
        await done(fleet, asked("REPLACE_BASELINE"))
        await fleet.bind("oscar", "ONCALL")
        async with client_of(fleet.registry, fleet.services["capacity"], fleet.launcher, principal="oscar") as oscar:
            back = pb.Launch(model_type=CTR, candidate=OLD, pool=POOL, strategy=pb.Launch.ROLL_BACK)

            async def created() -> pb.Launch | None:
                # For a moment, the launcher may go by the roles that it has read just before.
                with contextlib.suppress(PermissionDenied):
                    return await oscar.launcher.create_launch(launch=back)
                return None

            made = await until(created)
            assert made.policy.stability_gate.disabled and made.policy.max_step_basis_points == 10_000
            with refused("ROLE_MISSING"):
                await oscar.launcher.create_launch(launch=asked("RESIZE"))
        launch = await fleet.reaches(pb.Launch.SUCCEEDED, made.name)
        # Inferred when it was replaced: it served everything with so many.
        assert launch.plan.regions[0].new_replicas_full == 50
        await agree(fleet, {OLD: 10_000}, {OLD: 50}, {OLD: "BASELINE", NEW: "RETIRED"})
        with refused("INVALID_FIELDS") as raised:
            await fleet.client.launcher.create_launch(launch=asked("ROLL_BACK", f"{CTR}/models/never"))
        assert "no launch has replaced it" in raised.value.message


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("START_EXPERIMENT", {}, "launch.target_share_basis_points: must be 1 to 9,999 with START_EXPERIMENT"),
    ("RAMP", {"target_share_basis_points": 10_000}, "must be 1 to 9,999 with RAMP"),
    ("RAMP", {"target_share_basis_points": 500}, "must be an EXPERIMENT for RAMP, and is CANDIDATE"),
    ("REPLACE_BASELINE", {"target_share_basis_points": 500}, "must be unset with REPLACE_BASELINE"),
    ("REPLACE_BASELINE", {"holdout_share_basis_points": 5_001}, "must be 0 to 5,000"),
    ("RESIZE", {"holdout_share_basis_points": 500}, "only REPLACE_BASELINE holds out the old baseline"),
    ("RESIZE", {}, "must be a BASELINE or an EXPERIMENT or a HOLDOUT to be resized, and is CANDIDATE"),
    ("ROLL_BACK", {"regions": [EU]}, "must be empty: a baseline goes everywhere"),
    ("ROLL_BACK", {}, "no launch has replaced it"),
]


async def test_what_a_strategy_does_not_take_is_named(fleet: Fleet) -> None:
    for strategy, fields, said in REFUSED:
        with refused("INVALID_FIELDS") as raised:
            await fleet.client.launcher.create_launch(launch=asked(strategy, **fields), validate_only=True)
        assert said in raised.value.message
    # Everything that is wrong is said at once.
    both = asked("RESIZE", target_share_basis_points=1, holdout_share_basis_points=1)
    with refused("INVALID_FIELDS") as raised:
        await fleet.client.launcher.create_launch(launch=both)
    assert len(raised.value.violations) == 2


async def test_a_baseline_is_replaced_wherever_it_serves_and_an_experiment_started_where_it_is_wanted(
    database_url: str,
) -> None:
    async with launcher_fleet(database_url, old=4, new=4, spare=4, regions=("eu", "us")) as fleet:
        with refused("INVALID_FIELDS") as raised:
            await fleet.client.launcher.create_launch(launch=asked("REPLACE_BASELINE", regions=[EU]))
        assert "every region in which the baseline serves, so also regions/us" in raised.value.message
        await done(fleet, asked("START_EXPERIMENT", target_share_basis_points=1_000, regions=[EU]))
        # By default it is ramped where it serves; more in one region and less in another is no one launch.
        ramp = asked("RAMP", target_share_basis_points=500)
        planned = await fleet.client.launcher.create_launch(launch=ramp, validate_only=True)
        assert [region.region for region in planned.plan.regions] == [EU]
        with refused("INVALID_FIELDS") as raised:
            ramp.regions.extend([EU, US])
            await fleet.client.launcher.create_launch(launch=ramp, validate_only=True)
        assert "more than the candidate has in us and less than in eu" in raised.value.message
