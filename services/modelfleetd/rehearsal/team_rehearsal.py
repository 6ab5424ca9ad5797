"""One team of a plan: its fleet, the launches that its people create, and what they do to them; all of it drawn."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.errors import FleetError
from modelfleetd.launcher.domain.figures import figures_of
from modelfleetd.launcher.domain.freeze import FreezeWindow, Schedule
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.policy import Approval, Policy
from modelfleetd.launcher.domain.states import UNCHANGED, State
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.chance import NO_TROUBLE, Trouble
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.fleet_outcome import Ended, TeamOutcome
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.parts import IN_MEMORY, Parts
from modelfleetd.rehearsal.routes import REGION, Route

_DAY: Final = 86_400.0
_TIERS: Final = ("TIER0", "TIER1", "TIER2", "TIER3", "TIER4")
_MACHINES: Final = Behaviour(
    start_seconds=(20.0, 60.0),
    terminate_seconds=(5.0, 30.0),
    acknowledge_seconds=(0.5, 3.0),
    retry_seconds=5.0,
    requests_per_second=100.0,
)
# After the last launch was created, what is under way may take so much longer.
_AFTERWARDS: Final = 14 * _DAY
_STEPS: Final = 5
# So long people wait for a launch to begin.
_PATIENCE: Final = 2 * _DAY


@dataclass
class TeamRehearsal:
    """One team of a plan: its fleet, the launches that its people create, and what they do to them.

    Attributes:
        first: so many of its launches alone, as they come; None: all.
        parts: that its fleet is made of.
    """

    plan: FleetPlan
    team: int
    first: int | None = None
    parts: Parts = IN_MEMORY
    fleet: Fleet = field(init=False)
    refused: int = 0
    unit_hours: float = 0.0

    def __post_init__(self) -> None:
        plan, team = self.plan, self.team
        # What is drawn for a launch depends on the seed and the launch alone: an ablation has the same accidents.
        draw = random.Random(f"{plan.seed} {team} routes")
        self._routes = [self._route(number, draw) for number in range(plan.types_in(team))]
        serving = sum(max(2, route.needs[REGION]) * route.units for route in self._routes)
        largest = max(max(2, route.needs[REGION]) * route.units for route in self._routes)
        # With 1.25 the whole of the largest candidate has room: no launch is hopeless from the beginning.
        spare = max(round(serving * plan.spare), round(largest * plan.least_spare) + 2)
        self.fleet = Fleet(
            seed=f"{plan.seed} {team}",
            spare=spare,
            future_reservations=plan.future_reservations,
            history=20,
            pool=f"pools/team{team}",
            team=f"teams/team{team}",
            parts=self.parts,
        )
        self.fleet.looks.convinces = self._convinces
        for route in self._routes:
            self.fleet.add_type(route)
        if plan.faults:
            self.fleet.freeze(_night(self.fleet.clock.now().hour))

    def _route(self, number: int, draw: random.Random) -> Route:
        size = min(40, max(2, round(draw.lognormvariate(2.0, 0.7))))
        tier = draw.choices(_TIERS, weights=(2, 6, 40, 32, 20))[0]
        return Route(f"modelTypes/t{self.team}x{number}", {REGION: size}, tier=tier, behaviour=_MACHINES)

    async def run(self) -> None:
        """Lets the days pass, and then what is under way come to its end."""
        await self.fleet.start()
        count, end = self.plan.launches_in(self.team), self.plan.days * _DAY
        for number in range(count if self.first is None else min(self.first, count)):
            draw = random.Random(f"{self.plan.seed} {self.team} {number}")
            at = (number + draw.random()) * end / count
            self.fleet.at(at, functools.partial(self._create, number, draw))
        await self.fleet.run(end)
        self.unit_hours = self.fleet.capacity.unit_hours
        # Whoever has paused a launch comes back to it, and nothing is left to wait for but launches.
        await self.fleet.run(end + _AFTERWARDS)
        self.fleet.check()

    def _convinces(self, launch: Launch) -> bool:
        return self.fleet.launches.rows[launch.name].trouble.convinces

    def _create(self, number: int, draw: random.Random, fleet: Fleet) -> None:
        """A person creates a launch: mostly a new model for a route; sometimes an experiment, its end, or a resize."""
        route = self._routes[draw.randrange(len(self._routes))]
        trouble = _trouble(draw, self.plan.faults)
        policy = self._policy(route, draw)
        kind, size = draw.random(), max(2, round(route.needs[REGION] * draw.uniform(0.8, 1.2)))
        launch_id = f"t{self.team}n{number}"
        models = fleet.registry.models_of(route.model_type)
        experiments = [model.name for model in models if model.role is not None and model.role.name == "EXPERIMENT"]
        baseline = fleet.registry.type_of(route.model_type).baseline
        if kind < 0.08 and experiments:
            name = fleet.create(
                launch_id,
                route.model_type,
                experiments[0],
                strategy=Strategy.END_EXPERIMENT,
                policy=_mitigation(policy),
            )
        elif kind < 0.16 and not experiments:
            model = fleet.add_model(route.model_type, f"m{number}", {REGION: size})
            share = draw.choice((500, 1_000, 2_000))
            name = fleet.create(
                launch_id, route.model_type, model, strategy=Strategy.START_EXPERIMENT, target_share=share,
                policy=policy, trouble=trouble,
            )  # fmt: skip
        elif kind < 0.2:
            # Demand has changed, or what a replica carries.
            size += size == fleet.world.models[baseline].needs(REGION)
            fleet.measure(baseline, {REGION: size})
            name = fleet.create(
                launch_id, route.model_type, baseline, strategy=Strategy.RESIZE, policy=_ungated(policy),
                trouble=replace(trouble, calibration=1.0, error_rate=0.0, latency=1.0, labels=1.0),
            )  # fmt: skip
        else:
            model = fleet.add_model(route.model_type, f"m{number}", {REGION: size})
            name = fleet.create(launch_id, route.model_type, model, policy=policy, trouble=trouble)
        self._people(name, launch_id, draw)

    def _policy(self, route: Route, draw: random.Random) -> Policy:
        needs_approval = route.tier in ("TIER0", "TIER1") or draw.random() < 0.1
        policy = Policy(
            bake_duration=timedelta(minutes=10),
            step_deadline=timedelta(minutes=20),
            approval=Approval.REQUIRED if needs_approval else Approval.AUTOMATIC,
            rollback_window=timedelta(hours=6 if route.tier in ("TIER0", "TIER1") else 2),
        )
        if self.plan.recycling:
            return policy
        # One step, that bakes for as long as all of them: the whole candidate has to have room beside what serves.
        return replace(policy, max_step_basis_points=10_000, max_steps=1, bake_duration=_STEPS * policy.bake_duration)

    def _people(self, name: str, launch_id: str, draw: random.Random) -> None:
        """What people do to a launch, drawn when it is created."""
        fleet = self.fleet
        answers_after = draw.expovariate(1 / 3_600.0)

        def is_asked(launch: Launch) -> bool:
            return launch.state is State.AWAITING_APPROVAL

        def answers(fleet: Fleet) -> None:
            # A plan that leaves its envelope has to be approved once more.
            fleet.after(answers_after, lambda fleet: fleet.approve(name))
            fleet.after(answers_after + 0.5, lambda fleet: fleet.when(name, is_asked, answers))

        fleet.when(name, is_asked, answers)
        # A gate that cannot decide pauses: somebody looks at it a while later, and gives up in the end.
        looks = [0]

        def by_a_gate(launch: Launch) -> bool:
            return any(pause.author.startswith("gate/") for pause in launch.pause_reasons)

        def comes(fleet: Fleet) -> None:
            looks[0] += 1
            after = draw.uniform(600.0, 3 * 3_600.0)
            if looks[0] < 3:
                fleet.after(after, lambda fleet: fleet.resume(name, any_author=True))
            else:
                fleet.after(after, lambda fleet: fleet.abort(name, reason="its gates cannot decide"))
            fleet.after(after + 1.0, lambda fleet: fleet.when(name, by_a_gate, comes))

        fleet.when(name, by_a_gate, comes)
        step, often = draw.randint(1, _STEPS), self.plan.faults
        if draw.random() < 0.04 * often:
            lasts = draw.uniform(300.0, 4 * 3_600.0)

            def pauses(fleet: Fleet) -> None:
                fleet.pause(name)
                fleet.after(lasts, lambda fleet: fleet.resume(name))

            fleet.at_step(name, step, pauses)
        if draw.random() < 0.03 * often:
            fleet.at_step(name, step, lambda fleet: fleet.skip_step(name))
        if draw.random() < 0.02 * often:
            fleet.at_step(name, step, lambda fleet: fleet.promote(name))
        if draw.random() < 0.03 * often:
            fleet.at_step(name, step, lambda fleet: fleet.abort(name))
        # Nobody waits for ever: what has not begun by then is given up.
        fleet.after(_PATIENCE, lambda fleet: _give_up(fleet, name))
        if draw.random() < 0.01 * often:
            fleet.after(draw.uniform(0.0, 3_600.0), lambda fleet: fleet.abort(name, reason="not needed any more"))
        if draw.random() < 0.05 * often:
            seconds = draw.uniform(5.0, 900.0)
            fleet.at_step(name, step, lambda fleet: fleet.cut_off(_route_of(fleet, name), REGION, seconds))
        if draw.random() < 0.05 * often:
            dying = draw.randint(1, 3)
            fleet.at_step(name, step, lambda fleet: fleet.kill(_old_or_new(fleet, name, dying), dying))
        if draw.random() < 0.03 * often:
            after = draw.uniform(60.0, 3_600.0)

            def takes_back(fleet: Fleet) -> None:
                try:
                    fleet.roll_back(name, f"{launch_id}b")
                except FleetError:
                    # Another launch has followed it: there is nothing to take back.
                    self.refused += 1

            def later(fleet: Fleet) -> None:
                fleet.after(after, takes_back)

            fleet.when(name, lambda launch: launch.state is State.SUCCEEDED, later)

    def outcome(self, seconds: float, cpu_seconds: float) -> TeamOutcome:
        """What has become of it, in so many seconds of the machine and of its processor."""
        fleet = self.fleet
        routes = {route.model_type: route for route in self._routes}
        launches = [(row.launch, routes[row.launch.model_type]) for row in fleet.launches.rows.values()]
        return TeamOutcome(
            team=self.team,
            ended=tuple(
                Ended(launch.state, route.tier, route.needs[REGION], figures_of(launch))
                for launch, route in launches
                if launch.ended
            ),
            unfinished=sum(not launch.ended for launch, _ in launches),
            broken=fleet.oracle.count,
            first_broken=tuple(fleet.oracle.broken),
            rounds=fleet.rounds,
            effects=fleet.effects,
            crashes=fleet.crashes,
            stalls=fleet.stalls,
            refused=self.refused,
            peak=fleet.capacity.peak,
            quota=sum(fleet.capacity.quota.values()),
            unit_hours=self.unit_hours,
            trace=fleet.trace(),
            seconds=seconds,
            cpu_seconds=cpu_seconds,
        )


def _give_up(fleet: Fleet, name: str) -> None:
    if fleet.launches.rows[name].launch.state in UNCHANGED:
        fleet.abort(name, reason="waited for too long")


def _route_of(fleet: Fleet, name: str) -> str:
    return fleet.launches.rows[name].launch.model_type


def _old_or_new(fleet: Fleet, name: str, number: int) -> str:
    launch = fleet.launches.rows[name].launch
    return launch.candidate if number % 2 or not launch.baseline else launch.baseline


def _night(hour: int) -> FreezeWindow:
    """Six hours of every night nothing is launched that can cause a SEV0 or SEV1."""
    schedule = Schedule(datetime(2025, 1, 1, (hour + 18) % 24), timedelta(hours=6), rrule="FREQ=DAILY")  # noqa: DTZ001
    return FreezeWindow("freezeWindows/night", "nobody is there", schedule, tiers=("TIER0", "TIER1"), uid="night")


def _trouble(draw: random.Random, often: float) -> Trouble:
    """What goes wrong with a launch: mostly nothing but a lost call; now and then a bad candidate or bad machines."""
    if not often:
        return NO_TROUBLE

    def happens(rate: float) -> bool:
        return draw.random() < rate * often

    return Trouble(
        crash_rate=0.01 if happens(0.1) else 0.0,
        stall_rate=0.05 if happens(0.05) else 0.0,
        lost_rate=0.02 if happens(0.2) else 0.0,
        agent_lost_rate=0.02 if happens(0.2) else 0.0,
        judge_away_rate=0.2 if happens(0.05) else 0.0,
        start_failure_rate=0.1 if happens(0.08) else 0.0,
        mean_life_seconds=6 * 3_600.0 if happens(0.08) else None,
        slow_termination=20.0 if happens(0.03) else 1.0,
        failing=happens(0.02),
        calibration=draw.choice((0.6, 1.5)) if happens(0.06) else draw.uniform(0.95, 1.05),
        error_rate=0.08 if happens(0.03) else 0.0,
        latency=2.5 if happens(0.03) else 1.0,
        labels=0.0 if happens(0.02) else 1.0,
    )


def _ungated(policy: Policy) -> Policy:
    """Nobody judges it."""
    return replace(
        policy,
        stability_gate=replace(policy.stability_gate, disabled=True),
        availability_gate=replace(policy.availability_gate, disabled=True),
        evidence_gate=replace(policy.evidence_gate, disabled=True),
    )


def _mitigation(policy: Policy) -> Policy:
    """As fast as capacity allows, and nobody judges or approves it."""
    return replace(
        _ungated(policy),
        approval=Approval.AUTOMATIC,
        max_step_basis_points=10_000,
        max_steps=20,
        bake_duration=timedelta(0),
    )
