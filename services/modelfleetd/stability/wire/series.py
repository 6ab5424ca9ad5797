"""Series."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.codec import duration_from_proto, timestamp_from_proto
from modelfleetd.stability.domain.arrays import Estimates
from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.fleet import HealthyRange
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.series import Points, Series

_MINUTE: Final = 60


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


def series(
    found: Series, calibration: HealthyRange | Limits | None, ne: HealthyRange | Limits | None
) -> pb.QuerySeriesResponse:
    """Returns a series with the ranges in force."""
    return pb.QuerySeriesResponse(
        points=_points(found.points, calibration, ne),
        total=_points(found.total, calibration, ne)[0],
        bins=[
            pb.CalibrationBin(
                bin=each.bin,
                weight=each.weight,
                mean_prediction=each.mean_prediction,
                mean_label=each.mean_label,
            )
            for each in found.bins
        ],
        delay_positives=found.delays.positives,
    )


def _points(
    found: Points, calibration: HealthyRange | Limits | None, ne: HealthyRange | Limits | None
) -> list[pb.Point]:
    """Returns points; there may be thousands, so that columns become lists at once and nothing is looked up by name."""
    estimates = zip(
        *(_estimates(each) for each in (found.calibration, found.ne, found.base_rate, found.corrected_calibration)),
        strict=True,
    )
    ends = found.end.tolist()
    columns = zip(
        found.start.tolist(),
        ends,
        estimates,
        found.mean_prediction.tolist(),
        found.examples.astype(int).tolist(),
        found.positives.astype(int).tolist(),
        found.matured_share.tolist(),
        found.rejected_rows.astype(int).tolist(),
        found.mature.tolist(),
        found.label_coverage.tolist(),
        found.bin_errors,
        found.rejected_share.tolist(),
        limits(calibration, ends),
        limits(ne, ends),
        strict=True,
    )
    return [
        pb.Point(
            start_time=Timestamp(seconds=start * _MINUTE),
            end_time=Timestamp(seconds=end * _MINUTE),
            calibration=of[0],
            ne=of[1],
            base_rate=of[2],
            mean_prediction=mean,
            examples=examples,
            positives=positives,
            matured_share=matured_share,
            rejected_rows=rejected_rows,
            mature=mature,
            corrected_calibration=of[3],
            label_coverage=coverage,
            binned_calibration_error=error,
            rejected_share=rejected_share,
            calibration_range=calibration_range,
            ne_range=ne_range,
        )
        for (
            start, end, of, mean, examples, positives, matured_share, rejected_rows, mature, coverage, error,
            rejected_share, calibration_range, ne_range,
        ) in columns
    ]  # fmt: skip


def _estimates(found: Estimates) -> list[pb.Estimate]:
    columns = zip(found.state.tolist(), found.value.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
    return [pb.Estimate(state=state, value=value, low=low, high=high) for state, value, low, high in columns]


def limits(given: HealthyRange | Limits | None, ends: Sequence[int]) -> list[pb.Limits | None]:
    """Returns the limits of windows that end at these minutes."""
    if given is None:
        return [None] * len(ends)
    if isinstance(given, Limits) or not given.hour_of_week_factors:
        return [pb.Limits(low=given.low, high=given.high)] * len(ends)
    # A factor holds for an hour of the week, that of a window's last minute.
    at = {hour: given.at(moment_of(hour * 60 + 1)) for hour in {(end - 1) // 60 for end in ends}}
    made = {hour: pb.Limits(low=limits.low, high=limits.high) for hour, limits in at.items()}
    return [made[(end - 1) // 60] for end in ends]
