"""A launch in a rehearsed fleet: the real rounds of the launcher, the real decisions of capacity and registry, and what
people and machines do to it at places that are counted.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, cast

from modelfleetd.capacity.domain.pool import Place
from modelfleetd.errors import FleetError
from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import Act
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.waits import Waits
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.looking import look
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.reconciler import LEASE_SECONDS
from modelfleetd.platform.model import EffectKind
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.chance import NO_TROUBLE, Trouble
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.parts import Parts
from modelfleetd.rehearsal.routes import FLAVOR, Route
from tests.support.steps import told, watch
from tests.support.steps.cases import ROOM, TYPE, Accident, Case
from tests.support.steps.told import Does

_TARGET = TYPE.replace("modelTypes/", "targets/")
# Of what was there before: units that it found.
_PLENTY = 60
# How often replicas die, and for how long they do so.
_DYING, _DEATHS = 5.0, 12
_NO_WAITS = Waits()


class Course:
    """A launch with its accidents.

    Attributes:
        then: what happens right after the n-th change that is written since the launch began.
        before_call: what happens before the n-th act upon anybody arrives.
        moments: changes that were written.
        turns: of them those that may matter: at the others nothing has changed but what is said of the launch, or it is
            over.
        calls: acts upon anybody.
        aborted: launches that people have aborted in time, and `late` those that the registry may have had by then.
        went_bad: whether the candidate answers badly; `fails_a_bake`: and has a whole bake before it still.
        shares_before: by region the shares that were there before the launch; the same of replicas, and of roles.
        wrong: what must not have been, as it was.
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
        self.case, self.accident, self.free = case, accident, max(free, case.least)
        self.then: dict[int, Does] = {}
        self.before_call: dict[int, Does] = {}
        self.moments = self.calls = 0
        self.turns: list[int] = []
        self.wrong: list[str] = []
        self.name = ""
        self.troubled = trouble is not NO_TROUBLE
        self.aborted: set[str] = set()
        self.late: set[str] = set()
        self.shares_before: dict[str, Mapping[str, int]] = {}
        self.replicas_before: dict[str, Mapping[str, int]] = {}
        self.roles_before: dict[str, str] = {}
        self.went_bad = self.fails_a_bake = False
        self._baked: datetime | None = None
        self._noted: tuple[tuple[float, int, int], Launch | None] = (0.0, 0, 0), None
        self.fleet = Fleet(seed=seed, spare=_PLENTY, parts=Parts(launches=told.Launches, world=self._world))
        # Looks that a long rehearsal leaves out are what is looked for here; twice a second is often enough.
        self.fleet.launches.patience = lambda launch, seconds: max(seconds, 0.5) if seconds >= 0.2 else seconds
        cast("told.Launches", self.fleet.launches).recorded = self._recorded
        self._free_again = self.fleet.capacity.free_again
        self.fleet.capacity.free_again = self._freed
        ports: Any = self.world
        self._executor = Executor(World(ports, ports, ports, ports), self.fleet.clock)

    def _world(self, *given: Any) -> told.World:
        self.world = told.World(*given)
        self.world.arrives = self._arrives
        self.world.loses = _none
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
            self.fleet.capacity.set_quota(place, self.fleet.capacity.used(place) + self.free)
            self.shares_before[region] = self.shares(region)
        self.replicas_before = {region: self.desired(region) for region in case.regions}
        self.roles_before = self.roles()
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

    @property
    def disturbed(self) -> bool:
        """Whether anything happened because of which it may go back."""
        people = self.name in self.aborted | self.late
        return people or self.went_bad or self.troubled or self.accident is not Accident.NOTHING

    def launch_of(self, name: str) -> Launch:
        return self.fleet.launches.rows[name].launch

    def history(self, name: str = "") -> list[str]:
        """What a launch went through."""
        events = self.fleet.launches.rows[name or self.name].events
        return [f"{event.time:%H:%M:%S} {event.type}: {event.message}" for event in events]

    def shares(self, region: str) -> dict[str, int]:
        """What a region's agent works towards, by model."""
        found = self.fleet.simulator(TYPE, region).desired(_TARGET)
        return {share.model: share.share_basis_points for share in found.shares} if found else {}

    def desired(self, region: str) -> dict[str, int]:
        """Replicas that it works towards, by model."""
        found = self.fleet.simulator(TYPE, region).desired(_TARGET)
        return {model.model: model.replicas for model in found.models} if found else {}

    def roles(self) -> dict[str, str]:
        """What the registry says that the models are."""
        return {model.name: model.role.name for model in self.fleet.registry.models_of(TYPE) if model.role is not None}

    def booked(self, region: str) -> dict[str, int]:
        """Units that capacity has booked, by model."""
        place = Place(FLAVOR, region)
        return {
            model.name: units
            for model in self.fleet.registry.models_of(TYPE)
            if (units := self.fleet.capacity.booked(model.name, place))
        }

    def living(self, region: str) -> dict[str, int]:
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
        await self.fence(name)

    async def fence(self, name: str) -> None:
        """The agents refuse whoever acted for a launch until now: the launcher sees to that before it answers."""
        launch = self.launch_of(name)
        unsettled = (launch.intent.region,) if launch.intent and launch.intent.region else ()
        with contextlib.suppress(FleetError):
            await look(self._executor, launch, dict.fromkeys((*unsettled, *waves.to_observe(launch))))

    async def hang(self, *, aborts: bool) -> None:
        """What is about to be called hangs past the lease: people abort meanwhile or another launcher goes on, and the
        launch ends; then the call comes through.
        """
        clock, chance = self.fleet.clock, self.fleet.chance
        trouble = chance.trouble
        clock.set(clock.monotonic() + LEASE_SECONDS)
        if aborts:
            await self.abort()
        await self.run()
        chance.trouble = trouble

    async def go_bad(self) -> None:
        """From now on the candidate fails every other request."""
        launch = self.launch
        before = launch.state in (State.ESTIMATING, State.PREPARING)
        between = launch.state is State.SHIFTING and launch.step.number < len(launch.region_plan.steps)
        self.went_bad, self.fails_a_bake = True, launch.is_judged and (before or between)
        for region in self.case.regions:
            self.fleet.simulator(TYPE, region).error_rates[launch.candidate] = 0.5

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
            simulator.error_rates.clear()

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
        self._takes_note(launch)
        start = launch.step.bake_start
        if launch.state is State.SHIFTING and start is not None and start != self._baked:
            self._baked = start
            self.wrong += watch.bakes_too_soon(self, launch)
        act = self.then.pop(self.moments, None)
        if act is not None:
            await act()

    def _takes_note(self, launch: Launch) -> None:
        """Whether anything has happened since the last change was written, other than that something is said.

        Whoever is overtaken at such a moment is overtaken with the same plan, step, intent and hold, at the same time
        and by the same agents as right before: `test_launcher_steps.py` shows that it does the same.
        """
        now, (before, known) = (self.fleet.clock.monotonic(), self.calls, self.fleet.effects), self._noted
        self._noted = now, launch
        only_words = now == before and known is not None and _without_words(launch) == _without_words(known)
        if not (only_words or launch.ended):
            self.turns.append(self.moments)

    async def _arrives(self) -> None:
        """Somebody is about to be called."""
        if not self.name:
            return
        self.calls += 1
        act = self.before_call.pop(self.calls, None)
        if act is not None:
            await act()

    def _freed(self) -> None:
        """Capacity says that something is free."""
        if self.name:
            self.wrong += watch.freed_too_soon(self)
        self._free_again()


def _none(answer: int) -> bool:
    return False


def _without_words(launch: Launch) -> Launch:
    """A launch without what is only said of it."""
    return replace(launch, version=0, watched_until=None, conditions=(), progress=(), waits=_NO_WAITS)
