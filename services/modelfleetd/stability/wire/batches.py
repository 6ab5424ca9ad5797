"""Batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import timedelta
from typing import Final, TypeAlias

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.codec import to_proto
from modelfleetd.stability.domain.batch import BatchId, Outcome
from modelfleetd.stability.domain.columns import RawBatch

WriteRequest: TypeAlias = pb.WriteExamplesRequest | pb.WritePredictionsRequest | pb.WriteLabelsRequest

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
