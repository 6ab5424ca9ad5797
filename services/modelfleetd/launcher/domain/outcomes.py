"""What a launch is after an act: pure functions of the launch before, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.errors import (
    EndStateExceedsQuota,
    FleetError,
    InvalidFields,
    LaunchEnded,
    PlanInfeasible,
    QuotaExceeded,
    ReplicaCannotStart,
    RevisionMismatch,
    WrongState,
)
from modelfleetd.launcher.domain import envelope as envelopes
from modelfleetd.launcher.domain.actions import Wait
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.deadlines import alarm_after, postponed
from modelfleetd.launcher.domain.decision import Decision
from modelfleetd.launcher.domain.envelope import Envelope
from modelfleetd.launcher.domain.hold import Hold, HoldState
from modelfleetd.launcher.domain.launch import Launch, enter, going_back
from modelfleetd.launcher.domain.observed import Seen, ShareState, share_state
from modelfleetd.launcher.domain.plan import Plan
from modelfleetd.launcher.domain.policy import Approval
from modelfleetd.launcher.domain.record import ON_PLATFORM, Act, Condition, Intent, ModelFacts, Status
from modelfleetd.launcher.domain.states import State

# A look that comes so much later than planned was missed: deadlines do not count that time.
_MISSED: Final = timedelta(seconds=5)
_BACKOFF: Final = (0.5, 30.0)
_MOMENT: Final = timedelta(seconds=30)


def backoff(retries: int) -> float:
    """Seconds before the next attempt."""
    least, most = _BACKOFF
    return min(most, least * 2.0 ** min(retries, 10))


def looked(launch: Launch, now: datetime) -> Launch:
    """The launch could be looked at: time in which nobody could does not count against its deadlines."""
    late = timedelta(0) if launch.watched_until is None else now - launch.watched_until
    held = launch.step.held_since or launch.asked.held_since or launch.people_wait or launch.frozen
    if late > _MISSED and not launch.paused and held is None:
        launch = postponed(launch, late)
    return replace(launch, watched_until=None)


def intended(launch: Launch, intent: Intent) -> Launch:
    """An act is about to be done."""
    if launch.state is State.ROLLING_BACK:
        launch = alarm_after(launch, intent.create_time)
    return replace(launch, intent=intent, intents=intent.number, touched=launch.touched or intent.act in ON_PLATFORM)


def confirmed(launch: Launch) -> Launch:
    """The intent is settled."""
    return replace(launch, intent=None, retries=0)


def unsettled(launch: Launch) -> Launch:
    """An act may or may not have happened: it is repeated, with its key."""
    return replace(launch, retries=launch.retries + 1)


# Before anything is changed


def estimated(
    launch: Launch,
    *,
    plan: Plan,
    candidate: ModelFacts,
    baseline: ModelFacts | None,
    revision: int,
    gated: bool,
    tier: str,
    team: str = "",
    surface: str = "",
    now: datetime,
    evidence_rules: int = 0,
) -> Launch:
    """The plan is made. An approval that covers it still counts; else the policy approves, or people are asked.

    The first plan of a launch that was queued pins its baseline: what ran before it may have put another one in place.
    """
    pinned = baseline.name if baseline else ""
    if launch.plan is None and not launch.baseline:
        launch = replace(launch, baseline=pinned)
    if pinned == launch.candidate and launch.rule.swaps:
        return going_back(confirmed(launch), "registry", f"{pinned} is the baseline by now", now)
    if launch.baseline != pinned:
        changed = f"the baseline is {pinned or 'gone'}, no longer {launch.baseline or 'none'}"
        return going_back(confirmed(launch), "registry", changed, now)
    made = envelopes.of_plan(
        plan,
        launch.policy,
        candidate=launch.candidate,
        serving_spec_digest=candidate.digest,
        baseline=pinned,
        strategy=launch.strategy.name,
        holdout=launch.holdout_share,
    )
    # A plan that is made again for capacity that was refused is one more attempt: it waits longer each time.
    launch = replace(
        launch,
        intent=None,
        retries=launch.retries if launch.state is State.PREPARING else 0,
        plan=plan,
        plan_time=now,
        candidate_facts=candidate,
        baseline_facts=baseline,
        expected_revision=revision,
        gated=gated and launch.is_judged and not launch.policy.stability_gate.disabled,
        tier=tier,
        evidence_rules=evidence_rules,
        team=team,
        surface=surface,
    )
    approved = _approved(launch, made, now)
    launch = replace(launch, envelope=approved)
    if not approved.approved_by:
        waiting = replace(launch, approval_deadline=now + launch.policy.approval_deadline)
        return enter(waiting, State.AWAITING_APPROVAL, now)
    return launch if launch.state is State.PREPARING else enter(launch, State.PREPARING, now)


def decided(launch: Launch, decision: Decision | None) -> Launch:
    """The team's launch policy has decided; None: it was not asked. Its rollback window counts where none is named."""
    if decision is None:
        return launch
    policy = launch.policy
    if not launch.names_rollback_window and decision.rollback_window is not None:
        policy = replace(policy, rollback_window=decision.rollback_window)
    return replace(launch, decision=decision, policy=policy)


