"""Finds out what a launch is made from: what registry, capacity and the agents say, and the plan that follows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeVar

from modelfleetd.errors import (
    CertificateExpired,
    CertificateMissing,
    EndStateExceedsQuota,
    NotConfigured,
    PlanInfeasible,
    invalid,
)
from modelfleetd.launcher.domain import planning, replicas, waves
from modelfleetd.launcher.domain.beside import lent_to
from modelfleetd.launcher.domain.criteria import resolved
from modelfleetd.launcher.domain.decision import Decision
from modelfleetd.launcher.domain.hold import HoldState
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.plan import Plan, RegionPlan
from modelfleetd.launcher.domain.planning import Inputs, Pace, Room
from modelfleetd.launcher.domain.policy import Criterion
from modelfleetd.launcher.domain.record import ModelFacts
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.strategies import Goal, Strategy, final_share, inputs_of
from modelfleetd.launcher.domain.words import percent
from modelfleetd.launcher.intents import items_of
from modelfleetd.launcher.ports import Estimate, HeldUnits, HoldRequest, SizedModel, TypeFacts, World
from modelfleetd.launcher.serving import observed_of
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
    # Whether the candidate is to have less than now.
    lowers: bool


@dataclass(frozen=True, slots=True)
class _Needs:
    """What both models need; None where nobody certified what a replica carries, or there is no such model."""

    rising: Estimate | None
    falling: Estimate | None

    def demand(self, region: str) -> float:
        """Peak requests a second in a region; 0: not known."""
        return next((found.demand.get(region, 0.0) for found in (self.rising, self.falling) if found is not None), 0.0)


@dataclass(frozen=True, slots=True)
class _Asking:
    """The models of a launch, as the side that grows and the one that gives."""

    launch: Launch
    candidate: SizedModel
    baseline: SizedModel | None

    @property
    def rising(self) -> SizedModel:
        return self.candidate if self.launch.raises_candidate or self.baseline is None else self.baseline

    @property
    def falling(self) -> SizedModel | None:
        if not self.launch.rule.swaps:
            return None
        return self.baseline if self.launch.raises_candidate else self.candidate

    @property
    def rising_called(self) -> str:
        return self._called(self.rising)

    @property
    def falling_called(self) -> str:
        return self._called(self.falling)

    def _called(self, model: SizedModel | None) -> str:
        if not self.launch.rule.swaps:
            return self.candidate.role.lower()
        of_candidate, of_baseline = self.launch.rule.called
        if model is not self.candidate:
            return of_baseline
        # An old baseline that was held out ends like an experiment, and is none.
        ends_holdout = self.launch.rule.goal is Goal.NOTHING and model.role == "HOLDOUT"
        return "holdout" if ends_holdout else of_candidate


def target_of(model_type: str) -> str:
    """The target of a route: the agents know it by the model type's id."""
    return TARGET.format(*MODEL_TYPE.parse(model_type))


