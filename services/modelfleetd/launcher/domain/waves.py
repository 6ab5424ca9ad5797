"""Regions that are launched together, as a wave: each is decided by itself, and the wave goes on once all of them may.

A launch is at one step of one wave. Its `step.region` is the wave's first region, which has the most steps; the others
stay at their last step where they have fewer. One act at a time, in whichever region has something to do; the bake
begins when all have their share, the gates judge over all of them, and the next step begins when all are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from modelfleetd.launcher.domain.actions import Action, Advance, Apply, Wait
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.observed import Seen
from modelfleetd.launcher.domain.plan import Plan, RegionPlan
from modelfleetd.launcher.domain.policy import RegionOrder
from modelfleetd.launcher.domain.states import State

# Whoever looks knows better what stands in the way, and when it is worth looking again.
UNSEEN: Final = Wait("PartUnavailable", "waits until every region can be observed", 1.0)


def ordered(regions: Iterable[RegionPlan], order: RegionOrder) -> tuple[RegionPlan, ...]:
    """Puts regions in the order in which they are launched, and says which of them go together.

    The one with the least traffic comes first: that for which the fewest replicas of the growing side suffice. Within a
    wave the one with the most steps leads.
    """
    by_traffic = sorted(regions, key=lambda plan: (plan.candidate.full, plan.region))
    match order:
        case RegionOrder.ONE_BY_ONE:
            return tuple(replace(plan, wave=number) for number, plan in enumerate(by_traffic, start=1))
        case RegionOrder.TOGETHER:
            return _wave(by_traffic, 1)
        case RegionOrder.CANARY_REGION:
            return (*_wave(by_traffic[:1], 1), *_wave(by_traffic[1:], 2))


def _wave(regions: Sequence[RegionPlan], number: int) -> tuple[RegionPlan, ...]:
    led = sorted(regions, key=lambda plan: -len(plan.steps))
    return tuple(replace(plan, wave=number) for plan in led)


def members(plan: Plan, region: int) -> range:
    """The wave of a region: all by their positions in the plan. A plan of old has no waves: each region is one."""
    wave = plan.regions[region].wave
    if wave == 0:
        return range(region, region + 1)
    there = [at for at, found in enumerate(plan.regions) if found.wave == wave]
    return range(there[0], there[-1] + 1)


def shifted(launch: Launch) -> range:
    """The regions that are at the launch's step, by their positions in the plan."""
    assert launch.plan is not None
    return members(launch.plan, launch.step.region)


def at_region(launch: Launch, region: int) -> Launch:
    """The launch as one region of its wave sees it: where that has fewer steps, it stays at its last."""
    assert launch.plan is not None
    number = min(launch.step.number, len(launch.plan.regions[region].steps))
    if (launch.step.region, launch.step.number) == (region, number):
        return launch
    return replace(launch, step=replace(launch.step, region=region, number=number))


def to_observe(launch: Launch) -> tuple[str, ...]:
    """The regions that have to be observed before the launch can decide; none where it need not look.

    On the way back these are all that it has touched: one that cannot be observed does not keep the others.
    """
    if launch.plan is None or launch.preempted_by:
        return ()
    if launch.state is State.SHIFTING:
        return tuple(launch.plan.regions[at].region for at in shifted(launch))
    if launch.state is State.ROLLING_BACK and launch.touched and launch.undoing >= 0:
        return tuple(launch.plan.regions[at].region for at in range(launch.undoing, -1, -1))
    return ()


def in_part(launch: Launch, action: Action) -> Action:
    """What of an action may be done while a region of the wave cannot be observed: nobody goes on blind, but going back
    waits for nobody, and a mitigation acts wherever it can.
    """
    if isinstance(action, Advance) and action.launch.abort is not None:
        return action
    if isinstance(action, Apply) and launch.rule.mitigation:
        return action
    return UNSEEN


def forward(launch: Launch, decided: Sequence[tuple[Seen, Action]]) -> Action:
    """What a wave does, of what each of its regions would do; the first in their order acts first."""
    if len(decided) == 1:
        ((_, action),) = decided
        return action
    turns = (action for _, action in decided if isinstance(action, Advance) and action.launch.abort is not None)
    if (turn := next(turns, None)) is not None:
        return replace(turn, launch=replace(turn.launch, step=launch.step))
    # All are done with what the leader is done with: it says what that means for the wave.
    leads = (action for seen, action in decided if seen.region == launch.region_plan.region)
    return _act_or_wait(decided) or next(leads, UNSEEN)


def back(decided: Sequence[tuple[Seen, Action | None]]) -> Action | None:
    """What is done next on the way back; None where every region that was observed is as it was."""
    return _act_or_wait(decided)


def _act_or_wait(decided: Sequence[tuple[Seen, Action | None]]) -> Action | None:
    acts = (action for _, action in decided if isinstance(action, Apply))
    if (act := next(acts, None)) is not None:
        return act
    waits = [(seen, action) for seen, action in decided if isinstance(action, Wait)]
    if not waits:
        return None
    # What people have to look at is said first; else what is expected soonest.
    seen, wait = min(waits, key=lambda found: (not found[1].alarming, found[1].seconds))
    said = wait.message if len({action.message for _, action in decided if isinstance(action, Wait)}) == 1 else ""
    return replace(
        wait,
        message=said or f"{wait.message}, in {seen.region}",
        seconds=min(action.seconds for _, action in waits),
    )
