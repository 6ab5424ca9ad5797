"""One launch of a scenario, from its creation to its end, and what is told of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from modelfleetd.capacity.domain.pool import Place as PoolPlace
from modelfleetd.clock import ManualClock
from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.freeze import FreezeWindow, Schedule
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.notifications import Kind
from modelfleetd.launcher.domain.states import State
from modelfleetd.rehearsal.accidents import happens
from modelfleetd.rehearsal.catching_up import CatchingUp
from modelfleetd.rehearsal.chance import NO_TROUBLE
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.report import Line, Report, phases_of, there_of
from modelfleetd.rehearsal.routes import Route, Served
from modelfleetd.rehearsal.scenario import PEOPLE, Accident, Moment, PersonsAct, Reply, Scenario

TYPE: Final = "modelTypes/rehearsed"
_ID: Final = "rehearsed"
_NEW: Final = f"{TYPE}/models/new"
# What serves at first takes so long to be there.
_SERVES: Final = 20.0
_LOOK: Final = 60.0
# A launch that has not ended by then is told as it is.
_LONGEST: Final = 8 * 86_400.0
# Nor one that is paused for so long, with nobody left who would do anything.
_LEFT_ALONE: Final = 3_600.0
# Of what people are told: what waits for them.
_ASKS: Final = frozenset({Kind.PAUSED, Kind.NEEDS_ATTENTION})
# While it waits for that a look changes nothing, and whoever answers has it looked at.
_UP_TO_PEOPLE: Final = "AwaitingApproval"
# While it waits for these, its gates are measured, at every look.
_MEASURED: Final = frozenset({"Baking", "Frozen"})
_MOMENT: Final = 1.0
# Nobody tries again at the very moment.
_TRIES_AGAIN: Final = 60.0


async def rehearse(scenario: Scenario) -> Report:
    """Runs a launch until it has ended, or for eight simulated days."""
    rehearsal = Rehearsal(scenario)
    said = await rehearsal.begin()
    if scenario.standing is not None and said:
        rehearsal = Rehearsal(replace(scenario, standing=None))
        await rehearsal.begin()
    elif scenario.standing is not None and scenario.begins is not None:
        # Once more, so that it is there at the time at which the launch in flight was.
        rehearsal = Rehearsal(scenario, rehearsal.took)
        await rehearsal.begin()
    await rehearsal.go_on()
    report = rehearsal.report()
    return replace(report, begun=said) if said else report


class Rehearsal:
    """A fleet of one route and one launch.

    Attributes:
        fleet: in which it is.
        name: of the launch.
        took: seconds until it is where it begins.
    """

    def __init__(self, scenario: Scenario, took: float = _SERVES) -> None:
        self._scenario = scenario
        self.took = took
        start = {"start": scenario.begins - timedelta(seconds=took)} if scenario.begins is not None else {}
        self.fleet = Fleet(seed=scenario.seed, clock=ManualClock(**start))
        self.fleet.launches.patience = _as_the_launcher_looks(self.fleet.launches.patience)
        self.name = f"launches/{_ID}"
        self._lines: list[Line] = []
        self._draw = random.Random(f"{scenario.seed} people")
        self._began = self.fleet.clock.now()
        self._start = 0.0
        self._first = 0
        self._left = self._begun = ""

    @property
    def _launch(self) -> Launch:
        return self.fleet.launches.rows[self.name].launch

    @property
    def _passed(self) -> float:
        return self.fleet.clock.monotonic() - self._start

    # The beginning

    async def begin(self) -> str:
        """Has everything serve that serves at first, creates the launch, and brings it to where it stands already.

        Returns:
            Why it did not get there; empty where it did.
        """
        fleet, scenario = self.fleet, self._scenario
        self._add_models()
        await fleet.start()
        for place in scenario.places:
            for flavor in {scenario.old_model.flavor, scenario.new_model.flavor}:
                at = PoolPlace(flavor, place.region)
                fleet.capacity.set_quota(at, fleet.capacity.used(at) + place.spare.get(flavor, 0))
        fleet.stability.predicts(scenario.predictions)
        fleet.answers.expect((), scenario.evidence_rules, scenario.seed, lambda: self._passed)
        if scenario.standing is None:
            self._starts("")
        fleet.create(
            _ID,
            TYPE,
            _NEW,
            strategy=scenario.strategy,
            policy=scenario.policy,
            target_share=scenario.share,
            holdout_share=scenario.holdout,
            regions=[place.region for place in scenario.places],
            trouble=scenario.trouble if scenario.standing is None else NO_TROUBLE,
        )
        if scenario.standing is None:
            self._expect()
        elif not await CatchingUp(fleet, self.name, TYPE, scenario.standing, self._arrived).run():
            ends = fleet.outcome(self.name).sentence
            return f"it is rehearsed from its plan's beginning: rehearsed as usual it does not come so far ({ends})"
        return ""

    def _starts(self, begun: str) -> None:
        """From here on time is counted, and gates answer and windows hold it back as the scenario has it."""
        fleet, scenario = self.fleet, self._scenario
        self._began, self._start, self._begun = fleet.clock.now(), fleet.clock.monotonic(), begun
        self.took = self._start
        self._first = fleet.effects
        fleet.answers.expect(scenario.answers, scenario.evidence_rules, scenario.seed, lambda: self._passed)
        fleet.freeze(*(self._window(at) for at in range(len(scenario.freezes))))

    def _arrived(self, begun: str) -> None:
        """The launch is where it stands: what came before is not told, and from here on it has its troubles."""
        fleet, scenario = self.fleet, self._scenario
        row = fleet.launches.rows[self.name]
        row.events.clear()
        row.told.clear()
        self._starts(begun)
        if scenario.trouble != NO_TROUBLE:
            row.trouble = trouble = scenario.trouble
            fleet.routes.trouble(row.launch, trouble)
            late = timedelta(seconds=trouble.label_delay_seconds)
            fleet.stability.becomes(row.launch.candidate, trouble.calibration, trouble.labels, late)
        self._expect()

    def _expect(self) -> None:
        """What goes wrong and what people do happens when its time has come."""
        scenario = self._scenario
        for accident in scenario.accidents:
            self._at(accident.at, "accident", accident.region, self._happens(accident))
        for person in scenario.people:
            if not person.at.is_end:
                self._at(person.at, "person", "", self._does(person))
        self._ask_people()

    def _happens(self, accident: Accident) -> Callable[[], str]:
        regions = [accident.region] if accident.region else [place.region for place in self._scenario.places]
        return happens(self.fleet, self.name, accident, regions)

    def _add_models(self) -> None:
        """The route as it is before the launch. Where no baseline gives its share, the candidate is the baseline; where
        nothing serves yet, there is none.
        """
        fleet, scenario = self.fleet, self._scenario
        places = scenario.places
        empty = all(place.is_empty for place in places)
        alone = empty or all(place.old_share + place.old_running == 0 and place.new_share == 10_000 for place in places)
        new, old = scenario.new_model, scenario.old_model
        first = new if alone else old
        needs = {place.region: place.new if alone else max(1, place.old) for place in places}
        route = Route(
            TYPE, needs, baseline="new" if alone else "old", tier=scenario.tier,
            flavor=first.flavor, units=first.units, behaviour=scenario.machines,
            demand={place.region: place.demand for place in places if place.demand},
        )  # fmt: skip
        fleet.add_type(route)
        roles = {} if empty else {route.model(route.baseline): "BASELINE"}
        if not alone:
            fleet.add_model(
                TYPE, "new", {place.region: place.new for place in places}, flavor=new.flavor, units=new.units
            )
            if any(place.new_share for place in places):
                roles[_NEW] = "EXPERIMENT"
            elif scenario.strategy.rule.takes and "CANDIDATE" not in scenario.strategy.rule.takes:
                roles[_NEW] = "RETIRED"
        for place in places:
            served = {route.model("old"): Served(place.old_share, place.old_running)} if not alone else {}
            if place.new_share or place.new_running:
                served[_NEW] = Served(place.new_share, place.new_running)
            rest = 10_000 - place.old_share - place.new_share
            if rest and not empty:
                other = route.model("other")
                if other not in roles:
                    # Another experiment, which keeps what it has.
                    fleet.add_model(TYPE, "other", {one.region: 2 for one in places})
                    roles[other] = "EXPERIMENT"
                served[other] = Served(rest, 2)
            fleet.serves(TYPE, place.region, served, roles)

    def _window(self, number: int) -> FreezeWindow:
        freeze = self._scenario.freezes[number]
        opens = (self._began + timedelta(seconds=freeze.seconds)).astimezone(UTC).replace(tzinfo=None)
        return FreezeWindow(
            freeze.name, freeze.reason, Schedule(opens, timedelta(seconds=freeze.lasts)), uid=str(number)
        )

    def _at(self, moment: Moment, kind: str, region: str, happen: Callable[[], str]) -> None:
        def act(_: Fleet) -> None:
            launch = self._launch
            if not launch.ended:
                self._lines.append(Line(self._passed, kind, launch.step.number, happen(), region))

        if moment.step:
            self.fleet.when(self.name, lambda launch: _is_at(launch, moment), act)
        else:
            self.fleet.after(moment.seconds, act)

    # People

    def _ask_people(self) -> None:
        """Those who are asked answer, each time that they are."""
        for asked in PEOPLE:
            reply = next((one for one in self._scenario.replies if one.asked == asked), Reply(asked))
            if reply.says != "nothing":
                self._wait_for(reply)

    def _wait_for(self, reply: Reply) -> None:
        def is_asked(launch: Launch) -> bool:
            if reply.asked == "approval":
                return launch.state is State.AWAITING_APPROVAL
            return launch.people_wait is not None

        def answers(fleet: Fleet) -> None:
            if not is_asked(self._launch):
                return
            says = fleet.approve if reply.says == "approve" else fleet.reject
            refused = says(self.name)
            if refused:
                said = f"{reply.says} ({reply.asked}): refused: {refused}"
                self._lines.append(Line(self._passed, "person", self._launch.step.number, said))

        def hears(fleet: Fleet) -> None:
            after = self._draw.uniform(*reply.after)
            fleet.after(after, answers)
            fleet.after(after + 1.0, lambda fleet: fleet.when(self.name, is_asked, hears))

        self.fleet.when(self.name, is_asked, hears)

    def _does(self, person: PersonsAct) -> Callable[[], str]:
        def happen() -> str:
            fleet = self.fleet
            acts: dict[str, Callable[[str], str]] = {
                "pause": fleet.pause,
                "resume": lambda name: fleet.resume(name, any_author=True),
                "skip": fleet.skip_step,
                "promote": fleet.promote,
                "abort": fleet.abort,
                "retry": fleet.retry,
            }
            refused = acts[person.do](self.name)
            return f"{person.do}: refused: {refused}" if refused else person.do

        return happen

    # Until the end

    async def go_on(self) -> None:
        """Runs it until it has ended, and nobody tries it again."""
        retries = [person for person in self._scenario.people if person.at.is_end]
        while not self._left:
            launch = self._launch
            if not launch.ended:
                await self.fleet.run(self.fleet.clock.monotonic() + _LOOK)
                self._left = self._is_left()
            elif launch.state is State.SUCCEEDED or not retries:
                break
            else:
                await self.fleet.run(self.fleet.clock.monotonic() + _TRIES_AGAIN)
                said = self._does(retries.pop(0))()
                self._lines.append(Line(self._passed, "person", 0, said))
                self._ask_people()
        self.fleet.check()

    def _is_left(self) -> str:
        """Why it is not followed any further; empty while it is."""
        launch = self._launch
        if launch.ended:
            return ""
        if self._passed >= _LONGEST:
            return "It had not ended after eight days."
        paused = launch.paused_since
        if paused is None or self._passed < self._last_said + _LEFT_ALONE:
            return ""
        if (self.fleet.clock.now() - paused).total_seconds() < _LEFT_ALONE:
            return ""
        return "Nobody in the scenario resumes or aborts it."

    @property
    def _last_said(self) -> float:
        """When the last happens of what has a time of its own."""
        moments = [one.at.seconds + one.seconds for one in self._scenario.accidents]
        return max([*moments, *(one.at.seconds for one in self._scenario.people)], default=0.0)

    def report(self) -> Report:
        """What has become of it."""
        fleet = self.fleet
        outcome = fleet.outcome(self.name)
        launch, scenario = outcome.launch, self._scenario
        models = {_NEW: scenario.new_model, f"{TYPE}/models/old": scenario.old_model}
        end = launch.update_time if launch.ended else fleet.clock.now()
        return Report(
            seed=scenario.seed,
            state=launch.state.name,
            ended=launch.ended,
            sentence=outcome.sentence,
            left=self._left,
            begun=self._begun,
            seconds=(end - self._began).total_seconds(),
            phases=phases_of(launch, self._began, end),
            lines=sorted([*self._lines, *self._history()], key=lambda line: line.seconds),
            regions=[
                there_of(region, launch, models, fleet.simulator(TYPE, region).ledger, self._began)
                for region in self._regions()
            ],
            events=fleet.effects - self._first,
            broken=list(fleet.oracle.broken),
            trace=fleet.trace(),
        )

    def _history(self) -> list[Line]:
        """The launch's history, and what that does not say: that it waits for people."""
        row = self.fleet.launches.rows[self.name]
        found = [
            Line(self._since(event.time), "event", event.step, f"{event.type}: {event.message}", event.region)
            for event in row.events
        ]
        asks = (told for told in row.told if told.kind in _ASKS)
        return found + [
            Line(self._since(told.create_time), "told", 0, f"people are told: {told.message}") for told in asks
        ]

    def _since(self, moment: datetime) -> float:
        return (moment - self._began).total_seconds()

    def _regions(self) -> list[str]:
        """In the order in which they are launched."""
        plan = self._launch.plan
        return [region.region for region in plan.regions] if plan else [one.region for one in self._scenario.places]


def _is_at(launch: Launch, moment: Moment) -> bool:
    """Whether a launch is at a step, or beyond it, in a region or in any."""
    if launch.state is not State.SHIFTING or launch.step.number < moment.step or launch.plan is None:
        return False
    return not moment.region or any(launch.plan.regions[at].region == moment.region for at in waves.shifted(launch))


def _as_the_launcher_looks(seldom: Callable[[Launch, float], float]) -> Callable[[Launch, float], float]:
    """A launch is looked at when it wants to be, above all while it bakes. Left out are looks at which nothing can have
    changed: every moment until the next thing happens on its route, and every minute until somebody approves it.

    Args:
        seldom: how a launch of a fleet is looked at, of which there are thousands.
    """

    def looks(launch: Launch, seconds: float) -> float:
        waiting = launch.condition("Waiting")
        reason = waiting.reason if waiting is not None else ""
        quiet = reason == _UP_TO_PEOPLE or (seconds < _MOMENT and reason not in _MEASURED)
        return seldom(launch, seconds) if quiet else seconds

    return looks