async def estimate(launch: Launch, world: World, key: str, now: datetime, *, keep: bool) -> Estimation:
    """Asks everybody and makes the plan.

    Args:
        launch: what is to be launched, with its policy.
        world: whom to ask.
        key: of the act: repeated, it makes no second estimate.
        now: for what is said of times.
        keep: whether capacity keeps its estimates.

    Raises:
        ReferenceNotFound, NotConfigured, CertificateMissing, CertificateExpired, PlanInfeasible, EndStateExceedsQuota,
        InvalidFields: why there is none.
    """
    type_ = await world.registry.model_type(launch.model_type)
    rule = launch.rule
    if type_.baseline == launch.candidate and rule.swaps:
        raise invalid("launch.candidate", "must not be the baseline already")
    regions = launch.regions or type_.regions
    if not regions:
        raise NotConfigured(launch.model_type, "regions", "set them first")
    for index, region in enumerate(regions):
        if region not in type_.regions:
            raise invalid(
                f"launch.regions[{index}]", f"must be one of the model type's regions: {', '.join(type_.regions)}"
            )
    gate = launch.policy.stability_gate
    criteria = resolved(gate.criteria, type_.predictions, has_baseline=bool(type_.baseline))
    candidate = await world.registry.model(launch.candidate, "launch.candidate")
    baseline = await world.registry.model(type_.baseline, "launch.model_type") if type_.baseline else None
    if rule.needs_baseline and baseline is None:
        raise NotConfigured(launch.model_type, "baseline")
    if launch.holdout_share and baseline is None:
        raise invalid("launch.holdout_share_basis_points", "must be unset: there is no baseline to keep it")
    _check_role(launch, candidate)
    addresses = dict(zip(regions, await _each(regions, world.registry.agent_address), strict=True))
    target = target_of(launch.model_type)
    # A launch that acts already has older epochs refused first: nobody changes any more what its plan is made from.
    observed = await _each(regions, lambda region: world.platforms.at(addresses[region]).observe(target, launch.epoch))
    seen = dict(zip(regions, observed, strict=True))
    if rule.mitigation:
        # Only where there is something to take away: what the agent runs, or what the ledger says.
        harmful = launch.candidate if rule.goal is Goal.NOTHING else type_.baseline
        regions = _where(harmful, type_, seen) or regions
    left = type_.shares.get(type_.baseline, frozenset()).difference(regions)
    if rule.becomes == "BASELINE" and left:
        also = ", ".join(sorted(left))
        raise invalid("launch.regions", f"must have every region in which the baseline serves, so also {also}")
    launch = replace(launch, lowers=_lowers(launch, type_.baseline, regions, seen))
    asking = _Asking(launch, candidate, baseline)
    needs = await _needs(world, asking, key, keep=False)
    costs = {
        model.flavor: await world.capacity.unit_cost(model.flavor)
        for model in (asking.rising, asking.falling)
        if model is not None
    }

    def sides_of(needs: _Needs) -> Mapping[str, tuple[Side, Side | None]]:
        return {
            region: (
                _lent(
                    launch,
                    _side(launch, asking.rising, needs.rising, asking.rising_called, region, seen[region], costs),
                    seen[region],
                ),
                _side(launch, asking.falling, needs.falling, asking.falling_called, region, seen[region], costs)
                if asking.falling
                else None,
            )
            for region in regions
        }

    rooms = _held(launch) or await _rooms(launch, world, sides_of(needs))
    plan = await _now_or_later(launch, world, type_.tier, needs, sides_of(needs), rooms, now)
    if keep:
        # Only what a plan was made of is kept: there may be none for days, and everything is asked again and again.
        needs = await _needs(world, asking, key, keep=True)
        plan = await _now_or_later(launch, world, type_.tier, needs, sides_of(needs), rooms, now)
    plan = replace(plan, predictions=type_.predictions)
    facts = baseline.facts if baseline else None
    return Estimation(type_, candidate.facts, facts, criteria, plan, addresses, launch.lowers)


_WORDS: Final = {Goal.NOTHING: "to be ended", Goal.SAME: "to be resized"}


def _check_role(launch: Launch, candidate: SizedModel) -> None:
    """Checks that the candidate is what the strategy takes; a new launch and one whose turn comes are checked alike."""
    rule, role = launch.rule, candidate.role
    if not rule.takes or role in rule.takes:
        return
    allowed = " or ".join(f"{'an' if name[0] in 'AEIOU' else 'a'} {name}" for name in sorted(rule.takes))
    to_be = _WORDS.get(rule.goal, f"for {launch.strategy.name}")
    hint = ""
    if launch.strategy is Strategy.START_EXPERIMENT and role == "EXPERIMENT":
        hint = "; RAMP changes the share of one that runs"
    raise invalid("launch.candidate", f"must be {allowed} {to_be}, and is {role}{hint}")


