"""The launches of a fleet in virtual time, in the launcher's own store on PostgreSQL.

What the rounds get is what the store gives back, through rows and documents; what the store in memory would have given
is held against it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from modelfleetd.clock import ManualClock
from modelfleetd.kit.db import Connection, Database
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.reconciler import LEASE_SECONDS
from modelfleetd.launcher.store import Change, Store
from modelfleetd.launcher.store.rounds import CLAIM
from modelfleetd.launcher.store.rows import id_of, launch_of
from modelfleetd.rehearsal.chance import Chance, Trouble
from modelfleetd.rehearsal.launches import MemoryLaunches, Row
from tests.support.stored.virtual_time import VirtualTime, unhurried

# The fleet's time is a float, the database's whole microseconds.
_ROUNDING = timedelta(milliseconds=1)
# The statement of every claim, for the one launch that is due.
_CLAIM_ONE = CLAIM.replace("WHERE end_time IS NULL", "WHERE id = $4 AND end_time IS NULL")
assert _CLAIM_ONE != CLAIM


class StoredLaunches(MemoryLaunches):
    """Keeps every launch in `Store`, and in memory what is to be compared with it.

    Attributes:
        differences: where the two did not agree.
        statements: that the store was asked for.
    """

    def __init__(
        self, database: Database, time: VirtualTime, clock: ManualClock, chance: Chance, history: int | None
    ) -> None:
        super().__init__(clock, chance, history)
        self.differences: list[str] = []
        self.statements = 0
        self._now = clock.now
        self._time = time
        self._database = database
        self._store = Store(database)
        # What people have done since the last round, each with its time.
        self._undone: deque[tuple[datetime, Callable[[Connection], Awaitable[Any]]]] = deque()

    # What people do is done in order, before anybody looks.

    def insert(self, launch: Launch, trouble: Trouble) -> Row:
        row = super().insert(launch, trouble)
        self._later(lambda conn: self._store.insert(conn, launch))
        return row

    def put(self, after: Launch, said: str, *, fence: bool = False, anew: bool = False) -> None:
        assert not anew
        super().put(after, said, fence=fence)
        event = Event("Verb", said, self._now(), after.step.number)

        async def put(conn: Connection) -> None:
            before, _ = await self._store.lock(conn, after.name)
            await self._store.put(conn, replace(after, version=before.version), event, fence=fence)

        self._later(put)

    def wake(self, name: str, seconds: float) -> None:
        super().wake(name, seconds)
        # A launch that waits for others looks every few seconds; here whoever ends the wait says so.
        again = "UPDATE launches SET next_due_time = now() WHERE id = $1 AND next_due_time > now()"
        self._later(lambda conn: conn.execute(again, id_of(self.rows[name].launch)))

    def _later(self, act: Callable[[Connection], Awaitable[Any]]) -> None:
        self._undone.append((self._now(), act))

    async def catch_up(self) -> None:
        """Does what people have done, and tells the database what time it is."""
        while self._undone:
            time, act = self._undone.popleft()
            await self._time.set(time)
            async with self._database.transaction() as conn:
                await act(conn)
            self.statements += 1
        await self._time.set(self._now())

    # What a round does

    @unhurried
    async def _claimed(self, row: Row) -> Launch:
        await self.catch_up()
        await self._time.set(self._now() + _ROUNDING)
        name = id_of(row.launch)
        lease = LEASE_SECONDS - 2 * _ROUNDING.total_seconds()
        found = await self._database.fetch(_CLAIM_ONE, 1, "a rehearsal", lease, name)
        self.statements += 1
        if not found:
            raise AssertionError(f"{row.name} is due at {self._now()}, and the store does not give it")
        return self._same(row.launch, launch_of(found[0]))

    @unhurried
    async def _recorded(self, before: Launch, change: Change) -> Launch:
        await self.catch_up()
        self.statements += 1
        written = await self._store.record(change)
        if written is None:
            raise AssertionError(f"{before.name}: the store refuses what is written by version {before.version}")
        return self._same(change.after, written)

    @unhurried
    async def _looked_at(self, launch: Launch, seconds: float) -> Launch:
        await self.catch_up()
        self.statements += 1
        if not await self._store.watched(launch, seconds):
            raise AssertionError(f"{launch.name}: the store refuses a look by version {launch.version}")
        return launch

    @unhurried
    async def _unqueued(self, launch: Launch) -> Launch:
        await self.catch_up()
        self.statements += 1
        if launch.mitigates:
            # Whom it goes before has been decided, and written by `put`.
            await self._database.execute(
                """UPDATE launches SET queued = false, version = version + 1, lease_holder = NULL,
                       lease_expire_time = NULL, next_due_time = now() WHERE id = $1""",
                id_of(launch),
            )
        elif not await self._store.leave_queue(launch):
            raise AssertionError(f"{launch.name}: the store keeps it in the queue")
        return replace(launch, queued=False, version=launch.version + 1)

    @unhurried
    async def _yielded(self, launch: Launch) -> None:
        await self.catch_up()
        self.statements += 1
        await self._store.yield_lease(launch)

    @unhurried
    async def get(self, name: str) -> Launch:
        await self.catch_up()
        return self._same(await super().get(name), await self._store.get(name))

    def _same(self, ours: Launch, theirs: Launch) -> Launch:
        """What the store has; all but versions, epochs and its time of the last change has to be as in memory."""
        alike = replace(ours, version=theirs.version, epoch=theirs.epoch, update_time=theirs.update_time)
        if alike != theirs:
            fields = [name for name in Launch.__slots__ if getattr(alike, name) != getattr(theirs, name)]
            said = "; ".join(f"{name}: {getattr(alike, name)!r} and {getattr(theirs, name)!r}" for name in fields)
            self.differences.append(f"{ours.name}: {said}"[:1_000])
        return theirs
