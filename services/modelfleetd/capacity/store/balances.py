"""What pools own and use: the balances, the ledger that they are the sum of, and the bookings of models.

The only way to change usage is `write`, which appends to the ledger and applies the same lines to the balances.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta

from modelfleetd.capacity.domain.ledger import Account, Entry, LedgerEntry, ModelUnits
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.quota import Headroom
from modelfleetd.capacity.store import usage
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.kit.failpoint import passing

# Of a balance `b` and of its parent's `p`, where it has one.
COLUMNS = """b.flavor, b.region, b.nominal_units, b.serving_units, b.held_units, b.retained_units,
    b.borrowing_limit_units, b.lending_limit_units, b.is_stated, b.ending_units, b.loaned_units, b.lent_units, b.parent,
    b.children_stored_units, b.children_used_units,
    coalesce(p.nominal_units + p.children_stored_units - p.used_units - p.children_used_units, 0) AS in_parent_units"""


@dataclass(frozen=True, slots=True)
class Cause:
    """Who changes usage, and why: what every line of a change says."""

    pool: str
    actor: str
    reason: str
    launch: str = ""
    reservation: str = ""


async def headroom(
    reads: Reads, pool: str, places: Sequence[Place] | None = None, *, lock: bool
) -> dict[Place, Headroom]:
    """Returns what a pool owns, uses and may still do in some places, or in all; a place without a row has nothing.

    With `lock` (in a transaction) nobody else changes it before the transaction ends, nor what its siblings use of
    their organisation: decide on that, never on less. Two rows a place however many siblings there are.
    """
    flavors = None if places is None else [place.flavor for place in places]
    regions = None if places is None else [place.region for place in places]
    rows = await reads.fetch(LOCKED if lock else _SEEN, pool, flavors, regions)
    if any(row["parent"] is not None and row["parent_pool"] is None for row in rows):
        # It moved to another organisation while we waited, whose rows the statement could not see. Now it can.
        rows = await reads.fetch(LOCKED if lock else _SEEN, pool, flavors, regions)
    return {Place(row["flavor"], row["region"]): headroom_of(row) for row in rows}


_WANTED = """b.pool = $1
    AND ($2::text[] IS NULL OR (b.flavor, b.region) IN (SELECT * FROM unnest($2::text[], $3::text[])))"""
_SEEN = f"""
    SELECT {COLUMNS}, p.pool AS parent_pool
    FROM balances b LEFT JOIN balances p ON p.pool = b.parent AND p.flavor = b.flavor AND p.region = b.region
    WHERE {_WANTED} ORDER BY b.flavor, b.region"""
# The pool's own rows first, then its parent's: all of the former are read before the latter are ordered.
LOCKED = f"""
    WITH b AS MATERIALIZED (
        SELECT * FROM balances b WHERE {_WANTED} ORDER BY flavor, region FOR NO KEY UPDATE
    ), p AS MATERIALIZED (
        SELECT p.* FROM balances p JOIN b ON p.pool = b.parent AND p.flavor = b.flavor AND p.region = b.region
        ORDER BY p.pool, p.flavor, p.region FOR NO KEY UPDATE OF p
    )
    SELECT {COLUMNS}, p.pool AS parent_pool
    FROM b LEFT JOIN p ON p.pool = b.parent AND p.flavor = b.flavor AND p.region = b.region
    ORDER BY b.flavor, b.region"""


def headroom_of(row: Record) -> Headroom:
    """Returns what the columns of a row say."""
    return Headroom(**{column: row[column] for column in _FIELDS})


_FIELDS = tuple(field.name for field in fields(Headroom))


async def headrooms(reads: Reads, pools: Collection[str], places: Sequence[Place]) -> dict[str, tuple[Headroom, ...]]:
    """Returns what several pools may do in some places, by pool, as it is seen now: nobody keeps it so."""
    rows = await reads.fetch(
        f"""SELECT b.pool, {COLUMNS}
            FROM balances b LEFT JOIN balances p ON p.pool = b.parent AND p.flavor = b.flavor AND p.region = b.region
            WHERE b.pool = ANY($1) AND (b.flavor, b.region) IN (SELECT * FROM unnest($2::text[], $3::text[]))
            ORDER BY b.pool, b.flavor, b.region""",
        sorted(pools),
        [place.flavor for place in places],
        [place.region for place in places],
    )
    found: dict[str, tuple[Headroom, ...]] = {}
    for row in rows:
        found[row["pool"]] = (*found.get(row["pool"], ()), headroom_of(row))
    return found


async def bookings_of(reads: Reads, pool: str, models: Iterable[str]) -> list[ModelUnits]:
    """Returns what models have booked in a pool. Ask after the balances are locked: bookings change under that lock."""
    wanted = sorted(set(models))
    if not wanted:
        return []
    rows = await reads.fetch(
        """SELECT model, flavor, region, units FROM bookings WHERE pool = $1 AND model = ANY($2)
           ORDER BY model, flavor, region""",
        pool,
        wanted,
    )
    return [ModelUnits(**row) for row in rows]


async def bookings_page(reads: Reads, pool: str, after: tuple[str, str, str], limit: int) -> list[ModelUnits]:
    rows = await reads.fetch(
        """SELECT model, flavor, region, units FROM bookings WHERE pool = $1 AND (model, flavor, region) > ($2, $3, $4)
           ORDER BY model, flavor, region LIMIT $5""",
        pool,
        *after,
        limit,
    )
    return [ModelUnits(**row) for row in rows]


async def write(conn: Connection, cause: Cause, entries: Iterable[Entry]) -> None:
    """Appends lines to the ledger and applies them to the balances and bookings. The balances are locked already.

    What a pool uses beyond what it keeps to itself counts in its parent's row too, in the same statement.
    """
    await write_all(conn, cause.pool, [(cause, entries)])


async def write_all(conn: Connection, pool: str, changes: Iterable[tuple[Cause, Iterable[Entry]]]) -> None:
    """Does what `write` does for several changes of one pool, at once."""
    causes, lines = [], []
    for cause, entries in changes:
        for line in entries:
            causes.append(cause)
            lines.append(line)
    if not lines:
        return
    changed = await conn.fetchval(
        WRITE,
        pool,
        [cause.actor for cause in causes],
        [cause.reason for cause in causes],
        [cause.launch for cause in causes],
        [cause.reservation for cause in causes],
        [line.place.flavor for line in lines],
        [line.place.region for line in lines],
        [line.account.value for line in lines],
        [line.delta_units for line in lines],
        [line.model for line in lines],
        [line.ending_units for line in lines],
    )
    places = {line.place for line in lines}
    if changed != len(places):
        raise RuntimeError(f"{pool} lacks a balance for one of {sorted(places)}")
    await _book(conn, pool, [line for line in lines if line.account is Account.SERVING])


WRITE = f"""
WITH lines AS (
    INSERT INTO ledger (pool, actor, reason, launch, reservation, flavor, region, account, delta_units, model,
        end_delta_units)
    SELECT $1, line.* FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::bigint[], $10::text[], $11::bigint[]) line
    RETURNING flavor, region, account, delta_units, end_delta_units
), sums AS (
    SELECT flavor, region, sum(delta_units) AS used, sum(end_delta_units) AS ending,
        coalesce(sum(delta_units) FILTER (WHERE account = 'SERVING'), 0) AS serving,
        coalesce(sum(delta_units) FILTER (WHERE account = 'HELD'), 0) AS held,
        coalesce(sum(delta_units) FILTER (WHERE account = 'RETAINED'), 0) AS retained
    FROM lines GROUP BY flavor, region
), changed AS (
    UPDATE balances b SET
        serving_units = b.serving_units + serving,
        held_units = b.held_units + held,
        retained_units = b.retained_units + retained,
        ending_units = b.ending_units + ending,
        ceiling_units = CASE WHEN b.limit_units IS NOT NULL THEN greatest(b.limit_units,
            least(b.ceiling_units, b.used_units + b.children_used_units + used)) END
    FROM sums WHERE b.pool = $1 AND b.flavor = sums.flavor AND b.region = sums.region
    RETURNING b.pool, b.parent, b.flavor, b.region, b.nominal_units,
        b.serving_units, b.held_units, b.retained_units, b.used_units, serving, held, retained, used,
        greatest(0, b.used_units - b.local_units) - greatest(0, b.used_units - used - b.local_units) AS grown
), organisation AS (
    UPDATE balances p SET
        children_used_units = p.children_used_units + grown,
        ceiling_units = greatest(p.limit_units,
            least(p.ceiling_units, p.used_units + p.children_used_units + grown))
    FROM changed c WHERE grown <> 0 AND p.pool = c.parent AND p.flavor = c.flavor AND p.region = c.region
), recorded AS ({usage.RECORD})
SELECT count(*) FROM changed
"""


async def _book(conn: Connection, pool: str, lines: Sequence[Entry]) -> None:
    if not lines:
        return
    await conn.execute(
        """
        MERGE INTO bookings b
        USING (
            SELECT model, flavor, region, sum(delta) AS delta
            FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) line (model, flavor, region, delta)
            GROUP BY model, flavor, region
        ) change
        ON b.pool = $1 AND b.model = change.model AND b.flavor = change.flavor AND b.region = change.region
        WHEN MATCHED AND b.units + change.delta = 0 THEN DELETE
        WHEN MATCHED THEN UPDATE SET units = b.units + change.delta
        WHEN NOT MATCHED THEN INSERT VALUES ($1, change.model, change.flavor, change.region, change.delta)
        """,
        pool,
        [line.model for line in lines],
        [line.place.flavor for line in lines],
        [line.place.region for line in lines],
        [line.delta_units for line in lines],
    )


async def ledger_page(reads: Reads, pool: str, before: int, limit: int) -> list[LedgerEntry]:
    """Returns the lines of a pool that come before a sequence number, newest first."""
    rows = await reads.fetch(
        """SELECT sequence, time, pool, flavor, region, account, delta_units, model, launch, reservation, actor, reason
           FROM ledger WHERE pool = $1 AND sequence < $2 ORDER BY sequence DESC LIMIT $3""",
        pool,
        before,
        limit,
    )
    return [LedgerEntry(**{**row, "account": Account(row["account"])}) for row in rows]


async def differences(reads: Reads, *, whole: bool = True) -> list[str]:
    """Returns where the books do not agree, in words; empty when they do.

    Balances against the ledger, bookings against the account SERVING, live holds against HELD and what they end with,
    what is retained against RETAINED, the sums of organisations against their pools, and loans. Some pools at a time,
    each from one snapshot, so that no statement takes long.

    Args:
        reads: where the books are.
        whole: adds up the whole ledger; else what was found right before is taken for granted (`advance`), and the cost
            is that of what there is now and has been written since, however long the ledger is.
    """
    found = []
    query = _compare(_WHOLE_LEDGER if whole else LEDGER_SINCE)
    for pools in await _batches(reads, "ledger" if whole else "checkpoints"):
        for row in await reads.fetch(query, pools):
            found += [
                f"{row['pool']} {row['flavor']} {row['region']} {account}: the {source} say "
                f"{row[f'{source} {account}']}, the balance says {row[f'balance {account}']}"
                for source, accounts in _CLAIMS.items()
                for account in accounts
                if row[f"{source} {account}"] != row[f"balance {account}"]
            ]
    return found


async def advance(database: Database) -> None:
    """Remembers up to where the ledger was found to be the balance, place by place; where it is not, nothing changes.

    Lines of a place are written under the lock of its balance, so whatever comes later has a higher number.
    """
    for pools in await _batches(database, "checkpoints"):
        await database.execute(
            f"""
            INSERT INTO checkpoints AS c (pool, flavor, region, sequence, serving_units, held_units, retained_units,
                ending_units)
            SELECT pool, flavor, region, sequence, l."SERVING", l."HELD", l."RETAINED", l."ENDING"
            FROM ({LEDGER_SINCE}) l JOIN balances b USING (pool, flavor, region)
            WHERE l.sequence IS NOT NULL AND (b.serving_units, b.held_units, b.retained_units, b.ending_units)
                = (l."SERVING", l."HELD", l."RETAINED", l."ENDING")
            ON CONFLICT (pool, flavor, region) DO UPDATE SET
                sequence = excluded.sequence, check_time = now(), serving_units = excluded.serving_units,
                held_units = excluded.held_units, retained_units = excluded.retained_units,
                ending_units = excluded.ending_units
            WHERE excluded.sequence > c.sequence
            """,
            pools,
        )


async def claim_whole_check(database: Database, every: timedelta) -> bool:
    """Says whether the whole ledger is due to be added up; if so it is the caller's, and due again after a time."""
    with passing("capacity", "commit", "claim_whole_check"):
        claimed = await database.fetchval(
            """INSERT INTO whole_checks AS c (due_time) VALUES (now() + $1)
               ON CONFLICT (only_one) DO UPDATE SET due_time = excluded.due_time WHERE c.due_time <= now()
               RETURNING true""",
            every,
        )
    return claimed is not None