def _lowers(launch: Launch, baseline: str, regions: Sequence[str], seen: Mapping[str, ServingObservation]) -> bool:
    """Whether the candidate is to have less than now. Checks that every region can have the share that is asked for.

    Raises:
        InvalidFields: some region cannot, or some would have more and others less.
    """
    more, less = list[str](), list[str]()
    for region in regions:
        share, others = (_share(seen[region], model) for model in (launch.candidate, baseline))
        target = _final(launch, share + others, share)
        id_ = region.rpartition("/")[2]
        if not launch.rule.swaps and share == 0:
            raise invalid("launch.regions", f"must be regions in which the candidate has a share; in {id_} it has none")
        if launch.rule.has_target and target >= share + others:
            has = percent(share + others)
            most = f"must leave the baseline a share; in {id_} both have {has}"
            raise invalid("launch.target_share_basis_points", most)
        if launch.holdout_share and launch.holdout_share > others:
            most = f"must be at most what the baseline has; in {id_} that is {percent(others)}"
            raise invalid("launch.holdout_share_basis_points", most)
        if target != share:
            (more if target > share else less).append(id_)
    if launch.rule.has_target and more and less:
        words = f"is more than the candidate has in {', '.join(more)} and less than in {', '.join(less)}"
        raise invalid("launch.target_share_basis_points", f"{words}: ramp them in launches of their own")
    return launch.rule.has_target and bool(less)


def _share(seen: ServingObservation, model: str) -> int:
    return seen.desired.share_of(model) if seen.desired and model else 0


def _final(launch: Launch, both: int, share: int) -> int:
    """The candidate's share in the end, where it has so much now and so much together with the baseline."""
    return final_share(
        launch.strategy, both=both, present=share, target=launch.target_share, holdout=launch.holdout_share
    )


def _inputs(launch: Launch, region: str, new: Side, old: Side | None, room: Mapping[str, Room] | None = None) -> Inputs:
    return inputs_of(
        launch.strategy,
        Inputs(region, new, old, room or {}),
        raises=launch.raises_candidate,
        target=launch.target_share,
        holdout=launch.holdout_share,
    )


async def decide(launch: Launch, plan: Plan, world: World, key: str, *, keep: bool) -> Decision | None:
    """Asks the team's launch policy; None where a launch of the strategy is not for it to decide on.

    Raises:
        CertificateMissing, CertificateExpired, NotConfigured, ReferenceNotFound: why it cannot say.
    """
    rule = launch.strategy.rule
    if rule.mitigation or not rule.swaps:
        return None
    share = max(region.share_at_end(launch.candidate) for region in plan.regions)
    return await world.capacity.decide(launch.name, launch.candidate, launch.pool, share, f"{key}/decision", keep=keep)


async def _now_or_later(
    launch: Launch,
    world: World,
    tier: str,
    needs: _Needs,
    sides: Mapping[str, tuple[Side, Side | None]],
    rooms: Mapping[tuple[str, str], Room],
    now: datetime,
) -> Plan:
    """A plan that fits what is free now, in smaller steps where it must; else one that waits for others to end.

    Raises:
        PlanInfeasible: it fits neither now nor once everything that is held has ended, or no limit allows it.
    """
    try:
        return _plan(launch, needs, sides, rooms)
    except PlanInfeasible as infeasible:
        if _held(launch) or launch.beside is not None:
            # Two would wait for each other, where one holds for this one.
            raise
        try:
            patient = _plan(launch, needs, sides, rooms, patient=True)
        except PlanInfeasible:
            raise infeasible from None
        items = [HeldUnits(**item) for item in items_of(patient)]
        foreseen = await world.capacity.foresee(
            HoldRequest(launch.pool, launch.name, items, _models(sides), tier=tier, takes_over=launch.takes_over)
        )
        if foreseen is None:
            raise _never(launch, infeasible) from None
        waits = foreseen.waits(now) if foreseen.state is HoldState.PENDING else ""
        return replace(patient, wait=waits)