def _approved(launch: Launch, made: Envelope, now: datetime) -> Envelope:
    before = launch.envelope
    if before is not None and before.approved_by and envelopes.within(made, before):
        return before
    asks = launch.decision is not None and launch.decision.needs_approval
    if launch.policy.approval is Approval.AUTOMATIC and not asks:
        return replace(made, approved_by=envelopes.BY_POLICY, approve_time=now)
    return made


def reserved(launch: Launch, hold: Hold, release: datetime | None, now: datetime) -> Launch:
    """Capacity has answered: it is held, or the launch is in line for it."""
    after = replace(confirmed(launch), reservation=hold.reservation, hold=hold, reserve_time=now, told_release=release)
    if launch.beside is not None and hold.state is HoldState.PENDING:
        return going_back(after, "capacity", _beside(launch, hold.waits(now)), now)
    return after


def _beside(launch: Launch, why: str) -> str:
    """Why a mitigation does not wait, and what helps."""
    assert launch.beside is not None
    other = launch.beside.launch
    return (
        f"{why.rstrip('.')}, beside {other}, which goes on instead of waiting; to free what it holds, first: "
        f"modelfleet launch abort {other.rpartition('/')[2]}"
    )


def told(launch: Launch, hold: Hold) -> Launch:
    """Capacity was asked what has become of the reservation. A plan that had to wait is made again."""
    waited = launch.hold is not None and launch.hold.state is HoldState.PENDING
    plan_time = None if waited and hold.state is HoldState.HELD else launch.plan_time
    return replace(launch, hold=hold, plan_time=plan_time)


def activated(launch: Launch) -> Launch:
    return replace(confirmed(launch), activated=True)


def reservation_gone(launch: Launch) -> Launch:
    """Nothing is held for it. Whatever it reserves next is planned from what is free then."""
    return replace(confirmed(launch), reservation="", hold=None, plan_time=None)


# The end


def finalized(launch: Launch, revision: int) -> Launch:
    """The registry has recorded it.

    Where only replicas changed that took no revision: the one that it was planned on says already what it leaves.
    """
    return replace(confirmed(launch), revision=revision or launch.expected_revision)


def forgone(launch: Launch) -> Launch:
    return replace(confirmed(launch), forgone=True)


def settled(launch: Launch) -> Launch:
    return replace(confirmed(launch), settled=True)


# Refusals


