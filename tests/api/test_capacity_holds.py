"""Reservations over gRPC: the launcher's examples, repetition, expiry, and simulation by the same code."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator

import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.errors import AlreadyExists, FailedPrecondition, ResourceExhausted
from modelfleetd.kit.db import Database
from tests.support.capacity import CPU, EU, NEW, OLD, POOL, US, CapacityFleet, capacity_fleet, hold, make_pool, uses
from tests.support.wait import until

SUCCEEDED, ROLLED_BACK = pb.SettleReservationRequest.SUCCEEDED, pb.SettleReservationRequest.ROLLED_BACK


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[CapacityFleet]:
    async with capacity_fleet(database_url) as running:
        await make_pool(running.client, 600)
        yield running


async def swap(fleet: CapacityFleet) -> pb.Reservation:
    """500 replicas serve; 584 are held for the swap to 420."""
    await fleet.client.capacity.book_usage(pool=POOL, usages=[uses(OLD, 500)], reason="import")
    return await fleet.client.capacity.create_reservation(reservation=hold("l1", 584, replaced=(OLD,)))


async def test_a_swap_moves_what_serves_into_the_hold_and_takes_only_the_rest_from_the_pool(
    fleet: CapacityFleet,
) -> None:
    made = await swap(fleet)
    (item,) = made.items
    assert (item.hold_units, item.moved_units, item.extra_units) == (584, 500, 84)
    assert [(one.model, one.units) for one in made.moved] == [(OLD, 500)]
    usage = await fleet.usage()
    assert (usage.serving_units, usage.held_units, usage.available_units) == (0, 584, 16)


async def test_a_success_books_420_and_releases_164(fleet: CapacityFleet) -> None:
    made = await swap(fleet)
    await fleet.client.capacity.activate_reservation(name=made.name)
    done = await fleet.client.capacity.settle_reservation(name=made.name, outcome=SUCCEEDED, usages=[uses(NEW, 420)])
    assert done.state == pb.Reservation.SETTLED
    assert done.outcome == SUCCEEDED
    usage = await fleet.usage()
    assert (usage.serving_units, usage.held_units, usage.available_units) == (420, 0, 180)
    bookings = await fleet.client.capacity.list_bookings(pool=POOL)
    assert [(one.model, one.units) for one in bookings.bookings] == [(NEW, 420)]


async def test_a_rollback_books_500_again_and_releases_84(fleet: CapacityFleet) -> None:
    made = await swap(fleet)
    await fleet.client.capacity.settle_reservation(name=made.name, outcome=ROLLED_BACK)
    usage = await fleet.usage()
    assert (usage.serving_units, usage.held_units, usage.available_units) == (500, 0, 100)


async def test_the_rollback_window_keeps_the_rest_of_the_hold_until_it_is_over(fleet: CapacityFleet) -> None:
    made = await swap(fleet)
    window = Duration(seconds=2)
    done = await fleet.client.capacity.settle_reservation(
        name=made.name, outcome=SUCCEEDED, usages=[uses(NEW, 420)], retain_duration=window
    )
    assert [item.hold_units for item in done.retained] == [164]
    assert done.HasField("retain_until")
    assert (await fleet.usage()).retained_units == 164

    async def is_free() -> bool:
        return (await fleet.usage()).available_units == 180

    await until(is_free)
    assert not (await fleet.client.capacity.get_reservation(name=made.name)).HasField("retain_until")
    # The same settlement again still answers, although what it kept is free by now.
    again = await fleet.client.capacity.settle_reservation(
        name=made.name, outcome=SUCCEEDED, usages=[uses(NEW, 420)], retain_duration=window
    )
    assert again.state == pb.Reservation.SETTLED


async def test_a_settlement_is_idempotent_by_reservation_and_refused_with_other_content(fleet: CapacityFleet) -> None:
    made = await swap(fleet)
    settle = fleet.client.capacity.settle_reservation
    first = await settle(name=made.name, outcome=SUCCEEDED, usages=[uses(NEW, 420)])
    assert await settle(name=made.name, outcome=SUCCEEDED, usages=[uses(NEW, 420)]) == first
    with pytest.raises(FailedPrecondition) as refused:
        await settle(name=made.name, outcome=ROLLED_BACK)
    assert refused.value.reason == "LAUNCH_ENDED"
    assert refused.value.metadata["outcome"] == "SUCCEEDED"
    assert (await fleet.usage()).serving_units == 420


async def test_too_much_is_refused_with_what_is_missing_where_and_changes_nothing(fleet: CapacityFleet) -> None:
    with pytest.raises(ResourceExhausted) as refused:
        await fleet.client.capacity.create_reservation(reservation=hold("l1", 601))
    assert refused.value.reason == "QUOTA_EXCEEDED"
    assert refused.value.metadata == {
        "pool": POOL, "flavor": CPU, "region": EU, "requested": "601", "available": "600"
    }  # fmt: skip
    assert (await fleet.usage()).held_units == 0


async def test_all_places_fit_or_none_is_taken(fleet: CapacityFleet) -> None:
    wanted = hold("l1", 10)
    wanted.items.add(flavor=CPU, region=US, hold_units=1)
    with pytest.raises(ResourceExhausted) as refused:
        await fleet.client.capacity.create_reservation(reservation=wanted)
    assert refused.value.metadata["region"] == US
    assert (await fleet.usage()).held_units == 0


async def test_a_repeated_request_id_answers_the_same_and_takes_nothing_twice(fleet: CapacityFleet) -> None:
    key = str(uuid.uuid4())
    create = fleet.client.capacity.create_reservation
    first = await create(reservation=hold("l1", 10), request_id=key)
    assert await create(reservation=hold("l1", 10), request_id=key) == first
    with pytest.raises(AlreadyExists) as refused:
        await create(reservation=hold("l1", 11), request_id=key)
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert (await fleet.usage()).held_units == 10


async def test_a_launch_has_one_live_reservation(fleet: CapacityFleet) -> None:
    first = await fleet.client.capacity.create_reservation(reservation=hold("l1", 10))
    # Also where a second one would not fit beside it.
    for units in (10, 600):
        with pytest.raises(AlreadyExists) as refused:
            await fleet.client.capacity.create_reservation(reservation=hold("l1", units))
        assert (refused.value.reason, refused.value.metadata["resource"]) == ("RESOURCE_EXISTS", first.name)


async def test_a_hold_expires_unless_it_was_activated(fleet: CapacityFleet) -> None:
    soon = Duration(nanos=50_000_000)
    create, get = fleet.client.capacity.create_reservation, fleet.client.capacity.get_reservation
    await fleet.client.capacity.book_usage(pool=POOL, usages=[uses(OLD, 5)])
    kept = await create(reservation=hold("kept", 20))
    await fleet.client.capacity.activate_reservation(name=kept.name)
    database = await Database.open(fleet.database_url, "capacity", max_size=1)
    await database.execute("UPDATE reservations SET expire_time = now() - interval '1 minute'")
    await database.close()
    lost = await create(reservation=hold("lost", 10, replaced=(OLD,)), time_to_live=soon)

    async def is_expired() -> bool:
        return (await get(name=lost.name)).state == pb.Reservation.EXPIRED

    await until(is_expired)
    assert (await get(name=kept.name)).state == pb.Reservation.HELD
    usage = await fleet.usage()
    assert (usage.serving_units, usage.held_units) == (5, 20)
    with pytest.raises(FailedPrecondition) as refused:
        await fleet.client.capacity.activate_reservation(name=lost.name)
    assert refused.value.reason == "WRONG_STATE"
    # There is nothing left to give back, so giving it back is no error.
    assert (await fleet.client.capacity.cancel_reservation(name=lost.name)).state == pb.Reservation.EXPIRED


async def test_a_cancelled_hold_leaves_everything_as_before_and_an_activated_one_cannot_be_cancelled(
    fleet: CapacityFleet,
) -> None:
    made = await swap(fleet)
    for _ in range(2):
        assert (await fleet.client.capacity.cancel_reservation(name=made.name)).state == pb.Reservation.CANCELLED
    assert (await fleet.usage()).serving_units == 500
    again = await fleet.client.capacity.create_reservation(reservation=hold("l1", 510, replaced=(OLD,)))
    await fleet.client.capacity.activate_reservation(name=again.name)
    with pytest.raises(FailedPrecondition) as refused:
        await fleet.client.capacity.cancel_reservation(name=again.name)
    assert "SettleReservation" in refused.value.message


async def test_every_change_of_usage_is_in_the_ledger_with_who_and_why(fleet: CapacityFleet) -> None:
    made = await swap(fleet)
    await fleet.client.capacity.settle_reservation(name=made.name, outcome=SUCCEEDED, usages=[uses(NEW, 420)])
    entries = [entry async for entry in fleet.client.capacity.list_ledger_entries_all(pool=POOL, page_size=2)]
    assert [(entry.account, entry.delta_units) for entry in entries] == [
        (pb.LedgerEntry.SERVING, 420),
        (pb.LedgerEntry.HELD, -584),
        (pb.LedgerEntry.HELD, 584),
        (pb.LedgerEntry.SERVING, -500),
        (pb.LedgerEntry.SERVING, 500),
    ]
    assert {(entry.launch, entry.reservation) for entry in entries[:4]} == {("launches/l1", made.name)}
    assert (entries[0].reason, entries[-1].reason, entries[0].actor) == ("settled as SUCCEEDED", "import", "local")
    assert await fleet.differences() == []


async def test_simulating_says_what_reserving_then_does_in_any_state(fleet: CapacityFleet) -> None:
    draw = random.Random(5)
    await make_pool(fleet.client, 40, "small")
    held: list[str] = []
    for index in range(60):
        if held and draw.random() < 0.4:
            await fleet.client.capacity.settle_reservation(
                name=held.pop(draw.randrange(len(held))),
                outcome=SUCCEEDED,
                usages=[uses(draw.choice((OLD, NEW)), draw.randint(0, 1))],
            )
        replaced = tuple(model for model in (OLD, NEW) if draw.random() < 0.5)
        wanted = hold(f"s{index}", draw.randint(1, 30), pool="pools/small", replaced=replaced)
        simulated = await fleet.client.capacity.simulate_reservation(reservation=wanted)
        if not simulated.fits:
            with pytest.raises(ResourceExhausted) as refused:
                await fleet.client.capacity.create_reservation(reservation=wanted)
            (fit,) = simulated.items
            assert int(refused.value.metadata["available"]) == fit.available_units
            assert fit.missing_units == fit.item.extra_units - fit.available_units > 0
            assert simulated.explanation.startswith("Does not fit now")
            continue
        made = await fleet.client.capacity.create_reservation(reservation=wanted)
        assert [fit.item for fit in simulated.items] == list(made.items)
        held.append(made.name)
    assert await fleet.differences() == []


async def test_simulating_where_the_pool_has_no_quota_says_that_nothing_is_there(fleet: CapacityFleet) -> None:
    await make_pool(fleet.client, 40, "small")
    elsewhere = hold("elsewhere", 3, pool="pools/small", region=US)
    simulated = await fleet.client.capacity.simulate_reservation(reservation=elsewhere)
    assert not simulated.fits
    assert (simulated.items[0].available_units, simulated.items[0].missing_units) == (0, 3)
