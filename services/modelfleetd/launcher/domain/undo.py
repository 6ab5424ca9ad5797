"""How a launch goes back: the steps in reverse. The old side grows first, from the hold; the candidate keeps what the
old replicas that are available cannot carry; weight never points at replicas that are not available, and the
candidate's never rises.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

from modelfleetd.launcher.domain.actions import Action, Advance, Apply, Call, Wait
from modelfleetd.launcher.domain.launch import Act, Launch, State, enter
from modelfleetd.launcher.domain.observed import Seen, ShareState, share_state
from modelfleetd.launcher.domain.plan import RegionPlan
from modelfleetd.launcher.domain.replicas import share_of

SOON: Final = 0.2
# Weight goes back in parts of at least this many basis points while more old replicas are still starting.
_PART: Final = 1_000


def next_action(launch: Launch, seen: Seen | None, now: datetime) -> Action:
    """Says what to do next on the way back."""
    if launch.touched and launch.undoing >= 0:
        assert seen is not None and launch.plan is not None
        return _undo(launch, launch.plan.regions[launch.undoing], seen)
    if not launch.forgone:
        return Call(Act.FORGO, "tells the registry that it went back", progress=False)
    if launch.reservation and not launch.settled:
        return Call(Act.RELEASE, "books the old capacity again and frees the rest", progress=False)
    back = enter(launch, State.ROLLED_BACK, now)
    return Advance("StateChanged", "everything is as it was", back, progress=False)


def _undo(launch: Launch, plan: RegionPlan, seen: Seen) -> Action:
    new, old, goal = seen.candidate, seen.baseline, plan.candidate.share
    if not seen.known:
        return _region_done(launch, plan)
    if new.share > goal:
        return _give_back(plan, seen, goal)
    state = share_state(seen)
    if state in (ShareState.PENDING, ShareState.DIFFERS) and plan.baseline is not None:
        return Wait("ShareReturning", "waits for the traffic to be back with the baseline", SOON)
    if new.desired > plan.candidate.running:
        shed = f"ends the candidate's {new.desired - plan.candidate.running} replicas"
        return _apply(Act.SHED, plan, plan.candidate.running, old.desired, new.share, shed)
    if new.existing > plan.candidate.running:
        return Wait("Terminating", "waits for the candidate's replicas to end", SOON)
    if plan.baseline is not None and old.desired != plan.baseline.running:
        restored = f"restores the baseline's {plan.baseline.running} replicas"
        return _apply(Act.RESTORE, plan, new.desired, plan.baseline.running, new.share, restored)
    if plan.baseline is not None and old.existing > plan.baseline.running:
        return Wait("Terminating", "waits for surplus replicas of the baseline to end", SOON)
    return _region_done(launch, plan)


def _give_back(plan: RegionPlan, seen: Seen, goal: int) -> Action:
    """The candidate still has a share that it has to give back."""
    new, old = seen.candidate, seen.baseline
    if plan.baseline is None:
        return _apply(Act.RETURN, plan, new.desired, 0, None, "takes the only model's traffic away")
    if new.available == 0 and old.available > 0:
        # Better too few old replicas than none at all.
        return _apply(Act.RETURN, plan, new.desired, old.desired, goal, "the candidate has no replica: all goes back")
    # What the candidate has beyond its weight makes room for the old side.
    spare = _needed(plan, seen)
    if new.desired > spare:
        shed = f"ends {new.desired - spare} replicas of the candidate that have no weight"
        return _apply(Act.SHED, plan, spare, old.desired, new.share, shed)
    grown = _grown(plan, seen)
    if grown > old.desired:
        more = f"grows the baseline from {old.desired} to {grown} replicas"
        return _apply(Act.GROW, plan, new.desired, grown, new.share, more)
    # Available ones beyond what is asked for are about to be drained.
    keeps = _keeps(plan, min(old.available, old.desired), goal)
    gain = new.share - keeps
    if gain > 0 and (gain >= _PART or keeps == goal or old.available >= old.desired):
        back = f"returns {gain} basis points to the baseline"
        return _apply(Act.RETURN, plan, new.desired, old.desired, keeps, back)
    have = f"{old.available} of {old.desired} are available"
    why = f" ({old.message})" if old.message else ""
    if old.available >= old.desired:
        return Wait("Terminating", f"waits for room to grow the baseline; {have}", SOON)
    return Wait(
        "BaselineStarting", f"waits for replicas of the baseline before more traffic returns: {have}{why}", SOON
    )


def _needed(plan: RegionPlan, seen: Seen) -> int:
    """Replicas that the candidate has to keep: for its weight, and all of them until the proxy has settled."""
    new = seen.candidate
    if share_state(seen) in (ShareState.PENDING, ShareState.DIFFERS):
        return new.desired
    return max(plan.candidate.running, plan.candidate.needs(new.weight))


def _grown(plan: RegionPlan, seen: Seen) -> int:
    """Replicas of the baseline that the hold has room for, up to what the whole share needs."""
    assert plan.baseline is not None
    room = max(0, seen.free(plan, plan.baseline.flavor)) // plan.baseline.units
    return min(plan.old_at_start, seen.baseline.desired + room)


def _keeps(plan: RegionPlan, available: int, goal: int) -> int:
    """The share that the candidate keeps, because the old replicas that are available cannot carry it."""
    assert plan.baseline is not None
    most = plan.both - goal
    return plan.both - share_of(plan.baseline.full, available, plan.baseline.least, most)


def _apply(act: Act, plan: RegionPlan, new: int, old: int, share: int | None, message: str) -> Apply:
    return Apply(act, plan.region, new, old, share, message, progress=False)


def _region_done(launch: Launch, plan: RegionPlan) -> Advance:
    done = replace(launch, undoing=launch.undoing - 1)
    return Advance("RegionUndone", f"{plan.region} is as it was", done, progress=False)
