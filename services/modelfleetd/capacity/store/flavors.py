"""Flavors in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable

from modelfleetd.capacity.domain.pool import Flavor
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import EtagMismatch, ResourceExists, ResourceInUse, ResourceNotFound
from modelfleetd.kit.db import Connection, Record

_COLUMNS = """name, uid::text, description, unit_cost, create_time, update_time,
    substr(md5(uid::text || version::text), 1, 16) AS etag"""


async def get(reads: Reads, name: str) -> Flavor:
    """Raises ResourceNotFound where there is no such flavor."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM flavors WHERE name = $1", name)
    if row is None:
        raise ResourceNotFound(name)
    return _flavor(row)


async def page(reads: Reads, after: str, limit: int) -> list[Flavor]:
    rows = await reads.fetch(f"SELECT {_COLUMNS} FROM flavors WHERE name > $1 ORDER BY name LIMIT $2", after, limit)
    return [_flavor(row) for row in rows]


async def missing(reads: Reads, names: Iterable[str], *, lock: bool = True) -> set[str]:
    """Returns the names that no flavor has; with `lock` the others cannot be deleted before the transaction ends."""
    wanted = set(names)
    locking = "FOR KEY SHARE" if lock else ""
    rows = await reads.fetch(f"SELECT name FROM flavors WHERE name = ANY($1) {locking}", sorted(wanted))
    return wanted - {row["name"] for row in rows}


async def insert(conn: Connection, flavor: Flavor) -> Flavor:
    """Raises ResourceExists where the name is taken."""
    row = await conn.fetchrow(
        f"""INSERT INTO flavors (name, description, unit_cost) VALUES ($1, $2, $3)
            ON CONFLICT DO NOTHING RETURNING {_COLUMNS}""",
        flavor.name,
        flavor.description,
        flavor.unit_cost,
    )
    if row is None:
        raise ResourceExists(flavor.name)
    return _flavor(row)


async def lock(conn: Connection, name: str, etag: str) -> Flavor:
    """Returns a flavor that nobody else changes before the transaction ends.

    Raises:
        ResourceNotFound: it does not exist.
        EtagMismatch: an etag is given that is not the current one.
    """
    row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM flavors WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise ResourceNotFound(name)
    if etag and etag != row["etag"]:
        raise EtagMismatch(name, etag, row["etag"])
    return _flavor(row)


async def update(conn: Connection, flavor: Flavor) -> Flavor:
    row = await conn.fetchrow(
        f"""UPDATE flavors SET description = $2, unit_cost = $3, version = version + 1, update_time = now()
            WHERE name = $1 RETURNING {_COLUMNS}""",
        flavor.name,
        flavor.description,
        flavor.unit_cost,
    )
    if row is None:
        raise ResourceNotFound(flavor.name)
    return _flavor(row)


async def delete(conn: Connection, name: str) -> None:
    """Deletes a locked flavor. Raises ResourceInUse while a pool has a quota of it."""
    rows = await conn.fetch("SELECT DISTINCT pool FROM balances WHERE flavor = $1 ORDER BY pool LIMIT 4", name)
    if rows:
        raise ResourceInUse(name, [row["pool"] for row in rows])
    await conn.execute("DELETE FROM flavors WHERE name = $1", name)


def _flavor(row: Record) -> Flavor:
    return Flavor(**row)
