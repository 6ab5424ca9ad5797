"""Time: when a minute's labels are complete, how old a label is, and how long a prediction waits for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.exact import Integers

MICROS: Final = 1_000_000
MINUTE_MICROS: Final = 60 * MICROS
HOUR_MICROS: Final = 3600 * MICROS

# Clocks of producers may run ahead by this much.
FUTURE: Final = timedelta(minutes=5)
# What is to be joined may be written this much later than it happened, beyond what labels take anyway.
DELIVERY: Final = timedelta(minutes=10)
# Examples with known labels are taken up to this long after the event.
PAST: Final = timedelta(days=90)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SLACK: Final = timedelta(minutes=10)


def micros(moment: datetime) -> int:
    """Returns microseconds since 1970-01-01 UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def minute_of(moment: datetime) -> int:
    """Returns the minute since 1970-01-01 UTC that a moment lies in."""
    return micros(moment) // MINUTE_MICROS


def minute_after(moment: datetime) -> int:
    """Returns the first minute that does not begin before a moment."""
    return -(-micros(moment) // MINUTE_MICROS)


def moment_of(minute: int) -> datetime:
    """Returns the start of a minute."""
    return _EPOCH + timedelta(minutes=minute)


def slack(window: timedelta) -> timedelta:
    """Returns how long after the attribution window's end its labels may still be on their way."""
    return min(window / 10, _MAX_SLACK)


def completion(window: timedelta) -> timedelta:
    """Returns how long after an event its labels are complete: the attribution window and its slack."""
    return window + slack(window)


def patience(window: timedelta) -> timedelta:
    """Returns how long a prediction and its label wait for each other, from the event on.

    Longer than labels take, so that what producers hold back while this service or its database is away still counts.
    """
    return completion(window) + DELIVERY


def mature_before(now: datetime, window: timedelta) -> int:
    """Returns the first minute that is not mature: all events before it have their labels, or never will."""
    return minute_of(now - completion(window))


def matures_at(minute: int, window: timedelta) -> datetime:
    """Returns when all labels of the events of a minute are there."""
    return moment_of(minute + 1) + completion(window)


def _age_bounds() -> Integers:
    """1, 2, 3, 4, 6, 8, 12 … minutes: two buckets an octave, to beyond the longest window of 30 days."""
    octaves = 1 << np.arange(1, 17, dtype=np.int64)
    minutes = np.sort(np.concatenate(([1], octaves, octaves // 2 * 3)))
    return minutes * MINUTE_MICROS


# Bucket b of a label's age begins at AGE_BOUNDS[b - 1]; bucket 0 at the event.
AGE_BOUNDS: Final = _age_bounds()


def age_buckets(event_micros: Integers, label_micros: Integers) -> Integers:
    """Returns the age bucket of each label. A label that is older than its event, by a wrong clock, has age 0."""
    return np.searchsorted(AGE_BOUNDS, label_micros - event_micros, side="right").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where what waits for its counterpart is kept: shelves are dropped as a whole when all on them has expired.

    Short windows have narrow shelves and long windows wide ones, so that a label looks into eleven of them at most.
    The number of a shelf is `kind` · 10^8 + hours since 1970 / width.
    """

    kind: int
    hours: int

    @property
    def width_micros(self) -> int:
        return self.hours * HOUR_MICROS

    def between(self, first_expiry: datetime, last_expiry: datetime) -> range:
        """Returns the shelves for all that expires from the first to the last moment."""
        base = self.kind * _KIND
        return range(
            base + micros(first_expiry) // self.width_micros, base + micros(last_expiry) // self.width_micros + 1
        )


_KIND: Final = 100_000_000
_SHELVES: Final = {1: Shelf(1, 1), 2: Shelf(2, 6), 3: Shelf(3, 72)}


def shelf_of(window: timedelta) -> Shelf:
    """Returns the kind of shelf for a prediction with this attribution window."""
    if window <= timedelta(hours=6):
        return _SHELVES[1]
    return _SHELVES[2] if window <= timedelta(days=2) else _SHELVES[3]


class Shelving:
    """Attribution windows and shelves of the predictions that a batch's index column points to."""

    def __init__(self, windows: Sequence[timedelta]) -> None:
        shelves = [shelf_of(window) for window in windows]
        self.windows: Integers = np.array([_micros_of(window) for window in windows], dtype=np.int64)
        self._patience: Integers = np.array([_micros_of(patience(window)) for window in windows], dtype=np.int64)
        self._base: Integers = np.array([shelf.kind * _KIND for shelf in shelves], dtype=np.int64)
        self._width: Integers = np.array([shelf.width_micros for shelf in shelves], dtype=np.int64)

    def shelves(self, time: Integers, prediction: npt.NDArray[np.uint8]) -> Integers:
        """Returns the shelf of each thing that begins to wait at a time."""
        numbers: Integers = self._base[prediction] + (time + self._patience[prediction]) // self._width[prediction]
        return numbers


def _micros_of(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def shelf_end(number: int) -> datetime:
    """Returns when all on a shelf has expired."""
    kind, index = divmod(number, _KIND)
    return _EPOCH + timedelta(hours=(index + 1) * _SHELVES[kind].hours)


def live_shelves(window: timedelta, now: datetime) -> range:
    """Returns the shelves on which anything accepted now, or earlier and not expired, can lie."""
    return shelf_of(window).between(now, now + FUTURE + patience(window))
