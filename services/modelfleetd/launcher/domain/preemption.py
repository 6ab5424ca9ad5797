"""Mitigations have precedence: the launch that is active on their route holds, and goes on from what is there then.

An experiment that is to end takes no part in what the active launch moves, so both can be on the route: the mitigation
acts, and the other one touches nothing. What the baseline runs on stays in the hold of the launch that holds; the
mitigation takes only what the baseline grows by. Once it has ended, the other launch keeps its hold, what was booked
for the baseline counts beside it, and its steps are planned anew from the shares that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from modelfleetd.errors import PlanInfeasible
from modelfleetd.launcher.domain import planning, waves
from modelfleetd.launcher.domain.actions import Call, Wait
from modelfleetd.launcher.domain.beside import Beside
from modelfleetd.launcher.domain.deadlines import accounted, begin_step, postponed
from modelfleetd.launcher.domain.hold import HoldState
from modelfleetd.launcher.domain.launch import Launch, enter, going_back
from modelfleetd.launcher.domain.observed import Observed
from modelfleetd.launcher.domain.plan import RegionPlan
from modelfleetd.launcher.domain.planning import Inputs, Pace, Room
from modelfleetd.launcher.domain.record import ON_PLATFORM, Act, PauseReason, Share
from modelfleetd.launcher.domain.states import UNCHANGED, State
from modelfleetd.launcher.domain.strategies import final_share

# What is there of each model, by region and model.
Models = Mapping[str, Mapping[str, Observed]]

_AUTHOR: Final = "mitigation/"
# Seconds between looks at the mitigation; its end wakes the launch at once.
_LOOK: Final = 5.0
# Where a launch can hold: before, or while weight is shifted.
_HOLDS: Final = UNCHANGED | {State.SHIFTING}


def author_of(mitigation: str) -> str:
    """Whose the pause reason is that a mitigation gives."""
    return _AUTHOR + mitigation.rpartition("/")[2]


def is_author(author: str) -> bool:
    """Whether a pause reason is a mitigation's: only its end takes it away."""
    return author.startswith(_AUTHOR)


# Before and while it holds


def can_hold(launch: Launch) -> bool:
    """Whether a launch can hold for a mitigation. One that goes back, or only has to be written down, goes on: it is
    about to end, and the mitigation follows it.
    """
    return launch.state in _HOLDS and launch.abort is None


def takes_part(mitigation: Launch, launch: Launch) -> bool:
    """Whether a launch moves the very model that a mitigation takes away, or resizes one: then it has nothing to go on
    with.
    """
    models = {launch.candidate, launch.baseline} if launch.rule.swaps else {mitigation.falling}
    return mitigation.falling in models


def taken_back(launch: Launch, mitigation: Launch, now: datetime) -> Launch:
    """A launch that moves the model that a mitigation takes away goes back first."""
    why = f"{mitigation.name} takes {mitigation.falling} away, which this launch moves"
    return going_back(launch, author_of(mitigation.name), why, now)


def preempted(launch: Launch, mitigation: Launch, now: datetime) -> Launch:
    """The launch holds for a mitigation from now on."""
    launch = accounted(launch, now)
    pause = PauseReason(author_of(mitigation.name), f"{mitigation.name} ends {mitigation.candidate}", now)
    return replace(
        launch,
        preempted_by=mitigation.name,
        pause_reasons=(*launch.pause_reasons, pause),
        paused_since=launch.paused_since or now,
    )


def next_action(launch: Launch) -> Wait | Call:
    """What a launch does while it holds: it gives back what it does not use yet, and then nothing."""
    if launch.intent is None and launch.reservation and not launch.activated:
        what = f"gives back what it has not used yet, since {launch.preempted_by} comes first"
        return Call(Act.CANCEL_RESERVATION, what, progress=False)
    then = "plans again from what is there then"
    if launch.abort is not None:
        then = f"goes back then, by {launch.abort.author}: {launch.abort.reason.rstrip('.')}"
    return Wait("Preempted", f"holds until {launch.preempted_by} has ended; {then}", _LOOK)


def is_quiet(launch: Launch) -> bool:
    """Whether a launch that holds has settled with everybody but the platform, which fences it."""
    settled = launch.intent is None or launch.intent.act in ON_PLATFORM
    return settled and (launch.activated or not launch.reservation)


def beside_of(launch: Launch | None) -> Beside | None:
    """What a mitigation has to know of a launch that holds for it; None where that holds no capacity."""
    if launch is None or launch.plan is None:
        return None
    held = launch.activated or (launch.hold is not None and launch.hold.state is HoldState.HELD)
    return Beside(launch.name, launch.plan.regions) if held else None


def ledger_split(mitigation: Launch, region: str, shares: tuple[Share, ...]) -> tuple[Share, ...]:
    """The split that a mitigation records: the launch that holds has not happened yet, so its models have together what
    they have now, and its candidate of that what it had before the launch.
    """
    beside = mitigation.beside
    plan = beside.region(region) if beside is not None else None
    if plan is None or plan.baseline is None:
        return shares
    before, other = plan.candidate, plan.baseline
    both = sum(share.share for share in shares if share.model in (before.model, other.model))
    wanted = {before.model: min(before.share, both), other.model: both - min(before.share, both)}
    kept = [replace(share, share=wanted.pop(share.model)) if share.model in wanted else share for share in shares]
    if shares:
        kept += [replace(shares[0], model=model, share=share) for model, share in wanted.items()]
    return tuple(share for share in kept if share.share > 0)


