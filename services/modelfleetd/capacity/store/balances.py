"""What pools own and use: the balances, the ledger that they are the sum of, and the bookings of models.

The only way to change usage is `write`, which appends to the ledger and applies the same lines to the balances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelfleetd.capacity.domain.ledger import Account, Entry, LedgerEntry, ModelUnits
from modelfleetd.capacity.domain.pool import Place, Quota, Usage
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.kit.db import Connection, Record

_USAGE = "flavor, region, nominal_units, serving_units, held_units, retained_units"


@dataclass(frozen=True, slots=True)
class Cause:
    """Who changes usage, and why: what every line of a change says."""

    pool: str
    actor: str
    reason: str
    launch: str = ""
    reservation: str = ""


async def usages(reads: Reads, pools: Sequence[str]) -> dict[str, tuple[Usage, ...]]:
    """Returns the usage of pools, by pool, in the order of flavor and region."""
    rows = await reads.fetch(
        f"SELECT pool, {_USAGE} FROM balances WHERE pool = ANY($1) ORDER BY pool, flavor, region", list(pools)
    )
    found: dict[str, tuple[Usage, ...]] = dict.fromkeys(pools, ())
    for row in rows:
        found[row["pool"]] += (_usage(row),)
    return found


async def of_places(
    reads: Reads, pool: str, places: Sequence[Place] | None = None, *, lock: bool
) -> dict[Place, Usage]:
    """Returns the usage of a pool in some places, or in all.

    With `lock` (in a transaction) nobody else changes it before the transaction ends: decide on that, never on less.
    """
    rows = await reads.fetch(
        f"""SELECT {_USAGE} FROM balances
            WHERE pool = $1
            AND ($2::text[] IS NULL OR (flavor, region) IN (SELECT * FROM unnest($2::text[], $3::text[])))
            ORDER BY pool, flavor, region {"FOR UPDATE" if lock else ""}""",
        pool,
        None if places is None else [place.flavor for place in places],
        None if places is None else [place.region for place in places],
    )
    return {Place(row["flavor"], row["region"]): _usage(row) for row in rows}


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
    """Appends lines to the ledger and applies them to the balances and bookings. The balances are locked already."""
    lines = list(entries)
    if not lines:
        return
    done = await conn.execute(
        """
        WITH lines AS (
            INSERT INTO ledger (pool, flavor, region, account, delta_units, model, actor, reason, launch, reservation)
            SELECT $1, line.*, $2, $3, $4, $5
            FROM unnest($6::text[], $7::text[], $8::text[], $9::bigint[], $10::text[]) line
            RETURNING flavor, region, account, delta_units
        ), sums AS (
            SELECT flavor, region,
                coalesce(sum(delta_units) FILTER (WHERE account = 'SERVING'), 0) AS serving,
                coalesce(sum(delta_units) FILTER (WHERE account = 'HELD'), 0) AS held,
                coalesce(sum(delta_units) FILTER (WHERE account = 'RETAINED'), 0) AS retained
            FROM lines GROUP BY flavor, region
        )
        UPDATE balances b SET
            serving_units = serving_units + serving,
            held_units = held_units + held,
            retained_units = retained_units + retained,
            ceiling_units = greatest(nominal_units, least(ceiling_units,
                serving_units + held_units + retained_units + serving + held + retained))
        FROM sums WHERE b.pool = $1 AND b.flavor = sums.flavor AND b.region = sums.region
        """,
        cause.pool,
        cause.actor,
        cause.reason,
        cause.launch,
        cause.reservation,
        [line.place.flavor for line in lines],
        [line.place.region for line in lines],
        [line.account.value for line in lines],
        [line.delta_units for line in lines],
        [line.model for line in lines],
    )
    places = {line.place for line in lines}
    if done != f"UPDATE {len(places)}":
        raise RuntimeError(f"{cause.pool} lacks a balance for one of {sorted(places)}")
    await _book(conn, cause.pool, [line for line in lines if line.account is Account.SERVING])


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


async def set_quotas(conn: Connection, pool: str, quotas: Iterable[Quota], current: Mapping[Place, Usage]) -> None:
    """Sets what a pool owns; a place that is not named owns nothing any more. The balances are locked already.

    Where less is owned than used, the usage becomes the ceiling: nothing is taken away and nothing is admitted.
    """
    wanted = {quota.place: quota.nominal_units for quota in quotas}
    for place in current:
        wanted.setdefault(place, 0)
    places = sorted(wanted)
    await conn.execute(
        """
        INSERT INTO balances (pool, flavor, region, nominal_units, ceiling_units)
        SELECT $1, flavor, region, nominal, nominal
        FROM unnest($2::text[], $3::text[], $4::bigint[]) place (flavor, region, nominal)
        ON CONFLICT (pool, flavor, region) DO UPDATE SET
            nominal_units = excluded.nominal_units,
            ceiling_units = greatest(excluded.nominal_units,
                balances.serving_units + balances.held_units + balances.retained_units)
        """,
        pool,
        [place.flavor for place in places],
        [place.region for place in places],
        [wanted[place] for place in places],
    )
    await conn.execute(
        """DELETE FROM balances WHERE pool = $1 AND nominal_units = 0 AND (flavor, region) NOT IN
               (SELECT * FROM unnest($2::text[], $3::text[]))
           AND serving_units + held_units + retained_units = 0""",
        pool,
        [quota.flavor for quota in quotas],
        [quota.region for quota in quotas],
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


async def differences(reads: Reads) -> list[str]:
    """Returns where the books do not agree, in words; empty when they do.

    Balances against the ledger, bookings against the account SERVING, live holds against HELD, what is retained
    against RETAINED: in one statement, so from one snapshot.
    """
    rows = await reads.fetch(
        """
        WITH sums AS (
            SELECT 'ledger' AS source, pool, flavor, region, account, sum(delta_units) AS units
            FROM ledger GROUP BY pool, flavor, region, account
            UNION ALL SELECT 'bookings', pool, flavor, region, 'SERVING', sum(units)
            FROM bookings GROUP BY pool, flavor, region
            UNION ALL SELECT 'reservations', r.pool, i.flavor, i.region, 'HELD', sum(i.hold_units)
            FROM reservation_items i JOIN reservations r ON r.name = i.reservation
            WHERE r.state = 'HELD' GROUP BY r.pool, i.flavor, i.region
            UNION ALL SELECT 'reservations', r.pool, i.flavor, i.region, 'RETAINED', sum(i.retained_units)
            FROM reservation_items i JOIN reservations r ON r.name = i.reservation
            WHERE r.retain_until IS NOT NULL GROUP BY r.pool, i.flavor, i.region
        ), expected AS (
            SELECT pool, flavor, region, account, units FROM balances, LATERAL (VALUES
                ('SERVING', serving_units), ('HELD', held_units), ('RETAINED', retained_units)) a (account, units)
        ), claims AS (
            SELECT source, pool, flavor, region, account, units FROM sums
            -- What nobody mentions is claimed to be 0.
            UNION ALL SELECT source, pool, flavor, region, account, 0 FROM expected,
                (VALUES ('ledger', 'SERVING HELD RETAINED'), ('bookings', 'SERVING'), ('reservations', 'HELD RETAINED'))
                    s (source, accounts)
            WHERE strpos(accounts, account) > 0
        )
        SELECT source, pool, flavor, region, account, sum(c.units) AS claimed, coalesce(max(e.units), 0) AS balance
        FROM claims c LEFT JOIN expected e USING (pool, flavor, region, account)
        GROUP BY source, pool, flavor, region, account
        HAVING sum(c.units) <> coalesce(max(e.units), 0)
        ORDER BY pool, flavor, region, account, source
        """
    )
    return [
        f"{row['pool']} {row['flavor']} {row['region']} {row['account']}: the {row['source']} say {row['claimed']}, "
        f"the balance says {row['balance']}"
        for row in rows
    ]


def _usage(row: Record) -> Usage:
    return Usage(
        row["flavor"],
        row["region"],
        row["nominal_units"],
        row["serving_units"],
        row["held_units"],
        row["retained_units"],
    )
