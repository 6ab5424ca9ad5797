"""What pools used: the ledger, and usage over time."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import usage_pb2
from modelfleetd.capacity.api.base import Base, Context, before
from modelfleetd.capacity.domain.history import series
from modelfleetd.capacity.store import balances, pools, usage
from modelfleetd.capacity.wire import usage as wire
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit import paging
from modelfleetd.kit.codec import duration_to_proto


class Usage(Base):
    """Implements the methods of the ledger and of usage over time."""

    async def ListLedgerEntries(
        self, request: pb.ListLedgerEntriesRequest, context: Context
    ) -> pb.ListLedgerEntriesResponse:
        page = paging.read(request, int)
        found = await balances.ledger_page(self._database, request.pool, before(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.sequence,), wire.ledger_entry_to_proto)
        return pb.ListLedgerEntriesResponse(entries=shown, next_page_token=token)

    async def ListUsageHistory(
        self, request: usage_pb2.ListUsageHistoryRequest, context: Context
    ) -> usage_pb2.ListUsageHistoryResponse:
        asked = wire.window_from_proto(request, self._clock.now())
        async with self._database.transaction(readonly=True) as conn:
            wanted = await usage.places(conn, request.pool, request.flavor, request.region)
            if not wanted and not await pools.exists(conn, request.pool):
                raise ResourceNotFound(request.pool)
            asked.check_points(len(wanted))
            levels = await usage.before(conn, request.pool, wanted, asked.start)
            changes = await usage.changes(conn, request.pool, wanted, asked)
        found = [series(request.pool, place, asked, levels.get(place), changes.get(place, {})) for place in wanted]
        return usage_pb2.ListUsageHistoryResponse(
            series=map(wire.series_to_proto, found), step=duration_to_proto(asked.step)
        )