# Afterwards


def booked_by(mitigation: Launch) -> Mapping[str, Mapping[str, int]]:
    """What a mitigation that has ended has booked for the baseline beside the other launch's hold: units by region and
    flavor.
    """
    if mitigation.plan is None or mitigation.revision == 0:
        return {}
    found: dict[str, Mapping[str, int]] = {}
    for region in mitigation.plan.regions:
        side, last = region.candidate, region.steps[-1]
        if side.lent is not None:
            found[region.region] = {side.flavor: side.grows(last.new_replicas, last.share)}
    return found


def lifted(launch: Launch, mitigation: Launch, seen: Models, now: datetime) -> tuple[Launch, str]:
    """The launch once its mitigation has ended, and what the history says of it.

    Args:
        launch: that held.
        mitigation: that has ended.
        seen: every region of the launch's plan, where it has begun to use its hold.
        now: by the database's clock.
    """
    ended = f"{mitigation.name} has ended as {mitigation.state.name}"
    launch = _resumed(replace(launch, intent=None, retries=0, preempted_by=""), mitigation.name, now)
    if launch.plan is None or not launch.activated:
        # Nothing was begun: it is planned from what is there now.
        launch = replace(launch, plan_time=None)
        if launch.state is State.AWAITING_APPROVAL:
            launch = enter(launch, State.ESTIMATING, now)
        return launch, f"{ended}; goes on"
    more, plan = booked_by(mitigation), launch.plan
    restored = tuple(back_to(r, seen[r.region], more.get(r.region, {})) for r in plan.regions)
    launch = replace(launch, plan=replace(plan, regions=restored))
    if launch.abort is not None:
        return launch, f"{ended}; goes back"
    try:
        regions = tuple(_steps_left(launch, r, seen[r.region]) for r in restored)
    except PlanInfeasible as infeasible:
        why = f"what is left of it does not fit what it holds, which never grows: {infeasible.message}"
        return going_back(launch, "plan", why, now), ended
    if all(r.wave for r in regions):
        regions = waves.ordered(regions, launch.policy.region_order)
    plan = replace(plan, regions=regions)
    launch = replace(launch, plan=plan)
    if launch.state is State.SHIFTING:
        open_ = (at for at, r in enumerate(regions) if _is_open(r, seen[r.region]))
        furthest = max(launch.furthest, waves.shifted(launch)[-1])
        first = waves.members(plan, next(open_, launch.step.region))[0]
        launch = replace(begin_step(launch, 1, now, region=first), furthest=furthest)
    return launch, f"{ended}; plans the rest anew, from the shares that are there"


def _is_open(region: RegionPlan, seen: Mapping[str, Observed]) -> bool:
    """Whether a region has something left to do: it has not all of its share, or has not given up what that frees."""
    if seen[region.candidate.model].share < region.goal:
        return True
    return region.baseline is not None and seen[region.baseline.model].desired > region.steps[-1].old_after


def _resumed(launch: Launch, mitigation: str, now: datetime) -> Launch:
    """Takes the mitigation's pause reason away. The time that it took does not count."""
    launch = accounted(launch, now)
    left = tuple(pause for pause in launch.pause_reasons if pause.author != author_of(mitigation))
    if left or launch.paused_since is None:
        return replace(launch, pause_reasons=left)
    resumed = postponed(launch, now - launch.paused_since)
    return replace(resumed, pause_reasons=(), paused_since=None)


def back_to(region: RegionPlan, seen: Mapping[str, Observed], more: Mapping[str, int]) -> RegionPlan:
    """The same plan, with what a mitigation has given the baseline: where the way back leads, and what carries it."""
    if region.baseline is None:
        return region
    both = seen[region.candidate.model].share + seen[region.baseline.model].share
    units = more.get(region.baseline.flavor, 0)
    baseline = replace(
        region.baseline,
        share=max(0, both - region.candidate.share),
        running=region.baseline.running + units // region.baseline.units,
    )
    holds = tuple(
        replace(hold, hold_units=hold.hold_units + units, moved_units=hold.moved_units + units)
        if hold.flavor == baseline.flavor
        else hold
        for hold in region.holds
    )
    return replace(region, baseline=baseline, holds=holds)


def _steps_left(launch: Launch, region: RegionPlan, seen: Mapping[str, Observed]) -> RegionPlan:
    """The plan of a region with the steps that are left, from the shares that are there, within what is held.

    Raises:
        PlanInfeasible: they do not fit that.
    """
    if region.baseline is None:
        return region
    new, old = seen[region.candidate.model], seen[region.baseline.model]
    room = {hold.flavor: Room(booked=hold.hold_units) for hold in region.holds}
    rising = replace(region.candidate, share=new.share, running=new.desired)
    falling = replace(region.baseline, share=old.share, running=old.desired)
    both = new.share + old.share
    present = new.share if launch.raises_candidate else old.share
    share = final_share(
        launch.strategy, both=both, present=present, target=launch.target_share, holdout=launch.holdout_share
    )
    target = share if launch.raises_candidate else both - share
    found = planning.make(Inputs(region.region, rising, falling, room, target=target), _pace(launch))
    return replace(region, steps=found.steps)


def _pace(launch: Launch) -> Pace:
    """How fast what is left may go."""
    policy = launch.policy
    return Pace(policy.max_step_basis_points, policy.max_steps, policy.bake_duration, policy.launch_deadline)
