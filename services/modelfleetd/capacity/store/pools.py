"""Pools in PostgreSQL; what they own and use is in balances.py."""

from __future__ import annotations

from collections.abc import Sequence

from modelfleetd.capacity.domain.pool import Pool, Quota, Usage
from modelfleetd.capacity.store import balances
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import EtagMismatch, ReferenceNotFound, ResourceExists, ResourceInUse, ResourceNotFound, invalid
from modelfleetd.kit.db import Connection, Record

_COLUMNS = """name, team, parent, uid::text, create_time, update_time,
    substr(md5(uid::text || version::text), 1, 16) AS etag"""


async def get(reads: Reads, name: str) -> Pool:
    """Raises ResourceNotFound where there is no such pool."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM pools WHERE name = $1", name)
    if row is None:
        raise ResourceNotFound(name)
    return (await _with_usages(reads, [row]))[0]


async def page(reads: Reads, after: str, limit: int) -> list[Pool]:
    rows = await reads.fetch(f"SELECT {_COLUMNS} FROM pools WHERE name > $1 ORDER BY name LIMIT $2", after, limit)
    return await _with_usages(reads, rows)


async def team(reads: Reads, name: str) -> str | None:
    """Returns the team of a pool; None where there is no such pool."""
    found: str | None = await reads.fetchval("SELECT team FROM pools WHERE name = $1", name)
    return found


async def exists(reads: Reads, name: str) -> bool:
    return await team(reads, name) is not None


async def insert(conn: Connection, pool: Pool) -> Pool:
    """Makes a pool with its quotas.

    Raises:
        ResourceExists: the name is taken.
        ReferenceNotFound: the parent does not exist.
        InvalidFields: the parent has a parent itself.
    """
    await _check_parent(conn, pool)
    made = await conn.fetchval(
        "INSERT INTO pools (name, team, parent) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true",
        pool.name,
        pool.team,
        pool.parent,
    )
    if not made:
        raise ResourceExists(pool.name)
    await balances.set_quotas(conn, pool.name, pool.quotas, {})
    return await get(conn, pool.name)


async def lock(conn: Connection, name: str, etag: str) -> Pool:
    """Returns a pool that nobody else changes or uses before the transaction ends.

    Raises:
        ResourceNotFound: it does not exist.
        EtagMismatch: an etag is given that is not the current one.
    """
    # Balances before the pool, as every admission does.
    await balances.of_places(conn, name, lock=True)
    row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM pools WHERE name = $1 FOR NO KEY UPDATE", name)
    if row is None:
        raise ResourceNotFound(name)
    if etag and etag != row["etag"]:
        raise EtagMismatch(name, etag, row["etag"])
    # Once more: a quota that was added while we waited for the pool.
    await balances.of_places(conn, name, lock=True)
    return (await _with_usages(conn, [row]))[0]


async def update(conn: Connection, pool: Pool) -> Pool:
    """Changes a locked pool. Raises ReferenceNotFound, InvalidFields for a parent that cannot be one."""
    await _check_parent(conn, pool)
    current = await balances.of_places(conn, pool.name, lock=False)
    await balances.set_quotas(conn, pool.name, pool.quotas, current)
    await conn.execute(
        "UPDATE pools SET team = $2, parent = $3, version = version + 1, update_time = now() WHERE name = $1",
        pool.name,
        pool.team,
        pool.parent,
    )
    return await get(conn, pool.name)


async def delete(conn: Connection, pool: Pool) -> None:
    """Deletes a locked pool. Raises ResourceInUse while it holds something or another pool belongs to it."""
    users = await conn.fetch(
        """SELECT name FROM pools WHERE parent = $1
           UNION ALL SELECT model FROM bookings WHERE pool = $1
           UNION ALL SELECT name FROM reservations
               WHERE pool = $1 AND (state IN ('PENDING', 'HELD') OR retain_until IS NOT NULL)
           LIMIT 4""",
        pool.name,
    )
    if users:
        raise ResourceInUse(pool.name, [row["name"] for row in users])
    await conn.execute("DELETE FROM balances WHERE pool = $1", pool.name)
    await conn.execute("DELETE FROM pools WHERE name = $1", pool.name)


async def _check_parent(conn: Connection, pool: Pool) -> None:
    """Two levels: a parent has no parent, and who has children gets none."""
    if pool.parent is None:
        return
    parent = await conn.fetchrow("SELECT parent FROM pools WHERE name = $1 FOR KEY SHARE", pool.parent)
    if parent is None:
        raise ReferenceNotFound("pool.parent", pool.parent)
    children = await conn.fetchval("SELECT EXISTS (SELECT FROM pools WHERE parent = $1)", pool.name)
    if parent["parent"] is not None or children:
        raise invalid("pool.parent", "must be a pool without a parent, and only a pool without children may have one")


async def _with_usages(reads: Reads, rows: Sequence[Record]) -> list[Pool]:
    usages = await balances.usages(reads, [row["name"] for row in rows])
    return [Pool(**row, quotas=_quotas(usages[row["name"]]), usages=usages[row["name"]]) for row in rows]


def _quotas(usages: Sequence[Usage]) -> tuple[Quota, ...]:
    return tuple(Quota(usage.flavor, usage.region, usage.nominal_units) for usage in usages)
