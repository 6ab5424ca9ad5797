"""What services do beside a fleet in virtual time, and whether they answer as memory does.

Whatever the fleet's parts do in memory the services do as well, in the same order and at the same time of the fleet.
What services do by themselves (expiry, the ends of rollback windows, serving those who wait) they do when it is due.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import permission_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.books import ACTOR, Books
from modelfleetd.capacity.waiters import Waiters
from modelfleetd.clock import ManualClock
from modelfleetd.errors import DeadlinePassed, FleetError, PartUnavailable
from modelfleetd.kit.db import Database
from modelfleetd.launcher.clients import CapacityClient, RegistryClient, StabilityClient
from modelfleetd.launcher.remote import translated
from modelfleetd.rehearsal.routes import FLAVOR
from modelfleetd.rehearsal.trained import Trained
from tests.support.stored.virtual_time import VirtualTime, unhurried

T = TypeVar("T")
# What a busy machine may take for a call, in seconds, and how often a call of the launcher's is repeated.
PATIENCE = 60.0
_TRIES = 5
# Who asks for a tier that somebody else has to approve.
ASKS = "asks"


@dataclass(eq=False)
class _Act:
    """Something that was done in memory, to be done by a service."""

    time: datetime
    what: str
    do: Callable[[], Awaitable[Any]]
    ours: Any
    theirs: Any = None


class StoredParts:
    """The services, and what they have yet to do.

    Attributes:
        differences: where a service did not answer as memory did.
        asked: acts and questions that a service has answered.
    """

    def __init__(self, clock: ManualClock, time: VirtualTime, database: Database) -> None:
        self.clock = clock
        self.database = database
        self.differences: list[str] = []
        self.asked = 0
        # Of the act at hand, as the launcher has it.
        self.key = ""
        self.team = ""
        self.models: Mapping[str, Trained] = {}
        self._freed = self._inside = False
        self._books, self._waiters = Books(database), Waiters(database, ACTOR)
        self._time = time
        self._acts: deque[_Act] = deque()
        self._lock = asyncio.Lock()
        # Set once they listen.
        self.client: AsyncClient
        self.requester: AsyncClient
        self.registry: RegistryClient
        self.capacity: CapacityClient
        self.stability: StabilityClient

    def note(self, what: str, ours: Any, do: Callable[[], Awaitable[Any]]) -> None:
        """Takes note of what was done in memory, and answered: a value, or the error that was raised."""
        self._acts.append(_Act(self.clock.now(), what, do, ours))

    def both(self, what: str, ours: Callable[[], T], theirs: Callable[[T | None], Awaitable[T]]) -> T:
        """Does something in memory, and has a service do it.

        Args:
            what: is done.
            ours: does it in memory.
            theirs: does it at the service, told what memory answered (None: an error), and answers in its names.
        """
        if self._inside:
            # A part of something that the service does as a whole.
            return ours()
        self._inside = True
        try:
            made = ours()
        except FleetError as error:
            self.note(what, error, lambda: theirs(None))
            raise
        finally:
            self._inside = False
        self.note(what, made, lambda: theirs(made))
        return made

    async def answer(self, ours: Awaitable[T], key: str = "") -> T:
        """Answers as the service does. Raises what may have been lost, where nothing may have been done."""
        self.key = key
        act: _Act | None = None
        try:
            await ours
        finally:
            # Memory does not wait, so that nobody else has done anything meanwhile.
            act = self._acts[-1] if self._acts else None
            await self.catch_up()
        assert act is not None
        if isinstance(act.theirs, FleetError):
            raise act.theirs
        return cast(T, act.theirs)

    async def prepare(self, team: str, regions: Sequence[str]) -> None:
        """Makes, once, what everything else refers to."""
        if self.team:
            return
        self.team = team
        own = registry_pb2.Team()
        own.role_bindings.add(role=permission_pb2.Role.Value("OWNER"), members=[ASKS])
        await self.client.registry.create_team(team_id=team.partition("/")[2], team=own, timeout=PATIENCE)
        for region in regions:
            await self.client.registry.create_region(
                region_id=region.partition("/")[2],
                region=registry_pb2.Region(agent_address="127.0.0.1:1"),
                timeout=PATIENCE,
            )
        await self.client.capacity.create_flavor(
            flavor_id=FLAVOR.partition("/")[2], flavor=capacity_pb2.Flavor(unit_cost=1.0), timeout=PATIENCE
        )

    async def catch_up(self) -> None:
        """Has the services do what was done in memory."""
        async with self._lock:
            while self._acts:
                act = self._acts.popleft()
                await self._time.set(act.time)
                act.theirs = await self._done(act.do)
                self.same(act.what, act.ours, act.theirs)
                await self._serve()

    async def certify(self, model: Trained) -> None:
        """Has it measured what a replica carries, which is the same wherever it runs."""
        (max_qps,) = set(model.max_qps.values())
        await self.client.capacity.create_certificate(
            certificate=capacity_pb2.Certificate(
                model=model.name, flavor=model.spec.flavor, max_qps=max_qps, note="rehearsed"
            ),
            timeout=PATIENCE,
        )

    async def ask(self, what: str, ours: T, question: Callable[[], Awaitable[T]], alike: Callable[[T], T]) -> T:
        """Asks a service what memory has answered.

        Args:
            what: is asked, for a difference.
            ours: the answer of memory.
            question: asks the service.
            alike: its answer in the names and revisions of memory.
        """
        await self.catch_up()
        async with self._lock:
            await self._time.set(self.clock.now())
            theirs = await self._done(question)
            if isinstance(theirs, FleetError):
                self.same(what, ours, theirs)
                raise theirs
            found = alike(theirs)
            self.same(what, ours, found)
            return found

    def same(self, what: str, ours: Any, theirs: Any) -> None:
        """Both have to be alike; of errors kind and words."""
        if _said(ours) != _said(theirs):
            self.differences.append(f"{self.clock.now()} {what}: {_apart(_said(ours), _said(theirs))}"[:2_000])

    async def _done(self, do: Callable[[], Awaitable[T]]) -> T | FleetError:
        """Does something at a service, again with its own key where a busy machine took too long."""
        self.asked += 1

        @unhurried
        async def done() -> T:
            with translated("service"):
                return await do()

        for left in reversed(range(_TRIES)):
            try:
                return await done()
            except (PartUnavailable, DeadlinePassed) as error:
                if not left:
                    return error
            except FleetError as error:
                return error
        raise AssertionError

    def wake(self) -> None:
        """Something may have become free, or somebody waits."""
        self._freed = True

    async def sweep(self) -> None:
        """What capacity does by itself."""
        await self._books.sweep()
        self.wake()

    @unhurried
    async def _serve(self) -> None:
        if self._freed:
            self._freed = False
            await self._waiters.serve()

    async def look_at_line(self) -> None:
        """Plans anew for those who wait, as the service does every second."""
        await self._waiters.serve()


def _said(answer: Any) -> Any:
    return (type(answer).__name__, answer.message) if isinstance(answer, FleetError) else answer


def _apart(ours: Any, theirs: Any) -> str:
    if not is_dataclass(ours) or type(ours) is not type(theirs):
        return f"{ours!r} and {theirs!r}"
    found = [(each.name, getattr(ours, each.name), getattr(theirs, each.name)) for each in fields(ours)]
    return "; ".join(f"{name}: {one!r} and {other!r}" for name, one, other in found if one != other)
