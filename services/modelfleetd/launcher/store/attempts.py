"""Attempts of launches: the present one is the launch's row, those that are over are kept as they ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Database
from modelfleetd.launcher.documents import from_document
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import GateVerdict
from modelfleetd.launcher.store.launches import VERDICTS_SHOWN
from modelfleetd.launcher.store.rows import COLUMNS, body_of, id_of, launch_of
from modelfleetd.names import ATTEMPT, LAUNCH

_ALL = f"""
SELECT {COLUMNS}, (body ->> 'attempt')::int AS attempt, true AS is_present FROM launches WHERE id = $1
UNION ALL SELECT {COLUMNS}, attempt, false FROM attempts WHERE id = $1
"""


class Attempts:
    """The side of the store that knows of attempts."""

    _database: Database

    async def begin_attempt(self, conn: Connection, again: Launch) -> Launch:
        """Puts the next attempt of a locked launch in the place of the one that is over, and has it looked at now.

        It takes a new place in the order of launches, so that it goes past nobody who is queued; and a new epoch, so
        that whoever still acts for the attempt before is refused.
        """
        await conn.execute(
            f"INSERT INTO attempts ({COLUMNS}, attempt) SELECT {COLUMNS}, $2 FROM launches WHERE id = $1",
            id_of(again),
            again.attempt - 1,
        )
        version = again.version + 1
        row = await conn.fetchrow(
            """UPDATE launches SET number = DEFAULT, state = $2, queued = $3, version = $4, epoch = nextval('fence'),
                   body = $5, update_time = now(), end_time = NULL, next_due_time = now(),
                   lease_holder = NULL, lease_expire_time = NULL
               WHERE id = $1 RETURNING epoch, update_time""",
            id_of(again),
            again.state.name,
            again.queued,
            version,
            body_of(again),
        )
        assert row is not None
        return replace(again, version=version, epoch=row["epoch"], update_time=row["update_time"])

    async def attempt(self, name: str) -> tuple[Launch, bool]:
        """Reads an attempt of a launch; and whether it is the present one.

        Raises:
            ResourceNotFound: there is none of that name.
        """
        id_, attempt = ATTEMPT.parse(name)
        row = await self._database.fetchrow(f"SELECT * FROM ({_ALL}) a WHERE attempt = $2::bigint", id_, int(attempt))
        if row is None:
            raise ResourceNotFound(name)
        return launch_of(row), row["is_present"]

    async def attempts(self, launch: str, *, before: int | None, limit: int) -> list[tuple[Launch, bool]]:
        """The attempts of a launch, newest first, from a number downwards; and which of them is the present one.

        Raises:
            ResourceNotFound: there is no such launch.
        """
        (id_,) = LAUNCH.parse(launch, "parent")
        rows = await self._database.fetch(
            f"""SELECT * FROM ({_ALL}) a WHERE attempt < coalesce($2::int, 2147483647)
                ORDER BY attempt DESC LIMIT $3""",
            id_,
            before,
            limit,
        )
        if not rows and before is None:
            raise ResourceNotFound(launch)
        return [(launch_of(row), row["is_present"]) for row in rows]

    async def verdicts_of_attempts(self, launch: str, attempts: Sequence[int]) -> dict[int, tuple[GateVerdict, ...]]:
        """The last verdicts of the gates in attempts of a launch, oldest first."""
        rows = await self._database.fetch(
            """SELECT asked, v.verdict FROM unnest($2::int[]) AS asked CROSS JOIN LATERAL (
                   SELECT number, verdict FROM gate_verdicts WHERE launch = $1 AND attempt = asked
                   ORDER BY number DESC LIMIT $3) AS v
               ORDER BY v.number""",
            LAUNCH.parse(launch)[0],
            list(attempts),
            VERDICTS_SHOWN,
        )
        found: dict[int, list[GateVerdict]] = {}
        for row in rows:
            found.setdefault(row["asked"], []).append(from_document(GateVerdict, row["verdict"]))
        return {attempt: tuple(verdicts) for attempt, verdicts in found.items()}

    async def last_succeeded_on(self, model_type: str) -> str:
        """The launch that has succeeded last on a route; empty where none has."""
        found = await self._database.fetchval(
            """SELECT id FROM launches WHERE model_type = $1 AND state = 'SUCCEEDED'
               ORDER BY end_time DESC LIMIT 1""",
            model_type,
        )
        return "" if found is None else LAUNCH.format(found)
