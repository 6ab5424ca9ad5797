"""How a launch goes back: the steps in reverse. The old side grows first, from the hold; the candidate keeps what the
old replicas that are available cannot carry; weight never points at replicas that are not available, and the
candidate's never rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.actions import Action, Advance, Apply, Call, Wait
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.deadlines import alarm_after
from modelfleetd.launcher.domain.launch import Launch, enter
from modelfleetd.launcher.domain.observed import OBSERVING, Observed, Seen, in_proportion
from modelfleetd.launcher.domain.plan import RegionPlan
from modelfleetd.launcher.domain.record import Act
from modelfleetd.launcher.domain.replicas import share_of
from modelfleetd.launcher.domain.shares import LOW_TRAFFIC, agrees
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.words import be, count, listed, percent

SOON: Final = 0.2
# While nothing but another model's return is waited for.
CARRYING: Final = 5.0
# Weight goes back in parts of at least this many basis points while more old replicas are still starting.
_PART: Final = 1_000
# Requests that were on their way count for so long; then the proxy's word is taken.
_STRAGGLING: Final = timedelta(seconds=30)


def next_action(launch: Launch, seen: Sequence[Seen], now: datetime) -> Action:
    """Says what to do next on the way back. Every region goes back as soon as it can; none waits for another one."""
    if launch.touched and launch.undoing >= 0:
        action = _undo_all(launch, seen, now)
        return replace(action, alarming=_late(launch, now)) if isinstance(action, Wait) else action
    if not launch.forgone:
        return Call(Act.FORGO, "tells the registry that it went back", progress=False)
    if launch.reservation and not launch.settled:
        return Call(Act.RELEASE, "books the old capacity again and frees the rest", progress=False)
    back = enter(launch, State.ROLLED_BACK, now)
    return Advance("StateChanged", "everything is as it was", back, progress=False)


def _undo_all(launch: Launch, seen: Sequence[Seen], now: datetime) -> Action:
    assert launch.plan is not None
    plans = {plan.region: plan for plan in launch.plan.regions[: launch.undoing + 1]}
    decided = [(found, _undo(launch, plans[found.region], found, now)) for found in seen]
    action = waves.back(decided)
    if action is not None:
        return action
    if len(seen) < len(plans):
        return waves.UNSEEN
    return _regions_done(launch, now)


def _late(launch: Launch, now: datetime) -> bool:
    """Whether nothing has got on for so long that people have to look."""
    return launch.step.deadline is not None and now >= launch.step.deadline


def _undo(launch: Launch, plan: RegionPlan, seen: Seen, now: datetime) -> Action | None:
    """What one region does next; None where it is as it was."""
    new, old, goal = seen.candidate, seen.baseline, plan.candidate.share
    if not seen.known:
        return None
    late = _late(launch, now)
    returned = _returned(seen, late=late)
    if new.share > goal:
        return _give_back(plan, seen, goal, returned=returned)
    if not returned and plan.baseline is not None:
        return Wait("ShareReturning", f"waits for the traffic to be back with the {plan.baseline.called}", SOON)
    kept = _kept(plan.candidate, new, late=late)
    if new.desired < plan.candidate.running:
        return _restore(plan, seen)
    if new.desired > kept:
        shed = f"ends {count(new.desired - kept, 'replica')} of the {plan.candidate.called}"
        return _apply(Act.SHED, plan, kept, old.desired, new.share, shed)
    if kept > plan.candidate.running:
        return Wait("CarriesOthers", f"the {plan.candidate.called} carries what another model has dropped", CARRYING)
    if new.existing > plan.candidate.running:
        return Wait("Terminating", f"waits for the {plan.candidate.called}'s replicas to end", SOON)
    if plan.baseline is None and new.available < min(plan.candidate.needs(new.weight), plan.candidate.running):
        have = f"{new.available} of {plan.candidate.running} are available"
        return Wait(
            f"{plan.candidate.called.capitalize()}Starting",
            f"waits for replicas of the {plan.candidate.called}: {have}",
            SOON,
        )
    kept = _kept(plan.baseline, old, late=late) if plan.baseline is not None else 0
    if plan.baseline is not None and old.desired != kept:
        # Where all of the traffic went back at once, old replicas may still end whose room the next ones take.
        room = max(0, seen.free(plan, plan.baseline.flavor)) // plan.baseline.units
        most = min(kept, old.desired + room)
        if most != old.desired:
            restored = f"restores the {plan.baseline.called}'s {most} replicas"
            return _apply(Act.RESTORE, plan, new.desired, most, new.share, restored)
        if old.desired < plan.baseline.running:
            return Wait("Terminating", f"waits for room to grow the {plan.baseline.called} again", SOON)
    if plan.baseline is not None and kept > plan.baseline.running:
        return Wait("CarriesOthers", f"the {plan.baseline.called} carries what another model has dropped", CARRYING)
    if plan.baseline is not None and old.existing > plan.baseline.running:
        return Wait("Terminating", f"waits for surplus replicas of the {plan.baseline.called} to end", SOON)
    return None


def _restore(plan: RegionPlan, seen: Seen) -> Action:
    """A model that was made smaller gets back what it had, as far as the hold has room while others still end."""
    new, side = seen.candidate, plan.candidate
    grown = min(side.running, new.desired + max(0, seen.free(plan, side.flavor)) // side.units)
    if grown == new.desired:
        return Wait("Terminating", f"waits for room to grow the {side.called} again", SOON)
    more = f"grows the {side.called} from {new.desired} to {grown} replicas"
    return _apply(Act.GROW, plan, grown, seen.baseline.desired, new.share, more)


def _kept(side: Side, seen: Observed, *, late: bool) -> int:
    """Replicas that a side has in the end: as before the launch.

    While it carries what another model of the route has dropped, it keeps what that needs; not for ever, since the hold
    has to end: people are called before it is as short again as it was.
    """
    carries = seen.acknowledged > seen.share and not late
    return max(side.running, side.needs(seen.acknowledged)) if carries else side.running


def _returned(seen: Seen, *, late: bool) -> bool:
    """Whether what was taken from the candidate is really gone. What others are given is not the candidate's matter."""
    new = seen.candidate
    if not seen.current or not (new.acknowledged <= new.share or in_proportion(seen)):
        return False
    if seen.split_age >= _STRAGGLING or late:
        # Where traffic has stopped, the last requests would be held against it for ever.
        return True
    if seen.requests < LOW_TRAFFIC:
        return seen.split_age >= OBSERVING
    return new.observed <= new.acknowledged or agrees(new.acknowledged, new.observed, seen.requests)


