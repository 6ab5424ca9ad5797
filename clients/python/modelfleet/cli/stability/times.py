"""Spans of time of a question."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def ago(span: Duration) -> Timestamp:
    """Returns the moment so long before now."""
    return stamp(datetime.now(UTC) - span.ToTimedelta())


def stamp(moment: datetime) -> Timestamp:
    """Returns a moment as protos have it."""
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def moment(given: Timestamp) -> datetime:
    """Returns a moment of a proto, in UTC."""
    return given.ToDatetime(tzinfo=UTC)
