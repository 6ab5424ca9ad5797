"""Freeze windows ↔ the domain."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from modelfleet.launcher.v1 import freeze_pb2 as pb
from modelfleetd.errors import FieldViolation
from modelfleetd.kit.codec import duration_from_proto, duration_to_proto, timestamp_to_proto
from modelfleetd.launcher.domain import freeze
from modelfleetd.launcher.domain.freeze import FreezeWindow, Schedule

FIELDS: Final = frozenset(
    {"reason", "start", "duration", "time_zone", "rrule", "exdates", "teams", "surfaces", "tiers"}
)


def window_from_proto(message: pb.FreezeWindow, name: str, uid: str, actor: str) -> FreezeWindow:
    """A window of a request, checked.

    Raises:
        InvalidFields: names every field that is not right.
    """
    wrong: list[FieldViolation] = []

    def local(text: str, path: str) -> datetime:
        found = freeze.local_time(text, f"freeze_window.{path}")
        if isinstance(found, datetime):
            return found
        wrong.append(found)
        return datetime(2000, 1, 1)  # noqa: DTZ001 - a local time, in place of the one that is wrong

    window = FreezeWindow(
        name=name,
        uid=uid,
        actor=actor,
        reason=message.reason,
        schedule=Schedule(
            start=local(message.start, "start"),
            duration=duration_from_proto(message.duration),
            time_zone=message.time_zone or "UTC",
            rrule=message.rrule.removeprefix("RRULE:"),
            exdates=tuple(local(text, f"exdates[{index}]") for index, text in enumerate(message.exdates[:101])),
        ),
        teams=tuple(message.teams),
        surfaces=tuple(message.surfaces),
        tiers=tuple(message.tiers),
    )
    freeze.check(window, wrong)
    return window


def window_to_proto(window: FreezeWindow, now: datetime) -> pb.FreezeWindow:
    """A window as it is shown, with the occurrence that is open or comes next."""
    schedule = window.schedule
    made = pb.FreezeWindow(
        name=window.name,
        uid=window.uid,
        reason=window.reason,
        start=freeze.local_text(schedule.start),
        duration=duration_to_proto(schedule.duration),
        time_zone=schedule.time_zone,
        rrule=schedule.rrule,
        exdates=[freeze.local_text(moment) for moment in schedule.exdates],
        teams=window.teams,
        surfaces=window.surfaces,
        tiers=window.tiers,
        actor=window.actor,
        etag=window.etag,
    )
    if window.create_time is not None:
        made.create_time.CopyFrom(timestamp_to_proto(window.create_time))
    if window.update_time is not None:
        made.update_time.CopyFrom(timestamp_to_proto(window.update_time))
    following = freeze.next_occurrence(schedule, now)
    if following is not None:
        made.next_start_time.CopyFrom(timestamp_to_proto(following.start))
        made.next_end_time.CopyFrom(timestamp_to_proto(following.end))
    return made
