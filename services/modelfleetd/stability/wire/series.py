"""Series."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.codec import duration_from_proto, timestamp_from_proto, to_proto
from modelfleetd.stability.domain.points import Point


def times(
    request: pb.QuerySeriesRequest | pb.JudgeModelRequest | pb.ReplayJudgementsRequest,
) -> tuple[datetime | None, datetime | None]:
    """Returns start and end as far as they are given."""
    return (
        timestamp_from_proto(request.start_time) if request.HasField("start_time") else None,
        timestamp_from_proto(request.end_time) if request.HasField("end_time") else None,
    )


def resolution(request: pb.QuerySeriesRequest) -> timedelta | None:
    """Returns the width of a point where it is given."""
    return duration_from_proto(request.resolution) if request.HasField("resolution") else None


def series(points: Sequence[Point], total: Point) -> pb.QuerySeriesResponse:
    return pb.QuerySeriesResponse(
        points=[to_proto(point, pb.Point) for point in points], total=to_proto(total, pb.Point)
    )
