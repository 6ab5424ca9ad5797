"""The past: the ledger as of a revision, which costs index look-ups and nothing that grows with history.

`changes (resource, revision)` is the index that all of it goes by: a resource as of a revision is its newest change up
to there. Names are found by walking that index from one name to the next greater one, so neither the number of changes
of a name nor what is below names that are not asked for is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.kit.db import Database

_AS_OF = """
SELECT number, (
    SELECT change FROM changes WHERE resource = $1 AND revision <= $2 ORDER BY revision DESC LIMIT 1
) AS change FROM base
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
SELECT name, CASE WHEN name ~ $5 THEN (
    SELECT change FROM changes WHERE resource = name AND revision <= $6 ORDER BY revision DESC LIMIT 1
) END AS change
FROM walk WHERE name IS NOT NULL ORDER BY name
"""


@dataclass(frozen=True, slots=True)
class Base:
    """What the oldest revision that is kept follows: number 0 where all are."""

    number: int
    hash: bytes
    time: datetime | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a read of the past found, and the base then: what is older than it was gone already."""

    base: int
    changes: Sequence[tuple[str, bytes | None]]
    """Names in order, with the newest change up to the revision; None where there is none."""


class HistoryStore:
    """The registry's schema, as of the past."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def base(self) -> Base:
        """Returns what the oldest revision that is kept follows."""
        row = await self._database.fetchrow("SELECT number, hash, time FROM base")
        if row is None:
            raise RuntimeError("the base of history is missing")
        return Base(row["number"], row["hash"], row["time"])

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
        return Found(row["number"], [(name, row["change"])])

    async def walk(self, after: str, before: str, pattern: str, depth: int, revision: int, limit: int) -> Found:
        """Returns names between two, in order, with their newest change up to a revision.

        Args:
            after: names are greater than this one.
            before: names are less than this one.
            pattern: a regular expression; names that do not match it come without a change.
            depth: segments of the names that match.
            revision: the changes are not newer than this.
            limit: of names, whether they match or not.
        """
        async with self._database.connection() as conn:
            rows = await conn.fetch(_WALK, after, before, depth, limit, f"^(?:{pattern})$", revision)
            base: int = await conn.fetchval("SELECT number FROM base")
        return Found(base, [(row["name"], row["change"]) for row in rows])
