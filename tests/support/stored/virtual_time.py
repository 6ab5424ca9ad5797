"""A database whose time is told it: `now()` of its connections is a fleet's.

A function of that name stands before PostgreSQL's own in their path, and in the defaults of columns.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from modelfleetd.kit.db import Database

P = ParamSpec("P")
T = TypeVar("T")

_VIRTUAL = """
CREATE SCHEMA virtual;
CREATE TABLE virtual.clock (time timestamptz NOT NULL);
INSERT INTO virtual.clock VALUES (pg_catalog.now());
CREATE FUNCTION virtual.now() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT time FROM virtual.clock';
CREATE FUNCTION virtual.clock_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT time FROM virtual.clock';
DO $$
DECLARE
    it record;
BEGIN
    FOR it IN SELECT table_schema, table_name, column_name FROM information_schema.columns
        WHERE column_default = 'now()' AND table_schema IN ('launcher', 'registry', 'capacity', 'stability')
    LOOP
        EXECUTE format('ALTER TABLE %I.%I ALTER COLUMN %I SET DEFAULT virtual.now()',
            it.table_schema, it.table_name, it.column_name);
    END LOOP;
END $$;
"""


def unhurried(act: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Has something done without the deadline of the round that it is part of: that is of the machine's time."""

    @functools.wraps(act)
    async def done(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.create_task(act(*args, **kwargs), context=Context())

    return done


class VirtualTime:
    """What time it is in a database. Made by `virtual_time`."""

    def __init__(self, url: str, plain: Database, stack: AsyncExitStack) -> None:
        self._url = url
        self._plain = plain
        self._stack = stack
        self._is: datetime | None = None

    async def database(self, schema: str) -> Database:
        """Opens a service's schema; closed at the end."""
        made = await Database.open(self._url, f"virtual, {schema}, pg_catalog", max_size=2)
        self._stack.push_async_callback(made.close)
        return made

    @unhurried
    async def set(self, time: datetime) -> None:
        """Says what time it is."""
        if time != self._is:
            await self._plain.execute("UPDATE virtual.clock SET time = $1", time)
            self._is = time


@asynccontextmanager
async def virtual_time(url: str) -> AsyncIterator[VirtualTime]:
    """Makes the time of a database one that is told it."""
    async with AsyncExitStack() as stack:
        plain = await Database.open(url, "pg_catalog", max_size=1)
        stack.push_async_callback(plain.close)
        async with plain.transaction() as conn:
            await conn.execute(_VIRTUAL)
        yield VirtualTime(url, plain, stack)
