"""Launch policies: what a launch may cost before somebody is asked, and what a policy says of one.

Every rule is judged in exact fractions of the numbers as they were written.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from modelfleetd.capacity.domain.estimate import Costs
from modelfleetd.capacity.domain.exact import BASIS_POINTS, exact, in_range, refuse
from modelfleetd.capacity.domain.gain import Gain
from modelfleetd.capacity.domain.takeover import number
from modelfleetd.errors import FieldViolation
from modelfleetd.names import ID_EXPECTATION, is_id

MAX_DESCRIPTION: Final = 1000
MAX_APPROVERS: Final = 20
_MAX_TOLERANCE: Final = 100_000
_CRITICAL: Final = frozenset({"TIER0", "TIER1"})
COMPUTED: Final = "computed"


class Role(enum.Enum):
    """What a principal may do; named as the protos name them."""

    VIEWER = "VIEWER"
    ENGINEER = "ENGINEER"
    OWNER = "OWNER"
    ONCALL = "ONCALL"
    APPROVER = "APPROVER"
    CAPACITY_OWNER = "CAPACITY_OWNER"
    ADMIN = "ADMIN"
    SERVICE = "SERVICE"


# Who may be named as an approver.
_APPROVING: Final = (Role.OWNER, Role.APPROVER, Role.CAPACITY_OWNER, Role.ADMIN)


@dataclass(frozen=True, slots=True)
class PolicyApprover:
    """Somebody who may approve: a role on a team; on that of the policy where none is named."""

    role: Role | None
    team: str = ""


@dataclass(frozen=True, slots=True)
class FreeWithinQuota:
    """Accepts whatever fits the pool, up to a ratio of costs where one is given."""

    max_cost_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class NoRegression:
    """Accepts whatever costs no more than what it replaces, within a tolerance."""

    tolerance_basis_points: int = 0


@dataclass(frozen=True, slots=True)
class GainAgainstCost:
    """Accepts whatever gains enough of a metric for each doubling of the cost.

    Attributes:
        metric: of the evidence.
        min_gain_per_doubling: as a ratio: 0.005 is +0.5 %.
        max_loss: how much worse the metric may get where the cost does not grow, as a ratio.
        max_evidence_age: oldest evidence that counts; None: as long as the report is in force.
    """

    metric: str
    min_gain_per_doubling: float
    max_loss: float = 0.0
    max_evidence_age: timedelta | None = None


@dataclass(frozen=True, slots=True)
class LaunchPolicy:
    """What a team's launches may cost before somebody is asked. Exactly one rule is set.

    Attributes:
        team_default: whether it applies where neither launch nor model type name a policy.
        approvers: who may approve what the rule does not accept; empty: APPROVER and CAPACITY_OWNER of the team.
        rollback_window: how long a launch keeps what a rollback needs; None: by the tier.

    Raises:
        InvalidFields: names every field that is wrong.
    """

    name: str
    team: str
    description: str = ""
    team_default: bool = False
    free_within_quota: FreeWithinQuota | None = None
    no_regression: NoRegression | None = None
    gain_against_cost: GainAgainstCost | None = None
    approvers: tuple[PolicyApprover, ...] = ()
    rollback_window: timedelta | None = None
    uid: str = ""
    etag: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None

    def __post_init__(self) -> None:
        refuse(list(_wrong(self)))

    @property
    def rule(self) -> FreeWithinQuota | NoRegression | GainAgainstCost:
        rule = self.free_within_quota or self.no_regression or self.gain_against_cost
        if rule is None:
            raise ValueError("a policy without a rule was not checked")
        return rule


def _wrong(policy: LaunchPolicy) -> Iterator[FieldViolation]:
    def violation(field: str, accepted: str) -> FieldViolation:
        return FieldViolation(f"launch_policy.{field}", accepted)

    if not policy.team:
        yield violation("team", "is required")
    if len(policy.description) > MAX_DESCRIPTION:
        yield violation("description", f"must have at most {MAX_DESCRIPTION:,} characters")
    if not (policy.free_within_quota or policy.no_regression or policy.gain_against_cost):
        yield violation("rule", "is required: free_within_quota, no_regression or gain_against_cost")
    free, same, gain = policy.free_within_quota, policy.no_regression, policy.gain_against_cost
    ratio = None if free is None else free.max_cost_ratio
    if ratio is not None and not in_range(ratio, 0, 1e6, low_open=True):
        yield violation("free_within_quota.max_cost_ratio", "must be above 0 and at most 1,000,000")
    if same is not None and not 0 <= same.tolerance_basis_points <= _MAX_TOLERANCE:
        yield violation("no_regression.tolerance_basis_points", f"must be 0 to {_MAX_TOLERANCE:,}")
    if gain is not None:
        yield from _wrong_gain(gain)
    if len(policy.approvers) > MAX_APPROVERS:
        yield violation("approvers", f"must be at most {MAX_APPROVERS}")
    for index, approver in enumerate(policy.approvers):
        if approver.role not in _APPROVING:
            accepted = ", ".join(role.value for role in _APPROVING)
            yield violation(f"approvers[{index}].role", f"must be one of {accepted}")
    if policy.rollback_window is not None and not timedelta() <= policy.rollback_window <= timedelta(days=7):
        yield violation("rollback_window", "must be 0 to 7 d")


def _wrong_gain(gain: GainAgainstCost) -> Iterator[FieldViolation]:
    path = "launch_policy.gain_against_cost"
    if not is_id(gain.metric):
        yield FieldViolation(f"{path}.metric", ID_EXPECTATION)
    if not in_range(gain.min_gain_per_doubling, 0, 10, low_open=True):
        yield FieldViolation(f"{path}.min_gain_per_doubling", "must be above 0 and at most 10: 0.005 is +0.5 %")
    if not in_range(gain.max_loss, 0, 1):
        yield FieldViolation(f"{path}.max_loss", "must be 0 to 1: 0.01 is 1 %")
    if gain.max_evidence_age is not None and gain.max_evidence_age <= timedelta():
        yield FieldViolation(f"{path}.max_evidence_age", "must be above 0")


def built_in(team: str) -> LaunchPolicy:
    """Returns the policy of whoever has none: free within quota."""
    return LaunchPolicy(name="", team=team, free_within_quota=FreeWithinQuota())


def completed(policy: LaunchPolicy, tier: str) -> LaunchPolicy:
    """Returns a policy with its defaults written out, for a model type of a tier."""
    usual = (PolicyApprover(Role.APPROVER), PolicyApprover(Role.CAPACITY_OWNER))
    window = timedelta(hours=24) if tier in _CRITICAL else timedelta(hours=2)
    return replace(
        policy,
        approvers=tuple(replace(each, team=each.team or policy.team) for each in policy.approvers or usual),
        rollback_window=window if policy.rollback_window is None else policy.rollback_window,
    )


class Outcome(enum.Enum):
    """What was decided."""

    ACCEPTED = "ACCEPTED"
    NEEDS_APPROVAL = "NEEDS_APPROVAL"
    EVIDENCE_MISSING = "EVIDENCE_MISSING"


@dataclass(frozen=True, slots=True)
class DecisionValue:
    """One value that a decision saw, where it comes from, and when it was measured."""

    id: str
    value: float
    unit: str
    source: str
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a launch fits its pool, now or once what is promised is free, and the sentence that says why."""

    fits: bool
    explanation: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decision is made from.

    Attributes:
        estimate: its name.
        costs: of the candidate and of what it replaces.
        fit: whether it fits the pool; looked at for FreeWithinQuota only.
        gain: what the evidence says; None where the rule asks for none.
        lacks: why there is no gain: a sentence; empty where there is one.
        unused_report: the report that was named although the rule asks for no evidence; empty where none was.
    """

    estimate: str
    costs: Costs
    fit: Fit | None = None
    gain: Gain | None = None
    lacks: str = ""
    unused_report: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says of a launch, why, and every value that it saw."""

    outcome: Outcome
    explanation: str
    values: tuple[DecisionValue, ...]


