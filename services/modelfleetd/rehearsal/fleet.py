"""A fleet in virtual time: routes of one team on one pool, launches on them, what goes wrong, and what people do.

One loop on a heap of due times carries everything on; nothing looks at everything. A launch is looked at when it wants
to be, except that looks at which nothing can have changed are left out: while replicas start it is looked at when the
next thing happens on its route, and while it waits for capacity or people when they have answered.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, cast

from modelfleetd.capacity.domain.pool import Place
from modelfleetd.clock import ManualClock
from modelfleetd.errors import FleetError
from modelfleetd.launcher.domain import summary, verbs
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.freeze import FreezeWindow
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.record import PhaseTime, Share
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.judges import Judges
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.reconciler import LEASE_SECONDS
from modelfleetd.launcher.renewal import Renewer
from modelfleetd.launcher.round import Round
from modelfleetd.launcher.store import Store
from modelfleetd.launcher.windows import Windows
from modelfleetd.platform.model import DesiredModel, DesiredServing, Fence, ModelShare, ServingSpec, TargetKind
from modelfleetd.platform.simulator import Behaviour, Simulator
from modelfleetd.rehearsal.capacity import MemoryCapacity, Oversold
from modelfleetd.rehearsal.chance import NO_TROUBLE, Chance, Crash, Trouble
from modelfleetd.rehearsal.launches import SOONEST, MemoryLaunches, Row
from modelfleetd.rehearsal.oracle import Oracle, disagreements
from modelfleetd.rehearsal.registry import MemoryRegistry
from modelfleetd.rehearsal.stability import MemoryStability
from modelfleetd.rehearsal.world import Agent, MemoryWorld, Trained, carries

TEAM: Final = "teams/rehearsal"
POOL: Final = "pools/rehearsal"
FLAVOR: Final = "flavors/cpu"
REGION: Final = "regions/local"
# Looks at which nothing can have changed are left out, for so long at most.
_QUIET: Final = 30.0
_QUIETEST: Final = 600.0
# While nothing happens on a route the gates of a bake are asked so often; at its end in any case.
_JUDGED: Final = 120.0
# What only others can end: whoever does wakes the launch.
_UP_TO_OTHERS: Final = frozenset({"AwaitingApproval", "AwaitingPeople", "RouteBusy"})
# What is refused for want of capacity is asked for again so much after something was freed, at most.
_AGAIN: Final = 30.0
_SETTLE: Final = 5.0
_QUICK: Final = Behaviour(start_seconds=(0.5, 1.0), terminate_seconds=(0.1, 0.2), acknowledge_seconds=(0.05, 0.1))

Act = Callable[["Fleet"], object]


@dataclass(frozen=True, slots=True)
class Route:
    """A model type, and what serves it when the rehearsal begins.

    Attributes:
        model_type: its name.
        needs: replicas of its baseline for the whole route, by region.
        baseline: the id of the model that serves everything at first.
        units: of the flavor, that a replica takes.
        behaviour: of the machines that it runs on.
    """

    model_type: str
    needs: Mapping[str, int]
    baseline: str = "old"
    tier: str = "TIER2"
    flavor: str = FLAVOR
    units: int = 1
    startup: timedelta = timedelta(minutes=3)
    behaviour: Behaviour = field(default_factory=Behaviour)

    @property
    def target(self) -> str:
        return self.model_type.replace("modelTypes/", "targets/")

    def model(self, model_id: str) -> str:
        """The name of a model of it."""
        return f"{self.model_type}/models/{model_id}"


@dataclass(frozen=True, slots=True)
class Served:
    """What a model has in a region before the first launch: its share in basis points, and replicas that run."""

    share: int
    replicas: int


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


class Fleet:
    """Routes of one team on one pool.

    Attributes:
        clock: of everything.
        oracle: counts the promises that are broken.
        registry: that everybody asks.
        capacity: that everybody asks.
        launches: the launcher's store.
        answers: what gates say that are asked elsewhere.
        rounds: of the launcher so far.
        crashes: times that its process has died.
        stalls: calls that have hung for longer than the lease.
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
        launches: Callable[[ManualClock, Chance, int | None], MemoryLaunches] = MemoryLaunches,
    ) -> None:
        """Makes a fleet without routes.

        Args:
            seed: of everything that is drawn.
            spare: units in each region beyond what serves at first.
            clock: to be shared with others.
            future_reservations: whether what does not fit may wait for what others will free.
            history: events that are kept of each launch; None: all.
            pool: its name.
            team: whose it is.
            launches: makes the launcher's store.
        """
        self.clock = clock or ManualClock()
        self.oracle = Oracle()
        self.registry = MemoryRegistry()
        self.chance = Chance(f"{seed} accidents")
        self.capacity = MemoryCapacity(pool, {}, self.clock, future_reservations=future_reservations)
        self.stability = MemoryStability(seed, self.clock.now, self._requests)
        self.launches = launches(self.clock, self.chance, history)
        self.routes: dict[str, Route] = {}
        self.pool, self.team = pool, team
        self.rounds = self.crashes = self.stalls = 0
        self._seed = seed
        self._spare = spare
        self._world = MemoryWorld(self.registry, self.capacity, self.stability, self.chance, team)
        ports: Any = self._world
        self.answers = self._world.answers
        self._ports = World(ports, ports, ports, ports, self.answers)
        self._executor = Executor(self._ports, self.clock)
        self._judges = Judges(self._ports)
        self._renewer = Renewer(self._ports)
        self._windows = Windows(cast("Store", self.launches), self.clock)
        self._order = itertools.count()
        self._heap: list[tuple[float, int, str | Act]] = []
        self._capacity_due: float | None = None
        self._waiting_for: dict[str, list[tuple[Callable[[Launch], bool], Act]]] = {}
        self._refused: dict[str, None] = {}
        self._served: dict[tuple[str, str], Mapping[str, Served]] = {}
        self._roles: dict[str, Mapping[str, str]] = {}
        self._troubled: dict[str, str] = {}
        self._simulators: dict[tuple[str, str], Simulator] = {}
        self.launches.patience = self._patience
        self.launches.before_write = lambda launch: self._judge_route(launch.model_type)
        self.launches.changed = self._changed
        self.launches.scheduled = lambda row: self._push(row.due, row.name)
        self.capacity.free_again = self._free_again
        self.capacity.held = lambda launch: self.launches.wake(launch, _SETTLE)

    # What there is

    def add_type(self, route: Route) -> None:
        """Registers a model type. To be called before `start`."""
        self.routes[route.model_type] = route
        self.registry.create_type(route.model_type, self.team, route.tier, tuple(route.needs))
        for region in route.needs:
            agent = self._world.agents.setdefault(region, Agent(self.chance, self.clock.monotonic))
            agent.meanwhile = self._stall
            simulator = Simulator(
                self.clock,
                seed=_number(f"{self._seed} {route.model_type} {region}"),
                behaviour=replace(_QUICK, requests_per_second=route.behaviour.requests_per_second),
                region=region,
            )
            agent.simulators[route.target] = self._simulators[route.model_type, region] = simulator
        self.add_model(route.model_type, route.baseline, route.needs)

    def add_model(
        self, model_type: str, model_id: str, needs: Mapping[str, int], *, flavor: str = "", units: int = 0
    ) -> str:
        """Registers a model that needs so many replicas for its whole route, by region. Returns its name.

        Args:
            model_type: its route.
            model_id: its id.
            needs: replicas by region.
            flavor: that it runs on; empty: that of the route.
            units: that a replica takes; 0: as many as the route's.
        """
        route = self.routes[model_type]
        name = route.model(model_id)
        flavor, units = flavor or route.flavor, units or route.units
        spec = ServingSpec(command=("serve",), flavor=flavor, units_per_replica=units)
        self.registry.create_model(model_type, name)
        max_qps = {region: carries(replicas) for region, replicas in needs.items()}
        self._world.models[name] = Trained(name, spec, max_qps, route.startup)
        return name

    def serves(
        self, model_type: str, region: str, served: Mapping[str, Served], roles: Mapping[str, str] | None = None
    ) -> None:
        """Says what serves a route in a region before the first launch; without it, its baseline does, alone.

        Args:
            model_type: the route.
            region: where.
            served: by the name of the model; the shares add up to the whole.
            roles: of models that are no candidates, by their names; None: only the route's baseline has one.
        """
        self._served[model_type, region] = served
        if roles is not None:
            self._roles[model_type] = roles

    async def start(self) -> None:
        """Has what serves before the first launch serve, and books what that takes."""
        for shares in (False, True):
            for route in self.routes.values():
                for region in route.needs:
                    await self._apply(route, region, shares=shares)
            self._pass(10.0)
        quota: dict[Place, int] = {}
        for route in self.routes.values():
            for region in route.needs:
                quota.setdefault(Place(route.flavor, region), self._spare_in(region))
                for place, units in self._serving(route, region).values():
                    quota[place] = quota.get(place, 0) + units
        self.capacity.quota.update(quota)
        for route in self.routes.values():
            served = {region: self._served_by(route, region) for region in route.needs}
            roles = self._roles.get(route.model_type, {route.model(route.baseline): "BASELINE"})
            splits = {
                region: [Share(model, one.share) for model, one in there.items() if one.share]
                for region, there in served.items()
            }
            self.registry.adopt(route.model_type, roles, splits)
            for region in route.needs:
                for model, (place, units) in self._serving(route, region).items():
                    self.capacity.book(model, place, units)
                simulator = self._simulators[route.model_type, region]
                simulator.catch_up()
                simulator.behaviour = route.behaviour
                self.oracle.skip(route.model_type, region, simulator)

    def _served_by(self, route: Route, region: str) -> Mapping[str, Served]:
        """What serves at first, by the name of the model."""
        name = route.model(route.baseline)
        return self._served.get((route.model_type, region)) or {
            name: Served(10_000, max(2, self._world.models[name].needs(region)))
        }

    def _serving(self, route: Route, region: str) -> Mapping[str, tuple[Place, int]]:
        """Units that what serves at first takes, by the name of the model."""
        return {
            model: (self._place(model, region), one.replicas * self._world.models[model].spec.units)
            for model, one in self._served_by(route, region).items()
        }

    def _place(self, model: str, region: str) -> Place:
        return Place(self._world.models[model].spec.flavor, region)

    def _spare_in(self, region: str) -> int:
        return self._spare if isinstance(self._spare, int) else self._spare.get(region, 0)

    async def _apply(self, route: Route, region: str, *, shares: bool) -> None:
        served = self._served_by(route, region)
        desired = DesiredServing(
            tuple(DesiredModel(model, self._world.models[model].spec, one.replicas) for model, one in served.items()),
            tuple(ModelShare(model, one.share) for model, one in served.items() if one.share) if shares else (),
        )
        fence = Fence(1, f"before/{route.target}/{'shares' if shares else 'replicas'}")
        await self._simulators[route.model_type, region].apply(route.target, TargetKind.ROUTE, fence, desired)

    def _pass(self, seconds: float) -> None:
        self.clock.set(self.clock.monotonic() + seconds)
        for simulator in self._simulators.values():
            simulator.catch_up()

    # What people do

    def create(
        self,
        launch_id: str,
        model_type: str,
        candidate: str,
        *,
        strategy: Strategy = Strategy.REPLACE_BASELINE,
        policy: Policy | None = None,
        target_share: int = 0,
        holdout_share: int = 0,
        regions: Sequence[str] = (),
        trouble: Trouble = NO_TROUBLE,
        actor: str = "alice",
        known_full: Mapping[str, int] | None = None,
        takes_over: str = "",
        rolls_back: str = "",
    ) -> str:
        """Creates a launch, queued where another one is active on the route. Returns its name.

        Args:
            launch_id: its id.
            model_type: the route.
            candidate: the name of the model.
            strategy: what it is to bring about.
            policy: with every default filled in; without one, no gate but availability.
            target_share: in basis points, where the strategy has a target.
            holdout_share: in basis points, that the old baseline keeps.
            regions: where; none: everywhere.
            trouble: what goes wrong with it.
            actor: who creates it.
            known_full: of a rollback: what its candidate needs by region.
            takes_over: of a rollback: the reservation that keeps what it needs.
            rolls_back: the launch that it takes back.
        """
        now, route = self.clock.now(), self.registry.type_of(model_type)
        launch = Launch(
            name=f"launches/{launch_id}",
            uid=str(uuid.UUID(hashlib.sha256(f"{self._seed} {launch_id}".encode()).hexdigest()[:32], version=4)),
            model_type=model_type,
            candidate=candidate,
            strategy=strategy,
            pool=self.pool,
            regions=tuple(regions) or self._regions(model_type, candidate, strategy),
            policy=policy or Policy(stability_gate=StabilityGate(disabled=True)),
            actor=actor,
            trace_id=hashlib.sha256(launch_id.encode()).hexdigest()[:32],
            create_time=now,
            update_time=now,
            target_share=target_share,
            holdout_share=holdout_share,
            known_full=known_full or {},
            takes_over=takes_over,
            rolls_back=rolls_back,
            baseline=route.baseline,
            tier=route.tier.name if route.tier is not None else "",
            team=self.team,
            phase_times=(PhaseTime(State.PENDING, now),),
        )
        busy = self.launches.open_on(model_type)
        if launch.mitigates:
            launch = self._ahead(launch)
        elif busy:
            launch = replace(launch, queued=True, baseline="")
        delay = timedelta(seconds=trouble.label_delay_seconds)
        self.stability.model(candidate, trouble.calibration, trouble.labels, delay)
        self.launches.insert(launch, trouble)
        return launch.name

    def _ahead(self, launch: Launch) -> Launch:
        launch = self.launches.precedence(launch)
        if launch.queued:
            return replace(launch, baseline="")
        active = self.launches.active_on(launch.model_type)
        return launch if active is None else replace(launch, beside=None)

    def _regions(self, model_type: str, candidate: str, strategy: Strategy) -> tuple[str, ...]:
        found = self.registry.type_of(model_type)
        serves = {split.region for split in found.splits for one in split.shares if one.model == candidate}
        there = tuple(region for region in found.regions if region in serves)
        return there if strategy.rule.where_it_serves and there else found.regions

    def verb(self, name: str, act: Callable[[Launch], Launch], said: str) -> str:
        """Does what a person does to a launch. Returns why it was refused; empty where it was done."""
        try:
            after = act(self.launches.rows[name].launch)
        except FleetError as error:
            return error.message
        self.launches.put(after, said)
        return ""

    def pause(self, name: str, author: str = "bob", reason: str = "a look") -> str:
        """Somebody pauses a launch."""
        now = self.clock.now()
        return self.verb(name, lambda launch: verbs.pause(launch, author, reason, now), f"{author} pauses it: {reason}")

    def resume(self, name: str, author: str = "bob", *, any_author: bool = False) -> str:
        """Somebody takes a reason to pause away, or everybody's."""
        now = self.clock.now()
        said = f"{author} resumes it"
        return self.verb(name, lambda launch: verbs.resume(launch, author, now, any_author=any_author), said)

    def skip_step(self, name: str, author: str = "bob") -> str:
        """Somebody ends the bake of the step that it is at."""
        step = self.launches.rows[name].launch.step.number
        return self.verb(name, lambda launch: verbs.skip_step(launch, author, step), f"{author} skips step {step}")

    def promote(self, name: str, author: str = "bob", reason: str = "it is good") -> str:
        """Somebody skips the bakes that remain."""
        now = self.clock.now()
        said = f"{author} promotes it: {reason}"
        return self.verb(name, lambda launch: verbs.promote(launch, author, reason, now), said)

    def abort(self, name: str, author: str = "oncall", reason: str = "it looks bad") -> str:
        """Somebody aborts a launch."""
        now = self.clock.now()
        return self.verb(name, lambda launch: verbs.abort(launch, author, reason, now), f"{author} aborts it: {reason}")

    def approve(self, name: str, author: str = "carol") -> str:
        """Somebody approves what the launch asks for."""
        envelope, now = self.launches.rows[name].launch.envelope, self.clock.now()
        digest = envelope.digest if envelope is not None else ""
        return self.verb(name, lambda launch: verbs.approve(launch, author, digest, now), f"{author} approves it")

    def reject(self, name: str, author: str = "carol", reason: str = "not now") -> str:
        """Somebody rejects what the launch asks for."""
        now = self.clock.now()
        said = f"{author} rejects it: {reason}"
        return self.verb(name, lambda launch: verbs.reject(launch, author, reason, now), said)

    def retry(self, name: str, author: str = "alice") -> str:
        """Somebody begins a launch that went back once more."""
        launch, now = self.launches.rows[name].launch, self.clock.now()
        try:
            again = verbs.retry(launch, author, now)
        except FleetError as error:
            return error.message
        busy = bool(self.launches.open_on(launch.model_type))
        baseline = "" if busy else self.registry.type_of(launch.model_type).baseline
        self.launches.put(replace(again, queued=busy, baseline=baseline), f"{author} tries it again", anew=True)
        return ""

    def roll_back(self, name: str, launch_id: str, *, trouble: Trouble = NO_TROUBLE, actor: str = "oncall") -> str:
        """Somebody takes a launch back that has succeeded. Returns the name of the launch that does it, or raises.

        Raises:
            WrongState: it cannot be taken back.
        """
        finished = self.launches.rows[name].launch
        verbs.check_taken_back(finished, self.registry.type_of(finished.model_type).baseline, "")
        assert finished.plan is not None
        full = {plan.region: plan.baseline.full for plan in finished.plan.regions if plan.baseline is not None}
        policy = Policy(
            max_step_basis_points=10_000, bake_duration=timedelta(0), rollback_window=timedelta(0),
            stability_gate=StabilityGate(disabled=True),
        )  # fmt: skip
        return self.create(
            launch_id,
            finished.model_type,
            finished.baseline,
            strategy=Strategy.ROLL_BACK,
            policy=policy,
            trouble=trouble,
            actor=actor,
            known_full=full,
            takes_over=finished.reservation,
            rolls_back=finished.name,
        )

    # What goes wrong

    def cut_off(self, model_type: str, region: str, seconds: float) -> None:
        """The agent of a region does not answer for a route from now on."""
        self._world.agents[region].away_until[self.routes[model_type].target] = self.clock.monotonic() + seconds

    def kill(self, model: str, count: int = 1) -> None:
        """So many replicas of a model die, in every region."""
        for (model_type, _), simulator in self._simulators.items():
            if model.startswith(f"{model_type}/"):
                simulator.kill(model, count)

    def simulator(self, model_type: str, region: str = REGION) -> Simulator:
        """The machines that a route runs on."""
        return self._simulators[model_type, region]

    def freeze(self, *windows: FreezeWindow) -> None:
        """Sets the freeze windows that there are."""
        self.launches.windows = list(windows)

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
                if (units := self.capacity.booked(model.name, self._place(model.name, region)))
            }
            for region in route.needs
        }
        return LaunchOutcome(launch, summary.sentence(launch, self.clock.now()), list(row.events), booked)

    def check(self) -> None:
        """Judges everything that was done, and what there is on routes on which nothing goes on."""
        for model_type in self.routes:
            self._judge_route(model_type)
            self._compare(model_type)
        for difference in self.capacity.differences():
            self.oracle.breaks(f"the books of {self.pool} differ: {difference}")

    @property
    def effects(self) -> int:
        """How many things agents did."""
        return sum(len(simulator.ledger) for simulator in self._simulators.values())

    def trace(self) -> str:
        """A digest of everything that agents did and launches went through: the same seed has the same."""
        digest = hashlib.sha256()
        for (model_type, region), simulator in self._simulators.items():
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
            pass
        except Oversold as error:
            self.oracle.breaks(f"{name}: the pool is oversold: {error}")
        finally:
            self.chance.trouble = NO_TROUBLE
        self._judge_route(row.launch.model_type)
        self._act_on(row)

    async def _stall(self) -> None:
        """A call hangs for longer than the lease: another launcher goes on, and then it comes through after all."""
        self.stalls += 1
        stalled = next(row for row in self.launches.rows.values() if row.trouble is self.chance.trouble)
        for agent in self._world.agents.values():
            agent.meanwhile = None
        self.clock.set(self.clock.monotonic() + LEASE_SECONDS)
        await self._round(stalled)
        for agent in self._world.agents.values():
            agent.meanwhile = self._stall

    def _trouble(self, row: Row) -> None:
        """The machines of a route are as the launch has them that acts there."""
        launch = row.launch
        if self._troubled.get(launch.model_type) == row.name or launch.queued or launch.mitigates:
            return
        self._troubled[launch.model_type] = row.name
        trouble, route = row.trouble, self.routes[launch.model_type]
        least, most = route.behaviour.terminate_seconds
        for region in route.needs:
            simulator = self._simulators[launch.model_type, region]
            simulator.catch_up()
            simulator.behaviour = replace(
                route.behaviour,
                start_failure_rate=trouble.start_failure_rate,
                mean_life_seconds=trouble.mean_life_seconds,
                terminate_seconds=(least * trouble.slow_termination, most * trouble.slow_termination),
                lost_call_rate=trouble.agent_lost_rate,
                lost_answer_rate=trouble.agent_lost_rate,
            )
            simulator.failing_models = {launch.candidate} if trouble.failing else set()
            simulator.error_rates = {launch.candidate: trouble.error_rate} if trouble.error_rate else {}
            slow = route.behaviour.latency_ms * trouble.latency
            simulator.latencies = {launch.candidate: slow} if trouble.latency != 1.0 else {}

    def _patience(self, launch: Launch, seconds: float) -> float:
        """Seconds until a launch is really looked at: what nobody else ends is looked at as it wants."""
        waiting = launch.condition("Waiting")
        reason = waiting.reason if waiting is not None else ""
        if reason in _UP_TO_OTHERS:
            return max(seconds, _QUIETEST if launch.reservation else 6 * _QUIETEST)
        if reason == "CapacityPromised":
            return max(seconds, _QUIETEST)
        if reason == "Refused" and launch.state in (State.ESTIMATING, State.PREPARING) and seconds >= _AGAIN / 2:
            self._refused[launch.name] = None
            return 6 * _QUIETEST
        if reason == "Baking":
            return max(seconds, min(self._next_event(launch.model_type, _QUIETEST), self._until_judged(launch)))
        if reason == "Frozen":
            return max(seconds, self._next_event(launch.model_type, _QUIETEST))
        if seconds >= 1.0 or not launch.touched:
            return seconds
        return max(seconds, min(self._next_event(launch.model_type), _QUIET if seconds >= 0.2 else seconds))

    def _until_judged(self, launch: Launch) -> float:
        """Seconds until the gates of a bake are asked again, or it ends."""
        end, judge, now = launch.bake_end, launch.step.next_judge, self.clock.now()
        if end is None:
            return (judge - now).total_seconds() if judge is not None else 0.0
        return min(_JUDGED, (end - now).total_seconds())

    def _next_event(self, model_type: str, quiet: float = 1.0) -> float:
        """Seconds until something happens on a route, `_QUIETEST` at most; `quiet` where only requests are due."""
        now = self.clock.monotonic()
        found = [self._simulators[model_type, region].next_event for region in self.routes[model_type].needs]
        times = [due - now + SOONEST for due in found if due is not None]
        return min(_QUIETEST, max(SOONEST, min(times))) if times else quiet

    def _free_again(self) -> None:
        """Who was refused for want of capacity asks again soon."""
        refused, self._refused = self._refused, {}
        for name in refused:
            self.launches.wake(name, _AGAIN * self.chance.draw.random())

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
            self.stability.look(after.candidate)
        if after.ended and not before.ended:
            if self._troubled.get(after.model_type) == after.name:
                del self._troubled[after.model_type]
                for region, route in ((region, self.routes[after.model_type]) for region in after.regions):
                    self._simulators[after.model_type, region].behaviour = route.behaviour
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
            self.oracle.look(model_type, region, self._simulators[model_type, region], launches, find)

    def _compare(self, model_type: str) -> None:
        """Where nothing goes on, registry, capacity and platform agree."""
        open_ = [row.launch for row in self.launches.open_on(model_type)]
        if any(launch.touched or launch.reservation for launch in open_):
            return
        route = self.routes[model_type]
        models = self.registry.models_of(model_type)
        for region in route.needs:
            desired = self._simulators[model_type, region].desired(route.target)
            split = self.registry.split(model_type, region)
            booked = {model.name: self.capacity.booked(model.name, self._place(model.name, region)) for model in models}
            for what in disagreements(model_type, region, desired, split, booked):
                self.oracle.breaks(f"{self.clock.now():%d %H:%M:%S} {what}")

    def _requests(self, model: str) -> int:
        model_type = model.rsplit("/", 2)[0]
        target = self.routes[model_type].target
        return sum(
            self._simulators[model_type, region].requests(target, model) for region in self.routes[model_type].needs
        )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
