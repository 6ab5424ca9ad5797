"""Launch policies: what they accept, whom they ask otherwise, and what counts as a gain."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelfleetd.capacity.domain.estimate import Costs
from modelfleetd.capacity.domain.gain import (
    Comparator,
    ConfidenceInterval,
    Direction,
    EvaluationReport,
    EvaluationResult,
    Form,
    Gain,
    Lacking,
    gain,
)
from modelfleetd.capacity.domain.policy import (
    Decision,
    Facts,
    Fit,
    FreeWithinQuota,
    GainAgainstCost,
    LaunchPolicy,
    NoRegression,
    Outcome,
    PolicyApprover,
    Role,
    built_in,
    completed,
    decide,
)
from modelfleetd.errors import InvalidFields

NOW = datetime(2025, 6, 1, tzinfo=UTC)
OLD = "modelTypes/ctr/models/v1"
REPORT = "modelTypes/ctr/models/v2/evaluationReports/ab"


def costs(before: float, after: float) -> Costs:
    """Of a launch that takes the whole route."""
    return Costs(Fraction(before), Fraction(after), Fraction(after), Fraction(before))


def gained(low: str, value: str, high: str) -> Gain:
    return Gain(Fraction(value), Fraction(low), Fraction(high), 9_500, REPORT, NOW)


def policy(**rule: Any) -> LaunchPolicy:
    return LaunchPolicy(name="launchPolicies/p", team="teams/feed", **rule)


WORTH = policy(gain_against_cost=GainAgainstCost("time_spent", min_gain_per_doubling=0.005))


def judged(rule: LaunchPolicy, before: float, after: float, found: Gain | None = None, **facts: Any) -> Decision:
    return decide(rule, Facts("estimates/e1", costs(before, after), gain=found, **facts))


def values(decision: Decision) -> dict[str, float]:
    return {value.id: value.value for value in decision.values}


def test_twice_the_cost_for_one_percent_more_is_accepted() -> None:
    found = judged(WORTH, 100, 200, gained("0.008", "0.01", "0.012"))
    assert found.outcome is Outcome.ACCEPTED
    assert found.explanation == (
        "time_spent +1 % (+0.8 % to +1.2 %) for 2 times the cost, 1 doubling: "
        "+0.8 % / 1 = +0.8 % for each, +0.5 % is asked for."
    )
    assert values(found) == {
        "cost_before": 100, "cost_after": 200, "cost_change": 100, "min_gain_per_doubling": 0.005, "cost_ratio": 2,
        "gain": 0.01, "gain_low": 0.008, "gain_high": 0.012, "gain_confidence": 0.95, "doublings": 1,
        "gain_per_doubling": 0.008,
    }  # fmt: skip


def test_twice_the_cost_for_a_twentieth_of_a_percent_is_refused() -> None:
    found = judged(WORTH, 100, 200, gained("0.0003", "0.0005", "0.0007"))
    assert found.outcome is Outcome.NEEDS_APPROVAL
    assert "+0.03 % / 1 = +0.03 % for each, +0.5 % is asked for" in found.explanation


def test_the_lower_end_counts_and_not_the_value() -> None:
    assert judged(WORTH, 100, 200, gained("0.0049", "0.02", "0.04")).outcome is Outcome.NEEDS_APPROVAL
    assert judged(WORTH, 100, 200, gained("0.005", "0.02", "0.04")).outcome is Outcome.ACCEPTED


def test_what_costs_no_more_is_accepted_unless_it_may_lose_too_much() -> None:
    lenient = policy(gain_against_cost=GainAgainstCost("time_spent", 0.005, max_loss=0.01))
    assert judged(lenient, 100, 100, gained("-0.01", "0", "0.01")).outcome is Outcome.ACCEPTED
    assert judged(lenient, 100, 50, gained("-0.011", "0", "0.01")).outcome is Outcome.NEEDS_APPROVAL
    assert judged(WORTH, 100, 50, gained("0", "0", "0.01")).outcome is Outcome.ACCEPTED


def test_missing_evidence_is_no_verdict_and_an_unknown_cost_before_needs_somebody() -> None:
    found = judged(WORTH, 100, 50, lacks="There is none.")
    assert (found.outcome, found.explanation) == (Outcome.EVIDENCE_MISSING, "There is none.")
    assert judged(WORTH, 0, 50, gained("0.1", "0.2", "0.3")).outcome is Outcome.NEEDS_APPROVAL


def test_a_gain_is_held_against_the_cost_for_the_same_traffic_and_not_against_that_of_a_small_share() -> None:
    # At 5 % of the route the whole costs 1.05 times as much; the model itself costs twice as much.
    share = Costs(Fraction(100), Fraction(105), Fraction(200), Fraction(100))
    found = decide(WORTH, Facts("estimates/e1", share, gain=gained("0.002", "0.003", "0.004")))
    assert (found.outcome, values(found)["cost_ratio"]) == (Outcome.NEEDS_APPROVAL, 2)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**4), st.integers(-100, 10**4))
def test_more_gain_or_less_cost_never_turns_an_accepted_launch_away(
    before: int, after: int, more: int, low: int
) -> None:
    at = Fraction(low, 10**4)
    first = decide(WORTH, Facts("e", costs(before, after), gain=Gain(at, at, at, 9_500, REPORT, NOW)))
    assume(first.outcome is Outcome.ACCEPTED)
    better = at + Fraction(more, 10**4)
    again = Gain(better, better, better, 9_500, REPORT, NOW)
    assert decide(WORTH, Facts("e", costs(before, after), gain=again)).outcome is Outcome.ACCEPTED
    if low >= 0:
        cheaper = costs(before, max(1, after - more))
        assert decide(WORTH, Facts("e", cheaper, gain=Gain(at, at, at, 9_500, REPORT, NOW))).outcome is Outcome.ACCEPTED


@given(st.integers(2, 2**20), st.integers(1, 1_000))
def test_the_gain_for_each_doubling_is_the_gain_over_the_logarithm_of_the_ratio(ratio: int, low: int) -> None:
    at = Fraction(low, 1_000)
    found = values(decide(WORTH, Facts("e", costs(1, ratio), gain=Gain(at, at, at, 9_500, REPORT, NOW))))
    assert found["gain_per_doubling"] == pytest.approx(low / 1_000 / math.log2(ratio), rel=1e-12)


def test_no_regression_accepts_up_to_its_tolerance() -> None:
    same, some = policy(no_regression=NoRegression()), policy(no_regression=NoRegression(200))
    assert judged(same, 100, 100).outcome is Outcome.ACCEPTED
    assert judged(same, 100, 100.01).outcome is Outcome.NEEDS_APPROVAL
    assert judged(some, 100, 102).outcome is Outcome.ACCEPTED
    refused = judged(some, 100, 102.01)
    assert refused.outcome is Outcome.NEEDS_APPROVAL
    assert refused.explanation == (
        "It costs 102.01 an hour after 100 before; only up to 102 is accepted, 2 % more included."
    )
    assert judged(some, 0, 1).outcome is Outcome.NEEDS_APPROVAL


def test_free_within_quota_accepts_what_fits_up_to_its_ratio_of_costs() -> None:
    free, capped = policy(free_within_quota=FreeWithinQuota()), policy(free_within_quota=FreeWithinQuota(1.5))
    fits, not_now = Fit(True, "Fits now."), Fit(False, "Does not fit.")
    assert judged(free, 100, 500, fit=fits).outcome is Outcome.ACCEPTED
    assert judged(free, 100, 50, fit=not_now) == judged(free, 100, 50, fit=not_now)
    assert judged(free, 100, 50, fit=not_now).explanation == "Does not fit."
    assert judged(free, 100, 50, fit=not_now).outcome is Outcome.NEEDS_APPROVAL
    assert judged(capped, 100, 150, fit=fits).outcome is Outcome.ACCEPTED
    assert judged(capped, 100, 151, fit=fits).outcome is Outcome.NEEDS_APPROVAL
    assert judged(capped, 0, 151, fit=fits).outcome is Outcome.NEEDS_APPROVAL


def test_defaults_follow_the_tier_and_the_team() -> None:
    asked = completed(built_in("teams/feed"), "TIER1")
    assert asked.rollback_window == timedelta(hours=24)
    assert completed(built_in("teams/feed"), "TIER2").rollback_window == timedelta(hours=2)
    assert (
        completed(replace(built_in("teams/feed"), rollback_window=timedelta()), "TIER0").rollback_window == timedelta()
    )
    assert asked.approvers == (
        PolicyApprover(Role.APPROVER, "teams/feed"),
        PolicyApprover(Role.CAPACITY_OWNER, "teams/feed"),
    )
    own = policy(free_within_quota=FreeWithinQuota(), approvers=(PolicyApprover(Role.OWNER, "teams/org"),))
    assert completed(own, "").approvers == (PolicyApprover(Role.OWNER, "teams/org"),)


def test_everything_that_is_wrong_with_a_policy_is_named_at_once() -> None:
    with pytest.raises(InvalidFields) as refused:
        LaunchPolicy(
            name="launchPolicies/p",
            team="",
            description="x" * 1001,
            gain_against_cost=GainAgainstCost("Time Spent", 0.0, max_loss=float("nan"), max_evidence_age=timedelta()),
            approvers=(PolicyApprover(Role.ENGINEER), PolicyApprover(None)),
            rollback_window=timedelta(days=8),
        )
    assert [violation.path.removeprefix("launch_policy.") for violation in refused.value.violations] == [
        "team", "description", "gain_against_cost.metric", "gain_against_cost.min_gain_per_doubling",
        "gain_against_cost.max_loss", "gain_against_cost.max_evidence_age", "approvers[0].role", "approvers[1].role",
        "rollback_window",
    ]  # fmt: skip
    with pytest.raises(InvalidFields) as without:
        policy()
    assert without.value.violations[0].path == "launch_policy.rule"


# Evidence.

HIGHER, LOWER = Direction.HIGHER_IS_BETTER, Direction.LOWER_IS_BETTER


def between(low: float, high: float, confidence: int = 9_500) -> ConfidenceInterval:
    return ConfidenceInterval(low, high, confidence)


INTERVAL = between(1.008, 1.012)


def ratio(value: float = 1.01, interval: ConfidenceInterval | None = INTERVAL, **fields: Any) -> EvaluationResult:
    return EvaluationResult(
        **{"metric": "time_spent", "value": value, "direction": HIGHER, "form": Form.RATIO, "interval": interval,
           "relative_to": "baseline", **fields}
    )  # fmt: skip


def report(*results: EvaluationResult, days: float = 1, **fields: Any) -> EvaluationReport:
    return EvaluationReport(
        **{"name": REPORT, "baseline": OLD, "results": results, "evaluate_time": NOW - timedelta(days=days), **fields}
    )


def gain_of(*reports: EvaluationReport, max_age: timedelta | None = None, replaced: str = OLD) -> Gain:
    return gain(reports, "time_spent", replaced, max_age, NOW)


def lacking(*reports: EvaluationReport, **options: Any) -> str:
    with pytest.raises(Lacking) as caught:
        gain_of(*reports, **options)
    return str(caught.value)


def ends(found: Gain) -> tuple[float, float, float]:
    return float(found.low), float(found.value), float(found.high)


def test_a_ratio_to_the_baseline_is_a_gain_in_exact_decimals() -> None:
    assert ends(gain_of(report(ratio()))) == (0.008, 0.01, 0.012)
    in_percent = ratio(101.0, between(100.8, 101.2), unit="%")
    assert ends(gain_of(report(in_percent))) == (0.008, 0.01, 0.012)


def test_where_less_is_better_the_upper_end_is_the_least_gain() -> None:
    assert ends(gain_of(report(ratio(0.99, between(0.97, 1.005), direction=LOWER)))) == (-0.005, 0.01, 0.03)


def test_an_absolute_value_is_held_against_the_comparator_and_its_interval() -> None:
    alone = EvaluationResult(
        "time_spent", 101.0, HIGHER, interval=between(100.5, 101.5), comparators=(Comparator("old", OLD, 100.0),)
    )
    assert ends(gain_of(report(alone, baseline=""))) == (0.005, 0.01, 0.015)
    both = replace(alone, comparators=(Comparator("old", OLD, 100.0, between(99.0, 100.5, 9_000)),))
    found = gain_of(report(both))
    # The least of the one against the most of the other.
    assert ends(found) == pytest.approx((0.0, 0.01, 101.5 / 99 - 1))
    assert found.confidence_basis_points == 9_000


def test_a_difference_is_a_part_of_the_metric_of_the_baseline() -> None:
    change = ratio(1.0, between(0.8, 1.2), form=Form.DIFFERENCE)
    absolute = EvaluationResult("time_spent", 101.0, HIGHER)
    assert ends(gain_of(report(change, absolute))) == (0.008, 0.01, 0.012)
    named = replace(change, comparators=(Comparator("old", OLD, 50.0),))
    assert ends(gain_of(report(named))) == (0.016, 0.02, 0.024)
    assert "is a part of nothing" in lacking(report(change))


def test_an_interval_that_misses_the_value_makes_nothing_better_than_the_value() -> None:
    assert ends(gain_of(report(ratio(1.0, between(1.008, 1.012))))) == (0.0, 0.0, 0.012)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (ratio(interval=None), "has no interval"),
        (ratio(interval=between(1.0, 1.1, 5_000)), "holds in 50 % of the cases only"),
        (ratio(slice={"country": "de"}), "no evaluation result"),
        (ratio(metric="likes"), "no evaluation result"),
        (ratio(direction=Direction.CLOSE_TO_TARGET), "has a target"),
        (ratio(relative_to="unperturbed"), "relative to 'unperturbed'"),
        (ratio(unit="s"), "a ratio has no unit"),
        (EvaluationResult("time_spent", 5.0, HIGHER, interval=between(4, 6)), "no comparator with the model"),
        (
            ratio(form=Form.ABSOLUTE, comparators=(Comparator("old", OLD, 0.0),)),
            "may be 0 or less",
        ),
    ],
)  # fmt: skip
def test_what_is_no_gain_to_rest_on_says_why(result: EvaluationResult, why: str) -> None:
    assert why in lacking(report(result))


def test_a_gain_over_another_model_is_none_over_this_one() -> None:
    assert "not against modelTypes/ctr/models/v1" in lacking(report(ratio(), baseline="modelTypes/ctr/models/v0"))
    assert "nothing to be better than" in lacking(report(ratio()), replaced="")


def test_the_newest_report_in_force_counts_and_expired_evidence_never() -> None:
    newer = report(ratio(1.02, between(1.01, 1.03)), name="b", days=1, expire_time=NOW)
    older = report(ratio(), name="a", days=9)
    assert gain_of(newer, older).report == "a"
    assert "has expired or is too old" in lacking(newer)
    assert "has expired or is too old" in lacking(older, max_age=timedelta(days=8))
    assert gain_of(replace(newer, expire_time=None), older, max_age=timedelta(days=8)).report == "b"


@given(
    value=st.floats(0.5, 2), low=st.floats(0.5, 2), high=st.floats(0.5, 2), base=st.floats(0.5, 2),
    direction=st.sampled_from([HIGHER, LOWER]), form=st.sampled_from(list(Form)),
)  # fmt: skip
def test_the_ends_of_a_gain_are_in_order_whatever_the_form_and_direction(
    value: float, low: float, high: float, base: float, direction: Direction, form: Form
) -> None:
    low, high = sorted((low, high))
    result = ratio(
        value, between(low, high), form=form, direction=direction, comparators=(Comparator("old", OLD, base),)
    )
    found = gain_of(report(result))
    assert found.low <= found.value <= found.high
