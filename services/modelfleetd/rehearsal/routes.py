"""The routes of one team and the machines that they run on: what serves them at first, and how the machines behave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from modelfleetd.capacity.domain.pool import Place
from modelfleetd.clock import ManualClock
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.platform.model import DesiredModel, DesiredServing, Fence, ModelShare, ServingSpec, TargetKind
from modelfleetd.platform.simulator import Behaviour, Simulator
from modelfleetd.rehearsal.chance import Chance, Trouble
from modelfleetd.rehearsal.trained import Trained, carries
from modelfleetd.rehearsal.world import Agent, MemoryWorld

FLAVOR: Final = "flavors/cpu"
REGION: Final = "regions/local"
_QUICK: Final = Behaviour(start_seconds=(0.5, 1.0), terminate_seconds=(0.1, 0.2), acknowledge_seconds=(0.05, 0.1))


@dataclass(frozen=True, slots=True)
class Route:
    """A model type, and what serves it when the rehearsal begins.

    Attributes:
        model_type: its name.
        needs: replicas of its baseline for the whole route, by region.
        baseline: the id of the model that serves everything at first.
        units: of the flavor, that a replica takes.
        behaviour: of the machines that it runs on.
        demand: requests a second by region, where they are others than those.
    """

    model_type: str
    needs: Mapping[str, int]
    baseline: str = "old"
    tier: str = "TIER2"
    flavor: str = FLAVOR
    units: int = 1
    startup: timedelta = timedelta(minutes=3)
    behaviour: Behaviour = field(default_factory=Behaviour)
    demand: Mapping[str, float] = field(default_factory=dict)

    def behaves(self, region: str) -> Behaviour:
        """How the machines of a region behave, with its traffic."""
        demand = self.demand.get(region)
        return self.behaviour if not demand else replace(self.behaviour, requests_per_second=demand)

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


class Routes:
    """Routes by the name of their model type, with a simulator for each of their regions.

    Attributes:
        all: the routes.
        simulators: by model type and region.
    """

    def __init__(self, seed: int | str, clock: ManualClock, world: MemoryWorld, chance: Chance) -> None:
        """Makes none.

        Args:
            seed: of the machines.
            clock: of the fleet.
            world: where the agents are found.
            chance: what befalls calls to them.
        """
        self.all: dict[str, Route] = {}
        self.simulators: dict[tuple[str, str], Simulator] = {}
        self._seed = seed
        self._clock = clock
        self._world = world
        self._chance = chance
        self._served: dict[tuple[str, str], Mapping[str, Served]] = {}

    def __getitem__(self, model_type: str) -> Route:
        return self.all[model_type]

    def add(self, route: Route) -> None:
        """Sets machines up for a route."""
        self.all[route.model_type] = route
        for region in route.needs:
            agent = self._world.agents.setdefault(region, Agent(self._chance, self._clock.monotonic))
            simulator = Simulator(
                self._clock,
                seed=_number(f"{self._seed} {route.model_type} {region}"),
                behaviour=replace(_QUICK, requests_per_second=route.behaves(region).requests_per_second),
                region=region,
            )
            agent.simulators[route.target] = self.simulators[route.model_type, region] = simulator

    def add_model(
        self, model_type: str, model_id: str, needs: Mapping[str, int], *, flavor: str = "", units: int = 0
    ) -> str:
        """Makes a model known that needs so many replicas for its whole route, by region. Returns its name.

        Args:
            model_type: its route.
            model_id: its id.
            needs: replicas by region.
            flavor: that it runs on; empty: that of the route.
            units: that a replica takes; 0: as many as the route's.
        """
        route = self.all[model_type]
        name = route.model(model_id)
        flavor, units = flavor or route.flavor, units or route.units
        spec = ServingSpec(command=("serve",), flavor=flavor, units_per_replica=units)
        max_qps = {region: carries(replicas) for region, replicas in needs.items()}
        self._world.models[name] = Trained(name, spec, max_qps, route.startup)
        return name

    def measure(self, model: str, needs: Mapping[str, int]) -> None:
        """Has it that a model needs so many replicas from now on."""
        max_qps = {region: carries(replicas) for region, replicas in needs.items()}
        self._world.measure(model, max_qps)

    def serves(self, model_type: str, region: str, served: Mapping[str, Served]) -> None:
        """Says what serves a route in a region at first, by the name of the model; nothing does before the first."""
        self._served[model_type, region] = served

    def served_by(self, route: Route, region: str) -> Mapping[str, Served]:
        """What serves at first, by the name of the model: its baseline, alone, where nothing else was said."""
        name = route.model(route.baseline)
        found = self._served.get((route.model_type, region))
        if found is not None:
            return found
        return {name: Served(10_000, max(2, self._world.models[name].needs(region)))}

    def serving(self, route: Route, region: str) -> Mapping[str, tuple[Place, int]]:
        """Units that what serves at first takes, by the name of the model."""
        return {
            model: (self.place(model, region), one.replicas * self._world.models[model].spec.units)
            for model, one in self.served_by(route, region).items()
        }

    def place(self, model: str, region: str) -> Place:
        """Where a model takes units in a region."""
        return Place(self._world.models[model].spec.flavor, region)

    async def start(self) -> None:
        """Has what serves at first serve; from then on machines are as slow as they are."""
        for shares in (False, True):
            for route in self.all.values():
                for region in route.needs:
                    await self._apply(route, region, shares=shares)
            self._pass(10.0)
        for (model_type, region), simulator in self.simulators.items():
            simulator.catch_up()
            simulator.behaviour = self.all[model_type].behaves(region)

    async def _apply(self, route: Route, region: str, *, shares: bool) -> None:
        served = self.served_by(route, region)
        if not served:
            # Its target is set up by the first launch.
            return
        desired = DesiredServing(
            tuple(DesiredModel(model, self._world.models[model].spec, one.replicas) for model, one in served.items()),
            tuple(ModelShare(model, one.share) for model, one in served.items() if one.share) if shares else (),
        )
        fence = Fence(1, f"before/{route.target}/{'shares' if shares else 'replicas'}")
        await self.simulators[route.model_type, region].apply(route.target, TargetKind.ROUTE, fence, desired)

    def _pass(self, seconds: float) -> None:
        self._clock.set(self._clock.monotonic() + seconds)
        for simulator in self.simulators.values():
            simulator.catch_up()

    # What goes wrong

    def trouble(self, launch: Launch, trouble: Trouble) -> None:
        """The machines of a route are as a launch has them that acts there."""
        route = self.all[launch.model_type]
        least, most = route.behaviour.terminate_seconds
        for region in route.needs:
            simulator = self.simulators[launch.model_type, region]
            simulator.catch_up()
            simulator.behaviour = replace(
                route.behaves(region),
                start_failure_rate=trouble.start_failure_rate,
                mean_life_seconds=trouble.mean_life_seconds,
                terminate_seconds=(least * trouble.slow_termination, most * trouble.slow_termination),
                lost_call_rate=trouble.agent_lost_rate,
                lost_answer_rate=trouble.agent_lost_rate,
            )
            # Of others that do not start that stays as it is.
            simulator.failing_models -= {launch.candidate}
            simulator.failing_models |= {launch.candidate} if trouble.failing else set()
            simulator.error_rates = {launch.candidate: trouble.error_rate} if trouble.error_rate else {}
            slow = route.behaviour.latency_ms * trouble.latency
            simulator.latencies = {launch.candidate: slow} if trouble.latency != 1.0 else {}

    def calm(self, launch: Launch) -> None:
        """A launch has ended: the machines are as they were before it."""
        route = self.all[launch.model_type]
        for region in launch.regions:
            simulator = self.simulators[launch.model_type, region]
            simulator.behaviour = route.behaves(region)
            # A baseline that was resized while nothing started serves on, and is to start for those who come next.
            simulator.failing_models.discard(launch.candidate)

    def cut_off(self, model_type: str, region: str, seconds: float) -> None:
        """The agent of a region does not answer for a route from now on."""
        self._world.agents[region].away_until[self.all[model_type].target] = self._clock.monotonic() + seconds

    def kill(self, model: str, count: int) -> None:
        """So many replicas of a model die, in every region."""
        for (model_type, _), simulator in self.simulators.items():
            if model.startswith(f"{model_type}/"):
                simulator.kill(model, count)

    # What they say

    def next_event(self, model_type: str) -> float | None:
        """When something happens on a route next, in monotonic seconds; None while nothing is due."""
        found = [self.simulators[model_type, region].next_event for region in self.all[model_type].needs]
        return min((due for due in found if due is not None), default=None)

    def requests(self, model: str) -> int:
        """How many requests a model has answered so far, in all regions."""
        model_type = model.rsplit("/", 2)[0]
        route = self.all[model_type]
        return sum(self.simulators[model_type, region].requests(route.target, model) for region in route.needs)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
