"""Load tests in PostgreSQL: what is asked for, what was found, and who works on it under which epoch."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from modelfleetd.capacity.domain.loadtest import ENDED, LoadTest, Outcome, Probe, State, Stoppers, Wanted
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Record

_COLUMNS = """name, model, region, flavor, latency_p99_ms, error_rate, start_qps, certification_requests, state,
    message, probes, certificate, actor, create_time, end_time, version"""
_ENDED = ", ".join(f"'{state.value}'" for state in sorted(ENDED, key=lambda state: state.value))


@dataclass(frozen=True, slots=True)
class Numbered:
    """A load test and its place in the order of creation."""

    sequence: int
    load_test: LoadTest


@dataclass(frozen=True, slots=True)
class Claim:
    """A load test that this process works on until its lease ends.

    Attributes:
        epoch: of this claim: newer than that of every claim before.
        attempt: how often it was begun, this time included.
        clone_present: a clone may be left from an earlier attempt.
    """

    test: LoadTest
    sample_requests: tuple[bytes, ...]
    epoch: int
    attempt: int
    clone_present: bool


async def insert(conn: Connection, name: str, wanted: Wanted, actor: str) -> LoadTest:
    row = await conn.fetchrow(
        f"""INSERT INTO load_tests (name, model, region, flavor, sample_requests, latency_p99_ms, error_rate, start_qps,
                certification_requests, actor)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING {_COLUMNS}""",
        name,
        wanted.model,
        wanted.region,
        wanted.flavor,
        list(wanted.sample_requests),
        wanted.stoppers.latency_p99_ms,
        wanted.stoppers.error_rate,
        wanted.start_qps,
        wanted.certification_requests,
        actor,
    )
    assert row is not None
    return _load_test(row)


async def get(reads: Reads, name: str) -> LoadTest:
    """Raises ResourceNotFound where there is no such load test."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM load_tests WHERE name = $1", name)
    if row is None:
        raise ResourceNotFound(name)
    return _load_test(row)


async def model_of(reads: Reads, name: str) -> str | None:
    """Returns the model of a load test; None where there is no such load test."""
    found: str | None = await reads.fetchval("SELECT model FROM load_tests WHERE name = $1", name)
    return found


async def page(reads: Reads, model: str, before: int, limit: int) -> list[Numbered]:
    """Returns load tests that were made before a sequence number, newest first; of one model, or of all if empty."""
    condition = "model = $3" if model else "true"
    rows = await reads.fetch(
        f"""SELECT sequence, {_COLUMNS} FROM load_tests WHERE sequence < $1 AND {condition}
            ORDER BY sequence DESC LIMIT $2""",
        before,
        limit,
        *([model] if model else []),
    )
    return [Numbered(row["sequence"], _load_test(row)) for row in rows]


async def lock(conn: Connection, name: str) -> LoadTest:
    """Returns a load test that nobody else changes before the transaction ends. Raises ResourceNotFound."""
    row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM load_tests WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise ResourceNotFound(name)
    return _load_test(row)


async def cancel(conn: Connection, name: str, message: str) -> LoadTest:
    """Ends a locked load test; whoever works on it finds out when it next says that it is alive."""
    row = await conn.fetchrow(
        f"""UPDATE load_tests SET state = 'CANCELLED', message = $2, end_time = now(), version = version + 1
            WHERE name = $1 RETURNING {_COLUMNS}""",
        name,
        message,
    )
    assert row is not None
    return _load_test(row)


async def claim(conn: Connection, holder: str, lease_seconds: float) -> Claim | None:
    """Takes the oldest load test that needs work and that nobody holds, with a new epoch; None where there is none.

    Those that have ended need work while a clone may be left.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE load_tests SET
            epoch = nextval('fence'),
            attempt = attempt + CASE WHEN state IN ({_ENDED}) THEN 0 ELSE 1 END,
            lease_holder = $1,
            lease_expire_time = now() + make_interval(secs => $2)
        WHERE name = (
            SELECT name FROM load_tests
            WHERE (clone_present OR state NOT IN ({_ENDED}))
            AND (lease_expire_time IS NULL OR lease_expire_time <= now())
            ORDER BY sequence LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING {_COLUMNS}, sample_requests, epoch, attempt, clone_present
        """,
        holder,
        lease_seconds,
    )
    if row is None:
        return None
    return Claim(_load_test(row), tuple(row["sample_requests"]), row["epoch"], row["attempt"], row["clone_present"])


