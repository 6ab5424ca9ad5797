"""What the reconciler reads and writes: claims, and changes that count only while the claim does."""

from __future__ import annotations

from dataclasses import replace

import asyncpg

from modelfleetd.kit.failpoint import failpoint, passing
from modelfleetd.launcher.documents import to_document
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.store.figures import figures_row
from modelfleetd.launcher.store.launches import Launches
from modelfleetd.launcher.store.notifications import telling, told_by
from modelfleetd.launcher.store.rows import COLUMNS, Change, Claim, body_of, id_of, intent_row, launch_of, looks_of

CLAIM = f"""
WITH due AS (
    SELECT id AS due_id FROM launches
    WHERE end_time IS NULL AND next_due_time <= now() AND (lease_expire_time IS NULL OR lease_expire_time <= now())
    ORDER BY next_due_time LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE launches SET
    epoch = nextval('fence'), lease_holder = $2,
    lease_expire_time = now() + make_interval(secs => $3), next_due_time = now() + make_interval(secs => $3)
FROM due WHERE id = due_id
RETURNING {COLUMNS}, now() AS now
"""

_RECORD = f"""
WITH changed AS (
    UPDATE launches SET
        state = $4, queued = $5, version = version + 1, body = $6, update_time = now(), end_time = $7,
        lease_holder = CASE WHEN $8::float8 IS NULL THEN lease_holder END,
        lease_expire_time = CASE WHEN $8::float8 IS NULL THEN lease_expire_time END,
        next_due_time = CASE WHEN $7::timestamptz IS NOT NULL THEN NULL
                             WHEN $8::float8 IS NULL THEN next_due_time ELSE now() + make_interval(secs => $8) END
    WHERE id = $1 AND version = $2 AND epoch = $3
    RETURNING id
), said AS (
    INSERT INTO events (launch, sequence, time, type, message, step, region, epoch, actor)
    SELECT id, (SELECT coalesce(max(sequence), 0) FROM events WHERE launch = id) + row_number() OVER (),
           e.time, e.type, e.message, e.step, e.region, e.epoch, e.actor
    FROM changed, jsonb_to_recordset($9) AS e(time timestamptz, type text, message text, step int, region text,
                                              epoch bigint, actor text)
), judged AS (
    INSERT INTO gate_verdicts (launch, attempt, verdict)
    SELECT id, $16, v FROM changed, jsonb_array_elements($10) AS v
), did AS (
    UPDATE intents SET outcome = $12, settle_time = now() FROM changed
    WHERE launch = id AND intents.number = $11 AND outcome IS NULL
), means AS (
    INSERT INTO intents (launch, number, act, key, step, region, epoch, content, create_time)
    SELECT id, i.number, i.act, i.key, i.step, i.region, $3, i.content, i.create_time
    FROM changed, jsonb_to_recordset($13) AS i(number int, act text, key text, step int, region text, content jsonb,
                                               create_time timestamptz)
), traced AS (
    INSERT INTO spans (span) SELECT s FROM changed, jsonb_array_elements($14) AS s
), freed AS (
    UPDATE launches SET next_due_time = now()
    WHERE model_type = $15 AND end_time IS NULL AND id <> $1 AND $7::timestamptz IS NOT NULL
), figured AS (
    INSERT INTO figures (launch, attempt, end_time, team, surface, strategy, state, duration, phases, waits,
                         people_wait, cause, failed_gates)
    SELECT id, $16, $7, f.team, f.surface, f.strategy, $4, f.duration, f.phases, f.waits, f.people_wait,
           f.cause, f.failed_gates
    FROM changed, jsonb_to_recordset($17) AS f(team text, surface text, strategy text, duration float8, phases jsonb,
                                               waits jsonb, people_wait float8, cause text, failed_gates jsonb)
), {telling(18)}
SELECT count(*) FROM changed
"""


