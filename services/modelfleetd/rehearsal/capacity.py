"""One team's pool in memory. Every decision is capacity's own domain's; this keeps the rows that it decides on.

What capacity's worker does by itself (holds that run out, rollback windows that end, whoever is next in line) happens
before anything is answered, in the order in which it was due.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from modelfleetd.capacity.domain.ledger import Account, Entry, ModelUnits
from modelfleetd.capacity.domain.policy import LaunchPolicy
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.quota import Headroom
from modelfleetd.capacity.domain.reservation import (
    DEFAULT_TIME_TO_LIVE,
    LIVE,
    Asked,
    HoldItem,
    Kept,
    Outcome,
    Reservation,
    State,
    Tier,
    ended_message,
    entries_of_hold,
    entries_of_release,
    entries_of_return,
)
from modelfleetd.capacity.domain.room import room_of
from modelfleetd.capacity.domain.settlement import Settlement, settle
from modelfleetd.capacity.domain.simulation import simulate
from modelfleetd.capacity.domain.waiting import NEWEST, Claim, Line, Prospect, Release, release_time, reservation_of
from modelfleetd.clock import Clock
from modelfleetd.errors import LaunchEnded, ResourceExists, ResourceNotFound
from modelfleetd.launcher.domain.decision import Decision
from modelfleetd.launcher.domain.hold import HeldPlace, Hold, HoldState
from modelfleetd.launcher.domain.hold import Promise as TheirPromise
from modelfleetd.launcher.domain.planning import Room as TheirRoom
from modelfleetd.launcher.ports import HeldUnits, HoldRequest, UsedUnits
from modelfleetd.registry.domain.resources import ModelType
from modelfleetd.rehearsal.decisions import Question, decision
from modelfleetd.rehearsal.trained import Trained

# Who holds, and gives back.
_HOLDER: Final = "service/launcher"
# One that does not wait, or not any more.
_PROMISED_NOTHING: Final[dict[str, Any]] = {
    "promises": (), "expected_hold_time": None, "position": 0, "message": "",
}  # fmt: skip
_HOUR: Final = timedelta(hours=1)
_STATES: Final[Mapping[State, HoldState]] = {state: HoldState[state.name] for state in State}


class Oversold(AssertionError):
    """More is used than there is, by an act that used more than before."""


class MemoryCapacity:
    """A pool that stands alone.

    Attributes:
        entries: lines of the ledger so far; their sum is `balances`.
        free_again: called whenever units have become free, with nothing; for those who were refused.
        held: called with the name of a launch that waited and is held now.
        peak: the most units that were ever used at once.
    """

    def __init__(
        self,
        pool: str,
        quota: Mapping[Place, int],
        clock: Clock,
        *,
        future_reservations: bool = True,
    ) -> None:
        """Makes a pool.

        Args:
            pool: its name.
            quota: units that it owns, by place.
            clock: of the fleet.
            future_reservations: whether what does not fit now may wait for what others will free.
        """
        self.pool = pool
        self.quota = dict(quota)
        self.entries = 0
        self.peak = 0
        self._policy: LaunchPolicy | None = None
        self.free_again: Callable[[], None] = _nothing
        self.held: Callable[[str], None] = _nothing
        self._clock = clock
        self._future = future_reservations
        self._bookings: dict[tuple[str, Place], int] = {}
        self._balances: dict[tuple[Place, Account], int] = {}
        self._ending: dict[Place, int] = {}
        self._reservations: dict[str, Reservation] = {}
        # Of these, the ones that decisions look at: what waits, what is held, and what is kept for rollbacks.
        self._open: dict[str, Reservation] = {}
        self._answers: dict[str, Hold] = {}
        self._of_launch: dict[tuple[str, int], str] = {}
        self._due: list[tuple[datetime, str]] = []
        self._prospects: dict[str, Prospect] | None = None
        # Units in use, since when, and what came together before.
        self._in_use, self._since, self._unit_hours = 0, clock.now(), 0.0

    # What people and the platform bring

    def book(self, model: str, place: Place, units: int) -> None:
        """Books what a model uses that serves already."""
        before = self._bookings.get((model, place), 0)
        self._write((Entry(place, Account.SERVING, units - before, model),))

    def set_quota(self, place: Place, units: int) -> None:
        """Changes what the pool owns; what it uses beyond that goes on."""
        self.quota[place] = units
        self._changed()

    def set_policy(self, policy: LaunchPolicy) -> None:
        """Gives the team a launch policy for all its launches, by costs alone; without one it is free within quota."""
        self._policy = policy

    # What the launcher asks

    def room(
        self, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str], takes_over: str
    ) -> Mapping[tuple[str, str], TheirRoom]:
        """What a launch could have."""
        prospect = self._foreseen(HoldRequest(self.pool, launch, wanted, replaced, takes_over=takes_over))
        return {
            (fit.item.flavor, fit.item.region): TheirRoom(
                fit.item.moved_units, fit.available_units, fit.end_excess_units
            )
            for fit in prospect.admission.fits
        }

    def foresee(self, request: HoldRequest) -> Hold | None:
        """What a reservation would be answered; None where it would never be held."""
        simulation, now = simulate(_asked(request), (), lambda _: self._foreseen(request)), self._clock.now()
        prospect, message = simulation.prospect, simulation.explain(now)
        if prospect.fits:
            return Hold("", HoldState.HELD, message=message)
        if not (self._future and prospect.can_wait):
            return None
        time = prospect.expected_time(now)
        return Hold("", HoldState.PENDING, promises=_promises(prospect), time=time, message=message)

    def decide(
        self, launch: str, candidate: Trained, baseline: Trained | None, route: ModelType, share: int
    ) -> Decision:
        """What the team's launch policy says of a launch that is to give its candidate so much of a route."""
        self.catch_up()
        line, now = self._line(), self._clock.now()
        asked = Question(launch, candidate, baseline, route, self.pool, share)
        return decision(asked, self._policy, lambda each: line.prospect_of(self._claim("", NEWEST, each)), now)

    def reserve(self, request: HoldRequest, key: str) -> Hold:
        """Reserves, or gets into line. Raises QuotaExceeded, EndStateExceedsQuota, ResourceExists, LaunchEnded."""
        self.catch_up()
        if key in self._answers:
            return self._answers[key]
        self._answers[key] = made = self.hold(self._reserve(_asked(request)))
        return made

    def _reserve(self, asked: Asked) -> str:
        self._expect_new(asked)
        name = f"reservations/r{len(self._reservations) + 1}"
        if asked.takes_over and self._take_over(asked, name):
            return name
        claim = self._claim(name, NEWEST, asked)
        line = self._line()
        prospect = line.prospect_of(claim)
        if not prospect.fits and not (self._future and prospect.can_wait):
            raise prospect.admission.refusal(self._future)
        self._make(prospect)
        return name

    def hold(self, name: str) -> Hold:
        """What has become of a reservation."""
        self.catch_up()
        found = self._get(name)
        places = tuple(HeldPlace(item.flavor, item.region, item.hold_units, item.moved_units) for item in found.items)
        if found.state is not State.PENDING:
            return Hold(name, _STATES[found.state], places, message=found.message)
        prospect, now = self._prospects_of_line()[name], self._clock.now()
        return Hold(
            name,
            HoldState.PENDING,
            places,
            promises=_promises(prospect),
            time=prospect.expected_time(now),
            position=prospect.position,
            message=prospect.explain(now),
        )

    def renew(self, name: str, release: datetime | None) -> None:
        """The holder is there. Raises WrongState once it has ended."""
        self.catch_up()
        found, now = self._get(name), self._clock.now()
        found.require_live()
        expires = found.expire_time if found.activate_time else now + found.time_to_live
        told = found.expected_release_time if release is None else release
        self._put(replace(found, renew_time=now, expire_time=expires, expected_release_time=told))
        if expires is not None and found.activate_time is None:
            heapq.heappush(self._due, (expires, name))

    def activate(self, name: str) -> None:
        """Raises WrongState unless it is held."""
        self.catch_up()
        found = self._get(name)
        found.require(State.SETTLED)
        if found.activate_time is None:
            now = self._clock.now()
            self._put(replace(found, activate_time=now, renew_time=now))

    def cancel(self, name: str) -> None:
        """Raises WrongState where it was activated or has been settled."""
        self.catch_up()
        found = self._get(name)
        if found.state in (State.CANCELLED, State.EXPIRED):
            return
        found.require(State.CANCELLED)
        found.require_not_activated()
        self._give_back(found, State.CANCELLED)

    def settle(self, name: str, usages: Iterable[UsedUnits], kept: Iterable[HeldUnits], retain: timedelta) -> None:
        """Settles as succeeded. Raises LaunchEnded, WrongState, SettlementExceedsHold."""
        booked = tuple(ModelUnits(one.model, one.flavor, one.region, one.units) for one in usages)
        keeps = tuple(Kept(one.flavor, one.region, one.units) for one in kept)
        self._settle(name, Settlement(Outcome.SUCCEEDED, booked, retain, keeps))

    def release(self, name: str) -> None:
        """Settles as rolled back. Raises LaunchEnded, WrongState."""
        self._settle(name, Settlement(Outcome.ROLLED_BACK))

    # What is there, for whoever checks it

    def booked(self, model: str, place: Place) -> int:
        """Units that are booked for a model."""
        self.catch_up()
        return self._bookings.get((model, place), 0)

    def used(self, place: Place) -> int:
        """Units that are used, in whatever account."""
        return sum(self._balances.get((place, account), 0) for account in Account)

    def free(self, place: Place) -> int:
        """Units that nobody uses; negative after a cut of the quota."""
        return self.quota[place] - self.used(place)

    @property
    def unit_hours(self) -> float:
        """What was used, booked or held, so far."""
        return self._unit_hours + self._in_use * ((self._clock.now() - self._since) / _HOUR)

    def found(self, launch: str, attempt: int = 1) -> Reservation | None:
        """The reservation of an attempt of a launch."""
        name = self._of_launch.get((launch, attempt))
        return None if name is None else self._reservations[name]

    @property
    def waiting(self) -> list[Reservation]:
        """Those who wait, the oldest first."""
        return [found for found in self._open.values() if found.state is State.PENDING]

    def differences(self) -> list[str]:
        """Accounts that differ from what bookings and reservations say; any is a defect."""
        held: dict[tuple[Place, Account], int] = {}
        for (_, place), units in self._bookings.items():
            held[place, Account.SERVING] = held.get((place, Account.SERVING), 0) + units
        for found in self._reservations.values():
            for item in found.items if found.state is State.HELD else ():
                held[item.place, Account.HELD] = held.get((item.place, Account.HELD), 0) + item.hold_units
            for item in found.retained:
                held[item.place, Account.RETAINED] = held.get((item.place, Account.RETAINED), 0) + item.hold_units
        keys = {*held, *self._balances}
        return [
            f"{place.flavor} in {place.region}, {account.name}: {self._balances.get((place, account), 0)} in the "
            f"ledger, {held.get((place, account), 0)} by what is there"
            for place, account in sorted(keys, key=str)
            if held.get((place, account), 0) != self._balances.get((place, account), 0)
        ]

    def catch_up(self) -> None:
        """Lets everything happen that was due by the clock."""
        now, freed = self._clock.now(), False
        while self._due and self._due[0][0] <= now:
            _, name = heapq.heappop(self._due)
            found = self._reservations[name]
            expires = found.state in LIVE and found.activate_time is None
            if expires and found.expire_time is not None and found.expire_time <= now:
                self._undo(found, State.EXPIRED)
                freed = True
            if found.retain_until is not None and found.retain_until <= now:
                self._free_retained(found)
                freed = True
        if freed:
            self._serve()

    @property
    def next_due(self) -> datetime | None:
        """When something happens by itself next; it may turn out to have been put off."""
        return self._due[0][0] if self._due else None

    # Decisions

    def _foreseen(self, request: HoldRequest) -> Prospect:
        self.catch_up()
        asked = _asked(request)
        kept = self._reservations.get(asked.takes_over)
        if kept is None or not kept.retained:
            return self._line().prospect_of(self._claim("", NEWEST, asked))
        # As it would be handed over: counted as free.
        handed = {item.place: item.hold_units for item in kept.retained}
        return self._line(handed, without=kept.name).prospect_of(self._claim("", NEWEST, asked))

    def _take_over(self, asked: Asked, name: str) -> bool:
        """Holds one with what another one kept for a rollback; where that does not do, it is not handed over."""
        kept = self._reservations.get(asked.takes_over)
        handed = {item.place: item.hold_units for item in kept.retained} if kept is not None else {}
        without = kept.name if kept is not None else ""
        prospect = self._line(handed, without=without).prospect_of(self._claim(name, NEWEST, asked))
        if not prospect.fits:
            return False
        if kept is not None and kept.retained:
            self._free_retained(kept)
        self._make(prospect)
        return True

    def _expect_new(self, asked: Asked) -> None:
        if (asked.launch, asked.counted) in self._of_launch:
            found = self._reservations[self._of_launch[asked.launch, asked.counted]]
            if found.state in LIVE:
                raise ResourceExists(found.name)
        newest = max((attempt for launch, attempt in self._attempts(asked.launch)), default=0)
        if newest > asked.counted:
            raise LaunchEnded(asked.launch, f"attempt {asked.counted}, which attempt {newest} has followed")

    def _attempts(self, launch: str) -> list[tuple[str, int]]:
        return [(launch, attempt) for attempt in range(1, 10) if (launch, attempt) in self._of_launch]

    def _line(self, handed: Mapping[Place, int] | None = None, without: str = "") -> Line:
        handed = handed or {}
        headrooms = [self._headroom(place, handed.get(place, 0)) for place in self.quota]
        waiting = [
            self._claim(name, found.sequence, found.asked)
            for name, found in self._open.items()
            if found.state is State.PENDING
        ]
        releases = [each for found in self._open.values() if found.name != without for each in _releases(found)]
        return Line(room_of({self.pool: headrooms}), waiting, releases)

    def _headroom(self, place: Place, handed: int) -> Headroom:
        def of(account: Account) -> int:
            return self._balances.get((place, account), 0)

        return Headroom(
            place.flavor,
            place.region,
            self.quota[place],
            of(Account.SERVING),
            of(Account.HELD),
            of(Account.RETAINED) - handed,
            ending_units=self._ending.get(place, 0),
        )

    def _claim(self, name: str, sequence: int, asked: Asked) -> Claim:
        bookings = tuple(
            ModelUnits(model, place.flavor, place.region, units)
            for model in dict.fromkeys(asked.replaced_models)
            for place in asked.places
            if (units := self._bookings.get((model, place), 0))
        )
        return Claim(name, sequence, asked, bookings)

    def _make(self, prospect: Prospect) -> None:
        now, sequence = self._clock.now(), len(self._reservations) + 1
        name = prospect.claim.reservation
        made = replace(reservation_of(prospect, name, now, DEFAULT_TIME_TO_LIVE), sequence=sequence)
        self._of_launch[made.launch, made.attempt] = name
        self._put(made)
        heapq.heappush(self._due, (now + DEFAULT_TIME_TO_LIVE, name))
        if made.state is State.HELD:
            self._write(entries_of_hold(made.items, made.moved))

    def _settle(self, name: str, settlement: Settlement) -> None:
        self.catch_up()
        found = self._get(name)
        meanwhile = [
            ModelUnits(model, place.flavor, place.region, units)
            for model in found.replaced_models
            for place in {item.place for item in found.items}
            if (units := self._bookings.get((model, place), 0))
        ]
        settled = settle(found, settlement, meanwhile)
        if settled is None:
            return
        until = self._clock.now() + settlement.retain_duration if settled.retained else None
        self._put(
            replace(
                found,
                state=State.SETTLED,
                outcome=settlement.outcome,
                settled=settled.booked,
                retained=settled.retained,
                retain_duration=settlement.retain_duration,
                retain=settlement.retain,
                retain_until=until,
            )
        )
        if until is not None:
            heapq.heappush(self._due, (until, name))
        self._write(settled.entries)
        self._serve()

    def _give_back(self, found: Reservation, state: State) -> None:
        self._undo(found, state)
        self._serve()

    def _undo(self, found: Reservation, state: State) -> None:
        ended = replace(found, state=state, **_PROMISED_NOTHING)
        self._put(replace(ended, message=ended_message(found, state, _HOLDER)))
        self._write(entries_of_return(found))

    def _free_retained(self, found: Reservation) -> None:
        self._put(replace(found, retained=(), retain_until=None))
        self._write(entries_of_release(found))

    def _serve(self) -> None:
        """Holds whoever can be held now, in their order."""
        while True:
            fits = [prospect for prospect in self._line().prospects() if prospect.fits]
            if not fits:
                break
            self._hold_waiting(fits[0])
        self.free_again()

    def _hold_waiting(self, prospect: Prospect) -> None:
        found, now, admission = self._get(prospect.claim.reservation), self._clock.now(), prospect.admission
        expires = now + found.time_to_live
        held = replace(
            found,
            state=State.HELD,
            items=admission.items,
            moved=admission.moved,
            hold_time=now,
            expire_time=expires,
            **_PROMISED_NOTHING,
        )
        self._put(held)
        heapq.heappush(self._due, (expires, found.name))
        self._write(entries_of_hold(admission.items, admission.moved))
        self.held(found.launch)

    # Rows

    def _prospects_of_line(self) -> Mapping[str, Prospect]:
        if self._prospects is None:
            self._prospects = {one.claim.reservation: one for one in self._line().prospects()}
        return self._prospects

    def _get(self, name: str) -> Reservation:
        if name not in self._reservations:
            raise ResourceNotFound(name)
        return self._reservations[name]

    def _put(self, made: Reservation) -> None:
        self._reservations[made.name] = made
        if made.state in LIVE or made.retained:
            self._open[made.name] = made
        else:
            self._open.pop(made.name, None)
        self._changed()

    def _changed(self) -> None:
        self._prospects = None

    def _write(self, entries: Sequence[Entry]) -> None:
        """Writes lines of the ledger together. Raises Oversold where they use more than there is."""
        growth: dict[Place, int] = {}
        for entry in entries:
            key = (entry.place, entry.account)
            self._balances[key] = self._balances.get(key, 0) + entry.delta_units
            self._ending[entry.place] = self._ending.get(entry.place, 0) + entry.ending_units
            growth[entry.place] = growth.get(entry.place, 0) + entry.delta_units
            if entry.account is Account.SERVING:
                booked = (entry.model, entry.place)
                self._bookings[booked] = self._bookings.get(booked, 0) + entry.delta_units
                if not self._bookings[booked]:
                    del self._bookings[booked]
        self.entries += len(entries)
        now = self._clock.now()
        self._unit_hours += self._in_use * ((now - self._since) / _HOUR)
        self._in_use, self._since = self._in_use + sum(growth.values()), now
        for place, grown in growth.items():
            if grown > 0 and self.used(place) > self.quota[place]:
                raise Oversold(f"{self.used(place)} of {self.quota[place]} units of {place.flavor} in {place.region}")
        self.peak = max(self.peak, self._in_use)
        self._changed()


