"""How freeze windows look: when they open, whom they hold back, and what stands in the way of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.resources import Resource
from modelfleet.launcher.v1 import freeze_pb2, gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb


def opens(window: freeze_pb2.FreezeWindow) -> str:
    """When a window is open, seen from now: `open until 2027-01-02 00:00 UTC (5d 3h)`, `in 3d, for 8h, …`."""
    if not window.HasField("next_start_time"):
        return "over"
    start, end = _moment(window.next_start_time), _moment(window.next_end_time)
    now = datetime.now(UTC)
    if start <= now:
        return f"open until {_minute(window.next_end_time)} UTC ({render.seconds((end - now).total_seconds())} more)"
    until, lasts = render.seconds((start - now).total_seconds()), render.seconds((end - start).total_seconds())
    return f"open in {until}, from {_minute(window.next_start_time)} UTC for {lasts}"


_EACH: Final = {"DAILY": "day", "WEEKLY": "week", "MONTHLY": "month", "YEARLY": "year"}


def again(window: freeze_pb2.FreezeWindow) -> str:
    """How a window recurs, in words that a narrow terminal can break: `every 2 weeks on FR, SA (Europe/Berlin)`."""
    if not window.rrule:
        return "once"
    rule = {name: value for name, _, value in (part.partition("=") for part in window.rrule.split(";"))}
    each, interval = _EACH.get(rule.pop("FREQ", ""), ""), rule.pop("INTERVAL", "1")
    if not each:
        return f"{window.rrule.replace(';', '; ')} ({window.time_zone})"
    words = [f"every {each}" if interval == "1" else f"every {interval} {each}s"]
    for name, value in rule.items():
        values = value.replace(",", ", ")
        match name:
            case "BYDAY":
                words.append(f"on {values}")
            case "BYMONTHDAY":
                words.append(f"on day {values} of the month")
            case "BYMONTH":
                words.append(f"in month {values}")
            case "COUNT":
                words.append("once" if value == "1" else f"{value} times")
            case "UNTIL":
                words.append(f"until {value[:4]}-{value[4:6]}-{value[6:8]}")
            case _:
                words.append(f"{name}={values}")
    return f"{' '.join(words)} ({window.time_zone})"


def scope(window: freeze_pb2.FreezeWindow) -> str:
    """Whose launches a window holds back."""
    parts = [
        " or ".join(render.short(team) for team in window.teams),
        " or ".join(window.surfaces),
        " or ".join(window.tiers),
    ]
    return ", ".join(part for part in parts if part) or "everybody"


FREEZE_WINDOW = Resource(
    "launcher",
    "freeze_window",
    "freeze_windows",
    "freezeWindows/{}",
    freeze_pb2.FreezeWindow,
    [
        ("WINDOW", lambda m: render.short(m.name)),
        ("NEXT", opens),
        ("AGAIN", again),
        ("HOLDS BACK", scope),
        ("REASON", lambda m: m.reason),
        ("BY", lambda m: m.actor),
    ],
    "No freeze windows. Create one: modelfleet launch freeze create holidays --start 2026-12-20 --duration 14d "
    "--team TEAM --reason 'fewer people are there'",
    reasons=False,
)


def conflict_parts(launch: pb.Launch) -> Iterator[Text]:
    """The freeze windows in the way of a plan, what they mean for it, and what to do where it cannot wait."""
    now = datetime.now(UTC)
    for conflict in launch.plan.freeze_conflicts:
        yield Text(_conflict(conflict, now), style="" if conflict.overridden else "yellow")
    first = next((each for each in launch.plan.freeze_conflicts if not each.overridden), None)
    if first is None:
        return
    window = render.short(first.freeze_window)
    has = (_moment(first.start_time) - now).total_seconds()
    if has <= 0:
        meaning = f"it goes on when {window} closes"
    else:
        takes = render.seconds(launch.plan.expected_duration.ToTimedelta().total_seconds())
        meaning = (
            f"it would not be done before {window} opens: it takes {takes} and has {render.seconds(has)}; "
            "what it has by then it keeps, and goes on when the window closes"
        )
    if launch.state == pb.Launch.PENDING:
        instead = f"create … --override {window}='why'"
    else:
        instead = f"override {render.short(launch.name)} --window {window} --reason 'why'"
    yield Text(f"{meaning}; to let it through: modelfleet launch {instead}", style="yellow")


def _conflict(conflict: gates_pb2.FreezeConflict, now: datetime) -> str:
    word = "is overridden: " if conflict.overridden else "is open: " if _moment(conflict.start_time) <= now else ""
    times = f"{_minute(conflict.start_time)} to {_minute(conflict.end_time)} UTC"
    return f"freeze window {render.short(conflict.freeze_window)} {word}{times} ({conflict.reason})"


def override_parts(launch: pb.Launch) -> Iterator[Text]:
    """The freeze windows that do not hold for a launch."""
    for each in launch.freeze_overrides:
        yield Text(
            f"freeze window {render.short(each.freeze_window)} does not hold for it, by {each.author}: {each.reason}"
        )


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _minute(stamp: Timestamp) -> str:
    """A time as UTC to the minute."""
    return _moment(stamp).strftime("%Y-%m-%d %H:%M")
