"""The spans of a launch's one trace: pure. What has ended between two states of a launch becomes spans with true times.

Ids are made of what a span is (launch, kind, number), so that one that is emitted again after a crash has the same id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Any

from modelfleetd.kit.trace import Ids
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import GateVerdict, Intent, Verdict
from modelfleetd.launcher.domain.states import ENDED, State
from modelfleetd.names import LAUNCH

Span = Mapping[str, Any]


def span_id(launch: Launch, kind: str, number: object = "") -> int:
    """The id of a span, 64 bits."""
    content = f"{launch.uid}/{launch.attempt}/{kind}/{number}"
    return int.from_bytes(sha256(content.encode()).digest()[:8], "big") or 1


def root_id(launch: Launch) -> int:
    """The id of the span that everything else hangs below."""
    return span_id(launch, "launch")


def within_id(launch: Launch) -> int:
    """The id of the step, or else the phase, that a launch is in."""
    if launch.state is State.SHIFTING and launch.step.number:
        return _step_id(launch)
    return _phase_id(launch, len(launch.phase_times) - 1)


def call_id(launch: Launch, intent: Intent) -> int:
    """The id of the span of an act; what the called services do hangs below it."""
    return span_id(launch, "call", intent.number)


def gate_id(launch: Launch, gate: str, region: str, moment: datetime) -> int:
    """The id of the span of a gate's judgement."""
    return span_id(launch, "gate", f"{gate}/{region}/{moment.isoformat()}")


def _phase_id(launch: Launch, index: int) -> int:
    return span_id(launch, "phase", index) if index >= 0 else root_id(launch)


def _step_id(launch: Launch) -> int:
    return span_id(launch, "step", f"{launch.step.region}.{launch.step.number}")


def ended_between(before: Launch, after: Launch, now: datetime) -> list[Span]:
    """Everything of a launch that has ended from one state to the next: waits, the step, the phase, and itself.

    A later attempt is a tree of its own in the same trace, linked to the one before.
    """
    found: list[Span] = []
    found.extend(_conditions(before, after, now))
    left_step = before.step.number > 0 and (before.step.region, before.step.number) != (
        after.step.region,
        after.step.number,
    )
    left_shifting = before.state is State.SHIFTING and after.state is not State.SHIFTING
    if before.state is State.SHIFTING and (left_step or left_shifting) and before.step.start_time is not None:
        share = before.step_plan.share if before.plan else 0
        attributes = {
            "modelfleet.step": before.step.number,
            "modelfleet.region": before.region_plan.region,
            "modelfleet.share_basis_points": share,
        }
        parent = _phase_id(before, len(before.phase_times) - 1)
        name = f"step {before.step.number}"
        start = before.step.start_time
        found.append(_span(before, name, _step_id(before), parent, start, now, attributes, tells=True))
    for index, (phase, was) in enumerate(zip(after.phase_times, _padded(before, after), strict=True)):
        if phase.end_time is not None and (was is None or was.end_time is None):
            found.append(_phase(after, index, phase.start_time, phase.end_time))
    if after.end_time is not None and before.end_time is None:
        error = None if after.state is State.SUCCEEDED else f"{after.state.name}{_why(after)}"
        attributes = {
            "modelfleet.launch": after.name,
            "modelfleet.model_type": after.model_type,
            "modelfleet.candidate": after.candidate,
            "modelfleet.baseline": after.baseline,
            "modelfleet.state": after.state.name,
            "modelfleet.attempt": after.attempt,
        }
        before_it = [root_id(replace(after, attempt=after.attempt - 1))] if after.attempt > 1 else []
        links = [(int(after.trace_id, 16), root) for root in before_it]
        start = after.begin_time
        found.append(
            _span(after, "launch", root_id(after), None, start, after.end_time, attributes, error, links=links)
        )
    return found


def of_verb(launch: Launch, event: Event, request: Ids | None) -> Span:
    """What somebody did to a launch, below the phase or step that it was in; linked to the trace of their request."""
    attributes = {"modelfleet.actor": event.actor, "modelfleet.message": event.message}
    identity = span_id(launch, "verb", f"{event.type}/{event.time.isoformat()}")
    links = [] if request is None else [(request.trace_id, request.span_id)]
    parent = within_id(launch)
    return _span(launch, f"verb {event.type}", identity, parent, event.time, event.time, attributes, links=links)


