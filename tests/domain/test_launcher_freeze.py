"""Freeze windows: when they are open, by the rule's own walk and where clocks change; and what a window may be."""

# ruff: noqa: DTZ001 - the times of windows are local ones, without an offset
from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields
from modelfleetd.launcher.domain.freeze import (
    FreezeWindow,
    Occurrence,
    Schedule,
    check,
    next_occurrence,
    occurrences,
    of_hour,
)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ZONES = ["UTC", "Europe/Berlin", "America/New_York"]
DAYS = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"]
# Parts that mean something with each frequency. Not week 53: the library takes 1 January 2022 for it, a day of week 52.
PARTS = {
    "DAILY": ["BYMONTH=3,11", "BYMONTHDAY=1,15,-1", "BYDAY=SA,SU"],
    "WEEKLY": ["BYDAY=FR,SA", "BYDAY=MO,WE,SU;WKST=SU", "BYMONTH=12", "BYDAY=MO,TH;BYSETPOS=-1", "WKST=TH"],
    "MONTHLY": ["BYDAY=-1FR", "BYDAY=2TU,3TH", "BYMONTHDAY=31", "BYMONTHDAY=-2", "BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1"],
    "YEARLY": ["BYMONTH=12", "BYWEEKNO=1,20", "BYYEARDAY=1,-1,60", "BYDAY=1MO", "BYMONTH=11;BYDAY=4TH"],
}
MOST = {"DAILY": 30, "WEEKLY": 8, "MONTHLY": 6, "YEARLY": 2}
DRAWN = settings(max_examples=40)


@st.composite
def schedules(draw: Callable[..., Any]) -> Schedule:
    """Schedules whose start is an occurrence of their rule, as it has to be."""
    frequency = draw(st.sampled_from(list(PARTS)))
    rule = f"FREQ={frequency};INTERVAL={draw(st.integers(1, MOST[frequency]))}"
    if (part := draw(st.sampled_from(["", *PARTS[frequency]]))) != "":
        rule += f";{part}"
    asked = draw(st.datetimes(datetime(2016, 1, 1), datetime(2024, 12, 31))).replace(microsecond=0)
    before = list(rrulestr(f"{rule};UNTIL=20260601T000000", dtstart=asked))
    assume(before)
    end = draw(st.sampled_from(["", ";COUNT=3", ";UNTIL=20270101T120000", ";UNTIL=20261101T120000Z"]))
    hours = draw(st.sampled_from([1, 24, 70, 24 * 20]))
    schedule = Schedule(before[0], hours * HOUR, draw(st.sampled_from(ZONES)), rule + end, tuple(before[-3::2]))
    assume(end != ";COUNT=3" or len(before) >= 3)
    check(FreezeWindow("freezeWindows/w", "why", schedule))
    return schedule


def walked(schedule: Schedule, after: datetime, before: datetime) -> list[Occurrence]:
    """The same by the library's own walk from the very start, with the words of the rule as they are."""
    zone = ZoneInfo(schedule.time_zone)
    rule = schedule.rrule
    if rule.endswith("Z"):
        # The library compares like with like: the end in local time.
        head, _, until = rule.rpartition("UNTIL=")
        moment = datetime.strptime(until, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).astimezone(zone)
        rule = f"{head}UNTIL={moment:%Y%m%dT%H%M%S}"
    elif "COUNT" not in rule and "UNTIL" not in rule:
        rule += ";UNTIL=20301231T000000"

    def moments(local: datetime) -> list[datetime]:
        return [local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]

    found = []
    for start in rrulestr(rule, dtstart=schedule.start):
        if start > before.replace(tzinfo=None) + 2 * DAY:
            break
        each = Occurrence(min(moments(start)), max(moments(start + schedule.duration)))
        if start not in schedule.exdates and each.end > after and each.start < before:
            found.append(each)
    return found


@DRAWN
@given(
    schedule=schedules(),
    after=st.datetimes(datetime(2024, 1, 1), datetime(2027, 6, 1), timezones=st.just(UTC)),
    days=st.integers(0, 800),
)
def test_occurrences_are_those_of_a_walk_from_the_very_start(schedule: Schedule, after: datetime, days: int) -> None:
    before = after + timedelta(days=days, hours=1)
    assert list(occurrences(schedule, after, before)) == walked(schedule, after, before)[:400]


@DRAWN
@given(schedule=schedules(), now=st.datetimes(datetime(2024, 1, 1), datetime(2027, 6, 1), timezones=st.just(UTC)))
def test_the_next_occurrence_is_the_first_that_is_not_over(schedule: Schedule, now: datetime) -> None:
    expected, found = walked(schedule, now, datetime(2030, 1, 1, tzinfo=UTC)), next_occurrence(schedule, now)
    if expected:
        assert found == expected[0]
    else:
        assert found is None or found.start.year >= 2030


