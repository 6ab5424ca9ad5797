"""The past: the ledger as of a revision, which costs index look-ups and nothing that grows with history.

`changes (resource, revision)` is the index that all of it goes by: a resource as of a revision is its newest change up
to there. Names are found by walking that index from one name to the next greater one, so neither the number of changes
of a name nor what is below names that are not asked for is read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.kit.db import Connection, Database, Record

_AS_OF = """
SELECT number, (
    SELECT change FROM changes WHERE resource = $1 AND revision <= $2 ORDER BY revision DESC LIMIT 1
) AS change FROM base
"""

_ALL_AS_OF = """
SELECT name, (
    SELECT change FROM changes WHERE resource = name AND changes.revision <= asked.revision
    ORDER BY changes.revision DESC LIMIT 1
) AS change FROM unnest($1::text[], $2::bigint[]) AS asked (name, revision)
"""

# $1 < name < $2, at most $4 names. Below a name of $3 segments there is only what is not asked for: the walk goes on
# after it. Of a name that does not match $5 no change is read.
_WALK = """
WITH RECURSIVE walk (name, step) AS (
    SELECT (SELECT resource FROM changes WHERE resource > $1 AND resource < $2 ORDER BY resource LIMIT 1), 1
    UNION ALL
    SELECT (
        SELECT resource FROM changes
        WHERE resource < $2 AND resource > CASE
            WHEN split_part(name, '/', $3 + 1) = '' THEN name
            ELSE array_to_string((string_to_array(name, '/'))[:$3], '/') || '/~'
        END
        ORDER BY resource LIMIT 1
    ), step + 1
    FROM walk WHERE name IS NOT NULL AND step < $4
)
SELECT name, revision, change
FROM walk LEFT JOIN LATERAL (
    SELECT revision, change FROM changes
    WHERE name ~ $5 AND resource = name AND revision <= $6 ORDER BY revision DESC LIMIT 1
) AS newest ON true
WHERE name IS NOT NULL ORDER BY name
"""

# Names that changed between two revisions: by looking at each of the changes between them, or at each of the names.
_CHANGED_BY_REVISION = """
SELECT DISTINCT resource AS name, true AS changed FROM changes
WHERE revision > $4 AND revision <= $5 AND resource > $1 AND resource < $2 ORDER BY resource LIMIT $3
"""
_CHANGED_BY_NAME = """
WITH RECURSIVE walk (name, step) AS (
    SELECT (SELECT resource FROM changes WHERE resource > $1 AND resource < $2 ORDER BY resource LIMIT 1), 1
    UNION ALL
    SELECT (
        SELECT resource FROM changes WHERE resource > name AND resource < $2 ORDER BY resource LIMIT 1
    ), step + 1
    FROM walk WHERE name IS NOT NULL AND step < $3
)
SELECT name, EXISTS (SELECT FROM changes WHERE resource = name AND revision > $4 AND revision <= $5) AS changed
FROM walk WHERE name IS NOT NULL ORDER BY name
"""
# From how many revisions on looking at each name is the cheaper way.
_MANY_REVISIONS = 10_000

# As many revisions in order as make a message: one at least, and no more than the bytes say. PostgreSQL packs the
# columns, so that a million revisions cost this process no million objects.
_REVISIONS_AS_STORED = """
WITH edge AS (
    SELECT min(number) AS first FROM revisions WHERE number > $1
), sized AS (
    SELECT revision, sum(length(change)) AS size FROM changes
    WHERE revision >= (SELECT first FROM edge) AND revision < (SELECT first FROM edge) + $2 GROUP BY revision
), batch AS (
    SELECT first, coalesce((
        SELECT max(revision) FROM (SELECT revision, sum(size) OVER (ORDER BY revision) AS bytes FROM sized) AS summed
        WHERE bytes <= $3
    ), first) AS last FROM edge
), part AS (
    SELECT
        revision,
        string_agg(int8send(length(change)) || change, '') AS changes,
        string_agg(resource, E'\\n') AS names
    FROM (
        SELECT * FROM changes
        WHERE revision >= (SELECT first FROM batch) AND revision <= (SELECT last FROM batch) ORDER BY revision, position
    ) AS ordered
    GROUP BY revision
), stored AS (
    SELECT
        number, time, hash, names,
        int8send(length(previous_hash)) || previous_hash
        || int8send(length(header)) || header || coalesce(changes, '') AS content
    FROM revisions LEFT JOIN part ON revision = number
    WHERE number >= (SELECT first FROM batch) AND number <= (SELECT last FROM batch) ORDER BY number
)
SELECT
    max(number) AS last,
    string_agg(int8send(number), '') AS numbers,
    string_agg(int8send((extract(epoch FROM time) * 1000000)::bigint), '') AS times_us,
    string_agg(hash, '') AS hashes,
    string_agg(content, '') AS contents,
    string_agg(int4send(length(content)), '') AS content_lengths,
    coalesce(string_agg(names, E'\\n'), '') AS resources
