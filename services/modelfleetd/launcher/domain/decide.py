"""What a launch does next: a pure function of the launch, what is observed, and the time. It reads as a recipe.

One step goes in this order: the hold covers it; new replicas are started, and available; weight is shifted; the share
is observed, baked and judged; old replicas are reduced; and what they took is used again only once they are terminated.
Everything is decided from what is really there: a launch that was left alone for a while simply goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain import frozen, gates, people, preemption, undo, waves
from modelfleetd.launcher.domain.actions import Action, Advance, Apply, Call, Judge, Wait
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.deadlines import accounted, alarm_after, ask_again, begin_step, errors_count
from modelfleetd.launcher.domain.hold import HoldState
from modelfleetd.launcher.domain.launch import Launch, enter, going_back
from modelfleetd.launcher.domain.observed import Seen, ShareState, in_proportion, share_state
from modelfleetd.launcher.domain.outcomes import reservation_gone
from modelfleetd.launcher.domain.record import Act
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.states import UNCHANGED, State
from modelfleetd.launcher.domain.words import be, count, listed, percent, span

# Seconds until the next look, while something is expected any moment, and while only time passes.
SOON: Final = 0.2
CAPACITY_RETRY: Final = 10.0
WATCH: Final = (2.0, 300.0)
# So long a plan is good for a launch that people had to approve: then it is made again.
_PLAN_LASTS: Final = timedelta(minutes=10)
# How often people's answers are looked for; verbs wake the launch at once.
PEOPLE: Final = 60.0


def awaits_hold(launch: Launch) -> bool:
    """Whether capacity has to be asked what has become of the reservation before the launch can decide."""
    if launch.state is not State.PREPARING or not launch.reservation or launch.activated or launch.abort is not None:
        return False
    return launch.hold is None or launch.hold.state is HoldState.PENDING


def next_action(launch: Launch, seen: Seen | Sequence[Seen] | None, now: datetime) -> Action:
    """Says what to do next.

    Args:
        launch: without an unsettled intent.
        seen: of the regions that `waves.to_observe` names, as far as they could be observed: the one, or several. Of
            several the first acts first.
        now: by the database's clock.
    """
    if launch.preempted_by and (launch.abort is None or launch.activated):
        return preemption.next_action(launch)
    found: Sequence[Seen] = () if seen is None else (seen,) if isinstance(seen, Seen) else seen
    if launch.state is State.ROLLING_BACK:
        return undo.next_action(launch, found, now)
    if launch.abort is not None:
        return _turn_round(launch, now)
    action = _forward(launch, found, now)
    if len(found) < len(waves.to_observe(launch)):
        # Time in which not all can be looked at counts against no deadline.
        action = waves.in_part(launch, action)
        if not isinstance(action, Apply):
            return action
    # What is refused again and again is a wait as well.
    trying = launch.retries > 0 and isinstance(action, Apply | Call)
    wait = Wait("Retrying", "what it asks for is refused", 0) if trying else action
    held = frozen.held_back(launch, action)
    if isinstance(held, Wait) and held.reason == frozen.HELD.reason:
        return _frozen(launch, now)
    if isinstance(wait, Wait) and (overdue := _overdue(launch, wait, now)):
        turned = going_back(launch, "deadline", overdue, now)
        return Advance("DeadlinePassed", overdue, turned, progress=False)
    if isinstance(action, Wait):
        return action
    if launch.paused and not isinstance(action, Judge) and action.progress:
        return _paused(launch)
    return action


def _forward(launch: Launch, seen: Sequence[Seen], now: datetime) -> Action:
    match launch.state:
        case State.PENDING:
            return _leave_queue(launch, now)
        case State.ESTIMATING:
            return Call(Act.ESTIMATE, "asks what both models need and what is free")
        case State.AWAITING_APPROVAL:
            return _await_approval(launch, now)
        case State.PREPARING:
            return _prepare(launch, now)
        case State.SHIFTING:
            return _shift_wave(launch, seen, now)
        case State.FINALIZING:
            return _finalize(launch, now)
        case _:
            raise ValueError(f"{launch.name} is {launch.state.name}: there is nothing to do")


def _turn_round(launch: Launch, now: datetime) -> Action:
    """An abort wins in every state. Where nothing was changed yet the launch is cancelled, else it is undone."""
    assert launch.abort is not None
    why = f"{launch.abort.author}: {launch.abort.reason}"
    if launch.state in UNCHANGED and not launch.activated:
        if launch.reservation:
            return Call(Act.CANCEL_RESERVATION, "gives back the capacity that it held", progress=False)
        return Advance("StateChanged", f"cancelled by {why}", enter(launch, State.CANCELLED, now), progress=False)
    if launch.state is State.FINALIZING and launch.revision == 0 and not launch.forgone:
        # From here on the registry refuses to finalise it, whoever still tries.
        return Call(Act.FORGO, "tells the registry that it goes back", progress=False)
    if launch.revision:
        # The registry has recorded it: too late, a launch of its own has to undo that.
        late = replace(launch, abort=None)
        return Advance("AbortTooLate", "the registry has finalised it already", late, progress=False)
    back = alarm_after(enter(launch, State.ROLLING_BACK, now), now)
    last = max(waves.shifted(launch)[-1], launch.furthest) if launch.touched else -1
    return Advance("StateChanged", f"rolls back, by {why}", replace(back, undoing=last), progress=False)


def _overdue(launch: Launch, wait: Wait, now: datetime) -> str:
    """Why a launch that can only wait is to go back; empty while it is not. Pauses stop deadlines."""
    if launch.paused or launch.revision or launch.frozen is not None or launch.people_wait is not None:
        return ""
    if gates.is_held(launch) and not errors_count(launch):
        # An outage of the judge must not roll back every launch at once.
        return ""
    if launch.deadline is not None and now >= launch.deadline:
        return f"the launch's deadline has passed while it waited: {wait.message}"
    if launch.state is State.SHIFTING and launch.step.deadline is not None and now >= launch.step.deadline:
        return f"step {launch.step.number} has not got on before its deadline: {wait.message}"
    return ""


def _paused(launch: Launch) -> Wait:
    who = ", ".join(f"{pause.author} ({pause.reason})" for pause in launch.pause_reasons)
    return Wait("Paused", f"is paused by {who}; goes on when they resume it", _watch(launch))


def _frozen(launch: Launch, now: datetime) -> Action:
    """A freeze window is open: what the candidate has it keeps, and its gates go on being measured."""
    assert launch.frozen is not None
    measured = launch.state is State.SHIFTING and launch.weight_time is not None
    if measured and gates.asked(launch, final=False) and _due(launch, now):
        return Judge(final=False)
    looks = _watch(launch) if launch.state is State.SHIFTING else PEOPLE
    return Wait("Frozen", frozen.words(launch.frozen), min(looks, _until(launch.frozen.end_time, now)))


def _watch(launch: Launch) -> float:
    """Seconds between looks while only time passes: long bakes are looked at less often."""
    least, most = WATCH
    return min(most, max(least, launch.policy.bake_duration.total_seconds() / 20))


# Before anything is changed


def _leave_queue(launch: Launch, now: datetime) -> Action:
    if launch.queued:
        return Wait("RouteBusy", f"waits for the launch that is active on {launch.model_type} to end", PEOPLE)
    deadline = now + launch.policy.launch_deadline
    begun = replace(enter(launch, State.ESTIMATING, now), deadline=deadline)
    return Advance("StateChanged", "estimates what it needs", begun)


def _await_approval(launch: Launch, now: datetime) -> Action:
    if launch.envelope is not None and launch.envelope.approved_by:
        by = launch.envelope.approved_by
        if launch.plan_time is None or now >= launch.plan_time + _PLAN_LASTS:
            again = f"approved by {by}; its plan is old and is made again"
            return Advance("StateChanged", again, enter(launch, State.ESTIMATING, now))
        return Advance("StateChanged", f"approved by {by}; prepares", enter(launch, State.PREPARING, now))
    until = launch.approval_deadline or launch.phase_times[-1].start_time + launch.policy.approval_deadline
    if now >= until and not launch.paused and launch.frozen is None:
        nobody = f"nobody approved it within {launch.policy.approval_deadline}"
        return Advance("Rejected", nobody, going_back(launch, "deadline", nobody, now), progress=False)
    who, why = "somebody", ""
    if launch.decision is not None and launch.decision.needs_approval:
        who, why = launch.decision.who, f": {launch.decision.explanation.rstrip('.')}"
    message = f"waits for {who}, other than {launch.actor}, to approve it, until {until:%F %R}{why}"
    return Wait("AwaitingApproval", message, PEOPLE)


def _prepare(launch: Launch, now: datetime) -> Action:
    if not launch.reservation:
        if (holds := gates.beside_bakes(launch, now) or people.stand(launch, now)) is not None:
            return holds
        if launch.plan_time is None or now >= launch.plan_time + _PLAN_LASTS:
            return Call(Act.ESTIMATE, "asks again what both models need and what is free")
        return Call(Act.RESERVE, "reserves the peak of the swap")
    if not launch.activated:
        return _await_hold(launch, now)
    shifting = begin_step(enter(launch, State.SHIFTING, now), 1, now, region=0)
    return Advance("StateChanged", "shifts traffic, step 1", shifting)


def _await_hold(launch: Launch, now: datetime) -> Action:
    """It is in line for its capacity; once that is held the plan is made again, within it, before anything starts."""
    hold = launch.hold
    assert hold is not None
    if hold.state is HoldState.PENDING:
        return Wait("CapacityPromised", hold.waits(now), hold.due(now))
    if hold.state is not HoldState.HELD:
        lost = f"its reservation is {hold.state.name}; plans and reserves anew"
        return Advance("ReservationLost", lost, reservation_gone(launch), progress=False)
    if hold.unfit:
        return Call(Act.CANCEL_RESERVATION, "gives back a hold that does not carry what serves now, to reserve anew")
    if launch.plan_time is None or now >= launch.plan_time + _PLAN_LASTS:
        return Call(Act.ESTIMATE, "makes its plan again, within what it holds")
    return Call(Act.ACTIVATE, "says that replicas are about to be started")


# Step by step


def _shift_wave(launch: Launch, seen: Sequence[Seen], now: datetime) -> Action:
    """Every region of the wave is decided by itself; together they go on."""
    assert launch.plan is not None
    at = {launch.plan.regions[position].region: position for position in waves.shifted(launch)}
    views = [(found, waves.at_region(launch, at[found.region])) for found in seen]
    decided = [(found, frozen.held_back(view, _shift(view, found, now))) for found, view in views]
    return waves.forward(launch, decided)


def _shift(launch: Launch, seen: Seen, now: datetime) -> Action:
    step = launch.step_plan
    new, old = seen.candidate, seen.baseline
    if new.weight > 0 and new.available == 0 and old.available > 0:
        lost = f"no replica of {launch.rising} is available any more"
        return Advance("SafetyRollback", lost, going_back(launch, "availability", lost, now), progress=False)
    if not launch.rule.swaps:
        if (action := _resize(launch, seen)) is not None:
            return action
    elif new.share < step.share:
        return _raise_share(launch, seen)
    let_on = people.gate_before(launch, people.next_share(launch)) is None
    if launch.step.passed and let_on and not launch.paused and old.desired <= step.old_after:
        return _give_up_old(launch, seen, now)
    state = share_state(seen)
    if state in (ShareState.PENDING, ShareState.DIFFERS):
        return _await_share(launch, seen, state)
    if launch.step.bake_start is None:
        return _begin_bake(launch, state, now)
    if not launch.step.passed:
        return _bake(launch, now)
    stands = people.stand(launch, now)
    measured = launch.paused or isinstance(stands, Wait)
    if measured and gates.asked(launch, final=False) and _due(launch, now):
        return Judge(final=False)
    return stands or _give_up_old(launch, seen, now)


def _raise_share(launch: Launch, seen: Seen) -> Action:
    """1 to 3: the hold covers the step; new replicas are started, and available; weight is shifted."""
    if (action := _start(launch, seen)) is not None:
        return action
    step, plan, new = launch.step_plan, launch.region_plan, seen.candidate
    shift = f"shifts the {plan.candidate.called}'s share from {percent(new.share)} to {percent(step.share)}"
    return Apply(Act.SHIFT, plan.region, new.desired, seen.baseline.desired, step.share, shift, raises=True)


def _start(launch: Launch, seen: Seen) -> Action | None:
    """1 and 2: None once the new replicas are available."""
    step, plan = launch.step_plan, launch.region_plan
    new, old = seen.candidate, seen.baseline
    # More than the plan says while it carries what another model of the route has dropped.
    needed = plan.candidate.needs(max(step.share, new.weight))
    if new.desired < max(step.new_replicas, needed) or old.desired < step.old_before:
        wanted_new, wanted_old = max(new.desired, step.new_replicas, needed), max(old.desired, step.old_before)
        if not _covered(launch, seen, wanted_new, wanted_old):
            if new.terminating or old.terminating:
                return Wait("Terminating", "waits for old replicas to end, whose capacity the next ones take", SOON)
            side, there = (plan.baseline, old) if plan.baseline is not None else (plan.candidate, new)
            has = f"for the {percent(there.weight)} of the traffic that it has"
            kept = f"the {side.called} keeps {there.desired} replicas {has}"
            return Wait("HoldShort", f"waits for room in its hold: {kept}", SOON, alarming=True)
        more = f"starts {count(wanted_new - new.desired, 'replica')} of the {plan.candidate.called}"
        return Apply(Act.START, plan.region, wanted_new, wanted_old, new.share, more)
    if new.available < needed:
        why = f" ({new.message})" if new.message else ""
        return Wait(
            "ReplicasStarting",
            f"waits for replicas of the {plan.candidate.called}: {new.available} of {needed} are available{why}",
            SOON,
        )
    return None


def _resize(launch: Launch, seen: Seen) -> Action | None:
    """The one side of a RESIZE: what is missing is started and available, what is too much reduced; then it bakes."""
    if (action := _start(launch, seen)) is not None:
        return action
    step, plan, new = launch.step_plan, launch.region_plan, seen.candidate
    kept = max(step.new_replicas, plan.candidate.needs(new.weight))
    if new.desired > kept:
        fewer = f"reduces the {plan.candidate.called} from {new.desired} to {kept} replicas"
        return Apply(Act.REDUCE, plan.region, kept, 0, new.share, fewer)
    if new.existing > kept:
        return Wait("Terminating", f"waits for surplus replicas of the {plan.candidate.called} to end", SOON)
    return None


def _covered(launch: Launch, seen: Seen, new: int, old: int) -> bool:
    """Whether the hold covers that many replicas beside what still exists, terminating ones counted."""
    grown = replace(
        seen,
        candidate=replace(seen.candidate, desired=max(new, seen.candidate.desired)),
        baseline=replace(seen.baseline, desired=max(old, seen.baseline.desired)),
    )
    plan = launch.region_plan
    return all(grown.used(plan, hold.flavor) <= hold.hold_units for hold in plan.holds)


def _await_share(launch: Launch, seen: Seen, state: ShareState) -> Action:
    step, called = launch.step_plan, launch.region_plan.candidate.called
    if state is ShareState.DIFFERS:
        seen_share = f"{percent(seen.candidate.observed)} after {seen.requests} requests"
        becomes = f"waits for the {called}'s share to become {percent(step.share)}; it is {seen_share}"
        return Wait("ShareDiffers", becomes, SOON)
    return Wait("ShareShifting", f"waits for the proxy to give the {called} {percent(step.share)}", SOON)


def _begin_bake(launch: Launch, state: ShareState, now: datetime) -> Action:
    """4: the share is observed; the bake begins."""
    seen_by = "by its requests" if state is ShareState.OBSERVED else "by the proxy's word, for lack of requests"
    step = replace(launch.step, bake_start=now)
    share = launch.step_plan.share
    baking = replace(launch, step=step, weight_time=launch.weight_time or now)
    if launch.policy.bake_duration:
        # Without a bake its gates are asked at once.
        baking = ask_again(baking, now)
    called, bake = launch.region_plan.candidate.called, span(launch.policy.bake_duration)
    message = f"the {called} has its {percent(share)} ({seen_by}); bakes for {bake}"
    return Advance("BakeBegan", message, baking, progress=False)


def _due(launch: Launch, now: datetime) -> bool:
    return launch.step.next_judge is None or now >= launch.step.next_judge


def _bake(launch: Launch, now: datetime) -> Action:
    """4, continued: the bake and its gates."""
    end = launch.bake_end
    assert end is not None
    over, by = now >= end, gates.spared(launch)
    asked = gates.asked(launch, final=over)
    if by and not any(gate.unspared for gate in asked):
        return Advance("BakeSkipped", f"{by} ended the bake", _passed(launch, now), progress=False)
    if not asked:
        if over:
            return Advance("BakeEnded", "the bake is over; there is no gate", _passed(launch, now), progress=False)
        return _baking(launch, now, end)
    unheard = {gate.name for gate in asked if gate.unspared}.intersection(launch.step.erring)
    if _due(launch, now) or (by and not unheard):
        return Judge(final=over)
    if launch.step.gate_errors:
        message = gates.errored(launch.step.erring, launch.step.gate_errors)
        return Wait("GateErrored", message, _until(launch.step.next_judge, now), alarming=True)
    if over:
        message = "holds: its gates cannot decide yet; asks again"
        return Wait("GateInconclusive", message, _until(launch.step.next_judge, now), alarming=True)
    return _baking(launch, now, end)


def _passed(launch: Launch, now: datetime) -> Launch:
    """The step's bake is over, and nothing holds it back."""
    launch = accounted(launch, now)
    return replace(launch, step=replace(launch.step, passed=True, gate_errors=0, held_since=None))


