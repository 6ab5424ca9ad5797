"""What people do to a launch: each verb is a pure function that gives the launch after it, or refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from modelfleetd.errors import EtagMismatch, SelfApproval, StepMovedOn, WrongState, invalid
from modelfleetd.launcher.domain import people, preemption
from modelfleetd.launcher.domain.attempts import next_attempt
from modelfleetd.launcher.domain.deadlines import accounted, postponed
from modelfleetd.launcher.domain.decision import Outcome
from modelfleetd.launcher.domain.launch import Launch, Strategy, going_back
from modelfleetd.launcher.domain.record import FreezeOverride, PauseReason, Promotion
from modelfleetd.launcher.domain.states import ENDED, State

_STEERED: Final = frozenset(
    {State.PENDING, State.ESTIMATING, State.AWAITING_APPROVAL, State.PREPARING, State.SHIFTING, State.FINALIZING}
)
# The states in which a launch may stand at a people's gate.
_AT_GATE: Final = frozenset({State.PREPARING, State.SHIFTING})
# Verb by verb, the states in which it may be called.
ALLOWED: Final[Mapping[str, frozenset[State]]] = {
    "PauseLaunch": _STEERED,
    "ResumeLaunch": _STEERED,
    "SkipLaunchStep": frozenset({State.SHIFTING}),
    "AbortLaunch": frozenset(State) - ENDED,
    "ApproveLaunch": frozenset({State.AWAITING_APPROVAL}),
    "RejectLaunch": frozenset({State.AWAITING_APPROVAL}),
    "PromoteLaunch": frozenset({State.SHIFTING}),
    "RetryLaunch": frozenset({State.ROLLED_BACK, State.CANCELLED}),
    "RollBackLaunch": frozenset({State.SUCCEEDED}),
    "OverrideLaunchFreeze": _STEERED - {State.FINALIZING},
}
# Who may call it, for the error that names the verbs.
_BY: Final[Mapping[str, str]] = {
    "PauseLaunch": "engineer, owner, oncall",
    "ResumeLaunch": "engineer, owner, oncall",
    "SkipLaunchStep": "owner, oncall",
    "AbortLaunch": "engineer, owner, oncall",
    "ApproveLaunch": "approver, owner",
    "RejectLaunch": "approver, owner",
    "PromoteLaunch": "owner",
    "RetryLaunch": "engineer, owner",
    "RollBackLaunch": "engineer, owner, oncall",
    "OverrideLaunchFreeze": "approver, owner",
}
MAX_REASON: Final = 1_000
MAX_OVERRIDES: Final = 20


def allowed(launch: Launch) -> list[str]:
    """The verbs that are allowed now and would change something, each with who may call it."""
    acting = (verb for verb in ALLOWED if is_allowed(launch, verb) and not _is_idle(launch, verb))
    return [f"{verb} ({_by(launch, verb)})" for verb in acting]


def _by(launch: Launch, verb: str) -> str:
    """Who may call a verb; of a plan that the launch policy has not accepted, those whom that names."""
    asked = launch.decision if verb in ("ApproveLaunch", "RejectLaunch") else None
    if asked is None or not asked.needs_approval or launch.state is not State.AWAITING_APPROVAL:
        return _BY[verb]
    return ", ".join(f"{approver.role.lower()} of {approver.team}" for approver in asked.approvers)


def is_allowed(launch: Launch, verb: str) -> bool:
    """Whether a verb would act on the launch as it is. At a people's gate it is let on, or rejected."""
    if verb in ("ApproveLaunch", "RejectLaunch") and launch.people_wait is not None and launch.abort is None:
        return launch.state in _AT_GATE
    if launch.state not in ALLOWED[verb]:
        return False
    match verb:
        case "AbortLaunch":
            return launch.revision == 0
        case "RollBackLaunch":
            return launch.can_be_taken_back
        case _:
            return True


