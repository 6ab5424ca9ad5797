"""Questions for figures of launches ↔ the domain."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from modelfleet.launcher.v1 import kpis_pb2 as pb
from modelfleetd.errors import FieldViolation
from modelfleetd.kit.codec import timestamp_from_proto, timestamp_to_proto, to_proto
from modelfleetd.launcher.domain import figures
from modelfleetd.launcher.domain.figures import Asked, GroupBy, LaunchStatistics
from modelfleetd.names import TEAM

_MOST_SURFACE: Final = 63


def asked(request: pb.GetLaunchStatisticsRequest, now: datetime) -> Asked:
    """What is asked for, with its defaults.

    Raises:
        InvalidFields: with everything that is wrong with it.
    """
    violations: list[FieldViolation] = []
    group_by = next((known for known in GroupBy if known.value == request.group_by), None)
    if request.group_by and group_by is None:
        accepted = ", ".join(known.name for known in GroupBy)
        violations.append(FieldViolation("group_by", f"must be one of {accepted}"))
    if request.team and TEAM.match(request.team) is None:
        violations.append(FieldViolation("team", f"must have the form {TEAM.template}"))
    if len(request.surface) > _MOST_SURFACE:
        violations.append(FieldViolation("surface", f"must have at most {_MOST_SURFACE} characters"))
    return figures.asked(
        timestamp_from_proto(request.start_time) if request.HasField("start_time") else None,
        timestamp_from_proto(request.end_time) if request.HasField("end_time") else None,
        now,
        group_by,
        request.team,
        request.surface,
        violations,
    )


def answer(found: Iterable[LaunchStatistics], question: Asked) -> pb.GetLaunchStatisticsResponse:
    """The figures, and of which time they are."""
    return pb.GetLaunchStatisticsResponse(
        statistics=[to_proto(one, pb.LaunchStatistics) for one in found],
        start_time=timestamp_to_proto(question.start),
        end_time=timestamp_to_proto(question.end),
    )