def of_call(launch: Launch, intent: Intent, outcome: str, now: datetime) -> Span:
    """An act that is settled."""
    attributes = {"modelfleet.key": intent.key, "modelfleet.outcome": outcome, "modelfleet.retries": launch.retries}
    error = None if outcome == "done" else outcome
    name = f"call {intent.act.value}"
    return _span(launch, name, call_id(launch, intent), within_id(launch), intent.create_time, now, attributes, error)


def of_gate(launch: Launch, verdict: GateVerdict, asked: datetime, now: datetime) -> Span:
    """A judgement of a gate."""
    attributes = {
        "modelfleet.gate": verdict.gate,
        "modelfleet.region": verdict.region,
        "modelfleet.verdict": verdict.verdict.name,
        "modelfleet.explanation": verdict.explanation,
        "modelfleet.dry_run": verdict.dry_run,
    }
    error = verdict.explanation if verdict.verdict in (Verdict.FAIL, Verdict.ERROR) else None
    name, identity = f"gate {verdict.gate}", gate_id(launch, verdict.gate, verdict.region, asked)
    return _span(launch, name, identity, within_id(launch), asked, now, attributes, error)


def _phase(launch: Launch, index: int, start: datetime, end: datetime) -> Span:
    """A phase that is over; of a rollback it says why. What happened in SHIFTING its steps tell."""
    state = launch.phase_times[index].state
    attributes: dict[str, Any] = {}
    if state is State.ROLLING_BACK and launch.abort is not None:
        attributes = {"modelfleet.author": launch.abort.author, "modelfleet.reason": launch.abort.reason}
    tells = state not in ENDED and state is not State.SHIFTING
    identity = _phase_id(launch, index)
    return _span(launch, f"phase {state.name}", identity, root_id(launch), start, end, attributes, tells=tells)


def _conditions(before: Launch, after: Launch, now: datetime) -> list[Span]:
    """Waits and pauses that are over."""
    still = {(condition.type, condition.reason, condition.since) for condition in after.conditions}
    found: list[Span] = []
    for condition in before.conditions:
        key = (condition.type, condition.reason, condition.since)
        if condition.type not in ("Waiting", "Paused") or key in still:
            continue
        name = f"wait {condition.reason}" if condition.type == "Waiting" else "paused"
        number = f"{condition.type}/{condition.reason}/{condition.since.isoformat()}"
        identity = span_id(before, "wait", number)
        attributes = {"modelfleet.reason": condition.reason, "modelfleet.message": condition.message}
        found.append(_span(before, name, identity, within_id(before), condition.since, now, attributes))
    return found


def _padded(before: Launch, after: Launch) -> Sequence[Any]:
    return (*before.phase_times, *([None] * (len(after.phase_times) - len(before.phase_times))))


def _why(launch: Launch) -> str:
    return f": {launch.abort.author}: {launch.abort.reason}" if launch.abort else ""


def _span(
    launch: Launch,
    name: str,
    identity: int,
    parent: int | None,
    start: datetime,
    end: datetime,
    attributes: Mapping[str, Any] | None = None,
    error: str | None = None,
    *,
    links: Sequence[tuple[int, int]] = (),
    tells: bool = False,
) -> Span:
    """A span as it is stored.

    Args:
        launch: whose it is.
        name: of the span.
        identity: its id.
        parent: the id of its parent; None for a root.
        start: when it began.
        end: when it ended.
        attributes: of the span.
        error: what went wrong.
        links: trace and span ids of what it has to do with.
        tells: whether what happened to the launch meanwhile belongs to it, as its events.
    """
    return {
        "name": name,
        "trace_id": launch.trace_id,
        "span_id": f"{identity:016x}",
        "parent_span_id": None if parent is None else f"{parent:016x}",
        "start": start.isoformat(),
        "end": max(start, end).isoformat(),
        "attributes": dict(attributes or {}),
        "error": error,
        "links": [[f"{trace:032x}", f"{span:016x}"] for trace, span in links],
        "tells": LAUNCH.parse(launch.name)[0] if tells else None,
    }
