"""Reservations in PostgreSQL. What they change of a pool's usage is written by balances.py in the same transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from modelfleetd.capacity.domain.admission import Admission
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Outcome, Reservation, State
from modelfleetd.capacity.domain.settlement import Settled, Settlement
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import ResourceExists, ResourceNotFound
from modelfleetd.kit.db import Connection, Record

_COLUMNS = """name, uid::text, pool, launch, state, replaced_models, expire_time, activate_time, outcome,
    retain_duration, retain_until, create_time, update_time"""


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


async def page(reads: Reads, pool: str, launch: str, before: int, limit: int) -> list[Numbered]:
    """Returns reservations that were made before a sequence number, newest first; empty filters match all."""
    conditions = ["sequence < $1"]
    filters: list[object] = [before, limit]
    for column, value in (("pool", pool), ("launch", launch)):
        if value:
            filters.append(value)
            conditions.append(f"{column} = ${len(filters)}")
    rows = await reads.fetch(
        f"""SELECT sequence, {_COLUMNS} FROM reservations WHERE {" AND ".join(conditions)}
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
    """Returns a hold that was never activated and whose time ran out by the database's clock; None where none is left.

    Passes over those that somebody else is working on.
    """
    return await _lock_first(
        conn, "state = 'HELD' AND activate_time IS NULL AND expire_time <= now() ORDER BY expire_time"
    )


async def lock_releasable(conn: Connection) -> Reservation | None:
    """Returns a settled reservation whose rollback window is over; None where none is left."""
    return await _lock_first(conn, "retain_until <= now() ORDER BY retain_until")


async def _lock_first(conn: Connection, condition: str) -> Reservation | None:
    row = await conn.fetchrow(
        f"SELECT {_COLUMNS} FROM reservations WHERE {condition} LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    return None if row is None else (await _whole(conn, [row]))[0]


async def insert(
    conn: Connection, name: str, asked: Asked, admission: Admission, time_to_live: timedelta
) -> Reservation:
    """Makes a reservation that holds what was admitted. Raises ResourceExists when the launch has a live one."""
    row = await conn.fetchrow(
        f"""
        WITH made AS (
            INSERT INTO reservations (name, pool, launch, state, replaced_models, expire_time)
            VALUES ($1, $2, $3, 'HELD', $4, now() + $5)
            ON CONFLICT (launch) WHERE state IN ('PENDING', 'HELD') DO NOTHING RETURNING *
        ), items AS (
            INSERT INTO reservation_items (reservation, position, flavor, region, hold_units, moved_units)
            SELECT name, item.* FROM made, unnest($6::int[], $7::text[], $8::text[], $9::bigint[], $10::bigint[]) item
        ), models AS (
            INSERT INTO reservation_models (reservation, kind, position, model, flavor, region, units)
            SELECT name, 'MOVED', moved.* FROM made,
                unnest($11::int[], $12::text[], $13::text[], $14::text[], $15::bigint[]) moved
        )
        SELECT {_COLUMNS} FROM made
        """,
        name,
        asked.pool,
        asked.launch,
        list(asked.replaced_models),
        time_to_live,
        list(range(len(admission.items))),
        [item.flavor for item in admission.items],
        [item.region for item in admission.items],
        [item.hold_units for item in admission.items],
        [item.moved_units for item in admission.items],
        *_columns_of(admission.moved),
    )
    if row is None:
        live = await conn.fetchval(
            "SELECT name FROM reservations WHERE launch = $1 AND state IN ('PENDING', 'HELD')", asked.launch
        )
        raise ResourceExists(live or asked.launch)
    return _reservation(row, admission.items, admission.moved, (), ())


async def set_activated(conn: Connection, name: str) -> Reservation:
    await conn.execute("UPDATE reservations SET activate_time = now(), update_time = now() WHERE name = $1", name)
    return await get(conn, name)


async def set_state(conn: Connection, name: str, state: State) -> Reservation:
    """Ends a reservation that was never activated."""
    await conn.execute("UPDATE reservations SET state = $2, update_time = now() WHERE name = $1", name, state.value)
    return await get(conn, name)


async def set_settled(conn: Connection, name: str, settlement: Settlement, settled: Settled) -> Reservation:
    await conn.execute(
        """
        WITH ended AS (
            UPDATE reservations SET state = 'SETTLED', outcome = $2, retain_duration = $3, update_time = now(),
                retain_until = CASE WHEN $4 THEN now() + $3 END
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
    )
    return await get(conn, name)


async def set_released(conn: Connection, name: str) -> None:
    await conn.execute("UPDATE reservation_items SET retained_units = 0 WHERE reservation = $1", name)
    await conn.execute("UPDATE reservations SET retain_until = NULL, update_time = now() WHERE name = $1", name)


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
        """SELECT reservation, flavor, region, hold_units, moved_units, retained_units FROM reservation_items
           WHERE reservation = ANY($1) ORDER BY reservation, position""",
        names,
    ):
        item = HoldItem(row["flavor"], row["region"], row["hold_units"], row["moved_units"])
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
    )