async def _batches(reads: Reads, table: str) -> list[list[str]]:
    """Returns the names of all pools that have books, those that are gone included, some at a time."""
    rows = await reads.fetch(
        f"SELECT name FROM pools UNION SELECT pool FROM bookings UNION SELECT pool FROM {table} ORDER BY 1"
    )
    names = [row["name"] for row in rows]
    return [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]


_BATCH = 500
# Who says something of which accounts, beside the balances themselves.
_CLAIMS = {
    "ledger": ("SERVING", "HELD", "RETAINED", "ENDING"),
    "bookings": ("SERVING",),
    "reservations": ("HELD", "RETAINED", "ENDING"),
    "pools": ("STORED", "BORROWED"),
    "loans": ("LENT", "LOANED"),
}
_ACCOUNTS = ("SERVING", "HELD", "RETAINED", "ENDING", "STORED", "BORROWED", "LENT", "LOANED")
_LEDGER_SUMS = """
    coalesce(sum(delta_units) FILTER (WHERE account = 'SERVING'), 0) AS "SERVING",
    coalesce(sum(delta_units) FILTER (WHERE account = 'HELD'), 0) AS "HELD",
    coalesce(sum(delta_units) FILTER (WHERE account = 'RETAINED'), 0) AS "RETAINED",
    coalesce(sum(end_delta_units), 0) AS "ENDING" """
