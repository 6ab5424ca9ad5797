"""Everything that the agent must not forget, in one SQLite file. The only place with SQL.

Writes are rare (acts and what befalls replicas, never requests) and synchronous: a transaction with its fsync takes
about a millisecond, and nothing of the agent may interleave with it anyway. `synchronous=FULL` makes a commit
survive the loss of power.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from modelfleet.common.v1 import serving_pb2
from modelfleet.platform.v1 import platform_pb2 as pb
from modelfleetd.kit.codec import from_proto, to_proto
from modelfleetd.kit.failpoint import failpoint
from modelfleetd.node.domain import Count, Phase, Process, Replica, Target
from modelfleetd.platform import wire
from modelfleetd.platform.model import (
    Applied,
    DesiredServing,
    Effect,
    EffectKind,
    EffectPage,
    ModelShare,
    RecordingPlan,
    RecordingStatus,
    ServingSpec,
    TargetKind,
)
from modelfleetd.platform.rules import Answered

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The floor of a target may be raised before anybody has said what it shall be.
CREATE TABLE IF NOT EXISTS targets (
  name TEXT PRIMARY KEY,
  kind TEXT CHECK (kind IN ('ROUTE', 'LOAD_TEST')),
  floor INTEGER NOT NULL CHECK (floor >= 0),
  desired BLOB,
  generation INTEGER NOT NULL CHECK (generation >= 0),
  acknowledged_generation INTEGER NOT NULL CHECK (acknowledged_generation BETWEEN 0 AND generation),
  acknowledged TEXT NOT NULL,
  split_time REAL,
  unrouted INTEGER NOT NULL CHECK (unrouted >= 0),
  CHECK ((kind IS NULL) = (desired IS NULL))
) STRICT, WITHOUT ROWID;

-- Never deleted: a key is honoured for ever.
CREATE TABLE IF NOT EXISTS acts (
  key TEXT PRIMARY KEY,
  content TEXT NOT NULL,
  effect INTEGER NOT NULL,
  generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Replicas that exist. One without a process is about to be started, or was when the agent died.
CREATE TABLE IF NOT EXISTS replicas (
  uid TEXT PRIMARY KEY,
  target TEXT NOT NULL REFERENCES targets (name),
  model TEXT NOT NULL,
  spec BLOB NOT NULL,
  port INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
  phase TEXT NOT NULL CHECK (phase IN ('STARTING', 'READY', 'AVAILABLE', 'UNAVAILABLE', 'DRAINING', 'STOPPING')),
  created REAL NOT NULL,
  since REAL NOT NULL,
  pid INTEGER,
  mark TEXT,
  CHECK ((pid IS NULL) = (mark IS NULL))
) STRICT, WITHOUT ROWID;

-- The ledger: append only.
CREATE TABLE IF NOT EXISTS effects (
  sequence INTEGER PRIMARY KEY,
  time REAL NOT NULL,
  target TEXT NOT NULL,
  kind TEXT NOT NULL,
  model TEXT NOT NULL,
  replica TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  key TEXT NOT NULL,
  desired BLOB,
  shares TEXT NOT NULL,
  generation INTEGER NOT NULL,
  message TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS effects_of_target ON effects (target, sequence);
CREATE TRIGGER IF NOT EXISTS effects_are_kept BEFORE DELETE ON effects
  BEGIN SELECT RAISE(ABORT, 'the ledger is append only'); END;
CREATE TRIGGER IF NOT EXISTS effects_stay BEFORE UPDATE ON effects
  BEGIN SELECT RAISE(ABORT, 'the ledger is append only'); END;

CREATE TABLE IF NOT EXISTS counts (
  target TEXT NOT NULL,
  model TEXT NOT NULL,
  requests INTEGER NOT NULL,
  errors INTEGER NOT NULL,
  requests_at_split INTEGER NOT NULL,
  errors_at_split INTEGER NOT NULL,
  PRIMARY KEY (target, model)
) STRICT, WITHOUT ROWID;

-- What Envoy's own counters said when they were last added to the counts, and which Envoy said so.
CREATE TABLE IF NOT EXISTS readings (
  envoy TEXT NOT NULL,
  counter TEXT NOT NULL,
  value INTEGER NOT NULL,
  PRIMARY KEY (envoy, counter)
) STRICT, WITHOUT ROWID;

-- What is recorded of live requests, and how far that was when it was last written down.
CREATE TABLE IF NOT EXISTS recordings (
  name TEXT PRIMARY KEY,
  plan BLOB NOT NULL,
  status BLOB NOT NULL,
  active INTEGER NOT NULL CHECK (active IN (0, 1)),
  saved REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""

_RECORDINGS_KEPT = timedelta(days=400)
_LAST_EFFECT = "SELECT sequence, time FROM effects ORDER BY sequence DESC LIMIT 1"


class Store:
    """The agent's file. Methods that write are for the inside of `transaction`."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def transaction(self, what: str) -> Iterator[None]:
        """All of it becomes durable at the end, or, on an exception, none.

        Args:
            what: becomes durable, as failpoints call it.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            failpoint(f"node.before_commit.{what}")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        failpoint(f"node.after_commit.{what}")

    # Facts: what the agent remembers of itself

    def fact(self, name: str) -> str | None:
        """One fact; None where it is not known."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str | None) -> None:
        """Remembers a fact, or forgets it."""
        if value is None:
            self._db.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def agent_id(self) -> str:
        """The id of this agent, for ever: chosen at random when the file is made."""
        known = self.fact("agent_id")
        if known is None:
            known = secrets.token_hex(8)
            self.remember("agent_id", known)
        return known

    def process(self, name: str) -> Process | None:
        """A process that the agent runs beside the replicas."""
        known = self.fact(f"process/{name}")
        return None if known is None else Process(**json.loads(known))

    def save_process(self, name: str, process: Process | None) -> None:
        """Remembers such a process, or forgets it."""
        text = None if process is None else json.dumps({"pid": process.pid, "mark": process.mark})
        self.remember(f"process/{name}", text)

    # Targets and acts

    def targets(self) -> dict[str, Target]:
        """Every target by its name."""
        rows = self._db.execute("SELECT * FROM targets")
        return {row[0]: _target(row) for row in rows}

    def save_target(self, target: Target) -> None:
        """Writes a target as it is now."""
        self._db.execute(
            "INSERT INTO targets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
            " kind = excluded.kind, floor = excluded.floor, desired = excluded.desired,"
            " generation = excluded.generation, acknowledged_generation = excluded.acknowledged_generation,"
            " acknowledged = excluded.acknowledged, split_time = excluded.split_time, unrouted = excluded.unrouted",
            (
                target.name,
                target.kind.name if target.kind else None,
                target.floor,
                _desired_bytes(target.desired),
                target.generation,
                target.acknowledged_generation,
                _shares_text(target.acknowledged),
                _seconds(target.split_time),
                target.unrouted,
            ),
        )

    def answered(self, key: str) -> Answered | None:
        """The act that was accepted under a key."""
        row = self._db.execute("SELECT content, effect, generation FROM acts WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answered(row[0], Applied(row[1], row[2]))

    def save_answer(self, key: str, answered: Answered) -> None:
        """Remembers an accepted act for ever."""
        applied = answered.applied
        row = (key, answered.content, applied.effect, applied.generation)
        self._db.execute("INSERT INTO acts VALUES (?, ?, ?, ?)", row)

    # Replicas

    def replicas(self) -> dict[str, Replica]:
        """Every replica that exists, by its uid."""
        return {row[0]: _replica(row) for row in self._db.execute("SELECT * FROM replicas ORDER BY created, uid")}

    def save_replica(self, replica: Replica) -> None:
        """Writes a replica as it is now."""
        process = replica.process
        self._db.execute(
            "INSERT OR REPLACE INTO replicas VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                replica.uid,
                replica.target,
                replica.model,
                to_proto(replica.spec, serving_pb2.ServingSpec).SerializeToString(),
                replica.port,
                replica.phase.name,
                _seconds(replica.created),
                _seconds(replica.since),
                process.pid if process else None,
                process.mark if process else None,
            ),
        )

    def delete_replica(self, uid: str) -> None:
        """Forgets a replica that has ended; the ledger keeps its life."""
        self._db.execute("DELETE FROM replicas WHERE uid = ?", (uid,))

    # Ledger

    def append(
        self,
        time: datetime,
        target: Target,
        kind: EffectKind,
        *,
        replica: Replica | None = None,
        epoch: int = 0,
        key: str = "",
        desired: DesiredServing | None = None,
        shares: tuple[ModelShare, ...] = (),
        message: str = "",
    ) -> int:
        """Appends to the ledger; returns the position, one more than the last. Time never goes back."""
        # The last row, by the key: its time is the latest, and finding it costs the same however long the ledger is.
        last, latest = self._db.execute(_LAST_EFFECT).fetchone() or (0, 0.0)
        row = (
            last + 1,
            max(time.timestamp(), latest),
            target.name,
            kind.name,
            replica.model if replica else "",
            replica.uid if replica else "",
            epoch,
            key,
            _desired_bytes(desired),
            _shares_text(shares),
            target.generation,
            message,
        )
        self._db.execute("INSERT INTO effects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return int(last) + 1

    def effects(self, after: int, target: str, limit: int) -> EffectPage:
        """The ledger after a position, of one target or (empty) of all."""
        where, given = ("target = ? AND ", (target,)) if target else ("", ())
        query = f"SELECT * FROM effects WHERE {where}sequence > ? ORDER BY sequence LIMIT ?"
        rows = self._db.execute(query, (*given, after, limit + 1)).fetchall()
        return EffectPage(tuple(_effect(row) for row in rows[:limit]), len(rows) > limit)

    # Counters

    def counts(self) -> dict[tuple[str, str], Count]:
        """Counted requests by target and model."""
        return {(row[0], row[1]): Count(*row[2:]) for row in self._db.execute("SELECT * FROM counts")}

    def save_count(self, target: str, model: str, count: Count) -> None:
        """Writes what is counted of a model."""
        row = (target, model, count.requests, count.errors, count.requests_at_split, count.errors_at_split)
        self._db.execute("INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?, ?, ?)", row)

    def readings(self, envoy: str) -> dict[str, int]:
        """What this Envoy's counters said when they were last added."""
        return dict(self._db.execute("SELECT counter, value FROM readings WHERE envoy = ?", (envoy,)).fetchall())

    def save_readings(self, envoy: str, values: Mapping[str, int]) -> None:
        """Remembers what this Envoy's counters say; those of Envoys before it are of no use any more."""
        self._db.execute("DELETE FROM readings WHERE envoy <> ?", (envoy,))
        rows = [(envoy, counter, value) for counter, value in values.items()]
        self._db.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?)", rows)

    # Recordings

    def recording(self, name: str) -> tuple[RecordingPlan, RecordingStatus] | None:
        """A recording as it was last written down; None where there is none of that name."""
        row = self._db.execute("SELECT plan, status FROM recordings WHERE name = ?", (name,)).fetchone()
        return None if row is None else _recording(*row)

    def active_recordings(self) -> list[tuple[RecordingPlan, RecordingStatus]]:
        """Recordings that have not ended."""
        rows = self._db.execute("SELECT plan, status FROM recordings WHERE active = 1 ORDER BY name")
        return [_recording(*row) for row in rows]

    def save_recording(self, plan: RecordingPlan, status: RecordingStatus, time: datetime) -> None:
        """Writes a recording as it is now; forgets those that ended long ago."""
        row = (
            plan.recording,
            wire.plan_to_proto(plan).SerializeToString(),
            wire.recording_to_proto(status).SerializeToString(),
            int(status.active),
            time.timestamp(),
        )
        self._db.execute("INSERT OR REPLACE INTO recordings VALUES (?, ?, ?, ?, ?)", row)
        long_ago = (time - _RECORDINGS_KEPT).timestamp()
        self._db.execute("DELETE FROM recordings WHERE active = 0 AND saved < ?", (long_ago,))