def _is_idle(launch: Launch, verb: str) -> bool:
    """Whether a verb is taken and changes nothing: nobody has paused it, or it is promoted or aborted already."""
    match verb:
        case "ResumeLaunch":
            return all(preemption.is_author(pause.author) for pause in launch.pause_reasons)
        case "PromoteLaunch":
            return launch.promoted is not None
        case "AbortLaunch":
            return launch.abort is not None
        case _:
            return False


def check_reason(reason: str, field: str = "reason") -> str:
    """Returns a reason if it is one.

    Raises:
        InvalidFields: it is empty or too long.
    """
    if not reason.strip() or len(reason) > MAX_REASON:
        raise invalid(field, f"must have 1 to {MAX_REASON} characters")
    return reason


def _check_state(launch: Launch, verb: str) -> None:
    if not is_allowed(launch, verb):
        raise WrongState(launch.name, launch.state.name, allowed(launch))


def pause(launch: Launch, author: str, reason: str, now: datetime) -> Launch:
    """Adds the reason of an author to pause; it replaces their other one. The same once more changes nothing."""
    _check_state(launch, "PauseLaunch")
    if any((pause.author, pause.reason) == (author, reason) for pause in launch.pause_reasons):
        return launch
    launch = accounted(launch, now)
    others = tuple(pause for pause in launch.pause_reasons if pause.author != author)
    return replace(
        launch,
        pause_reasons=(*others, PauseReason(author, reason, now)),
        paused_since=launch.paused_since or now,
    )


def resume(launch: Launch, author: str, now: datetime, *, any_author: bool = False) -> Launch:
    """Removes the author's reason to pause, or everybody's. The time that it was paused does not count.

    Where there is no such reason, and no evidence that could be asked for again, nothing changes.
    """
    _check_state(launch, "ResumeLaunch")
    # A mitigation's goes with its end only.
    left = tuple(
        pause
        for pause in launch.pause_reasons
        if preemption.is_author(pause.author) or (pause.author != author and not any_author)
    )
    lacks = launch.decision is not None and launch.decision.outcome is Outcome.EVIDENCE_MISSING
    if left == launch.pause_reasons and not (lacks and launch.state is State.AWAITING_APPROVAL):
        return launch
    launch = accounted(launch, now)
    if launch.state is State.AWAITING_APPROVAL:
        # Whoever has brought the evidence that was missing need not wait for the next question.
        launch = replace(launch, evidence_time=None)
    gates = [pause for pause in launch.pause_reasons if pause not in left and pause.author.startswith("gate/")]
    if gates:
        # Somebody has looked at what the gate could not decide: it gets its extensions once more.
        # Its deadline is the one of a step that begins when the pause does; below it is pushed on with the others.
        policy = launch.policy
        deadline = (launch.paused_since or now) + policy.step_deadline + policy.bake_duration
        again = replace(launch.step, extensions=0, bake_start=now, next_judge=None, deadline=deadline)
        # Beside the bakes they are asked again at once.
        fresh = replace(launch.asked, undecided=0, next_time=None)
        launch = replace(launch, step=again if launch.state is State.SHIFTING else launch.step, asked=fresh)
    if left or launch.paused_since is None:
        return replace(launch, pause_reasons=left)
    resumed = postponed(launch, now - launch.paused_since)
    return replace(resumed, pause_reasons=(), paused_since=None)


def skip_step(launch: Launch, author: str, expected_step: int) -> Launch:
    """Ends the bake of the step that the caller names. Capacity and availability are not skipped by it."""
    _check_state(launch, "SkipLaunchStep")
    step = launch.step
    if step.number != expected_step or step.passed:
        current = step.number + 1 if step.passed and step.number == expected_step else step.number
        raise StepMovedOn(launch.name, expected_step, current)
    return replace(launch, step=replace(step, skipped_by=author))


