"""Recordings in PostgreSQL: what is wanted, how far it is, and who looks after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from modelfleetd.capacity.domain.recording import Progress, Recording, Source, State, Wanted
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Record

_NAMES = tuple(field.name for field in fields(Recording))
_COLUMNS = ", ".join(_NAMES)
_ENDED = "('READY', 'FAILED')"
_LIVE = "state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED')"


@dataclass(frozen=True, slots=True)
class Numbered:
    """A recording and its place in the order of creation."""

    sequence: int
    recording: Recording


@dataclass(frozen=True, slots=True)
class Claim:
    """A recording that this process looks after until its lease ends.

    Attributes:
        number: of this claim; newer than that of every claim before.
        stopped_by: who asked for its end; empty: nobody.
        deleted: its dataset, then its row, are to go.
    """

    recording: Recording
    number: int
    stopped_by: str
    deleted: bool


async def insert(conn: Connection, name: str, wanted: Wanted, uri: str, actor: str) -> Recording:
    row = await conn.fetchrow(
        f"""INSERT INTO recordings (name, model_type, region, source, sample_permille, max_bytes, max_requests,
                max_duration, retention_duration, path, uri, actor, expire_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, now() + $8::interval + $9::interval)
            RETURNING {_COLUMNS}""",
        name,
        wanted.model_type,
        wanted.region,
        wanted.source.value,
        wanted.sample_permille,
        wanted.max_bytes,
        wanted.max_requests,
        wanted.max_duration,
        wanted.retention_duration,
        wanted.path,
        uri,
        actor,
    )
    assert row is not None
    return _recording(row)


async def lock_places(conn: Connection) -> None:
    """Lets nobody else choose a place for a dataset before the transaction ends."""
    await conn.execute("LOCK TABLE recordings IN SHARE ROW EXCLUSIVE MODE")


async def holder_of(conn: Connection, uri: str) -> str | None:
    """Returns the recording whose dataset is in this place, above it or beneath it; None where there is none."""
    name: str | None = await conn.fetchval(
        """SELECT name FROM recordings
           WHERE uri = $1 OR starts_with(uri, $1 || '/') OR starts_with($1, uri || '/') LIMIT 1""",
        uri,
    )
    return name


async def get(reads: Reads, name: str) -> Recording:
    """Raises ResourceNotFound where there is no such recording."""
    return _found(
        await reads.fetchrow(f"SELECT {_COLUMNS} FROM recordings WHERE name = $1 AND NOT deleted", name), name
    )


async def model_type_of(reads: Reads, name: str) -> str | None:
    """Returns the model type of a recording; None where there is no such recording."""
    found: str | None = await reads.fetchval("SELECT model_type FROM recordings WHERE name = $1 AND NOT deleted", name)
    return found


async def page(reads: Reads, model_type: str, before: int, limit: int) -> list[Numbered]:
    """Returns recordings that were made before a sequence number, newest first; of one type, or of all if empty."""
    condition = "model_type = $3" if model_type else "true"
    rows = await reads.fetch(
        f"""SELECT sequence, {_COLUMNS} FROM recordings WHERE sequence < $1 AND NOT deleted AND {condition}
            ORDER BY sequence DESC LIMIT $2""",
        before,
        limit,
        *([model_type] if model_type else []),
    )
    return [Numbered(row["sequence"], _recording(row)) for row in rows]


async def lock(conn: Connection, name: str) -> Recording:
    """Returns a recording that nobody else changes before the transaction ends. Raises ResourceNotFound."""
    row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM recordings WHERE name = $1 AND NOT deleted FOR UPDATE", name)
    return _found(row, name)


async def replayed_by(conn: Connection, name: str) -> Sequence[str]:
    """Returns load tests that have not ended and replay a recording."""
    rows = await conn.fetch(f"SELECT name FROM load_tests WHERE recording = $1 AND {_LIVE} LIMIT 10", name)
    return [row["name"] for row in rows]


async def stop(conn: Connection, name: str, actor: str) -> Recording:
    """Asks for the end of a locked recording; whoever looks after it does so at once."""
    row = await conn.fetchrow(
        f"""UPDATE recordings SET look_time = now(), message = $3,
                stopped_by = CASE WHEN stopped_by = '' THEN $2 ELSE stopped_by END
            WHERE name = $1 RETURNING {_COLUMNS}""",
        name,
        actor,
        f"{actor} stops it.",
    )
    assert row is not None
    return _recording(row)


async def delete(conn: Connection, name: str) -> None:
    """Takes a locked recording out of sight; its dataset goes next, then its row."""
    await conn.execute("UPDATE recordings SET deleted = true, look_time = now() WHERE name = $1", name)


async def expire_one(conn: Connection) -> str | None:
    """Deletes a recording whose time is over and that nothing replays; returns its name, None where there is none."""
    name: str | None = await conn.fetchval(
        f"""SELECT name FROM recordings WHERE expire_time <= now() AND NOT deleted AND state IN {_ENDED}
            AND NOT EXISTS (SELECT 1 FROM load_tests WHERE recording = recordings.name AND load_tests.{_LIVE})
            ORDER BY expire_time LIMIT 1 FOR UPDATE SKIP LOCKED"""
    )
    # Asked again now that nobody else can begin to replay it.
    if name is not None and not await replayed_by(conn, name):
        await delete(conn, name)
    return name


async def claim(conn: Connection, lease_seconds: float) -> Claim | None:
    """Takes the recording that has waited longest for somebody to look at it; None where none does."""
    row = await conn.fetchrow(
        f"""UPDATE recordings SET claim = claim + 1, look_time = now() + make_interval(secs => $1)
            WHERE name = (
                SELECT name FROM recordings WHERE (deleted OR state IN ('PENDING', 'RECORDING')) AND look_time <= now()
                ORDER BY look_time LIMIT 1 FOR UPDATE SKIP LOCKED
            )
            RETURNING {_COLUMNS}, claim, stopped_by, deleted""",
        lease_seconds,
    )
    return None if row is None else Claim(_recording(row), row["claim"], row["stopped_by"], row["deleted"])


async def look_again(conn: Connection, claim: Claim, seconds: float) -> None:
    """Has somebody look at it in so many seconds, at once where its end was asked for meanwhile."""
    await conn.execute(
        """UPDATE recordings SET look_time = now() + make_interval(secs => CASE WHEN stopped_by = $4 THEN $3 ELSE 0 END)
           WHERE name = $1 AND claim = $2""",
        claim.recording.name,
        claim.number,
        seconds,
        claim.stopped_by,
    )


async def renew(conn: Connection, claim: Claim, seconds: float) -> bool:
    """Says that its holder is alive. False: somebody else claimed it."""
    done = await conn.execute(
        "UPDATE recordings SET look_time = now() + make_interval(secs => $3) WHERE name = $1 AND claim = $2",
        claim.recording.name,
        claim.number,
        seconds,
    )
    return done == "UPDATE 1"


async def advance(conn: Connection, claim: Claim, state: State, progress: Progress, digest: str = "") -> bool:
    """Records how far it is. False: it has ended, or somebody else claimed it."""
    done = await conn.execute(
        f"""UPDATE recordings SET state = $3, message = $4, requests = $5, bytes = $6, dropped_requests = $7,
                first_request_time = $8, last_request_time = $9, digest = $10,
                end_time = CASE WHEN $3 IN {_ENDED} THEN now() END,
                expire_time = CASE WHEN $3 IN {_ENDED} THEN now() + retention_duration ELSE expire_time END
            WHERE name = $1 AND claim = $2 AND state NOT IN {_ENDED}""",
        claim.recording.name,
        claim.number,
        state.value,
        progress.message,
        progress.requests,
        progress.bytes,
        progress.dropped_requests,
        progress.first_request_time,
        progress.last_request_time,
        digest,
    )
    return done == "UPDATE 1"


async def forget(conn: Connection, claim: Claim) -> None:
    """Removes the row of a deleted recording, its dataset being gone."""
    await conn.execute("DELETE FROM recordings WHERE name = $1 AND deleted", claim.recording.name)


def _found(row: Record | None, name: str) -> Recording:
    if row is None:
        raise ResourceNotFound(name)
    return _recording(row)


def _recording(row: Record) -> Recording:
    values = {name: row[name] for name in _NAMES}
    return Recording(**{**values, "source": Source(row["source"]), "state": State(row["state"])})