def _asked(request: HoldRequest) -> Asked:
    return Asked(
        pool=request.pool,
        launch=request.launch,
        items=tuple(HoldItem(one.flavor, one.region, one.units, end_units=one.end) for one in request.items),
        replaced_models=tuple(request.replaced),
        tier=Tier[request.tier] if request.tier in Tier.__members__ else None,
        expected_release_time=request.release,
        expected_retain_duration=request.retain,
        attempt=request.attempt,
        takes_over=request.takes_over,
    )


def _releases(found: Reservation) -> list[Release]:
    """What the end of a hold, or of a rollback window, will free, as far as somebody says when."""
    if found.retain_until is not None:
        at, freed = found.retain_until, [(item, item.hold_units) for item in found.retained]
    else:
        time = release_time(found.asked) if found.state is State.HELD else None
        if time is None:
            return []
        at, freed = time, [(item, item.freed_units) for item in found.items]
    return [
        Release(at, found.name, item.flavor, item.region, found.pool, found.launch, units)
        for item, units in freed
        if units > 0
    ]


def _promises(prospect: Prospect) -> tuple[TheirPromise, ...]:
    return tuple(
        TheirPromise(one.launch, one.flavor, one.region, one.units, one.expected_time) for one in prospect.promises
    )


def _nothing(*given: object) -> None:
    """Nobody listens."""