def promote(launch: Launch, author: str, reason: str, now: datetime) -> Launch:
    """Skips the bakes that remain, and what the gates have paused it for. Repeated, the first promotion stays."""
    _check_state(launch, "PromoteLaunch")
    if launch.promoted is not None:
        return launch
    for gate in [pause.author for pause in launch.pause_reasons if pause.author.startswith("gate/")]:
        launch = resume(launch, gate, now)
    return replace(launch, promoted=Promotion(author, reason, now))


def retry(launch: Launch, author: str, now: datetime) -> Launch:
    """Begins a launch that went back once more."""
    _check_state(launch, "RetryLaunch")
    return next_attempt(launch, author, now)


def check_taken_back(launch: Launch, baseline: str, followed_by: str) -> None:
    """Expects that a launch can be taken back: it has succeeded, and what it launched still is the baseline.

    Args:
        launch: that is to be taken back.
        baseline: of its model type now.
        followed_by: the launch that has succeeded last on the route; empty where there is none.

    Raises:
        WrongState: there is nothing that it could be taken back to, or it is not the last.
    """
    if launch.state is State.SUCCEEDED and not is_allowed(launch, "RollBackLaunch"):
        first = f"as the first baseline of {launch.model_type}, which has nothing to go back to"
        other = "and has not replaced the baseline; an experiment is ended instead (END_EXPERIMENT)"
        why = first if launch.strategy is Strategy.REPLACE_BASELINE else other
        raise WrongState(launch.name, f"SUCCEEDED {why}", [])
    _check_state(launch, "RollBackLaunch")
    if baseline != launch.candidate:
        after = f"followed by {followed_by}" if followed_by != launch.name else "no longer what serves"
        raise WrongState(launch.name, f"SUCCEEDED, and {after} ({baseline or 'nothing'} is the baseline)", [])


def abort(launch: Launch, author: str, reason: str, now: datetime) -> Launch:
    """Turns the launch round, whatever it does. Monotone: nobody takes an abort back; repeated, it changes nothing."""
    if launch.state in (State.ROLLED_BACK, State.CANCELLED):
        return launch
    if launch.ended or launch.revision:
        raise WrongState(launch.name, launch.state.name, [verb for verb in allowed(launch) if "Abort" not in verb])
    return going_back(launch, author, reason, now)


def approve(launch: Launch, author: str, digest: str, now: datetime) -> Launch:
    """Approves the envelope that the approver saw, or lets a launch on that stands at a people's gate."""
    _check_state(launch, "ApproveLaunch")
    assert launch.envelope is not None
    if author in (launch.actor, launch.retried_by):
        raise SelfApproval(author)
    if digest != launch.envelope.digest:
        current = launch.envelope.digest
        look = f"modelfleet launch describe {launch.name.rpartition('/')[2]}"
        why = f"is another one than {digest}: read what it asks for now ({look}), and approve that, which is {current}"
        raise EtagMismatch(f"the envelope of {launch.name}", digest, current, why)
    if launch.state is not State.AWAITING_APPROVAL:
        return people.let_on(launch, author, now)
    return replace(launch, envelope=replace(launch.envelope, approved_by=author, approve_time=now))


def reject(launch: Launch, author: str, reason: str, now: datetime) -> Launch:
    """Rejects the envelope, or the launch at a people's gate: it is cancelled, or goes back."""
    _check_state(launch, "RejectLaunch")
    return going_back(launch, author, f"rejected: {reason}", now)


def override_freeze(launch: Launch, override: FreezeOverride) -> Launch:
    """Has a freeze window not hold for the launch; of an override of the same window the newer one counts."""
    _check_state(launch, "OverrideLaunchFreeze")
    others = tuple(each for each in launch.freeze_overrides if each.window_uid != override.window_uid)
    if len(others) >= MAX_OVERRIDES:
        raise invalid("freeze_window", f"must be one of the {MAX_OVERRIDES} windows that it overrides already")
    return replace(launch, freeze_overrides=(*others, override))


Verb = Callable[[Launch, datetime], Launch]
