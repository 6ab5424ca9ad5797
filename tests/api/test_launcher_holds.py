"""A launch and its capacity, against the real service: it waits in line, is heard of, borrows, keeps what it needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from modelfleet.capacity.v1 import capacity_pb2, loans_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.launcher.clients import CapacityClient, RegistryClient
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.renewal import Renewer
from modelfleetd.launcher.store import Store
from tests.support.launcher import CPU, EU, POOL, Fleet, launcher_fleet, refused, register_route
from tests.support.wait import until

ADS = "modelTypes/ads"
ADS_NEW = f"{ADS}/models/new"
RESERVATION = capacity_pb2.Reservation


def halves(window: float = 0.0) -> pb.LaunchPolicy:
    """Two steps and no more, so that a launch rather waits than to take smaller ones."""
    policy = pb.LaunchPolicy(max_step_basis_points=5_000, max_steps=2)
    policy.rollback_window.FromTimedelta(timedelta(seconds=window))
    return policy


async def reservation_of(fleet: Fleet, launch: str) -> capacity_pb2.Reservation:
    found = await fleet.client.capacity.list_reservations(launch=launch)
    reservation: capacity_pb2.Reservation = found.reservations[0]
    return reservation


async def alarmed(fleet: Fleet) -> bool:
    """Whether a launch has been refused so often that people are called."""
    return any(condition.type == "NeedsAttention" for condition in (await fleet.get()).conditions)


async def test_two_teams_borrow_the_peak_of_their_swaps_one_after_the_other(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=20, spare=0, serving=False) as fleet:
        # Ten units that neither of them owns are what each needs beside its own.
        await organisation(fleet, own=20, of_all=30)
        await fleet.serve_old(20)
        await another_team(fleet, own=20)
        ads: dict[str, Any] = {"model_type": ADS, "candidate": ADS_NEW, "pool": "pools/ads"}
        await fleet.create("l1", bake=3, policy=halves())
        await fleet.waits("Baking", "launches/l1")

        asked = fleet.request(policy=halves(), **ads)
        planned = await fleet.client.launcher.create_launch(launch=asked, validate_only=True)
        assert planned.plan.wait.startswith("waits for 10 units of cpu in eu that launches/l1 frees at about ")
        await fleet.create("l2", policy=halves(), **ads)
        waiting = await fleet.waits("CapacityPromised", "launches/l2")
        assert waiting.state == pb.Launch.PREPARING
        assert "Waits for 10 units of cpu in eu that launches/l1 frees at about " in waiting.summary
        assert "; first in line" in waiting.summary
        line = await reservation_of(fleet, "launches/l2")
        assert line.state == RESERVATION.PENDING and line.items[0].end_units == 20

        first = await fleet.reaches(pb.Launch.SUCCEEDED, "launches/l1")
        second = await fleet.reaches(pb.Launch.SUCCEEDED, "launches/l2")
        assert [launch.plan.regions[0].hold_units for launch in (first, second)] == [30, 30]
        settled = await reservation_of(fleet, "launches/l1")
        held = await reservation_of(fleet, "launches/l2")
        assert held.hold_time.ToDatetime() - settled.update_time.ToDatetime() < timedelta(seconds=5)
        events = [event.type async for event in fleet.client.launcher.list_launch_events_all(name="launches/l2")]
        turn = events.index("CapacityReserved")
        assert events.index("CapacityPromised") < turn < events.index("Estimated", turn)
        for pool in (POOL, "pools/ads"):
            (usage,) = (await fleet.client.capacity.get_pool(name=pool)).usages
            assert (usage.serving_units, usage.held_units, usage.retained_units) == (20, 0, 0)


async def test_a_launch_whose_quota_was_cut_names_the_lenders_command_and_goes_on_with_a_loan(
    database_url: str,
) -> None:
    async with launcher_fleet(database_url, old=20, new=24, spare=0, serving=False) as fleet:
        await organisation(fleet, own=24, of_all=60)
        # Before anybody asks for the team's roles: they are remembered for a while.
        await fleet.bind("carol", "APPROVER")
        await fleet.serve_old(20)
        policy = halves()
        policy.approval = pb.LaunchPolicy.REQUIRED
        await fleet.create("l1", policy=policy)
        shown = await fleet.reaches(pb.Launch.AWAITING_APPROVAL)
        pool = await fleet.client.capacity.get_pool(name=POOL)
        pool.quotas[0].nominal_units = 20
        await fleet.client.capacity.update_pool(pool=pool)
        # One that is asked for now is refused at once; one that was asked for before waits.
        with refused("END_STATE_EXCEEDS_QUOTA"):
            await fleet.client.launcher.create_launch(launch=fleet.request(policy=halves()), validate_only=True)
        await fleet.approve(shown.envelope.digest)
        waiting = await fleet.waits("Refused")
        command = "modelfleet capacity loan create LENDER feed --units 4 --flavor cpu --region eu --until 30d"
        assert command in waiting.summary
        await until(lambda: alarmed(fleet))
        loan = loans_pb2.Loan(lender="pools/org", borrower=POOL, flavor=CPU, region=EU, units=4)
        loan.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
        await fleet.client.capacity.create_loan(loan=loan)
        await fleet.reaches(pb.Launch.SUCCEEDED)
        # It asked again and again, and left nothing behind but the first attempt.
        database = await Database.open(fleet.database_url, "launcher", max_size=1)
        reserved = await database.fetchval("SELECT count(*) FROM intents WHERE act = 'reserve'")
        await database.close()
        assert reserved == 2


async def organisation(fleet: Fleet, *, own: int, of_all: int) -> None:
    """Puts the team's pool with so many units of its own below an organisation that has more."""
    quota = capacity_pb2.Quota(flavor=CPU, region=EU, nominal_units=of_all - own)
    await fleet.client.capacity.create_pool(pool_id="org", pool=capacity_pb2.Pool(team="teams/feed", quotas=[quota]))
    pool = await fleet.client.capacity.get_pool(name=POOL)
    await fleet.client.capacity.delete_pool(name=POOL)
    made = capacity_pb2.Pool(team="teams/feed", parent="pools/org", quotas=pool.quotas)
    made.quotas[0].nominal_units = own
    await fleet.client.capacity.create_pool(pool_id="feed", pool=made)


