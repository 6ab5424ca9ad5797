"""The end of a hold: what is booked, what is kept for a rollback, what is freed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.capacity.domain.ledger import Account, Entry, ModelUnits, check_units
from modelfleetd.capacity.domain.pool import MAX_UNITS, Place
from modelfleetd.capacity.domain.reservation import (
    MAX_TIME,
    HoldItem,
    Kept,
    Outcome,
    Reservation,
    State,
    entry_of_item,
    undone,
)
from modelfleetd.errors import FieldViolation, LaunchEnded, SettlementExceedsHold


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a hold ends.

    Attributes:
        usages: what each model uses from now on.
        retain_duration: how long what is kept of the rest is kept.
        retain: how much of the rest is kept where; a place that is not named keeps nothing. Empty: all of the rest.

    Raises:
        InvalidFields: units out of range, a model twice in a place, or usages and times that the outcome excludes.
    """

    outcome: Outcome
    usages: tuple[ModelUnits, ...] = ()
    retain_duration: timedelta = timedelta()
    retain: tuple[Kept, ...] = ()

    def __post_init__(self) -> None:
        wrong = []
        if self.outcome is Outcome.ROLLED_BACK and self.usages:
            wrong.append(FieldViolation("usages", "must be empty when rolled back: what was moved is booked again"))
        if self.outcome is Outcome.ROLLED_BACK and self.retain_duration:
            wrong.append(FieldViolation("retain_duration", "must be unset when rolled back: nothing is left to undo"))
        if not timedelta() <= self.retain_duration <= MAX_TIME:
            wrong.append(FieldViolation("retain_duration", "must be 0 to 7 days"))
        if self.outcome is Outcome.ROLLED_BACK and self.retain:
            wrong.append(FieldViolation("retain", "must be empty when rolled back: nothing is left to undo"))
        wrong += check_units(self.usages, "usages")
        wrong += _check_retain(self.retain)
        refuse(wrong)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settlement books, keeps, and writes into the ledger."""

    booked: tuple[ModelUnits, ...]
    retained: tuple[HoldItem, ...]
    entries: tuple[Entry, ...]


def settle(reservation: Reservation, settlement: Settlement, meanwhile: Iterable[ModelUnits] = ()) -> Settled | None:
    """Ends a hold; None when it was ended in the same way before.

    Args:
        reservation: the hold.
        settlement: how it ends.
        meanwhile: what the models that it replaces have booked beside it by now, such as by a mitigation that had
            precedence. A success replaces that with the usages; a rollback leaves it.

    Raises:
        LaunchEnded: it was settled otherwise.
        WrongState: it never became, or is no longer, a hold.
        SettlementExceedsHold: in some place more would be booked than is held.
    """
    if reservation.state is State.SETTLED:
        if _same_settlement(reservation, settlement):
            return None
        outcome = "unknown" if reservation.outcome is None else reservation.outcome.name
        raise LaunchEnded(reservation.launch, outcome)
    reservation.require(State.SETTLED)
    succeeded = settlement.outcome is Outcome.SUCCEEDED
    booked = settlement.usages if succeeded else reservation.moved
    places = {item.place for item in reservation.items}
    over = tuple(units for units in meanwhile if succeeded and units.units and units.place in places)
    retained = _retained(reservation, settlement, _left(reservation, booked, over))
    entries = (
        *(Entry(units.place, Account.SERVING, -units.units, units.model) for units in over),
        *(undone(entry_of_item(item)) for item in reservation.items if item.hold_units),
        *(Entry(usage.place, Account.SERVING, usage.units, usage.model) for usage in booked if usage.units),
        *(Entry(item.place, Account.RETAINED, item.hold_units) for item in retained),
    )
    return Settled(booked, retained, entries)


def _check_retain(retain: Sequence[Kept]) -> list[FieldViolation]:
    wrong = []
    seen: set[Place] = set()
    for index, kept in enumerate(retain):
        if not 0 <= kept.units <= MAX_UNITS:
            wrong.append(FieldViolation(f"retain[{index}].units", f"must be 0 to {MAX_UNITS:,}"))
        if kept.place in seen:
            wrong.append(FieldViolation(f"retain[{index}]", "names a flavor and region a second time"))
        seen.add(kept.place)
    return wrong


def _retained(reservation: Reservation, settlement: Settlement, left: Sequence[HoldItem]) -> tuple[HoldItem, ...]:
    """Returns what is kept of what is left: what is named, or all of it. Raises SettlementExceedsHold."""
    if not settlement.retain_duration:
        return ()
    if not settlement.retain:
        return tuple(item for item in left if item.hold_units)
    rest = {item.place: item.hold_units for item in left}
    for kept in settlement.retain:
        if kept.units > rest.get(kept.place, 0):
            raise SettlementExceedsHold(reservation.name, rest.get(kept.place, 0), kept.units)
    return tuple(HoldItem(kept.flavor, kept.region, kept.units) for kept in settlement.retain if kept.units)


def _left(reservation: Reservation, booked: Sequence[ModelUnits], over: Sequence[ModelUnits]) -> list[HoldItem]:
    """Returns what remains of each item, and of the bookings that are over, once the usages are taken from it."""
    used: dict[Place, int] = {}
    for usage in booked:
        used[usage.place] = used.get(usage.place, 0) + usage.units
    held = {item.place: item.hold_units for item in reservation.items}
    for booking in over:
        held[booking.place] += booking.units
    for place, units in used.items():
        if units > held.get(place, 0):
            raise SettlementExceedsHold(reservation.name, held.get(place, 0), units)
    return [
        HoldItem(item.flavor, item.region, held[item.place] - used.get(item.place, 0)) for item in reservation.items
    ]


def _same_settlement(reservation: Reservation, settlement: Settlement) -> bool:
    if reservation.outcome is not settlement.outcome or reservation.retain_duration != settlement.retain_duration:
        return False
    if set(reservation.retain) != set(settlement.retain):
        return False
    return settlement.outcome is Outcome.ROLLED_BACK or set(reservation.settled) == set(settlement.usages)
