"""Every strategy in virtual time, with an accident at a place that is counted: people abort right after the n-th change
that is written, the n-th call comes through only when the launch is over, the n-th answer is lost. And the oracle of
what may be there in the end; `tests/faults/test_planted_bugs.py` shows that it finds what it is there for.
"""

from __future__ import annotations

import contextlib
import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from modelfleetd.clock import ManualClock
from modelfleetd.errors import FleetError
from modelfleetd.launcher.domain import verbs, waves
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.strategies import Strategy
from modelfleetd.launcher.looking import look
from modelfleetd.launcher.ports import HeldUnits, UsedUnits
from modelfleetd.launcher.reconciler import LEASE_SECONDS
from modelfleetd.platform.model import EffectKind
from modelfleetd.platform.simulator import Behaviour
from tests.support.memory_pool import MemoryPool
from tests.support.rehearsal import NEW, OLD, OTHER, TARGET, Rehearsal

_GATE = StabilityGate(disabled=True)
_DEADLINE = timedelta(seconds=40)
_QUICK = Policy(
    bake_duration=timedelta(seconds=1),
    max_step_basis_points=4_000,
    stability_gate=_GATE,
    step_deadline=_DEADLINE,
)
_AT_ONCE = Policy(bake_duration=timedelta(0), max_step_basis_points=10_000, stability_gate=_GATE)
# Replicas die so often, and for so long.
_DYING = (5.0, 60.0)


class Accident(enum.Enum):
    """What goes wrong with replicas meanwhile."""

    NOTHING = "nothing fails"
    CANDIDATES_DIE = "candidate's replicas die"
    BASELINES_DIE = "baseline's replicas die"
    STARTS_FAIL = "starts fail"


@dataclass(frozen=True)
class Case:
    """A launch: what a `Rehearsal` is given, and what serves once it has succeeded."""

    given: Mapping[str, Any]
    shares: Mapping[str, int]
    replicas: Mapping[str, int]
    policy: Policy = _QUICK


CASES: Mapping[str, Case] = {
    "replacing the baseline": Case({"old": 12, "new": 10}, {NEW: 10_000}, {NEW: 10}),
    "replacing with a holdout": Case(
        {"old": 12, "new": 10, "holdout": 1_000}, {NEW: 9_000, OLD: 1_000}, {NEW: 9, OLD: 2}
    ),
    "starting an experiment": Case(
        {"old": 12, "new": 10, "target": 3_000, "strategy": Strategy.START_EXPERIMENT},
        {NEW: 3_000, OLD: 7_000},
        {NEW: 3, OLD: 9},
    ),
    "ramping up": Case(
        {"old": 12, "new": 12, "experiment_share": 2_000, "target": 5_000, "strategy": Strategy.RAMP},
        {NEW: 5_000, OLD: 5_000},
        {NEW: 6, OLD: 6},
    ),
    "ramping down": Case(
        {"old": 12, "new": 12, "experiment_share": 5_000, "target": 2_000, "strategy": Strategy.RAMP},
        {NEW: 2_000, OLD: 8_000},
        {NEW: 3, OLD: 10},
    ),
    "ending an experiment": Case({"old": 12, "new": 12, "experiment_share": 3_000}, {OLD: 10_000}, {OLD: 12}, _AT_ONCE),
    "growing": Case({"old": 9, "new": 12, "strategy": Strategy.RESIZE}, {OLD: 10_000}, {OLD: 12}),
    "shrinking": Case({"old": 12, "new": 9, "strategy": Strategy.RESIZE}, {OLD: 10_000}, {OLD: 9}),
    "rolling back": Case(
        {"old": 10, "new": 12, "role": "RETIRED", "strategy": Strategy.ROLL_BACK}, {NEW: 10_000}, {NEW: 12}, _AT_ONCE
    ),
}
# Units to spare: for the whole candidate, and so few that what it takes has to be freed first.
ROOM, RECYCLING = 14, 4


class _Pool(MemoryPool):
    """Tells when it is told that capacity is free."""

    freed: Callable[[], None]

    def settle(self, name: str, usages: Sequence[UsedUnits], kept: Sequence[HeldUnits], retain: timedelta) -> None:
        super().settle(name, usages, kept, retain)
        self.freed()

    def release(self, name: str) -> None:
        super().release(name)
        self.freed()