async def another_team(fleet: Fleet, *, own: int) -> None:
    """Another pool of the organisation, and a route that is served from it."""
    quota = capacity_pb2.Quota(flavor=CPU, region=EU, nominal_units=own)
    pool = capacity_pb2.Pool(team="teams/feed", parent="pools/org", quotas=[quota])
    await fleet.client.capacity.create_pool(pool_id="ads", pool=pool)
    models = {f"{ADS}/models/old": own, ADS_NEW: own}
    await register_route(fleet.client, ADS, models, [EU], tuple(models))
    await fleet.serve_old(own, ADS, "pools/ads")


async def test_of_what_is_left_after_a_success_only_what_a_rollback_needs_is_kept(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=16, spare=20, serving=False) as fleet:
        # Four more than its certificate says.
        await fleet.serve_old(24)
        await fleet.create("l1", policy=halves(window=3_600))
        ended = await fleet.reaches(pb.Launch.SUCCEEDED)
        (region,) = ended.plan.regions
        settled = await reservation_of(fleet, "launches/l1")
        (kept,) = settled.retained
        # The way back: 20 of the old model beside the 8 of the first half, less the 16 that are booked.
        assert (region.hold_units, kept.hold_units) == (24 + 8, 20 + 8 - 16)


async def test_capacity_hears_of_a_holder_and_of_when_it_expects_to_end(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=20, spare=10) as fleet:
        await fleet.create("l1", bake=600, policy=halves())
        await fleet.waits("Baking")
        before = await reservation_of(fleet, "launches/l1")
        database = await Database.open(fleet.database_url, "launcher", max_size=1)
        launch: Launch = await Store(database).get("launches/l1")
        await database.close()
        capacity = CapacityClient(fleet.launcher.client.capacity)
        world = World(RegistryClient(fleet.launcher.client.registry), capacity, fleet.judge, fleet.platforms)
        # As by a launcher that has just come, an hour later: nothing has got on in the meantime.
        later = datetime.now(UTC) + timedelta(hours=1)
        await Renewer(world).renew(launch, later)
        after = await reservation_of(fleet, "launches/l1")
        assert after.renew_time.ToDatetime() > before.renew_time.ToDatetime()
        assert after.expected_release_time.ToDatetime(UTC) > later
