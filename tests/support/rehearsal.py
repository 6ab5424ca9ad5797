"""A rehearsed fleet for tests that want everything of it: launches are looked at as often as the launcher does it, rows
are what a database would give back, and the judge says what the test wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, cast

from modelfleetd.launcher.documents import from_document, to_document
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.replicas import replicas_for
from modelfleetd.launcher.ports import Judgement
from modelfleetd.launcher.store import Change
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.chance import NO_TROUBLE, Trouble
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.launches import MemoryLaunches
from modelfleetd.rehearsal.parts import Parts
from modelfleetd.rehearsal.routes import REGION, Route, Served
from modelfleetd.rehearsal.world import MemoryWorld

TYPE: Final = "modelTypes/ranker"
OLD, NEW, OTHER = f"{TYPE}/models/old", f"{TYPE}/models/new", f"{TYPE}/models/other"
LAUNCH: Final = "launches/l"
QUICK: Final = Policy(bake_duration=timedelta(seconds=5), stability_gate=StabilityGate(disabled=True))
_LEAST: Final = 2


class _Launches(MemoryLaunches):
    """Launches are kept as the documents that rows hold, and the process may die at what it reads as well."""

    def put(self, after: Launch, said: str, *, fence: bool = False, anew: bool = False) -> None:
        super().put(after, said, fence=fence, anew=anew)
        row = self.rows[after.name]
        row.launch = _as_stored(row.launch)

    async def get(self, name: str) -> Launch:
        self._chance.crash()
        return await super().get(name)

    async def held_for(self, mitigation: Launch) -> Launch | None:
        self._chance.crash()
        return await super().held_for(mitigation)

    async def _recorded(self, before: Launch, change: Change) -> Launch:
        return _as_stored(await super()._recorded(before, change))


def _as_stored(launch: Launch) -> Launch:
    return from_document(Launch, to_document(launch))


class _World(MemoryWorld):
    """What the judge says is up to the test.

    Attributes:
        verdict: its verdict.
        asked: how often it was asked.
    """

    verdict = Verdict.PASS
    asked = 0

    async def judge(self, model: str, baseline: str, since: datetime, gate: StabilityGate) -> Judgement:
        self.asked += 1
        return Judgement(self.verdict, "as the test wants")


class Rehearsal(Fleet):
    """A fleet of which nothing is left out."""

    def __init__(self, *, seed: int = 0, spare: Mapping[str, int] | int = 0) -> None:
        super().__init__(seed=seed, spare=spare, parts=Parts(launches=_Launches, world=_World))
        self.launches.patience = lambda _, seconds: seconds
        self.judge = cast("_World", self.world)

    # What happens

    async def pass_by(self, seconds: float = 4_000, after_round: Callable[[Launch], object] | None = None) -> Launch:
        """Lets so much time pass, and something happen after each round meanwhile. Returns the launch."""
        if after_round is not None:
            self.after_round = after_round
        if seconds > 0:
            await self.run(self.clock.monotonic() + seconds)
        for simulator in self.routes.simulators.values():
            simulator.catch_up()
        return self.launch()

    def troubled(self, trouble: Trouble, name: str = LAUNCH) -> None:
        """Has a launch troubled like that from now on, and the machines of its route."""
        # Each has its own: whose call it is that hangs is told by it.
        row = self.launches.rows[name]
        row.trouble = replace(trouble)
        self.routes.trouble(row.launch, row.trouble)

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.judge.verdict = Verdict.PASS
        for row in self.launches.rows.values():
            row.trouble = NO_TROUBLE
        for (model_type, _), simulator in self.routes.simulators.items():
            simulator.catch_up()
            simulator.behaviour = self.routes[model_type].behaviour

    def fidget(self, name: str = LAUNCH) -> None:
        """Somebody pauses a launch, or takes everybody's reasons to pause away."""
        if self.chance.draw.random() < 0.5:
            self.pause(name)
        else:
            self.resume(name, any_author=True)

    def let_die(self, model: str, region: str = REGION) -> None:
        """All replicas of a model die, and none starts any more."""
        simulator = self.simulator(TYPE, region)
        simulator.failing_models.add(model)
        assert simulator.kill(model, 100) > 0

    # What there is

    def launch(self, name: str = LAUNCH) -> Launch:
        return self.launches.rows[name].launch

    def history(self, name: str = LAUNCH) -> list[str]:
        """What a launch went through: types and messages."""
        return [f"{event.type}: {event.message}" for event in self.launches.rows[name].events]

    def said(self) -> str:
        """What all went through."""
        return "\n--\n".join("\n".join(self.history(name)[-60:]) for name in self.launches.rows)

    def reasons(self, name: str = LAUNCH) -> set[str]:
        """Why a launch waits or needs people."""
        return {condition.reason for condition in self.launch(name).conditions}

    def serving(self, model_type: str = TYPE, region: str = REGION) -> dict[str, tuple[int, int]]:
        """Share and replicas that are asked for, by model."""
        found = self.simulator(model_type, region).desired(self.routes[model_type].target)
        assert found is not None
        assert sum(share.share_basis_points for share in found.shares) == 10_000
        return {model.model: (found.share_of(model.model), model.replicas) for model in found.models}

    def role(self, model: str) -> str:
        """By the registry; empty where it has none."""
        found = self.registry.model_of(model, "model").role
        return found.name if found is not None else ""

    def settled(self, name: str = LAUNCH) -> str:
        """How capacity has seen a launch end; empty where it held nothing."""
        found = self.capacity.found(name, self.launch(name).attempt)
        if found is None:
            return ""
        return found.outcome.name if found.outcome is not None else found.state.name

    def broken(self) -> list[str]:
        """Promises that were broken at any event, and where those do not agree with whom nothing goes on any more."""
        self.check()
        assert self.failed == 0
        return self.oracle.broken


async def rehearse(
    *,
    old: int,
    new: int,
    free: int,
    seed: int = 0,
    policy: Policy = QUICK,
    trouble: Trouble = NO_TROUBLE,
    other_share: int = 0,
    experiment_share: int = 0,
    **behaviour: Any,
) -> Rehearsal:
    """A launch from `old` replicas to `new`, with `free` units to spare, on machines that misbehave as told.

    With `experiment_share` the new model serves that share already, and the launch ends it. With `other_share` four
    replicas of another model serve that.
    """
    fleet = Rehearsal(seed=seed, spare=free)
    fleet.add_type(Route(TYPE, {REGION: old}, startup=timedelta(seconds=60), behaviour=Behaviour(**behaviour)))
    fleet.add_model(TYPE, "new", {REGION: new})
    fleet.add_model(TYPE, "other", {REGION: 40})
    rest = 10_000 - other_share - experiment_share
    served, roles = {OLD: Served(rest, old)}, {OLD: "BASELINE"}
    if experiment_share:
        served[OLD] = Served(rest, replicas_for(old, rest, _LEAST))
        served[NEW] = Served(experiment_share, replicas_for(new, experiment_share, _LEAST))
        roles[NEW] = "EXPERIMENT"
    if other_share:
        served[OTHER], roles[OTHER] = Served(other_share, 4), "EXPERIMENT"
    fleet.serves(TYPE, REGION, served, roles)
    await fleet.start()
    strategy = Strategy.END_EXPERIMENT if experiment_share else Strategy.REPLACE_BASELINE
    fleet.create("l", TYPE, NEW, strategy=strategy, policy=policy)
    fleet.troubled(trouble)
    return fleet
