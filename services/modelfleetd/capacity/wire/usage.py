"""What pools used."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.ledger import LedgerEntry
from modelfleetd.kit.codec import to_proto


def ledger_entry_to_proto(entry: LedgerEntry) -> pb.LedgerEntry:
    return to_proto(entry, pb.LedgerEntry)
