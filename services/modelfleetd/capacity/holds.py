"""Holds from admission to release: each function decides by the domain on locked rows and writes the ledger, in one
transaction of its caller. The servicer and the worker share them.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from modelfleetd.capacity import lines
from modelfleetd.capacity.domain.admission import book
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.reservation import (
    Asked,
    Reservation,
    State,
    ended_message,
    entries_of_hold,
    entries_of_release,
    entries_of_return,
)
from modelfleetd.capacity.domain.settlement import Settlement, settle
from modelfleetd.capacity.store import balances, flavors, pools, reservations, usage
from modelfleetd.capacity.store.balances import Cause
from modelfleetd.errors import QuotaExceeded, QuotaShortage, ReferenceNotFound, ResourceNotFound, invalid
from modelfleetd.kit.db import Connection, Database


async def hold_waiting(conn: Connection, name: str, actor: str) -> bool:
    """Holds one that waits, if it is its turn and it fits: the decision that an arrival gets. False where not."""
    found = await reservations.lock(conn, name)
    if found.state is not State.PENDING:
        return False
    view = await lines.view(conn, found.pool, [found.asked], lock=True, wait=True)
    prospect = view.line.prospect_of(view.claim(name, found.sequence, found.asked))
    if not prospect.fits:
        return False
    admission = prospect.admission
    await reservations.set_held(conn, name, admission)
    entries = entries_of_hold(admission.items, admission.moved)
    await balances.write(conn, _cause(found, actor, "held after waiting"), entries)
    return True


async def renew(conn: Connection, name: str, time_to_live: timedelta, release: datetime | None) -> Reservation:
    """Takes note that the holder is there, and of when it expects to end. Raises WrongState once it has ended."""
    found = await reservations.lock(conn, name)
    found.require_live()
    return await reservations.set_renewed(conn, name, time_to_live, release)


async def activate(conn: Connection, name: str) -> Reservation:
    """Ends the time in which a hold can expire. Raises WrongState unless it is held."""
    found = await reservations.lock(conn, name)
    found.require(State.SETTLED)
    return found if found.activate_time else await reservations.set_activated(conn, name)


async def cancel(conn: Connection, name: str, actor: str) -> Reservation:
    """Gives back a hold that was never activated, or ends the waiting. Raises WrongState."""
    found = await reservations.lock(conn, name)
    if found.state in (State.CANCELLED, State.EXPIRED):
        return found
    found.require(State.CANCELLED)
    found.require_not_activated()
    return await _give_back(conn, found, State.CANCELLED, actor, "cancelled")


async def end(conn: Connection, name: str, settlement: Settlement, actor: str) -> Reservation:
    """Settles. Raises WrongState, LaunchEnded, SettlementExceedsHold."""
    found = await reservations.lock(conn, name)
    await _lock(conn, found)
    meanwhile = await balances.bookings_of(conn, found.pool, found.replaced_models) if found.replaced_models else []
    settled = settle(found, settlement, meanwhile)
    if settled is None:
        return found
    await balances.write(conn, _cause(found, actor, f"settled as {settlement.outcome.name}"), settled.entries)
    return await reservations.set_settled(conn, name, settlement, settled)


async def expire_one(database: Database, actor: str) -> bool:
    """Ends one that waited, or was held and never activated, until its time ran out; False where there is none."""
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
        await _free_retained(conn, found, actor, "rollback window over")
        return True


async def hand_over(conn: Connection, asked: Asked, actor: str) -> None:
    """Frees what another reservation keeps for a rollback, for the one that takes it over.

    Raises:
        ReferenceNotFound: there is no such reservation.
        InvalidFields: it is another pool's.
    """
    try:
        found = await reservations.lock(conn, asked.takes_over)
    except ResourceNotFound as error:
        raise ReferenceNotFound("reservation.takes_over", asked.takes_over) from error
    if found.pool != asked.pool:
        raise invalid("reservation.takes_over", f"must be a reservation in {asked.pool}; it is in {found.pool}")
    if found.retained:
        await _free_retained(conn, found, actor, f"handed over to {asked.launch}, which rolls it back")


async def _free_retained(conn: Connection, found: Reservation, actor: str, reason: str) -> None:
    await _lock(conn, found)
    await balances.write(conn, _cause(found, actor, reason), entries_of_release(found))
    await reservations.set_released(conn, found.name)


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
    return await reservations.set_ended(conn, found.name, state, ended_message(found, state, actor))


async def _lock(conn: Connection, found: Reservation) -> None:
    """Locks the balances that an end changes, in the one order; the rows themselves are not looked at."""
    await balances.headroom(conn, found.pool, sorted(item.place for item in found.items), lock=True)


def _cause(found: Reservation, actor: str, reason: str) -> Cause:
    return Cause(found.pool, actor, reason, launch=found.launch, reservation=found.name)
