"""Load tests in PostgreSQL: what is asked for, what was found, and who works on it under which epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from modelfleetd.capacity.domain.loadtest import (
    ENDED,
    Cause,
    LoadTest,
    Outcome,
    Probe,
    State,
    Wanted,
    waits_for_its_turn,
)
from modelfleetd.capacity.store.rows import Reads, stoppers_from_json
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Record

_STOPPERS = ("latency_p99_ms", "error_rate", "latencies")
_NAMES = tuple(field.name for field in fields(LoadTest) if field.name != "stoppers")
_COLUMNS = ", ".join((*_NAMES, *_STOPPERS))
# The bracket stays: it is what is known.
_END = """end_time = now(), current_qps = 0, expected_end_time = NULL, sample_requests = '{}', version = version + 1"""
_ENDED = ", ".join(f"'{state.value}'" for state in sorted(ENDED, key=lambda state: state.value))


@dataclass(frozen=True, slots=True)
class Numbered:
    """A load test and its place in the order of creation."""

    sequence: int
    load_test: LoadTest


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load test is.

    Attributes:
        message: what is going on, for people.
        current_qps: the rate that is being tried; 0 where none is.
        highest_within_qps: one end of the bracket; 0 where it is not known.
        lowest_beyond_qps: the other one.
        expected_end_time: None where nothing can be said.
    """

    state: State
    message: str
    current_qps: float = 0.0
    highest_within_qps: float = 0.0
    lowest_beyond_qps: float = 0.0
    expected_end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A load test that this process works on until its lease ends.

    Attributes:
        epoch: of this claim: newer than that of every claim before.
        clone_present: a clone may be left from an earlier attempt.
    """

    test: LoadTest
    sample_requests: tuple[bytes, ...]
    epoch: int
    clone_present: bool


async def insert(conn: Connection, name: str, wanted: Wanted, actor: str) -> LoadTest:
    values = asdict(wanted) | {"name": name, "actor": actor, "message": waits_for_its_turn()}
    values |= values.pop("stoppers")
    values["sample_requests"] = list(wanted.sample_requests)
    places = ", ".join(f"${index}" for index in range(1, len(values) + 1))
    row = await conn.fetchrow(
        f"INSERT INTO load_tests ({', '.join(values)}) VALUES ({places}) RETURNING {_COLUMNS}", *values.values()
    )
    assert row is not None
    return _load_test(row)


async def get(reads: Reads, name: str) -> LoadTest:
    """Raises ResourceNotFound where there is no such load test."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM load_tests WHERE name = $1", name)
    if row is None:
        raise ResourceNotFound(name)
    return _load_test(row)


async def get_whole(reads: Reads, name: str) -> LoadTest:
    """Returns a load test with the histograms of its probes. Raises ResourceNotFound."""
    found = await get(reads, name)
    rows = await reads.fetch("SELECT number, histogram FROM load_test_histograms WHERE load_test = $1", name)
    histograms = {row["number"]: row["histogram"] for row in rows}
    probes = (replace(probe, histogram=histograms.get(n, b"")) for n, probe in enumerate(found.probes, 1))
    return replace(found, probes=tuple(probes))


async def with_turns(reads: Reads, found: Sequence[LoadTest]) -> list[LoadTest]:
    """Returns load tests of which those that nobody has begun say where they stand: that changes with the others."""
    waiting = [test.name for test in found if test.state is State.PENDING and not test.attempt]
    if not waiting:
        return list(found)
    rows = await reads.fetch(
        f"""WITH open AS (
                SELECT name, sequence, state = 'PENDING' AND attempt = 0 AS waits FROM load_tests
                WHERE state NOT IN ({_ENDED})
            ), line AS (SELECT name, row_number() OVER (ORDER BY sequence) AS place FROM open WHERE waits)
            SELECT name, place, (SELECT name FROM open WHERE NOT waits ORDER BY sequence LIMIT 1) AS under_way
            FROM line WHERE name = ANY($1)""",
        waiting,
    )
    turns = {row["name"]: waits_for_its_turn(row["place"], row["under_way"]) for row in rows}
    return [replace(test, message=turns.get(test.name, test.message)) for test in found]


async def version(reads: Reads, name: str) -> int | None:
    """Returns a number that grows with each change; None where there is no such load test."""
    found: int | None = await reads.fetchval("SELECT version FROM load_tests WHERE name = $1", name)
    return found


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
        f"""UPDATE load_tests SET state = 'CANCELLED', message = $2, {_END} WHERE name = $1 RETURNING {_COLUMNS}""",
        name,
        message,
    )
    assert row is not None
    return _load_test(row)