def refused(launch: Launch, act: Act, error: FleetError, now: datetime) -> Launch:
    """An act was refused for good: nothing was changed by it. Says how the launch goes on."""
    after = replace(confirmed(launch), retries=launch.retries + 1)
    match act, error:
        case Act.ESTIMATE, InvalidFields():
            # What is asked for is no launch any more; no time makes it one.
            return going_back(after, "registry", error.message, now)
        case Act.ESTIMATE, PlanInfeasible() | EndStateExceedsQuota() if launch.beside is not None:
            # Nobody waits for a launch that holds meanwhile.
            return going_back(after, "capacity", _beside(launch, error.message), now)
        case Act.ESTIMATE, PlanInfeasible() if launch.hold is not None and launch.hold.state is HoldState.HELD:
            # What serves has changed so much while it waited that its hold does not carry it any more.
            return replace(after, hold=replace(launch.hold, unfit=True))
        case Act.RESERVE, QuotaExceeded() | EndStateExceedsQuota():
            # What was free when the plan was made is not any more: another plan may fit, within the envelope.
            return replace(after, plan_time=None)
        case Act.ACTIVATE, WrongState():
            # It waited so long that its reservation has expired; capacity says so when it is asked.
            return replace(after, hold=None)
        case Act.CANCEL_RESERVATION, WrongState():
            return reservation_gone(after)
        case Act.START, ReplicaCannotStart():
            return going_back(after, "platform", error.message, now)
        case Act.FINALIZE, LaunchEnded():
            return going_back(replace(after, forgone=True), "registry", error.message, now)
        case Act.FINALIZE, _ if not isinstance(error, RevisionMismatch):
            # The registry will never have it, so the candidate cannot stay.
            return going_back(after, "registry", error.message, now)
        case Act.FORGO, LaunchEnded() if launch.state is State.ROLLING_BACK:
            return enter(after, State.FAILED, now)
        case Act.FORGO, LaunchEnded():
            # The registry had finalised it before: the abort came too late. Finalising again says at which revision.
            return replace(after, abort=None)
        case _:
            return after


def advice(error: FleetError) -> str:
    """What an error says, and the command that would help where there is one."""
    if not isinstance(error, EndStateExceedsQuota):
        return error.message
    place = {key: error.metadata.get(key, "").rpartition("/")[2] for key in ("pool", "flavor", "region")}
    units = int(error.metadata.get("end_units", 0)) - int(error.metadata.get("allowed_units", 0))
    return (
        f"{error.message.rstrip('.')}; whoever owns the lender's capacity does that with: modelfleet capacity loan "
        f"create LENDER {place['pool']} --units {units} --flavor {place['flavor']} --region {place['region']} "
        "--until 30d"
    )


# What it waits for


def conditions(launch: Launch, wait: Wait | None, seen: Sequence[Seen], now: datetime) -> tuple[Condition, ...]:
    """What is true of a launch now, by what was seen of its regions; what was true before keeps its `since`."""
    found: list[tuple[str, str, str]] = []
    before = {(condition.type, condition.reason): condition.since for condition in launch.conditions}
    if wait is not None:
        found.append(("Waiting", wait.reason, wait.message))
        # Replicas come and go: what is short for a moment calls nobody.
        lasts = now - before.get(("Waiting", wait.reason), now)
        if wait.alarming and (lasts >= _MOMENT or not wait.reason.endswith("Short")):
            found.append(("NeedsAttention", wait.reason, wait.message))
    if launch.paused:
        who = ", ".join(pause.author for pause in launch.pause_reasons)
        found.append(("Paused", "PauseReasons", f"paused by {who}"))
    if launch.state in (State.SHIFTING, State.ROLLING_BACK):
        found.extend(_of_regions(launch, seen))
    return tuple(
        Condition(kind, Status.TRUE, reason, message, before.get((kind, reason), now))
        for kind, reason, message in found
    )


def _of_regions(launch: Launch, seen: Sequence[Seen]) -> Sequence[tuple[str, str, str]]:
    """What is true of some regions: each condition once, with what is said of it region by region."""
    if len(seen) == 1:
        return _of_region(launch, seen[0])
    said: dict[tuple[str, str], list[str]] = {}
    for region in seen:
        for kind, reason, message in _of_region(launch, region):
            said.setdefault((kind, reason), []).append(f"{region.region}: {message}")
    return [(kind, reason, "; ".join(messages)) for (kind, reason), messages in said.items()]


def _of_region(launch: Launch, seen: Seen) -> Sequence[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    if launch.state is State.SHIFTING and share_state(seen) is ShareState.LOW_TRAFFIC:
        message = f"{seen.requests} requests since the split: the proxy's word is all the evidence for the shares"
        found.append(("LowTraffic", "FewRequests", message))
    if launch.plan is None:
        return found
    plan = next(plan for plan in launch.plan.regions if plan.region == seen.region)
    for side, there in (
        (plan.candidate, seen.candidate),
        (plan.baseline, seen.baseline),
    ):
        if side is not None and there.available < side.needs(there.acknowledged):
            needed = side.needs(there.acknowledged)
            message = f"{there.available} of {needed} replicas that its traffic needs are available"
            found.append((f"{side.called.capitalize()}Degraded", "ReplicasMissing", message))
    return found
