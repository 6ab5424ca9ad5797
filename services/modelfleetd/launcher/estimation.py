"""Finds out what a launch is made from: what registry, capacity and the agents say, and the plan that follows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from modelfleetd.errors import CertificateMissing, NotConfigured, invalid
from modelfleetd.launcher.domain import plan as plans
from modelfleetd.launcher.domain import replicas
from modelfleetd.launcher.domain.criteria import resolved
from modelfleetd.launcher.domain.launch import Launch, ModelFacts
from modelfleetd.launcher.domain.plan import Inputs, Pace, Plan, Room, Side
from modelfleetd.launcher.domain.policy import Criterion
from modelfleetd.launcher.ports import Estimate, HeldUnits, SizedModel, TypeFacts, World
from modelfleetd.names import MODEL, MODEL_TYPE, TARGET
from modelfleetd.platform.model import ServingObservation

_LEAST = 2
# Regions that are asked about at a time.
AT_ONCE: Final = 16

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Estimation:
    """Everything that a plan was made from, and the plan."""

    type: TypeFacts
    candidate: ModelFacts
    baseline: ModelFacts | None
    # What the gate demands, as the judge can be asked it.
    criteria: tuple[Criterion, ...]
    plan: Plan
    agents: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Needs:
    """What both models need."""

    candidate: Estimate
    baseline: Estimate | None


def target_of(model_type: str) -> str:
    """The target of a route: the agents know it by the model type's id."""
    return TARGET.format(*MODEL_TYPE.parse(model_type))


async def estimate(launch: Launch, world: World, key: str, *, keep: bool) -> Estimation:
    """Asks everybody and makes the plan.

    Args:
        launch: what is to be launched, with its policy.
        world: whom to ask.
        key: of the act: repeated, it makes no second estimate.
        keep: whether capacity keeps its estimates.

    Raises:
        ReferenceNotFound, NotConfigured, CertificateMissing, PlanInfeasible, InvalidFields: why there is none.
    """
    type_ = await world.registry.model_type(launch.model_type)
    if type_.baseline == launch.candidate:
        raise invalid("launch.candidate", "must not be the baseline already")
    regions = launch.regions or type_.regions
    if not regions:
        raise NotConfigured(launch.model_type, "regions")
    for index, region in enumerate(regions):
        if region not in type_.regions:
            raise invalid(
                f"launch.regions[{index}]", f"must be one of the model type's regions: {', '.join(type_.regions)}"
            )
    gate = launch.policy.stability_gate
    criteria = resolved(gate.criteria, type_.predictions, has_baseline=bool(type_.baseline))
    candidate = await world.registry.model(launch.candidate, "launch.candidate")
    baseline = await world.registry.model(type_.baseline, "launch.model_type") if type_.baseline else None
    needs = await _needs(world, candidate, baseline, key, keep=False)
    addresses = dict(zip(regions, await _each(regions, world.registry.agent_address), strict=True))
    target = target_of(launch.model_type)
    observed = await _each(regions, lambda region: world.platforms.at(addresses[region]).observe(target))
    seen = dict(zip(regions, observed, strict=True))
    costs = {
        model.flavor: await world.capacity.unit_cost(model.flavor)
        for model in (candidate, baseline)
        if model is not None
    }

    def sides_of(needs: _Needs) -> Mapping[str, tuple[Side, Side | None]]:
        return {
            region: (
                _side(candidate, needs.candidate, region, seen[region], costs),
                _side(baseline, needs.baseline, region, seen[region], costs) if baseline else None,
            )
            for region in regions
        }

    rooms = await _rooms(launch, world, sides_of(needs))
    plan = _plan(launch, needs, sides_of(needs), rooms)
    if keep:
        # Only what a plan was made of is kept: there may be none for days, and everything is asked again and again.
        needs = await _needs(world, candidate, baseline, key, keep=True)
        plan = _plan(launch, needs, sides_of(needs), rooms)
    return Estimation(type_, candidate.facts, baseline.facts if baseline else None, criteria, plan, addresses)