class Course(Rehearsal):
    """One launch with its accidents. Afterwards `wrong` says what must not be.

    Attributes:
        abort_after: the change that is written, by its number, right after which people abort; 0: none.
        stall: the call, by its number, that comes through only once the launch has ended without it; 0: none.
        stall_aborts: whether people abort while it hangs; else another launcher goes on.
    """

    def __init__(
        self, case: Case, free: int = ROOM, accident: Accident = Accident.NOTHING, seed: int = 0, **more: Any
    ) -> None:
        fails = {"start_failure_rate": 0.4} if accident is Accident.STARTS_FAIL else {}
        clock = ManualClock()
        given = {"policy": case.policy} | dict(case.given) | fails | more
        sized = Rehearsal(clock=clock, free=free, **given)
        pool = _Pool(clock, sized.pool.quota)
        super().__init__(clock=clock, pool=pool, seed=seed, **given)
        pool.freed = self._freed
        self.case, self.accident = case, accident
        self.abort_after = self.stall = 0
        self.stall_aborts = True
        self.moments = self.calls = 0
        self.wrong: list[str] = []
        self.before: dict[str, int] = {}
        self._baked: object = None
        self._killed = 0.0
        self.books.reached = self.books.platform.reached = self._reached

    async def prepare(self) -> None:
        await super().prepare()
        self.store.recorded = self._recorded
        seen = await self.simulator.observe(TARGET)
        assert seen.desired is not None
        self.before = {share.model: share.share_basis_points for share in seen.desired.shares}

    # Accidents

    async def _recorded(self, launch: Launch) -> None:
        self.moments += 1
        start = launch.step.bake_start
        if launch.state is State.SHIFTING and start is not None and start != self._baked:
            self._baked = start
            self._begins_to_bake(launch)
        if self.moments == self.abort_after:
            await self.abort_now()

    async def abort_now(self) -> None:
        """A person aborts: as the verb does it, whoever acts now is overtaken at once."""
        launch = self.launch
        if launch.ended or launch.revision:
            return
        self.store.save(verbs.abort(launch, "oncall", "it looks bad", self.clock.now()))
        self.store.epoch += 1
        launch = self.launch
        unsettled = (launch.intent.region,) if launch.intent and launch.intent.region else ()
        with contextlib.suppress(FleetError):
            await look(self.executor, launch, dict.fromkeys((*unsettled, *waves.to_observe(launch))))
        self.aborted_at = self.aborted_at or len(self.simulator.ledger)

    async def _reached(self) -> None:
        self.calls += 1
        if self.calls == self.stall:
            await self.clock.advance(LEASE_SECONDS)
            if self.stall_aborts:
                await self.abort_now()
            await self.run()

    def _kill(self) -> None:
        """What dies by itself, while it does."""
        every, until = _DYING
        now, launch = self.clock.monotonic(), self.launch
        if now - self._killed < every or now > 20 + until:
            return
        self._killed = now
        if self.accident is Accident.CANDIDATES_DIE:
            self.simulator.kill(launch.rising)
        elif self.accident is Accident.BASELINES_DIE:
            self.simulator.kill(launch.falling or launch.rising)

    async def run(self, seconds: float = 1_500, between: Callable[[], None] = lambda: None) -> Launch:
        def meanwhile() -> None:
            self._kill()
            between()

        return await super().run(seconds, meanwhile)

    def promote(self) -> None:
        """A person has the bakes that remain skipped."""
        if self.launch.state in verbs.ALLOWED["PromoteLaunch"]:
            self.store.save(verbs.promote(self.launch, "owner", "it is fine", self.clock.now()))

    def retry(self) -> None:
        """A person begins it once more, once it has gone back."""
        again = verbs.retry(self.launch, "owner", self.clock.now())
        self.store.save(replace(again, baseline=self.books.baseline))
        self.store.epoch += 1
        self.store.due = 0.0
        self.aborted_at = None
        self.abort_after = 0

    # The oracle

    def _begins_to_bake(self, launch: Launch) -> None:
        """A bake begins only when the proxy gives what the step wants, and nobody is without a replica."""
        self.simulator.catch_up()
        given = next((e for e in reversed(self.simulator.ledger) if e.kind is EffectKind.SHARES_ACKNOWLEDGED), None)
        shares = {share.model: share.share_basis_points for share in given.shares} if given else {}
        has, wants = shares.get(launch.rising, 0), launch.step_plan.share
        if launch.rule.swaps and has < wants and OTHER not in shares:
            self.wrong.append(f"step {launch.step.number} bakes with {has} of {wants} basis points")

    def _freed(self) -> None:
        """Capacity says that what is not booked is free: then nothing of it may exist any more."""
        self.simulator.catch_up()
        for model, exist in self.living().items():
            units = self.pool.booked.get((self.name, model), 0)
            if exist > units and (model != OTHER or units):
                self.wrong.append(f"{exist} replicas of {model} exist when all but {units} are freed")

    def living(self) -> Counter[str]:
        """Replicas that exist, terminating ones counted, by model."""
        found: Counter[str] = Counter()
        for effect in self.simulator.ledger:
            found[effect.model] += effect.kind is EffectKind.REPLICA_STARTED
            found[effect.model] -= effect.kind is EffectKind.REPLICA_TERMINATED
        return found

    async def what_is_wrong(self) -> list[str]:
        """What must not be, at any event and in the end."""
        wrong = [*self.wrong, *map(str, self.broken_promises())]
        try:
            self.assert_no_rise_after_abort()
        except AssertionError as error:
            wrong.append(f"more weight after an abort: {error}")
        launch = self.launch
        if launch.state not in (State.SUCCEEDED, State.ROLLED_BACK, State.CANCELLED):
            return [*wrong, f"it is {launch.state.name}: {[c.message for c in launch.conditions]}"]
        if self.aborted_at is None and self.accident is Accident.NOTHING and launch.state is not State.SUCCEEDED:
            wrong.append(f"nothing went wrong, and it is {launch.state.name}: {launch.abort}")
        if self.aborted_at is not None and launch.state is State.SUCCEEDED and not launch.revision:
            wrong.append("aborted before the registry had it, and it has succeeded")
        self.simulator.behaviour = Behaviour()
        await self.clock.advance(90)
        return [*wrong, *await self._disagreements(launch)]

    async def _disagreements(self, launch: Launch) -> list[str]:
        """Where launch, registry, capacity and platform do not say the same."""
        succeeded = launch.state is State.SUCCEEDED
        shares = self.case.shares if succeeded else self.before
        replicas = self.case.replicas if succeeded else self.running
        attempt = self.name + (f"/attempts/{launch.attempt}" if launch.attempt > 1 else "")
        ends = {State.SUCCEEDED: (True,), State.ROLLED_BACK: (False,), State.CANCELLED: (None, False)}
        outcomes = {State.SUCCEEDED: ("succeeded",), State.ROLLED_BACK: ("released", "cancelled", "")}
        seen = await self.simulator.observe(TARGET)
        assert seen.desired is not None
        booked = {model: units for (_, model), units in self.pool.booked.items() if units}
        mine = {held.state.name for held in self.pool.reservations.values()} - {"SETTLED", "CANCELLED", "EXPIRED"}
        said = {
            "its shares": ({s.model: s.share_basis_points for s in seen.desired.shares}, (dict(shares),)),
            "its replicas": ({m.model: m.replicas for m in seen.desired.models}, (dict(replicas),)),
            "what exists": ({m: n for m, n in self.living().items() if n}, (dict(replicas),)),
            "what is booked": (booked, (dict(replicas),)),
            "what is still held": (mine, (set(),)),
            "how the registry has it": (self.books.finalized.get(attempt), ends[launch.state]),
            "how capacity has it": (self.settled, outcomes.get(launch.state, ("cancelled", ""))),
        }
        return [
            f"{launch.state.name}, and {what}: {found}, not {' or '.join(map(str, wanted))}"
            for what, (found, wanted) in said.items()
            if found not in wanted
        ]


