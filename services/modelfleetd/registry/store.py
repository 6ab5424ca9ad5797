"""Every SQL statement of the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.codec import timestamp_from_proto
from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.registry.domain.evidence import EvidenceHead
from modelfleetd.registry.domain.revisions import StoredChange, StoredRevision

# A process that stalls while it holds the head would hold up every other writer: the server ends its transaction.
_MOST_IDLE_MS = 5000

_LOCK_HEAD = """
SELECT number, hash, greatest(time, clock_timestamp()) AS now,
       set_config('idle_in_transaction_session_timeout', $1, true)
FROM head FOR UPDATE
"""

# One statement, one round trip: the revision with its changes, the state that they leave, and the new head. Gives the
# number of resources that were as the decision saw them.
_APPEND = """
WITH revision AS (
    INSERT INTO revisions (number, time, header, previous_hash, hash) VALUES ($1, $2, $3, $4, $5)
), change AS (
    INSERT INTO changes (revision, position, resource, change)
    SELECT $1, position - 1, resource, change
    FROM unnest($6::text[], $7::bytea[]) WITH ORDINALITY AS given (resource, change, position)
), gone AS (
    DELETE FROM resources USING unnest($12::text[], $13::bigint[]) AS given (name, revision)
    WHERE resources.name = given.name AND resources.revision = given.revision
    RETURNING 1
), put AS (
    INSERT INTO resources (name, kind, revision, state)
    SELECT name, kind, $1, state FROM unnest($8::text[], $9::text[], $10::bytea[]) AS given (name, kind, state)
    ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, state = excluded.state
    WHERE resources.revision = ($11::jsonb ->> resources.name)::bigint
    RETURNING 1
), moved AS (
    UPDATE head SET number = $1, time = $2, hash = $5
)
SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM put)
"""

_REVISION = """
SELECT number, header, previous_hash, hash,
       ARRAY(SELECT change FROM changes WHERE revision = number ORDER BY position) AS changes
FROM revisions
"""

# Everything below a name is, in the C collation, between name/ and name0, which follows it.
_EVIDENCE_HEADS = """
SELECT model, found.name, found.revision, octet_length(found.state) AS size
FROM unnest($1::text[]) AS given (model)
CROSS JOIN LATERAL (
    SELECT name, revision, state FROM resources WHERE name > model || '/' AND name < model || '0' ORDER BY name
) AS found
"""
# In one statement, so that states and number are of one moment. States are measured without being read.
_BELOW = """
SELECT head.number, page.state
FROM head LEFT JOIN (
    SELECT name, state FROM (
        SELECT name, state, sum(octet_length(state)) OVER (ORDER BY name) - octet_length(state) AS before
        FROM (
            SELECT name, state FROM resources
            WHERE name > $1 AND name < $2 ORDER BY name LIMIT $3
        ) AS first
    ) AS measured WHERE before <= $4
) AS page ON true
ORDER BY page.name
"""
_EVIDENCE = """
SELECT name, kind, state FROM (
    SELECT name, kind, state, sum(octet_length(state)) OVER (ORDER BY name) - octet_length(state) AS before
    FROM (
        SELECT name, kind, state FROM resources WHERE name > $1 AND name < $2 ORDER BY name
    ) AS every
) AS measured WHERE before <= $3 ORDER BY name
"""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest revision, and the database's time: never before the newest revision's."""

    number: int
    hash: bytes
    now: datetime


@dataclass(frozen=True, slots=True)
class LaunchOutcome:
    """How a launch ended, and the answer to be given again."""

    outcome: str
    digest: bytes
    response: bytes


