"""What pools used."""

from __future__ import annotations

from datetime import datetime

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import usage_pb2
from modelfleetd.capacity.domain.history import Series, Window, window
from modelfleetd.capacity.domain.ledger import LedgerEntry
from modelfleetd.kit.codec import duration_from_proto, timestamp_from_proto, to_proto


def ledger_entry_to_proto(entry: LedgerEntry) -> pb.LedgerEntry:
    return to_proto(entry, pb.LedgerEntry)


def window_from_proto(request: usage_pb2.ListUsageHistoryRequest, now: datetime) -> Window:
    return window(
        timestamp_from_proto(request.start_time) if request.HasField("start_time") else None,
        timestamp_from_proto(request.end_time) if request.HasField("end_time") else None,
        duration_from_proto(request.step) if request.HasField("step") else None,
        now,
    )


def series_to_proto(series: Series) -> usage_pb2.UsageSeries:
    return to_proto(series, usage_pb2.UsageSeries)
