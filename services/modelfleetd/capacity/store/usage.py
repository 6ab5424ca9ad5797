"""Who uses what, and what was used when, in PostgreSQL.

Rows of usage over time are written by the statements that change a balance, under its lock, so that nothing between two
looks is missed: one a minute in which a place changed. Coarser rows are made of finer ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from modelfleetd.capacity.domain.history import DAY, FINER, HOUR, KEPT, MAX_SERIES, Change, Level, Window
from modelfleetd.capacity.domain.ledger import Account
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.remedy import User, remedy
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import QuotaShortage
from modelfleetd.kit.db import Connection, Database

_NAMED = 3
_BATCH = 10_000
# A transaction that writes may take so long until its rows are seen.
_SLACK = timedelta(minutes=10)

_ON_CONFLICT = """
    ON CONFLICT (seconds, pool, flavor, region, time) DO UPDATE SET
        most_serving_units = greatest(u.most_serving_units, excluded.most_serving_units),
        most_held_units = greatest(u.most_held_units, excluded.most_held_units),
        most_retained_units = greatest(u.most_retained_units, excluded.most_retained_units),
        most_used_units = greatest(u.most_used_units, excluded.most_used_units),
        nominal_units = excluded.nominal_units, serving_units = excluded.serving_units,
        held_units = excluded.held_units, retained_units = excluded.retained_units"""

# Records rows of `changed`: pool, flavor, region, what each number is now, and by how much it has changed.
RECORD = f"""
    INSERT INTO usage_points AS u (seconds, pool, flavor, region, time,
        most_serving_units, most_held_units, most_retained_units, most_used_units,
        nominal_units, serving_units, held_units, retained_units)
    SELECT 60, pool, flavor, region, date_bin('1 minute', clock_timestamp(), 'epoch'),
        greatest(serving_units, serving_units - serving), greatest(held_units, held_units - held),
        greatest(retained_units, retained_units - retained), greatest(used_units, used_units - used),
        nominal_units, serving_units, held_units, retained_units
    FROM changed {_ON_CONFLICT}"""


async def record(conn: Connection, pool: str) -> None:
    """Records what a pool owns and uses now; its balances are locked."""
    await conn.execute(
        f"""WITH changed AS (
                SELECT pool, flavor, region, nominal_units, serving_units, held_units, retained_units, used_units,
                    0 AS serving, 0 AS held, 0 AS retained, 0 AS used
                FROM balances WHERE pool = $1
            ) {RECORD}""",
        pool,
    )


async def roll_up(database: Database, resolution: timedelta) -> None:
    """Makes rows of a resolution from finer ones, those that may have changed since the last time. Repeatable."""
    await database.execute(
        f"""
        INSERT INTO usage_points AS u (seconds, pool, flavor, region, time,
            most_serving_units, most_held_units, most_retained_units, most_used_units,
            nominal_units, serving_units, held_units, retained_units)
        SELECT $1, pool, flavor, region, bin,
            max(most_serving_units), max(most_held_units), max(most_retained_units), max(most_used_units),
            (array_agg(nominal_units ORDER BY time DESC))[1], (array_agg(serving_units ORDER BY time DESC))[1],
            (array_agg(held_units ORDER BY time DESC))[1], (array_agg(retained_units ORDER BY time DESC))[1]
        FROM (
            SELECT *, date_bin($3, time, 'epoch') AS bin FROM usage_points
            WHERE seconds = $2 AND time >= coalesce(
                (SELECT date_bin($3, max(time) - $4::interval, 'epoch') FROM usage_points WHERE seconds = $1),
                '-infinity')
        ) f
        GROUP BY pool, flavor, region, bin {_ON_CONFLICT}
        """,
        _seconds(resolution),
        _seconds(FINER[resolution]),
        resolution,
        _SLACK,
    )


async def forget(database: Database) -> None:
    """Deletes rows that are older than they are kept, some at a time.

    Of the coarsest the newest of each place stays, so that what has not changed for longer is still known.
    """
    for resolution, kept in KEPT.items():
        newer = """AND EXISTS (
            SELECT FROM usage_points n WHERE n.seconds = u.seconds AND n.pool = u.pool AND n.flavor = u.flavor
            AND n.region = u.region AND n.time > u.time AND n.time < now() - $2::interval)"""
        deleted = _BATCH
        while deleted == _BATCH:
            tag = await database.execute(
                f"""DELETE FROM usage_points WHERE ctid = ANY(ARRAY(
                        SELECT ctid FROM usage_points u WHERE seconds = $1 AND time < now() - $2::interval
                        {newer if resolution == DAY else ""} LIMIT {_BATCH}))""",
                _seconds(resolution),
                kept,
            )
            deleted = int(tag.removeprefix("DELETE "))


async def places(reads: Reads, pool: str, flavor: str, region: str) -> list[Place]:
    """Returns where a pool owns or uses something; empty filters match all."""
    rows = await reads.fetch(
        """SELECT flavor, region FROM balances
           WHERE pool = $1 AND ($2 = '' OR flavor = $2) AND ($3 = '' OR region = $3)
           ORDER BY flavor, region LIMIT $4""",
        pool,
        flavor,
        region,
        MAX_SERIES,
    )
    return [Place(**row) for row in rows]


async def before(reads: Reads, pool: str, wanted: Sequence[Place], start: datetime) -> dict[Place, Level]:
    """Returns how places were just before a time; those of which nothing is known that old are left out.

    The newest row of the finest resolution that has one: the finer are forgotten first.
    """
    rows = await reads.fetch(
        """
        SELECT place.flavor, place.region, b.nominal_units, b.serving_units, b.held_units, b.retained_units
        FROM unnest($2::text[], $3::text[]) place (flavor, region), LATERAL (
            SELECT u.* FROM (VALUES (60), (300), (3600), (86400)) s (seconds), LATERAL (
                SELECT nominal_units, serving_units, held_units, retained_units FROM usage_points
                WHERE seconds = s.seconds AND pool = $1 AND flavor = place.flavor AND region = place.region
                AND time <= $4::timestamptz - make_interval(secs => s.seconds) ORDER BY time DESC LIMIT 1
            ) u ORDER BY s.seconds LIMIT 1
        ) b
        """,
        pool,
        [place.flavor for place in wanted],
        [place.region for place in wanted],
        start,
    )
    return {
        Place(row["flavor"], row["region"]): Level(
            row["nominal_units"], row["serving_units"], row["held_units"], row["retained_units"]
        )
        for row in rows
    }


# Rows of the window's resolution, and the newest minutes, which may not be in coarser rows yet.
CHANGES = """
    SELECT place.flavor, place.region, date_bin($4, u.time, 'epoch') AS time,
        max(most_serving_units) AS serving_units, max(most_held_units) AS held_units,
        max(most_retained_units) AS retained_units, max(most_used_units) AS used_units,
        (array_agg(ARRAY[nominal_units, u.serving_units, u.held_units, u.retained_units]
            ORDER BY u.time DESC, u.seconds))[1:1] AS last
    FROM unnest($2::text[], $3::text[]) place (flavor, region), LATERAL (
        SELECT * FROM usage_points WHERE seconds = $5 AND pool = $1
            AND flavor = place.flavor AND region = place.region AND time >= $6 AND time < $7
        UNION ALL SELECT * FROM usage_points WHERE seconds = 60 AND $5 > 60 AND pool = $1
            AND flavor = place.flavor AND region = place.region AND time < $7
            AND time >= greatest($6, now() - $8::interval)
    ) u
    GROUP BY place.flavor, place.region, date_bin($4, u.time, 'epoch')"""
# For longer than any roll-up waits.
NEWEST = 2 * HOUR


async def changes(
    reads: Reads, pool: str, wanted: Sequence[Place], asked: Window
) -> Mapping[Place, Mapping[datetime, Change]]:
    """Returns the steps of a window in which places changed, by place and begin."""
    rows = await reads.fetch(
        CHANGES,
        pool,
        [place.flavor for place in wanted],
        [place.region for place in wanted],
        asked.step,
        _seconds(asked.resolution),
        asked.start,
        asked.end,
        NEWEST,
    )
    found: defaultdict[Place, dict[datetime, Change]] = defaultdict(dict)
    for row in rows:
        accounts = (row["serving_units"], row["held_units"], row["retained_units"], row["used_units"])
        found[Place(row["flavor"], row["region"])][row["time"]] = Change(*accounts, Level(*row["last"][0]))
    return found


async def remedies(reads: Reads, missing: Mapping[tuple[str, Place], int]) -> dict[tuple[str, Place], str]:
    """Returns what would free units for pools in places: who uses most there, in the pool and in its organisation.

    Only pools that use what others may use as well are named, beside the pool itself; of each kind of usage a few.
    """
    wanted = list(missing)
    if not wanted:
        return {}
    rows = await reads.fetch(
        """
        SELECT wanted.position, found.* FROM unnest($1::text[], $2::text[], $3::text[])
            WITH ORDINALITY wanted (pool, flavor, region, position)
        JOIN pools o ON o.name = wanted.pool,
        LATERAL (
            SELECT array_agg(b.pool) AS names FROM balances b JOIN pools m ON m.name = b.pool
            WHERE (m.name = coalesce(o.parent, o.name) OR m.parent = coalesce(o.parent, o.name))
            AND b.flavor = wanted.flavor AND b.region = wanted.region
            AND (b.pool = wanted.pool OR b.parent IS NULL OR b.used_units > b.local_units)
        ) users,
        LATERAL (
            (SELECT 'HELD' AS account, r.launch AS name, r.pool, i.hold_units AS units,
                r.expected_release_time AS until
            FROM reservations r JOIN reservation_items i ON i.reservation = r.name
            WHERE r.state = 'HELD' AND r.pool = ANY(users.names) AND i.flavor = wanted.flavor
            AND i.region = wanted.region AND i.hold_units > 0
            ORDER BY i.hold_units DESC, r.launch LIMIT $4)
            UNION ALL
            (SELECT 'RETAINED', r.launch, r.pool, i.retained_units, r.retain_until
            FROM reservations r JOIN reservation_items i ON i.reservation = r.name
            WHERE r.retain_until IS NOT NULL AND r.pool = ANY(users.names) AND i.flavor = wanted.flavor
            AND i.region = wanted.region AND i.retained_units > 0
            ORDER BY i.retained_units DESC, r.launch LIMIT $4)
            UNION ALL
            (SELECT 'SERVING', b.model, b.pool, b.units, NULL FROM bookings b
            WHERE b.pool = ANY(users.names) AND b.flavor = wanted.flavor AND b.region = wanted.region
            ORDER BY b.units DESC, b.model LIMIT $4)
        ) found
        """,
        [pool for pool, _ in wanted],
        [place.flavor for _, place in wanted],
        [place.region for _, place in wanted],
        _NAMED,
    )
    users: defaultdict[int, list[User]] = defaultdict(list)
    for row in rows:
        users[row["position"]].append(
            User(Account(row["account"]), row["name"], row["pool"], row["units"], row["until"])
        )
    return {
        (pool, place): remedy(pool, missing[pool, place], users[position])
        for position, (pool, place) in enumerate(wanted, 1)
    }


async def explained(reads: Reads, shortages: Sequence[QuotaShortage]) -> list[QuotaShortage]:
    """Returns shortages with what would free enough, where a quota was cut: the first few, as a message shows them."""
    lacking = {
        (one.pool, Place(one.flavor, one.region)): one.requested - one.available
        for one in shortages[:_NAMED]
        if one.available < 0
    }
    found = await remedies(reads, lacking)
    return [replace(one, remedy=found.get((one.pool, Place(one.flavor, one.region)), "")) for one in shortages]


def _seconds(resolution: timedelta) -> int:
    return int(resolution.total_seconds())
