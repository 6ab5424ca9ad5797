"""The launcher's store in memory: many launches as they are, without rows and documents; what it promises is the same.

A claim is a lease with an epoch that is newer than every other, and what a holder writes counts only while version and
epoch are the ones that it claimed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from modelfleetd.clock import Clock
from modelfleetd.errors import ResourceNotFound
from modelfleetd.launcher.domain import preemption
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.freeze import FreezeWindow
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.notifications import Notification, notifications
from modelfleetd.launcher.reconciler import LEASE_SECONDS
from modelfleetd.launcher.store import Change, Claim
from modelfleetd.rehearsal.chance import Chance, Trouble

# A launch that somebody takes from its holder is looked at so much later, and never at the very same moment again.
SOONEST: Final = 0.05


@dataclass(slots=True)
class Row:
    """One launch.

    Attributes:
        due: when it is looked at next, in the clock's monotonic seconds.
        number: its place in the order of launches.
        events: its history, the oldest first, as much of it as is kept.
        told: what people were told.
    """

    launch: Launch
    number: int
    trouble: Trouble
    due: float
    events: deque[Event]
    told: list[Notification] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.launch.name


class MemoryLaunches:
    """What a round needs of `Store`, for all launches of a fleet.

    Attributes:
        patience: seconds until a launch is really looked at that wants to be looked at in so many.
        before_write: called with a launch before it is changed: what was done until now was done by what it was then.
        changed: called after it was.
        scheduled: called with the name of a launch whose `due` is another one now.
    """

    def __init__(self, clock: Clock, chance: Chance, history: int | None = None) -> None:
        """Makes an empty store.

        Args:
            clock: of the fleet.
            chance: whether the process dies at a commit.
            history: events that are kept of each launch; None: all.
        """
        self.rows: dict[str, Row] = {}
        self.windows: list[FreezeWindow] = []
        self.patience: Callable[[Launch, float], float] = _as_it_wants
        self.before_write: Callable[[Launch], None] = _nothing
        self.changed: Callable[[Launch, Launch], None] = _nothing
        self.scheduled: Callable[[Row], None] = _nothing
        self._clock = clock
        self._chance = chance
        self._history = history
        self._fence = 0
        self._numbers = 0
        # Those that have not ended, by route.
        self._on: dict[str, dict[str, Row]] = {}

    # What people do

    def insert(self, launch: Launch, trouble: Trouble) -> Row:
        """Stores a new launch, to be looked at now."""
        self._numbers += 1
        row = Row(launch, self._numbers, trouble, self._clock.monotonic(), deque(maxlen=self._history))
        self.rows[launch.name] = row
        self._on.setdefault(launch.model_type, {})[launch.name] = row
        self.say(row, Event("Created", f"{launch.rule.does} {launch.candidate}", launch.create_time))
        self.schedule(row, 0.0)
        return row

    def put(self, after: Launch, said: str, *, fence: bool = False, anew: bool = False) -> None:
        """Writes what a verb made of a launch, and has it looked at now.

        Args:
            after: the launch after it.
            said: what the history says of it.
            fence: whether whoever holds it is overtaken.
            anew: whether it is another attempt, which goes past nobody who is queued.
        """
        row = self.rows[after.name]
        before, now = row.launch, self._clock.now()
        self.before_write(before)
        epoch = self._next_epoch() if fence or anew else before.epoch
        row.launch = replace(after, version=before.version + 1, epoch=epoch, update_time=now)
        if anew:
            self._numbers += 1
            row.number = self._numbers
            self._on.setdefault(after.model_type, {})[after.name] = row
        row.told.extend(notifications(before, row.launch, now))
        self.say(row, Event("Verb", said, now, after.step.number))
        self.changed(before, row.launch)
        self.schedule(row, SOONEST)

    def active_on(self, model_type: str, *, other_than: str = "") -> Row | None:
        """The launch that is active on a route and no mitigation."""
        found = (row for row in self.open_on(model_type) if row.name != other_than)
        return next((row for row in found if not row.launch.queued and not row.launch.mitigates), None)

    def open_on(self, model_type: str) -> list[Row]:
        """Those of a route that have not ended, in their order."""
        return sorted(self._on.get(model_type, {}).values(), key=lambda row: row.number)

    def precedence(self, mitigation: Launch, number: int | None = None) -> Launch:
        """Has the launch that is active on the route hold for a mitigation, or go back where it moves the same model.

        Returns:
            The mitigation: queued where another launch has to end first.
        """
        for row in self.open_on(mitigation.model_type):
            other = row.launch
            before = not other.queued or number is None or row.number < number
            if other.mitigates and other.name != mitigation.name and before:
                return replace(mitigation, queued=True)
        found = self.active_on(mitigation.model_type)
        if found is None:
            return replace(mitigation, queued=False)
        active, now = found.launch, self._clock.now()
        if not preemption.can_hold(active):
            return replace(mitigation, queued=True)
        if preemption.takes_part(mitigation, active):
            after = preemption.taken_back(active, mitigation, now)
            self.put(after, f"goes back first: {mitigation.name} comes next", fence=True)
        else:
            after = preemption.preempted(active, mitigation, now)
            self.put(after, f"holds for {mitigation.name}", fence=True)
        return replace(mitigation, queued=after.abort is not None)

    def wake(self, name: str, seconds: float) -> None:
        """Has a launch looked at in so many seconds at most."""
        row = self.rows[name]
        if not row.launch.ended and row.due > self._clock.monotonic() + seconds:
            self.schedule(row, seconds)

    def schedule(self, row: Row, seconds: float) -> None:
        """Says when a launch is looked at next."""
        row.due = self._clock.monotonic() + seconds
        self.scheduled(row)

    def say(self, row: Row, *events: Event) -> None:
        """Writes history."""
        row.events.extend(events)

    def _next_epoch(self) -> int:
        self._fence += 1
        return self._fence

    # What a round does

    async def claim(self, name: str) -> Claim:
        """Claims a launch, with a fresh epoch."""
        row = self.rows[name]
        row.launch = await self._claimed(row)
        self.schedule(row, LEASE_SECONDS)
        return Claim(row.launch, self._clock.now(), LEASE_SECONDS)

    async def record(self, change: Change) -> Launch | None:
        """Writes a round's change; None where somebody else has changed or claimed the launch: nothing is written."""
        self._chance.crash()
        row = self.rows[change.after.name]
        if not self._is_held(row, change.before):
            return None
        self.before_write(row.launch)
        before, after, due = row.launch, change.after, change.due
        if due is not None and not after.ended:
            after, due = self._put_down(row, after, due)
        row.launch = await self._recorded(before, replace(change, after=after, due=due))
        row.told.extend(notifications(before, row.launch, change.time))
        self.say(row, *change.events)
        if after.ended:
            self._end(row)
        self.changed(before, row.launch)
        written = row.launch
        self._chance.crash()
        return written

    async def watched(self, launch: Launch, due: float) -> bool:
        """Gives the lease back where nothing changed but what was observed."""
        row = self.rows[launch.name]
        if not self._is_held(row, launch):
            return False
        after, seconds = self._put_down(row, launch, due)
        row.launch = await self._looked_at(after, seconds)
        return True

    async def is_held(self, launch: Launch) -> bool:
        """Whether nobody has changed or claimed the launch since."""
        return self._is_held(self.rows[launch.name], launch)

    async def yield_lease(self, launch: Launch) -> None:
        """Gives the lease back at once."""
        row = self.rows[launch.name]
        if row.launch.epoch == launch.epoch and not row.launch.ended:
            await self._yielded(launch)
            self.schedule(row, SOONEST)

    async def leave_queue(self, launch: Launch) -> bool:
        """Makes a queued launch the active one of its route, where it is first in the queue and the route is free."""
        row = self.rows[launch.name]
        if not self._is_held(row, launch):
            return False
        if launch.mitigates:
            if self.precedence(launch, row.number).queued:
                return False
        elif any(
            not other.launch.queued or other.launch.mitigates or other.number < row.number
            for other in self.open_on(launch.model_type)
            if other is not row
        ):
            return False
        row.launch = await self._unqueued(row.launch)
        self.schedule(row, SOONEST)
        return True

    async def get(self, name: str) -> Launch:
        """Raises ResourceNotFound."""
        if name not in self.rows:
            raise ResourceNotFound(name)
        return self.rows[name].launch

    async def held_for(self, mitigation: Launch) -> Launch | None:
        """The launch that holds for a mitigation."""
        found = self.active_on(mitigation.model_type)
        return found.launch if found is not None and found.launch.preempted_by == mitigation.name else None

    async def raise_fence(self, floor: int) -> None:
        """Makes the next epochs newer than one that an agent knows."""
        self._fence = max(self._fence, floor)

    async def freeze_windows(self) -> Sequence[FreezeWindow]:
        """Every window there is."""
        return self.windows

    def _is_held(self, row: Row, launch: Launch) -> bool:
        return (row.launch.version, row.launch.epoch) == (launch.version, launch.epoch)

    def _put_down(self, row: Row, launch: Launch, due: float) -> tuple[Launch, float]:
        """The launch as it is put down, and in how many seconds it is looked at."""
        seconds = max(SOONEST, self.patience(launch, due))
        self.schedule(row, seconds)
        if launch.watched_until is None or seconds <= due:
            return launch, seconds
        return replace(launch, watched_until=self._clock.now() + timedelta(seconds=seconds)), seconds

    # How it is kept: what another store does in its own way

    async def _claimed(self, row: Row) -> Launch:
        return replace(row.launch, epoch=self._next_epoch())

    async def _recorded(self, before: Launch, change: Change) -> Launch:
        return replace(change.after, version=before.version + 1, epoch=before.epoch, update_time=change.time)

    async def _looked_at(self, launch: Launch, seconds: float) -> Launch:
        return launch

    async def _unqueued(self, launch: Launch) -> Launch:
        return replace(launch, queued=False, version=launch.version + 1)

    async def _yielded(self, launch: Launch) -> None: ...

    def _end(self, row: Row) -> None:
        """Those that are queued behind it are looked at now."""
        self._on[row.launch.model_type].pop(row.name, None)
        for other in self.open_on(row.launch.model_type):
            self.wake(other.name, SOONEST)


def _as_it_wants(_: Launch, seconds: float) -> float:
    return seconds


def _nothing(*given: object) -> None:
    """Nobody listens."""