class Store:
    """The registry's schema."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Gives a connection with an open transaction."""
        async with self._database.transaction() as conn:
            yield conn

    async def lock_head(self, conn: Connection) -> Head:
        """Locks the newest revision until the transaction ends: nobody else writes meanwhile."""
        row = _found(await conn.fetchrow(_LOCK_HEAD, str(_MOST_IDLE_MS)))
        return Head(row["number"], row["hash"], row["now"])

    async def append(
        self, conn: Connection, revision: StoredRevision, time: datetime, changes: Sequence[StoredChange]
    ) -> None:
        """Writes a revision and the state that it leaves. The head must be locked.

        Raises:
            RuntimeError: a resource is not as the decision saw it: a defect, and nothing is written.
        """
        put = [change for change in changes if change.state is not None]
        gone = [change for change in changes if change.state is None]
        touched = await conn.fetchval(
            _APPEND,
            revision.number,
            time,
            revision.header,
            revision.previous_hash,
            revision.hash,
            [change.resource for change in changes],
            [change.change for change in changes],
            [change.resource for change in put],
            [change.kind for change in put],
            [change.state for change in put],
            {change.resource: change.previous_revision for change in put},
            [change.resource for change in gone],
            [change.previous_revision for change in gone],
        )
        if touched != len(changes):
            raise RuntimeError(f"revision {revision.number} would change {len(changes)} resources, {touched} match")

    async def load(self, kinds: Collection[str]) -> tuple[int, bytes, list[tuple[str, bytes]]]:
        """Returns number and hash of the newest revision, and kind and state of what there is of some kinds then."""
        async with self._database.transaction(readonly=True) as conn:
            head = _found(await conn.fetchrow("SELECT number, hash FROM head"))
            rows = await conn.fetch("SELECT kind, state FROM resources WHERE kind = ANY($1)", list(kinds))
        return head["number"], head["hash"], [(row["kind"], row["state"]) for row in rows]

    async def revisions_from(
        self, number: int, limit: int, conn: Connection | Database | None = None
    ) -> list[StoredRevision]:
        """Returns up to `limit` revisions in order, from one on."""
        rows = await (conn or self._database).fetch(
            f"{_REVISION} WHERE number >= $1 ORDER BY number LIMIT $2", number, limit
        )
        return [_revision(row) for row in rows]

    async def revision(self, number: int) -> StoredRevision | None:
        """Returns one revision, or None."""
        row = await self._database.fetchrow(f"{_REVISION} WHERE number = $1", number)
        return None if row is None else _revision(row)

    async def oldest_revision(self) -> int:
        """Returns the number of the oldest revision that is kept; 1 where there is none."""
        oldest: int = await self._database.fetchval("SELECT coalesce(min(number), 1) FROM revisions")
        return oldest

    async def revisions_before(self, resource: str, before: int | None, limit: int) -> list[StoredRevision]:
        """Returns up to `limit` revisions, newest first, of one resource or of all, older than one."""
        if resource:
            query = f"""{_REVISION} WHERE number IN (
                SELECT DISTINCT revision FROM changes WHERE resource = $3 AND ($1::bigint IS NULL OR revision < $1)
                ORDER BY revision DESC LIMIT $2
            ) ORDER BY number DESC"""
            rows = await self._database.fetch(query, before, limit, resource)
        else:
            query = f"{_REVISION} WHERE number < coalesce($1, 9223372036854775807) ORDER BY number DESC LIMIT $2"
            rows = await self._database.fetch(query, before, limit)
        return [_revision(row) for row in rows]

    async def evidence_heads(
        self, models: Sequence[str], conn: Connection | Database | None = None
    ) -> dict[str, list[EvidenceHead]]:
        """Returns what evidence some models have, by model and name."""
        found: dict[str, list[EvidenceHead]] = {model: [] for model in models}
        if models:
            rows = await (conn or self._database).fetch(_EVIDENCE_HEADS, list(found))
            for row in rows:
                found[row["model"]].append(EvidenceHead(row["name"], row["revision"], row["size"]))
        return found

    async def below(self, collection: str, after: str, limit: int, most_bytes: int) -> tuple[int, list[bytes]]:
        """Returns the newest revision, and the states of resources of a collection at that revision, by name.

        Args:
            collection: `modelTypes/{type}/models/{model}/evaluationReports`.
            after: the name after which to go on; empty: from the first one.
            limit: most resources.
            most_bytes: the last resource is the first with which all together have more bytes than this.
        """
        first, end = after or f"{collection}/", f"{collection}0"
        rows = await self._database.fetch(_BELOW, first, end, limit, most_bytes)
        return rows[0]["number"], [row["state"] for row in rows if row["state"] is not None]

    async def state(self, name: str) -> bytes | None:
        """Returns a resource as it is now, or None."""
        found: bytes | None = await self._database.fetchval("SELECT state FROM resources WHERE name = $1", name)
        return found

    async def evidence(self, models: Sequence[str], most_bytes: int) -> AsyncIterator[tuple[str, str, bytes]]:
        """Yields the evidence of some models at one moment: model, kind and state, by name.

        Args:
            models: whose evidence.
            most_bytes: about as much is in memory at a time.
        """
        async with self._database.transaction(readonly=True) as conn:
            for model in models:
                after = f"{model}/"
                while rows := await conn.fetch(_EVIDENCE, after, f"{model}0", most_bytes):
                    for row in rows:
                        yield model, row["kind"], row["state"]
                    after = rows[-1]["name"]

    async def launch_outcome(self, conn: Connection, launch: str) -> LaunchOutcome | None:
        """Returns how a launch ended, or None."""
        row = await conn.fetchrow("SELECT outcome, digest, response FROM launch_outcomes WHERE launch = $1", launch)
        return None if row is None else LaunchOutcome(row["outcome"], row["digest"], row["response"])

    async def keep_launch_outcome(self, conn: Connection, launch: str, outcome: LaunchOutcome) -> None:
        """Writes how a launch ended, for ever."""
        await conn.execute(
            "INSERT INTO launch_outcomes (launch, outcome, digest, response) VALUES ($1, $2, $3, $4)",
            launch,
            outcome.outcome,
            outcome.digest,
            outcome.response,
        )

    async def keep_serving(self, statuses: Sequence[pb.ServingStatus]) -> int:
        """Writes statuses, at most one a route, where they are newer than what is known. Returns how many were."""
        # In one order, so that no two calls deadlock.
        ordered = sorted(statuses, key=lambda status: (status.model_type, status.region))
        stored: int = await self._database.fetchval(
            """
            WITH put AS (
                INSERT INTO serving_status (model_type, region, observe_time, status)
                SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bytea[])
                ON CONFLICT (model_type, region) DO UPDATE
                SET observe_time = excluded.observe_time, status = excluded.status
                WHERE serving_status.observe_time < excluded.observe_time
                RETURNING 1
            )
            SELECT count(*) FROM put
            """,
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

    async def forget_requests(self, older_than: timedelta) -> None:
        """Deletes answers to repeated calls that nobody repeats any more."""
        await self._database.execute("DELETE FROM requests WHERE create_time < now() - $1::interval", older_than)


def _revision(row: Record) -> StoredRevision:
    return StoredRevision(row["number"], row["header"], row["changes"], row["previous_hash"], row["hash"])


def _found(row: Record | None) -> Record:
    if row is None:
        raise RuntimeError("the head of the ledger is missing")
    return row