def _plan(
    launch: Launch,
    needs: _Needs,
    sides: Mapping[str, tuple[Side, Side | None]],
    rooms: Mapping[tuple[str, str], Room],
) -> Plan:
    pace = Pace(
        max_step=launch.policy.max_step_basis_points,
        max_steps=launch.policy.max_steps,
        bake=launch.policy.bake_duration,
        deadline=launch.policy.launch_deadline,
    )
    planned = tuple(
        plans.make(Inputs(region, new, old, _room_of(rooms, region)), pace) for region, (new, old) in sides.items()
    )
    of_baseline = needs.baseline.name if needs.baseline else ""
    return plans.together(planned, pace, candidate_estimate=needs.candidate.name, baseline_estimate=of_baseline)


async def _each(regions: Sequence[str], ask: Callable[[str], Awaitable[_T]]) -> list[_T]:
    """Asks about every region, several at once."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(region: str) -> _T:
        async with slots:
            return await ask(region)

    return await asyncio.gather(*map(one, regions))


async def _needs(world: World, candidate: SizedModel, baseline: SizedModel | None, key: str, *, keep: bool) -> _Needs:
    of_candidate = await world.capacity.estimate(candidate.facts.name, f"{key}/candidate", keep=keep)
    return _Needs(of_candidate, await _baseline_estimate(world, baseline, key, keep=keep))


async def _baseline_estimate(world: World, baseline: SizedModel | None, key: str, *, keep: bool) -> Estimate | None:
    """What the baseline needs; None where there is none, or where nobody certified what a replica of it carries."""
    if baseline is None:
        return None
    try:
        return await world.capacity.estimate(baseline.facts.name, f"{key}/baseline", keep=keep)
    except CertificateMissing:
        return None


def _side(
    model: SizedModel, estimate: Estimate | None, region: str, seen: ServingObservation, costs: Mapping[str, float]
) -> Side:
    name = model.facts.name
    running = seen.desired.replicas_of(name) if seen.desired else 0
    share = seen.desired.share_of(name) if seen.desired else 0
    if estimate is None:
        full, least = replicas.inferred_full(running, share), min(_LEAST, max(1, running))
    elif region in estimate.replicas:
        full, least = estimate.replicas[region]
    else:
        raise NotConfigured(MODEL_TYPE.format(*MODEL.parse(name)[:1]), f"demand_source.stated for {region}")
    return Side(
        model=name,
        flavor=model.flavor,
        full=full,
        least=least,
        units=model.units,
        running=running,
        share=share,
        inferred=estimate is None,
        unit_cost=costs[model.flavor],
        startup=model.startup,
        drain=model.drain,
    )


async def _rooms(
    launch: Launch, world: World, sides: Mapping[str, tuple[Side, Side | None]]
) -> Mapping[tuple[str, str], Room]:
    """What the pool has for the launch. Asked for as if everything ran twice: what is there does not depend on it."""
    wanted: dict[tuple[str, str], int] = {}
    for region, (new, old) in sides.items():
        for side in (new, *([old] if old else [])):
            place = (side.flavor, region)
            wanted[place] = wanted.get(place, 0) + side.units * max(1, side.running, side.full, side.least)
    items = [HeldUnits(flavor, region, units) for (flavor, region), units in wanted.items()]
    return await world.capacity.room(launch.pool, launch.name, items, replaced_by(launch, sides))


def replaced_by(launch: Launch, sides: Mapping[str, tuple[Side, Side | None]]) -> tuple[str, ...]:
    """The models whose bookings move into the hold: both, since the candidate may serve a part already."""
    old = next((old.model for _, old in sides.values() if old is not None), "")
    return (launch.candidate, old) if old else (launch.candidate,)


def _room_of(rooms: Mapping[tuple[str, str], Room], region: str) -> dict[str, Room]:
    return {flavor: room for (flavor, at), room in rooms.items() if at == region}
