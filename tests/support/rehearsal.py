"""A launch in virtual time: the launcher's real rounds on a simulated platform, a store in memory, and a world that can
lose calls, kill replicas, and crash the launcher at every commit and every call. Real stores need real time.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

from modelfleetd.clock import ManualClock
from modelfleetd.errors import LaunchEnded, PartUnavailable
from modelfleetd.launcher.documents import from_document, to_document
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.decision import Decision, Outcome
from modelfleetd.launcher.domain.frozen import Open
from modelfleetd.launcher.domain.hold import Hold, HoldState
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.notifications import Notification, notifications
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.record import ModelFacts, PhaseTime, Share, Verdict
from modelfleetd.launcher.domain.replicas import replicas_for
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.judges import Judges
from modelfleetd.launcher.ports import (
    Estimate,
    HeldUnits,
    HoldRequest,
    Judgement,
    PoolFacts,
    SizedModel,
    TypeFacts,
    UsedUnits,
    World,
)
from modelfleetd.launcher.reconciler import LEASE_SECONDS
from modelfleetd.launcher.renewal import Renewer
from modelfleetd.launcher.round import Round
from modelfleetd.launcher.store import Change, Claim, Store
from modelfleetd.launcher.windows import Windows
from modelfleetd.platform.ledger import Promise, Violation, violations
from modelfleetd.platform.model import (
    Applied,
    DesiredModel,
    DesiredServing,
    EffectKind,
    Fence,
    ModelShare,
    ServingObservation,
    ServingSpec,
    TargetKind,
)
from modelfleetd.platform.simulator import Behaviour, Simulator
from tests.support.memory_pool import MemoryPool

TARGET, TYPE, CPU, REGION = "targets/ranker", "modelTypes/ranker", "flavors/cpu", "regions/local"
OLD, NEW, OTHER = f"{TYPE}/models/old", f"{TYPE}/models/new", f"{TYPE}/models/other"
SPEC = ServingSpec(command=("serve",), flavor=CPU)
_LEASE = LEASE_SECONDS
_OTHERS = 4


class Crash(Exception):
    """The launcher's process dies here."""


@dataclass
class Crashes:
    """Where the process dies: at random, or at the n-th place."""

    draw: random.Random
    rate: float = 0.0

    def maybe(self) -> None:
        if self.rate and self.draw.random() < self.rate:
            raise Crash


@dataclass
class MemoryStore:
    """A store of one launch. What it keeps goes through the documents that rows hold."""

    row: Any
    crashes: Crashes
    epoch: int = 1
    version: int = 1
    due: float = 0.0
    events: list[str] = field(default_factory=list)
    # What people are told.
    told: list[Notification] = field(default_factory=list)
    # Those of the other launches on the route.
    others: list[MemoryStore] = field(default_factory=list)
    # The row that was read last, and what it says: it is read more often than written.
    _read: tuple[Any, Launch] = field(init=False)

    def __post_init__(self) -> None:
        self._read = self.row, from_document(Launch, self.row)

    def load(self) -> Launch:
        row, launch = self._read
        if row is not self.row:
            launch = from_document(Launch, self.row)
            self._read = self.row, launch
        return replace(launch, version=self.version, epoch=self.epoch)

    @property
    def state(self) -> State:
        """The launch's state, without reading the rest of it."""
        return State[self.row["state"]]

    def save(self, launch: Launch) -> None:
        self.row = to_document(launch)
        self.version += 1

    def claim(self, clock: ManualClock) -> Claim:
        self.epoch = 1 + max(store.epoch for store in (self, *self.others))
        return Claim(self.load(), clock.now(), _LEASE)

    async def record(self, change: Change) -> Launch | None:
        self.crashes.maybe()
        if (change.before.version, change.before.epoch) != (self.version, self.epoch):
            return None
        self.told.extend(notifications(change.before, change.after, change.time))
        self.save(change.after)
        self.events.extend(f"{event.type}: {event.message}" for event in change.events)
        if change.due is not None:
            self.due = change.due
        written = self.load()
        self.crashes.maybe()
        return written

    async def watched(self, launch: Launch, due: float) -> bool:
        self.row, self.due = to_document(launch), due
        return True

    async def is_held(self, launch: Launch) -> bool:
        return (launch.version, launch.epoch) == (self.version, self.epoch)

    async def yield_lease(self, launch: Launch) -> None:
        self.due = 0.0

    async def leave_queue(self, launch: Launch) -> bool:
        return False

    async def ahead_of(self, launch: Launch) -> str:
        return ""

    async def get(self, name: str) -> Launch:
        self.crashes.maybe()
        return next(found for store in self.others if (found := store.load()).name == name)

    async def held_for(self, mitigation: Launch) -> Launch | None:
        self.crashes.maybe()
        held = (store.load() for store in self.others)
        return next((found for found in held if found.preempted_by == mitigation.name and not found.ended), None)

    async def raise_fence(self, floor: int) -> None:
        self.epoch = max(self.epoch, floor)


