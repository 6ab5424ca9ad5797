"""A launch's hold, as capacity tells of it: it is there, or other launches have to end first."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain.words import count

# Seconds between looks at a hold that is waited for: while it is expected any minute, and before.
LOOKS: Final = (5.0, 10.0)
_NEAR: Final = timedelta(minutes=1)
# A time of day says enough for so long.
_TODAY: Final = timedelta(hours=12)
_NAMED: Final = 3
_ORDINALS: Final = ("", "first", "second", "third")


class HoldState(enum.Enum):
    """Where a reservation is in its life, in capacity's words."""

    PENDING = 1
    HELD = 2
    SETTLED = 3
    EXPIRED = 4
    CANCELLED = 5


@dataclass(frozen=True, slots=True)
class Promise:
    """Units that a launch which is held will free, and when; None where nobody can say."""

    launch: str
    flavor: str
    region: str
    units: int
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class HeldPlace:
    """Units held of a flavor in a region, and how many of them were booked for the models before."""

    flavor: str
    region: str
    units: int
    moved: int


@dataclass(frozen=True, slots=True)
class Hold:
    """What capacity says of a reservation.

    Attributes:
        places: what is held; while it waits, what it waits for.
        promises: while it waits: on what.
        time: while it waits: when it is expected to be held; None where nobody can say.
        position: while it waits: its place in the line, from 1.
        message: capacity's own sentence, for where there are no promises.
        unfit: it is held, and no plan fits it any more.
    """

    reservation: str
    state: HoldState
    places: tuple[HeldPlace, ...] = ()
    promises: tuple[Promise, ...] = ()
    time: datetime | None = None
    position: int = 0
    message: str = ""
    unfit: bool = False

    @property
    def launches(self) -> tuple[str, ...]:
        """The launches that it waits for, each once, the first to end first."""
        return tuple(dict.fromkeys(promise.launch for promise in _in_time(self.promises)))

    def due(self, now: datetime) -> float:
        """Seconds until it is worth looking again whether it is held."""
        near, far = LOOKS
        return near if self.time is not None and self.time <= now + _NEAR else far

    def waits(self, now: datetime) -> str:
        """Says in one sentence on what it waits: for how much, whose, until when, and who is before it."""
        if not self.promises:
            why = self.message.rstrip(".") or "nobody can say when it becomes free"
            return f"waits for capacity: {why}{self._place}"
        merged = _merged(self.promises)
        parts = [f"{_units(promise)} that {_frees(promise, now)}" for promise in merged[:_NAMED]]
        if len(merged) > _NAMED:
            left = merged[_NAMED:]
            parts.append(f"{count(sum(promise.units for promise in left), 'unit')} of {len(left)} more")
        return f"waits for {' and '.join(parts)}{self._place}"

    @property
    def _place(self) -> str:
        if self.position <= 0:
            return ""
        if self.position < len(_ORDINALS):
            return f"; {_ORDINALS[self.position]} in line"
        return f"; number {self.position} in line"


def _in_time(promises: tuple[Promise, ...]) -> list[Promise]:
    """The soonest first, and last those of which nobody can say when."""
    return sorted(promises, key=lambda promise: (promise.time is None, promise.time and promise.time.timestamp()))


def _merged(promises: tuple[Promise, ...]) -> list[Promise]:
    """One promise for each launch, flavor and region."""
    found: dict[tuple[str, str, str], Promise] = {}
    for promise in _in_time(promises):
        key = (promise.launch, promise.flavor, promise.region)
        before = found.get(key)
        found[key] = promise if before is None else replace(promise, units=before.units + promise.units)
    return list(found.values())


def _units(promise: Promise) -> str:
    flavor, region = promise.flavor.rpartition("/")[2], promise.region.rpartition("/")[2]
    return f"{count(promise.units, 'unit')} of {flavor} in {region}"


def _frees(promise: Promise, now: datetime) -> str:
    if promise.time is None:
        return f"{promise.launch} frees at a time that it cannot say"
    if promise.time <= now:
        return f"{promise.launch} was expected to free by {_clock(promise.time, now)}"
    return f"{promise.launch} frees at about {_clock(promise.time, now)}"


def _clock(time: datetime, now: datetime) -> str:
    return f"{time:%R}" if abs(time - now) <= _TODAY else f"{time:%F %R}"