FROM stored
"""
_ENTRIES_AS_STORED = """
SELECT name, kind, revision, state FROM (
    SELECT *, sum(length(state)) OVER (ORDER BY name) AS bytes, row_number() OVER (ORDER BY name) AS position
    FROM (SELECT * FROM resources WHERE name > $1 ORDER BY name LIMIT $2) AS next
) AS summed WHERE bytes <= $3 OR position = 1 ORDER BY name
"""

# Changes of forgotten revisions that no later one up to the base replaces.
_LAST_OF_FORGOTTEN = """
SELECT revision, position, change FROM changes AS old
WHERE revision = ANY($1) AND NOT EXISTS (
    SELECT FROM changes WHERE resource = old.resource AND revision > old.revision AND revision <= $2
)
"""
# With a revision go all older changes of its resources, which nobody asks for any more, and its own that leave nothing.
_FORGET = """
WITH replaced AS (
    DELETE FROM changes AS old USING changes AS newer
    WHERE newer.revision = ANY($1) AND old.resource = newer.resource AND old.revision < newer.revision
), ended AS (
    DELETE FROM changes USING unnest($2::bigint[], $3::int[]) AS given (revision, position)
    WHERE changes.revision = given.revision AND changes.position = given.position
)
DELETE FROM revisions WHERE number = ANY($1)
"""


@dataclass(frozen=True, slots=True)
class Base:
    """What the oldest revision that is kept follows: number 0 where all are."""

    number: int = 0
    hash: bytes = b""
    time: datetime | None = None
    digest: bytes = b""
    """Of the changes that are kept of it and before."""


@dataclass(frozen=True, slots=True)
class Newest:
    """A name, and the newest change up to some revision; None where there is none."""

    name: str
    revision: int | None
    change: bytes | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a read of the past found, by name, and the base then: what is older than it was gone already."""

    base: int
    changes: Sequence[Newest]


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry of the current state, as it is stored."""

    name: str
    kind: str
    revision: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Revisions whose rows are to go, and their changes that no later one up to the base replaces."""

    base: int
    numbers: Sequence[int]
    last: Sequence[tuple[int, int, bytes]]
    """Revision, position, change."""


class HistoryStore:
    """The registry's schema, as of the past."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def base(self) -> Base:
        """Returns what the oldest revision that is kept follows."""
        return await base_within(self._database)

    async def revision_at(self, time: datetime) -> int | None:
        """Returns the newest revision that was committed at a time or before; 0 before the first one.

        None where it is no longer known which one that was.
        """
        found: int | None = await self._database.fetchval(
            """
            SELECT coalesce(
                (SELECT number FROM revisions WHERE time <= $1 ORDER BY time DESC, number DESC LIMIT 1),
                (SELECT number FROM base WHERE number = 0 OR time <= $1)
            )
            """,
            time,
        )
        return found

    async def change_as_of(self, name: str, revision: int) -> Found:
        """Returns a resource's newest change up to a revision."""
        row = await self._database.fetchrow(_AS_OF, name, revision)
        if row is None:
            raise RuntimeError("the base of history is missing")
        return Found(row["number"], [Newest(name, None, row["change"])])

    async def changes_as_of(self, points: Mapping[str, int]) -> dict[str, bytes]:
        """Returns the newest change of each of several resources up to a revision of its own, where there is one."""
        rows = await self._database.fetch(_ALL_AS_OF, list(points), list(points.values())) if points else ()
        return {row["name"]: row["change"] for row in rows if row["change"] is not None}

    async def walk(
        self,
        after: str,
        before: str,
        pattern: str,
        depth: int,
        revision: int,
        limit: int,
        conn: Connection | None = None,
    ) -> Found:
        """Returns names between two, in order, with their newest change up to a revision.

        Args:
            after: names are greater than this one.
            before: names are less than this one.
            pattern: a regular expression; names that do not match it come without a change.
            depth: segments of the names that match.
            revision: the changes are not newer than this.
            limit: of names, whether they match or not.
            conn: with an open transaction, or None.
        """
        source = conn or self._database
        rows = await source.fetch(_WALK, after, before, depth, limit, f"^(?:{pattern})$", revision)
        base = await base_within(source)
        return Found(base.number, [Newest(row["name"], row["revision"], row["change"]) for row in rows])

    async def changed(
        self, after: str, before: str, older: int, newer: int, limit: int
    ) -> tuple[Sequence[str], str | None]:
        """Returns names between two that changed after one revision and up to another.

        Returns:
            Some of the names in order, and the name after which to go on; None where there are no more.
        """
        query = _CHANGED_BY_NAME if newer - older > _MANY_REVISIONS else _CHANGED_BY_REVISION
        rows = await self._database.fetch(query, after, before, limit, older, newer)
        names = [row["name"] for row in rows if row["changed"]]
        return names, rows[-1]["name"] if len(rows) == limit else None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[HistoryReading]:
        """Gives everything as it is stored at one moment. Whoever reads too slowly is thrown out by the database."""
        async with self._database.transaction(readonly=True) as conn:
            yield HistoryReading(self, conn)

    @asynccontextmanager
    async def compacting(self) -> AsyncIterator[tuple[Connection, Base]]:
        """Gives a transaction that holds the base: nobody else moves it."""
        async with self._database.transaction() as conn:
            yield conn, await base_within(conn, " FOR UPDATE")

    async def move_base(self, conn: Connection, base: Base) -> None:
        """Lets history begin after a revision: from the end of the transaction on nobody sees what came before."""
        await conn.execute(
            "UPDATE base SET number = $1, hash = $2, time = $3, digest = $4",
            base.number,
            base.hash,
            base.time,
            base.digest,
        )

    async def forgotten(self, limit: int) -> Forgotten:
        """Returns the oldest revisions up to the base that still have rows."""
        async with self._database.transaction(readonly=True) as conn:
            base = await base_within(conn)
            query = "SELECT number FROM revisions WHERE number <= $1 ORDER BY number LIMIT $2"
            numbers = [row["number"] for row in await conn.fetch(query, base.number, limit)]
            rows = await conn.fetch(_LAST_OF_FORGOTTEN, numbers, base.number) if numbers else ()
        return Forgotten(base.number, numbers, [(row["revision"], row["position"], row["change"]) for row in rows])

    async def forget(self, numbers: Sequence[int], ended: Sequence[tuple[int, int]]) -> None:
        """Deletes revisions, what their changes replace, and the changes (revision, position) that leave nothing."""
        await self._database.execute(_FORGET, numbers, [each[0] for each in ended], [each[1] for each in ended])