@dataclass
class CrashingPlatform:
    """The simulator, with a launcher that may die before and after each call, or hang until others have gone on."""

    simulator: Simulator
    crashes: Crashes
    hang_rate: float = 0.0
    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        self.crashes.maybe()
        if self.meanwhile is not None and self.crashes.draw.random() < self.hang_rate:
            await self.meanwhile()
        applied = await self.simulator.apply(target, kind, fence, desired)
        self.crashes.maybe()
        return applied

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        return await self.simulator.observe(target, epoch)


@dataclass
class Books:
    """Registry and judge in memory, which only remember what they were told, and a pool in memory for capacity."""

    old: int
    new: int
    pool_in_memory: MemoryPool
    platform: CrashingPlatform
    least: int = 2
    # What the new model is when the launch begins.
    role: str = "CANDIDATE"
    tier: str = "TIER2"
    baseline: str = OLD
    # Share of the answers of capacity that are lost, and of the calls.
    lost_rate: float = 0.0
    roles: Mapping[str, str] = field(default_factory=dict)
    finalized: dict[str, bool] = field(default_factory=dict)
    splits: Mapping[str, Sequence[Share]] = field(default_factory=dict)
    verdict: Verdict = Verdict.PASS
    asked: int = 0
    evidence: Verdict = Verdict.PASS
    evidence_rules: int = 0

    async def model_type(self, name: str) -> TypeFacts:
        return TypeFacts(
            TYPE,
            "teams/t",
            self.tier,
            self.baseline,
            1,
            (REGION,),
            predicts=True,
            shares={NEW: frozenset({REGION})},
            evidence_rules=self.evidence_rules,
        )

    async def model(self, name: str, path: str) -> SizedModel:
        facts = ModelFacts(name, "sha256:0", {"command": ["serve"], "flavor": CPU})
        role = "BASELINE" if name == OLD else self.role
        return SizedModel(facts, CPU, 1, timedelta(seconds=60), timedelta(seconds=10), role)

    async def agent_address(self, region: str) -> str:
        return "agent"

    async def finalize(self, model_type: str, launch: str, key: str, *, succeeded: bool, **given: Any) -> int:
        self.platform.crashes.maybe()
        attempt = given.get("attempt", 1)
        launch += f"/attempts/{attempt}" if attempt > 1 else ""
        if self.record(launch, succeeded) != succeeded:
            raise LaunchEnded(launch, "ROLLED_BACK" if succeeded else "SUCCEEDED")
        if succeeded:
            self.splits, self.roles = given["splits"], given["roles"]
        self.platform.crashes.maybe()
        return 7 if succeeded else 0

    def record(self, attempt: str, succeeded: bool) -> bool:
        """How an attempt has ended, for ever: as it was recorded first."""
        return self.finalized.setdefault(attempt, succeeded)

    async def estimate(self, model: str, key: str, *, keep: bool) -> Estimate:
        return Estimate("estimates/e", {REGION: (self.old if model == OLD else self.new, self.least)})

    async def unit_cost(self, flavor: str) -> float:
        return 1.0

    async def decide(self, *given: object, keep: bool) -> Decision:
        return Decision("launchDecisions/d", Outcome.ACCEPTED, "It fits.")

    async def pool(self, name: str) -> PoolFacts:
        return PoolFacts("teams/t")

    async def booked_elsewhere(self, *given: object) -> str:
        return ""

    async def room(
        self, pool: str, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str], *, takes_over: str = ""
    ) -> Mapping[tuple[str, str], Room]:
        return self.pool_in_memory.room(launch, wanted, replaced)

    async def foresee(self, request: HoldRequest) -> Hold | None:
        return self.pool_in_memory.foresee(request)

    async def hold(self, reservation: str) -> Hold:
        self._may_fail()
        return self.pool_in_memory.hold(reservation)

    async def reserve(self, request: HoldRequest, key: str) -> Hold:
        self._may_fail()
        made = self.pool_in_memory.reserve(request, key)
        self._may_fail()
        return made

    async def renew(self, reservation: str, release: datetime | None, key: str) -> None:
        self._may_fail()
        self.pool_in_memory.renew(reservation, release)

    async def activate(self, reservation: str, key: str) -> None:
        self._may_fail()
        self.pool_in_memory.activate(reservation)
        self._may_fail()

    async def cancel(self, reservation: str, key: str) -> None:
        self._may_fail()
        self.pool_in_memory.cancel(reservation)
        self._may_fail()

    async def settle(
        self,
        reservation: str,
        usages: Iterable[UsedUnits],
        kept: Iterable[HeldUnits],
        retain: timedelta,
        key: str,
    ) -> None:
        self._may_fail()
        self.pool_in_memory.settle(reservation, list(usages), list(kept), retain)
        self._may_fail()

    async def release(self, reservation: str, key: str) -> None:
        self._may_fail()
        self.pool_in_memory.release(reservation)
        self._may_fail()

    def _may_fail(self) -> None:
        """The process dies here, or the call or its answer is lost."""
        self.platform.crashes.maybe()
        if self.lost_rate and self.platform.crashes.draw.random() < self.lost_rate:
            raise PartUnavailable("capacity")

    async def judge(self, *given: object) -> Judgement:
        self.asked += 1
        return Judgement(self.verdict, "as the test wants")

    async def evaluate_evidence(self, model: str, baseline: str) -> Judgement:
        return Judgement(self.evidence, "as the test wants")

    async def check_team(self, team: str, field: str) -> None: ...

    async def regions(self) -> Mapping[str, str]:
        return {REGION: "agent"}

    async def report(self, observations: Sequence[ServingObservation]) -> None: ...

    def at(self, address: str) -> CrashingPlatform:
        return self.platform


