"""Silences."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.stability.domain.silence import Silence

_COLUMNS = "name, resource, reason, start_time, end_time, creator, create_time, ended_by"


@dataclass(frozen=True, slots=True)
class Numbered:
    """A silence and its place in the order of creation."""

    sequence: int
    silence: Silence


async def insert(conn: Connection, silence: Silence) -> Silence:
    await conn.execute(
        f"INSERT INTO silences ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        *(getattr(silence, column) for column in _COLUMNS.split(", ")),
    )
    return silence


async def get(database: Database, name: str) -> Silence:
    """Raises ResourceNotFound where there is no such silence."""
    return _silence(await database.fetchrow(f"SELECT {_COLUMNS} FROM silences WHERE name = $1", name), name)


async def resource_of(database: Database, name: str) -> str | None:
    """Returns the model type or model that a silence is of; None where there is no such silence."""
    found: str | None = await database.fetchval("SELECT resource FROM silences WHERE name = $1", name)
    return found


async def page(
    database: Database, resource: str, before: int, limit: int, active_at: datetime | None
) -> list[Numbered]:
    """Returns silences that were made before a sequence number, newest first.

    Args:
        database: to read from.
        resource: only of this model type or model; empty: of all.
        before: a sequence number.
        limit: how many.
        active_at: only those that are in force at this time; None: all.
    """
    rows = await database.fetch(
        f"""SELECT sequence, {_COLUMNS} FROM silences WHERE sequence < $1 AND ($2 = '' OR resource = $2)
            AND ($3::timestamptz IS NULL OR (start_time <= $3 AND end_time > $3)) ORDER BY sequence DESC LIMIT $4""",
        before,
        resource,
        active_at,
        limit,
    )
    return [Numbered(row["sequence"], _silence(row, "")) for row in rows]


async def end(conn: Connection, name: str, ended_by: str, now: datetime) -> Silence:
    """Ends a silence now; one that is over stays as it is. One that has not begun never will.

    Raises:
        ResourceNotFound: there is no such silence.
    """
    await conn.execute(
        "UPDATE silences SET end_time = greatest(start_time, $2), ended_by = $3 WHERE name = $1 AND end_time > $2",
        name,
        now,
        ended_by,
    )
    return _silence(await conn.fetchrow(f"SELECT {_COLUMNS} FROM silences WHERE name = $1", name), name)


def _silence(row: Record | None, name: str) -> Silence:
    if row is None:
        raise ResourceNotFound(name)
    return Silence(**{column: value for column, value in row.items() if column != "sequence"})
