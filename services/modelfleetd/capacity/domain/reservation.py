"""Capacity held for launches: what is asked for, the states, and the ledger lines that take, undo and free a hold.

PENDING ──▶ HELD ──▶ SETTLED      the launch ended, what it uses is booked
   ├──────────┼────▶ EXPIRED      never activated, its time ran out: the worker
   └──────────┴────▶ CANCELLED    given back before anything was started
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.capacity.domain.ledger import Account, Entry, ModelUnits
from modelfleetd.capacity.domain.pool import MAX_UNITS, Place
from modelfleetd.errors import FieldViolation, WrongState, invalid

MAX_ITEMS = 1000
DEFAULT_TIME_TO_LIVE = timedelta(hours=1)
MAX_TIME = timedelta(days=7)
# Leaves room for whatever is added to a time.
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


class State(enum.Enum):
    """Where a reservation is in its life; beside each, who moves it on."""

    PENDING = "PENDING"  # the worker that serves those who wait, the one that expires them, or its holder
    HELD = "HELD"  # its holder; before the activation also the worker that expires it
    SETTLED = "SETTLED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.HELD, State.EXPIRED, State.CANCELLED}),
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


class Tier(enum.IntEnum):
    """How important a launch is: the highest severity of incident that its models can cause."""

    TIER0 = 0
    TIER1 = 1
    TIER2 = 2
    TIER3 = 3
    TIER4 = 4


def rank(tier: Tier | None) -> int:
    """Returns the place of a tier in the order of importance, from 0; what is not stated is least important."""
    return len(Tier) if tier is None else tier.value


@dataclass(frozen=True, slots=True)
class HoldItem:
    """How much a launch holds of one flavor in one region, in units: moved from what served before, plus extra.

    Attributes:
        end_units: what its models will use here when it has succeeded; None: as much as it holds.
    """

    flavor: str
    region: str
    hold_units: int
    moved_units: int = 0
    end_units: int | None = None

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)

    @property
    def extra_units(self) -> int:
        return self.hold_units - self.moved_units

    @property
    def ends_with(self) -> int:
        """What it will use at the end, as far as is known."""
        return self.hold_units if self.end_units is None else self.end_units

    @property
    def freed_units(self) -> int:
        """What its end will free when the launch succeeds: what may be promised to others."""
        return self.hold_units - self.ends_with


@dataclass(frozen=True, slots=True)
class Promise:
    """Units that a launch which is held already will free, for one that waits.

    Attributes:
        expected_time: when, the rollback window of that launch included.
    """

    reservation: str
    launch: str
    flavor: str
    region: str
    units: int
    expected_time: datetime

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reservation asks for.

    Attributes:
        expected_release_time: when the holder expects the launch to end; None: it does not know.
        expected_retain_duration: how long it means to keep what is left for a rollback.

    Raises:
        InvalidFields: no items, too many, one twice, units or times out of range.
    """

    pool: str
    launch: str
    items: tuple[HoldItem, ...]
    replaced_models: tuple[str, ...] = ()
    tier: Tier | None = None
    expected_release_time: datetime | None = None
    expected_retain_duration: timedelta = timedelta()
    attempt: int = 0
    # The reservation whose units for a rollback it takes.
    takes_over: str = ""

    @property
    def counted(self) -> int:
        """The attempt of the launch; who says nothing of attempts makes only one."""
        return self.attempt or 1

    def __post_init__(self) -> None:
        wrong = []
        if self.attempt < 0:
            wrong.append(FieldViolation("reservation.attempt", "must not be negative"))
        if not 1 <= len(self.items) <= MAX_ITEMS:
            wrong.append(FieldViolation("reservation.items", f"must be 1 to {MAX_ITEMS:,} items"))
        seen: set[Place] = set()
        for index, item in enumerate(self.items):
            path = f"reservation.items[{index}]"
            if not 0 <= item.hold_units <= MAX_UNITS:
                wrong.append(FieldViolation(f"{path}.hold_units", f"must be 0 to {MAX_UNITS:,}"))
            elif item.end_units is not None and not 0 <= item.end_units <= item.hold_units:
                wrong.append(
                    FieldViolation(f"{path}.end_units", f"must be 0 to hold_units, which are {item.hold_units:,}")
                )
            if item.place in seen:
                wrong.append(FieldViolation(path, "names a flavor and region a second time"))
            seen.add(item.place)
        if not timedelta() <= self.expected_retain_duration <= MAX_TIME:
            wrong.append(FieldViolation("reservation.expected_retain_duration", "must be 0 to 7 days"))
        wrong += _wrong_time(self.expected_release_time, "reservation.expected_release_time")
        refuse(wrong)

    @property
    def places(self) -> list[Place]:
        """The places of its items, in the order in which their balances are locked."""
        return sorted(item.place for item in self.items)