def _never(launch: Launch, infeasible: PlanInfeasible) -> PlanInfeasible:
    """The same, where it does not even fit once all that others hold is free."""
    when = f"nothing that others free is enough: {launch.pool} needs more quota"
    return _lacks(infeasible, infeasible.metadata["why"], when)


def _lacks(infeasible: PlanInfeasible, why: str, when: str = "") -> PlanInfeasible:
    data = infeasible.metadata
    missing = int(data["missing_units"])
    return PlanInfeasible(why, missing_units=missing, flavor=data["flavor"], region=data["region"], when=when)


def _plan(
    launch: Launch,
    needs: _Needs,
    sides: Mapping[str, tuple[Side, Side | None]],
    rooms: Mapping[tuple[str, str], Room],
    *,
    patient: bool = False,
) -> Plan:
    pace = Pace(
        max_step=launch.policy.max_step_basis_points,
        max_steps=launch.policy.max_steps,
        bake=launch.policy.bake_duration,
        deadline=launch.policy.launch_deadline,
    )
    planned: list[RegionPlan] = []
    lacking: list[PlanInfeasible] = []
    for region, (new, old) in sides.items():
        try:
            inputs = _inputs(launch, region, new, old, _room_of(rooms, region, new))
            planned.append(replace(_region_plan(inputs, pace, patient=patient), demand=needs.demand(region)))
        except PlanInfeasible as infeasible:
            lacking.append(infeasible)
    if lacking:
        raise _all_of(lacking)
    names = tuple(found.name if found else "" for found in (needs.rising, needs.falling))
    of_candidate, of_baseline = names if launch.candidate == launch.rising else names[::-1]
    in_order = waves.ordered(planned, launch.policy.region_order)
    return planning.together(in_order, pace, candidate_estimate=of_candidate, baseline_estimate=of_baseline)


def _all_of(lacking: Sequence[PlanInfeasible]) -> PlanInfeasible:
    """What is missing in every region, the most last: the error's own fields say that."""
    *others, most = sorted(lacking, key=lambda found: int(found.metadata["missing_units"]))
    if not others:
        return most
    said = [f"in {found.metadata['region']} {found.metadata['why']}" for found in (*others, most)]
    return _lacks(most, "; ".join(said))


def _region_plan(inputs: Inputs, pace: Pace, *, patient: bool) -> RegionPlan:
    """The plan of a region: also a patient launch waits only where it has to."""
    try:
        return planning.make(inputs, pace)
    except PlanInfeasible:
        if not patient:
            raise
        return planning.make(inputs, pace, patient=True)


def _where(model: str, type_: TypeFacts, seen: Mapping[str, ServingObservation]) -> tuple[str, ...]:
    """The regions in which a model runs or has a share, by its agent or by the ledger."""
    by_ledger = type_.shares.get(model, frozenset())
    running = {
        region
        for region, found in seen.items()
        if found.desired and (found.desired.replicas_of(model) or found.desired.share_of(model))
    }
    return tuple(region for region in seen if region in by_ledger or region in running)