def _recording(plan: bytes, status: bytes) -> tuple[RecordingPlan, RecordingStatus]:
    return (
        wire.plan_from_proto(pb.StartRecordingRequest.FromString(plan)),
        wire.recording_from_proto(pb.RecordingStatus.FromString(status)),
    )


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _desired_bytes(desired: DesiredServing | None) -> bytes | None:
    return None if desired is None else wire.desired_to_proto(desired).SerializeToString()


def _desired(data: bytes | None) -> DesiredServing | None:
    return None if data is None else wire.desired_from_proto(pb.DesiredServing.FromString(data))


def _shares_text(shares: tuple[ModelShare, ...]) -> str:
    return json.dumps([[share.model, share.share_basis_points] for share in shares])


def _shares(text: str) -> tuple[ModelShare, ...]:
    return tuple(ModelShare(model, share) for model, share in json.loads(text))


def _target(
    row: tuple[str, str | None, int, bytes | None, int, int, str, float | None, int],
) -> Target:
    name, kind, floor, desired, generation, acknowledged_generation, acknowledged, split_time, unrouted = row
    return Target(
        name=name,
        kind=None if kind is None else TargetKind[kind],
        floor=floor,
        desired=_desired(desired),
        generation=generation,
        acknowledged_generation=acknowledged_generation,
        acknowledged=_shares(acknowledged),
        split_time=None if split_time is None else _moment(split_time),
        unrouted=unrouted,
    )


def _replica(row: tuple[str, str, str, bytes, int, str, float, float, int | None, str | None]) -> Replica:
    uid, target, model, spec, port, phase, created, since, pid, mark = row
    process = None if pid is None or mark is None else Process(pid, mark)
    read = from_proto(serving_pb2.ServingSpec.FromString(spec), ServingSpec)
    return Replica(uid, target, model, read, port, Phase[phase], _moment(created), _moment(since), process)


def _effect(
    row: tuple[int, float, str, str, str, str, int, str, bytes | None, str, int, str],
) -> Effect:
    sequence, time, target, kind, model, replica, epoch, key, desired, shares, generation, message = row
    return Effect(
        sequence=sequence,
        time=_moment(time),
        target=target,
        kind=EffectKind[kind],
        model=model,
        replica=replica,
        epoch=epoch,
        key=key,
        desired=_desired(desired),
        shares=_shares(shares),
        generation=generation,
        message=message,
    )
