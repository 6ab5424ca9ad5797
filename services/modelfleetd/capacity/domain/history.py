"""Usage over time: which window is answered from which rows, and the steps of a series.

Rows are kept by the minute for 2 days, by 5 minutes for 14 days, by the hour and by the day for 400 days; only for
steps in which something changed. Whatever the window, a series is read from at most 2,000 of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.errors import FieldViolation, invalid

MINUTE, FIVE_MINUTES, HOUR, DAY = timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)
KEPT: Mapping[timedelta, timedelta] = {
    MINUTE: timedelta(days=2),
    FIVE_MINUTES: timedelta(days=14),
    HOUR: timedelta(days=400),
    DAY: timedelta(days=400),
}
# From which rows those of a resolution are made.
FINER: Mapping[timedelta, timedelta] = {FIVE_MINUTES: MINUTE, HOUR: FIVE_MINUTES, DAY: HOUR}

MAX_STEPS = 2000
MAX_POINTS = 50_000
MAX_SERIES = 100
_MAX_STEP = timedelta(days=31)
_DEFAULT_LENGTH = timedelta(days=7)
_DEFAULT_STEPS = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Level:
    """What a place owned and used at a moment."""

    nominal_units: int
    serving_units: int
    held_units: int
    retained_units: int

    @property
    def used_units(self) -> int:
        return self.serving_units + self.held_units + self.retained_units


@dataclass(frozen=True, slots=True)
class Change:
    """A step in which a place changed: the most of each account, and how it ended."""

    serving_units: int
    held_units: int
    retained_units: int
    used_units: int
    last: Level


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a series: the most of each account, and what was owned at its end."""

    time: datetime
    nominal_units: int
    serving_units: int
    held_units: int
    retained_units: int
    used_units: int


@dataclass(frozen=True, slots=True)
class Series:
    """The usage of one place of a pool over time."""

    pool: str
    flavor: str
    region: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """What is asked for, as it is answered: whole steps, from rows of one resolution."""

    start: datetime
    end: datetime
    step: timedelta
    resolution: timedelta

    @property
    def times(self) -> Iterator[datetime]:
        """The begins of its steps."""
        time = self.start
        while time < self.end:
            yield time
            time += self.step

    def check_points(self, series: int) -> None:
        """Raises InvalidFields where so many series would have more points than an answer holds."""
        steps = -((self.start - self.end) // self.step)
        if series * steps > MAX_POINTS:
            raise invalid(
                "step",
                f"gives {series} series of {steps:,} steps, {MAX_POINTS:,} points are the most: "
                "ask for one flavor or region, or for longer steps",
            )


def window(start: datetime | None, end: datetime | None, step: timedelta | None, now: datetime) -> Window:
    """Returns the window that answers a request.

    Args:
        start: begin; None: 7 days before the end. What is older than what is kept is left out.
        end: None, or later than now: now.
        step: None: so that there are about 200. Made longer where rows so fine are not kept, or would be too many.
        now: the time.

    Raises:
        InvalidFields: the begin is not before the end, or the step out of range or too short for the window.
    """
    end = min(end or now, now)
    start = max(start or end - _DEFAULT_LENGTH, now - KEPT[DAY])
    wrong = []
    if start >= end:
        wrong.append(FieldViolation("start_time", "must be before `end_time`, in the past, and at most 400 days ago"))
    if step is not None and not MINUTE <= step <= _MAX_STEP:
        wrong.append(FieldViolation("step", "must be 1 minute to 31 days"))
    elif step is not None and start < end and (end - start) / step > MAX_STEPS:
        wrong.append(FieldViolation("step", f"must be at least {(end - start) / MAX_STEPS}, for {MAX_STEPS:,} steps"))
    refuse(wrong)
    resolution = next(
        (fine for fine, kept in KEPT.items() if start >= now - kept and (end - start) / fine <= MAX_STEPS), DAY
    )
    wanted = step or max((end - start) / _DEFAULT_STEPS, MINUTE)
    whole = -(-wanted // resolution) * resolution
    return Window(_EPOCH + (start - _EPOCH) // whole * whole, end, whole, resolution)


def series(pool: str, place: Place, asked: Window, before: Level | None, changes: Mapping[datetime, Change]) -> Series:
    """Returns a series without gaps: where nothing changed, it is as it was.

    Args:
        pool: whose usage it is.
        place: of the series.
        asked: the window.
        before: how it was when the window begins; None: nothing is known of that time, and the series begins later.
        changes: by the begin of their steps.
    """
    points = []
    level = before
    for time in asked.times:
        change = changes.get(time)
        if change is not None:
            level = change.last
            points.append(
                Point(
                    time,
                    level.nominal_units,
                    change.serving_units,
                    change.held_units,
                    change.retained_units,
                    change.used_units,
                )
            )
        elif level is not None:
            points.append(
                Point(
                    time,
                    level.nominal_units,
                    level.serving_units,
                    level.held_units,
                    level.retained_units,
                    level.used_units,
                )
            )
    return Series(pool, place.flavor, place.region, tuple(points))