async def renew(conn: Connection, name: str, epoch: int, lease_seconds: float) -> State | None:
    """Says that the holder is alive; returns the state, None where somebody else holds it by now."""
    state = await conn.fetchval(
        """UPDATE load_tests SET lease_expire_time = now() + make_interval(secs => $3)
           WHERE name = $1 AND epoch = $2 RETURNING state""",
        name,
        epoch,
        lease_seconds,
    )
    return None if state is None else State(state)


async def give_up_lease(conn: Connection, name: str, epoch: int, retry_seconds: float) -> None:
    """Lets others take it, after a pause."""
    await conn.execute(
        """UPDATE load_tests SET lease_expire_time = now() + make_interval(secs => $3)
           WHERE name = $1 AND epoch = $2""",
        name,
        epoch,
        retry_seconds,
    )


async def set_clone_present(conn: Connection, name: str, epoch: int, present: bool) -> bool:
    """Says whether a clone may be left. False where somebody else holds the load test by now."""
    done = await conn.execute(
        "UPDATE load_tests SET clone_present = $3 WHERE name = $1 AND epoch = $2", name, epoch, present
    )
    return done == "UPDATE 1"


async def progress(
    conn: Connection, name: str, epoch: int, state: State, message: str, probes: Sequence[Probe]
) -> bool:
    """Records how far it is. False where it has ended, or somebody else holds it by now."""
    done = await conn.execute(
        f"""UPDATE load_tests SET state = $3, message = $4, probes = $5, version = version + 1
            WHERE name = $1 AND epoch = $2 AND state NOT IN ({_ENDED})""",
        name,
        epoch,
        state.value,
        message,
        [_probe_to_json(probe) for probe in probes],
    )
    return done == "UPDATE 1"


async def finish(conn: Connection, name: str, epoch: int, state: State, message: str, certificate: str | None) -> bool:
    """Records the end. False where it has ended otherwise, or somebody else holds it by now."""
    done = await conn.execute(
        f"""UPDATE load_tests SET state = $3, message = $4, certificate = $5, end_time = now(), version = version + 1
            WHERE name = $1 AND epoch = $2 AND state NOT IN ({_ENDED})""",
        name,
        epoch,
        state.value,
        message,
        certificate,
    )
    return done == "UPDATE 1"


def _load_test(row: Record) -> LoadTest:
    return LoadTest(
        name=row["name"],
        model=row["model"],
        region=row["region"],
        flavor=row["flavor"],
        stoppers=Stoppers(row["latency_p99_ms"], row["error_rate"]),
        start_qps=row["start_qps"],
        certification_requests=row["certification_requests"],
        state=State(row["state"]),
        message=row["message"],
        probes=tuple(map(_probe_from_json, row["probes"])),
        certificate=row["certificate"],
        actor=row["actor"],
        create_time=row["create_time"],
        end_time=row["end_time"],
        version=row["version"],
    )


def _probe_to_json(probe: Probe) -> dict[str, Any]:
    return {
        **asdict(probe),
        "outcome": probe.outcome.value,
        "start_time": probe.start_time and probe.start_time.isoformat(),
        "end_time": probe.end_time and probe.end_time.isoformat(),
        "histogram": base64.b64encode(probe.histogram).decode(),
    }


def _probe_from_json(stored: dict[str, Any]) -> Probe:
    start, end = stored.get("start_time"), stored.get("end_time")
    return Probe(
        **{
            **stored,
            "outcome": Outcome(stored["outcome"]),
            "start_time": start and datetime.fromisoformat(start),
            "end_time": end and datetime.fromisoformat(end),
            "histogram": base64.b64decode(stored.get("histogram", "")),
        }
    )
