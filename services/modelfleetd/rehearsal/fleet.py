"""A fleet in virtual time: one team, what goes wrong, and the loop that carries everything on.

One loop on a heap of due times; nothing looks at everything. A launch is looked at when it wants to be, except that
looks at which nothing can have changed are left out (`looks.py`).
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from modelfleetd.clock import ManualClock
from modelfleetd.errors import FleetError
from modelfleetd.launcher.domain import summary
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.judges import Judges
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.reconciler import LEASE_SECONDS
from modelfleetd.launcher.renewal import Renewer
from modelfleetd.launcher.round import Round
from modelfleetd.launcher.store import Store
from modelfleetd.launcher.windows import Windows
from modelfleetd.rehearsal.capacity import Oversold
from modelfleetd.rehearsal.chance import NO_TROUBLE, Crash
from modelfleetd.rehearsal.launches import Row
from modelfleetd.rehearsal.looks import Looks
from modelfleetd.rehearsal.oracle import Oracle, disagreements
from modelfleetd.rehearsal.parts import IN_MEMORY, Parts
from modelfleetd.rehearsal.routes import Route
from modelfleetd.rehearsal.team import POOL, TEAM, Team

_SETTLE: Final = 5.0

Act = Callable[["Fleet"], object]


@dataclass(frozen=True, slots=True)
class LaunchOutcome:
    """What has become of a launch.

    Attributes:
        launch: as it is at the end: state, plan, phases, conditions.
        sentence: one for people, as `launch describe` begins.
        events: its history.
        booked: units that capacity has booked for each model of its route, by region.
    """

    launch: Launch
    sentence: str
    events: Sequence[Event]
    booked: Mapping[str, Mapping[str, int]]

    @property
    def state(self) -> State:
        return self.launch.state


class Fleet(Team):
    """A team, and everything that happens to it.

    Attributes:
        oracle: counts the promises that are broken.
        rounds: of the launcher so far.
        crashes: times that its process has died.
        stalls: calls that have hung for longer than the lease.
        failed: rounds that gave up by an error.
        after_round: called with the launch after each round; for whoever checks what always has to be.
    """

    def __init__(
        self,
        *,
        seed: int | str = 0,
        spare: Mapping[str, int] | int = 0,
        clock: ManualClock | None = None,
        future_reservations: bool = True,
        history: int | None = None,
        pool: str = POOL,
        team: str = TEAM,
        parts: Parts = IN_MEMORY,
    ) -> None:
        """Makes a fleet without routes; for what it is made of see `Team`."""
        super().__init__(
            seed=seed,
            spare=spare,
            clock=clock,
            future_reservations=future_reservations,
            history=history,
            pool=pool,
            team=team,
            parts=parts,
        )
        self.oracle = Oracle()
        self.rounds = self.crashes = self.stalls = self.failed = 0
        self.after_round: Callable[[Launch], object] = _nothing
        self.looks = Looks(self.clock, self.routes)
        ports: Any = self.world
        self._ports = World(ports, ports, ports, ports, self.answers)
        self._executor = Executor(self._ports, self.clock)
        self._judges = Judges(self._ports)
        self._renewer = Renewer(self._ports)
        self._windows = Windows(cast("Store", self.launches), self.clock)
        self._order = itertools.count()
        self._heap: list[tuple[float, int, str | Act]] = []
        self._capacity_due: float | None = None
        self._waiting_for: dict[str, list[tuple[Callable[[Launch], bool], Act]]] = {}
        # The launch by which the machines of a route behave.
        self._troubled: dict[str, str] = {}
        self.launches.patience = self.looks.patience
        self.launches.before_write = lambda launch: self._judge_route(launch.model_type)
        self.launches.changed = self._changed
        self.launches.scheduled = lambda row: self._push(row.due, row.name)
        self.capacity.free_again = lambda: self.looks.freed(self.launches.wake, self.chance.draw.random)
        self.capacity.held = lambda launch: self.launches.wake(launch, _SETTLE)

    def add_type(self, route: Route) -> None:
        """Registers a model type. To be called before `start`."""
        super().add_type(route)
        for agent in self.world.agents.values():
            agent.meanwhile = self._stall

    async def start(self) -> None:
        """Has what serves before the first launch serve, and books what that takes."""
        await super().start()
        for (model_type, region), simulator in self.routes.simulators.items():
            self.oracle.skip(model_type, region, simulator)

    # What is to happen

    def at(self, seconds: float, act: Act) -> None:
        """Does something so many seconds after the clock's beginning."""
        self._push(seconds, act)

    def after(self, seconds: float, act: Act) -> None:
        """Does something in so many seconds."""
        self._push(self.clock.monotonic() + seconds, act)

    def when(self, name: str, is_there: Callable[[Launch], bool], act: Act) -> None:
        """Does something once, as soon as a launch is so far."""
        self._waiting_for.setdefault(name, []).append((is_there, act))

    def at_step(self, name: str, step: int, act: Act) -> None:
        """Does something once a launch is at a step, or beyond it."""
        self.when(name, lambda launch: launch.state is State.SHIFTING and launch.step.number >= step, act)

    # Time

    async def run(self, until: float | None = None) -> None:
        """Lets everything happen that is due by then, in monotonic seconds; None: until nothing is left to do."""
        while self._heap and (until is None or self._heap[0][0] <= until):
            due, _, what = heapq.heappop(self._heap)
            if isinstance(what, str):
                row = self.launches.rows[what]
                if row.due != due or row.launch.ended:
                    continue
                self._go_to(due)
                await self._round(row)
            else:
                self._go_to(due)
                what(self)
            self._look_after_capacity()
        if until is not None:
            self._go_to(until)

    def outcome(self, name: str) -> LaunchOutcome:
        """What has become of a launch."""
        row = self.launches.rows[name]
        launch = row.launch
        route = self.routes[launch.model_type]
        booked = {
            region: {
                model.name: units
                for model in self.registry.models_of(launch.model_type)
                if (units := self.capacity.booked(model.name, self.routes.place(model.name, region)))
            }
            for region in route.needs
        }
        return LaunchOutcome(launch, summary.sentence(launch, self.clock.now()), list(row.events), booked)

    def check(self) -> None:
        """Judges everything that was done, and what there is on routes on which nothing goes on."""
        for model_type in self.routes.all:
            self._judge_route(model_type)
            self._compare(model_type)
        for difference in self.capacity.differences():
            self.oracle.breaks(f"the books of {self.pool} differ: {difference}")

    @property
    def effects(self) -> int:
        """How many things agents did."""
        return sum(len(simulator.ledger) for simulator in self.routes.simulators.values())

    def trace(self) -> str:
        """A digest of everything that agents did and launches went through: the same seed has the same."""
        digest = hashlib.sha256()
        for (model_type, region), simulator in self.routes.simulators.items():
            for effect in simulator.ledger:
                said = (region, effect.time, effect.kind.name, effect.model, effect.replica, effect.key, effect.shares)
                digest.update(repr((model_type, *said)).encode())
        for name, row in self.launches.rows.items():
            said_of = [(event.type, event.message, event.time) for event in row.events]
            digest.update(repr((name, row.launch.state.name, said_of)).encode())
        return digest.hexdigest()

    def _go_to(self, due: float) -> None:
        # A call that has hung may have taken time.
        if due > self.clock.monotonic():
            self.clock.set(due)

    def _push(self, due: float, what: str | Act) -> None:
        heapq.heappush(self._heap, (due, next(self._order), what))

    async def _round(self, row: Row) -> None:
        """One round, which may crash."""
        name = row.name
        claim = await self.launches.claim(name)
        self._trouble(row)
        self.rounds += 1
        self.chance.trouble = row.trouble
        at_hand = Round(
            claim,
            store=cast("Store", self.launches),
            executor=self._executor,
            judges=self._judges,
            clock=self.clock,
            traced=False,
            started=self.clock.monotonic(),
            windows=self._windows if self.launches.windows else None,
        )
        try:
            await at_hand.run()
            self.chance.trouble = row.trouble
            await self._renewer.renew(row.launch, self.clock.now())
        except Crash:
            self.crashes += 1
            # What a process remembers is gone with it.
            self._renewer = Renewer(self._ports)
        except FleetError:
            # The lease ends by itself, and somebody claims the launch anew.
            self.failed += 1
        except Oversold as error:
            self.oracle.breaks(f"{name}: the pool is oversold: {error}")
        finally:
            self.chance.trouble = NO_TROUBLE
        self._judge_route(row.launch.model_type)
        self._act_on(row)
        self.after_round(row.launch)

    async def _stall(self) -> None:
        """A call hangs for longer than the lease: another launcher goes on, and then it comes through after all."""
        self.stalls += 1
        stalled = next(row for row in self.launches.rows.values() if row.trouble is self.chance.trouble)
        for agent in self.world.agents.values():
            agent.meanwhile = None
        self.clock.set(self.clock.monotonic() + LEASE_SECONDS)
        await self._round(stalled)
        for agent in self.world.agents.values():
            agent.meanwhile = self._stall

    def _trouble(self, row: Row) -> None:
        """The machines of a route are as the launch has them that acts there."""
        launch = row.launch
        if self._troubled.get(launch.model_type) == row.name or launch.queued or launch.mitigates:
            return
        self._troubled[launch.model_type] = row.name
        self.routes.trouble(launch, row.trouble)

    def _look_after_capacity(self) -> None:
        """What capacity does by itself happens when it is due."""
        due = self.capacity.next_due
        if due is None:
            return
        at = self.clock.monotonic() + (due - self.clock.now()).total_seconds()
        if self._capacity_due is not None and self.clock.monotonic() < self._capacity_due <= at:
            return
        self._capacity_due = at
        self._push(at, lambda fleet: fleet.capacity.catch_up())

    def _changed(self, before: Launch, after: Launch) -> None:
        """A launch was written."""
        if after.step != before.step and after.weight_time is not None:
            for model in filter(None, (after.candidate, after.baseline)):
                self.stability.look(model)
        if after.ended and not before.ended:
            if self._troubled.get(after.model_type) == after.name:
                del self._troubled[after.model_type]
                self.routes.calm(after)
            self._waiting_for.pop(after.name, None) if after.state is not State.SUCCEEDED else None
            self._compare(after.model_type)

    def _act_on(self, row: Row) -> None:
        """What people wanted to do once the launch is so far."""
        waiting = self._waiting_for.get(row.name)
        if not waiting:
            return
        there = [each for each in waiting if each[0](row.launch)]
        for each in there:
            waiting.remove(each)
            self._push(self.clock.monotonic(), each[1])

    def _judge_route(self, model_type: str) -> None:
        launches = [row.launch for row in self.launches.open_on(model_type)]

        def find(name: str) -> Launch | None:
            row = self.launches.rows.get(name)
            return None if row is None else row.launch

        for region in self.routes[model_type].needs:
            self.oracle.look(model_type, region, self.routes.simulators[model_type, region], launches, find)

    def _compare(self, model_type: str) -> None:
        """Where nothing goes on, registry, capacity and platform agree."""
        open_ = [row.launch for row in self.launches.open_on(model_type)]
        if any(launch.touched or launch.reservation for launch in open_):
            return
        route = self.routes[model_type]
        models = self.registry.models_of(model_type)
        for region in route.needs:
            desired = self.routes.simulators[model_type, region].desired(route.target)
            split = self.registry.split(model_type, region)
            booked = {
                model.name: self.capacity.booked(model.name, self.routes.place(model.name, region)) for model in models
            }
            for what in disagreements(model_type, region, desired, split, booked):
                self.oracle.breaks(f"{self.clock.now():%d %H:%M:%S} {what}")


def _nothing(_: Launch) -> None:
    """Nobody looks on."""