class Rounds(Launches):
    """The side of the store that the reconciler uses."""

    async def claim(self, holder: str, lease: float, limit: int) -> list[Claim]:
        """Claims launches that are due, the longest due first, each with a fresh epoch."""
        failpoint("launcher.before_commit.claim")
        rows = await self._database.fetch(CLAIM, limit, holder, lease)
        if rows:
            failpoint("launcher.after_commit.claim")
        return [Claim(launch_of(row), row["now"], lease) for row in rows]

    async def record(self, change: Change) -> Launch | None:
        """Writes a round's change; None where somebody else has changed or claimed the launch: nothing is written."""
        after = change.after
        written = await self._database.fetchval(
            _RECORD,
            id_of(after),
            change.before.version,
            change.before.epoch,
            after.state.name,
            after.queued,
            body_of(after),
            after.end_time,
            change.due,
            [to_document(event) for event in change.events],
            [to_document(verdict) for verdict in change.verdicts],
            change.settled.number if change.settled else 0,
            change.settled.outcome if change.settled else None,
            [intent_row(change.intent)] if change.intent else [],
            list(change.spans),
            after.model_type,
            after.attempt,
            [figures_row(after)] if after.end_time is not None else [],
            *told_by(change.before, after, self._audience, change.time),
        )
        return replace(after, version=change.before.version + 1, epoch=change.before.epoch) if written else None

    async def watched(self, launch: Launch, due: float) -> bool:
        """Gives the lease back where nothing changed but what was observed: no new version. False as in `record`."""
        tag = await self._database.execute(
            """UPDATE launches SET lease_holder = NULL, lease_expire_time = NULL, body = body || $4,
                   next_due_time = now() + make_interval(secs => $5)
               WHERE id = $1 AND version = $2 AND epoch = $3""",
            id_of(launch),
            launch.version,
            launch.epoch,
            looks_of(launch),
            due,
            what="watched",
        )
        return tag == "UPDATE 1"

    async def is_held(self, launch: Launch) -> bool:
        """Whether nobody has changed or claimed the launch since this process did."""
        found = await self._database.fetchval(
            "SELECT true FROM launches WHERE id = $1 AND version = $2 AND epoch = $3",
            id_of(launch),
            launch.version,
            launch.epoch,
        )
        return bool(found)

    async def yield_lease(self, launch: Launch) -> None:
        """Gives the lease back at once, whatever the version: somebody's verb came in between."""
        await self._database.execute(
            """UPDATE launches SET lease_holder = NULL, lease_expire_time = NULL, next_due_time = now()
               WHERE id = $1 AND epoch = $2 AND end_time IS NULL""",
            id_of(launch),
            launch.epoch,
            what="yield_lease",
        )

    async def leave_queue(self, launch: Launch) -> bool:
        """Makes a queued launch the active one of its route, where it is first in the queue and the route is free. A
        mitigation needs no free route, and is before all that are none.
        """
        if launch.mitigates:
            return await self._take_precedence(launch)
        try:
            with passing("launcher", "commit", "leave_queue"):
                found = await self._database.fetchval(
                    """UPDATE launches l SET queued = false, version = version + 1, lease_holder = NULL,
                           lease_expire_time = NULL, next_due_time = now()
                       WHERE id = $1 AND version = $2 AND epoch = $3 AND queued
                         AND NOT EXISTS (SELECT 1 FROM launches o WHERE o.model_type = l.model_type
                                         AND o.end_time IS NULL
                                         AND (NOT o.queued OR o.mitigation OR o.number < l.number))
                       RETURNING true""",
                    id_of(launch),
                    launch.version,
                    launch.epoch,
                )
        except asyncpg.UniqueViolationError:
            return False
        return bool(found)

    async def _take_precedence(self, launch: Launch) -> bool:
        async with self._database.transaction(what="take_precedence") as conn:
            found, now = await self.lock(conn, launch.name)
            if (found.version, found.epoch, found.queued) != (launch.version, launch.epoch, True):
                return False
            if (await self.with_precedence(conn, found, now)).queued:
                return False
            await conn.execute(
                """UPDATE launches SET queued = false, version = version + 1, lease_holder = NULL,
                       lease_expire_time = NULL, next_due_time = now() WHERE id = $1""",
                id_of(found),
            )
        return True

    async def sweep(self, longest: float) -> int:
        """Looks at every launch that has not ended, whoever held it: none may sleep for longer than that."""
        tag = await self._database.execute(
            """UPDATE launches SET next_due_time = now()
               WHERE end_time IS NULL AND next_due_time > now() + make_interval(secs => $1)""",
            longest,
        )
        return int(tag.rpartition(" ")[2])

    async def raise_fence(self, floor: int) -> None:
        """Makes the next epochs newer than one that an agent knows: after the database was restored from a backup."""
        await self._database.execute(
            "SELECT setval('fence', $1) WHERE (SELECT last_value FROM fence) < $1", floor, what="raise_fence"
        )
