"""Finds every promise that is broken, at the event at which it is: what agents did against what launches had promised.

Every effect is judged by the plans as they were when it happened: before a launch is changed, and after every round,
what has been done since is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.plan import RegionPlan
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.serving import split_of
from modelfleetd.names import LAUNCH
from modelfleetd.platform.ledger import Promise, Walk
from modelfleetd.platform.model import DesiredServing, Effect, EffectKind
from modelfleetd.platform.simulator import Simulator

# So many are kept in words; all are counted.
_KEPT: Final = 100


class Oracle:
    """Judges the ledgers of a fleet's agents.

    Attributes:
        count: promises that were broken.
        broken: the first of them, in words.
    """

    def __init__(self) -> None:
        self.count = 0
        self.broken: list[str] = []
        self._walks: dict[tuple[str, str], Walk] = {}
        self._read: dict[tuple[str, str], int] = {}
        self._desired: dict[tuple[str, str], DesiredServing] = {}
        self._found: dict[tuple[str, str], int] = {}

    def breaks(self, what: str) -> None:
        """Takes note of a promise that is broken."""
        self.count += 1
        if len(self.broken) < _KEPT:
            self.broken.append(what)

    def look(
        self,
        model_type: str,
        region: str,
        simulator: Simulator,
        launches: Iterable[Launch],
        find: Callable[[str], Launch | None],
    ) -> None:
        """Judges what an agent did on a route since the last look.

        Args:
            model_type: the route.
            region: where.
            simulator: the agent.
            launches: those that may act there, as they were meanwhile.
            find: a launch by its name, as it was meanwhile.
        """
        key = (model_type, region)
        read = self._read.get(key, 0)
        if read == len(simulator.ledger):
            return
        walk = self._walks.setdefault(key, Walk())
        promises = promises_of(list(launches), region, self._desired.get(key))
        for effect in simulator.ledger[read:]:
            if effect.kind is EffectKind.ACCEPTED and effect.desired is not None:
                self._check_abort(key, effect, find)
                self._desired[key] = effect.desired
            walk.go_on(effect, promises)
        self._read[key] = len(simulator.ledger)
        before = self._found.get(key, 0)
        for violation in walk.found[before:]:
            self.breaks(f"{violation.effect.time:%d %H:%M:%S} {region}: {violation} (by {violation.effect.key})")
        self._found[key] = len(walk.found)

    def skip(self, model_type: str, region: str, simulator: Simulator) -> None:
        """What an agent did until now is history."""
        self.look(model_type, region, simulator, (), dict[str, Launch]().get)

    def _check_abort(self, key: tuple[str, str], effect: Effect, find: Callable[[str], Launch | None]) -> None:
        """After an abort nobody asks for more weight for the model that was growing."""
        launch = find(LAUNCH.format(effect.key.partition("/")[0]))
        before = self._desired.get(key)
        if launch is None or launch.abort is None or before is None or effect.desired is None:
            return
        had, has = before.share_of(launch.rising), effect.desired.share_of(launch.rising)
        if has > had:
            self.breaks(f"{launch.name}: the share of {launch.rising} rises from {had} to {has} after an abort")


def promises_of(launches: list[Launch], region: str, desired: DesiredServing | None) -> list[Promise]:
    """What the launches that change a route in a region have promised together."""
    plans = [(launch, plan) for launch in launches if launch.activated and (plan := _plan(launch, region)) is not None]
    if not plans:
        return []
    sides: dict[str, Side] = {}
    hold: dict[str, int] = {}
    # A mitigation comes last: of a model that it moves its plan says what that needs.
    for _, plan in sorted(plans, key=lambda found: found[0].mitigates):
        for side in (plan.candidate, plan.baseline):
            if side is not None:
                sides[side.model] = side
        for one in plan.holds:
            own, _ = plan.own(one)
            hold[one.flavor] = hold.get(one.flavor, 0) + (own if len(plans) > 1 else one.hold_units)
    for model in desired.models if desired is not None else ():
        if model.model not in sides:
            flavor = model.serving_spec.flavor
            hold[flavor] = hold.get(flavor, 0) + model.replicas * model.serving_spec.units
    target = plans[0][0].model_type.replace("modelTypes/", "targets/")
    return [Promise(target, _required(sides), hold)]


def _required(sides: Mapping[str, Side]) -> Callable[[str, int], int]:
    def required(model: str, share: int) -> int:
        side = sides.get(model)
        if side is None:
            return 0
        # A model that was short when the launch began is not charged for having been so, nor for what it gets back.
        return min(side.needs(share), side.running) if share <= side.share else side.needs(share)

    return required


def _plan(launch: Launch, region: str) -> RegionPlan | None:
    if launch.plan is None or launch.state is State.PREPARING:
        return None
    return next((plan for plan in launch.plan.regions if plan.region == region), None)


def disagreements(
    model_type: str, region: str, desired: DesiredServing | None, split: Mapping[str, int], booked: Mapping[str, int]
) -> list[str]:
    """Where registry, capacity and platform do not agree on a route on which nothing is going on.

    Args:
        model_type: the route.
        region: where.
        desired: what the agent works towards.
        split: basis points by model, by the registry.
        booked: units by model, by capacity.
    """
    found = []
    shares = {share.model: share.share for share in split_of(desired) if share.share}
    if shares != {model: share for model, share in split.items() if share}:
        found.append(f"{model_type} in {region}: the platform has the split {shares}, the registry {dict(split)}")
    units = {model.model: model.replicas * model.serving_spec.units for model in (desired.models if desired else ())}
    if {m: u for m, u in units.items() if u} != {m: u for m, u in booked.items() if u}:
        found.append(f"{model_type} in {region}: the platform has {units} units, capacity {dict(booked)}")
    return found
