"""Every strategy in virtual time, with an accident at a place that is counted: people abort right after the n-th change
that is written, the n-th call comes through only when the launch is over, the n-th answer is lost. And the oracle of
what may be there in the end; `tests/faults/test_planted_bugs.py` shows that it finds what it is there for.

The launches run in a rehearsed fleet: the real rounds of the launcher, and the real decisions of capacity and registry.
"""

from __future__ import annotations

import contextlib
import enum
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias, cast

from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.reservation import LIVE
from modelfleetd.capacity.domain.reservation import State as Held
from modelfleetd.errors import FleetError, PartUnavailable, WrongState
from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.hold import Hold
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.policy import Policy, RegionOrder, StabilityGate
from modelfleetd.launcher.domain.record import Act
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.strategies import Strategy
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.looking import look
from modelfleetd.launcher.ports import HeldUnits, HoldRequest, TypeFacts, UsedUnits, World
from modelfleetd.launcher.reconciler import LEASE_SECONDS
from modelfleetd.launcher.store import Change
from modelfleetd.platform.base import Platform
from modelfleetd.platform.model import (
    Applied,
    DesiredServing,
    EffectKind,
    Fence,
    ServingObservation,
    TargetKind,
)
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.chance import NO_TROUBLE, Trouble
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.launches import MemoryLaunches
from modelfleetd.rehearsal.parts import Parts
from modelfleetd.rehearsal.routes import FLAVOR, REGION, Route
from modelfleetd.rehearsal.world import MemoryWorld

TYPE = "modelTypes/ranker"
OLD, NEW, OTHER = f"{TYPE}/models/old", f"{TYPE}/models/new", f"{TYPE}/models/other"
A, B = "regions/a", "regions/b"
# Units to spare: for the whole candidate, and so few that what it takes has to be freed first.
ROOM, RECYCLING = 14, 2

_GATE = StabilityGate(disabled=True)
_QUICK = Policy(
    bake_duration=timedelta(seconds=1),
    max_step_basis_points=5_000,
    stability_gate=_GATE,
    step_deadline=timedelta(seconds=40),
)
_AT_ONCE = replace(_QUICK, bake_duration=timedelta(0), max_step_basis_points=10_000, rollback_window=timedelta(0))
# Of what was there before: units that it found.
_PLENTY = 60
_LEAST = 2
# How often replicas die, and for how long they do so.
_DYING, _DEATHS = 5.0, 12

Does: TypeAlias = Callable[[], Awaitable[None]]


class Accident(enum.Enum):
    """What goes wrong with replicas meanwhile."""

    NOTHING = "nothing fails"
    CANDIDATES_DIE = "candidate's replicas die"
    BASELINES_DIE = "baseline's replicas die"
    STARTS_FAIL = "starts fail"


