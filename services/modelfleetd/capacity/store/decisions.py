"""Decisions on launches in PostgreSQL, as they were answered."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """A decision in the bytes of its message, and its place in the order of creation."""

    sequence: int
    answer: bytes


async def insert(conn: Connection, name: str, candidate: str, launch: str, answer: bytes) -> None:
    await conn.execute(
        "INSERT INTO launch_decisions (name, candidate, launch, answer) VALUES ($1, $2, $3, $4)",
        name,
        candidate,
        launch,
        answer,
    )


async def get(reads: Reads, name: str) -> bytes:
    """Raises ResourceNotFound where there is no such decision."""
    answer: bytes | None = await reads.fetchval("SELECT answer FROM launch_decisions WHERE name = $1", name)
    if answer is None:
        raise ResourceNotFound(name)
    return answer


async def candidate_of(reads: Reads, name: str) -> str | None:
    """Returns the model that a decision is about; None where there is no such decision."""
    found: str | None = await reads.fetchval("SELECT candidate FROM launch_decisions WHERE name = $1", name)
    return found


async def page(reads: Reads, candidate: str, launch: str, before: int, limit: int) -> list[StoredDecision]:
    """Returns decisions that were made before a sequence number, newest first.

    Args:
        reads: where from.
        candidate: only of this model; empty: of all.
        launch: only of this launch; empty: of all.
        before: the sequence number.
        limit: how many.
    """
    given = [(column, value) for column, value in (("candidate", candidate), ("launch", launch)) if value]
    conditions = "".join(f" AND {column} = ${index}" for index, (column, _) in enumerate(given, start=3))
    rows = await reads.fetch(
        f"""SELECT sequence, answer FROM launch_decisions WHERE sequence < $1{conditions}
            ORDER BY sequence DESC LIMIT $2""",
        before,
        limit,
        *(value for _, value in given),
    )
    return [StoredDecision(row["sequence"], row["answer"]) for row in rows]