@dataclass
class Calendar:
    """Freeze windows in memory."""

    openings: tuple[Open, ...] = ()

    async def near(self, now: datetime) -> Sequence[Open]:
        return self.openings


class Rehearsal:
    """One launch from `old` replicas to `new`, with `free` units to spare, on a machine that misbehaves as told.

    With `experiment_share` the new model serves that share already, and where no other strategy is named the launch
    ends it. With RESIZE the old model is the candidate: it runs `old` replicas and needs `new` of them for everything.
    Several launches share a clock and a pool: then `free` counts for nothing.
    """

    def __init__(
        self,
        *,
        old: int,
        new: int,
        free: int = 0,
        name: str = "launches/l",
        clock: ManualClock | None = None,
        pool: MemoryPool | None = None,
        seed: int = 0,
        crash_rate: float = 0.0,
        hang_rate: float = 0.0,
        policy: Policy | None = None,
        other_share: int = 0,
        experiment_share: int = 0,
        strategy: Strategy | None = None,
        role: str = "",
        target: int = 0,
        holdout: int = 0,
        running: int = 0,
        others: int = _OTHERS,
        **behaviour: Any,
    ) -> None:
        self.clock = clock or ManualClock()
        self.name = name
        self.draw = random.Random(seed)
        self.simulator = Simulator(self.clock, seed=seed, behaviour=Behaviour())
        self.crashes = Crashes(self.draw)
        self.experiment_share = experiment_share
        both = 10_000 - other_share
        self.running = {OLD: running or old}
        if experiment_share:
            self.running = {
                OLD: replicas_for(old, both - experiment_share, 2),
                NEW: replicas_for(new, experiment_share, 2),
            }
        booked = sum(self.running.values())
        self.pool = pool or MemoryPool(self.clock, booked + free)
        self.pool.booked |= {(name, model): replicas for model, replicas in self.running.items()}
        ends = Strategy.END_EXPERIMENT if experiment_share else Strategy.REPLACE_BASELINE
        self.strategy, self.target, self.holdout = strategy or ends, target, holdout
        needs = new if self.strategy is Strategy.RESIZE else old
        self.books = Books(needs, new, self.pool, CrashingPlatform(self.simulator, self.crashes))
        self.books.role = role or ("EXPERIMENT" if experiment_share else "CANDIDATE")
        self.books.platform.hang_rate = hang_rate
        self.books.platform.meanwhile = self._hangs
        self.crash_rate = crash_rate
        self.other_share, self.others = other_share, others
        self.behaviour = Behaviour(**behaviour)
        self.policy = policy or Policy(bake_duration=timedelta(seconds=5), stability_gate=StabilityGate(disabled=True))
        self.world = World(self.books, self.books, self.books, cast("Any", self.books))
        self.executor = Executor(self.world, self.clock)
        self.calendar = Calendar()
        self.renewer = Renewer(self.world)
        self.store: MemoryStore
        self.began = 0
        self.aborted_at: int | None = None
        self.crashed = 0
        self.hung = 0

    async def prepare(self) -> None:
        """The baseline serves everything, and the launch is created."""
        models = tuple(DesiredModel(model, SPEC, replicas) for model, replicas in self.running.items())
        shares: tuple[ModelShare, ...] = (ModelShare(OLD, 10_000 - self.other_share - self.experiment_share),)
        if self.experiment_share:
            shares = (ModelShare(NEW, self.experiment_share), *shares)
        if self.other_share:
            models = (*models, DesiredModel(OTHER, SPEC, self.others))
            shares = (*shares, ModelShare(OTHER, self.other_share))
        await self.simulator.apply(TARGET, TargetKind.ROUTE, Fence(1, "a"), DesiredServing(models))
        await self.clock.advance(10)
        await self.simulator.apply(TARGET, TargetKind.ROUTE, Fence(1, "b"), DesiredServing(models, shares))
        await self.clock.advance(10)
        await self.simulator.observe(TARGET)
        self.began = len(self.simulator.ledger)
        self.simulator.behaviour = self.behaviour
        self.crashes.rate = self.crash_rate
        now = self.clock.now()
        launch = Launch(
            name=self.name,
            uid=self.name,
            model_type=TYPE,
            candidate=OLD if self.strategy is Strategy.RESIZE else NEW,
            strategy=self.strategy,
            target_share=self.target,
            holdout_share=self.holdout,
            pool="pools/p",
            regions=(REGION,),
            policy=self.policy,
            actor="alice",
            trace_id="0" * 31 + "1",
            create_time=now,
            update_time=now,
            baseline=OLD,
            phase_times=(PhaseTime(State.PENDING, now),),
        )
        self.store = MemoryStore(to_document(launch), self.crashes)

    @property
    def launch(self) -> Launch:
        return self.store.load()

    def abort(self) -> None:
        """A person aborts, whatever goes on."""
        launch = self.launch
        if not launch.ended and not launch.revision:
            self.store.save(verbs.abort(launch, "oncall", "it looks bad", self.clock.now()))
            self.aborted_at = self.aborted_at or len(self.simulator.ledger)

    async def round(self) -> None:
        """One round, which may crash."""
        at_hand = Round(
            self.store.claim(self.clock),
            store=cast("Store", self.store),
            executor=self.executor,
            judges=Judges(self.world),
            clock=self.clock,
            traced=False,
            started=self.clock.monotonic(),
            windows=cast("Windows", self.calendar),
        )
        self.store.due = 0.2
        try:
            await at_hand.run()
        except Crash:
            self.crashed += 1
            # What a process remembers is gone with it.
            self.renewer = Renewer(self.world)
        else:
            await self._renew()
        self.assert_no_rise_after_abort()

    async def _renew(self) -> None:
        try:
            await self.renewer.renew(self.launch, self.clock.now())
        except Crash:
            self.crashed += 1
            self.renewer = Renewer(self.world)

    @property
    def settled(self) -> str:
        """How capacity has seen the launch end: "succeeded", "released", "cancelled"; empty where it held nothing."""
        found = self.pool.of(self.name)
        if found is None:
            return ""
        return "cancelled" if found.state is HoldState.CANCELLED else found.outcome

    def pause(self) -> None:
        """A person pauses."""
        launch = self.launch
        if launch.state in verbs.ALLOWED["PauseLaunch"]:
            self.store.save(verbs.pause(launch, "bob", "a look", self.clock.now()))

    def resume(self) -> None:
        """Everybody's reasons to pause are removed."""
        launch = self.launch
        if launch.state in verbs.ALLOWED["ResumeLaunch"]:
            self.store.save(verbs.resume(launch, "bob", self.clock.now(), any_author=True))

    async def _hangs(self) -> None:
        """A call hangs for longer than the lease: another launcher goes on, and then it comes through after all."""
        platform = self.books.platform
        self.hung += 1
        platform.meanwhile = None
        await self.clock.advance(_LEASE)
        await self.round()
        platform.meanwhile = self._hangs

    async def run(self, seconds: float = 4_000, between: Callable[[], None] = lambda: None) -> Launch:
        """Lets rounds follow each other until the launch has ended."""
        end = self.clock.monotonic() + seconds
        while not self.launch.ended and self.clock.monotonic() < end:
            await self.round()
            between()
            await self.clock.advance(max(0.05, self.store.due))
        self.simulator.catch_up()
        return self.launch

    def broken_promises(self) -> list[Violation]:
        """What was done against properties 1 to 3, at any event."""
        plan = self.launch.plan
        if plan is None:
            return []
        (region,) = plan.regions
        sides = {side.model: side for side in (region.candidate, region.baseline) if side is not None}
        resized = region.baseline is None

        def required(model: str, share: int) -> int:
            if model not in sides:
                return 0
            side = sides[model]
            # A model that is to grow because it is short is not charged for having been so.
            return min(side.needs(share), side.running) if resized else side.needs(share)

        held = region.held(CPU) + (self.others if self.other_share else 0)
        promise = Promise(TARGET, required, {CPU: held}, after=self.began)
        return violations(self.simulator.ledger, [promise])

    def assert_no_rise_after_abort(self) -> None:
        """After an abort nobody asks for more weight for the model that was growing."""
        if self.aborted_at is None:
            return
        before = [e for e in self.simulator.ledger[: self.aborted_at] if e.kind is EffectKind.ACCEPTED and e.desired]
        last = before[-1].desired
        rising = self.launch.rising
        share = last.share_of(rising) if last else 0
        for effect in self.simulator.ledger[self.aborted_at :]:
            if effect.kind is EffectKind.ACCEPTED and effect.desired is not None:
                assert effect.desired.share_of(rising) <= share, effect
                share = effect.desired.share_of(rising)
