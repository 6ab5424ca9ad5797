"""Reservations in PostgreSQL. What they change of a pool's usage is written by balances.py in the same transaction."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from modelfleetd.capacity.domain.admission import Admission
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.reservation import (
    HoldItem,
    Kept,
    Outcome,
    Promise,
    Reservation,
    State,
    Tier,
)
from modelfleetd.capacity.domain.settlement import Settled, Settlement
from modelfleetd.capacity.domain.waiting import Release
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Record

_COLUMNS = """name, sequence, version, uid::text, pool, launch, state, replaced_models, tier, expected_release_time,
    expected_retain_duration, time_to_live, promises, expected_hold_time, position, hold_time, renew_time,
    holder_absent, message, attempt, expire_time, activate_time, outcome, retain_duration, retain, retain_until,
    create_time, update_time"""
_CHANGED = "update_time = now(), version = version + 1"
# What is promised is looked for among so many releases, the next first.
_RELEASES = 1000


@dataclass(frozen=True, slots=True)
class Numbered:
    """A reservation and its place in the order of creation."""

    sequence: int
    reservation: Reservation


async def get(reads: Reads, name: str) -> Reservation:
    """Raises ResourceNotFound where there is no such reservation."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM reservations WHERE name = $1", name)
    if row is None:
        raise ResourceNotFound(name)
    return (await _whole(reads, [row]))[0]


async def pool_of(reads: Reads, name: str) -> str | None:
    """Returns the pool of a reservation; None where there is no such reservation."""
    found: str | None = await reads.fetchval("SELECT pool FROM reservations WHERE name = $1", name)
    return found


async def page(
    reads: Reads, pool: str, launch: str, before: int, limit: int, *, only_waiting: bool = False
) -> list[Numbered]:
    """Returns reservations that were made before a sequence number, newest first; empty filters match all."""
    conditions = ["sequence < $1"]
    if only_waiting:
        conditions.append("state = 'PENDING'")
    filters: list[object] = [before, limit]
    for column, value in (("pool", pool), ("launch", launch)):
        if value:
            filters.append(value)
            conditions.append(f"{column} = ${len(filters)}")
    rows = await reads.fetch(
        f"""SELECT {_COLUMNS} FROM reservations WHERE {" AND ".join(conditions)}
            ORDER BY sequence DESC LIMIT $2""",
        *filters,
    )
    whole = await _whole(reads, rows)
    return [Numbered(row["sequence"], reservation) for row, reservation in zip(rows, whole, strict=True)]


async def lock(conn: Connection, name: str) -> Reservation:
    """Returns a reservation that nobody else changes before the transaction ends. Raises ResourceNotFound."""
    row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM reservations WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise ResourceNotFound(name)
    return (await _whole(conn, [row]))[0]


async def lock_expired(conn: Connection) -> Reservation | None:
    """Returns one that waits, or is held and was never activated, whose time ran out by the database's clock; or None.

    Passes over those that somebody else is working on.
    """
    return await _lock_first(
        conn, "state IN ('PENDING', 'HELD') AND activate_time IS NULL AND expire_time <= now() ORDER BY expire_time"
    )


async def lock_releasable(conn: Connection) -> Reservation | None:
    """Returns a settled reservation whose rollback window is over; None where none is left."""
    return await _lock_first(conn, "retain_until <= now() ORDER BY retain_until")