@dataclass(frozen=True)
class Case:
    """A launch, and what serves and what is what once it has succeeded.

    Attributes:
        begin: creates the launch, and gives its name.
        shares: what serves in the end.
        roles: what has got another role by then.
        needs: of each model, what it needs in each region for the whole route.
        before: what happened on the route before.
        regions: of the route.
        at_first: what the old model needed before it was measured anew; 0: what it needs now.
        least: units to spare with which it fits at all, where these are more than others need.
    """

    begin: Callable[[Course], str]
    shares: Mapping[str, int]
    roles: Mapping[str, str]
    needs: Mapping[str, Sequence[int]] = field(default_factory=lambda: {OLD: (12,), NEW: (10,)})
    before: Callable[[Course], Awaitable[None]] | None = None
    regions: Sequence[str] = (REGION,)
    at_first: int = 0
    least: int = 0

    def needed(self, model: str, region: str, share: int) -> int:
        """Replicas that a model has for a share."""
        full = self.needs[model][self.regions.index(region)]
        return max(_LEAST, -(-full * share // 10_000)) if share else 0


def creates(strategy: Strategy, model: str = NEW, policy: Policy = _QUICK, **given: Any) -> Callable[[Course], str]:
    """A launch of a strategy, with what else `Fleet.create` takes."""

    def begin(course: Course) -> str:
        return course.fleet.create("l", TYPE, model, strategy=strategy, policy=policy, **given)

    return begin


def _after(
    model: str, strategy: Strategy, policy: Policy = _AT_ONCE, **given: Any
) -> Callable[[Course], Awaitable[None]]:
    """What happened on the route before: another launch, which has succeeded."""

    async def before(course: Course) -> None:
        name = course.fleet.create("before", TYPE, model, strategy=strategy, policy=policy, **given)
        await course.run()
        assert course.launch_of(name).state is State.SUCCEEDED, course.history(name)

    return before


def _experiment(share: int, model: str = NEW) -> Callable[[Course], Awaitable[None]]:
    return _after(model, Strategy.START_EXPERIMENT, target_share=share)


def _takes_back(course: Course) -> str:
    return course.fleet.roll_back("launches/before", "l")


_EVEN: Mapping[str, Sequence[int]] = {OLD: (12,), NEW: (12,)}
_SWAPPED = {NEW: "BASELINE", OLD: "RETIRED"}
_BACK = {OLD: "BASELINE", NEW: "RETIRED"}
_KEPT = replace(_AT_ONCE, rollback_window=timedelta(hours=1))
# Nobody waits for long for what is kept for a rollback.
_BRIEF = replace(_QUICK, rollback_window=timedelta(minutes=2))
_REGIONS: Mapping[str, Sequence[int]] = {OLD: (9, 5), NEW: (8, 5)}

CASES: Mapping[str, Case] = {
    "replacing the baseline": Case(creates(Strategy.REPLACE_BASELINE), {NEW: 10_000}, _SWAPPED),
    "replacing with a holdout": Case(
        creates(Strategy.REPLACE_BASELINE, holdout_share=1_000),
        {NEW: 9_000, OLD: 1_000},
        {NEW: "BASELINE", OLD: "HOLDOUT"},
    ),
    "replacing by an experiment": Case(
        creates(Strategy.REPLACE_BASELINE), {NEW: 10_000}, _SWAPPED, before=_experiment(2_000)
    ),
    "starting an experiment": Case(
        creates(Strategy.START_EXPERIMENT, target_share=3_000), {NEW: 3_000, OLD: 7_000}, {NEW: "EXPERIMENT"}
    ),
    "ramping up": Case(
        creates(Strategy.RAMP, target_share=5_000), {NEW: 5_000, OLD: 5_000}, {}, _EVEN, _experiment(2_000)
    ),
    "ramping down": Case(
        creates(Strategy.RAMP, target_share=2_000), {NEW: 2_000, OLD: 8_000}, {}, _EVEN, _experiment(5_000)
    ),
    "ending an experiment": Case(
        creates(Strategy.END_EXPERIMENT, policy=_AT_ONCE), {OLD: 10_000}, {NEW: "RETIRED"}, _EVEN, _experiment(3_000)
    ),
    "ending a holdout": Case(
        creates(Strategy.END_EXPERIMENT, OLD, _AT_ONCE),
        {NEW: 10_000},
        {OLD: "RETIRED"},
        before=_after(NEW, Strategy.REPLACE_BASELINE, holdout_share=2_000),
    ),
    "growing": Case(creates(Strategy.RESIZE, OLD), {OLD: 10_000}, {}, {OLD: (12,)}, at_first=9, least=3),
    "shrinking": Case(creates(Strategy.RESIZE, OLD), {OLD: 10_000}, {}, {OLD: (9,)}, at_first=12),
    "rolling back": Case(_takes_back, {OLD: 10_000}, _BACK, before=_after(NEW, Strategy.REPLACE_BASELINE, _KEPT)),
    "rolling back when the window is over": Case(
        _takes_back, {OLD: 10_000}, _BACK, before=_after(NEW, Strategy.REPLACE_BASELINE), least=4
    ),
    "replacing region by region": Case(
        creates(Strategy.REPLACE_BASELINE, policy=replace(_QUICK, region_order=RegionOrder.ONE_BY_ONE)),
        {NEW: 10_000},
        _SWAPPED,
        _REGIONS,
        regions=(A, B),
    ),
    "replacing in all regions together": Case(
        creates(Strategy.REPLACE_BASELINE, policy=replace(_QUICK, region_order=RegionOrder.TOGETHER)),
        {NEW: 10_000},
        _SWAPPED,
        _REGIONS,
        regions=(A, B),
    ),
}


@dataclass(frozen=True)
class Incident:
    """A launch during which a mitigation becomes necessary.

    Attributes:
        case: the launch.
        mitigate: creates the mitigation, and gives its name.
        ends: what serves in the end, by who has succeeded: the launch, the mitigation.
    """

    case: Case
    mitigate: Callable[[Course], str]
    ends: Mapping[tuple[bool, bool], Mapping[str, int]]


def _ends_other(course: Course) -> str:
    return course.fleet.create("m", TYPE, OTHER, strategy=Strategy.END_EXPERIMENT, policy=_AT_ONCE)


def _takes_back_too(course: Course) -> str:
    return course.fleet.roll_back("launches/before", "m")


_THREE: Mapping[str, Sequence[int]] = {OLD: (12,), NEW: (10,), OTHER: (12,)}
_BESIDE = {
    (False, False): {OLD: 8_000, OTHER: 2_000},
    (True, False): {NEW: 8_000, OTHER: 2_000},
    (False, True): {OLD: 10_000},
    (True, True): {NEW: 10_000},
}

INCIDENTS: Mapping[str, Incident] = {
    "an experiment ends while the baseline is replaced": Incident(
        Case(creates(Strategy.REPLACE_BASELINE, policy=_BRIEF), {}, {}, _THREE, _experiment(2_000, OTHER)),
        _ends_other,
        _BESIDE,
    ),
    "an experiment ends while the baseline is replaced region by region": Incident(
        Case(
            creates(Strategy.REPLACE_BASELINE, policy=replace(_BRIEF, region_order=RegionOrder.ONE_BY_ONE)),
            {},
            {},
            {**_REGIONS, OTHER: (8, 5)},
            _experiment(2_000, OTHER),
            regions=(A, B),
            least=3,
        ),
        _ends_other,
        _BESIDE,
    ),
    "the last launch is taken back while the next one is on its way": Incident(
        Case(
            creates(Strategy.REPLACE_BASELINE, OTHER, _BRIEF),
            {},
            {},
            _THREE,
            _after(NEW, Strategy.REPLACE_BASELINE, _KEPT),
            least=8,
        ),
        _takes_back_too,
        # Where the next one could not be held up any more, what people wanted back serves after it.
        {
            (False, False): {NEW: 10_000},
            (True, False): {OTHER: 10_000},
            (False, True): {OLD: 10_000},
            (True, True): {OLD: 10_000},
        },
    ),
    "the last launch is taken back while an experiment starts": Incident(
        Case(
            creates(Strategy.START_EXPERIMENT, OTHER, _BRIEF, target_share=2_000),
            {},
            {},
            _THREE,
            _after(NEW, Strategy.REPLACE_BASELINE, _KEPT),
        ),
        _takes_back_too,
        {
            (False, False): {NEW: 10_000},
            (True, False): {OTHER: 2_000, NEW: 8_000},
            (False, True): {OLD: 10_000},
            (True, True): {OTHER: 2_000, OLD: 8_000},
        },
    ),
}


class _Launches(MemoryLaunches):
    """Tells of each change that a round writes as soon as it is written, before the round goes on."""

    recorded: Callable[[Launch], Awaitable[None]]

    async def record(self, change: Change) -> Launch | None:
        written = await super().record(change)
        if written is not None:
            await self.recorded(written)
        return written


@dataclass
class _Reached:
    """An agent; each act is told of before it arrives."""

    agent: Platform
    arrives: Does

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        await self.arrives()
        return await self.agent.apply(target, kind, fence, desired)

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        return await self.agent.observe(target, epoch)


class _World(MemoryWorld):
    """Each act is told of before it arrives, and one answer of registry or capacity, by its number, is lost.

    Attributes:
        baseline: of the model type, whatever the registry says; empty: what that says.
    """

    arrives: Does
    loses = answered = 0
    baseline = ""

    async def model_type(self, name: str) -> TypeFacts:
        found = await super().model_type(name)
        return replace(found, baseline=self.baseline or found.baseline)

    async def finalize(self, model_type: str, launch: str, key: str, **given: Any) -> int:
        await self.arrives()
        revision = await super().finalize(model_type, launch, key, **given)
        self._answer()
        return revision

    async def reserve(self, request: HoldRequest, key: str) -> Hold:
        await self.arrives()
        made = await super().reserve(request, key)
        self._answer()
        return made

    async def activate(self, reservation: str, key: str) -> None:
        await self.arrives()
        await super().activate(reservation, key)
        self._answer()

    async def cancel(self, reservation: str, key: str) -> None:
        await self.arrives()
        await super().cancel(reservation, key)
        self._answer()

    async def settle(
        self,
        reservation: str,
        usages: Iterable[UsedUnits],
        kept: Iterable[HeldUnits],
        retain: timedelta,
        key: str,
    ) -> None:
        await self.arrives()
        await super().settle(reservation, usages, kept, retain, key)
        self._answer()

    async def release(self, reservation: str, key: str) -> None:
        await self.arrives()
        await super().release(reservation, key)
        self._answer()

    def at(self, address: str) -> Platform:
        return cast("Platform", _Reached(super().at(address), self.arrives))

    def _answer(self) -> None:
        self.answered += 1
        if self.answered == self.loses:
            raise PartUnavailable("capacity")


class Course:
    """A launch with its accidents. Afterwards `what_is_wrong` says what must not be.

    Attributes:
        then: what happens right after the n-th change that is written since the launch began.
        stall: the call, by its number, that comes through only once the launch has ended without it; 0: none.
        stall_aborts: whether people abort while it hangs; else another launcher goes on.
        aborted: launches that people have aborted in time, and `late` those that the registry may have had by then.
        moments: changes that were written.
        calls: acts upon anybody.
        answered: how many answers of registry and capacity had come by each change.
    """

    def __init__(
        self,
        case: Case,
        free: int = ROOM,
        accident: Accident = Accident.NOTHING,
        *,
        seed: int = 0,
        trouble: Trouble = NO_TROUBLE,
    ) -> None:
        self._trouble = Trouble(start_failure_rate=0.4) if accident is Accident.STARTS_FAIL else trouble
        self.case, self.accident, self._free = case, accident, max(free, case.least)
        self.then: dict[int, Does] = {}
        self.stall = 0
        self.stall_aborts = True
        self.moments = self.calls = 0
        self.answered: list[int] = []
        self.wrong: list[str] = []
        self.name = ""
        self.troubled = trouble is not NO_TROUBLE
        self.aborted: set[str] = set()
        self.late: set[str] = set()
        self.before: dict[str, Mapping[str, int]] = {}
        self.roles: dict[str, str] = {}
        self._baked: datetime | None = None
        self.fleet = Fleet(seed=seed, spare=_PLENTY, parts=Parts(launches=_Launches, world=self._world))
        # Looks that a long rehearsal leaves out are what is looked for here; twice a second is often enough.
        self.fleet.launches.patience = lambda launch, seconds: max(seconds, 0.5) if seconds >= 0.2 else seconds
        cast("_Launches", self.fleet.launches).recorded = self._recorded
        self._free_again = self.fleet.capacity.free_again
        self.fleet.capacity.free_again = self._freed
        ports: Any = self.world
        self._executor = Executor(World(ports, ports, ports, ports), self.fleet.clock)

    def _world(self, *given: Any) -> _World:
        self.world = _World(*given)
        self.world.arrives = self._arrives
        return self.world

    async def prepare(self) -> None:
        """What is there before, and the launch is created."""
        case = self.case
        old, *others = case.needs
        needs = dict.fromkeys(case.regions, case.at_first) if case.at_first else self._needs(old)
        self.fleet.add_type(Route(TYPE, needs, startup=timedelta(seconds=60)))
        await self.fleet.start()
        self.fleet.measure(old, self._needs(old))
        for model in others:
            self.fleet.add_model(TYPE, model.rpartition("/")[2], self._needs(model))
        if case.before is not None:
            await case.before(self)
        for region in case.regions:
            place = Place(FLAVOR, region)
            self.fleet.capacity.set_quota(place, self.fleet.capacity.used(place) + self._free)
            self.before[region] = self._shares(region)
        self.running = {region: self._desired(region) for region in case.regions}
        self.roles = self._roles()
        self.moments = self.calls = self.world.answered = 0
        self.name = case.begin(self)
        if self._trouble is not NO_TROUBLE:
            # Each has its own: whose call it is that hangs is told by it.
            self.fleet.launches.rows[self.name].trouble = replace(self._trouble)
        for region in case.regions if self.launch.mitigates else ():
            # Machines are as a launch has them, and a mitigation has none of its own.
            self.fleet.simulator(TYPE, region).behaviour = Behaviour(
                start_failure_rate=self._trouble.start_failure_rate,
                mean_life_seconds=self._trouble.mean_life_seconds,
                lost_call_rate=self._trouble.agent_lost_rate,
                lost_answer_rate=self._trouble.agent_lost_rate,
            )
        for number in range(_DEATHS):
            self.fleet.after(_DYING * (number + 1), lambda _: self._kill())

    def _needs(self, model: str) -> dict[str, int]:
        return dict(zip(self.case.regions, self.case.needs[model], strict=True))

    # What there is

    @property
    def launch(self) -> Launch:
        return self.launch_of(self.name)

    def launch_of(self, name: str) -> Launch:
        return self.fleet.launches.rows[name].launch

    def history(self, name: str = "") -> list[str]:
        """What a launch went through."""
        events = self.fleet.launches.rows[name or self.name].events
        return [f"{event.time:%H:%M:%S} {event.type}: {event.message}" for event in events]

    def _shares(self, region: str) -> dict[str, int]:
        found = self.fleet.simulator(TYPE, region).desired(_TARGET)
        return {share.model: share.share_basis_points for share in found.shares} if found else {}

    def _desired(self, region: str) -> dict[str, int]:
        found = self.fleet.simulator(TYPE, region).desired(_TARGET)
        return {model.model: model.replicas for model in found.models} if found else {}

    def _roles(self) -> dict[str, str]:
        return {model.name: model.role.name for model in self.fleet.registry.models_of(TYPE) if model.role is not None}

    def _booked(self, region: str) -> dict[str, int]:
        place = Place(FLAVOR, region)
        return {
            model.name: units
            for model in self.fleet.registry.models_of(TYPE)
            if (units := self.fleet.capacity.booked(model.name, place))
        }

    def _living(self, region: str) -> dict[str, int]:
        """Replicas that exist, terminating ones counted, by model."""
        simulator = self.fleet.simulator(TYPE, region)
        simulator.catch_up()
        found: Counter[str] = Counter()
        for effect in simulator.ledger:
            found[effect.model] += effect.kind is EffectKind.REPLICA_STARTED
            found[effect.model] -= effect.kind is EffectKind.REPLICA_TERMINATED
        return {model: count for model, count in found.items() if count}

    # What happens

    async def run(self, seconds: float = 1_500) -> Launch:
        """Lets rounds follow each other until every launch has ended."""
        clock = self.fleet.clock
        end = clock.monotonic() + seconds
        while clock.monotonic() < end and any(not row.launch.ended for row in self.fleet.launches.rows.values()):
            await self.fleet.run(clock.monotonic() + 2)
        return self.launch_of(self.name or next(iter(self.fleet.launches.rows)))

    async def abort(self, name: str = "") -> None:
        """A person aborts: as the verb does it, whoever acts now is overtaken at once."""
        name = name or self.name
        launch = self.launch_of(name)
        if launch.ended or launch.revision:
            return
        self._aborts(name)
        launch = self.launch_of(name)
        unsettled = (launch.intent.region,) if launch.intent and launch.intent.region else ()
        with contextlib.suppress(FleetError):
            await look(self._executor, launch, dict.fromkeys((*unsettled, *waves.to_observe(launch))))

    async def promote(self) -> None:
        """A person has the bakes that remain skipped."""
        self.fleet.promote(self.name)

    async def pause(self) -> None:
        """A person pauses, and aborts in a while."""
        self.fleet.pause(self.name)
        self.fleet.after(20.0, lambda _: self.abort_between())

    def abort_between(self) -> None:
        """Nobody acts just now, so that nobody has to be told."""
        launch = self.launch
        if not launch.ended and not launch.revision:
            self._aborts(self.name)

    def _aborts(self, name: str) -> None:
        intent = self.launch_of(name).intent
        refused = self.fleet.abort(name)
        assert not refused, refused
        # Where the registry was being called, it may have been done already.
        (self.late if intent is not None and intent.act is Act.FINALIZE else self.aborted).add(name)

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.fleet.launches.rows[self.name].trouble = self._trouble = NO_TROUBLE
        for region in self.case.regions:
            simulator = self.fleet.simulator(TYPE, region)
            simulator.catch_up()
            simulator.behaviour = Behaviour()

    def retry(self) -> None:
        """A person begins it once more, once it has gone back."""
        self.accident = Accident.NOTHING
        self.heal()
        refused = self.fleet.retry(self.name)
        assert not refused, refused
        self.aborted.clear()
        self.late.clear()
        self.then.clear()

    def _kill(self) -> None:
        launch = self.launch
        if launch.ended:
            return
        if self.accident is Accident.CANDIDATES_DIE:
            self.fleet.kill(launch.rising)
        elif self.accident is Accident.BASELINES_DIE:
            self.fleet.kill(launch.falling or launch.rising)

    async def _recorded(self, launch: Launch) -> None:
        if not self.name:
            return
        self.moments += 1
        self.answered.append(self.world.answered)
        start = launch.step.bake_start
        if launch.state is State.SHIFTING and start is not None and start != self._baked:
            self._baked = start
            self._begins_to_bake(launch)
        act = self.then.pop(self.moments, None)
        if act is not None:
            await act()

    async def _arrives(self) -> None:
        """Somebody is about to be called."""
        self.calls += 1
        if self.calls != self.stall or not self.name:
            return
        clock, chance = self.fleet.clock, self.fleet.chance
        trouble = chance.trouble
        clock.set(clock.monotonic() + LEASE_SECONDS)
        if self.stall_aborts:
            await self.abort()
        await self.run()
        chance.trouble = trouble

    # The oracle

    def _begins_to_bake(self, launch: Launch) -> None:
        """A bake begins only when the proxy gives what the step wants, and nobody is without a replica."""
        assert launch.plan is not None
        for at in waves.shifted(launch):
            here = waves.at_region(launch, at)
            simulator = self.fleet.simulator(TYPE, launch.plan.regions[at].region)
            simulator.catch_up()
            given = next((e for e in reversed(simulator.ledger) if e.kind is EffectKind.SHARES_ACKNOWLEDGED), None)
            shares = {share.model: share.share_basis_points for share in given.shares} if given else {}
            has, wants = shares.get(launch.rising, 0), here.step_plan.share
            if launch.rule.swaps and has < wants and OTHER not in shares:
                self.wrong.append(f"step {launch.step.number} bakes with {has} of {wants} basis points")

    def _freed(self) -> None:
        """Capacity says that what is neither booked nor held is free: then nothing of it may exist any more."""
        for region in self.case.regions if self.name else ():
            booked, living = self._booked(region), self._living(region)
            held = sum(
                item.hold_units
                for name in self.fleet.launches.rows
                for item in self._held_items(name)
                if item.region == region
            )
            if sum(living.values()) > sum(booked.values()) + held:
                self.wrong.append(f"{living} exist in {region} when all but {booked} and {held} held units are freed")
            if not held:
                for model, exist in living.items():
                    if exist > booked.get(model, 0):
                        self.wrong.append(f"{exist} of {model} exist when all but {booked.get(model, 0)} are freed")
        self._free_again()

    def _held_items(self, name: str) -> Sequence[Any]:
        found = self.fleet.capacity.found(name, self.launch_of(name).attempt)
        return found.items if found is not None and found.state is Held.HELD else ()

    def _settle(self) -> list[str]:
        """Lets what has failed heal. Gives what was wrong at any event, and where everybody does not agree."""
        clock = self.fleet.clock
        self.heal()
        clock.set(clock.monotonic() + 90)
        self.fleet.check()
        return [*self.wrong, *self.fleet.oracle.broken]

    async def what_is_wrong(self) -> list[str]:
        """What must not be, at any event and in the end."""
        wrong, launch = self._settle(), self.launch
        if launch.state not in (State.SUCCEEDED, State.ROLLED_BACK, State.CANCELLED):
            return [*wrong, f"it is {launch.state.name}: {[c.message for c in launch.conditions]}"]
        disturbed = self.name in self.aborted | self.late or self.accident is not Accident.NOTHING or self.troubled
        if not disturbed and launch.state is not State.SUCCEEDED:
            wrong.append(f"nothing went wrong, and it is {launch.state.name}: {launch.abort}")
        if self.name in self.aborted and launch.state is State.SUCCEEDED:
            wrong.append("aborted before the registry had it, and it has succeeded")
        return [*wrong, *self._disagreements(launch)]

    async def what_is_wrong_after(self, incident: Incident) -> list[str]:
        """The same of a launch and the mitigation that came in its way."""
        wrong = self._settle()
        rows = [row for row in self.fleet.launches.rows.values() if row.name != "launches/before"]
        succeeded = {row.name: row.launch.state is State.SUCCEEDED for row in rows}
        for row in rows:
            if not row.launch.ended:
                return [*wrong, f"{row.name} is {row.launch.state.name}: {[c.message for c in row.launch.conditions]}"]
            if row.name in self.aborted and succeeded[row.name]:
                wrong.append(f"{row.name} was aborted before the registry had it, and it has succeeded")
            wrong += self._outcomes(row.launch)
        ends = succeeded[self.name], succeeded.get("launches/m", False)
        if "launches/m" in succeeded and not ends[1] and "launches/m" not in self.aborted | self.late:
            refused = self.launch_of("launches/m").abort
            # What finds no room beside what the launch holds says so, instead of waiting for it.
            if self._free >= ROOM or refused is None or refused.author != "capacity":
                wrong.append(f"the mitigation is {self.launch_of('launches/m').state.name}: {refused}")
        for region in self.case.regions:
            shares, has = incident.ends.get(ends, {}), self._desired(region)
            needs = {model: self.case.needed(model, region, share) for model, share in shares.items()}
            # Where the launch has gone back its baseline keeps what it was given meanwhile, for a part R_min at least.
            more = _LEAST if ends == (False, True) else 0
            if all(needs[model] <= has.get(model, 0) <= needs[model] + more for model in needs):
                needs = has
            wrong += self._serves(f"in the end in {region}", region, shares, needs)
        return wrong

    def _disagreements(self, launch: Launch) -> list[str]:
        """Where launch, registry, capacity and platform do not say the same."""
        succeeded = launch.state is State.SUCCEEDED
        return [
            *(each for region in self.case.regions for each in self._different(region, launch)),
            *_differ("roles", self._roles(), [{**self.roles, **self.case.roles} if succeeded else self.roles]),
            *self._outcomes(launch),
        ]

    def _different(self, region: str, launch: Launch) -> list[str]:
        where = f"{launch.state.name} in {region}"
        if launch.state is State.SUCCEEDED:
            return self._serves(where, region, self.case.shares)
        return self._serves(where, region, self.before[region], self.running[region])

    def _serves(
        self, where: str, region: str, shares: Mapping[str, int], replicas: Mapping[str, int] | None = None
    ) -> list[str]:
        if replicas is None:
            replicas = {model: self.case.needed(model, region, share) for model, share in shares.items()}
        found = {
            "its shares": (self._shares(region), shares),
            "its replicas": (self._desired(region), replicas),
            "what exists": (self._living(region), replicas),
            "what is booked": (self._booked(region), replicas),
            "the registry's split": (self.fleet.registry.split(TYPE, region), shares),
        }
        return [
            wrong for what, (have, wanted) in found.items() for wrong in _differ(f"{where}: {what}", have, [wanted])
        ]

    def _outcomes(self, launch: Launch) -> list[str]:
        """How registry and capacity have seen a launch end."""
        registry = self.fleet.registry.outcome(launch.name, launch.attempt)
        found = self.fleet.capacity.found(launch.name, launch.attempt)
        ends = {State.SUCCEEDED: ("SUCCEEDED",), State.ROLLED_BACK: ("ROLLED_BACK",)}
        has = registry.name if registry is not None else ""
        wrong = _differ("how the registry has it", has, ends.get(launch.state, ("", "ROLLED_BACK")))
        if found is not None and found.state in LIVE:
            return [*wrong, f"{launch.state.name}, and its reservation is {found.state.name}"]
        said = "" if found is None or found.outcome is None else found.outcome.name
        outcomes = {State.SUCCEEDED: ("SUCCEEDED",), State.ROLLED_BACK: ("ROLLED_BACK", "")}
        return [*wrong, *_differ("how capacity has it", said, outcomes.get(launch.state, ("",)))]


_TARGET = TYPE.replace("modelTypes/", "targets/")


def _differ(what: str, found: object, wanted: Sequence[object]) -> list[str]:
    return [] if found in wanted else [f"{what}: {found}, not {' or '.join(map(str, wanted))}"]


# The stories: each gives what was wrong in it


async def undisturbed(case: Case, free: int, accident: Accident = Accident.NOTHING) -> Course:
    """A launch to which nobody does anything: it says how many moments there are."""
    course = Course(case, free, accident)
    await course.prepare()
    await course.run()
    return course


async def aborted(case: Case, free: int, accident: Accident, moment: int, *, again: bool = False) -> list[str]:
    """People abort right after a change was written; and, where asked for, begin the launch once more."""
    course = Course(case, free, accident)
    course.then[moment] = course.abort
    await course.prepare()
    await course.run()
    wrong = await course.what_is_wrong()
    if again and not wrong and course.launch.state is not State.SUCCEEDED:
        course.retry()
        await course.run()
        wrong = await course.what_is_wrong()
    return wrong


async def paused(case: Case, free: int, accident: Accident, moment: int) -> list[str]:
    """People pause right after a change was written, and abort when they have thought about it."""
    course = Course(case, free, accident)
    course.then[moment] = course.pause
    await course.prepare()
    await course.run()
    return await course.what_is_wrong()


async def promoted(case: Case, free: int, accident: Accident, moment: int) -> list[str]:
    """People have the bakes that remain skipped from some moment on."""
    course = Course(case, free, accident)
    course.then = dict.fromkeys(range(moment, moment + 100), course.promote)
    await course.prepare()
    await course.run()
    return await course.what_is_wrong()


async def stalled(case: Case, free: int, call: int, *, aborts: bool) -> list[str]:
    """One call hangs past the lease: others end the launch, forwards or backwards, and then it comes through."""
    course = Course(case, free)
    course.stall, course.stall_aborts = call, aborts
    await course.prepare()
    await course.run()
    return await course.what_is_wrong()


async def unanswered(case: Case, free: int, answer: int, *, moment: int = 0) -> list[str]:
    """One answer of registry or capacity is lost; and people may abort at some moment."""
    course = Course(case, free)
    await course.prepare()
    course.world.loses, course.then[moment] = answer, course.abort
    await course.run()
    return await course.what_is_wrong()


async def with_another_baseline(case: Case, free: int, moment: int) -> list[str]:
    """While the launch is on its way the registry gets another baseline; people abort."""
    course = Course(replace(case, needs={**case.needs, OTHER: case.needs[OLD]}), free)
    course.then[moment] = course.abort
    await course.prepare()

    def another(fleet: Fleet) -> None:
        course.world.baseline = OTHER

    course.fleet.when(course.name, lambda launch: launch.touched, another)
    await course.run()
    if course.launch.state is State.SUCCEEDED:
        # The registry had it before people aborted.
        return [*course.wrong, *course.fleet.oracle.broken]
    return await course.what_is_wrong()


async def mitigated(
    incident: Incident, free: int, accident: Accident, moment: int, *, aborts: str = "", later: int = 0
) -> list[str]:
    """Right after a change a mitigation is created; and people may abort it or the launch so many changes later."""
    course = Course(incident.case, free, accident)

    async def mitigate() -> None:
        # What has ended by then as another baseline is not taken back.
        with contextlib.suppress(WrongState):
            incident.mitigate(course)
        if aborts:
            course.then[course.moments + later] = abort

    async def abort() -> None:
        if aborts in course.fleet.launches.rows:
            await course.abort(aborts)

    course.then[moment] = mitigate
    await course.prepare()
    await course.run()
    return await course.what_is_wrong_after(incident)
