"""Policies and strategies of requests → the domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from modelfleet.launcher.v1 import gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import FieldViolation, InvalidFields, invalid
from modelfleetd.kit.codec import duration_from_proto, from_proto
from modelfleetd.launcher.domain.deadlines import NO_TIME
from modelfleetd.launcher.domain.launch import Strategy
from modelfleetd.launcher.domain.policy import (
    Approval,
    AvailabilityGate,
    EvidenceGate,
    PeopleGate,
    Policy,
    RegionOrder,
    StabilityGate,
    WebhookGate,
    When,
    default_rollback_window,
)
from modelfleetd.launcher.domain.shares import FULL

_Duration: TypeAlias = Literal[
    "bake_duration", "step_deadline", "launch_deadline", "approval_deadline", "rollback_window"
]
# Fields of the availability gate whose absence means the default.
_Optional: TypeAlias = Literal[
    "max_error_rate_increase_basis_points", "max_error_rate_basis_points", "max_latency_p99_increase", "min_requests"
]
_OPTIONAL: tuple[_Optional, ...] = get_args(_Optional)
_DURATIONS: tuple[_Duration, ...] = get_args(_Duration)


def policy_from_proto(message: pb.LaunchPolicy, tier: str, strategy: Strategy) -> Policy:
    """A policy with every default filled in. The rollback window's depends on the model type's tier."""
    policy = Policy(rollback_window=default_rollback_window(tier))
    if strategy.rule.mitigation:
        policy = replace(policy, max_step_basis_points=FULL, bake_duration=NO_TIME, region_order=RegionOrder.TOGETHER)
    if strategy is Strategy.ROLL_BACK:
        # Nobody takes a rollback back: the model that it took away is launched again, as any other.
        policy = replace(policy, rollback_window=NO_TIME)
    if message.max_step_basis_points:
        policy = replace(policy, max_step_basis_points=message.max_step_basis_points)
    if message.max_steps:
        policy = replace(policy, max_steps=message.max_steps)
    for field in _DURATIONS:
        if message.HasField(field):
            policy = replace(policy, **{field: duration_from_proto(getattr(message, field))})  # type: ignore[arg-type]
    if message.approval:
        policy = replace(policy, approval=Approval[pb.LaunchPolicy.Approval.Name(message.approval)])
    if message.region_order:
        policy = replace(policy, region_order=RegionOrder[pb.LaunchPolicy.RegionOrder.Name(message.region_order)])
    if message.HasField("stability_gate"):
        policy = replace(policy, stability_gate=from_proto(message.stability_gate, StabilityGate))
    policy = replace(
        policy,
        availability_gate=_availability(message.availability_gate),
        evidence_gate=from_proto(message.evidence_gate, EvidenceGate),
        webhook_gates=tuple(map(_webhook, message.webhook_gates)),
        people_gates=tuple(map(_people, message.people_gates)),
    )
    return policy if strategy.rule.gated else _ungated(policy)


def _availability(message: gates_pb2.AvailabilityGate) -> AvailabilityGate:
    """With every default filled in."""
    given = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    return AvailabilityGate(
        disabled=message.disabled, dry_run=message.dry_run, max_latency_p99_ms=message.max_latency_p99_ms, **given
    )


def _webhook(message: gates_pb2.WebhookGate) -> WebhookGate:
    when = When[gates_pb2.WebhookGate.When.Name(message.when)] if message.when else When.BEFORE_START
    return WebhookGate(message.webhook, when, message.dry_run)


def _people(message: gates_pb2.PeopleGate) -> PeopleGate:
    gate = PeopleGate(message.reason, message.after_share_basis_points)
    return replace(gate, deadline=duration_from_proto(message.deadline)) if message.HasField("deadline") else gate


def _ungated(policy: Policy) -> Policy:
    """A mitigation waits for nobody's judgement, and other replicas of a model predict the same.

    Raises:
        InvalidFields: somebody is to be asked all the same.
    """
    found = [
        FieldViolation(f"launch.policy.{name}", "must be empty: this strategy waits for nobody")
        for name in ("webhook_gates", "people_gates")
        if getattr(policy, name)
    ]
    if found:
        raise InvalidFields(found)
    return replace(
        policy,
        stability_gate=replace(policy.stability_gate, disabled=True),
        availability_gate=replace(policy.availability_gate, disabled=True),
        evidence_gate=replace(policy.evidence_gate, disabled=True),
    )


def strategy_from_proto(value: pb.Launch.Strategy.ValueType) -> Strategy:
    """Raises InvalidFields where it is one that this server does not know."""
    found = next((known for known in Strategy if known.value == value), None)
    if found is None:
        raise invalid("launch.strategy", f"must be one of {', '.join(known.name for known in Strategy)}")
    return found
