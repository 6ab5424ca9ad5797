"""Policies and strategies of requests → the domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import invalid
from modelfleetd.kit.codec import duration_from_proto, from_proto
from modelfleetd.launcher.domain.launch import NO_TIME, Strategy
from modelfleetd.launcher.domain.policy import Approval, Policy, RegionOrder, StabilityGate, default_rollback_window
from modelfleetd.launcher.domain.shares import FULL

_Duration: TypeAlias = Literal[
    "bake_duration", "step_deadline", "launch_deadline", "approval_deadline", "rollback_window"
]
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
    if not strategy.rule.gated:
        # A mitigation waits for nobody's judgement, and other replicas of a model predict the same.
        policy = replace(policy, stability_gate=replace(policy.stability_gate, disabled=True))
    return policy


def strategy_from_proto(value: pb.Launch.Strategy.ValueType) -> Strategy:
    """Raises InvalidFields where it is one that this server does not know."""
    found = next((known for known in Strategy if known.value == value), None)
    if found is None:
        raise invalid("launch.strategy", f"must be one of {', '.join(known.name for known in Strategy)}")
    return found
