"""A launch in several regions in virtual time: `rehearsal.py` with an agent and a pool of capacity for each of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from modelfleetd.clock import ManualClock
from modelfleetd.errors import PartUnavailable
from modelfleetd.launcher.documents import to_document
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.hold import Hold, HoldState
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.domain.policy import Policy, RegionOrder, StabilityGate
from modelfleetd.launcher.domain.record import PhaseTime
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.ports import Estimate, HeldUnits, HoldRequest, TypeFacts, UsedUnits, World
from modelfleetd.platform.ledger import Promise, Violation, violations
from modelfleetd.platform.model import (
    DesiredModel,
    DesiredServing,
    EffectKind,
    Fence,
    ModelShare,
    ServingObservation,
    TargetKind,
)
from modelfleetd.platform.simulator import Simulator
from tests.support.memory_pool import MemoryPool
from tests.support.rehearsal import CPU, NEW, OLD, SPEC, TARGET, TYPE, Books, CrashingPlatform, MemoryStore, Rehearsal

A, B, C = "regions/a", "regions/b", "regions/c"


@dataclass(frozen=True)
class Place:
    """One region: replicas of the old and the new model for its traffic, and units to spare."""

    old: int
    new: int
    free: int


class RegionalPool:
    """A pool with quota in several regions. One reservation is one hold in each of them."""

    def __init__(self, clock: ManualClock, pools: Mapping[str, MemoryPool]) -> None:
        self.clock = clock
        self.pools = pools

    def room(self, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str]) -> dict[tuple[str, str], Room]:
        found: dict[tuple[str, str], Room] = {}
        for item in wanted:
            found |= self.pools[item.region].room(launch, [item], replaced)
        return found

    def foresee(self, request: HoldRequest) -> Hold | None:
        holds = [self.pools[item.region].foresee(replace(request, items=[item])) for item in request.items]
        return None if None in holds else _together([hold for hold in holds if hold is not None])

    def reserve(self, request: HoldRequest, key: str) -> Hold:
        return _together(
            [self.pools[item.region].reserve(replace(request, items=[item]), key) for item in request.items]
        )

    def hold(self, name: str) -> Hold:
        return _together([pool.hold(name) for pool in self.pools.values()])

    def renew(self, name: str, release: datetime | None) -> None:
        for pool in self.pools.values():
            pool.renew(name, release)

    def activate(self, name: str) -> None:
        for pool in self.pools.values():
            pool.activate(name)

    def cancel(self, name: str) -> None:
        for pool in self.pools.values():
            pool.cancel(name)

    def settle(self, name: str, usages: Sequence[UsedUnits], kept: Sequence[HeldUnits], retain: timedelta) -> None:
        for region, pool in self.pools.items():
            used = [usage for usage in usages if usage.region == region]
            pool.settle(name, used, [item for item in kept if item.region == region], retain)

    def release(self, name: str) -> None:
        for pool in self.pools.values():
            pool.release(name)


def _together(holds: Sequence[Hold]) -> Hold:
    state = HoldState.PENDING if any(hold.state is HoldState.PENDING for hold in holds) else holds[0].state
    return replace(holds[0], state=state, places=tuple(place for hold in holds for place in hold.places))


@dataclass
class CutOff(CrashingPlatform):
    """An agent that can be cut off from the launcher: no answer, and nothing gets there."""

    away: bool = False

    async def apply(self, *given: Any) -> Any:
        if self.away:
            raise PartUnavailable("the agent")
        return await super().apply(*given)

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        if self.away:
            raise PartUnavailable("the agent")
        return await super().observe(target, epoch)


@dataclass
class RegionalBooks(Books):
    """Registry, judge and capacity of a route in several regions."""

    places: Mapping[str, Place] = field(default_factory=dict)
    platforms: Mapping[str, CutOff] = field(default_factory=dict)

    async def model_type(self, name: str) -> TypeFacts:
        found = await super().model_type(name)
        return replace(found, regions=tuple(self.places), shares={NEW: frozenset(self.places)})

    async def agent_address(self, region: str) -> str:
        return region

    async def estimate(self, model: str, key: str, *, keep: bool) -> Estimate:
        needs = {
            region: (place.old if model == OLD else place.new, self.least) for region, place in self.places.items()
        }
        return Estimate("estimates/e", needs)

    async def regions(self) -> Mapping[str, str]:
        return {region: region for region in self.places}

    def at(self, address: str) -> CutOff:
        return self.platforms[address]


class RegionalRehearsal(Rehearsal):
    """One launch in several regions, whose machines misbehave as told."""

    def __init__(
        self,
        places: Mapping[str, Place],
        order: RegionOrder = RegionOrder.TOGETHER,
        *,
        seed: int = 0,
        crash_rate: float = 0.0,
        policy: Policy | None = None,
        **behaviour: Any,
    ) -> None:
        gate = StabilityGate(disabled=True)
        gateless = Policy(bake_duration=timedelta(seconds=2), max_step_basis_points=4_000, stability_gate=gate)
        clock, draw = ManualClock(), random.Random(seed)
        pools = {region: MemoryPool(clock, place.old + place.free) for region, place in places.items()}
        super().__init__(
            old=1,
            new=1,
            clock=clock,
            pool=next(iter(pools.values())),
            seed=seed,
            crash_rate=crash_rate,
            policy=replace(policy or gateless, region_order=order),
            **({"start_seconds": (0.5, 1.5), "terminate_seconds": (0.2, 0.5)} | behaviour),
        )
        self.places = places
        self.pools = pools
        self.simulators = {
            region: Simulator(self.clock, seed=draw.randrange(1 << 30), region=region) for region in places
        }
        self.platforms = {region: CutOff(found, self.crashes) for region, found in self.simulators.items()}
        for region, place in places.items():
            pools[region].booked = {(self.name, OLD): place.old}
        pool: Any = RegionalPool(clock, pools)
        self.books = RegionalBooks(1, 1, pool, self.platforms[next(iter(places))], places=places)
        self.books.platforms = self.platforms
        platforms: Any = self.books
        self.world = World(self.books, self.books, self.books, platforms)
        self.executor = type(self.executor)(self.world, self.clock)
        self.renewer = type(self.renewer)(self.world)
        self.since: dict[str, int] = {}
        self.turned: dict[str, int] = {}

    async def prepare(self) -> None:
        for region, simulator in self.simulators.items():
            models = (DesiredModel(OLD, SPEC, self.places[region].old),)
            await simulator.apply(TARGET, TargetKind.ROUTE, Fence(1, "a"), DesiredServing(models))
        await self.clock.advance(10)
        for region, simulator in self.simulators.items():
            models = (DesiredModel(OLD, SPEC, self.places[region].old),)
            shares = (ModelShare(OLD, 10_000),)
            await simulator.apply(TARGET, TargetKind.ROUTE, Fence(1, "b"), DesiredServing(models, shares))
        await self.clock.advance(10)
        for region, simulator in self.simulators.items():
            await simulator.observe(TARGET)
            self.since[region] = len(simulator.ledger)
            simulator.behaviour = self.behaviour
        self.crashes.rate = self.crash_rate
        now = self.clock.now()
        launch = Launch(
            name=self.name,
            uid=self.name,
            model_type=TYPE,
            candidate=NEW,
            strategy=Strategy.REPLACE_BASELINE,
            pool="pools/p",
            regions=tuple(self.places),
            policy=self.policy,
            actor="alice",
            trace_id="0" * 31 + "1",
            create_time=now,
            update_time=now,
            baseline=OLD,
            phase_times=(PhaseTime(State.PENDING, now),),
        )
        self.store = MemoryStore(to_document(launch), self.crashes)

    def abort(self) -> None:
        launch = self.launch
        if not launch.ended and not launch.revision:
            self.store.save(verbs.abort(launch, "oncall", "it looks bad", self.clock.now()))
            if not self.turned:
                self.turned = {region: len(found.ledger) for region, found in self.simulators.items()}

    async def run(self, seconds: float = 4_000, between: Any = lambda: None) -> Launch:
        launch = await super().run(seconds, between)
        for simulator in self.simulators.values():
            simulator.catch_up()
        return launch

    def broken_promises(self) -> list[Violation]:
        """What was done against properties 1 to 3, at any event of any region."""
        found: list[Violation] = []
        for plan in self.launch.plan.regions if self.launch.plan else ():
            assert plan.baseline is not None
            needs = {side.model: side.needs for side in (plan.candidate, plan.baseline)}

            def required(model: str, share: int, needs: Mapping[str, Any] = needs) -> int:
                return int(needs[model](share))

            promise = Promise(TARGET, required, {CPU: plan.held(CPU)}, after=self.since[plan.region])
            found.extend(violations(self.simulators[plan.region].ledger, [promise]))
        return found

    def assert_no_rise_after_abort(self) -> None:
        for region, at in self.turned.items():
            ledger = self.simulators[region].ledger
            accepted = [e.desired.share_of(NEW) for e in ledger[:at] if e.kind is EffectKind.ACCEPTED and e.desired]
            share = accepted[-1]
            for effect in ledger[at:]:
                if effect.kind is EffectKind.ACCEPTED and effect.desired is not None:
                    assert effect.desired.share_of(NEW) <= share, effect
                    share = effect.desired.share_of(NEW)

    async def serves(self, model: str) -> dict[str, int]:
        """Replicas by region, where nothing else serves."""
        found: dict[str, int] = {}
        for region, simulator in self.simulators.items():
            seen = await simulator.observe(TARGET)
            assert seen.desired is not None
            assert {s.model: s.share_basis_points for s in seen.desired.shares} == {model: 10_000}, (region, seen)
            ((only, found[region]),) = ((m.model, m.replicas) for m in seen.desired.models)
            assert only == model
        return found

    def shares(self) -> dict[str, int]:
        """The new model's share by region, as it is asked for."""
        return {region: _share(found) for region, found in self.simulators.items()}


def _share(simulator: Simulator) -> int:
    accepted = [e.desired for e in simulator.ledger if e.kind is EffectKind.ACCEPTED and e.desired]
    return accepted[-1].share_of(NEW)
