"""What the API reads and writes: launches, verbs, events, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime

import asyncpg

from modelfleetd.errors import ResourceExists, ResourceNotFound, RouteBusy
from modelfleetd.kit.db import Connection
from modelfleetd.launcher.documents import from_document
from modelfleetd.launcher.domain import preemption
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import GateVerdict
from modelfleetd.launcher.store.notifications import Notifications
from modelfleetd.launcher.store.rows import COLUMNS, body_of, id_of, launch_of
from modelfleetd.names import LAUNCH

VERDICTS_SHOWN = 100

_FIRST = """SELECT id FROM launches WHERE model_type = $1 AND end_time IS NULL AND (mitigation OR NOT $2)
            ORDER BY queued, NOT mitigation, number LIMIT 1"""
_ACTIVE = f"""SELECT {COLUMNS} FROM launches
              WHERE model_type = $1 AND end_time IS NULL AND NOT queued AND NOT mitigation"""


def page_query(
    *, before: int | None, limit: int, model_type: str = "", active_only: bool = False
) -> tuple[str, list[object]]:
    """The statement of a page, with its arguments: what is not asked for is no condition, so each has its index."""
    conditions, arguments = ["true"], list[object]([limit])
    for condition, value in (("number <", before), ("model_type =", model_type or None)):
        if value is not None:
            arguments.append(value)
            conditions.append(f"{condition} ${len(arguments)}")
    if active_only:
        conditions.append("end_time IS NULL")
    where = " AND ".join(conditions)
    return f"SELECT number, {COLUMNS} FROM launches WHERE {where} ORDER BY number DESC LIMIT $1", arguments


def _name(found: str | None) -> str | None:
    return None if found is None else LAUNCH.format(found)


class Launches(Notifications):
    """The side of the store that the API uses."""

    def transaction(self, *, readonly: bool = False) -> AbstractAsyncContextManager[Connection]:
        """Gives a connection with an open transaction, for verbs."""
        return self._database.transaction(readonly=readonly)

    async def now(self, conn: Connection | None = None) -> datetime:
        """What time it is by the database's clock, which all launchers share; with a transaction, now and not when it
        began.
        """
        found: datetime = await (conn or self._database).fetchval("SELECT clock_timestamp()")
        return found

    async def insert(self, conn: Connection, launch: Launch) -> None:
        """Stores a new launch. One that is not queued goes past nobody: not past those that are queued, either. Only a
        mitigation goes past those that are none (`with_precedence`).

        Raises:
            RouteBusy: there is another launch on the route, and this one is not queued.
            ResourceExists: the id is taken.
        """
        ahead = await self.ahead_on(conn, launch.model_type, only_mitigations=launch.mitigates)
        if ahead is not None and not launch.queued:
            raise RouteBusy(launch.model_type, ahead)
        try:
            await conn.execute(
                """INSERT INTO launches (id, uid, model_type, actor, state, queued, version, epoch, next_due_time, body,
                                         create_time, update_time, mitigation)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, 0, now(), $8, $9, $9, $10)""",
                id_of(launch),
                launch.uid,
                launch.model_type,
                launch.actor,
                launch.state.name,
                launch.queued,
                launch.version,
                body_of(launch),
                launch.create_time,
                launch.mitigates,
            )
        except asyncpg.UniqueViolationError as error:
            raise ResourceExists(launch.name) from error

    async def first_on(self, model_type: str, *, only_mitigations: bool = False) -> str | None:
        """The launch that is active on a route, or else the first that is queued for it."""
        return _name(await self._database.fetchval(_FIRST, model_type, only_mitigations))

    async def ahead_of(self, launch: Launch) -> str:
        """The launch whose end a queued one waits for; empty where there is none any more."""
        first = await self.first_on(launch.model_type, only_mitigations=False)
        return first if first is not None and first != launch.name else ""

    async def active_on(self, model_type: str) -> Launch | None:
        """The launch that is active on a route and no mitigation."""
        row = await self._database.fetchrow(_ACTIVE, model_type)
        return None if row is None else launch_of(row)

    async def held_for(self, mitigation: Launch) -> Launch | None:
        """The launch that holds for a mitigation."""
        active = await self.active_on(mitigation.model_type)
        return active if active is not None and active.preempted_by == mitigation.name else None

    async def with_precedence(self, conn: Connection, mitigation: Launch, now: datetime) -> Launch:
        """Has the launch that is active on the route hold for a mitigation, or go back where it moves the same model.

        Whoever acts for that launch is overtaken: its epoch is a newer one.

        Args:
            conn: with a transaction in which the mitigation is stored or leaves the queue.
            mitigation: new, or queued.
            now: by the database's clock.

        Returns:
            The mitigation: queued where another launch has to end first.
        """
        await self.lock_route(conn, mitigation.model_type)
        before = await conn.fetchval(
            """SELECT id FROM launches o WHERE model_type = $1 AND end_time IS NULL AND mitigation AND id <> $2
               AND (NOT queued OR number < coalesce((SELECT number FROM launches WHERE id = $2), number + 1))
               LIMIT 1""",
            mitigation.model_type,
            id_of(mitigation),
        )
        if before is not None:
            return mitigation
        row = await conn.fetchrow(f"{_ACTIVE} FOR UPDATE", mitigation.model_type)
        if row is None:
            return replace(mitigation, queued=False)
        active = launch_of(row)
        if not preemption.can_hold(active):
            return replace(mitigation, queued=True)
        if preemption.takes_part(mitigation, active):
            after = preemption.taken_back(active, mitigation, now)
            event = Event("Aborted", f"goes back first: {mitigation.name} comes next", now, actor=mitigation.actor)
        else:
            after = preemption.preempted(active, mitigation, now)
            event = Event("Preempted", f"holds for {mitigation.name}", now, active.step.number, actor=mitigation.actor)
        await self.put(conn, after, event, fence=True)
        return replace(mitigation, queued=after.abort is not None)

    async def lock_route(self, conn: Connection, model_type: str) -> None:
        """Until the transaction ends nobody else comes to the route."""
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"launches of {model_type}")

    async def ahead_on(self, conn: Connection, model_type: str, *, only_mitigations: bool = False) -> str | None:
        """The same as `first_on`, and until the transaction ends nobody else comes to the route."""
        await self.lock_route(conn, model_type)
        return _name(await conn.fetchval(_FIRST, model_type, only_mitigations))

    async def get(self, name: str) -> Launch:
        """Reads a launch.

        Raises:
            ResourceNotFound: there is none of that name.
        """
        (id_,) = LAUNCH.parse(name)
        row = await self._database.fetchrow(f"SELECT {COLUMNS} FROM launches WHERE id = $1", id_)
        if row is None:
            raise ResourceNotFound(name)
        return launch_of(row)

    async def replaced(self, model_type: str, baseline: str) -> Launch | None:
        """The newest launch of a route that has succeeded in putting another model in the place of that baseline."""
        row = await self._database.fetchrow(
            f"""SELECT {COLUMNS} FROM launches
                WHERE model_type = $1 AND state = 'SUCCEEDED' AND body ->> 'baseline' = $2
                  AND body ->> 'strategy' IN ('REPLACE_BASELINE', 'ROLL_BACK')
                ORDER BY number DESC LIMIT 1""",
            model_type,
            baseline,
        )
        return None if row is None else launch_of(row)

    async def lock(self, conn: Connection, name: str) -> tuple[Launch, datetime]:
        """Reads a launch and keeps others from changing it until the transaction ends; and what time it is.

        Raises:
            ResourceNotFound: there is none of that name.
        """
        (id_,) = LAUNCH.parse(name)
        row = await conn.fetchrow(
            f"SELECT {COLUMNS}, clock_timestamp() AS now FROM launches WHERE id = $1 FOR UPDATE", id_
        )
        if row is None:
            raise ResourceNotFound(name)
        return launch_of(row), row["now"]

    async def put(self, conn: Connection, launch: Launch, event: Event, *, fence: bool = False) -> Launch:
        """Writes what a verb made of a locked launch, and has the launch looked at now.

        Args:
            conn: with the transaction that locked it.
            launch: as it is from now on.
            event: what was done to it.
            fence: takes the launch from whoever holds it: the lease ends, and the epoch is a newer one.
        """
        before = await conn.fetchrow(f"SELECT {COLUMNS} FROM launches WHERE id = $1", id_of(launch))
        assert before is not None
        await self.tell(conn, launch_of(before), launch, event.time)
        epoch = await conn.fetchval(
            """UPDATE launches SET body = $2, version = $3, update_time = now(),
                   next_due_time = CASE WHEN end_time IS NULL THEN now() END,
                   epoch = CASE WHEN $4 THEN nextval('fence') ELSE epoch END,
                   lease_holder = CASE WHEN $4 THEN NULL ELSE lease_holder END,
                   lease_expire_time = CASE WHEN $4 THEN NULL ELSE lease_expire_time END
               WHERE id = $1 RETURNING epoch""",
            id_of(launch),
            body_of(launch),
            launch.version + 1,
            fence,
        )
        after = replace(launch, version=launch.version + 1, epoch=epoch)
        await self.say(conn, after, event)
        return after

    async def say(self, conn: Connection, launch: Launch, event: Event) -> None:
        """Writes an event of a locked or new launch."""
        await conn.execute(
            """INSERT INTO events (launch, sequence, time, type, message, step, region, epoch, actor)
               SELECT $1, (SELECT coalesce(max(sequence), 0) + 1 FROM events WHERE launch = $1),
                      $2, $3, $4, $5, $6, $7, $8""",
            id_of(launch),
            event.time,
            event.type,
            event.message,
            event.step,
            event.region,
            launch.epoch,
            event.actor,
        )

    async def page(
        self, *, before: int | None, limit: int, model_type: str = "", active_only: bool = False
    ) -> list[tuple[int, Launch]]:
        """Launches with their numbers, newest first, from a number downwards."""
        statement, arguments = page_query(before=before, limit=limit, model_type=model_type, active_only=active_only)
        rows = await self._database.fetch(statement, *arguments)
        return [(row["number"], launch_of(row)) for row in rows]

    async def verdicts(self, names: Sequence[str]) -> dict[str, tuple[GateVerdict, ...]]:
        """The last verdicts of the gates of launches in their present attempts, oldest first."""
        ids = [LAUNCH.parse(name)[0] for name in names]
        rows = await self._database.fetch(
            """SELECT id, v.number, v.verdict FROM launches l CROSS JOIN LATERAL (
                   SELECT number, verdict FROM gate_verdicts
                   WHERE launch = l.id AND attempt = (l.body ->> 'attempt')::int
                   ORDER BY number DESC LIMIT $2) AS v
               WHERE id = ANY($1) ORDER BY v.number""",
            ids,
            VERDICTS_SHOWN,
        )
        found: dict[str, list[GateVerdict]] = {}
        for row in rows:
            found.setdefault(LAUNCH.format(row["id"]), []).append(from_document(GateVerdict, row["verdict"]))
        return {name: tuple(verdicts) for name, verdicts in found.items()}

    async def events(self, name: str, *, after: int, limit: int) -> list[Event]:
        """What happened to a launch, oldest first.

        Raises:
            ResourceNotFound: there is no such launch.
        """
        (id_,) = LAUNCH.parse(name)
        rows = await self._database.fetch(
            """SELECT sequence, time, type, message, step, region, epoch, actor FROM events
               WHERE launch = $1 AND sequence > $2 ORDER BY sequence LIMIT $3""",
            id_,
            after,
            limit,
        )
        if not rows:
            await self.get(name)
        return [Event(**row) for row in rows]

    async def versions(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Version and epoch of launches: whether anything may have changed, for those who watch."""
        ids = [LAUNCH.parse(name)[0] for name in names]
        rows = await self._database.fetch("SELECT id, version, epoch FROM launches WHERE id = ANY($1)", ids)
        return {LAUNCH.format(row["id"]): (row["version"], row["epoch"]) for row in rows}
