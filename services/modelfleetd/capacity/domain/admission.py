"""Whether something fits into a pool: the one decision behind creating a reservation, simulating one, and booking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.capacity.domain.ledger import Account, Entry, ModelUnits, check_units
from modelfleetd.capacity.domain.pool import MAX_UNITS, Place
from modelfleetd.capacity.domain.reservation import Asked, HoldItem
from modelfleetd.capacity.domain.room import Room
from modelfleetd.errors import EndStateExceedsQuota, FieldViolation, QuotaExceeded, QuotaShortage

MAX_BOOKINGS = 1000


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether one item fits: what is available to the pool before it is taken, and what is missing.

    Attributes:
        end_room_units: by how much the pool's end state may grow, what the item moves in counted as gone.
        kept_units: what is free besides, and kept for reservations that wait and come before this one.
    """

    item: HoldItem
    available_units: int
    end_room_units: int = MAX_UNITS
    kept_units: int = 0

    @property
    def missing_units(self) -> int:
        # What is moved is the launch's own already: after a cut of the quota it may still swap within it.
        extra = self.item.extra_units
        return max(0, extra - self.available_units) if extra else 0

    @property
    def end_excess_units(self) -> int:
        """Units by which the end state exceeds the pool's own quota and loans. What serves already may go on."""
        end = self.item.ends_with
        return max(0, end - self.end_room_units) if end > self.item.moved_units else 0


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision on what was asked for: what would be moved, and item by item whether the rest is there."""

    pool: str
    fits: tuple[Fit, ...]
    moved: tuple[ModelUnits, ...]

    @property
    def admitted(self) -> bool:
        return all(fit.missing_units == 0 for fit in self.fits) and self.ends_within_quota

    @property
    def ends_within_quota(self) -> bool:
        return all(fit.end_excess_units == 0 for fit in self.fits)

    @property
    def items(self) -> tuple[HoldItem, ...]:
        return tuple(fit.item for fit in self.fits)

    @property
    def growth(self) -> Iterator[tuple[Place, int, int]]:
        """Place by place, the units that the pool's usage and its end state grow by."""
        return ((fit.item.place, fit.item.extra_units, fit.item.ends_with - fit.item.moved_units) for fit in self.fits)

    def shortages(self) -> list[QuotaShortage]:
        """Returns what is missing where; empty when nothing is."""
        return [
            QuotaShortage(
                self.pool,
                fit.item.flavor,
                fit.item.region,
                fit.item.extra_units,
                fit.available_units,
                kept=fit.kept_units,
            )
            for fit in self.fits
            if fit.missing_units
        ]

    def end_excess(self) -> EndStateExceedsQuota:
        """Returns the error that names the first place whose end state exceeds quota and loans."""
        fit = next(fit for fit in self.fits if fit.end_excess_units)
        item = fit.item
        return EndStateExceedsQuota(self.pool, item.flavor, item.region, item.ends_with, max(0, fit.end_room_units))

    def refusal(self, may_wait: bool) -> QuotaExceeded | EndStateExceedsQuota:
        """Returns the error that says why it is not admitted.

        Args:
            may_wait: that something is missing now is no reason then.
        """
        shortages = self.shortages()
        if self.ends_within_quota or (shortages and not may_wait):
            return QuotaExceeded(shortages)
        return self.end_excess()

    def explain(self) -> str:
        """Returns the decision in a sentence or two."""
        if not self.admitted:
            shortages = self.shortages()
            now = "Does not fit now: " + "; ".join(map(str, shortages)) + "." if shortages else ""
            end = "" if self.ends_within_quota else self.end_excess().message
            return f"{now} {end}".strip()
        parts = [
            f"{item.hold_units} units of {item.flavor} in {item.region} = {item.moved_units} moved + "
            f"{item.extra_units} new of {fit.available_units} available"
            for fit in self.fits
            for item in (fit.item,)
        ]
        return "Fits now: " + "; ".join(parts) + "."


def admit(asked: Asked, bookings: Iterable[ModelUnits], room: Room, free: Room | None = None) -> Admission:
    """Decides on a reservation.

    What the replaced models have booked in the places of the items moves into the hold, whole; the rest must be
    available. Where an item asks for less than is moved, the hold is what is moved: it frees at the settlement.

    Args:
        asked: what is asked for.
        bookings: what the replaced models have booked in this pool.
        room: what the pool may use.
        free: what it could use if nobody waited.
    """
    places = {item.place for item in asked.items}
    moved = tuple(booking for booking in bookings if booking.place in places and booking.units > 0)
    from_models: dict[Place, int] = {}
    for booking in moved:
        from_models[booking.place] = from_models.get(booking.place, 0) + booking.units
    fits = []
    for item in asked.items:
        held = _hold(item, from_models.get(item.place, 0))
        available = room.available(asked.pool, item.place)
        kept = 0 if free is None else free.available(asked.pool, item.place) - available
        fits.append(Fit(held, available, room.end_room(asked.pool, item.place) + held.moved_units, kept))
    return Admission(asked.pool, tuple(fits), moved)


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