# Of the pools $1.
_WHOLE_LEDGER = f"""
    SELECT pool, flavor, region, {_LEDGER_SUMS} FROM ledger WHERE pool = ANY($1) GROUP BY pool, flavor, region"""
LEDGER_SINCE = f"""
    SELECT pool, flavor, region, l.sequence, coalesce(c.serving_units, 0) + "SERVING" AS "SERVING",
        coalesce(c.held_units, 0) + "HELD" AS "HELD", coalesce(c.retained_units, 0) + "RETAINED" AS "RETAINED",
        coalesce(c.ending_units, 0) + "ENDING" AS "ENDING"
    FROM (
        SELECT pool, flavor, region FROM balances WHERE pool = ANY($1)
        UNION SELECT pool, flavor, region FROM checkpoints WHERE pool = ANY($1)
    ) place LEFT JOIN checkpoints c USING (pool, flavor, region), LATERAL (
        SELECT max(sequence) AS sequence, {_LEDGER_SUMS} FROM ledger
        WHERE pool = place.pool AND flavor = place.flavor AND region = place.region
        AND sequence > coalesce(c.sequence, 0)
    ) l"""
_SOURCES = {
    "balance": """
        SELECT pool, flavor, region, serving_units AS "SERVING", held_units AS "HELD", retained_units AS "RETAINED",
            ending_units AS "ENDING", children_stored_units AS "STORED", children_used_units AS "BORROWED",
            lent_units AS "LENT", loaned_units AS "LOANED"
        FROM balances WHERE pool = ANY($1)""",
    "bookings": """SELECT pool, flavor, region, units AS "SERVING" FROM bookings WHERE pool = ANY($1)""",
    "reservations": """
        SELECT r.pool, i.flavor, i.region, CASE WHEN r.state = 'HELD' THEN i.hold_units END AS "HELD",
            i.retained_units AS "RETAINED",
            CASE WHEN r.state = 'HELD' THEN coalesce(i.end_units, i.hold_units) END AS "ENDING"
        FROM (
            SELECT name, pool, state FROM reservations WHERE pool = ANY($1) AND state = 'HELD'
            UNION ALL SELECT name, pool, state FROM reservations WHERE pool = ANY($1) AND retain_until IS NOT NULL
        ) r JOIN reservation_items i ON i.reservation = r.name""",
    "pools": """
        SELECT parent AS pool, flavor, region, nominal_units - local_units AS "STORED",
            greatest(0, used_units - local_units) AS "BORROWED"
        FROM balances WHERE parent = ANY($1)""",
    "loans": """
        SELECT lender AS pool, flavor, region, units AS "LENT", 0 AS "LOANED"
        FROM loans WHERE state = 'ACTIVE' AND lender = ANY($1)
        UNION ALL SELECT borrower, flavor, region, 0, units FROM loans WHERE state = 'ACTIVE' AND borrower = ANY($1)""",
}


