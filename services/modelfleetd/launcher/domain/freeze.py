"""Freeze windows: when they are open. Recurrence as in RFC 5545, in local time, and never a walk from the beginning."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import islice
from typing import Any, Final

from dateutil import rrule as rules

from modelfleetd.errors import FieldViolation, InvalidFields

# Nobody looks further ahead, and no rule leaves more between two occurrences.
HORIZON: Final = timedelta(days=3653)
# Occurrences that are looked at for what is open at one moment: with daily windows of a year each, all of them.
_MOST: Final = 400
MAX_COUNT: Final = 1_000
_FREQUENCIES: Final = {
    "DAILY": (rules.DAILY, 3650),
    "WEEKLY": (rules.WEEKLY, 520),
    "MONTHLY": (rules.MONTHLY, 120),
    "YEARLY": (rules.YEARLY, 10),
}
_DAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
# Of each list of numbers: the keyword, the largest number, and whether it may count from the end.
_NUMBERS: Final = {
    "BYMONTH": ("bymonth", 12, False),
    "BYMONTHDAY": ("bymonthday", 31, True),
    "BYYEARDAY": ("byyearday", 366, True),
    "BYWEEKNO": ("byweekno", 53, True),
    "BYSETPOS": ("bysetpos", 366, True),
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
    return _rule(schedule, parts, near=earliest, latest=latest)


@lru_cache(maxsize=256)
def _counted(schedule: Schedule) -> tuple[datetime, ...]:
    """All starts of a rule with COUNT: there is no telling the hundredth without the ninety-nine before it."""
    parts = _parts(schedule.rrule)
    rule = _rule(schedule, parts, near=schedule.start, latest=schedule.start + HORIZON)
    return tuple(islice(rule, int(parts["COUNT"])))


def _rule(schedule: Schedule, parts: Mapping[str, str], *, near: datetime, latest: datetime) -> Iterable[datetime]:
    """The starts until `latest` by the rule, begun anew a little before `near`.

    A walk from the start of a daily window of 1970 would be one of twenty thousand days. So the start is moved on by
    whole intervals, to the beginning of a period, and what the rule takes from its start is said instead.
    """
    frequency, interval = parts["FREQ"], int(parts.get("INTERVAL", "1"))
    given = _keywords(parts)
    begin = _begin(schedule.start, near, frequency, interval, given["wkst"])
    if begin != schedule.start:
        given |= _implied(schedule.start, frequency, given)
    rule: Iterable[datetime] = rules.rrule(
        _FREQUENCIES[frequency][0], dtstart=begin, interval=interval, until=latest, **given
    )
    return rule


def _begin(start: datetime, near: datetime, frequency: str, interval: int, week_start: int) -> datetime:
    """The last beginning of a period before `near` that lies whole intervals after the period of `start`."""
    match frequency:
        case "DAILY":
            passed = (near - start).days // interval
            return start + timedelta(days=max(0, passed) * interval)
        case "WEEKLY":
            week = start - timedelta(days=(start.weekday() - week_start) % 7)
            passed = (near - week).days // (7 * interval)
            return week + timedelta(weeks=passed * interval) if passed > 0 else start
        case "MONTHLY":
            passed = (12 * (near.year - start.year) + near.month - start.month) // interval
            years, month = divmod(start.month - 1 + passed * interval, 12)
            return start.replace(year=start.year + years, month=month + 1, day=1) if passed > 0 else start
        case _:
            # A week of ISO 8601 may begin in the year before.
            passed = (near.year - 1 - start.year) // interval
            return start.replace(year=start.year + passed * interval, month=1, day=1) if passed > 0 else start


def _implied(start: datetime, frequency: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule takes from its start where it does not say it."""
    if any(keyword in given for keyword in ("byweekno", "byyearday", "bymonthday", "byweekday")):
        return {}
    match frequency:
        case "WEEKLY":
            return {"byweekday": start.weekday()}
        case "MONTHLY":
            return {"bymonthday": start.day}
        case "YEARLY":
            return {"bymonthday": start.day} | ({} if "bymonth" in given else {"bymonth": start.month})
        case _:
            return {}


def _parts(rrule: str) -> dict[str, str]:
    """The parts of a rule that `check` has let pass."""
    return dict(part.split("=", 1) for part in rrule.split(";"))


def _keywords(parts: Mapping[str, str]) -> dict[str, Any]:
    """What the parts say of the days, in the library's words."""
    found: dict[str, Any] = {"wkst": _DAYS.index(parts.get("WKST", "MO"))}
    if "BYDAY" in parts:
        found["byweekday"] = [
            rules.weekday(_DAYS.index(day[-2:]), int(day[:-2]) if day[:-2] else None)
            for day in parts["BYDAY"].split(",")
        ]
    for part, (keyword, _, _) in _NUMBERS.items():
        if part in parts:
            found[keyword] = [int(number) for number in parts[part].split(",")]
    return found


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


def check(window: FreezeWindow, path: str = "freeze_window") -> None:
    """Checks everything about a window.

    Raises:
        InvalidFields: names every field that is not right.
    """
    schedule = window.schedule
    found: list[FieldViolation] = []

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
            most = _FREQUENCIES[frequency][1]
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
            _, most, negative = _NUMBERS[name]
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
    first = next(iter(_rule(schedule, parts, near=schedule.start, latest=schedule.start + HORIZON)), None)
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
