"""Launch policies and the decisions that they make."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from modelfleet.capacity.v1 import policies_pb2 as pb
from modelfleet.registry.v1 import evidence_pb2
from modelfleetd.capacity.domain.estimate import Estimate
from modelfleetd.capacity.domain.exact import BASIS_POINTS
from modelfleetd.capacity.domain.gain import EvaluationReport, EvaluationResult
from modelfleetd.capacity.domain.policy import Decision, LaunchPolicy
from modelfleetd.errors import invalid
from modelfleetd.kit.codec import from_proto, timestamp_to_proto, to_proto

POLICY_FIELDS = frozenset(
    {
        "team", "description", "team_default", "free_within_quota", "no_regression", "gain_against_cost", "approvers",
        "rollback_window",
    }
)  # fmt: skip


def policy_from_proto(message: pb.LaunchPolicy, name: str) -> LaunchPolicy:
    return from_proto(message, LaunchPolicy, name=name)


def policy_to_proto(policy: LaunchPolicy) -> pb.LaunchPolicy:
    return to_proto(policy, pb.LaunchPolicy)


def report_from_proto(message: evidence_pb2.EvaluationReport, metric: str) -> EvaluationReport:
    """Returns a report with its results of one metric: it may have thousands of others."""
    results = tuple(from_proto(each, EvaluationResult) for each in message.results if each.metric == metric)
    return from_proto(message, EvaluationReport, results=results)


@dataclass(frozen=True, slots=True)
class AskedDecision:
    """The decision that is asked for; what is empty is found out."""

    candidate: str
    launch: str
    pool: str
    launch_policy: str
    share_basis_points: int
    evaluation_report: str


def asked_from_proto(message: pb.LaunchDecision) -> AskedDecision:
    """Returns the decision that is asked for.

    Raises:
        InvalidFields: the share is out of its range, or the report is not of the candidate.
    """
    if not 0 <= message.share_basis_points <= BASIS_POINTS:
        raise invalid("launch_decision.share_basis_points", f"must be 1 to {BASIS_POINTS:,} basis points")
    if message.evaluation_report and not message.evaluation_report.startswith(f"{message.candidate}/"):
        raise invalid("launch_decision.evaluation_report", f"must be a report of {message.candidate}")
    asked = from_proto(message, AskedDecision)
    return asked if asked.share_basis_points else from_proto(message, AskedDecision, share_basis_points=BASIS_POINTS)


def decision_to_proto(
    name: str,
    asked: AskedDecision,
    policy: LaunchPolicy,
    estimate: Estimate,
    decision: Decision,
    actor: str,
    now: datetime,
) -> pb.LaunchDecision:
    """Returns a decision with everything that it saw."""
    made = to_proto(asked, pb.LaunchDecision)
    made.MergeFrom(to_proto(decision, pb.LaunchDecision))
    made.name, made.estimate, made.actor = name, estimate.name, actor
    made.warnings.extend(estimate.warnings)
    made.launch_policy = policy.name
    made.policy.MergeFrom(policy_to_proto(policy))
    if made.outcome != pb.LaunchDecision.ACCEPTED:
        made.approvers.MergeFrom(made.policy.approvers)
    made.create_time.MergeFrom(timestamp_to_proto(now))
    return made
