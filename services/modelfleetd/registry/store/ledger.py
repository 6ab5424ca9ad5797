"""The ledger as it is written and followed, and what is kept beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.codec import timestamp_from_proto
from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.kit.failpoint import passing
from modelfleetd.kit.idempotency import Answered
from modelfleetd.registry.domain.revisions import StoredChange, StoredRevision, state_left
from modelfleetd.registry.store.evidence import EvidenceStore
from modelfleetd.registry.store.history import HistoryStore

# A process that stalls while it holds the head would hold up every other writer: the server ends its transaction.
_MOST_IDLE_MS = 5000

_LOCK_HEAD = """
SELECT number, hash, greatest(time, clock_timestamp()) AS now,
       set_config('idle_in_transaction_session_timeout', $1, true)
FROM head FOR UPDATE
"""

# One statement, one round trip: revisions with their changes, the state that the last of them leaves, the new head, and
# the answers for those who repeat their calls. Gives the number of resources that were as the decisions saw them.
_APPEND = """
WITH revision AS (
    INSERT INTO revisions (number, time, header, previous_hash, hash)
    SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::bytea[], $4::bytea[], $5::bytea[])
), change AS (
    INSERT INTO changes (revision, position, resource, change)
    SELECT * FROM unnest($6::bigint[], $7::int[], $8::text[], $9::bytea[])
), gone AS (
    DELETE FROM resources USING unnest($10::text[], $11::bigint[]) AS given (name, revision)
    WHERE resources.name = given.name AND resources.revision = given.revision
    RETURNING 1
), put AS (
    INSERT INTO resources (name, kind, revision, state)
    SELECT * FROM unnest($12::text[], $13::text[], $14::bigint[], $15::bytea[])
    ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, state = excluded.state
    WHERE resources.revision = ($16::jsonb ->> resources.name)::bigint
    RETURNING 1
), moved AS (
    UPDATE head SET number = last.number, time = last.time, hash = last.hash
    FROM unnest($1::bigint[], $2::timestamptz[], $5::bytea[]) AS last (number, time, hash)
    WHERE last.number = $1[cardinality($1)]
), answer AS (
    INSERT INTO requests (request_id, method, digest, response)
    SELECT * FROM unnest($17::uuid[], $18::text[], $19::bytea[], $20::bytea[])
), outcome AS (
    INSERT INTO launch_outcomes (launch, attempt, outcome, digest, response)
    SELECT * FROM unnest($21::text[], $22::integer[], $23::text[], $24::bytea[], $25::bytea[])
)
SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM put)
"""

_REVISION = """
SELECT number, header, previous_hash, hash,
       ARRAY(SELECT change FROM changes WHERE revision = number ORDER BY position) AS changes
FROM revisions
"""

# As many in order as fit: one at least.
_REVISIONS_FROM = f"""
WITH sized AS (
    SELECT number, (SELECT coalesce(sum(length(change)), 0) FROM changes WHERE revision = number) AS size
    FROM revisions WHERE number >= $1 ORDER BY number LIMIT $2
), summed AS (
    SELECT number, sum(size) OVER (ORDER BY number) AS bytes FROM sized
), batch AS (
    SELECT coalesce(max(number) FILTER (WHERE bytes <= $3), min(number)) AS last FROM summed
)
{_REVISION} WHERE number >= $1 AND number <= (SELECT last FROM batch) ORDER BY number
"""
_MOST_BYTES = 8 << 20


_KEEP_SERVING = """
WITH put AS (
    INSERT INTO serving_status (model_type, region, observe_time, status)
    SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bytea[])
    ON CONFLICT (model_type, region) DO UPDATE
    SET observe_time = excluded.observe_time, status = excluded.status
    WHERE serving_status.observe_time < excluded.observe_time
    RETURNING 1
)
SELECT count(*) FROM put
"""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest revision, and the database's time: never before the newest revision's."""

    number: int
    hash: bytes
    now: datetime


