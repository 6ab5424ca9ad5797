"""Shelves: the partitions on which predictions and labels wait, made when needed and dropped as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.maturity import shelf_end

# How full pages are filled. A row that gets its label stays on its page, where there is room, and its index as it is:
# half of a page is room for all its rows, of a prediction whose negatives are sent, too.
_TABLES: Final = {"waiting_predictions": 50, "waiting_labels": 70}
# Replicas' clocks differ; nobody writes to a shelf that expired so long ago.
_MARGIN: Final = timedelta(minutes=10)
# Dropping waits for every writer and holds up the next ones meanwhile, so it gives up soon and tries again later.
_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '2s'"

_ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(hashtextextended('stability shelves', 0))"
_EXISTING: Final = """
SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
WHERE inhparent = $1::regclass
"""


class Shelves:
    """Knows which shelves there are."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._there: set[int] = set()

    async def make(self, numbers: Iterable[int]) -> None:
        """Makes those that are not there yet."""
        missing = set(numbers) - self._there
        if not missing:
            return
        async with self._database.transaction() as conn:
            await conn.execute(_ONE_AT_A_TIME)
            for table, filled in _TABLES.items():
                names = {record["relname"] for record in await conn.fetch(_EXISTING, table)}
                for number in sorted(missing):
                    if (name := f"{table}_{number}") not in names:
                        # Attaching, unlike creating it as a partition, does not wait for writers.
                        made = f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL) WITH (fillfactor = {filled})"
                        await conn.execute(made)
                        await conn.execute(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES IN ({number})")
        self._there |= missing

    def forget(self) -> None:
        """Looks again at what is there before the next one is made."""
        self._there.clear()

    async def drop_expired(self, now: datetime) -> None:
        """Drops those on which nothing waits any more, each in a transaction of its own."""
        for table in _TABLES:
            for record in await self._database.fetch(_EXISTING, table):
                name = record["relname"]
                number = int(name.removeprefix(f"{table}_"))
                if shelf_end(number) + _MARGIN < now:
                    async with self._database.transaction() as conn:
                        await conn.execute(_LOCK_TIMEOUT)
                        await conn.execute(f"DROP TABLE IF EXISTS {name}")
                    self._there.discard(number)
