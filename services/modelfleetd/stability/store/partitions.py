"""Partitions of statistics by time: made before they are needed, and dropped as a whole when they are old."""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from modelfleetd.kit.db import Connection, Database
from modelfleetd.stability.domain.maturity import minute_of, moment_of
from modelfleetd.stability.domain.retention import DAY, TABLES, Table

_log = logging.getLogger(__name__)

# Whoever writes finds tomorrow's partitions there.
_AHEAD: Final = timedelta(days=2)
# Rows grow, so there is room for a row's next version beside it.
_FILL: Final = 70
# Dropping waits for every writer and holds up the next ones meanwhile, so it gives up soon and tries again later.
_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '2s'"
_ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(hashtextextended('stability partitions', 0))"
_EXISTING: Final = """
SELECT parent.relname AS parent, child.relname AS child FROM pg_inherits
JOIN pg_class parent ON parent.oid = inhparent JOIN pg_class child ON child.oid = inhrelid
WHERE inhparent = ANY ($1::text[]::regclass[])
"""
_NAMES: Final = [table.name for table in TABLES]


class Partitions:
    """Knows which partitions there are."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._there: dict[str, set[int]] = {}

    async def make(self, now: datetime, oldest: int | None = None) -> None:
        """Makes those that are missing for the next days, and back to the oldest minute.

        Args:
            now: the time.
            oldest: minute of the oldest event that is written; None: of now.
        """
        last = minute_of(now + _AHEAD)
        first = minute_of(now) if oldest is None else min(oldest, minute_of(now))
        missing = [(table, part) for table in TABLES for part in self._missing(table, first, last, now)]
        if not missing:
            return
        async with self._database.transaction() as conn:
            await conn.execute(_ONE_AT_A_TIME)
            there = await _existing(conn)
            # Attaching, unlike creating it as a partition, does not wait for writers.
            statements = [
                f"CREATE TABLE {name} (LIKE {table.name} INCLUDING ALL) WITH (fillfactor = {_FILL}); "
                f"ALTER TABLE {table.name} ATTACH PARTITION {name} "
                f"FOR VALUES FROM ({part * table.partition_minutes}) TO ({(part + 1) * table.partition_minutes})"
                for table, part in missing
                if part not in there[table.name]
                for name in (_name(table, part),)
            ]
            if statements:
                await conn.execute("; ".join(statements))
        for table, part in missing:
            there[table.name].add(part)
        self._there = there

    def forget(self) -> None:
        """Looks again at what is there before the next one is made."""
        self._there = {}

    async def drop_old(self, now: datetime) -> None:
        """Drops those whose rows are all older than what is kept, each in a transaction of its own."""
        async with self._database.connection() as conn:
            there = await _existing(conn)
        for table in TABLES:
            kept = table.kept_from(now) // table.partition_minutes
            for part in sorted(part for part in there[table.name] if part < kept):
                try:
                    async with self._database.transaction() as conn:
                        await conn.execute(_LOCK_TIMEOUT)
                        await conn.execute(f"DROP TABLE IF EXISTS {_name(table, part)}")
                except asyncpg.LockNotAvailableError:
                    _log.info("%s is in use; it is dropped another time", _name(table, part))
                    continue
                self._there.get(table.name, set()).discard(part)

    def _missing(self, table: Table, first: int, last: int, now: datetime) -> list[int]:
        width = table.partition_minutes
        known = self._there.get(table.name, set())
        begin = max(first, table.kept_from(now)) // width
        return [part for part in range(begin, last // width + 1) if part not in known]


async def _existing(conn: Connection) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for record in await conn.fetch(_EXISTING, _NAMES):
        start = datetime.strptime(record["child"].rpartition("_")[2] + "+0000", "%Y%m%d%z")
        table = next(table for table in TABLES if table.name == record["parent"])
        found[table.name].add(minute_of(start) // table.partition_minutes)
    return found


def _name(table: Table, part: int) -> str:
    """Returns a partition's name: the day on which it begins."""
    return f"{table.name}_{moment_of(part * table.partition_days * DAY):%Y%m%d}"
