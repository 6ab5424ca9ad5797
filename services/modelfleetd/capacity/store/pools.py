"""Pools in PostgreSQL; what they own and use is in balances.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from modelfleetd.capacity.domain.pool import Place, Pool, Quota
from modelfleetd.capacity.domain.quota import Usage
from modelfleetd.capacity.store import balances, quotas
from modelfleetd.capacity.store import usage as usages
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import EtagMismatch, ReferenceNotFound, ResourceExists, ResourceInUse, ResourceNotFound, invalid
from modelfleetd.kit.db import Connection, Record

_COLUMNS = """o.name, o.team, o.parent AS organisation, o.uid::text, o.create_time, o.update_time,
    substr(md5(o.uid::text || o.version::text), 1, 16) AS etag"""
# Pools `o`, a row for each place: their own numbers, what is left in their parent, what they and their children have.
WITH_USAGES = f"""
    SELECT {_COLUMNS}, {balances.COLUMNS}, c.subtree_nominal_units, c.subtree_used_units
    FROM pools o
    LEFT JOIN balances b ON b.pool = o.name
    LEFT JOIN balances p ON p.pool = b.parent AND p.flavor = b.flavor AND p.region = b.region
    LEFT JOIN LATERAL (
        SELECT b.nominal_units + sum(nominal_units)::bigint AS subtree_nominal_units,
            b.used_units + sum(used_units)::bigint AS subtree_used_units
        FROM balances WHERE parent = b.pool AND flavor = b.flavor AND region = b.region
    ) c ON b.parent IS NULL"""
_ORDER = "ORDER BY o.name, b.flavor, b.region"


async def get(reads: Reads, name: str) -> Pool:
    """Raises ResourceNotFound where there is no such pool."""
    found = _whole(await reads.fetch(f"{WITH_USAGES} WHERE o.name = $1 {_ORDER}", name))
    if not found:
        raise ResourceNotFound(name)
    return (await _with_remedies(reads, found))[0]


async def page(reads: Reads, organisation: str, after: str, limit: int) -> list[Pool]:
    """Returns the pools that come after a name, in the order of names: of an organisation, its own included, or all."""
    of = "AND (name = $3 OR parent = $3)" if organisation else ""
    rows = await reads.fetch(
        f"""{WITH_USAGES} WHERE o.name = ANY(ARRAY(
                SELECT name FROM pools WHERE name > $1 {of} ORDER BY name LIMIT $2)) {_ORDER}""",
        after,
        limit,
        *([organisation] if organisation else []),
    )
    return await _with_remedies(reads, _whole(rows))


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
    await quotas.set_quotas(conn, pool.name, pool.parent, pool.quotas)
    return await get(conn, pool.name)


async def lock(conn: Connection, name: str, etag: str) -> Pool:
    """Returns a pool that nobody else changes or uses before the transaction ends.

    Raises:
        ResourceNotFound: it does not exist.
        EtagMismatch: an etag is given that is not the current one.
    """
    # Balances before the pool, as every admission does.
    await balances.headroom(conn, name, lock=True)
    row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM pools o WHERE name = $1 FOR NO KEY UPDATE", name)
    if row is None:
        raise ResourceNotFound(name)
    if etag and etag != row["etag"]:
        raise EtagMismatch(name, etag, row["etag"])
    # Once more: a quota that was added while we waited for the pool.
    await balances.headroom(conn, name, lock=True)
    return await get(conn, name)


async def update(conn: Connection, pool: Pool) -> Pool:
    """Changes a locked pool.

    Raises:
        ReferenceNotFound, InvalidFields: the parent does not exist, or cannot be one.
        ResourceInUse: it would leave an organisation in which it has loans in force.
    """
    await _check_parent(conn, pool)
    if loans := await conn.fetch(
        f"""SELECT l.name FROM ({_ACTIVE_LOANS}) l JOIN pools o ON o.name = $1
            WHERE o.parent IS DISTINCT FROM $2 ORDER BY l.sequence LIMIT 4""",
        pool.name,
        pool.parent,
    ):
        raise ResourceInUse(pool.name, [loan["name"] for loan in loans])
    await conn.execute(
        "UPDATE pools SET team = $2, parent = $3, version = version + 1, update_time = now() WHERE name = $1",
        pool.name,
        pool.team,
        pool.parent,
    )
    await quotas.set_quotas(conn, pool.name, pool.parent, pool.quotas)
    return await get(conn, pool.name)


async def delete(conn: Connection, pool: Pool) -> None:
    """Deletes a locked pool. Raises ResourceInUse while it holds something or another pool belongs to it."""
    users = await conn.fetch(
        f"""SELECT name FROM pools WHERE parent = $1
           UNION ALL SELECT name FROM ({_ACTIVE_LOANS}) l
           UNION ALL SELECT model FROM bookings WHERE pool = $1
           UNION ALL SELECT name FROM reservations
               WHERE pool = $1 AND (state IN ('PENDING', 'HELD') OR retain_until IS NOT NULL)
           LIMIT 4""",
        pool.name,
    )
    if users:
        raise ResourceInUse(pool.name, [row["name"] for row in users])
    await quotas.delete(conn, pool.name)
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


_ACTIVE_LOANS = """SELECT name, sequence FROM loans WHERE lender = $1 AND state = 'ACTIVE'
    UNION ALL SELECT name, sequence FROM loans WHERE borrower = $1 AND state = 'ACTIVE'"""


def _whole(rows: Sequence[Record]) -> list[Pool]:
    """Returns pools from their rows, one a place; a pool that has none has one row of nothing."""
    found: list[Pool] = []
    for name, group in itertools.groupby(rows, key=lambda row: str(row["name"])):
        places = list(group)
        shown = tuple(map(_usage, places)) if places[0]["flavor"] is not None else ()
        first = places[0]
        found.append(
            Pool(
                name=name,
                team=first["team"],
                parent=first["organisation"],
                quotas=tuple(_quota(usage) for usage in shown if usage.is_stated),
                usages=shown,
                uid=first["uid"],
                etag=first["etag"],
                create_time=first["create_time"],
                update_time=first["update_time"],
            )
        )
    return found


async def _with_remedies(reads: Reads, found: list[Pool]) -> list[Pool]:
    """Says of every place where less than nothing is available what would free it; asks only where there is one."""
    lacking = {
        (pool.name, Place(usage.flavor, usage.region)): -usage.available_units
        for pool in found
        for usage in pool.usages
        if usage.available_units < 0
    }
    if not lacking:
        return found
    messages = await usages.remedies(reads, lacking)
    return [
        replace(
            pool,
            usages=tuple(
                replace(usage, message=_sentence(messages.get((pool.name, Place(usage.flavor, usage.region)), "")))
                for usage in pool.usages
            ),
        )
        for pool in found
    ]


def _sentence(message: str) -> str:
    return f"Nothing is admitted: {message}." if message else ""


def _usage(row: Record) -> Usage:
    headroom = balances.headroom_of(row)
    return Usage(
        **{field: getattr(headroom, field) for field in headroom.__slots__},
        subtree_nominal_units=row["subtree_nominal_units"] or 0,
        subtree_used_units=row["subtree_used_units"] or 0,
    )


def _quota(usage: Usage) -> Quota:
    return Quota(
        usage.flavor, usage.region, usage.nominal_units, usage.borrowing_limit_units, usage.lending_limit_units
    )
