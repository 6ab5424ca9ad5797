"""Holds from admission to release: each function decides by the domain on locked rows and writes the ledger, in one
transaction of its caller. The servicer and the worker share them.
"""

from __future__ import annotations

from datetime import timedelta

from modelfleetd.capacity.domain.admission import Admission, admit, book
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.reservation import (
    Asked,
    Reservation,
    State,
    entries_of_hold,
    entries_of_release,
    entries_of_return,
)
from modelfleetd.capacity.domain.settlement import Settlement, settle
from modelfleetd.capacity.store import balances, flavors, pools, reservations, usage
from modelfleetd.capacity.store.balances import Cause
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import QuotaExceeded, QuotaShortage, ReferenceNotFound, ResourceNotFound
from modelfleetd.kit.db import Connection, Database


async def decide(reads: Reads, asked: Asked, *, lock: bool) -> Admission:
    """Decides on a reservation: with `lock` on rows that stay as they are, without on a snapshot.

    Raises:
        ReferenceNotFound: the pool or a flavor does not exist.
    """
    rooms = await balances.headroom(reads, asked.pool, asked.places, lock=lock)
    if len(rooms) < len(asked.items):
        await _check_references(reads, asked, lock=lock)
    bookings = await balances.bookings_of(reads, asked.pool, asked.replaced_models)
    return admit(asked, bookings, {place: room.available_units for place, room in rooms.items()})


async def _check_references(reads: Reads, asked: Asked, *, lock: bool) -> None:
    """A place without a balance has no quota; tells that from a name that does not exist."""
    if not await pools.exists(reads, asked.pool):
        raise ReferenceNotFound("reservation.pool", asked.pool)
    missing = await flavors.missing(reads, {item.flavor for item in asked.items}, lock=lock)
    for index, item in enumerate(asked.items):
        if item.flavor in missing:
            raise ReferenceNotFound(f"reservation.items[{index}].flavor", item.flavor)


async def hold(conn: Connection, name: str, asked: Asked, time_to_live: timedelta, actor: str) -> Reservation:
    """Reserves. Raises QuotaExceeded, ResourceExists, ReferenceNotFound."""
    admission = await decide(conn, asked, lock=True)
    if not admission.admitted:
        raise QuotaExceeded(await usage.explained(conn, admission.shortages(asked.pool)))
    made = await reservations.insert(conn, name, asked, admission, time_to_live)
    await balances.write(conn, _cause(made, actor, "reserved"), entries_of_hold(made.items, made.moved))
    return made


async def activate(conn: Connection, name: str) -> Reservation:
    """Ends the time in which a hold can expire. Raises WrongState unless it is held."""
    found = await reservations.lock(conn, name)
    found.require(State.SETTLED)
    return found if found.activate_time else await reservations.set_activated(conn, name)


async def cancel(conn: Connection, name: str, actor: str) -> Reservation:
    """Gives back a hold that was never activated. Raises WrongState."""
    found = await reservations.lock(conn, name)
    if found.state in (State.CANCELLED, State.EXPIRED):
        return found
    found.require(State.CANCELLED)
    found.require_not_activated()
    return await _give_back(conn, found, State.CANCELLED, actor, "cancelled")


async def end(conn: Connection, name: str, settlement: Settlement, actor: str) -> Reservation:
    """Settles. Raises WrongState, LaunchEnded, SettlementExceedsHold."""
    found = await reservations.lock(conn, name)
    settled = settle(found, settlement)
    if settled is None:
        return found
    await _lock(conn, found)
    await balances.write(conn, _cause(found, actor, f"settled as {settlement.outcome.name}"), settled.entries)
    return await reservations.set_settled(conn, name, settlement, settled)


async def expire_one(database: Database, actor: str) -> bool:
    """Ends one hold whose time ran out before it was activated; False where there is none."""
    async with database.transaction() as conn:
        found = await reservations.lock_expired(conn)
        if found is None:
            return False
        await _give_back(conn, found, State.EXPIRED, actor, "expired")
        return True


async def release_one(database: Database, actor: str) -> bool:
    """Frees what one settled reservation kept for a rollback; False where none is due."""
    async with database.transaction() as conn:
        found = await reservations.lock_releasable(conn)
        if found is None:
            return False
        await _lock(conn, found)
        await balances.write(conn, _cause(found, actor, "rollback window over"), entries_of_release(found))
        await reservations.set_released(conn, found.name)
        return True


async def book_usage(conn: Connection, pool: str, wanted: tuple[ModelUnits, ...], actor: str, reason: str) -> None:
    """Books what models use that serve already. Raises ResourceNotFound, ReferenceNotFound, QuotaExceeded."""
    places = sorted({units.place for units in wanted})
    rooms = await balances.headroom(conn, pool, places, lock=True)
    if len(rooms) < len(places):
        if not await pools.exists(conn, pool):
            raise ResourceNotFound(pool)
        missing = await flavors.missing(conn, {units.flavor for units in wanted})
        for index, units in enumerate(wanted):
            if units.flavor in missing:
                raise ReferenceNotFound(f"usages[{index}].flavor", units.flavor)
    available = {place: room.available_units for place, room in rooms.items()}
    before = await balances.bookings_of(conn, pool, {units.model for units in wanted})
    booked = book(wanted, before, available)
    if booked.missing:
        shortages = [
            QuotaShortage(pool, place.flavor, place.region, available.get(place, 0) + units, available.get(place, 0))
            for place, units in sorted(booked.missing.items())
        ]
        raise QuotaExceeded(await usage.explained(conn, shortages))
    await balances.write(conn, Cause(pool, actor, reason or "booked"), booked.entries)


async def _give_back(conn: Connection, found: Reservation, state: State, actor: str, reason: str) -> Reservation:
    await _lock(conn, found)
    await balances.write(conn, _cause(found, actor, reason), entries_of_return(found))
    return await reservations.set_state(conn, found.name, state)


async def _lock(conn: Connection, found: Reservation) -> None:
    """Locks the balances that an end changes, in the one order; the rows themselves are not looked at."""
    await balances.headroom(conn, found.pool, sorted(item.place for item in found.items), lock=True)


def _cause(found: Reservation, actor: str, reason: str) -> Cause:
    return Cause(found.pool, actor, reason, launch=found.launch, reservation=found.name)
