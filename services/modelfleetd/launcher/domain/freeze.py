"""Freeze windows: when they are open. Recurrence as in RFC 5545, in local time, and never a walk from the beginning."""

from __future__ import annotations

import re
import zoneinfo
from calendar import isleap, monthrange
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from itertools import islice
from typing import Final

from modelfleetd.errors import FieldViolation, InvalidFields

# Nobody looks further ahead, and no rule leaves more between two occurrences.
HORIZON: Final = timedelta(days=3653)
# Occurrences that are looked at for what is open at one moment: with daily windows of a year each, all of them.
_MOST: Final = 400
MAX_COUNT: Final = 1_000
# The longest interval of each: ten years.
_FREQUENCIES: Final = {"DAILY": 3650, "WEEKLY": 520, "MONTHLY": 120, "YEARLY": 10}
_DAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
# Of each list of numbers: the largest, and whether it may count from the end.
_NUMBERS: Final = {
    "BYMONTH": (12, False),
    "BYMONTHDAY": (31, True),
    "BYYEARDAY": (366, True),
    "BYWEEKNO": (53, True),
    "BYSETPOS": (366, True),
}
_KNOWN: Final = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY", *_NUMBERS)
# RFC 5545, 3.3.10: parts that mean nothing with a frequency.
_MEANINGLESS: Final = {
    "DAILY": ("BYYEARDAY", "BYWEEKNO"),
    "WEEKLY": ("BYMONTHDAY", "BYYEARDAY", "BYWEEKNO"),
    "MONTHLY": ("BYYEARDAY", "BYWEEKNO"),
    "YEARLY": (),
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a window is open. Times are local ones of its zone, without an offset."""

    start: datetime
    duration: timedelta
    time_zone: str = "UTC"
    rrule: str = ""
    exdates: tuple[datetime, ...] = ()


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Once that a window is open: from `start` until just before `end`."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class FreezeWindow:
    """A schedule, what it is for, and whose launches it holds back; an empty part of the scope means all."""

    name: str
    reason: str
    schedule: Schedule
    teams: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    uid: str = ""
    actor: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None
    etag: str = ""

    def concerns(self, team: str, surface: str, tier: str) -> bool:
        """Whether a route is in its scope."""
        parts = ((self.teams, team), (self.surfaces, surface), (self.tiers, tier))
        return all(not among or one in among for among, one in parts)


def next_occurrence(schedule: Schedule, now: datetime) -> Occurrence | None:
    """The occurrence that is open, or else the next one; None where there is none within ten years."""
    return next(iter(occurrences(schedule, now, now + HORIZON, most=1)), None)


def occurrences(schedule: Schedule, after: datetime, before: datetime, most: int = _MOST) -> tuple[Occurrence, ...]:
    """The occurrences that are open at any moment from `after` until just before `before`, in their order.

    Around a change of clocks a local time may be there twice, or not at all. A window opens at the earlier and closes
    at the later of the two moments that such a time may mean: it never is shorter for the change.

    Args:
        schedule: one that `check` has let pass.
        after: aware.
        before: aware.
        most: no more than so many.
    """
    zone = zoneinfo.ZoneInfo(schedule.time_zone)
    # A day for whatever the clocks do.
    earliest = _local(after, zone) - schedule.duration - timedelta(days=1)
    latest = _local(before, zone) + timedelta(days=1)
    found = (
        Occurrence(_opens(start, zone), _closes(start + schedule.duration, zone))
        for start in _starts(schedule, earliest, latest)
    )
    return tuple(islice((each for each in found if each.end > after and each.start < before), most))


@lru_cache(maxsize=4096)
def of_hour(schedule: Schedule, hour: datetime) -> tuple[Occurrence, ...]:
    """The occurrences that are open in an hour or in the ten minutes after it: asked again and again, found once."""
    return occurrences(schedule, hour, hour + timedelta(minutes=70))


def _starts(schedule: Schedule, earliest: datetime, latest: datetime) -> Iterator[datetime]:
    """Local starts between two local times, both included."""
    left_out = frozenset(schedule.exdates)
    for start in _candidates(schedule, earliest, latest):
        if start > latest:
            return
        if start >= earliest and start not in left_out:
            yield start


def _candidates(schedule: Schedule, earliest: datetime, latest: datetime) -> Iterable[datetime]:
    """The same, with a few more on both sides."""
    if not schedule.rrule:
        return (schedule.start,)
    parts = _parts(schedule.rrule)
    if "COUNT" in parts:
        return _counted(schedule)
    if (until := _until(schedule, parts)) is not None:
        latest = min(latest, until)
    return _walk(schedule, near=earliest, latest=latest)


@lru_cache(maxsize=256)
def _counted(schedule: Schedule) -> tuple[datetime, ...]:
    """All starts of a rule with COUNT: there is no telling the hundredth without the ninety-nine before it."""
    parts = _parts(schedule.rrule)
    rule = _walk(schedule, near=schedule.start, latest=schedule.start + HORIZON)
    return tuple(islice(rule, int(parts["COUNT"])))


def _walk(schedule: Schedule, *, near: datetime, latest: datetime) -> Iterator[datetime]:
    """The starts until `latest` by the rule, without its end, from a little before `near` on.

    It goes from period to period, and so never looks at more days than lie between both: neither at those since the
    start of a daily window of 1970, nor, for a rule that hardly ever fits, at those until the end of the calendar.
    """
    start, rule = schedule.start, _read(schedule.start, schedule.rrule)
    for days in _periods(start.date(), near.date(), latest.date(), rule):
        fits = [day for day in days if rule.fits(day)]
        if rule.positions:
            ends = len(fits)
            chosen = {at - 1 if at > 0 else ends + at for at in rule.positions}
            fits = [day for at, day in enumerate(fits) if at in chosen]
        for day in fits:
            moment = datetime.combine(day, start.time())
            if start <= moment <= latest:
                yield moment


def _periods(start: date, near: date, latest: date, rule: _Rule) -> Iterator[Iterable[date]]:
    """The days of each period of the rule, from the one before `near` on; every one is whole, the first as well."""
    step = rule.interval
    match rule.frequency:
        case "DAILY":
            first = start.toordinal() + max(0, (near - start).days // step) * step
            for day in range(first, latest.toordinal() + 1, step):
                yield (date.fromordinal(day),)
        case "WEEKLY":
            week = start.toordinal() - (start.weekday() - rule.week_start) % 7
            first = week + max(0, (near.toordinal() - week) // (7 * step)) * 7 * step
            for monday in range(first, latest.toordinal() + 1, 7 * step):
                yield map(date.fromordinal, range(monday, monday + 7))
        case "MONTHLY":
            month = 12 * start.year + start.month - 1
            first = month + max(0, (12 * near.year + near.month - 1 - month) // step) * step
            for at in range(first, 12 * latest.year + latest.month, step):
                begin, length = date(at // 12, at % 12 + 1, 1).toordinal(), monthrange(at // 12, at % 12 + 1)[1]
                yield map(date.fromordinal, range(begin, begin + length))
        case _:
            first = start.year + max(0, (near.year - start.year) // step) * step
            for year in range(first, latest.year + 1, step):
                yield map(date.fromordinal, range(date(year, 1, 1).toordinal(), date(year + 1, 1, 1).toordinal()))


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule, read: the days that fit are in every list that there is."""

    frequency: str
    interval: int
    week_start: int
    months: frozenset[int]
    month_days: frozenset[int]
    year_days: frozenset[int]
    weeks: frozenset[int]
    # Weekdays, with their number within the month or the year; 0: every one.
    days: frozenset[tuple[int, int]]
    positions: frozenset[int]

    def fits(self, day: date) -> bool:
        """Whether a day of a period is one of the rule's."""
        if self.months and day.month not in self.months:
            return False
        if self.month_days and not _has(self.month_days, day.day, monthrange(day.year, day.month)[1]):
            return False
        if self.year_days and not _has(self.year_days, day.timetuple().tm_yday, _year_length(day)):
            return False
        if self.weeks and not _has(self.weeks, *_week(day, self.week_start)):
            return False
        return not self.days or self._is_one_of_days(day)

    def _is_one_of_days(self, day: date) -> bool:
        weekday = day.weekday()
        if (weekday, 0) in self.days:
            return True
        in_month = self.frequency == "MONTHLY" or bool(self.months)
        at = day.day if in_month else day.timetuple().tm_yday
        length = monthrange(day.year, day.month)[1] if in_month else _year_length(day)
        first, last = (at - 1) // 7 + 1, -((length - at) // 7 + 1)
        return (weekday, first) in self.days or (weekday, last) in self.days


@lru_cache(maxsize=4096)
def _read(start: datetime, rrule: str) -> _Rule:
    """A rule that `check` has let pass; what it does not say it takes from its start."""
    parts = _parts(rrule)
    frequency = parts["FREQ"]
    months, month_days, year_days, weeks, positions = (
        frozenset(map(int, parts[name].split(","))) if name in parts else frozenset[int]() for name in _NUMBERS
    )
    days = (
        frozenset((_DAYS.index(day[-2:]), int(day[:-2] or 0)) for day in parts["BYDAY"].split(","))
        if "BYDAY" in parts
        else frozenset[tuple[int, int]]()
    )
    if not (month_days or year_days or weeks or days):
        if frequency == "WEEKLY":
            days = frozenset({(start.weekday(), 0)})
        elif frequency in ("MONTHLY", "YEARLY"):
            month_days = frozenset({start.day})
            if frequency == "YEARLY" and not months:
                months = frozenset({start.month})
    return _Rule(
        frequency=frequency,
        interval=int(parts.get("INTERVAL", "1")),
        week_start=_DAYS.index(parts.get("WKST", "MO")),
        months=months,
        month_days=month_days,
        year_days=year_days,
        weeks=weeks,
        days=days,
        positions=positions,
    )


def _has(numbers: frozenset[int], at: int, length: int) -> bool:
    """Whether a place, counted from 1 or from the end as -1, is among some numbers."""
    return at in numbers or at - length - 1 in numbers


def _year_length(day: date) -> int:
    return 366 if isleap(day.year) else 365


def _week(day: date, week_start: int) -> tuple[int, int]:
    """The number of a day's week, and how many weeks its year has: week 1 is the first with four days of the year."""
    middle = day + timedelta(days=3 - (day.weekday() - week_start) % 7)
    first, following = (_first_week(year, week_start) for year in (middle.year, middle.year + 1))
    return (middle - first).days // 7 + 1, (following - first).days // 7


def _first_week(year: int, week_start: int) -> date:
    fourth = date(year, 1, 4)
    return fourth - timedelta(days=(fourth.weekday() - week_start) % 7)


def _parts(rrule: str) -> dict[str, str]:
    """The parts of a rule that `check` has let pass."""
    return dict(part.split("=", 1) for part in rrule.split(";"))


def _until(schedule: Schedule, parts: Mapping[str, str]) -> datetime | None:
    """The last moment at which an occurrence may start, in local time."""
    until = parts.get("UNTIL")
    if until is None:
        return None
    moment = datetime.strptime(until.rstrip("Z"), "%Y%m%dT%H%M%S")  # noqa: DTZ007 - local, or made so below
    if until.endswith("Z"):
        return _local(moment.replace(tzinfo=UTC), zoneinfo.ZoneInfo(schedule.time_zone))
    return moment


def _local(moment: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None)


def _moments(local: datetime, zone: zoneinfo.ZoneInfo) -> tuple[datetime, datetime]:
    """The two moments that a local time may mean; mostly the same one."""
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return first, second


def _opens(local: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
    return min(_moments(local, zone))


def _closes(local: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
    return max(_moments(local, zone))


# What a window may be


@cache
def _zones() -> Collection[str]:
    return zoneinfo.available_timezones()


def local_time(text: str, path: str) -> datetime | FieldViolation:
    """A local time of a request, or what is wrong with it."""
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?", text):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return FieldViolation(path, f"'{text}' is no time that exists")
        if 1970 <= moment.year <= 2199:
            return moment
    accepted = "must be a local time without an offset, 1970 to 2199, such as 2026-12-20T00:00:00"
    return FieldViolation(path, accepted)


def local_text(moment: datetime) -> str:
    """A local time as it is shown."""
    return moment.isoformat(timespec="seconds")


def check(window: FreezeWindow, before: Iterable[FieldViolation] = (), path: str = "freeze_window") -> None:
    """Checks everything about a window.

    Args:
        window: as it is asked for.
        before: what was found wrong with it already: its times, where they are none.
        path: of the window in the request.

    Raises:
        InvalidFields: names every field that is not right.
    """
    schedule = window.schedule
    found = list(before)

    def expect(holds: bool, field: str, description: str) -> None:
        if not holds:
            found.append(FieldViolation(f"{path}.{field}", description))

    expect(bool(window.reason.strip()) and len(window.reason) <= 1_000, "reason", "must have 1 to 1,000 characters")
    least, longest = timedelta(minutes=1), timedelta(days=366)
    expect(least <= schedule.duration <= longest, "duration", "must be 1 min to 366 d")
    expect(schedule.time_zone in _zones(), "time_zone", "must be the IANA name of a time zone, such as Europe/Berlin")
    expect(len(schedule.exdates) <= 100, "exdates", "must be at most 100")
    for field, values in (("teams", window.teams), ("surfaces", window.surfaces), ("tiers", window.tiers)):
        expect(len(values) <= 100, field, "must be at most 100")
        expect(len(set(values)) == len(values), field, "must name each once")
    for index, surface in enumerate(window.surfaces):
        expect(0 < len(surface) <= 63, f"surfaces[{index}]", "must have 1 to 63 characters")
    for index, tier in enumerate(window.tiers):
        expect(
            re.fullmatch(r"TIER[0-4]", tier) is not None,
            f"tiers[{index}]",
            "must be TIER0, TIER1, TIER2, TIER3 or TIER4",
        )
    if schedule.rrule:
        wrong = _wrong_rule(schedule.rrule) or (None if found else _wrong_start(schedule))
        if wrong:
            found.append(FieldViolation(f"{path}.{wrong[0]}", wrong[1]))
    if found:
        raise InvalidFields(found)


def _wrong_rule(rrule: str) -> tuple[str, str] | None:
    """What is wrong with the words of a rule."""
    pairs = [part.partition("=") for part in rrule.split(";")]
    names = [name for name, _, _ in pairs]
    parts = {name: value for name, _, value in pairs}
    if len(rrule) > 500:
        return "rrule", "must have at most 500 characters"
    for name in names:
        if name not in _KNOWN:
            return "rrule", f"'{name[:40]}' is none of {', '.join(_KNOWN)}; occurrences begin at the time of `start`"
    if len(parts) < len(names):
        return "rrule", "must name each part once"
    frequency = parts.get("FREQ", "")
    if frequency not in _FREQUENCIES:
        return "rrule", f"FREQ must be one of {', '.join(_FREQUENCIES)}, as in FREQ=WEEKLY;BYDAY=FR,SA"
    if "COUNT" in parts and "UNTIL" in parts:
        return "rrule", "must have COUNT or UNTIL, not both"
    for name in _MEANINGLESS[frequency]:
        if name in parts:
            return "rrule", f"{name} means nothing with FREQ={frequency}"
    if "BYSETPOS" in parts and not any(name.startswith("BY") and name != "BYSETPOS" for name in names):
        return "rrule", "BYSETPOS chooses among what another BY part gives, such as BYDAY"
    for name, value in parts.items():
        if name != "FREQ" and (wrong := _wrong_part(name, value, frequency, "BYWEEKNO" in parts)):
            return "rrule", f"{name} {wrong}"
    return None


def _wrong_part(name: str, value: str, frequency: str, weeks: bool) -> str:
    """What is wrong with one part of a rule; empty where nothing is."""
    match name:
        case "INTERVAL":
            most = _FREQUENCIES[frequency]
            return "" if _among(value, most) else f"must be 1 to {most} with FREQ={frequency}: ten years"
        case "COUNT":
            return "" if _among(value, MAX_COUNT) else f"must be 1 to {MAX_COUNT:,}"
        case "WKST":
            return "" if value in _DAYS else f"must be one of {', '.join(_DAYS)}"
        case "UNTIL":
            return "" if _is_until(value) else "must be a local time or one in UTC: 20261231T235959 or 20261231T235959Z"
        case "BYDAY":
            numbered = frequency in ("MONTHLY", "YEARLY") and not weeks
            days = value.split(",")
            if not all(re.fullmatch(r"([+-]?\d{1,2})?(MO|TU|WE|TH|FR|SA|SU)", day) for day in days):
                return "must be days such as MO,TU, or with FREQ=MONTHLY or YEARLY -1FR for the last Friday"
            if any(day[:-2] for day in days) and not numbered:
                return "must be days without numbers: they count within a month or a year"
            return "" if all(not day[:-2] or 1 <= abs(int(day[:-2])) <= 53 for day in days) else "must count 1 to 53"
        case _:
            most, negative = _NUMBERS[name]
            fits = all(_among(number.removeprefix("-") if negative else number, most) for number in value.split(","))
            return "" if fits else f"must be numbers 1 to {most}" + (", or below 0 from the end" if negative else "")


def _among(text: str, most: int) -> bool:
    return re.fullmatch(r"\d{1,4}", text) is not None and 1 <= int(text) <= most


def _is_until(text: str) -> bool:
    if not re.fullmatch(r"\d{8}T\d{6}Z?", text):
        return False
    try:
        until = datetime.strptime(text.rstrip("Z"), "%Y%m%dT%H%M%S")  # noqa: DTZ007 - only whether it is one
    except ValueError:
        return False
    return 1970 <= until.year <= 2199


def _wrong_start(schedule: Schedule) -> tuple[str, str] | None:
    """Whether the rule gives the start, as RFC 5545 wants it, and as many occurrences as it counts."""
    parts = _parts(schedule.rrule)
    first = next(_walk(schedule, near=schedule.start, latest=schedule.start + HORIZON), None)
    if first is None:
        return "rrule", "gives no occurrence within ten years of `start`"
    if first != schedule.start:
        return "start", f"must be an occurrence of rrule itself; the first one from then on is {local_text(first)}"
    if "COUNT" in parts and len(_counted(schedule)) < int(parts["COUNT"]):
        return "rrule", f"COUNT is more than the {len(_counted(schedule))} occurrences of ten years; say UNTIL"
    until = _until(schedule, parts)
    if until is not None and until < schedule.start:
        return "rrule", "UNTIL must not be before `start`"
    return None