@dataclass(frozen=True, slots=True)
class LaunchOutcome:
    """How an attempt of a launch ended, for ever, and the answer to be given again."""

    launch: str
    attempt: int
    outcome: str
    digest: bytes
    response: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """A revision to be written, and its changes."""

    revision: StoredRevision
    time: datetime
    changes: Sequence[StoredChange]


class Store:
    """The registry's schema."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.history = HistoryStore(database)
        self.evidence = EvidenceStore(database)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Gives a connection with an open transaction."""
        async with self._database.transaction() as conn:
            yield conn

    async def lock_head(self, conn: Connection) -> Head:
        """Locks the newest revision until the transaction ends: nobody else writes meanwhile."""
        row = _found(await conn.fetchrow(_LOCK_HEAD, str(_MOST_IDLE_MS)))
        return Head(row["number"], row["hash"], row["now"])

    async def keep_alive(self, conn: Connection) -> None:
        """Shows the server that a transaction which takes a while is not one of a process that stalls."""
        await conn.fetchval("SELECT 1")

    async def append(
        self,
        conn: Connection,
        written: Sequence[Written],
        answers: Sequence[Answered] = (),
        outcomes: Sequence[LaunchOutcome] = (),
    ) -> None:
        """Writes revisions, the state that they leave, and answers to be given again. The head must be locked.

        Raises:
            RuntimeError: a resource is not as the decision saw it: a defect, and nothing is written.
        """
        left = state_left(change for each in written for change in each.changes)
        put = [change for change in left if change.state is not None]
        gone = [change for change in left if change.state is None]
        changes = [
            (each.revision.number, position, change.resource, change.change)
            for each in written
            for position, change in enumerate(each.changes)
        ]
        touched = await conn.fetchval(
            _APPEND,
            [each.revision.number for each in written],
            [each.time for each in written],
            [each.revision.header for each in written],
            [each.revision.previous_hash for each in written],
            [each.revision.hash for each in written],
            *_columns(changes, 4),
            [change.resource for change in gone],
            [change.previous_revision for change in gone],
            [change.resource for change in put],
            [change.kind for change in put],
            [change.revision for change in put],
            [change.state for change in put],
            {change.resource: change.previous_revision for change in put},
            *_columns([(each.request_id, each.method, each.digest, each.response) for each in answers], 4),
            *_columns([(each.launch, each.attempt, each.outcome, each.digest, each.response) for each in outcomes], 5),
        )
        if touched != len(left):
            number = written[0].revision.number
            raise RuntimeError(f"revision {number} would change {len(left)} resources, {touched} match")

    async def load(self, kinds: Collection[str]) -> tuple[int, bytes, list[tuple[str, bytes]]]:
        """Returns number and hash of the newest revision, and kind and state of what there is of some kinds then."""
        async with self._database.transaction(readonly=True) as conn:
            head = _found(await conn.fetchrow("SELECT number, hash FROM head"))
            rows = await conn.fetch("SELECT kind, state FROM resources WHERE kind = ANY($1)", list(kinds))
        return head["number"], head["hash"], [(row["kind"], row["state"]) for row in rows]

    async def hash_of(self, number: int, conn: Connection | Database | None = None) -> bytes | None:
        """Returns the hash of a revision; None where there is none."""
        found: bytes | None = await (conn or self._database).fetchval(
            "SELECT hash FROM revisions WHERE number = $1", number
        )
        return found

    async def revisions_from(
        self, number: int, limit: int, conn: Connection | Database | None = None
    ) -> list[StoredRevision]:
        """Returns revisions in order, from one on: up to `limit`, and fewer where they are large, but at least one."""
        rows = await (conn or self._database).fetch(_REVISIONS_FROM, number, limit, _MOST_BYTES)
        return [_revision(row) for row in rows]

    async def revision(self, number: int) -> StoredRevision | None:
        """Returns one revision, or None. It may have been forgotten already: see the base."""
        row = await self._database.fetchrow(f"{_REVISION} WHERE number = $1", number)
        return None if row is None else _revision(row)

    async def revisions_before(self, resource: str, before: int | None, limit: int) -> list[StoredRevision]:
        """Returns up to `limit` revisions, newest first, of one resource or of all, older than one."""
        if resource:
            query = f"""{_REVISION} WHERE number IN (
                SELECT DISTINCT revision FROM changes
                WHERE resource = $3 AND revision < coalesce($1, 9223372036854775807)
                AND revision > (SELECT number FROM base)
                ORDER BY revision DESC LIMIT $2
            ) ORDER BY number DESC"""
            rows = await self._database.fetch(query, before, limit, resource)
        else:
            query = f"""{_REVISION} WHERE number < coalesce($1, 9223372036854775807)
            AND number > (SELECT number FROM base) ORDER BY number DESC LIMIT $2"""
            rows = await self._database.fetch(query, before, limit)
        return [_revision(row) for row in rows]

    async def launch_outcomes(self, conn: Connection, launches: Collection[str]) -> list[LaunchOutcome]:
        """Returns how the attempts of launches ended: of those that did."""
        query = "SELECT launch, attempt, outcome, digest, response FROM launch_outcomes WHERE launch = ANY($1)"
        rows = await conn.fetch(query, list(launches)) if launches else ()
        return [LaunchOutcome(**row) for row in rows]

    async def keep_serving(self, statuses: Sequence[pb.ServingStatus]) -> int:
        """Writes statuses, at most one a route, where they are newer than what is known. Returns how many were."""
        # In one order, so that no two calls deadlock.
        ordered = sorted(statuses, key=lambda status: (status.model_type, status.region))
        with passing("registry", "commit", "ReportServing"):
            stored: int = await self._database.fetchval(
                _KEEP_SERVING,
                [status.model_type for status in ordered],
                [status.region for status in ordered],
                [timestamp_from_proto(status.observe_time) for status in ordered],
                [status.SerializeToString(deterministic=True) for status in ordered],
            )
        return stored

    async def serving(self, model_type: str, after: tuple[str, str] | None, limit: int) -> list[pb.ServingStatus]:
        """Returns up to `limit` statuses by model type and region, of one type or of all, after a route."""
        after_type, after_region = after or (model_type, "")
        if model_type:
            query = "SELECT status FROM serving_status WHERE model_type = $1 AND region > $2 ORDER BY region LIMIT $3"
        else:
            query = """
            SELECT status FROM serving_status WHERE (model_type, region) > ($1, $2) ORDER BY model_type, region LIMIT $3
            """
        rows = await self._database.fetch(query, after_type, after_region, limit)
        return [pb.ServingStatus.FromString(row["status"]) for row in rows]

    async def routes_after(self, after: tuple[str, str], limit: int, model_type: str = "") -> list[pb.ServingStatus]:
        """Returns up to `limit` statuses by model type and region, from a route on, that one included."""
        only = "AND model_type = $4" if model_type else ""
        rows = await self._database.fetch(
            f"""
            SELECT status FROM serving_status WHERE (model_type, region) >= ($1, $2) {only}
            ORDER BY model_type, region LIMIT $3
            """,
            *after,
            limit,
            *([model_type] if model_type else ()),
        )
        return [pb.ServingStatus.FromString(row["status"]) for row in rows]

    async def observed_since(self, moment: datetime) -> set[str]:
        """Returns the model types that an agent has reported on since then, in whichever region."""
        rows = await self._database.fetch(
            "SELECT DISTINCT model_type FROM serving_status WHERE observe_time >= $1", moment
        )
        return {row["model_type"] for row in rows}

    async def forget_requests(self, older_than: timedelta) -> None:
        """Deletes answers to repeated calls that nobody repeats any more."""
        await self._database.execute("DELETE FROM requests WHERE create_time < now() - $1::interval", older_than)


def _revision(row: Record) -> StoredRevision:
    return StoredRevision(row["number"], row["header"], row["changes"], row["previous_hash"], row["hash"])


def _found(row: Record | None) -> Record:
    if row is None:
        raise RuntimeError("the head of the ledger is missing")
    return row


def _columns(rows: Sequence[tuple[object, ...]], count: int) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(count)]
