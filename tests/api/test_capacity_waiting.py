"""Reservations that wait, over gRPC: what they are promised, how they are held, and what they are told meanwhile."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.common.v1 import serving_pb2
from modelfleet.errors import FailedPrecondition, ResourceExhausted
from modelfleetd.capacity.holders import Holders
from modelfleetd.kit.db import Database
from tests.support.capacity import CPU, EU, NEW, OLD, POOL, US, CapacityFleet, capacity_fleet, hold, make_pool, uses
from tests.support.wait import until

PENDING, HELD = pb.Reservation.PENDING, pb.Reservation.HELD
SUCCEEDED, ROLLED_BACK = pb.SettleReservationRequest.SUCCEEDED, pb.SettleReservationRequest.ROLLED_BACK


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[CapacityFleet]:
    async with capacity_fleet(database_url) as running:
        await make_pool(running.client, 600)
        yield running


def soon(minutes: float) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime.now(UTC) + timedelta(minutes=minutes))
    return made


def wanted(launch: str, units: int, end: int, *, minutes: float | None = 60, **fields: object) -> pb.Reservation:
    """What a launch asks for that says what it ends with, and when."""
    made = hold(launch, units)
    made.items[0].end_units = end
    if minutes is not None:
        made.expected_release_time.CopyFrom(soon(minutes))
    made.MergeFrom(pb.Reservation(**fields))  # type: ignore[arg-type]
    return made


class Launches:
    """Launches that reserve."""

    def __init__(self, fleet: CapacityFleet) -> None:
        self._capacity = fleet.client.capacity

    async def reserve(self, wish: pb.Reservation, **fields: object) -> pb.Reservation:
        return await self._capacity.create_reservation(reservation=wish, may_wait=True, **fields)  # type: ignore[arg-type]

    async def get(self, made: pb.Reservation) -> pb.Reservation:
        return await self._capacity.get_reservation(name=made.name)

    async def settle(self, made: pb.Reservation, used: int, **fields: object) -> pb.Reservation:
        usages = [uses(NEW, used)]
        return await self._capacity.settle_reservation(
            name=made.name,
            outcome=SUCCEEDED,
            usages=usages,
            **fields,  # type: ignore[arg-type]
        )

    async def comes_to(self, made: pb.Reservation, state: pb.Reservation.State.ValueType) -> pb.Reservation:
        async def is_there() -> bool:
            return (await self.get(made)).state == state

        await until(is_there)
        return await self.get(made)


@pytest.fixture
def launches(fleet: CapacityFleet) -> Launches:
    return Launches(fleet)


async def test_what_does_not_fit_waits_and_is_held_when_the_other_launch_has_settled(
    fleet: CapacityFleet, launches: Launches
) -> None:
    await fleet.client.capacity.book_usage(pool=POOL, usages=[uses(OLD, 80)])
    first = await launches.reserve(wanted("first", 500, 300))
    waits = await launches.reserve(wanted("second", 180, 100, replaced_models=[OLD]))
    assert (waits.state, waits.position, [item.moved_units for item in waits.items]) == (PENDING, 1, [0])
    assert [(one.reservation, one.launch, one.units) for one in waits.promises] == [(first.name, "launches/first", 80)]
    assert waits.expected_hold_time == waits.promises[0].expected_time == first.expected_release_time
    assert waits.message.startswith(
        "Waits for 80 units of flavors/cpu in regions/eu that launches/first frees at about "
    )
    # What the old model uses stays its own until then.
    assert (await fleet.usage()).serving_units == 80
    await launches.settle(first, 300)
    held = await launches.comes_to(waits, HELD)
    assert ([item.moved_units for item in held.items], held.position, list(held.promises)) == ([80], 0, [])
    assert held.message == ""
    assert held.HasField("hold_time")
    usage = await fleet.usage()
    assert (usage.serving_units, usage.held_units) == (300, 180)
    entries = await fleet.client.capacity.list_ledger_entries(pool=POOL, page_size=1)
    assert entries.entries[0].reason == "held after waiting"
    assert await fleet.differences() == []


async def test_those_who_wait_are_held_in_the_order_of_tier_then_age(fleet: CapacityFleet, launches: Launches) -> None:
    first = await launches.reserve(wanted("first", 600, 0))
    young = await launches.reserve(wanted("young", 300, 300))
    other = await launches.reserve(wanted("other", 300, 300))
    urgent = await launches.reserve(wanted("urgent", 300, 300, tier=serving_pb2.TIER0))
    assert urgent.position == 1

    # The last one has no place left: nothing that is held would free enough for it, for now.
    async def is_replanned() -> bool:
        one, two = await launches.get(young), await launches.get(other)
        return (one.position, two.position, list(two.promises)) == (2, 3, [])

    await until(is_replanned)
    assert (await launches.get(other)).message.startswith("Nothing that is held will free 300 units")
    await launches.settle(first, 0)
    assert (await launches.comes_to(urgent, HELD)).state == HELD
    assert (await launches.comes_to(young, HELD)).state == HELD
    assert (await launches.get(other)).state == PENDING


async def test_small_ones_that_come_later_do_not_take_what_a_large_one_waits_for(
    fleet: CapacityFleet, launches: Launches
) -> None:
    first = await launches.reserve(wanted("first", 500, 0))
    large = await launches.reserve(wanted("large", 400, 400))
    with pytest.raises(ResourceExhausted) as refused:
        await fleet.client.capacity.create_reservation(reservation=hold("small", 10))
    assert "100 more are kept for launches that wait" in refused.value.message
    small = await launches.reserve(wanted("small", 10, 10))
    assert [promise.units for promise in small.promises] == [10]
    await launches.settle(first, 0)
    await launches.comes_to(large, HELD)
    await launches.comes_to(small, HELD)


async def test_nobody_waits_for_one_who_waits_or_who_does_not_say_when_it_ends(
    fleet: CapacityFleet, launches: Launches
) -> None:
    await launches.reserve(wanted("silent", 300, 0, minutes=None))
    await launches.reserve(wanted("first", 300, 0))
    await launches.reserve(wanted("second", 300, 0))
    for launch in ("third", "fourth"):
        with pytest.raises(ResourceExhausted) as refused:
            await launches.reserve(wanted(launch, 300, 0))
        assert refused.value.reason == "QUOTA_EXCEEDED"


async def test_when_a_holder_says_that_it_will_take_longer_those_who_wait_are_told(
    fleet: CapacityFleet, launches: Launches
) -> None:
    first = await launches.reserve(wanted("first", 600, 300, expected_retain_duration=Duration(seconds=7200)))
    waits = await launches.reserve(wanted("second", 300, 300))
    assert waits.expected_hold_time.seconds == first.expected_release_time.seconds + 7200
    changes = fleet.client.capacity.watch_reservation(name=waits.name)
    seen: list[pb.Reservation] = []

    async def watch() -> None:
        async for one in changes:
            seen.insert(len(seen), one)

    watcher = asyncio.create_task(watch())

    async def has_seen(count: int) -> bool:
        return len(seen) == count

    await until(lambda: has_seen(1))
    later = soon(300)
    renewed = await fleet.client.capacity.renew_reservation(name=first.name, expected_release_time=later)
    assert renewed.expected_release_time.seconds == later.seconds
    await until(lambda: has_seen(2))
    assert seen[1].expected_hold_time.seconds == later.seconds + 7200
    assert seen[1].message != seen[0].message
    assert seen[1].update_time.ToDatetime() > seen[0].update_time.ToDatetime()
    await launches.settle(first, 300)
    await launches.comes_to(waits, HELD)
    await fleet.client.capacity.cancel_reservation(name=waits.name)
    await watcher
    assert [one.state for one in seen][-1] == pb.Reservation.CANCELLED


async def test_what_is_kept_for_a_rollback_is_waited_for_until_its_window_is_over(
    fleet: CapacityFleet, launches: Launches
) -> None:
    first = await launches.reserve(wanted("first", 600, 300))
    waits = await launches.reserve(wanted("second", 300, 300))
    window = Duration(seconds=3)
    done = await launches.settle(first, 300, retain_duration=window)

    async def waits_for_the_window() -> bool:
        return (await launches.get(waits)).expected_hold_time == done.retain_until

    await until(waits_for_the_window)
    held = await launches.comes_to(waits, HELD)
    assert held.hold_time.ToDatetime() >= done.retain_until.ToDatetime()


async def test_when_a_launch_is_rolled_back_and_frees_less_those_who_wait_are_told_and_may_still_be_held_later(
    fleet: CapacityFleet, launches: Launches
) -> None:
    await fleet.client.capacity.book_usage(pool=POOL, usages=[uses(OLD, 500)])
    first = await launches.reserve(wanted("first", 600, 300, replaced_models=[OLD]))
    waits = await launches.reserve(wanted("second", 200, 200))
    await fleet.client.capacity.settle_reservation(name=first.name, outcome=ROLLED_BACK)

    async def has_slipped() -> bool:
        return not (await launches.get(waits)).promises

    await until(has_slipped)
    told = await launches.get(waits)
    assert not told.HasField("expected_hold_time")
    assert told.message.startswith("Nothing that is held will free 100 units of flavors/cpu in regions/eu any more")
    # It is in nobody's way.
    small = await launches.reserve(wanted("small", 100, 100))
    assert small.state == HELD
    await fleet.client.capacity.cancel_reservation(name=small.name)
    quota = pb.Quota(flavor=CPU, region=EU, nominal_units=700)
    pool = await fleet.client.capacity.get_pool(name=POOL)
    await fleet.client.capacity.update_pool(pool=pb.Pool(name=POOL, etag=pool.etag, quotas=[quota]))
    await launches.comes_to(waits, HELD)
    assert await fleet.differences() == []


async def test_a_waiting_one_expires_unless_it_is_renewed_and_can_be_cancelled(
    fleet: CapacityFleet, launches: Launches
) -> None:
    capacity = fleet.client.capacity
    await launches.reserve(wanted("first", 600, 0))
    lost = await launches.reserve(wanted("lost", 10, 10), time_to_live=Duration(seconds=2))
    kept = await launches.reserve(wanted("kept", 10, 10), time_to_live=Duration(seconds=2))
    given_up = await launches.reserve(wanted("given-up", 10, 10))
    renewed = await capacity.renew_reservation(name=kept.name)
    assert renewed.expire_time.ToDatetime() > kept.expire_time.ToDatetime() + timedelta(minutes=50)
    gone = await launches.comes_to(lost, pb.Reservation.EXPIRED)
    assert (gone.position, list(gone.promises)) == (0, [])
    assert gone.message == "Expired while it waited: it held nothing."
    assert (await launches.get(kept)).state == PENDING
    for _ in range(2):
        done = await capacity.cancel_reservation(name=given_up.name)
        assert done.state == pb.Reservation.CANCELLED
    with pytest.raises(FailedPrecondition) as refused:
        await capacity.renew_reservation(name=lost.name)
    assert refused.value.reason == "WRONG_STATE"
    for wrong in (
        capacity.activate_reservation(name=kept.name),
        capacity.settle_reservation(name=kept.name, outcome=ROLLED_BACK),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            await wrong
        assert "RenewReservation, CancelReservation" in refused.value.message
    assert (await fleet.usage()).held_units == 600


async def test_a_repeated_call_that_waited_answers_as_it_did_then(fleet: CapacityFleet, launches: Launches) -> None:
    first = await launches.reserve(wanted("first", 600, 0))
    wish, key = wanted("second", 10, 10), str(uuid.uuid4())
    waits = await launches.reserve(wish, request_id=key)
    await launches.settle(first, 0)
    await launches.comes_to(waits, HELD)
    assert await launches.reserve(wish, request_id=key) == waits
    assert (await fleet.usage()).held_units == 10


async def test_an_absent_holder_raises_an_alarm_and_frees_nothing_and_a_renewal_clears_it(
    fleet: CapacityFleet, launches: Launches, caplog: pytest.LogCaptureFixture
) -> None:
    running = await launches.reserve(wanted("running", 100, 100))
    idle = await launches.reserve(wanted("idle", 100, 100))
    await fleet.client.capacity.activate_reservation(name=running.name)
    database = await Database.open(fleet.database_url, "capacity", max_size=1)
    try:
        await database.execute("UPDATE reservations SET renew_time = now() - interval '11 minutes'")
        for _ in range(2):
            await Holders(database).look()
        assert REGISTRY.get_sample_value("modelfleet_capacity_absent_holders") == 1
    finally:
        await database.close()
    missed = await launches.get(running)
    assert missed.holder_absent
    assert missed.message.startswith("Its holder was last heard of at ")
    assert not (await launches.get(idle)).holder_absent
    alarms = [record.getMessage() for record in caplog.records if "was last heard of" in record.getMessage()]
    assert len(alarms) == 1
    assert running.name in alarms[0]
    assert (await fleet.usage()).held_units == 200
    back = await fleet.client.capacity.renew_reservation(name=running.name)
    assert (back.holder_absent, back.message) == (False, "")
    assert back.renew_time.ToDatetime() > missed.renew_time.ToDatetime()


async def test_only_what_a_rollback_needs_is_kept_and_the_rest_is_free_at_once(
    fleet: CapacityFleet, launches: Launches
) -> None:
    wish = wanted("first", 584, 420)
    wish.items.add(flavor=CPU, region=US, hold_units=0)
    made = await launches.reserve(wish)
    keep, window = [pb.RetainItem(flavor=CPU, region=EU, units=100)], Duration(seconds=3600)
    with pytest.raises(FailedPrecondition) as refused:
        too_much = [pb.RetainItem(flavor=CPU, region=EU, units=165)]
        await launches.settle(made, 420, retain=too_much, retain_duration=window)
    assert refused.value.reason == "SETTLEMENT_EXCEEDS_HOLD"
    done = await launches.settle(made, 420, retain=keep, retain_duration=window)
    assert [item.hold_units for item in done.retained] == [100]
    usage = await fleet.usage()
    assert (usage.serving_units, usage.retained_units, usage.available_units) == (420, 100, 80)
    assert await launches.settle(made, 420, retain=keep, retain_duration=window) == done
    with pytest.raises(FailedPrecondition) as refused:
        await launches.settle(made, 420, retain_duration=window)
    assert refused.value.reason == "LAUNCH_ENDED"
    assert await fleet.differences() == []


async def test_the_peak_may_be_borrowed_but_the_end_state_must_fit_the_pools_own_quota(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    await make_pool(fleet.client, 100, "org")
    quotas = [pb.Quota(flavor=CPU, region=EU, nominal_units=50)]
    await capacity.create_pool(pool_id="team", pool=pb.Pool(team="teams/feed", parent="pools/org", quotas=quotas))
    wish = wanted("borrows", 120, 51, pool="pools/team")
    simulated = await capacity.simulate_reservation(reservation=wish)
    assert (simulated.answer, simulated.items[0].end_excess_units) == (pb.SimulateReservationResponse.NEVER, 1)
    for may_wait in (False, True):
        with pytest.raises(FailedPrecondition) as refused:
            await capacity.create_reservation(reservation=wish, may_wait=may_wait)
        assert refused.value.reason == "END_STATE_EXCEEDS_QUOTA"
        assert (refused.value.metadata["end_units"], refused.value.metadata["allowed_units"]) == ("51", "50")
    wish.items[0].end_units = 50
    held = await capacity.create_reservation(reservation=wish)
    assert held.items[0].extra_units == 120
    # A sibling waits for what is only borrowed.
    await capacity.create_pool(pool_id="other", pool=pb.Pool(team="teams/feed", parent="pools/org", quotas=quotas))
    waits = await capacity.create_reservation(reservation=wanted("waits", 100, 50, pool="pools/other"), may_wait=True)
    assert (waits.state, waits.promises[0].units) == (PENDING, 20)
    await capacity.settle_reservation(name=held.name, outcome=SUCCEEDED, usages=[uses(NEW, 50)])
    await Launches(fleet).comes_to(waits, HELD)
    assert await fleet.differences() == []