def _baking(launch: Launch, now: datetime, end: datetime) -> Wait:
    soonest = min(
        _until(end, now),
        _watch(launch),
        _until(launch.step.next_judge, now) if gates.asked(launch, final=False) else _watch(launch),
    )
    return Wait("Baking", f"bakes step {launch.step.number} until {end:%T}", soonest)


def _until(moment: datetime | None, now: datetime) -> float:
    return 0.0 if moment is None else max(0.0, (moment - now).total_seconds())


def _give_up_old(launch: Launch, seen: Seen, now: datetime) -> Action:
    """5 to 7: old replicas are reduced; their capacity counts as free, within the hold, once they are terminated."""
    plan, step = launch.region_plan, launch.step_plan
    new, old = seen.candidate, seen.baseline
    needed = plan.candidate.needs(new.share if in_proportion(seen) else new.weight)
    if new.available < needed:
        short = f"waits for replicas of the {plan.candidate.called}: {new.available} of {needed} are available"
        return Wait(f"{plan.candidate.called.capitalize()}Short", short, SOON, alarming=True)
    # More than the plan says while it carries what another model of the route has dropped.
    kept = max(step.old_after, plan.baseline.needs(old.weight) if plan.baseline else 0)
    if old.desired > kept:
        if old.available < kept:
            short = f"waits for replicas of the {_called(plan.baseline)}: {old.available} of {kept} are available"
            return Wait(f"{_called(plan.baseline).capitalize()}Short", short, SOON, alarming=True)
        fewer = f"reduces the {_called(plan.baseline)} from {old.desired} to {kept} replicas"
        return Apply(Act.REDUCE, plan.region, new.desired, kept, new.share, fewer)
    if step.number < len(plan.steps):
        following = begin_step(launch, step.number + 1, now)
        return Advance("StepEnded", f"step {step.number} is done; goes on to {step.number + 1}", following)
    if old.existing > kept:
        return Wait("Terminating", "waits for the last old replicas to end", SOON)
    assert launch.plan is not None
    done = waves.shifted(launch)
    if done[-1] + 1 < len(launch.plan.regions):
        nearby = [launch.plan.regions[at].region for at in waves.members(launch.plan, done[-1] + 1)]
        following = begin_step(launch, 1, now, region=done[-1] + 1)
        ended = listed([launch.plan.regions[at].region for at in done])
        return Advance("RegionEnded", f"{ended} {be(len(done))} done; goes on to {listed(nearby)}", following)
    return Advance("StateChanged", "every step is done; finalises", enter(launch, State.FINALIZING, now))


def _called(side: Side | None) -> str:
    return side.called if side is not None else "old side"


def _finalize(launch: Launch, now: datetime) -> Action:
    if launch.revision == 0 and (holds := gates.beside_bakes(launch, now)) is not None:
        return holds
    if launch.revision == 0:
        return Call(Act.FINALIZE, "tells the registry")
    if not launch.settled:
        return Call(Act.SETTLE, "settles its capacity", progress=False)
    return Advance("StateChanged", "done", enter(launch, State.SUCCEEDED, now), progress=False)
