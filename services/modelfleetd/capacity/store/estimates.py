"""Estimates in PostgreSQL, and what pools have booked for a model."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection


@dataclass(frozen=True, slots=True)
class StoredEstimate:
    """An estimate as it was answered, in the bytes of its message, and its place in the order of creation."""

    sequence: int
    answer: bytes


async def insert(conn: Connection, name: str, model: str, answer: bytes) -> None:
    await conn.execute("INSERT INTO estimates (name, model, answer) VALUES ($1, $2, $3)", name, model, answer)


async def get(reads: Reads, name: str) -> bytes:
    """Raises ResourceNotFound where there is no such estimate."""
    answer: bytes | None = await reads.fetchval("SELECT answer FROM estimates WHERE name = $1", name)
    if answer is None:
        raise ResourceNotFound(name)
    return answer


async def model_of(reads: Reads, name: str) -> str | None:
    """Returns the model of an estimate; None where there is no such estimate."""
    found: str | None = await reads.fetchval("SELECT model FROM estimates WHERE name = $1", name)
    return found


async def page(reads: Reads, model: str, before: int, limit: int) -> list[StoredEstimate]:
    """Returns estimates that were made before a sequence number, newest first; of one model, or of all if empty."""
    rows = await reads.fetch(
        f"""SELECT sequence, answer FROM estimates WHERE sequence < $1 AND {"model = $3" if model else "true"}
            ORDER BY sequence DESC LIMIT $2""",
        before,
        limit,
        *([model] if model else []),
    )
    return [StoredEstimate(row["sequence"], row["answer"]) for row in rows]


async def booked_units(reads: Reads, model: str, flavor: str) -> dict[str, int]:
    """Returns what all pools together have booked for a model on a flavor, by region."""
    rows = await reads.fetch(
        "SELECT region, sum(units)::bigint AS units FROM bookings WHERE model = $1 AND flavor = $2 GROUP BY region",
        model,
        flavor,
    )
    return {row["region"]: row["units"] for row in rows}
