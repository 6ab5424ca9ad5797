"""One launch of a scenario, from its creation to its end, and what is told of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.notifications import Kind
from modelfleetd.platform.model import Effect, EffectKind
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.routes import FLAVOR, REGION, Route
from modelfleetd.rehearsal.scenario import Accident, Moment, PersonsAct, Scenario

TYPE: Final = "modelTypes/rehearsed"
_LOOK: Final = 60.0
# A launch that has not ended by then is told as it is.
_LONGEST: Final = 8 * 86_400.0
_CRASHES: Final = 0.1
# Of what people are told: what waits for them.
_ASKS: Final = frozenset({Kind.PAUSED, Kind.NEEDS_ATTENTION})


@dataclass(frozen=True, slots=True)
class Point:
    """What serves from a moment on: shares in basis points as the proxy has them, and replicas that exist."""

    seconds: float
    new_share: int
    old_share: int
    new_replicas: int
    old_replicas: int


@dataclass(frozen=True, slots=True)
class Line:
    """Something that happened: an event of the launch, an accident, what somebody did, or what people were told."""

    seconds: float
    kind: str
    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """What has become of a launch."""

    seed: int
    state: str
    ended: bool
    sentence: str
    seconds: float
    phases: Sequence[tuple[str, float]]
    lines: Sequence[Line]
    points: Sequence[Point]
    peak: int
    hold: int
    events: int
    broken: Sequence[str]
    trace: str


async def rehearse(scenario: Scenario) -> Report:
    """Runs a launch until it has ended, or for eight simulated days."""
    fleet = Fleet(seed=scenario.seed, spare=scenario.spare)
    fleet.add_type(Route(TYPE, {REGION: scenario.old}, tier=scenario.tier, behaviour=scenario.machines))
    new = fleet.add_model(TYPE, "new", {REGION: scenario.new})
    await fleet.start()
    began, first = fleet.clock.now(), len(fleet.simulator(TYPE).ledger)
    start = fleet.clock.monotonic()
    name = fleet.create(
        "rehearsed",
        TYPE,
        new,
        strategy=scenario.strategy,
        policy=scenario.policy,
        target_share=scenario.share,
        holdout_share=scenario.holdout,
        trouble=scenario.trouble,
    )
    lines: list[Line] = []

    def at(moment: Moment, kind: str, happen: Callable[[Fleet], str]) -> None:
        def act(there: Fleet) -> None:
            launch = there.launches.rows[name].launch
            if not launch.ended:
                passed = there.clock.monotonic() - start
                lines.append(Line(passed, kind, launch.step.number, happen(there)))

        if moment.step:
            fleet.at_step(name, moment.step, act)
        else:
            fleet.after(moment.seconds, act)

    for accident in scenario.accidents:
        at(accident.at, "accident", _happens(accident, name))
    for person in scenario.people:
        at(person.at, "person", _does(person, name))
    while not fleet.launches.rows[name].launch.ended and fleet.clock.monotonic() - start < _LONGEST:
        await fleet.run(fleet.clock.monotonic() + _LOOK)
    fleet.check()
    outcome = fleet.outcome(name)
    launch = outcome.launch
    end = launch.update_time if launch.ended else fleet.clock.now()
    lines += [
        Line((event.time - began).total_seconds(), "event", event.step, f"{event.type}: {event.message}")
        for event in outcome.events
    ]
    # What its history does not say: that it waits for people.
    lines += [
        Line(
            (told.create_time - began).total_seconds(),
            "told",
            0,
            f"people are told: {told.message}",
        )
        for told in fleet.launches.rows[name].told
        if told.kind in _ASKS
    ]
    points = _points(fleet.simulator(TYPE).ledger, began, new)
    return Report(
        seed=scenario.seed,
        state=launch.state.name,
        ended=launch.ended,
        sentence=outcome.sentence,
        seconds=(end - began).total_seconds(),
        phases=_phases(launch, end),
        lines=sorted(lines, key=lambda line: line.seconds),
        points=points,
        peak=max((point.new_replicas + point.old_replicas for point in points), default=0),
        hold=launch.plan.regions[0].held(FLAVOR) if launch.plan is not None and launch.plan.regions else 0,
        events=len(fleet.simulator(TYPE).ledger) - first,
        broken=list(fleet.oracle.broken),
        trace=fleet.trace(),
    )


def _happens(accident: Accident, name: str) -> Callable[[Fleet], str]:
    """What an accident does, and what is said of it."""

    def happen(fleet: Fleet) -> str:
        row = fleet.launches.rows[name]
        models = {"new": row.launch.candidate, "old": row.launch.baseline}
        model, simulator, lasts = models[accident.of], fleet.simulator(TYPE), f"for {accident.seconds:g} s"

        def for_a_while(begin: Callable[[], object], end: Callable[[], object]) -> None:
            begin()
            fleet.after(accident.seconds, lambda _: end())

        def judge_away(rate: float) -> None:
            row.trouble = replace(row.trouble, judge_away_rate=rate)

        def crashes(rate: float) -> None:
            row.trouble = replace(row.trouble, crash_rate=rate)

        match accident.what:
            case "kill":
                return f"{simulator.kill(model, accident.replicas)} replicas of the {accident.of} model are killed"
            case "starts-fail":
                known = simulator.failing_models
                for_a_while(lambda: known.add(model), lambda: known.discard(model))
                return f"replicas of the {accident.of} model fail to start, {lasts}"
            case "no-machines":
                for_a_while(lambda: simulator.pending_models.add(model), simulator.settle_starts)
                return f"no machine comes for the {accident.of} model, {lasts}"
            case "agent-away":
                fleet.cut_off(TYPE, REGION, accident.seconds)
                return f"the agent does not answer, {lasts}"
            case "judge-away":
                for_a_while(lambda: judge_away(1.0), lambda: judge_away(0.0))
                return f"the judge does not answer, {lasts}"
            case "launcher-crashes":
                for_a_while(lambda: crashes(_CRASHES), lambda: crashes(0.0))
                return f"the launcher crashes at every tenth commit or call, {lasts}"
            case "candidate-fails":
                rates, usual = simulator.error_rates, simulator.error_rates.get(model, 0.0)
                for_a_while(lambda: rates.update({model: accident.rate}), lambda: rates.update({model: usual}))
                return f"{accident.rate:.3g} of the {accident.of} model's requests fail, {lasts}"
            case _:
                latencies = simulator.latencies
                usual = latencies.get(model, simulator.behaviour.latency_ms)
                slow = usual * accident.factor
                for_a_while(lambda: latencies.update({model: slow}), lambda: latencies.update({model: usual}))
                return f"the {accident.of} model is {accident.factor:g} times as slow, {lasts}"

    return happen


def _does(person: PersonsAct, name: str) -> Callable[[Fleet], str]:
    def happen(fleet: Fleet) -> str:
        acts: dict[str, Callable[[str], str]] = {
            "pause": fleet.pause,
            "resume": fleet.resume,
            "skip": fleet.skip_step,
            "abort": fleet.abort,
        }
        refused = acts[person.do](name)
        return f"{person.do}: refused: {refused}" if refused else person.do

    return happen


def _phases(launch: Launch, end: datetime) -> list[tuple[str, float]]:
    """How long the launch was in each state, in the order in which it came to them."""
    times = [*((phase.state.name, phase.start_time) for phase in launch.phase_times), ("", end)]
    return [
        (state, (until - since).total_seconds())
        for (state, since), (_, until) in itertools.pairwise(times)
        if until > since
    ]


def _points(ledger: Sequence[Effect], began: datetime, new: str) -> list[Point]:
    """What served, from the ledger of effects: one point for each moment at which something changed."""
    found: dict[float, Point] = {}
    shares, replicas = {True: 0, False: 0}, {True: 0, False: 0}
    for effect in ledger:
        is_new = effect.model == new
        match effect.kind:
            case EffectKind.REPLICA_STARTED:
                replicas[is_new] += 1
            case EffectKind.REPLICA_TERMINATED:
                replicas[is_new] -= 1
            case EffectKind.SHARES_ACKNOWLEDGED:
                shares = {True: 0, False: 0}
                for share in effect.shares:
                    shares[share.model == new] += share.share_basis_points
            case _:
                continue
        seconds = max(0.0, (effect.time - began).total_seconds())
        found[seconds] = Point(seconds, shares[True], shares[False], replicas[True], replicas[False])
    return list(found.values())


def as_data(report: Report) -> dict[str, Any]:
    """A report as plain data."""
    return {
        "seed": report.seed,
        "state": report.state,
        "ended": report.ended,
        "outcome": report.sentence,
        "seconds": round(report.seconds, 3),
        "phases": [{"state": state, "seconds": round(seconds, 3)} for state, seconds in report.phases],
        "timeline": [
            {"seconds": round(line.seconds, 3), "kind": line.kind, "step": line.step, "text": line.text}
            for line in report.lines
        ],
        "served": [
            {
                "seconds": round(point.seconds, 3),
                "new_share_basis_points": point.new_share,
                "old_share_basis_points": point.old_share,
                "new_replicas": point.new_replicas,
                "old_replicas": point.old_replicas,
            }
            for point in report.points
        ],
        "peak_units": report.peak,
        "hold_units": report.hold,
        "effects": report.events,
        "broken_promises": list(report.broken),
        "trace": report.trace,
    }
