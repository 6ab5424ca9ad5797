"""One sentence: what a launch does or waits for, since when, and what would end the wait."""

from __future__ import annotations

from datetime import datetime

from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.words import count, percent, span


def sentence(launch: Launch, now: datetime) -> str:
    """Says where a launch is, in words for people."""
    since = launch.phase_times[-1].start_time if launch.phase_times else launch.create_time
    if launch.ended:
        return _ended(launch)
    where = _where(launch)
    if launch.preempted_by:
        # Said at once, before its next look.
        waits = launch.condition("Waiting")
        holds = f"holds until {launch.preempted_by} has ended"
        message = waits.message if waits is not None and waits.reason == "Preempted" else holds
        return f"{where} {message[:1].upper()}{message[1:]} ({_since(launch.pause_reasons[-1].time, now)})."
    paused = launch.condition("Paused")
    if paused is not None and launch.pause_reasons and launch.state is not State.ROLLING_BACK:
        first = launch.pause_reasons[0]
        # A gate's reason, or somebody else's, goes only with everybody's.
        command = f"modelfleet launch resume {launch.name.rpartition('/')[2]}"
        everybody = " --any-author" if first.author.startswith("gate/") else ""
        return (
            f"{where} Paused {_since(first.time, now)} by {first.author}: {first.reason.rstrip('.')}. "
            f"It goes on after: {command}{everybody}."
        )
    waiting = launch.condition("Waiting")
    if waiting is None:
        return f"{where.removesuffix('.')}; {_since(since, now)}."
    message = waiting.message[:1].upper() + waiting.message[1:]
    return f"{where} {message} ({_since(waiting.since, now)})."


def _where(launch: Launch) -> str:
    match launch.state:
        case State.PENDING:
            if not launch.queued:
                return "Is about to begin."
            return f"Is queued behind {launch.behind}." if launch.behind else "Is queued."
        case State.ESTIMATING:
            return "Finds out what it needs."
        case State.AWAITING_APPROVAL:
            return "Its plan is made."
        case State.PREPARING:
            return "Reserves capacity."
        case State.SHIFTING:
            step, plan = launch.step, launch.region_plan
            share = percent(launch.step_plan.share)
            wave = waves.shifted(launch)
            where = plan.region if len(wave) == 1 else f"{len(wave)} regions"
            if not launch.rule.swaps:
                replicas = count(launch.step_plan.new_replicas, "replica")
                return f"Resizes the {plan.candidate.called} in {where} to {replicas}."
            return f"Step {step.number} of {len(plan.steps)} in {where} ({share} for the {plan.candidate.called})."
        case State.FINALIZING:
            writes = "writes roles and split to the registry" if launch.rule.swaps else "settles its capacity"
            return f"Every step is done; {writes}."
        case State.ROLLING_BACK:
            assert launch.abort is not None
            return f"Rolls back, by {launch.abort.author}: {launch.abort.reason.rstrip('.')}."
        case _:
            return ""


def _ended(launch: Launch) -> str:
    assert launch.end_time is not None
    took = span(launch.end_time - launch.begin_time)
    if launch.state is State.SUCCEEDED:
        if not launch.rule.swaps:
            return f"Succeeded after {took}; capacity has booked its replicas."
        return f"Succeeded after {took}; revision {launch.revision} of the registry says so."
    why = f", by {launch.abort.author}: {launch.abort.reason.rstrip('.')}" if launch.abort else ""
    word = {State.ROLLED_BACK: "Rolled back", State.CANCELLED: "Cancelled"}.get(launch.state, "Failed")
    return f"{word} after {took}{why}."


def _since(moment: datetime, now: datetime) -> str:
    """A time of day, with the day where it is not today's: it stays true in whatever shows or keeps the sentence."""
    return f"since {moment:%T}" if moment.date() == now.date() else f"since {moment:%F %R}"
