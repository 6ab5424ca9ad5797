"""The duties of time: ends holds that ran out, frees what rollback windows kept, checks that the books agree."""

from __future__ import annotations

import logging
from datetime import timedelta

from prometheus_client import Gauge

from modelfleetd.capacity import holds
from modelfleetd.capacity.store import balances
from modelfleetd.capacity.store.rows import forget_requests
from modelfleetd.kit.db import Database

_log = logging.getLogger(__name__)
ACTOR = "service/capacity"
_SHOWN = 10
_DIFFERENCES = Gauge(
    "modelfleet_capacity_book_differences", "Accounts of pools that differ from their ledger, as of the last check"
)
# Long after the last retry of any client.
_REQUESTS_KEPT = timedelta(days=7)


class Books:
    """Keeps the books of all pools in order. Any number of replicas may do so at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sweep(self) -> None:
        """Ends every hold whose time ran out, and frees whatever is no longer kept."""
        while await holds.expire_one(self._database, ACTOR):
            pass
        while await holds.release_one(self._database, ACTOR):
            pass

    async def forget(self) -> None:
        """Forgets answers that nobody will ask for again. Those to launches, which hold reservations, stay for ever."""
        await forget_requests(self._database, _REQUESTS_KEPT)

    async def check(self) -> None:
        """Compares balances, ledger, bookings and holds; a difference is a defect or somebody's tampering."""
        found = await balances.differences(self._database)
        _DIFFERENCES.set(len(found))
        if found:
            _log.error("the books of capacity differ in %d accounts: %s", len(found), "; ".join(found[:_SHOWN]))
