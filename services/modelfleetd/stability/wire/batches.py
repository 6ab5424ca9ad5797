"""Batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import timedelta
from typing import Final, TypeAlias

from google.protobuf.message import Message

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.codec import to_proto
from modelfleetd.stability.domain.batch import BatchId, Outcome
from modelfleetd.stability.domain.columns import RawBatch
from modelfleetd.stability.domain.given_statistics import RawStatistics
from modelfleetd.stability.domain.sampling import ALL_SAMPLED

RowsRequest: TypeAlias = pb.WriteExamplesRequest | pb.WritePredictionsRequest | pb.WriteLabelsRequest
WriteRequest: TypeAlias = RowsRequest | pb.WriteStatisticsRequest

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


_STATISTICS: Final = ("exposure", "positives", "bins")


def batch_id(request: WriteRequest) -> BatchId:
    """Returns what identifies a batch, with the digest of its kind, dictionaries and columns."""
    batch = request.batch
    digest = hashlib.blake2b(request.DESCRIPTOR.full_name.encode(), digest_size=16)
    sample = [] if batch.sample_permille in {0, ALL_SAMPLED} else ["", str(batch.sample_permille)]
    for name in (*batch.models, "", *batch.predictions, *sample):
        digest.update(name.encode() + b"\0")
    if isinstance(request, pb.WriteStatisticsRequest):
        columns = [column for kind in _STATISTICS for column in _bytes_of(getattr(request, kind)).values()]
    else:
        columns = [getattr(request, name, b"") for name in _COLUMNS]
    for column in columns:
        digest.update(len(column).to_bytes(8, "little"))
        digest.update(column)
    return BatchId(batch.model_type, batch.producer, batch.sequence, digest.digest())


def raw_batch(request: RowsRequest, windows: Iterable[timedelta]) -> RawBatch:
    """Returns a batch's columns as they came."""
    columns = {name: getattr(request, name, b"") for name in _COLUMNS}
    permille = request.batch.sample_permille or ALL_SAMPLED
    return RawBatch(models=len(request.batch.models), windows=tuple(windows), sample_permille=permille, **columns)


def raw_statistics(request: pb.WriteStatisticsRequest, windows: Iterable[timedelta]) -> RawStatistics:
    """Returns the columns of statistics as they came."""
    sent = {kind: _bytes_of(getattr(request, kind)) if request.HasField(kind) else {} for kind in _STATISTICS}
    return RawStatistics(len(request.batch.models), tuple(windows), **sent)


def _bytes_of(rows: Message) -> dict[str, bytes]:
    """Returns all columns of a message of columns."""
    return {field.name: getattr(rows, field.name) for field in rows.DESCRIPTOR.fields}


def write_response(outcome: Outcome) -> pb.WriteResponse:
    return to_proto(outcome, pb.WriteResponse)