def _give_back(plan: RegionPlan, seen: Seen, goal: int, *, returned: bool) -> Action:
    """The candidate still has a share that it has to give back."""
    new, old = seen.candidate, seen.baseline
    if plan.baseline is None:
        return _apply(Act.RETURN, plan, new.desired, 0, None, "takes the only model's traffic away")
    if new.available == 0 and old.available > 0:
        # Better too few old replicas than none at all.
        lost = f"the {plan.candidate.called} has no replica: all goes back"
        return _apply(Act.RETURN, plan, new.desired, old.desired, goal, lost)
    # What the candidate has beyond its weight makes room for the old side.
    # All of it stays until the proxy has settled.
    spare = max(plan.candidate.running, plan.candidate.needs(new.weight)) if returned else new.desired
    if new.desired > spare:
        shed = f"ends {count(new.desired - spare, 'replica')} of the {plan.candidate.called} without weight"
        return _apply(Act.SHED, plan, spare, old.desired, new.share, shed)
    grown = _grown(plan, seen)
    if grown > old.desired:
        more = f"grows the {plan.baseline.called} from {old.desired} to {grown} replicas"
        return _apply(Act.GROW, plan, new.desired, grown, new.share, more)
    # Available ones beyond what is asked for are about to be drained.
    keeps = _keeps(plan, seen, goal)
    gain = new.share - keeps
    if gain > 0 and (gain >= _PART or keeps == goal or old.available >= old.desired):
        back = f"returns {percent(gain)} to the {plan.baseline.called}"
        return _apply(Act.RETURN, plan, new.desired, old.desired, keeps, back)
    have = f"{old.available} of {old.desired} are available"
    why = f" ({old.message})" if old.message else ""
    if old.available >= old.desired:
        return Wait("Terminating", f"waits for room to grow the {plan.baseline.called}; {have}", SOON)
    starting = f"waits for replicas of the {plan.baseline.called} before more traffic returns: {have}{why}"
    return Wait(f"{plan.baseline.called.capitalize()}Starting", starting, SOON)


def _grown(plan: RegionPlan, seen: Seen) -> int:
    """Replicas of the baseline that the hold has room for, up to what the whole share needs."""
    assert plan.baseline is not None
    room = max(0, seen.free(plan, plan.baseline.flavor)) // plan.baseline.units
    return min(plan.old_at_start, seen.baseline.desired + room)


def _keeps(plan: RegionPlan, seen: Seen, goal: int) -> int:
    """The share that the candidate keeps, because the old replicas that are available cannot carry it."""
    assert plan.baseline is not None
    new, old = seen.candidate, seen.baseline
    carried = share_of(plan.baseline.full, min(old.available, old.desired), plan.baseline.least)
    asked, given = new.share + old.share, new.acknowledged + old.acknowledged
    if old.available < old.desired and given > asked:
        # Another model has dropped its share, so each point that is asked for weighs more. Worth waiting for those that
        # are starting; where none is, going back comes first.
        carried = carried * asked // given
    return plan.both - min(plan.both - goal, carried)


def _apply(act: Act, plan: RegionPlan, new: int, old: int, share: int | None, message: str) -> Apply:
    return Apply(act, plan.region, new, old, share, message, progress=False)


def _regions_done(launch: Launch, now: datetime) -> Advance:
    assert launch.plan is not None
    regions = [plan.region for plan in launch.plan.regions[: launch.undoing + 1]]
    done = replace(alarm_after(launch, now), undoing=-1)
    were = "it was" if len(regions) == 1 else "they were"
    return Advance("RegionUndone", f"{listed(regions)} {be(len(regions))} as {were}", done, progress=False)