@DRAWN
@given(schedule=schedules(), now=st.datetimes(datetime(2024, 1, 1), datetime(2027, 6, 1), timezones=st.just(UTC)))
def test_what_is_open_now_is_among_the_occurrences_of_the_hour(schedule: Schedule, now: datetime) -> None:
    hour = now.replace(minute=0, second=0, microsecond=0)
    assert set(occurrences(schedule, now, now + timedelta(minutes=9))) <= set(of_hour(schedule, hour))


@given(
    zone=st.sampled_from(["Europe/Berlin", "America/New_York"]),
    hour=st.integers(0, 23),
    minutes=st.integers(1, 48 * 60),
    moment=st.one_of(
        *(st.datetimes(at - 2 * DAY, at + 2 * DAY, timezones=st.just(UTC)) for at in (
            datetime(2026, 3, 8, 7), datetime(2026, 3, 29, 1), datetime(2026, 10, 25, 1), datetime(2026, 11, 1, 6)))
    ),
)  # fmt: skip
def test_whatever_the_clocks_do_a_moment_whose_local_time_is_in_the_window_is_frozen(
    zone: str, hour: int, minutes: int, moment: datetime
) -> None:
    schedule = Schedule(datetime(2026, 1, 1, hour), timedelta(minutes=minutes), zone, "FREQ=DAILY;INTERVAL=2")
    local = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    since = (local - schedule.start) % (2 * DAY)
    if since < schedule.duration:
        assert occurrences(schedule, moment, moment + timedelta(microseconds=1))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29), 23),
        ("Europe/Berlin", datetime(2026, 10, 25), 25),
        ("America/New_York", datetime(2026, 3, 8), 23),
        ("America/New_York", datetime(2026, 11, 1), 25),
        ("America/New_York", datetime(2026, 11, 2), 24),
    ],
)
def test_a_day_is_from_midnight_to_midnight_also_where_the_clocks_change(zone: str, day: datetime, hours: int) -> None:
    schedule = Schedule(datetime(2020, 1, 1), DAY, zone, "FREQ=DAILY")
    noon = day.replace(hour=12, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    (found,) = occurrences(schedule, noon, noon + HOUR)
    assert found.start == day.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    assert found.end - found.start == hours * HOUR


@pytest.mark.parametrize(
    ("zone", "local", "opens", "closes"),
    [
        # An hour that is there twice is frozen twice; one that is not there freezes the hour around it.
        ("Europe/Berlin", "2026-10-25T02:00", "2026-10-25T00:00Z", "2026-10-25T02:00Z"),
        ("Europe/Berlin", "2026-03-29T02:00", "2026-03-29T00:00Z", "2026-03-29T01:00Z"),
        ("America/New_York", "2026-11-01T01:00", "2026-11-01T05:00Z", "2026-11-01T07:00Z"),
        ("America/New_York", "2026-03-08T02:30", "2026-03-08T06:30Z", "2026-03-08T07:30Z"),
    ],
)
def test_an_hour_in_which_the_clocks_change(zone: str, local: str, opens: str, closes: str) -> None:
    once = Schedule(datetime.fromisoformat(local), HOUR, zone)
    found = next_occurrence(once, datetime(2026, 1, 1, tzinfo=UTC))
    assert found == Occurrence(datetime.fromisoformat(opens), datetime.fromisoformat(closes))


def steps(work: Callable[[], object]) -> int:
    """How often any Python function is entered, or a generator goes on, while something is done."""
    entered = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return entered


@pytest.mark.parametrize("rule", ["FREQ=DAILY", "FREQ=WEEKLY;BYDAY=FR", "FREQ=MONTHLY;BYDAY=-1FR", "FREQ=YEARLY"])
def test_finding_what_is_open_does_not_walk_from_the_start(rule: str) -> None:
    now = datetime(2026, 11, 27, 10, tzinfo=UTC)

    def cost(year: int) -> int:
        start = next(iter(rrulestr(rule, dtstart=datetime(year, 1, 1))))
        schedule = Schedule(start, DAY, "Europe/Berlin", rule)
        # Time zones are read once.
        next_occurrence(schedule, now)
        return steps(lambda: (next_occurrence(schedule, now), occurrences(schedule, now, now + HOUR)))

    assert cost(1970) <= cost(2024) + 20


def test_a_rule_that_hardly_ever_fits_is_given_up_after_ten_years() -> None:
    rule = "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29;UNTIL=20281231T000000"
    leap = Schedule(datetime(2024, 2, 29), DAY, "UTC", rule)
    now = datetime(2028, 3, 2, tzinfo=UTC)
    assert next_occurrence(leap, now) is None
    assert steps(lambda: next_occurrence(leap, now)) < 10_000


@pytest.mark.parametrize(
    ("field", "changes", "said"),
    [
        ("reason", {"reason": " "}, "must have 1 to 1,000 characters"),
        ("duration", {"duration": timedelta(seconds=59)}, "must be 1 min to 366 d"),
        ("duration", {"duration": 367 * DAY}, "must be 1 min to 366 d"),
        ("time_zone", {"time_zone": "Mars/Olympus"}, "must be the IANA name of a time zone, such as Europe/Berlin"),
        ("time_zone", {"time_zone": "../etc/passwd"}, "must be the IANA name of a time zone, such as Europe/Berlin"),
        ("tiers[0]", {"tiers": ("TIER9",)}, "must be TIER0, TIER1, TIER2, TIER3 or TIER4"),
        ("teams", {"teams": ("teams/a", "teams/a")}, "must name each once"),
        ("rrule", {"rrule": "FREQ=HOURLY"}, "FREQ must be one of DAILY, WEEKLY, MONTHLY, YEARLY"),
        ("rrule", {"rrule": "FREQ=DAILY;BYHOUR=3"}, "'BYHOUR' is none of "),
        ("rrule", {"rrule": "FREQ=DAILY;FREQ=DAILY"}, "must name each part once"),
        ("rrule", {"rrule": "FREQ=DAILY;COUNT=2;UNTIL=20300101T000000"}, "must have COUNT or UNTIL, not both"),
        ("rrule", {"rrule": "FREQ=DAILY;COUNT=0"}, "COUNT must be 1 to 1,000"),
        ("rrule", {"rrule": "FREQ=DAILY;UNTIL=20300101"}, "UNTIL must be a local time or one in UTC"),
        ("rrule", {"rrule": "FREQ=DAILY;UNTIL=20200101T000000"}, "UNTIL must not be before `start`"),
        ("rrule", {"rrule": "FREQ=DAILY;INTERVAL=3651"}, "INTERVAL must be 1 to 3650 with FREQ=DAILY: ten years"),
        ("rrule", {"rrule": "FREQ=WEEKLY;BYDAY=1MO"}, "BYDAY must be days without numbers"),
        ("rrule", {"rrule": "FREQ=WEEKLY;BYDAY=XX"}, "BYDAY must be days such as MO,TU"),
        ("rrule", {"rrule": "FREQ=WEEKLY;BYMONTHDAY=1"}, "BYMONTHDAY means nothing with FREQ=WEEKLY"),
        ("rrule", {"rrule": "FREQ=MONTHLY;BYMONTH=13"}, "BYMONTH must be numbers 1 to 12"),
        ("rrule", {"rrule": "FREQ=MONTHLY;BYSETPOS=1"}, "BYSETPOS chooses among what another BY part gives"),
        ("rrule", {"rrule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"}, "gives no occurrence within ten years"),
        ("rrule", {"rrule": "FREQ=YEARLY;COUNT=400"}, "COUNT is more than the 11 occurrences of ten years; say UNTIL"),
        ("start", {"rrule": "FREQ=WEEKLY;BYDAY=FR"}, "the first one from then on is 2026-12-04T00:00:00"),
    ],
)
def test_what_is_wrong_with_a_window_is_said_with_what_would_be_accepted(
    field: str, changes: dict[str, Any], said: str
) -> None:
    schedule = Schedule(datetime(2026, 11, 30), DAY)
    asked = FreezeWindow("freezeWindows/w", "why", schedule)
    of_schedule = {key: value for key, value in changes.items() if key in ("duration", "time_zone", "rrule")}
    of_window = {key: value for key, value in changes.items() if key not in of_schedule}
    asked = replace(asked, schedule=replace(schedule, **of_schedule), **of_window)
    with pytest.raises(InvalidFields) as raised:
        check(asked)
    (violation,) = raised.value.violations
    assert violation.path == f"freeze_window.{field}" and said in violation.description


@DRAWN
@given(text=st.text(alphabet="FREQ=DAILY;WKMOUNTBYSP,-+0123456789Z", max_size=60) | st.text(max_size=20))
def test_no_rule_whatever_makes_the_check_fail(text: str) -> None:
    schedule = Schedule(datetime(2026, 11, 30), DAY, "UTC", f"FREQ=DAILY;{text}")
    with contextlib.suppress(InvalidFields):
        check(FreezeWindow("freezeWindows/w", "why", schedule))
        next_occurrence(schedule, datetime(2027, 1, 1, tzinfo=UTC))


@given(
    scope=st.tuples(*(st.lists(st.sampled_from(["a", "b"]), max_size=2, unique=True).map(tuple) for _ in range(3))),
    route=st.tuples(*(st.sampled_from(["a", "b", "c"]) for _ in range(3))),
)
def test_an_empty_part_of_a_scope_means_all(scope: tuple[tuple[str, ...], ...], route: tuple[str, ...]) -> None:
    teams, surfaces, tiers = scope
    window = FreezeWindow("freezeWindows/w", "why", Schedule(datetime(2026, 1, 1), DAY), teams, surfaces, tiers)
    expected = all(one in among for among, one in zip(scope, route, strict=True) if among)
    assert window.concerns(*route) == expected
