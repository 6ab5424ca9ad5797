"""Capacity held for launches: what is asked for, the states, and the ledger lines that take, undo and free a hold.

PENDING ──▶ HELD ──▶ SETTLED      the launch ended, what it uses is booked
   │          ├────▶ EXPIRED      never activated, its time ran out: the worker
   └──────────┴────▶ CANCELLED    given back before anything was started
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.capacity.domain.ledger import Account, Entry, ModelUnits
from modelfleetd.capacity.domain.pool import MAX_UNITS, Place
from modelfleetd.errors import FieldViolation, WrongState, invalid

MAX_ITEMS = 1000
DEFAULT_TIME_TO_LIVE = timedelta(hours=1)
MAX_TIME = timedelta(days=7)


class State(enum.Enum):
    """Where a reservation is in its life; beside each, who moves it on."""

    PENDING = "PENDING"  # the worker that frees what it waits for, or its holder
    HELD = "HELD"  # its holder; before the activation also the worker that expires it
    SETTLED = "SETTLED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.HELD, State.CANCELLED}),
    State.HELD: frozenset({State.SETTLED, State.EXPIRED, State.CANCELLED}),
    State.SETTLED: frozenset(),
    State.EXPIRED: frozenset(),
    State.CANCELLED: frozenset(),
}
LIVE = frozenset({State.PENDING, State.HELD})


class Outcome(enum.Enum):
    """How a launch ended."""

    SUCCEEDED = "SUCCEEDED"
    ROLLED_BACK = "ROLLED_BACK"


@dataclass(frozen=True, slots=True)
class HoldItem:
    """How much a launch holds of one flavor in one region, in units: moved from what served before, plus extra."""

    flavor: str
    region: str
    hold_units: int
    moved_units: int = 0

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)

    @property
    def extra_units(self) -> int:
        return self.hold_units - self.moved_units


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reservation asks for.

    Raises:
        InvalidFields: no items, too many, one twice, or units out of range.
    """

    pool: str
    launch: str
    items: tuple[HoldItem, ...]
    replaced_models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = []
        if not 1 <= len(self.items) <= MAX_ITEMS:
            wrong.append(FieldViolation("reservation.items", f"must be 1 to {MAX_ITEMS:,} items"))
        seen: set[Place] = set()
        for index, item in enumerate(self.items):
            path = f"reservation.items[{index}]"
            if not 0 <= item.hold_units <= MAX_UNITS:
                wrong.append(FieldViolation(f"{path}.hold_units", f"must be 0 to {MAX_UNITS:,}"))
            if item.place in seen:
                wrong.append(FieldViolation(path, "names a flavor and region a second time"))
            seen.add(item.place)
        refuse(wrong)

    @property
    def places(self) -> list[Place]:
        """The places of its items, in the order in which their balances are locked."""
        return sorted(item.place for item in self.items)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Capacity of a pool that is a launch's, or was.

    Attributes:
        retained: what is kept of the items until `retain_until`, as holds of their own.
        outcome: how its launch ended; None before.
    """

    name: str
    uid: str
    pool: str
    launch: str
    state: State
    items: tuple[HoldItem, ...]
    replaced_models: tuple[str, ...]
    moved: tuple[ModelUnits, ...]
    settled: tuple[ModelUnits, ...]
    retained: tuple[HoldItem, ...]
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None = None
    activate_time: datetime | None = None
    retain_until: datetime | None = None
    outcome: Outcome | None = None
    retain_duration: timedelta = timedelta()

    def require(self, state: State) -> None:
        """Checks that it may go to a state.

        Raises:
            WrongState: it may not; says what may be done instead.
        """
        if state not in TRANSITIONS[self.state]:
            raise WrongState(self.name, self.state.name, self.verbs)

    @property
    def verbs(self) -> tuple[str, ...]:
        """What its holder may do with it now."""
        if self.state is State.HELD:
            before = () if self.activate_time else ("CancelReservation",)
            return ("ActivateReservation", "SettleReservation", *before)
        return ("CancelReservation",) if self.state is State.PENDING else ()

    def require_not_activated(self) -> None:
        """Raises WrongState once its first replica may have been started: from then on it ends by settlement alone."""
        if self.activate_time is not None:
            raise WrongState(self.name, "HELD and activated", self.verbs)


def entries_of_hold(items: Iterable[HoldItem], moved: Iterable[ModelUnits]) -> tuple[Entry, ...]:
    """Returns the lines that take a hold: from each moved model out of SERVING, and the whole into HELD."""
    return (
        *(Entry(booking.place, Account.SERVING, -booking.units, booking.model) for booking in moved),
        *(Entry(item.place, Account.HELD, item.hold_units) for item in items if item.hold_units),
    )


def entries_of_return(reservation: Reservation) -> tuple[Entry, ...]:
    """Returns the lines that undo a hold: everything is as it was before."""
    taken = entries_of_hold(reservation.items, reservation.moved)
    return tuple(replace(entry, delta_units=-entry.delta_units) for entry in taken)


def entries_of_release(reservation: Reservation) -> tuple[Entry, ...]:
    """Returns the lines that free what was kept for a rollback."""
    return tuple(Entry(item.place, Account.RETAINED, -item.hold_units) for item in reservation.retained)


def time_to_live(asked: timedelta | None) -> timedelta:
    """Returns how long a hold lives without being activated.

    Raises:
        InvalidFields: what was asked for is not above 0 and at most 7 days.
    """
    if asked is None:
        return DEFAULT_TIME_TO_LIVE
    if not timedelta() < asked <= MAX_TIME:
        raise invalid("time_to_live", "must be above 0 and at most 7 days")
    return asked
