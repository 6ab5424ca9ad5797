"""Questions for figures of launches ↔ the domain."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from modelfleet.launcher.v1 import kpis_pb2 as pb
from modelfleetd.kit.codec import timestamp_from_proto, timestamp_to_proto, to_proto
from modelfleetd.launcher.domain import figures
from modelfleetd.launcher.domain.figures import Asked, GroupBy, LaunchStatistics


def asked(request: pb.GetLaunchStatisticsRequest, now: datetime) -> Asked:
    """What is asked for, with its defaults.

    Raises:
        InvalidFields: with everything that is wrong with it.
    """
    return figures.asked(
        timestamp_from_proto(request.start_time) if request.HasField("start_time") else None,
        timestamp_from_proto(request.end_time) if request.HasField("end_time") else None,
        now,
        group_by=GroupBy(request.group_by) if request.group_by else None,
        team=request.team,
        surface=request.surface,
    )


def answer(found: Iterable[LaunchStatistics], question: Asked) -> pb.GetLaunchStatisticsResponse:
    """The figures, and of which time they are."""
    return pb.GetLaunchStatisticsResponse(
        statistics=[to_proto(one, pb.LaunchStatistics) for one in found],
        start_time=timestamp_to_proto(question.start),
        end_time=timestamp_to_proto(question.end),
    )
