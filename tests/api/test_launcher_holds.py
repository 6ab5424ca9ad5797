"""A launch and its capacity, against the real service: it waits in line, is heard of, borrows, keeps what it needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from modelfleet.capacity.v1 import capacity_pb2, loans_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.launcher.clients import CapacityClient, RegistryClient
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.renewal import Renewer
from modelfleetd.launcher.store import Store
from tests.support.launcher import CPU, EU, POOL, Fleet, launcher_fleet, refused, register_route

ADS = "modelTypes/ads"
ADS_NEW = f"{ADS}/models/new"
RESERVATION = capacity_pb2.Reservation


def halves(window: float = 0.0) -> pb.LaunchPolicy:
    """Two steps and no more, so that a launch rather waits than to take smaller ones."""
    policy = pb.LaunchPolicy(max_step_basis_points=5_000, max_steps=2)
    policy.rollback_window.FromTimedelta(timedelta(seconds=window))
    return policy


async def second_route(fleet: Fleet, replicas: int = 20) -> None:
    """Another route on the same pool, which grows by what its baseline takes."""
    models = {f"{ADS}/models/old": replicas, ADS_NEW: replicas}
    await register_route(fleet.client, ADS, models, [EU], tuple(models))
    pool = await fleet.client.capacity.get_pool(name=POOL)
    pool.quotas[0].nominal_units += replicas
    await fleet.client.capacity.update_pool(pool=pool)
    await fleet.serve_old(replicas, ADS)


async def reservation_of(fleet: Fleet, launch: str) -> capacity_pb2.Reservation:
    found = await fleet.client.capacity.list_reservations(launch=launch)
    reservation: capacity_pb2.Reservation = found.reservations[0]
    return reservation


async def events_of(fleet: Fleet, launch: str) -> list[str]:
    return [event.type async for event in fleet.client.launcher.list_launch_events_all(name=launch)]


async def test_a_launch_waits_in_line_for_the_one_that_holds_its_capacity_and_goes_on_when_that_has_settled(
    database_url: str,
) -> None:
    async with launcher_fleet(database_url, old=20, new=20, spare=10) as fleet:
        await second_route(fleet)
        await fleet.create("l1", bake=3, policy=halves())
        await fleet.waits("Baking", "launches/l1")
        asked = fleet.request(model_type=ADS, candidate=ADS_NEW, policy=halves())
        planned = await fleet.client.launcher.create_launch(launch=asked, validate_only=True)
        assert planned.plan.wait.startswith("waits for 10 units of cpu in eu that launches/l1 frees at about ")
        await fleet.create("l2", model_type=ADS, candidate=ADS_NEW, policy=halves())
        waiting = await fleet.waits("CapacityPromised", "launches/l2")
        assert waiting.state == pb.Launch.PREPARING
        assert "Waits for 10 units of cpu in eu that launches/l1 frees at about " in waiting.summary
        assert "; first in line" in waiting.summary
        line = await reservation_of(fleet, "launches/l2")
        assert line.state == RESERVATION.PENDING and line.items[0].end_units == 20
        await fleet.reaches(pb.Launch.SUCCEEDED, "launches/l1")
        await fleet.reaches(pb.Launch.SUCCEEDED, "launches/l2")
        events = await events_of(fleet, "launches/l2")
        turn = events.index("CapacityReserved")
        assert events.index("CapacityPromised") < turn < events.index("Estimated", turn)
        usage = await fleet.usage()
        assert (usage.serving_units, usage.held_units, usage.retained_units) == (40, 0, 0)


async def test_an_abort_leaves_the_line(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=20, spare=10) as fleet:
        await second_route(fleet)
        await fleet.create("l1", bake=60, policy=halves())
        await fleet.waits("Baking", "launches/l1")
        await fleet.create("l2", model_type=ADS, candidate=ADS_NEW, policy=halves())
        await fleet.waits("CapacityPromised", "launches/l2")
        await fleet.client.launcher.abort_launch(name="launches/l2", reason="not now")
        await fleet.reaches(pb.Launch.CANCELLED, "launches/l2")
        assert (await reservation_of(fleet, "launches/l2")).state == RESERVATION.CANCELLED


async def test_a_team_borrows_the_peak_of_its_swap_and_ends_within_its_quota(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=20, spare=0, serving=False) as fleet:
        await organisation(fleet, own=20, of_all=30)
        await fleet.serve_old(20)
        await fleet.create("l1", policy=halves())
        ended = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert ended.plan.regions[0].hold_units == 30
        usage = await fleet.usage()
        assert (usage.serving_units, usage.held_units) == (20, 0)


async def test_what_would_end_beyond_quota_and_loans_is_refused_and_a_loan_lets_it_through(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=24, spare=0, serving=False) as fleet:
        await organisation(fleet, own=20, of_all=60)
        await fleet.serve_old(20)
        with refused("END_STATE_EXCEEDS_QUOTA"):
            await fleet.create("l1", policy=halves())
        loan = loans_pb2.Loan(lender="pools/org", borrower=POOL, flavor=CPU, region=EU, units=4)
        loan.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
        await fleet.client.capacity.create_loan(loan=loan)
        await fleet.create("l1", policy=halves())
        await fleet.reaches(pb.Launch.SUCCEEDED)


async def organisation(fleet: Fleet, *, own: int, of_all: int) -> None:
    """Puts the team's pool with so many units of its own below an organisation that has more."""
    quota = capacity_pb2.Quota(flavor=CPU, region=EU, nominal_units=of_all - own)
    await fleet.client.capacity.create_pool(pool_id="org", pool=capacity_pb2.Pool(team="teams/feed", quotas=[quota]))
    pool = await fleet.client.capacity.get_pool(name=POOL)
    await fleet.client.capacity.delete_pool(name=POOL)
    made = capacity_pb2.Pool(team="teams/feed", parent="pools/org", quotas=pool.quotas)
    made.quotas[0].nominal_units = own
    await fleet.client.capacity.create_pool(pool_id="feed", pool=made)


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