def _compare(ledger: str) -> str:
    """Returns the statement that finds the places of pools where what somebody says is not the balance."""
    sources = {**_SOURCES, "ledger": ledger}
    said = " UNION ALL ".join(
        f"SELECT '{source}' AS source, pool, flavor, region, "
        + ", ".join(
            f'"{account}"' if source == "balance" or account in _CLAIMS[source] else f'NULL::bigint AS "{account}"'
            for account in _ACCOUNTS
        )
        + f" FROM ({query}) {source}"
        for source, query in sources.items()
    )

    def total(source: str, account: str) -> str:
        return f"coalesce(sum(\"{account}\") FILTER (WHERE source = '{source}'), 0)::bigint"

    claims = [(source, account) for source, accounts in _CLAIMS.items() for account in accounts]
    columns = [*claims, *(("balance", account) for account in _ACCOUNTS)]
    return f"""
        SELECT pool, flavor, region, {", ".join(f'{total(*of)} AS "{" ".join(of)}"' for of in columns)}
        FROM ({said}) said GROUP BY pool, flavor, region
        HAVING {" OR ".join(f"{total(*claim)} <> {total('balance', claim[1])}" for claim in claims)}
        ORDER BY pool, flavor, region"""


async def overdue(reads: Reads, limit: int) -> list[tuple[str, int]]:
    """Returns the pools in which most serves beyond what they own and what loans in force cover, with how much."""
    rows = await reads.fetch(
        """SELECT pool, sum(serving_units - nominal_units - loaned_units)::bigint AS units FROM balances
           WHERE serving_units > nominal_units + loaned_units GROUP BY pool ORDER BY units DESC, pool LIMIT $1""",
        limit,
    )
    return [(row["pool"], row["units"]) for row in rows]
