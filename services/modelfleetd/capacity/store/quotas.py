"""What pools own, in PostgreSQL, and which organisation they belong to: the part of the balances that people decide.

What a pool stores in its organisation, and uses of it, is summed up in the rows of the organisation's pool. It is taken
out there before a pool changes, and put in again after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelfleetd.capacity.domain.pool import Place, Quota
from modelfleetd.capacity.store import usage
from modelfleetd.kit.db import Connection


async def set_quotas(conn: Connection, pool: str, parent: str | None, quotas: Iterable[Quota]) -> None:
    """Sets what a pool owns and where it belongs; a place that is not named owns nothing any more.

    Where less is owned than used, the usage becomes the ceiling: nothing is taken away and nothing is admitted.

    Args:
        conn: with a transaction that has locked the pool's own balances.
        pool: the pool, which exists.
        parent: the organisation's pool, which exists and has no parent; None where it has none.
        quotas: all of them.
    """
    stated = {quota.place: quota for quota in quotas}
    before = await conn.fetch("SELECT flavor, region, parent FROM balances WHERE pool = $1", pool)
    places = sorted(stated.keys() | {Place(row["flavor"], row["region"]) for row in before})
    parents = sorted({row["parent"] for row in before if row["parent"]} | ({parent} if parent else set()))
    await _lock_parents(conn, parents, parent, places)
    await _count_in_parent(conn, pool, -1)
    await _set_own(conn, pool, parent, [stated.get(place, _no_quota(place)) for place in places], stated.keys())
    await _count_in_parent(conn, pool, +1)
    await usage.record(conn, pool)
    await _delete_empty(conn, pool, places)
    for one in parents:
        await _delete_empty(conn, one, places)


async def delete(conn: Connection, pool: str) -> None:
    """Deletes the balances of a pool that uses nothing and has no children; they are locked already."""
    await set_quotas(conn, pool, None, ())


def _no_quota(place: Place) -> Quota:
    """Who has no quota borrows nothing either."""
    return Quota(place.flavor, place.region, 0, borrowing_limit_units=0)


async def _lock_parents(conn: Connection, parents: Sequence[str], parent: str | None, places: Sequence[Place]) -> None:
    """Locks the rows of the organisations, the old and the new one; makes those that the new one lacks."""
    columns = [place.flavor for place in places], [place.region for place in places]
    if parent is not None:
        await conn.execute(
            """INSERT INTO balances
                   (pool, flavor, region, nominal_units, ceiling_units, is_stated, borrowing_limit_units)
               SELECT $1, flavor, region, 0, 0, false, 0 FROM unnest($2::text[], $3::text[]) place (flavor, region)
               ON CONFLICT DO NOTHING""",
            parent,
            *columns,
        )
    await conn.fetch(
        """SELECT FROM balances
           WHERE pool = ANY($1) AND (flavor, region) IN (SELECT * FROM unnest($2::text[], $3::text[]))
           ORDER BY pool, flavor, region FOR NO KEY UPDATE""",
        list(parents),
        *columns,
    )


async def _count_in_parent(conn: Connection, pool: str, times: int) -> None:
    """Adds what a pool stores in its parent and uses of it to the parent's sums, or takes it out."""
    await conn.execute(
        """UPDATE balances p SET
               children_stored_units = p.children_stored_units + stored,
               children_used_units = p.children_used_units + used,
               ceiling_units = greatest(p.limit_units + stored, p.used_units + p.children_used_units + used)
           FROM (
               SELECT parent, flavor, region, $2 * (nominal_units - local_units) AS stored,
                   $2 * greatest(0, used_units - local_units) AS used
               FROM balances WHERE pool = $1 AND parent IS NOT NULL
           ) c WHERE p.pool = c.parent AND p.flavor = c.flavor AND p.region = c.region""",
        pool,
        times,
    )


async def _set_own(
    conn: Connection, pool: str, parent: str | None, quotas: Sequence[Quota], stated: Iterable[Place]
) -> None:
    named = set(stated)
    await conn.execute(
        """
        INSERT INTO balances AS b (pool, parent, flavor, region, nominal_units, borrowing_limit_units,
            lending_limit_units, is_stated, ceiling_units)
        SELECT $1, $2::text, q.*, CASE WHEN $2::text IS NULL THEN nominal ELSE nominal + borrowing END
        FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::boolean[])
            q (flavor, region, nominal, borrowing, lending, is_stated)
        ON CONFLICT (pool, flavor, region) DO UPDATE SET
            parent = excluded.parent,
            nominal_units = excluded.nominal_units,
            borrowing_limit_units = excluded.borrowing_limit_units,
            lending_limit_units = excluded.lending_limit_units,
            is_stated = excluded.is_stated,
            ceiling_units = CASE
                WHEN excluded.parent IS NULL THEN greatest(excluded.nominal_units + b.children_stored_units,
                    b.used_units + b.children_used_units)
                WHEN excluded.borrowing_limit_units IS NOT NULL THEN
                    greatest(excluded.nominal_units + excluded.borrowing_limit_units, b.used_units)
            END
        """,
        pool,
        parent,
        [quota.flavor for quota in quotas],
        [quota.region for quota in quotas],
        [quota.nominal_units for quota in quotas],
        [quota.borrowing_limit_units for quota in quotas],
        [quota.lending_limit_units for quota in quotas],
        [quota.place in named for quota in quotas],
    )


async def _delete_empty(conn: Connection, pool: str, places: Sequence[Place]) -> None:
    """Deletes balances without a quota that nobody needs: nothing is used, no child has one, and no loan names them."""
    await conn.execute(
        """DELETE FROM balances b
           WHERE pool = $1 AND (flavor, region) IN (SELECT * FROM unnest($2::text[], $3::text[]))
           AND NOT is_stated AND used_units = 0 AND loaned_units = 0 AND lent_units = 0
           AND NOT EXISTS (
               SELECT FROM balances c WHERE c.parent = b.pool AND c.flavor = b.flavor AND c.region = b.region)""",
        pool,
        [place.flavor for place in places],
        [place.region for place in places],
    )
