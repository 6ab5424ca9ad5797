"""What pools own and use: the balances, the ledger that they are the sum of, and the bookings of models.

The only way to change usage is `write`, which appends to the ledger and applies the same lines to the balances.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields

from modelfleetd.capacity.domain.ledger import Account, Entry, LedgerEntry, ModelUnits
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.quota import Headroom
from modelfleetd.capacity.store import usage
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.kit.db import Connection, Database, Record

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

    Balances against the ledger, bookings against the account SERVING, live holds against HELD, what is retained
    against RETAINED, the sums of organisations against their pools, and loans: in one statement, so from one snapshot.

    Args:
        reads: where the books are.
        whole: adds up the whole ledger; else what was found right before is taken for granted (`advance`), and the cost
            is that of what there is now and has been written since, however long the ledger is.
    """
    rows = await reads.fetch(_DIFFERENCES.format(ledger=_WHOLE_LEDGER if whole else LEDGER_SINCE))
    return [
        f"{row['pool']} {row['flavor']} {row['region']} {row['account']}: the {row['source']} say {row['claimed']}, "
        f"the balance says {row['balance']}"
        for row in rows
    ]


async def advance(database: Database) -> None:
    """Remembers up to where the ledger was found to be the balance, place by place; where it is not, nothing changes.

    Lines of a place are written under the lock of its balance, so whatever comes later has a higher number.
    """
    await database.execute(
        f"""
        INSERT INTO checkpoints AS c (pool, flavor, region, sequence, serving_units, held_units, retained_units,
            ending_units)
        SELECT pool, flavor, region, sequence, l.serving, l.held, l.retained, l.ending
        FROM ({LEDGER_SINCE}) l JOIN balances b USING (pool, flavor, region)
        WHERE l.is_new AND (b.serving_units, b.held_units, b.retained_units, b.ending_units)
            = (l.serving, l.held, l.retained, l.ending)
        ON CONFLICT (pool, flavor, region) DO UPDATE SET
            sequence = excluded.sequence, check_time = now(), serving_units = excluded.serving_units,
            held_units = excluded.held_units, retained_units = excluded.retained_units,
            ending_units = excluded.ending_units
        WHERE excluded.sequence > c.sequence
        """
    )


_LEDGER_SUMS = """coalesce(sum(delta_units) FILTER (WHERE account = 'SERVING'), 0) AS serving,
    coalesce(sum(delta_units) FILTER (WHERE account = 'HELD'), 0) AS held,
    coalesce(sum(delta_units) FILTER (WHERE account = 'RETAINED'), 0) AS retained,
    coalesce(sum(end_delta_units), 0) AS ending"""
_WHOLE_LEDGER = f"SELECT pool, flavor, region, {_LEDGER_SUMS} FROM ledger GROUP BY pool, flavor, region"
LEDGER_SINCE = f"""
    SELECT pool, flavor, region, l.sequence, l.sequence IS NOT NULL AS is_new,
        coalesce(c.serving_units, 0) + serving AS serving, coalesce(c.held_units, 0) + held AS held,
        coalesce(c.retained_units, 0) + retained AS retained, coalesce(c.ending_units, 0) + ending AS ending
    FROM (SELECT pool, flavor, region FROM balances UNION SELECT pool, flavor, region FROM checkpoints) place
    LEFT JOIN checkpoints c USING (pool, flavor, region), LATERAL (
        SELECT max(sequence) AS sequence, {_LEDGER_SUMS} FROM ledger
        WHERE pool = place.pool AND flavor = place.flavor AND region = place.region
        AND sequence > coalesce(c.sequence, 0)
    ) l"""
_DIFFERENCES = """
    WITH ledger_sums AS ({ledger}), sums AS (
        SELECT 'ledger' AS source, pool, flavor, region, account, units
        FROM ledger_sums, LATERAL (VALUES
            ('SERVING', serving), ('HELD', held), ('RETAINED', retained), ('ENDING', ending)) a (account, units)
        UNION ALL SELECT 'bookings', pool, flavor, region, 'SERVING', sum(units)
        FROM bookings GROUP BY pool, flavor, region
        UNION ALL SELECT 'reservations', r.pool, i.flavor, i.region, account, sum(units)
        FROM reservation_items i JOIN reservations r ON r.name = i.reservation, LATERAL (VALUES
            ('HELD', i.hold_units), ('ENDING', coalesce(i.end_units, i.hold_units))) a (account, units)
        WHERE r.state = 'HELD' GROUP BY r.pool, i.flavor, i.region, account
        UNION ALL SELECT 'reservations', r.pool, i.flavor, i.region, 'RETAINED', sum(i.retained_units)
        FROM reservation_items i JOIN reservations r ON r.name = i.reservation
        WHERE r.retain_until IS NOT NULL GROUP BY r.pool, i.flavor, i.region
        UNION ALL SELECT 'pools', parent, flavor, region, account, sum(units)
        FROM balances, LATERAL (VALUES
            ('STORED', nominal_units - local_units), ('BORROWED', greatest(0, used_units - local_units))
        ) a (account, units) WHERE parent IS NOT NULL GROUP BY parent, flavor, region, account
        UNION ALL SELECT 'loans', pool, flavor, region, account, sum(units)
        FROM loans, LATERAL (VALUES ('LENT', lender), ('LOANED', borrower)) a (account, pool)
        WHERE state = 'ACTIVE' GROUP BY pool, flavor, region, account
    ), expected AS (
        SELECT pool, flavor, region, account, units FROM balances, LATERAL (VALUES
            ('SERVING', serving_units), ('HELD', held_units), ('RETAINED', retained_units),
            ('ENDING', ending_units), ('STORED', children_stored_units), ('BORROWED', children_used_units),
            ('LENT', lent_units), ('LOANED', loaned_units)
        ) a (account, units)
    ), claims AS (
        SELECT source, pool, flavor, region, account, units FROM sums
        -- What nobody mentions is claimed to be 0.
        UNION ALL SELECT source, pool, flavor, region, account, 0 FROM expected JOIN
            (VALUES ('ledger', 'SERVING'), ('ledger', 'HELD'), ('ledger', 'RETAINED'), ('ledger', 'ENDING'),
                ('bookings', 'SERVING'), ('reservations', 'HELD'), ('reservations', 'RETAINED'),
                ('reservations', 'ENDING'), ('pools', 'STORED'), ('pools', 'BORROWED'), ('loans', 'LENT'),
                ('loans', 'LOANED'))
                s (source, account) USING (account)
    )
    SELECT source, pool, flavor, region, account, sum(c.units) AS claimed, coalesce(max(e.units), 0) AS balance
    FROM claims c LEFT JOIN expected e USING (pool, flavor, region, account)
    GROUP BY source, pool, flavor, region, account
    HAVING sum(c.units) <> coalesce(max(e.units), 0)
    ORDER BY pool, flavor, region, account, source"""


async def overdue(reads: Reads, limit: int) -> list[tuple[str, int]]:
    """Returns the pools in which most serves beyond what they own and what loans in force cover, with how much."""
    rows = await reads.fetch(
        """SELECT pool, sum(serving_units - nominal_units - loaned_units)::bigint AS units FROM balances
           WHERE serving_units > nominal_units + loaned_units GROUP BY pool ORDER BY units DESC, pool LIMIT $1""",
        limit,
    )
    return [(row["pool"], row["units"]) for row in rows]
