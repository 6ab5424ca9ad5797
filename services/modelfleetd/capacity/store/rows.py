"""What every store file needs: where reads go, and how changes are committed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from modelfleetd.capacity.domain.loadtest import LatencyStopper, Stoppers
from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.kit.idempotency import once

Answer = TypeVar("Answer", bound=Message)


class Reads(Protocol):
    """A database or an open transaction, as far as reads go."""

    async def fetch(self, query: str, *args: object) -> Sequence[Record]: ...
    async def fetchrow(self, query: str, *args: object) -> Record | None: ...
    async def fetchval(self, query: str, *args: object) -> Any: ...


class _OnlyChecked(Exception):
    """Leaves the transaction of a dry run, so that it is rolled back."""


async def change(
    database: Database, request: Any, answer: type[Answer], act: Callable[[Connection], Awaitable[Answer]]
) -> Answer:
    """Does what a request asks for in one transaction, once by its request_id; with `validate_only` undoes it."""
    checked: list[Answer] = []

    async def work(conn: Connection) -> Answer:
        made = await once(conn, request, answer, lambda: act(conn))
        if getattr(request, "validate_only", False):
            checked.append(made)
            raise _OnlyChecked
        return made

    try:
        return await database.run(work)
    except _OnlyChecked:
        return checked[-1]


async def forget_requests(database: Database, kept: timedelta) -> None:
    """Deletes stored answers that are older, but for those about reservations."""
    await database.execute(
        "DELETE FROM requests WHERE create_time < now() - $1::interval AND method NOT LIKE '%Reservation%'", kept
    )


def stoppers_from_json(stored: Mapping[str, Any]) -> Stoppers:
    """Returns stoppers as they were stored with `dataclasses.asdict`."""
    latencies = tuple(LatencyStopper(**limit) for limit in stored["latencies"])
    return Stoppers(stored["latency_p99_ms"], stored["error_rate"], latencies)