async def _lock_first(conn: Connection, condition: str) -> Reservation | None:
    row = await conn.fetchrow(
        f"SELECT {_COLUMNS} FROM reservations WHERE {condition} LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    return None if row is None else (await _whole(conn, [row]))[0]


@dataclass(frozen=True, slots=True)
class Live:
    """What is known of some launches at the time of a transaction.

    Attributes:
        reservations: the live ones, by launch and attempt.
        attempts: the newest attempt that has had one, by launch.
    """

    now: datetime
    reservations: dict[tuple[str, int], str]
    attempts: dict[str, int]


# Attempts follow each other, so that the newest reservation is the newest attempt's.
LIVE = """
SELECT now() AS now, asked.launch, r.name, r.attempt, newest.attempt AS newest
FROM unnest($1::text[]) AS asked (launch)
LEFT JOIN reservations r ON r.launch = asked.launch AND r.state IN ('PENDING', 'HELD')
LEFT JOIN LATERAL (
    SELECT attempt FROM reservations WHERE launch = asked.launch ORDER BY sequence DESC LIMIT 1) newest ON true
"""


async def live(reads: Reads, launches: Collection[str]) -> Live:
    """Returns what launches have reserved, of one launch at least, and what time it is by the database's clock."""
    rows = await reads.fetch(LIVE, list(launches))
    return Live(
        rows[0]["now"],
        {(row["launch"], row["attempt"]): row["name"] for row in rows if row["name"] is not None},
        {row["launch"]: row["newest"] for row in rows if row["newest"] is not None},
    )


INSERT = """
WITH made AS (
    INSERT INTO reservations (name, uid, pool, launch, state, replaced_models, tier, expected_release_time,
        expected_retain_duration, time_to_live, expire_time, hold_time, promises, expected_hold_time, position, message,
        attempt)
    SELECT name, uid, pool, launch, state, string_to_array(replaced, ' '), tier, release, retain, ttl, now() + ttl,
        CASE WHEN state = 'HELD' THEN now() END, promises::jsonb, hold_at, place, message,
        attempt
    FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[],
        $9::interval[], $10::interval[], $11::text[], $12::timestamptz[], $13::int[], $14::text[], $28::int[])
        new (name, uid, pool, launch, state, replaced, tier, release, retain, ttl, promises, hold_at, place, message,
             attempt)
    ON CONFLICT DO NOTHING RETURNING name
), items AS (
    INSERT INTO reservation_items (reservation, position, flavor, region, hold_units, moved_units, end_units)
    SELECT item.* FROM made, unnest($15::text[], $16::int[], $17::text[], $18::text[], $19::bigint[], $20::bigint[],
        $21::bigint[]) item (reservation, position, flavor, region, hold_units, moved_units, end_units)
    WHERE reservation = name
), models AS (
    INSERT INTO reservation_models (reservation, kind, position, model, flavor, region, units)
    SELECT reservation, 'MOVED', position, model, flavor, region, units FROM made, unnest(
        $22::text[], $23::int[], $24::text[], $25::text[], $26::text[], $27::bigint[])
        moved (reservation, position, model, flavor, region, units)
    WHERE reservation = name
)
SELECT count(*) FROM made
"""


async def insert(conn: Connection, made: Sequence[Reservation]) -> bool:
    """Stores reservations, in the order of their age. False where a launch of one has got a live one meanwhile."""
    items = [(one.name, at, item) for one in made for at, item in enumerate(one.items)]
    moved = [(one.name, at, units) for one in made for at, units in enumerate(one.moved)]
    count: int = await conn.fetchval(
        INSERT,
        [one.name for one in made],
        [one.uid for one in made],
        [one.pool for one in made],
        [one.launch for one in made],
        [one.state.value for one in made],
        [" ".join(one.replaced_models) for one in made],
        [_tier(one.tier) for one in made],
        [one.expected_release_time for one in made],
        [one.expected_retain_duration for one in made],
        [one.time_to_live for one in made],
        [json.dumps([_stored(promise) for promise in one.promises]) for one in made],
        [one.expected_hold_time for one in made],
        [one.position for one in made],
        [one.message for one in made],
        [name for name, _, _ in items],
        [at for _, at, _ in items],
        [item.flavor for _, _, item in items],
        [item.region for _, _, item in items],
        [item.hold_units for _, _, item in items],
        [item.moved_units for _, _, item in items],
        [item.end_units for _, _, item in items],
        [name for name, _, _ in moved],
        [at for _, at, _ in moved],
        [units.model for _, _, units in moved],
        [units.flavor for _, _, units in moved],
        [units.region for _, _, units in moved],
        [units.units for _, _, units in moved],
        [one.attempt for one in made],
    )
    return count == len(made)


# The pools of the organisation of one of them: the pool, its parent, and all that have the same one.
_ORGANISATION = """
    SELECT name FROM pools, (SELECT coalesce(parent, name) AS top FROM pools WHERE name = $1) o
    WHERE name = top OR parent = top"""


WAITING = f"""
SELECT {_COLUMNS} FROM reservations WHERE state = 'PENDING' AND pool IN ({_ORGANISATION}) ORDER BY sequence
"""


async def waiting(reads: Reads, pool: str) -> list[Reservation]:
    """Returns all that wait in the organisation of a pool, in the order of their age."""
    rows = await reads.fetch(WAITING, pool)
    return await _whole(reads, rows) if rows else []


async def organisations_waiting(reads: Reads) -> list[str]:
    """Returns the topmost pools of the organisations in which somebody waits."""
    rows = await reads.fetch(
        """SELECT DISTINCT coalesce(p.parent, p.name) AS top FROM reservations r JOIN pools p ON p.name = r.pool
           WHERE r.state = 'PENDING' ORDER BY top"""
    )
    return [row["top"] for row in rows]


RELEASES = f"""
WITH own AS MATERIALIZED ({_ORGANISATION}
), ends AS (
    SELECT held.* FROM own, LATERAL (
        SELECT name, pool, launch, expected_release_time + expected_retain_duration AS time, true AS is_held
        FROM reservations WHERE pool = own.name AND state = 'HELD' AND expected_release_time IS NOT NULL
        ORDER BY expected_release_time LIMIT {_RELEASES}) held
    UNION ALL SELECT kept.* FROM own, LATERAL (
        SELECT name, pool, launch, retain_until, false FROM reservations
        WHERE pool = own.name AND retain_until IS NOT NULL ORDER BY retain_until LIMIT {_RELEASES}) kept
    ORDER BY time LIMIT {_RELEASES}
)
SELECT time, name, flavor, region, pool, launch, units
FROM ends JOIN reservation_items i ON i.reservation = ends.name,
    LATERAL (SELECT CASE WHEN is_held THEN hold_units - end_units ELSE retained_units END AS units) freed
WHERE units > 0 AND (flavor, region) IN (SELECT * FROM unnest($2::text[], $3::text[]))
"""


async def releases(reads: Reads, pool: str, places: Collection[Place]) -> list[Release]:
    """Returns what will be free in some places of a pool's organisation, of the nearest 1,000.

    At the ends of launches that are held, as far as they say when that is, and of what is kept for rollbacks.
    """
    rows = await reads.fetch(
        RELEASES,
        pool,
        [place.flavor for place in places],
        [place.region for place in places],
    )
    return [
        Release(row["time"], row["name"], row["flavor"], row["region"], row["pool"], row["launch"], row["units"])
        for row in rows
    ]


async def set_held(conn: Connection, name: str, admission: Admission) -> None:
    """Makes one that waited a hold of what was admitted; its time begins anew."""
    await conn.execute(
        f"""
        WITH held AS (
            UPDATE reservations SET state = 'HELD', hold_time = now(), expire_time = now() + time_to_live,
                promises = '[]', expected_hold_time = NULL, position = 0, message = '', {_CHANGED}
            WHERE name = $1
        ), items AS (
            UPDATE reservation_items i SET hold_units = h.hold_units, moved_units = h.moved_units
            FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[]) h (flavor, region, hold_units, moved_units)
            WHERE i.reservation = $1 AND i.flavor = h.flavor AND i.region = h.region
        )
        INSERT INTO reservation_models (reservation, kind, position, model, flavor, region, units)
        SELECT $1, 'MOVED', moved.*
        FROM unnest($6::int[], $7::text[], $8::text[], $9::text[], $10::bigint[]) moved
        """,
        name,
        [item.flavor for item in admission.items],
        [item.region for item in admission.items],
        [item.hold_units for item in admission.items],
        [item.moved_units for item in admission.items],
        *_columns_of(admission.moved),
    )


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one that waits is told: what for, until when, how many are before it."""

    reservation: str
    promises: tuple[Promise, ...]
    expected_hold_time: datetime | None
    position: int
    message: str


async def set_outlooks(conn: Connection, outlooks: Sequence[Outlook]) -> None:
    """Tells those who wait what has changed for them; the others are not touched."""
    await conn.execute(
        f"""
        UPDATE reservations r SET promises = o.promises::jsonb, expected_hold_time = o.hold_at, position = o.place,
            message = o.message, {_CHANGED}
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::int[], $5::text[])
            o (name, promises, hold_at, place, message)
        WHERE r.name = o.name AND r.state = 'PENDING'
            AND (r.promises, r.expected_hold_time, r.position, r.message)
                IS DISTINCT FROM (o.promises::jsonb, o.hold_at, o.place, o.message)
        """,
        [one.reservation for one in outlooks],
        [json.dumps([_stored(promise) for promise in one.promises]) for one in outlooks],
        [one.expected_hold_time for one in outlooks],
        [one.position for one in outlooks],
        [one.message for one in outlooks],
    )


async def set_renewed(conn: Connection, name: str, time_to_live: timedelta, release: datetime | None) -> Reservation:
    """Takes note that the holder is there, and of when it expects to end, where it says so."""
    await conn.execute(
        f"""UPDATE reservations SET renew_time = now(), time_to_live = $2,
                expire_time = CASE WHEN activate_time IS NULL THEN now() + $2 ELSE expire_time END,
                expected_release_time = coalesce($3, expected_release_time),
                message = CASE WHEN holder_absent THEN '' ELSE message END, holder_absent = false, {_CHANGED}
            WHERE name = $1""",
        name,
        time_to_live,
        release,
    )
    return await get(conn, name)


@dataclass(frozen=True, slots=True)
class Absent:
    """A hold that is in use and whose holder was not heard of."""

    name: str
    launch: str
    pool: str
    renew_time: datetime


async def mark_absent(conn: Connection, after: timedelta, most: int) -> list[Absent]:
    """Marks activated holds whose holders were not heard of for so long, and returns those that were not marked before.

    Passes over those that somebody else is working on.
    """
    rows = await conn.fetch(
        f"""
        UPDATE reservations SET holder_absent = true, {_CHANGED}, message = format(
            'Its holder was last heard of at %s UTC. What runs stays held: see what became of the launch.',
            to_char(renew_time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'))
        WHERE name IN (
            SELECT name FROM reservations
            WHERE state = 'HELD' AND activate_time IS NOT NULL AND NOT holder_absent
                AND renew_time < now() - $1::interval
            ORDER BY renew_time LIMIT $2 FOR UPDATE SKIP LOCKED)
        RETURNING name, launch, pool, renew_time
        """,
        after,
        most,
    )
    return [Absent(**row) for row in rows]


async def count_absent(reads: Reads) -> int:
    """Returns how many holders are marked as absent."""
    found: int = await reads.fetchval("SELECT count(*) FROM reservations WHERE holder_absent")
    return found


async def version(reads: Reads, name: str) -> int:
    """Returns the version of a reservation: it grows with every change. Raises ResourceNotFound."""
    found: int | None = await reads.fetchval("SELECT version FROM reservations WHERE name = $1", name)
    if found is None:
        raise ResourceNotFound(name)
    return found


async def set_activated(conn: Connection, name: str) -> Reservation:
    await conn.execute(
        f"UPDATE reservations SET activate_time = now(), renew_time = now(), {_CHANGED} WHERE name = $1", name
    )
    return await get(conn, name)


async def set_ended(conn: Connection, name: str, state: State, message: str) -> Reservation:
    """Ends a reservation that was never activated, and says how."""
    await conn.execute(
        f"""UPDATE reservations SET state = $2, promises = '[]', expected_hold_time = NULL, position = 0, message = $3,
                {_CHANGED} WHERE name = $1""",
        name,
        state.value,
        message,
    )
    return await get(conn, name)


async def set_settled(conn: Connection, name: str, settlement: Settlement, settled: Settled) -> Reservation:
    await conn.execute(
        f"""
        WITH ended AS (
            UPDATE reservations SET state = 'SETTLED', outcome = $2, retain_duration = $3, retain = $13::text::jsonb,
                holder_absent = false, message = '', retain_until = CASE WHEN $4 THEN now() + $3 END, {_CHANGED}
            WHERE name = $1
        ), kept AS (
            UPDATE reservation_items i SET retained_units = k.units
            FROM unnest($5::text[], $6::text[], $7::bigint[]) k (flavor, region, units)
            WHERE i.reservation = $1 AND i.flavor = k.flavor AND i.region = k.region
        )
        INSERT INTO reservation_models (reservation, kind, position, model, flavor, region, units)
        SELECT $1, 'SETTLED', booked.*
        FROM unnest($8::int[], $9::text[], $10::text[], $11::text[], $12::bigint[]) booked
        """,
        name,
        settlement.outcome.value,
        settlement.retain_duration,
        bool(settled.retained),
        [item.flavor for item in settled.retained],
        [item.region for item in settled.retained],
        [item.hold_units for item in settled.retained],
        *_columns_of(settled.booked),
        json.dumps([{"flavor": one.flavor, "region": one.region, "units": one.units} for one in settlement.retain]),
    )
    return await get(conn, name)


async def set_released(conn: Connection, name: str) -> None:
    await conn.execute("UPDATE reservation_items SET retained_units = 0 WHERE reservation = $1", name)
    await conn.execute(f"UPDATE reservations SET retain_until = NULL, {_CHANGED} WHERE name = $1", name)


def _columns_of(units: Sequence[ModelUnits]) -> tuple[list[int], list[str], list[str], list[str], list[int]]:
    return (
        list(range(len(units))),
        [unit.model for unit in units],
        [unit.flavor for unit in units],
        [unit.region for unit in units],
        [unit.units for unit in units],
    )


async def _whole(reads: Reads, rows: Sequence[Record]) -> list[Reservation]:
    """Completes reservations with their items and models: two statements however many there are."""
    names = [row["name"] for row in rows]
    items: defaultdict[str, list[tuple[HoldItem, int]]] = defaultdict(list)
    for row in await reads.fetch(
        """SELECT reservation, flavor, region, hold_units, moved_units, end_units, retained_units FROM reservation_items
           WHERE reservation = ANY($1) ORDER BY reservation, position""",
        names,
    ):
        item = HoldItem(row["flavor"], row["region"], row["hold_units"], row["moved_units"], row["end_units"])
        items[row["reservation"]].append((item, row["retained_units"]))
    models: defaultdict[tuple[str, str], list[ModelUnits]] = defaultdict(list)
    for row in await reads.fetch(
        """SELECT reservation, kind, model, flavor, region, units FROM reservation_models
           WHERE reservation = ANY($1) ORDER BY reservation, kind, position""",
        names,
    ):
        units = ModelUnits(row["model"], row["flavor"], row["region"], row["units"])
        models[row["reservation"], row["kind"]].append(units)
    return [
        _reservation(
            row,
            [item for item, _ in items[row["name"]]],
            models[row["name"], "MOVED"],
            models[row["name"], "SETTLED"],
            [HoldItem(item.flavor, item.region, kept) for item, kept in items[row["name"]] if kept],
        )
        for row in rows
    ]


def _reservation(
    row: Record,
    items: Iterable[HoldItem],
    moved: Iterable[ModelUnits],
    settled: Iterable[ModelUnits],
    retained: Iterable[HoldItem],
) -> Reservation:
    return Reservation(
        name=row["name"],
        uid=row["uid"],
        pool=row["pool"],
        launch=row["launch"],
        state=State(row["state"]),
        items=tuple(items),
        replaced_models=tuple(row["replaced_models"]),
        moved=tuple(moved),
        settled=tuple(settled),
        retained=tuple(retained),
        create_time=row["create_time"],
        update_time=row["update_time"],
        expire_time=row["expire_time"],
        activate_time=row["activate_time"],
        retain_until=row["retain_until"],
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        retain_duration=row["retain_duration"],
        retain=tuple(Kept(**kept) for kept in row["retain"]),
        tier=None if row["tier"] is None else Tier[row["tier"]],
        expected_release_time=row["expected_release_time"],
        expected_retain_duration=row["expected_retain_duration"],
        time_to_live=row["time_to_live"],
        promises=tuple(_promise(stored) for stored in row["promises"]),
        expected_hold_time=row["expected_hold_time"],
        position=row["position"],
        hold_time=row["hold_time"],
        renew_time=row["renew_time"],
        holder_absent=row["holder_absent"],
        message=row["message"],
        sequence=row["sequence"],
        version=row["version"],
        attempt=row["attempt"],
    )


def _tier(tier: Tier | None) -> str | None:
    return None if tier is None else tier.name


def _stored(promise: Promise) -> dict[str, Any]:
    return dataclasses.asdict(promise) | {"expected_time": promise.expected_time.isoformat()}


def _promise(stored: Mapping[str, Any]) -> Promise:
    return Promise(**(dict(stored) | {"expected_time": datetime.fromisoformat(stored["expected_time"])}))