@dataclass(frozen=True, slots=True)
class Kept:
    """How much of a hold is kept for a rollback in one place."""

    flavor: str
    region: str
    units: int

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Capacity of a pool that is a launch's, or was.

    Attributes:
        sequence: its place in the order of creation.
        retained: what is kept of the items until `retain_until`, as holds of their own.
        outcome: how its launch ended; None before.
        retain: what the settlement asked to keep; empty: all that was left.
        time_to_live: how long it lives without being activated, from when it is held or renewed.
        promises: while it waits, what it waits for.
        position: while it waits, its place among those who wait for the same; 0 otherwise.
        version: grows with every change.
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
    retain: tuple[Kept, ...] = ()
    tier: Tier | None = None
    expected_release_time: datetime | None = None
    expected_retain_duration: timedelta = timedelta()
    time_to_live: timedelta = DEFAULT_TIME_TO_LIVE
    promises: tuple[Promise, ...] = ()
    expected_hold_time: datetime | None = None
    position: int = 0
    hold_time: datetime | None = None
    renew_time: datetime | None = None
    holder_absent: bool = False
    message: str = ""
    sequence: int = 0
    version: int = 0
    attempt: int = 1

    @property
    def asked(self) -> Asked:
        """What it asked for."""
        return Asked(
            self.pool,
            self.launch,
            self.items,
            self.replaced_models,
            self.tier,
            self.expected_release_time,
            self.expected_retain_duration,
            self.attempt,
        )

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
            return ("RenewReservation", "ActivateReservation", "SettleReservation", *before)
        return ("RenewReservation", "CancelReservation") if self.state is State.PENDING else ()

    def require_live(self) -> None:
        """Raises WrongState once it has ended."""
        if self.state not in LIVE:
            raise WrongState(self.name, self.state.name, self.verbs)

    def require_not_activated(self) -> None:
        """Raises WrongState once its first replica may have been started: from then on it ends by settlement alone."""
        if self.activate_time is not None:
            raise WrongState(self.name, "HELD and activated", self.verbs)


def entry_of_item(item: HoldItem) -> Entry:
    """Returns the line that takes an item into HELD, with what will go on serving of it."""
    return Entry(item.place, Account.HELD, item.hold_units, end_delta_units=item.ends_with)


def undone(entry: Entry) -> Entry:
    """Returns the line that undoes another."""
    end = None if entry.end_delta_units is None else -entry.end_delta_units
    return replace(entry, delta_units=-entry.delta_units, end_delta_units=end)


def entries_of_hold(items: Iterable[HoldItem], moved: Iterable[ModelUnits]) -> tuple[Entry, ...]:
    """Returns the lines that take a hold: from each moved model out of SERVING, and the whole into HELD."""
    return (
        *(Entry(booking.place, Account.SERVING, -booking.units, booking.model) for booking in moved),
        *(entry_of_item(item) for item in items if item.hold_units),
    )


def entries_of_return(reservation: Reservation) -> tuple[Entry, ...]:
    """Returns the lines that undo a hold: everything is as it was before. Of one that waits, none."""
    if reservation.state is State.PENDING:
        return ()
    taken = entries_of_hold(reservation.items, reservation.moved)
    return tuple(undone(entry) for entry in taken)


def ended_message(reservation: Reservation, state: State, actor: str) -> str:
    """Returns in a sentence how one ended that was never activated, and what that gave back.

    Args:
        reservation: as it was before.
        state: in which it ends: CANCELLED or EXPIRED.
        actor: who ended it.
    """
    how = f"Cancelled by {actor}" if state is State.CANCELLED else "Expired without being activated"
    if reservation.state is State.PENDING:
        how = how if state is State.CANCELLED else "Expired"
        return f"{how} while it waited: it held nothing."
    moved = sum(booking.units for booking in reservation.moved)
    free = sum(item.hold_units for item in reservation.items) - moved
    again = f", {_units(moved)} booked again for what was to be replaced" if moved else ""
    return f"{how}; {_units(free)} free again{again}."


def _units(count: int) -> str:
    return f"{count:,} unit is" if count == 1 else f"{count:,} units are"


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


def check_release_time(asked: datetime | None) -> datetime | None:
    """Returns when a holder expects to release what it holds. Raises InvalidFields for a time out of all reason."""
    refuse(_wrong_time(asked, "expected_release_time"))
    return asked


def _wrong_time(time: datetime | None, path: str) -> list[FieldViolation]:
    if time is None or _EARLIEST <= time <= _LATEST:
        return []
    return [FieldViolation(path, f"must be a time between the years {_EARLIEST.year} and {_LATEST.year}")]
