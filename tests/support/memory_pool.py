"""A pool in memory that answers as capacity's protos say: holds, a line of those who wait, promises, expiry, settling.

One flavor in one region, in virtual time; bookings belong to a launch's route. Real capacity has its own tests; this is
for what the launcher makes of its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from modelfleetd.clock import Clock
from modelfleetd.errors import QuotaExceeded, QuotaShortage, ResourceExists, WrongState
from modelfleetd.launcher.domain.hold import HeldPlace, Hold, HoldState, Promise
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.ports import HeldUnits, HoldRequest, UsedUnits

TIME_TO_LIVE = timedelta(hours=1)
_LIVE = (HoldState.PENDING, HoldState.HELD)


@dataclass
class Held:
    """A reservation, as the pool keeps it."""

    name: str
    number: int
    request: HoldRequest
    expire_time: datetime
    renew_time: datetime
    state: HoldState = HoldState.PENDING
    units: int = 0
    moved: dict[str, int] = field(default_factory=dict)
    activated: bool = False
    # How it was settled, and what is kept for a rollback until when.
    outcome: str = ""
    retained: int = 0
    retain_until: datetime | None = None

    @property
    def item(self) -> HeldUnits:
        return self.request.items[0]

    @property
    def rank(self) -> tuple[bool, str, int]:
        """The order of those who wait: the more important first, then age."""
        tier = self.request.tier
        return tier in ("", "TIER_UNSPECIFIED"), tier, self.number

    @property
    def frees(self) -> int:
        """Units that its launch frees when it succeeds."""
        end = self.item.end
        return max(0, self.units - (self.units if end is None else end))


class MemoryPool:
    """One pool of `quota` units."""

    def __init__(self, clock: Clock, quota: int) -> None:
        self.clock = clock
        self.quota = quota
        # By launch and model. Where several launches are on one route, all but one are named with whose they are.
        self.routes: dict[str, str] = {}
        self.booked: dict[tuple[str, str], int] = {}
        self.reservations: dict[str, Held] = {}
        self._answers: dict[str, str] = {}
        self.renewals: list[tuple[datetime, str, datetime | None]] = []

    @property
    def free(self) -> int:
        held = sum(held.units for held in self.reservations.values() if held.state is HoldState.HELD)
        retained = sum(held.retained for held in self.reservations.values())
        return self.quota - sum(self.booked.values()) - held - retained

    @property
    def line(self) -> list[Held]:
        """Those who wait, in their order."""
        waiting = (held for held in self.reservations.values() if held.state is HoldState.PENDING)
        return sorted(waiting, key=lambda held: held.rank)

    def of(self, launch: str) -> Held | None:
        """The newest reservation of a launch."""
        mine = [held for held in self.reservations.values() if held.request.launch == launch]
        return mine[-1] if mine else None

    # What the launcher asks

    def room(self, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str]) -> dict[tuple[str, str], Room]:
        self._tick()
        (item,) = wanted
        return {(item.flavor, item.region): Room(sum(self._bookings(launch, replaced).values()), max(0, self.free))}

    def foresee(self, request: HoldRequest) -> Hold | None:
        self._tick()
        found = self._new("reservations/none", request)
        if all(self.is_hopeless(held) for held in self.line) and self._extra(found) <= self.free:
            return Hold("", HoldState.HELD)
        promises = self._promises(found)
        return None if promises is None else Hold("", HoldState.PENDING, promises=promises, time=_last(promises))

    def reserve(self, request: HoldRequest, key: str) -> Hold:
        self._tick()
        if key in self._answers:
            return self.hold(self._answers[key])
        before = self.of(request.launch)
        if before is not None and before.state in _LIVE:
            raise ResourceExists(before.name)
        found = self._new(f"reservations/r{len(self.reservations) + 1}", request)
        if self._promises(found) is None:
            raise QuotaExceeded(
                [QuotaShortage(request.pool, found.item.flavor, found.item.region, found.item.units, self.free)]
            )
        self.reservations[found.name] = found
        self._answers[key] = found.name
        self._tick()
        return self.hold(found.name)

    def hold(self, name: str) -> Hold:
        self._tick()
        found = self.reservations[name]
        place = HeldPlace(found.item.flavor, found.item.region, found.units, sum(found.moved.values()))
        if found.state is not HoldState.PENDING:
            return Hold(name, found.state, (place,))
        promises = self._promises(found)
        return Hold(
            name,
            found.state,
            (place,),
            promises=promises or (),
            time=_last(promises or ()),
            position=self.line.index(found) + 1,
            message="" if promises else "what was promised has slipped away",
        )

    def renew(self, name: str, release: datetime | None) -> None:
        self._tick()
        found, now = self.reservations[name], self.clock.now()
        if found.state not in _LIVE:
            raise WrongState(name, found.state.name, [])
        found.renew_time, found.expire_time = now, now + TIME_TO_LIVE
        self.renewals.append((now, name, release))
        if release is not None:
            found.request = replace(found.request, release=release)

    def activate(self, name: str) -> None:
        self._tick()
        found = self.reservations[name]
        if found.state is not HoldState.HELD:
            raise WrongState(name, found.state.name, [])
        found.activated = True

    def cancel(self, name: str) -> None:
        self._tick()
        found = self.reservations[name]
        if found.state in (HoldState.CANCELLED, HoldState.EXPIRED):
            return
        if found.activated or found.state is HoldState.SETTLED:
            raise WrongState(name, "HELD and activated", ["SettleReservation"])
        self._give_back(found, HoldState.CANCELLED)
        self._tick()

    def settle(self, name: str, usages: Sequence[UsedUnits], kept: Sequence[HeldUnits], retain: timedelta) -> None:
        self._tick()
        found, used = self.reservations[name], sum(usage.units for usage in usages)
        request = found.request
        if found.outcome:
            assert found.outcome == "succeeded"
            return
        # What the replaced models have got booked since counts as held.
        over = self._bookings(request.launch, request.replaced)
        rest = found.units + sum(over.values()) - used
        assert found.state is HoldState.HELD and rest >= 0
        keeps = sum(item.units for item in kept) if kept else rest
        assert keeps <= rest
        found.state, found.outcome = HoldState.SETTLED, "succeeded"
        if retain:
            found.retained, found.retain_until = keeps, self.clock.now() + retain
        for model in over:
            self.booked[self._route(request.launch), model] = 0
        for usage in usages:
            self._book(request.launch, usage.model, usage.units)
        self._tick()

    def release(self, name: str) -> None:
        self._tick()
        found = self.reservations[name]
        if found.outcome:
            assert found.outcome == "released"
            return
        assert found.state is HoldState.HELD
        self._give_back(found, HoldState.SETTLED)
        found.outcome = "released"
        self._tick()

    # How it is kept right

    def _new(self, name: str, request: HoldRequest) -> Held:
        now = self.clock.now()
        return Held(name, len(self.reservations), request, expire_time=now + TIME_TO_LIVE, renew_time=now)

    def _bookings(self, launch: str, replaced: Sequence[str]) -> dict[str, int]:
        route = self._route(launch)
        return {model: self.booked[route, model] for model in replaced if self.booked.get((route, model))}

    def _route(self, launch: str) -> str:
        return self.routes.get(launch, launch)

    def _book(self, launch: str, model: str, units: int) -> None:
        key = self._route(launch), model
        self.booked[key] = self.booked.get(key, 0) + units

    def _extra(self, found: Held) -> int:
        """Units that it takes of what is free."""
        moved = sum(self._bookings(found.request.launch, found.request.replaced).values())
        return max(0, found.item.units - moved)

    def _promises(self, found: Held) -> tuple[Promise, ...] | None:
        """On what it waits: never on another one that waits. None where it would never be held."""
        missing = self._extra(found) - self.free
        holders = [held for held in self.reservations.values() if held.state is HoldState.HELD and held.frees]
        kept = [held for held in self.reservations.values() if held.retained]
        promises: list[Promise] = []
        for held in sorted([*kept, *holders], key=_order):
            if missing <= 0:
                break
            units = held.retained or held.frees
            promises.append(Promise(held.request.launch, found.item.flavor, found.item.region, units, _frees_at(held)))
            missing -= units
        return tuple(promises) if missing <= 0 else None

    def is_hopeless(self, found: Held) -> bool:
        """Whether nothing that is held would free enough any more: it keeps its place, and is in nobody's way."""
        return self._promises(found) is None

    def _give_back(self, found: Held, state: HoldState) -> None:
        found.state = state
        for model, units in found.moved.items():
            self._book(found.request.launch, model, units)
        found.moved = {}

    def _tick(self) -> None:
        """What happens by itself: holds and rollback windows that run out, and then whoever is next in line."""
        now = self.clock.now()
        for found in self.reservations.values():
            if found.state in _LIVE and not found.activated and found.expire_time <= now:
                self._give_back(found, HoldState.EXPIRED)
            if found.retain_until is not None and found.retain_until <= now:
                found.retained, found.retain_until = 0, None
        for found in self.line:
            if self.is_hopeless(found):
                continue
            if self._extra(found) > self.free:
                break
            found.moved = self._bookings(found.request.launch, found.request.replaced)
            found.units = max(found.item.units, sum(found.moved.values()))
            found.state, found.expire_time = HoldState.HELD, now + TIME_TO_LIVE
            for model in found.moved:
                self.booked[self._route(found.request.launch), model] = 0
        assert self.free >= 0


def _order(held: Held) -> tuple[bool, float]:
    time = _frees_at(held)
    return time is None, 0.0 if time is None else time.timestamp()


def _frees_at(held: Held) -> datetime | None:
    if held.retain_until is not None:
        return held.retain_until
    return held.request.release and held.request.release + held.request.retain


def _last(promises: Sequence[Promise]) -> datetime | None:
    times = [promise.time for promise in promises]
    return None if not times or None in times else max(time for time in times if time is not None)