def decide(policy: LaunchPolicy, facts: Facts) -> Decision:
    """Returns what a policy says of a launch."""
    rule = policy.rule
    if isinstance(rule, FreeWithinQuota):
        outcome, explanation, values = _free(rule, facts)
    elif isinstance(rule, NoRegression):
        outcome, explanation, values = _same(rule, facts)
    else:
        outcome, explanation, values = _gain(rule, facts)
    if facts.unused_report:
        explanation += f" {facts.unused_report} was not used: this rule asks for no evidence."
    return Decision(outcome, explanation, (*_seen(facts), *values))


_Verdict = tuple[Outcome, str, list[DecisionValue]]


def _seen(facts: Facts) -> Iterator[DecisionValue]:
    costs, source = facts.costs, facts.estimate
    yield DecisionValue("cost_before", float(costs.before), "cost/h", source)
    yield DecisionValue("cost_after", float(costs.after), "cost/h", source)
    yield DecisionValue("cost_change", float(costs.after - costs.before), "cost/h", source)


def _free(rule: FreeWithinQuota, facts: Facts) -> _Verdict:
    fit, ratio, limit = facts.fit, facts.costs.ratio, rule.max_cost_ratio
    if fit is None:
        raise ValueError("free within quota needs to know whether it fits")
    values = [DecisionValue("fits", float(fit.fits), "1", COMPUTED)]
    if ratio is not None:
        values.append(DecisionValue("cost_ratio", float(ratio), "1", COMPUTED))
    if limit is not None:
        values.append(DecisionValue("max_cost_ratio", limit, "1", "policy"))
    if not fit.fits:
        return Outcome.NEEDS_APPROVAL, fit.explanation, values
    if limit is not None and ratio is None:
        return Outcome.NEEDS_APPROVAL, "It fits, but there is no cost before to compare its cost with.", values
    if limit is not None and ratio is not None and ratio > exact(limit):
        said = f"It fits, but costs {number(ratio)} times as much as before; at most {number(limit)} times is accepted."
        return Outcome.NEEDS_APPROVAL, said, values
    return Outcome.ACCEPTED, fit.explanation, values


