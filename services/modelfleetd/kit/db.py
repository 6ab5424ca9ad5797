"""PostgreSQL: one pool a service, bound to the service's schema.

The pool outlives the server's restarts, drops connections that lead to a server that does not take writes (one that was
demoted still answers `SELECT 1`), and bounds every statement by what is left of the call's deadline.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import asyncpg

from modelfleetd.errors import DeadlinePassed, PartUnavailable
from modelfleetd.kit import deadline
from modelfleetd.kit.call import find_call
from modelfleetd.kit.failpoint import failpoint, passing, spelled
from modelfleetd.kit.worker import current_worker

# A row: columns by name, as asyncpg.Record gives them.
Record: TypeAlias = Mapping[str, Any]
T = TypeVar("T")


class Connection(Protocol):
    """What stores use of an asyncpg connection; the driver itself ships no types."""

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> Sequence[Record]: ...
    async def fetchrow(self, query: str, *args: object, timeout: float | None = None) -> Record | None: ...
    async def fetchval(self, query: str, *args: object, column: int = 0, timeout: float | None = None) -> Any: ...
    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str: ...
    async def executemany(
        self, command: str, args: Iterable[Sequence[object]], *, timeout: float | None = None
    ) -> None: ...
    async def copy_records_to_table(
        self, table_name: str, *, records: Iterable[Sequence[object]], columns: Sequence[str] | None = None
    ) -> str: ...
    def terminate(self) -> None: ...
    def get_settings(self) -> Any: ...


_log = logging.getLogger(__name__)

# Bounds a statement where no deadline does.
DEFAULT_TIMEOUT = 30.0
_CONNECT_TIMEOUT = 5.0

# The connection is of no use any more, whatever the statement was.
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TargetServerAttributeNotMatched,
    asyncpg.InterfaceError,
    # The driver was surprised in the middle of its protocol: the server went away between two messages.
    asyncpg.InternalClientError,
    OSError,
)
# A repetition of the transaction may succeed.
_REPEATABLE = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)


class Collision(PartUnavailable):
    """Two transactions were in each other's way; one had to go. `Database.run` begins again."""


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose return to the pool costs no round trip: services leave no session state behind."""

    def get_reset_query(self) -> str:
        return ""


class Database:
    """A pool of connections to one schema. Made by `Database.open`."""

    def __init__(self, pool: asyncpg.Pool, schema: str = "") -> None:
        self._pool = pool
        self._schema = schema

    @staticmethod
    def _place() -> str:
        """What commits, as failpoints call it: the method that is called, or the worker by whom it is done."""
        call = find_call()
        return spelled(current_worker() or "own") if call is None else call.method.path.rpartition("/")[2]

    @classmethod
    async def open(cls, url: str, schema: str, *, max_size: int = 10) -> Self:
        """Opens the pool. Does not need the database to be reachable yet; the first statement does."""
        pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=max_size,
            max_inactive_connection_lifetime=300.0,
            timeout=_CONNECT_TIMEOUT,
            connection_class=_Connection,
            init=_prepare,
            # Asks each new connection whether it takes writes, and passes over a standby in a list of hosts.
            target_session_attrs="read-write",
            server_settings={
                "search_path": schema,
                "application_name": f"modelfleetd {schema}",
                "statement_timeout": str(int(DEFAULT_TIMEOUT * 1000)),
                "idle_in_transaction_session_timeout": "60000",
            },
        )
        await pool
        return cls(pool, schema)

    async def close(self) -> None:
        """Closes every connection; statements that are under way get a few seconds."""
        try:
            await asyncio.wait_for(self._pool.close(), timeout=5.0)
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def transaction(
        self, *, readonly: bool = False, isolation: str | None = None, what: str = ""
    ) -> AsyncIterator[Connection]:
        """Gives a connection with an open transaction: committed at the end, rolled back when an exception passes.

        Args:
            readonly: the transaction cannot write, and sees one snapshot throughout.
            isolation: `repeatable read` or `serializable` where the default, read committed, does not suffice.
            what: commits, as failpoints call it, where neither the method nor the worker says it.

        Raises:
            PartUnavailable: the database cannot be reached, was lost, takes no writes, or undid the transaction because
                it collided with another one (`run` repeats it then).
            DeadlinePassed: no time is left.
        """
        async with self.connection() as conn:
            level = isolation or ("repeatable read" if readonly else "read committed")
            mode = " READ ONLY" if readonly else ""
            limit_ms = max(1, int(_time_left() * 1000))
            await conn.execute(f"BEGIN ISOLATION LEVEL {level}{mode}; SET LOCAL statement_timeout = {limit_ms}")
            place = None if readonly else what or self._place()
            try:
                yield conn
                if place is not None:
                    failpoint(f"{self._schema}.before_commit.{place}")
            except BaseException:
                await _rollback(conn)
                raise
            await conn.execute("COMMIT")
            if place is not None:
                failpoint(f"{self._schema}.after_commit.{place}")

    async def run(
        self, work: Callable[[Connection], Awaitable[T]], *, isolation: str | None = None, attempts: int = 5
    ) -> T:
        """Runs `work` in a transaction, and again where it collided with another one (40001, 40P01)."""
        for attempt in range(1, attempts + 1):
            try:
                async with self.transaction(isolation=isolation) as conn:
                    return await work(conn)
            except Collision:
                if attempt == attempts:
                    raise
                _log.debug("transaction collided, attempt %d of %d", attempt, attempts)
        raise AssertionError("unreachable")

    async def fetch(self, query: str, *args: object) -> Sequence[Record]:
        """Returns every row of one statement, outside any transaction."""
        async with self.connection() as conn:
            return await conn.fetch(query, *args, timeout=_time_left())

    async def fetchrow(self, query: str, *args: object) -> Record | None:
        """Returns the first row of one statement, or None."""
        async with self.connection() as conn:
            return await conn.fetchrow(query, *args, timeout=_time_left())

    async def fetchval(self, query: str, *args: object) -> Any:
        """Returns the first column of the first row of one statement, or None."""
        async with self.connection() as conn:
            return await conn.fetchval(query, *args, timeout=_time_left())

    async def execute(self, query: str, *args: object, what: str = "") -> str:
        """Executes one statement, which commits by itself, and returns its tag, such as `UPDATE 1`.

        Args:
            query: the statement.
            args: its parameters.
            what: commits, as failpoints call it, where the method or the worker does not say it.
        """
        with passing(self._schema, "commit", what or self._place()):
            async with self.connection() as conn:
                return await conn.execute(query, *args, timeout=_time_left())

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Gives a connection that takes writes; translates what the driver raises when it is lost or too slow."""
        conn = None
        try:
            conn = await self._acquire()
            try:
                yield conn
            except (asyncpg.ReadOnlySQLTransactionError, asyncpg.InternalClientError):
                # 25006: it leads to a server that was demoted. Returned to the pool it would do so for days.
                conn.terminate()
                raise
            finally:
                await self._pool.release(conn)
        except _REPEATABLE as error:
            raise Collision("database") from error
        except (TimeoutError, asyncpg.QueryCanceledError) as error:
            if conn is None and deadline.remaining() != 0:
                raise _unavailable(error) from error
            raise DeadlinePassed from error
        except _LOST as error:
            if isinstance(error, asyncpg.InterfaceError) and not _is_connection_loss(error):
                raise
            raise _unavailable(error) from error

    async def _acquire(self) -> Connection:
        while True:
            conn: Connection = await self._pool.acquire(timeout=_time_left())
            # The server reports both settings whenever they change (PostgreSQL 14), so looking costs nothing.
            settings = conn.get_settings()
            if settings.in_hot_standby != "on" and settings.default_transaction_read_only != "on":
                return conn
            _log.warning("dropping a connection to a server that takes no writes")
            conn.terminate()
            await self._pool.release(conn)


def _unavailable(error: BaseException) -> PartUnavailable:
    _log.warning("database unavailable: %s", type(error).__name__)
    return PartUnavailable("database", retry_after=1.0)


def _time_left() -> float:
    left = deadline.remaining()
    if left is None:
        return DEFAULT_TIMEOUT
    if left <= 0:
        raise DeadlinePassed
    return min(left, DEFAULT_TIMEOUT)


def _is_connection_loss(error: asyncpg.InterfaceError) -> bool:
    """Tells a lost connection from a misuse of the driver: asyncpg has one class for both."""
    return "connection" in str(error) or "pool" in str(error)


async def _prepare(conn: Any) -> None:
    await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _rollback(conn: Connection) -> None:
    try:
        await conn.execute("ROLLBACK")
    except (*_LOST, asyncpg.PostgresError, TimeoutError):
        conn.terminate()
