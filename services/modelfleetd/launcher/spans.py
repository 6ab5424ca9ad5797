"""The spans of a launch's one trace: pure. What has ended between two states of a launch becomes spans with true times.

Ids are made of what a span is (launch, kind, number), so that one that is emitted again after a crash has the same id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from modelfleetd.launcher.domain.launch import GateVerdict, Intent, Launch, State, Verdict

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
    """Everything of a launch that has ended from one state to the next: waits, the step, the phase, and itself."""
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
        found.append(_span(before, name, _step_id(before), parent, before.step.start_time, now, attributes))
    for index, (phase, was) in enumerate(zip(after.phase_times, _padded(before, after), strict=True)):
        if phase.end_time is not None and (was is None or was.end_time is None):
            name = f"phase {phase.state.name}"
            found.append(_span(after, name, _phase_id(after, index), root_id(after), phase.start_time, phase.end_time))
    if after.end_time is not None and before.end_time is None:
        error = None if after.state is State.SUCCEEDED else f"{after.state.name}{_why(after)}"
        attributes = {
            "modelfleet.launch": after.name,
            "modelfleet.model_type": after.model_type,
            "modelfleet.candidate": after.candidate,
            "modelfleet.baseline": after.baseline,
            "modelfleet.state": after.state.name,
        }
        root = _span(after, "launch", root_id(after), None, after.begin_time, after.end_time, attributes, error)
        found.append(root)
    return found


def of_call(launch: Launch, intent: Intent, outcome: str, now: datetime) -> Span:
    """An act that is settled."""
    attributes = {"modelfleet.key": intent.key, "modelfleet.outcome": outcome}
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
) -> Span:
    return {
        "name": name,
        "trace_id": launch.trace_id,
        "span_id": f"{identity:016x}",
        "parent_span_id": None if parent is None else f"{parent:016x}",
        "start": start.isoformat(),
        "end": max(start, end).isoformat(),
        "attributes": dict(attributes or {}),
        "error": error,
    }