class HistoryReading:
    """History and state as they are stored, at one moment."""

    def __init__(self, store: HistoryStore, conn: Connection) -> None:
        self._store = store
        self._conn = conn

    async def base(self) -> Base:
        """Returns what the oldest revision that is kept follows."""
        return await base_within(self._conn)

    async def head(self) -> Base:
        """Returns the newest revision, as the head says which it is."""
        row = await self._conn.fetchrow("SELECT number, hash, nullif(time, '-infinity') AS time FROM head")
        return Base() if row is None else Base(row["number"], row["hash"], row["time"])

    async def point(self, number: int) -> Base | None:
        """Returns a revision; None where there is none of that number."""
        row = await self._conn.fetchrow("SELECT number, hash, time FROM revisions WHERE number = $1", number)
        return None if row is None else Base(row["number"], row["hash"], row["time"])

    async def newest(self, after: str, revision: int, limit: int) -> Sequence[Newest]:
        """Returns names after one, in order, with their newest change up to a revision, where there is one."""
        # "~" is greater than all names; no name has that many segments.
        return (await self._store.walk(after, "~", ".*", 99, revision, limit, self._conn)).changes

    async def revisions(self, after: int, limit: int, most_bytes: int) -> Record | None:
        """Returns the next revisions as columns, the fields of StoredRevisions; None where there is none."""
        row = await self._conn.fetchrow(_REVISIONS_AS_STORED, after, limit, most_bytes)
        return None if row is None or row["last"] is None else row

    async def stray_changes(self, after: int) -> Sequence[str]:
        """Returns names that have changes after a revision: after the newest one there are none."""
        rows = await self._conn.fetch("SELECT resource FROM changes WHERE revision > $1 LIMIT 10", after)
        return [row["resource"] for row in rows]

    async def entries(self, after: str, limit: int, most_bytes: int) -> Sequence[StoredEntry]:
        """Returns the next entries of the current state by name."""
        rows = await self._conn.fetch(_ENTRIES_AS_STORED, after, limit, most_bytes)
        return [StoredEntry(row["name"], row["kind"], row["revision"], row["state"]) for row in rows]


async def base_within(source: Connection | Database, lock: str = "") -> Base:
    """Returns what the oldest revision that is kept follows."""
    row = await source.fetchrow(f"SELECT number, hash, time, digest FROM base{lock}")
    if row is None:
        raise RuntimeError("the base of history is missing")
    return Base(row["number"], row["hash"], row["time"], row["digest"])