# The stories: each gives what was wrong in it


async def undisturbed(case: Case, free: int, accident: Accident = Accident.NOTHING, **more: Any) -> Course:
    """A launch to which nobody does anything: it says how many moments there are."""
    course = Course(case, free, accident, **more)
    await course.prepare()
    await course.run()
    return course


async def aborted(case: Case, free: int, accident: Accident, moment: int, *, again: bool = False) -> list[str]:
    """People abort right after a change was written; and, where asked for, begin the launch once more."""
    course = Course(case, free, accident)
    course.abort_after = moment
    await course.prepare()
    await course.run()
    wrong = await course.what_is_wrong()
    if again and not wrong and course.launch.state is not State.SUCCEEDED:
        course.retry()
        course.accident = Accident.NOTHING
        await course.run()
        wrong = await course.what_is_wrong()
    return wrong


async def promoted(case: Case, free: int, accident: Accident, moment: int) -> list[str]:
    """People have the bakes that remain skipped from some moment on."""
    course = Course(case, free, accident)
    await course.prepare()
    await course.run(between=lambda: course.promote() if course.moments >= moment else None)
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
    course.books.loses, course.abort_after = answer, moment
    await course.prepare()
    await course.run()
    return await course.what_is_wrong()


async def with_another_baseline(case: Case, free: int, moment: int) -> list[str]:
    """While the launch is on its way the registry gets another baseline; people abort."""
    course = Course(case, free, other_share=1_000)
    course.abort_after = moment
    await course.prepare()
    course.running[OTHER] = course.others
    course.pool.quota += course.others
    course.pool.booked[course.name, OTHER] = course.others

    def between() -> None:
        if course.launch.touched:
            course.books.baseline = OTHER

    await course.run(between=between)
    if course.launch.state is State.SUCCEEDED:
        # The registry had it before people aborted.
        return [*course.wrong, *map(str, course.broken_promises())]
    return await course.what_is_wrong()
