"""The duties of time: ends holds that ran out, frees what rollback windows kept, checks that the books agree."""

from __future__ import annotations

import logging
from datetime import timedelta

from prometheus_client import Gauge

from modelfleetd.capacity import holds
from modelfleetd.capacity.domain.history import FINER
from modelfleetd.capacity.store import balances, loans, usage
from modelfleetd.capacity.store.rows import forget_requests
from modelfleetd.kit.db import Database

_log = logging.getLogger(__name__)
ACTOR = "service/capacity"
_SHOWN = 10
_DIFFERENCES = Gauge(
    "modelfleet_capacity_book_differences",
    "Accounts of pools that differ from their books, as of the last check of the recent or of the whole ledger",
    ["ledger"],
)
_OVERDUE = Gauge(
    "modelfleet_capacity_overdue_units",
    "Units that serve beyond what a pool owns and what loans in force cover; of the pools with most of them",
    ["pool"],
)
_OVERDUE_POOLS = 50
_WHOLE_EVERY = timedelta(days=1)
# Long after the last retry of any client.
_REQUESTS_KEPT = timedelta(days=7)


class Books:
    """Keeps the books of all pools in order. Any number of replicas may do so at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._overdue: set[str] = set()

    async def sweep(self) -> None:
        """Ends every hold whose time ran out, and frees whatever is no longer kept."""
        while await holds.expire_one(self._database, ACTOR):
            pass
        while await holds.release_one(self._database, ACTOR):
            pass
        while loan := await loans.expire_one(self._database):
            _log.info("%s of %s to %s has expired", loan.name, loan.lender, loan.borrower)

    async def forget(self) -> None:
        """Forgets answers that nobody will ask for again. Those to launches, which hold reservations, stay for ever."""
        await forget_requests(self._database, _REQUESTS_KEPT)
        for resolution in FINER:
            await usage.roll_up(self._database, resolution)
        await usage.forget(self._database)

    async def roll_up(self, resolution: timedelta) -> None:
        """Brings the rows of usage over time of a resolution up to date."""
        await usage.roll_up(self._database, resolution)

    async def check(self) -> None:
        """Compares balances, bookings and holds, and the ledger from where it was found right before."""
        self._report("recent", await balances.differences(self._database, whole=False))
        await balances.advance(self._database)

    async def check_whole(self) -> None:
        """Compares the same with the whole ledger: finds what was changed behind where it was found right before.

        Once a day, whichever replica comes first, however often they are started.
        """
        if await balances.claim_whole_check(self._database, _WHOLE_EVERY):
            self._report("whole", await balances.differences(self._database))

    async def look_at_loans(self) -> None:
        """Says which pools serve on what they do not own any more; nothing is taken away from them."""
        found = dict(await balances.overdue(self._database, _OVERDUE_POOLS))
        _OVERDUE.clear()
        for pool, units in found.items():
            _OVERDUE.labels(pool).set(units)
        if found.keys() != self._overdue:
            _log.warning("pools that serve more than they own and were lent: %s", found or "none any more")
        self._overdue = set(found)

    def _report(self, ledger: str, found: list[str]) -> None:
        """A difference is a defect or somebody's tampering."""
        _DIFFERENCES.labels(ledger).set(len(found))
        if found:
            _log.error("the books of capacity differ in %d accounts: %s", len(found), "; ".join(found[:_SHOWN]))