async def claim(conn: Connection, holder: str, lease_seconds: float, *, ended: bool = False) -> Claim | None:
    """Takes the oldest load test that needs work and that nobody holds, with a new epoch; None where there is none.

    Args:
        conn: of the transaction.
        holder: who takes it.
        lease_seconds: how long it is his unless he says that he is alive.
        ended: take one that has ended, but of which a clone may be left; else one that has not.
    """
    wanted = f"clone_present AND state IN ({_ENDED})" if ended else f"state NOT IN ({_ENDED})"
    row = await conn.fetchrow(
        f"""
        UPDATE load_tests SET
            epoch = nextval('fence'),
            attempt = attempt + CASE WHEN state IN ({_ENDED}) THEN 0 ELSE 1 END,
            start_time = CASE WHEN state IN ({_ENDED}) THEN start_time ELSE coalesce(start_time, now()) END,
            -- What was found before begins anew; only the bracket is still of use.
            probes = CASE WHEN state IN ({_ENDED}) THEN probes ELSE '[]' END,
            lease_holder = $1,
            lease_expire_time = now() + make_interval(secs => $2)
        WHERE name = (
            SELECT name FROM load_tests WHERE {wanted} AND (lease_expire_time IS NULL OR lease_expire_time <= now())
            ORDER BY sequence LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING {_COLUMNS}, sample_requests, epoch, clone_present
        """,
        holder,
        lease_seconds,
    )
    if row is None:
        return None
    if not ended:
        await conn.execute("DELETE FROM load_test_histograms WHERE load_test = $1", row["name"])
    return Claim(_load_test(row), tuple(row["sample_requests"]), row["epoch"], row["clone_present"])


async def held(reads: Reads, name: str, epoch: int) -> State | None:
    """Returns the state for whoever holds it under an epoch; None where somebody else holds it by now."""
    state = await reads.fetchval("SELECT state FROM load_tests WHERE name = $1 AND epoch = $2", name, epoch)
    return None if state is None else State(state)


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


async def progress(conn: Connection, name: str, epoch: int, now: Progress, probe: Probe | None = None) -> bool:
    """Records how far it is, and the probe that has just ended. False where it has ended, or somebody else holds it."""
    row = await conn.fetchrow(
        f"""UPDATE load_tests SET state = $3, message = $4, current_qps = $5, highest_within_qps = $6,
                lowest_beyond_qps = $7, expected_end_time = $8, probes = probes || $9, version = version + 1
            WHERE name = $1 AND epoch = $2 AND state NOT IN ({_ENDED})
            RETURNING jsonb_array_length(probes) AS number""",
        name,
        epoch,
        now.state.value,
        now.message,
        now.current_qps,
        now.highest_within_qps,
        now.lowest_beyond_qps,
        now.expected_end_time,
        [] if probe is None else [_probe_to_json(probe)],
    )
    if row is not None and probe is not None and probe.histogram:
        await conn.execute(
            "INSERT INTO load_test_histograms (load_test, number, histogram) VALUES ($1, $2, $3)",
            name,
            row["number"],
            probe.histogram,
        )
    return row is not None


async def finish(
    conn: Connection, name: str, epoch: int, state: State, message: str, cause: Cause | None, certificate: str | None
) -> bool:
    """Records the end. False where it has ended otherwise, or somebody else holds it by now."""
    done = await conn.execute(
        f"""UPDATE load_tests SET state = $3, message = $4, cause = $5, certificate = $6, {_END}
            WHERE name = $1 AND epoch = $2 AND state NOT IN ({_ENDED})""",
        name,
        epoch,
        state.value,
        message,
        None if cause is None else cause.value,
        certificate,
    )
    return done == "UPDATE 1"


def _load_test(row: Record) -> LoadTest:
    values: dict[str, Any] = {name: row[name] for name in _NAMES}
    return LoadTest(
        **values
        | {
            "stoppers": stoppers_from_json({name: row[name] for name in _STOPPERS}),
            "state": State(row["state"]),
            "cause": None if row["cause"] is None else Cause(row["cause"]),
            "probes": tuple(map(_probe_from_json, row["probes"])),
        }
    )


def _probe_to_json(probe: Probe) -> dict[str, Any]:
    stored = {
        **asdict(probe),
        "outcome": probe.outcome.value,
        "start_time": probe.start_time and probe.start_time.isoformat(),
        "end_time": probe.end_time and probe.end_time.isoformat(),
    }
    # In a table of its own.
    del stored["histogram"]
    return stored


def _probe_from_json(stored: dict[str, Any]) -> Probe:
    start, end = stored.get("start_time"), stored.get("end_time")
    times = {
        "start_time": start and datetime.fromisoformat(start),
        "end_time": end and datetime.fromisoformat(end),
    }
    return Probe(**stored | times | {"outcome": Outcome(stored["outcome"])})
