"""Who is held now, who waits, and for what: one order for all, by tier and then by age.

- Whoever comes is decided on what those leave that wait already, are as important, and came before. What they need is
  theirs: of the free units as many as they lack, and of what others will free the rest. So a large one is not starved
  by small ones that come later. A more important one goes before them.
- Nothing is let through in between because it "would be back in time": times are what holders expect, not what they
  promise.
- A promise is what the end of a launch that is *held* will free if it succeeds, or what is kept for a rollback and will
  be free at the end of that window. What waits promises nothing, so no circle of waiting can form. Where a launch ends
  otherwise, those who wait on it are planned anew.
- One for whom nothing (any more) would free enough keeps its place in the order but no units: it is in nobody's way.

Everything here is pure: the same code decides on what is asked for, on who is next, and on what is only simulated.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

from modelfleetd.capacity.domain.admission import Admission, admit
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.reservation import Asked, Promise, Reservation, State, rank
from modelfleetd.capacity.domain.room import Room

# How many may wait in an organisation.
MAX_WAITING = 1000
_NAMED = 3

# The age of one that has not been stored yet: nobody came later.
NEWEST = 2**62


@dataclass(frozen=True)
class Claim:
    """A reservation that waits, or one that is asked for now.

    Attributes:
        sequence: its place in the order of age.
        asked: what it asks for.
        bookings: what the models that it replaces have booked now.
    """

    reservation: str
    sequence: int
    asked: Asked
    bookings: tuple[ModelUnits, ...] = ()

    @property
    def rank(self) -> int:
        # A rollback waits for nobody: what it takes was kept for it.
        return -1 if self.asked.takes_over else rank(self.asked.tier)

    @property
    def order(self) -> tuple[int, int]:
        return (self.rank, self.sequence)

    @cached_property
    def places(self) -> frozenset[Place]:
        """Where it asks for units."""
        return frozenset(item.place for item in self.asked.items)


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """Units that the end of a launch, or of what is kept for its rollback, will free in a pool."""

    time: datetime
    reservation: str
    flavor: str
    region: str
    pool: str
    launch: str
    units: int

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)


@dataclass(frozen=True, slots=True)
class Prospect:
    """What becomes of a claim.

    Attributes:
        admission: the decision on what those before it leave.
        promises: where it does not fit now: what it waits for. Empty where nothing would free enough.
        lacking: units that nothing will free, by place.
        position: its place among those who wait for the same, from 1.
    """

    claim: Claim
    admission: Admission
    promises: tuple[Promise, ...] = ()
    lacking: tuple[tuple[Place, int], ...] = ()
    position: int = 1

    @property
    def fits(self) -> bool:
        return self.admission.admitted

    @property
    def can_wait(self) -> bool:
        """Whether it does not fit now and will when what is promised is free."""
        return bool(self.promises)

    def expected_time(self, now: datetime) -> datetime | None:
        """Returns when it will be held if the promises are kept; None where there are none, or one is overdue."""
        times = [promise.expected_time for promise in self.promises]
        return max(times) if times and min(times) > now else None

    def explain(self, now: datetime) -> str:
        """Returns in a sentence what it waits for."""
        if self.fits:
            return "It fits now and is about to be held."
        if not self.admission.ends_within_quota:
            return self.admission.end_excess().message
        if not self.promises:
            parts = [f"{units} units of {place.flavor} in {place.region}" for place, units in self.lacking]
            return (
                f"Nothing that is held will free {_named(parts)} any more: it keeps its place, but needs more quota, "
                "or another launch to end."
            )
        waits = [
            f"{promise.units} units of {promise.flavor} in {promise.region} that {promise.launch} {_when(promise, now)}"
            for promise in self.promises
        ]
        place = "first in line" if self.position == 1 else f"number {self.position} in line"
        return f"Waits for {_named(waits)}; {place}."


def _when(promise: Promise, now: datetime) -> str:
    time = promise.expected_time.astimezone(UTC)
    if promise.expected_time <= now:
        return f"was expected to free by {time:%Y-%m-%d %H:%M} UTC and has not"
    return f"frees at about {time:%Y-%m-%d %H:%M} UTC"


def _named(parts: Sequence[str]) -> str:
    named = ", ".join(parts[:_NAMED])
    return named if len(parts) <= _NAMED else f"{named} and {len(parts) - _NAMED} more"


class _Left:
    """What is left once those before have what they need.

    Args:
        room: what is free.
        releases: what will be free, the next first.
    """

    def __init__(self, room: Room, releases: Iterable[Release]) -> None:
        self.room = room
        # Of each release, what nobody was promised; those of which nothing is left are gone.
        self._releases: defaultdict[Place, list[tuple[Release, int]]] = defaultdict(list)
        self._later: Counter[Place] = Counter()
        for release in releases:
            self._releases[release.place].append((release, release.units))
            self._later[release.place] += release.units

    def add(self, release: Release) -> None:
        """Takes note of another release."""
        insort(self._releases[release.place], (release, release.units))
        self._later[release.place] += release.units

    def consider(self, claim: Claim, free: Room, position: int) -> Prospect:
        """Returns what becomes of a claim. Changes nothing."""
        admission = admit(claim.asked, claim.bookings, self.room, free)
        if admission.admitted or not admission.ends_within_quota:
            return Prospect(claim, admission, position=position)
        missing = [(fit.item.place, fit.missing_units) for fit in admission.fits if fit.missing_units]
        lacking = [(place, short - self._later[place]) for place, short in missing if short > self._later[place]]
        promises: list[Promise] = []
        if not lacking:
            trial = self.room.copy()
            for place, short in missing:
                found, left = self._promised(trial, claim.asked.pool, place, short)
                promises += found
                lacking += [(place, left)] if left else []
        kept = () if lacking else tuple(sorted(promises, key=lambda promise: promise.expected_time))
        return Prospect(claim, admission, kept, tuple(lacking), position)

    def _promised(self, trial: Room, pool: str, place: Place, short: int) -> tuple[list[Promise], int]:
        """Returns what a pool may wait for to get so many units in a place, and how many nobody will free for it."""
        promises = []
        for release, units in self._releases[place]:
            if not short:
                break
            gained = _gain(trial, pool, release, min(units, short))
            if gained:
                short -= gained
                promises.append(_promise(release, gained))
        return promises, short

    def keep(self, prospect: Prospect) -> None:
        """Takes what one needs that is held, or that can wait: free units, and parts of what will be free."""
        for promise in prospect.promises:
            self._consume(promise)
        for place, units, end_units in prospect.admission.growth:
            self.room.use(prospect.claim.asked.pool, place, units, end_units)

    def _consume(self, promise: Promise) -> None:
        releases = self._releases[promise.place]
        index = next(at for at, (one, _) in enumerate(releases) if one.reservation == promise.reservation)
        release, units = releases[index]
        self.room.use(release.pool, release.place, -promise.units)
        self._later[promise.place] -= promise.units
        releases[index : index + 1] = [(release, units - promise.units)] if units > promise.units else []


def _promise(release: Release, units: int) -> Promise:
    return Promise(release.reservation, release.launch, release.flavor, release.region, units, release.time)


def _gain(room: Room, pool: str, release: Release, units: int) -> int:
    """Frees up to so many units of a release as a pool gains by them; returns how many."""
    before = room.available(pool, release.place)
    room.use(release.pool, release.place, -units)
    gained = room.available(pool, release.place) - before
    if gained < units:
        # A sibling's own units, or beyond what this pool may borrow: they are of no use to it.
        room.use(release.pool, release.place, units - gained)
    return gained


class Line:
    """All who wait for capacity of an organisation, and what there is for them, now and later.

    Args:
        room: what the pools may use, in every place that anybody here asks for.
        waiting: those who wait.
        releases: what will be free, and when.
    """

    def __init__(self, room: Room, waiting: Iterable[Claim] = (), releases: Iterable[Release] = ()) -> None:
        self._room = room
        self._waiting = sorted(waiting, key=lambda claim: claim.order)
        self._releases = sorted(releases)
        # What those of a rank, and of all more important ones, leave.
        self._left: dict[int, _Left] = {}

    @property
    def length(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def prospects(self) -> list[Prospect]:
        """Returns what becomes of those who wait, in their order."""
        left = _Left(self._room.copy(), self._releases)
        made = []
        before: Counter[frozenset[Place]] = Counter()
        for claim in self._waiting:
            prospect = left.consider(claim, self._room, _position(claim.places, before))
            before[claim.places] += 1
            _keep_if_any(left, prospect)
            made.append(prospect)
        return made

    def prospect_of(self, claim: Claim) -> Prospect:
        """Returns what becomes of a claim: of one that comes now, or of one that waits. Changes nothing."""
        waits = any(other.order == claim.order for other in self._waiting)
        left = self._left_before(claim) if waits else self._left_by(claim.rank)
        return left.consider(claim, self._room, self._position(claim))

    def hold(self, prospect: Prospect) -> None:
        """Takes note that one that came now, or that waited, is held."""
        claim = prospect.claim
        if any(other.order == claim.order for other in self._waiting):
            self._waiting = [other for other in self._waiting if other.order != claim.order]
            self._left.clear()
        self._forget(claim.asked.pool, prospect.admission.moved)
        pool, frees_at = claim.asked.pool, release_time(claim.asked)
        for place, units, end_units in prospect.admission.growth:
            self._room.use(pool, place, units, end_units)
        for rank_of, left in list(self._left.items()):
            if rank_of > claim.rank:
                # What they planned with may be gone.
                del self._left[rank_of]
            else:
                left.keep(prospect)
        for item in prospect.admission.items if frees_at else ():
            if item.freed_units and frees_at:
                release = Release(
                    frees_at, claim.reservation, item.flavor, item.region, pool, claim.asked.launch, item.freed_units
                )
                insort(self._releases, release)
                for left in self._left.values():
                    left.add(release)

    def _forget(self, pool: str, moved: Sequence[ModelUnits]) -> None:
        """What was moved into a hold is not there for others to move."""
        gone = frozenset(moved)
        for index, claim in enumerate(self._waiting if gone else ()):
            if claim.asked.pool == pool and not gone.isdisjoint(claim.bookings):
                kept = tuple(units for units in claim.bookings if units not in gone)
                self._waiting[index] = replace(claim, bookings=kept)
                self._left.clear()

    def wait(self, prospect: Prospect) -> None:
        """Takes note that one that came now waits."""
        claim = prospect.claim
        insort(self._waiting, claim, key=lambda other: other.order)
        for rank_of in [rank_of for rank_of in self._left if rank_of > claim.rank]:
            del self._left[rank_of]
        if claim.rank in self._left:
            self._left[claim.rank].keep(prospect)

    def _left_by(self, rank_of: int) -> _Left:
        """Returns what all leave that are of a rank or more important."""
        if rank_of not in self._left:
            left = _Left(self._room.copy(), self._releases)
            self._left[rank_of] = self._without(left, [claim for claim in self._waiting if claim.rank <= rank_of])
        return self._left[rank_of]

    def _left_before(self, claim: Claim) -> _Left:
        left = _Left(self._room.copy(), self._releases)
        return self._without(left, [other for other in self._waiting if other.order < claim.order])

    def _without(self, left: _Left, claims: Iterable[Claim]) -> _Left:
        for claim in claims:
            _keep_if_any(left, left.consider(claim, self._room, 0))
        return left

    def _position(self, claim: Claim) -> int:
        before = Counter(other.places for other in self._waiting if other.order < claim.order)
        return _position(claim.places, before)


def _position(places: frozenset[Place], before: Counter[frozenset[Place]]) -> int:
    """Returns the place in line of one that asks for units in some places: whoever is before it there counts."""
    return 1 + sum(count for others, count in before.items() if not others.isdisjoint(places))


def _keep_if_any(left: _Left, prospect: Prospect) -> None:
    if prospect.fits or prospect.can_wait:
        left.keep(prospect)


def release_time(asked: Asked) -> datetime | None:
    """Returns when what a launch frees will be free, its rollback window included; None where its holder cannot say."""
    if asked.expected_release_time is None:
        return None
    return asked.expected_release_time + asked.expected_retain_duration


def reservation_of(prospect: Prospect, uid: str, now: datetime, time_to_live: timedelta) -> Reservation:
    """Returns what is stored of one that came now: held where it fits, and else waiting for what it is promised.

    Args:
        prospect: what becomes of it.
        uid: of the reservation.
        now: when it came.
        time_to_live: until it expires, unless its holder renews or activates it.
    """
    claim, waits = prospect.claim, not prospect.fits
    asked = claim.asked
    return Reservation(
        name=claim.reservation,
        uid=uid,
        pool=asked.pool,
        launch=asked.launch,
        attempt=asked.counted,
        state=State.PENDING if waits else State.HELD,
        # What is moved is moved when it is held, and not before.
        items=asked.items if waits else prospect.admission.items,
        replaced_models=asked.replaced_models,
        moved=() if waits else prospect.admission.moved,
        settled=(),
        retained=(),
        create_time=now,
        update_time=now,
        expire_time=now + time_to_live,
        tier=asked.tier,
        expected_release_time=asked.expected_release_time,
        expected_retain_duration=asked.expected_retain_duration,
        time_to_live=time_to_live,
        promises=prospect.promises,
        expected_hold_time=prospect.expected_time(now) if waits else None,
        position=prospect.position if waits else 0,
        hold_time=None if waits else now,
        renew_time=now,
        message=prospect.explain(now) if waits else "",
    )
