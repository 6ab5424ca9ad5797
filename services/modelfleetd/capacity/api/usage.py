"""What pools used: the ledger, and usage over time."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.api.base import Base, Context, before
from modelfleetd.capacity.store import balances
from modelfleetd.capacity.wire import usage as wire
from modelfleetd.kit import paging


class Usage(Base):
    """Implements the methods of the ledger and of usage over time."""

    async def ListLedgerEntries(
        self, request: pb.ListLedgerEntriesRequest, context: Context
    ) -> pb.ListLedgerEntriesResponse:
        page = paging.read(request, int)
        found = await balances.ledger_page(self._database, request.pool, before(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.sequence,), wire.ledger_entry_to_proto)
        return pb.ListLedgerEntriesResponse(entries=shown, next_page_token=token)
