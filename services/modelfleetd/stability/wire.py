"""Protobuf messages and the domain's values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.codec import duration_from_proto, from_proto, timestamp_from_proto, to_proto
from modelfleetd.stability.domain.batch import BatchId, Outcome
from modelfleetd.stability.domain.columns import RawBatch
from modelfleetd.stability.domain.criteria import (
    DEFAULT_CALIBRATION,
    DEFAULT_MIN_POSITIVES,
    Criterion,
    DeclaredPrediction,
    Limits,
)
from modelfleetd.stability.domain.judge import Judgement
from modelfleetd.stability.domain.points import Point

WriteRequest: TypeAlias = pb.WriteExamplesRequest | pb.WritePredictionsRequest | pb.WriteLabelsRequest

_DEFAULT_WINDOW: Final = timedelta(hours=1)
_COLUMNS: Final = (
    "model_index",
    "prediction_index",
    "event_time_micros",
    "score",
    "logit",
    "label",
    "weight",
    "request_id",
    "label_time_micros",
)


def batch_id(request: WriteRequest) -> BatchId:
    """Returns what identifies a batch, with the digest of its kind, dictionaries and columns."""
    batch = request.batch
    digest = hashlib.blake2b(request.DESCRIPTOR.full_name.encode(), digest_size=16)
    for name in (*batch.models, "", *batch.predictions):
        digest.update(name.encode() + b"\0")
    for name in _COLUMNS:
        column: bytes = getattr(request, name, b"")
        digest.update(len(column).to_bytes(8, "little"))
        digest.update(column)
    return BatchId(batch.model_type, batch.producer, batch.sequence, digest.digest())


def raw_batch(request: WriteRequest, windows: Iterable[timedelta]) -> RawBatch:
    """Returns a batch's columns as they came."""
    columns = {name: getattr(request, name, b"") for name in _COLUMNS}
    return RawBatch(models=len(request.batch.models), windows=tuple(windows), **columns)


def write_response(outcome: Outcome) -> pb.WriteResponse:
    return to_proto(outcome, pb.WriteResponse)


def declared_prediction(prediction: registry_pb2.Prediction) -> DeclaredPrediction:
    """Returns a prediction of the registry with its defaults filled in."""
    return DeclaredPrediction(
        id=prediction.id,
        attribution_window=duration_from_proto(prediction.attribution_window) or _DEFAULT_WINDOW,
        ignores_missing=prediction.missing_label == registry_pb2.Prediction.IGNORED,
        calibration_range=_range(prediction, "calibration_range") or DEFAULT_CALIBRATION,
        ne_range=_range(prediction, "ne_range"),
        min_positives=prediction.min_positives or DEFAULT_MIN_POSITIVES,
    )


def _range(prediction: registry_pb2.Prediction, name: Literal["calibration_range", "ne_range"]) -> Limits | None:
    return from_proto(getattr(prediction, name), Limits) if prediction.HasField(name) else None


def criteria(request: pb.JudgeModelRequest) -> tuple[Criterion, ...]:
    return tuple(from_proto(criterion, Criterion) for criterion in request.criteria)


def times(
    request: pb.QuerySeriesRequest | pb.JudgeModelRequest,
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


def judgement(found: Judgement) -> pb.Judgement:
    return to_proto(found, pb.Judgement)