async def _each(regions: Sequence[str], ask: Callable[[str], Awaitable[_T]]) -> list[_T]:
    """Asks about every region, several at once."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(region: str) -> _T:
        async with slots:
            return await ask(region)

    return await asyncio.gather(*map(one, regions))


async def _needs(world: World, asking: _Asking, key: str, *, keep: bool) -> _Needs:
    """What both sides need. What serves already may be inferred; what is new must be certified, unless it mitigates."""
    launch, rule = asking.launch, asking.launch.rule
    grows = launch.raises_candidate
    rising = await _estimate(
        world,
        asking.rising,
        f"{key}/{asking.rising_called}",
        keep=keep,
        may_lack=not grows or (rule.mitigation and bool(launch.known_full)),
        planned=not (rule.mitigation and grows),
    )
    if asking.falling is None:
        return _Needs(rising, None)
    called = f"{key}/{asking.falling_called}"
    planned = not rule.mitigation
    return _Needs(rising, await _estimate(world, asking.falling, called, keep=keep, may_lack=True, planned=planned))


async def _estimate(
    world: World, model: SizedModel, key: str, *, keep: bool, may_lack: bool, planned: bool = True
) -> Estimate | None:
    """What a model needs.

    Args:
        world: whom to ask.
        model: which.
        key: of the question.
        keep: whether capacity keeps its estimate.
        may_lack: whether it may go without a certificate; then None.
        planned: whether the model type must say how much traffic to plan for; else None where it does not.
    """
    try:
        return await world.capacity.estimate(model.facts.name, key, keep=keep)
    except (CertificateMissing, CertificateExpired):
        if not may_lack:
            raise
    except NotConfigured:
        if planned:
            raise
    return None


def _side(
    launch: Launch,
    model: SizedModel,
    estimate: Estimate | None,
    called: str,
    region: str,
    seen: ServingObservation,
    costs: Mapping[str, float],
) -> Side:
    name = model.facts.name
    running = seen.desired.replicas_of(name) if seen.desired else 0
    share = seen.desired.share_of(name) if seen.desired else 0
    if estimate is None and name == launch.candidate and region in launch.known_full:
        full, least = launch.known_full[region], _LEAST
    elif estimate is None:
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
        called=called,
    )


async def _rooms(
    launch: Launch, world: World, sides: Mapping[str, tuple[Side, Side | None]]
) -> Mapping[tuple[str, str], Room]:
    """What the pool has for the launch. Asked for as if everything ran twice: what is there does not depend on it."""
    wanted: dict[tuple[str, str], int] = {}
    ends: dict[tuple[str, str], int] = {}
    for region, (new, old) in sides.items():
        for side in (new, *([old] if old else [])):
            place = (side.flavor, region)
            wanted[place] = wanted.get(place, 0) + side.units * max(1, side.running, side.full, side.least)
        for flavor, units in planning.units_at_end(_inputs(launch, region, new, old)).items():
            ends[flavor, region] = units
    items = [HeldUnits(flavor, region, units, ends[flavor, region]) for (flavor, region), units in wanted.items()]
    rooms = await world.capacity.room(launch.pool, launch.name, items, _models(sides), takes_over=launch.takes_over)
    for (flavor, region), room in rooms.items():
        if room.end_excess > 0:
            end = ends[flavor, region]
            raise EndStateExceedsQuota(launch.pool, flavor, region, end, end - room.end_excess)
    return rooms


def _models(sides: Mapping[str, tuple[Side, Side | None]]) -> tuple[str, ...]:
    """The models whose bookings move into the hold: both, since both may serve a part already. What runs on the hold of
    a launch that holds for this one stays there.
    """
    moved = (side for pair in sides.values() for side in pair if side is not None and side.lent is None)
    return tuple(dict.fromkeys(side.model for side in moved))


def _held(launch: Launch) -> Mapping[tuple[str, str], Room]:
    """What a launch holds already: a plan that is made again has to fit that alone. Empty where it holds nothing."""
    if launch.hold is None or launch.hold.state is not HoldState.HELD:
        return {}
    return {(place.flavor, place.region): Room(place.moved, place.units - place.moved) for place in launch.hold.places}


def _room_of(rooms: Mapping[tuple[str, str], Room], region: str, new: Side) -> dict[str, Room]:
    """What there is in a region, with what another launch lends."""
    found = {flavor: room for (flavor, at), room in rooms.items() if at == region}
    if new.lent is not None:
        own = found.get(new.flavor, Room())
        found[new.flavor] = replace(own, booked=own.booked + new.lent.units)
    return found


def _lent(launch: Launch, side: Side, seen: ServingObservation) -> Side:
    """The side that grows, with what a launch lends it that holds for this one."""
    if launch.beside is None:
        return side
    models = {model.model: observed_of(seen, model.model) for model in seen.models}
    return lent_to(launch.beside, seen.region, side, models)