def _same(rule: NoRegression, facts: Facts) -> _Verdict:
    before, after = facts.costs.before, facts.costs.after
    allowed = before * Fraction(BASIS_POINTS + rule.tolerance_basis_points, BASIS_POINTS)
    values = [
        DecisionValue("tolerance", rule.tolerance_basis_points / BASIS_POINTS, "1", "policy"),
        DecisionValue("allowed_cost", float(allowed), "cost/h", COMPUTED),
    ]
    said = f"It costs {number(after)} an hour after {number(before)} before"
    if not before:
        return Outcome.NEEDS_APPROVAL, f"{said}: nothing is known that it replaces.", values
    tolerance = f", {rule.tolerance_basis_points / 100:g} % more included" if rule.tolerance_basis_points else ""
    if after <= allowed:
        return Outcome.ACCEPTED, f"{said}; up to {number(allowed)} is accepted{tolerance}.", values
    return Outcome.NEEDS_APPROVAL, f"{said}; only up to {number(allowed)} is accepted{tolerance}.", values


def _gain(rule: GainAgainstCost, facts: Facts) -> _Verdict:
    ratio, gain = facts.costs.ratio_for_same_traffic, facts.gain
    values = [DecisionValue("min_gain_per_doubling", rule.min_gain_per_doubling, "1", "policy")]
    if ratio is not None:
        values.append(DecisionValue("cost_ratio", float(ratio), "1", COMPUTED))
    if gain is None:
        return Outcome.EVIDENCE_MISSING, facts.lacks, values
    values += [
        DecisionValue("gain", float(gain.value), "1", gain.report, gain.time),
        DecisionValue("gain_low", float(gain.low), "1", gain.report, gain.time),
        DecisionValue("gain_high", float(gain.high), "1", gain.report, gain.time),
        DecisionValue("gain_confidence", gain.confidence_basis_points / BASIS_POINTS, "1", gain.report, gain.time),
    ]
    of = f"{rule.metric} {_percent(gain.value)} ({_percent(gain.low)} to {_percent(gain.high)})"
    if ratio is None:
        return Outcome.NEEDS_APPROVAL, f"{of}: there is no cost of what it replaces to compare with.", values
    if ratio <= 1:
        values.append(DecisionValue("max_loss", rule.max_loss, "1", "policy"))
        accepted = gain.low >= -exact(rule.max_loss)
        said = f"{of} for {number(ratio)} times the cost: at least {_percent(-exact(rule.max_loss))} is asked for"
        said += ", judged on the lower end."
        return (Outcome.ACCEPTED if accepted else Outcome.NEEDS_APPROVAL), said, values
    doublings = math.log2(ratio)
    per_doubling = gain.low / exact(doublings)
    values += [
        DecisionValue("doublings", doublings, "1", COMPUTED),
        DecisionValue("gain_per_doubling", float(per_doubling), "1", COMPUTED),
    ]
    accepted = per_doubling >= exact(rule.min_gain_per_doubling)
    said = (
        f"{of} for {number(ratio)} times the cost, {doublings:.4g} doubling{'' if doublings == 1 else 's'}: "
        f"{_percent(gain.low)} / {doublings:.4g} = {_percent(per_doubling)} for each, "
        f"{_percent(exact(rule.min_gain_per_doubling))} is asked for."
    )
    return (Outcome.ACCEPTED if accepted else Outcome.NEEDS_APPROVAL), said, values


def _percent(ratio: Fraction) -> str:
    return f"{float(ratio * 100):+.4g} %"
