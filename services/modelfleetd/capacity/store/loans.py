"""Loans in PostgreSQL. What is in force is summed up in the balances of both pools, in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleetd.capacity.domain.loan import Loan, Offer, State, check_lending, check_organisation
from modelfleetd.capacity.store import balances, flavors
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import ReferenceNotFound, ResourceNotFound, invalid
from modelfleetd.kit.db import Connection, Database, Record

_COLUMNS = """name, lender, borrower, flavor, region, units, reason, state, actor, create_time, expire_time, end_time"""


@dataclass(frozen=True, slots=True)
class Numbered:
    """A loan and its place in the order of creation."""

    sequence: int
    loan: Loan


async def get(reads: Reads, name: str) -> Loan:
    """Raises ResourceNotFound where there is no such loan."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM loans WHERE name = $1", name)
    if row is None:
        raise ResourceNotFound(name)
    return _loan(row)


async def lender_of(reads: Reads, name: str) -> str | None:
    """Returns the lender of a loan; None where there is no such loan."""
    found: str | None = await reads.fetchval("SELECT lender FROM loans WHERE name = $1", name)
    return found


async def page(reads: Reads, pool: str, active_only: bool, before: int, limit: int) -> list[Numbered]:
    """Returns loans that were made before a sequence number, newest first; of all pools, or those that name one."""
    active = "AND state = 'ACTIVE'" if active_only else ""
    select = f"SELECT sequence, {_COLUMNS} FROM loans WHERE sequence < $1 {active}"
    order = "ORDER BY sequence DESC LIMIT $2"
    if pool:
        # Each by its own index; nobody lends to itself, so nothing comes twice.
        query = f"""(({select} AND lender = $3 {order}) UNION ALL ({select} AND borrower = $3 {order})) {order}"""
        rows = await reads.fetch(query, before, limit, pool)
    else:
        rows = await reads.fetch(f"{select} {order}", before, limit)
    return [Numbered(row["sequence"], _loan(row)) for row in rows]


async def insert(conn: Connection, name: str, offer: Offer, actor: str) -> Loan:
    """Makes a loan that is in force.

    Raises:
        ReferenceNotFound: a pool or the flavor does not exist.
        InvalidFields: the pools are not of one organisation, or the borrower has no quota there.
        LoanExceedsLending: the lender does not lend so much, its other loans in force included.
    """
    parents = {
        row["name"]: row["parent"]
        for row in await conn.fetch(
            "SELECT name, parent FROM pools WHERE name = ANY($1)", [offer.lender, offer.borrower]
        )
    }
    for field, pool in (("loan.lender", offer.lender), ("loan.borrower", offer.borrower)):
        if pool not in parents:
            raise ReferenceNotFound(field, pool)
    if await flavors.missing(conn, [offer.flavor], lock=False):
        raise ReferenceNotFound("loan.flavor", offer.flavor)
    await _lock(conn, offer)
    lender = (await balances.headroom(conn, offer.lender, [offer.place], lock=False)).get(offer.place)
    borrower = (await balances.headroom(conn, offer.borrower, [offer.place], lock=False)).get(offer.place)
    if borrower is None or not borrower.is_stated:
        raise invalid("loan.borrower", f"must have a quota of {offer.flavor} in {offer.region}, 0 units will do")
    # What is locked is as it will stay; where the lender has nothing there, nothing is lent either.
    parent = parents[offer.lender] if lender is None else lender.parent
    check_organisation(offer, parent, borrower.parent)
    check_lending(offer, lender)
    row = await conn.fetchrow(
        f"""INSERT INTO loans (name, lender, borrower, flavor, region, units, reason, actor, expire_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING {_COLUMNS}""",
        name,
        offer.lender,
        offer.borrower,
        offer.flavor,
        offer.region,
        offer.units,
        offer.reason,
        actor,
        offer.expire_time,
    )
    assert row is not None
    made = _loan(row)
    await _count(conn, made, +1)
    return made


async def end(conn: Connection, name: str) -> Loan:
    """Ends a loan before its time; one that is over stays as it is. Raises ResourceNotFound."""
    row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM loans WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise ResourceNotFound(name)
    found = _loan(row)
    if found.state is not State.ACTIVE:
        return found
    return await _over(conn, found, "state = 'ENDED', end_time = now()")


async def expire_one(database: Database) -> Loan | None:
    """Ends one loan whose time is over by the database's clock; None where there is none."""
    async with database.transaction() as conn:
        row = await conn.fetchrow(
            f"""SELECT {_COLUMNS} FROM loans WHERE state = 'ACTIVE' AND expire_time <= now() ORDER BY expire_time
                LIMIT 1 FOR UPDATE SKIP LOCKED"""
        )
        return None if row is None else await _over(conn, _loan(row), "state = 'EXPIRED'")


async def _over(conn: Connection, loan: Loan, change: str) -> Loan:
    await _lock(conn, loan)
    await _count(conn, loan, -1)
    row = await conn.fetchrow(f"UPDATE loans SET {change} WHERE name = $1 RETURNING {_COLUMNS}", loan.name)
    assert row is not None
    return _loan(row)


async def _lock(conn: Connection, loan: Loan | Offer) -> None:
    """Locks the balances of both pools: teams before their organisation, as admissions do, and teams by name."""
    await conn.fetch(
        """SELECT FROM balances WHERE pool = ANY($1) AND flavor = $2 AND region = $3
           ORDER BY parent IS NULL, pool FOR NO KEY UPDATE""",
        [loan.lender, loan.borrower],
        loan.flavor,
        loan.region,
    )


async def _count(conn: Connection, loan: Loan, times: int) -> None:
    await conn.execute(
        """UPDATE balances SET
               lent_units = lent_units + CASE WHEN pool = $1 THEN $5 ELSE 0 END,
               loaned_units = loaned_units + CASE WHEN pool = $2 THEN $5 ELSE 0 END
           WHERE pool IN ($1, $2) AND flavor = $3 AND region = $4""",
        loan.lender,
        loan.borrower,
        loan.flavor,
        loan.region,
        times * loan.units,
    )


def _loan(row: Record) -> Loan:
    columns = {column: value for column, value in row.items() if column != "sequence"}
    return Loan(**{**columns, "state": State(row["state"])})
