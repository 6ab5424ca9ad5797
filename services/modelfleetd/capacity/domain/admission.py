"""Whether something fits into a pool: the one decision behind creating a reservation, simulating one, and booking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.capacity.domain.ledger import Account, Entry, ModelUnits, check_units
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.reservation import Asked, HoldItem
from modelfleetd.errors import FieldViolation, QuotaShortage

MAX_BOOKINGS = 1000


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether one item fits: what is available to the pool before it is taken, and what is missing."""

    item: HoldItem
    available_units: int

    @property
    def missing_units(self) -> int:
        # What is moved is the launch's own already: after a cut of the quota it may still swap within it.
        extra = self.item.extra_units
        return max(0, extra - self.available_units) if extra else 0


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision on what was asked for: what would be moved, and item by item whether the rest is there."""

    fits: tuple[Fit, ...]
    moved: tuple[ModelUnits, ...]

    @property
    def admitted(self) -> bool:
        return all(fit.missing_units == 0 for fit in self.fits)

    @property
    def items(self) -> tuple[HoldItem, ...]:
        return tuple(fit.item for fit in self.fits)

    def shortages(self, pool: str) -> list[QuotaShortage]:
        """Returns what is missing where; empty when it is admitted."""
        return [
            QuotaShortage(pool, fit.item.flavor, fit.item.region, fit.item.extra_units, fit.available_units)
            for fit in self.fits
            if fit.missing_units
        ]

    def explain(self, pool: str) -> str:
        """Returns the decision in a sentence."""
        if not self.admitted:
            return "Does not fit now: " + "; ".join(map(str, self.shortages(pool))) + "."
        parts = [
            f"{item.hold_units} units of {item.flavor} in {item.region} = {item.moved_units} moved + "
            f"{item.extra_units} new of {fit.available_units} available"
            for fit in self.fits
            for item in (fit.item,)
        ]
        return "Fits now: " + "; ".join(parts) + "."


def admit(asked: Asked, bookings: Iterable[ModelUnits], available: Mapping[Place, int]) -> Admission:
    """Decides on a reservation.

    What the replaced models have booked in the places of the items moves into the hold, whole; the rest must be
    available. Where an item asks for less than is moved, the hold is what is moved: it frees at the settlement.

    Args:
        asked: what is asked for.
        bookings: what the replaced models have booked in this pool.
        available: units that the pool may still use, by place.
    """
    places = {item.place for item in asked.items}
    moved = tuple(booking for booking in bookings if booking.place in places and booking.units > 0)
    from_models: dict[Place, int] = {}
    for booking in moved:
        from_models[booking.place] = from_models.get(booking.place, 0) + booking.units
    fits = tuple(Fit(_hold(item, from_models.get(item.place, 0)), available.get(item.place, 0)) for item in asked.items)
    return Admission(fits, moved)


def _hold(item: HoldItem, moved: int) -> HoldItem:
    return replace(item, hold_units=max(item.hold_units, moved), moved_units=moved)


@dataclass(frozen=True, slots=True)
class Booked:
    """The decision on bookings that are set by hand: the lines that set them, and what is missing where."""

    entries: tuple[Entry, ...]
    missing: Mapping[Place, int]


def check_bookings(wanted: tuple[ModelUnits, ...]) -> tuple[ModelUnits, ...]:
    """Returns the bookings that somebody asks for.

    Raises:
        InvalidFields: none or too many, units out of range, a model twice in a place.
    """
    wrong = check_units(wanted, "usages")
    if not 1 <= len(wanted) <= MAX_BOOKINGS:
        wrong.append(FieldViolation("usages", f"must be 1 to {MAX_BOOKINGS:,}"))
    refuse(wrong)
    return wanted


def book(wanted: Iterable[ModelUnits], bookings: Iterable[ModelUnits], available: Mapping[Place, int]) -> Booked:
    """Decides on what models that serve already are to be booked with, whatever they were booked with before.

    Args:
        wanted: what each model shall have booked.
        bookings: what these models have booked now.
        available: units that the pool may still use, by place.
    """
    before = {(booking.model, booking.place): booking.units for booking in bookings}
    entries = tuple(
        Entry(units.place, Account.SERVING, delta, units.model)
        for units in wanted
        if (delta := units.units - before.get((units.model, units.place), 0))
    )
    growth: dict[Place, int] = {}
    for entry in entries:
        growth[entry.place] = growth.get(entry.place, 0) + entry.delta_units
    missing = {
        place: units - available.get(place, 0)
        for place, units in growth.items()
        if units > 0 and units > available.get(place, 0)
    }
    return Booked(entries, missing)
