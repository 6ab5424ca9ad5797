"""What rules say about evidence: each expectation, which evidence decides, and that nothing passes in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields
from modelfleetd.registry.domain.evidence import (
    Comparator,
    ConfidenceInterval,
    Direction,
    EvaluationReport,
    EvaluationResult,
    Evaluator,
    EvaluatorKind,
    EvidenceRule,
    Form,
    HumanRating,
    Method,
    OfflineEstimate,
    OnlineExperiment,
    RiskAssessment,
)
from modelfleetd.registry.domain.evidence_checks import complete_risk
from modelfleetd.registry.domain.evidence_rules import MAX_ROWS, judge
from modelfleetd.registry.domain.evidence_verdicts import Evidence, Judgement, Lack, Verdict
from modelfleetd.registry.domain.rules import EXPECTATIONS, check_evidence_rules, check_model_type
from modelfleetd.registry.domain.violations import Violations
from tests.support.evidence import BASELINE, MODEL, NOW, assessment, report, result, risk, rule
from tests.support.registry import model_type

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
LOWER, CLOSE = Direction.LOWER_IS_BETTER, Direction.CLOSE_TO_TARGET
OLDER = NOW - timedelta(days=10)
Piece = EvaluationReport | RiskAssessment


def judged(asked: EvidenceRule, *evidence: Piece, against: Sequence[Piece] = (), baseline: str = BASELINE) -> Judgement:
    """What one rule says of a model with this evidence."""
    opinion = judge([asked], Evidence.of(*evidence), baseline, Evidence.of(*against), NOW)
    assert opinion.verdict is opinion.judgements[0].verdict
    return opinion.judgements[0]


def said(asked: EvidenceRule, *evidence: Piece, **more: Any) -> Verdict | Lack:
    """The verdict, or what is lacking where there is none."""
    found = judged(asked, *evidence, **more)
    assert (found.lack is not None) == (found.verdict is INCONCLUSIVE)
    assert found.explanation.endswith(".")
    return found.lack or found.verdict


def interval(low: float, high: float) -> ConfidenceInterval:
    return ConfidenceInterval(low=low, high=high)


@pytest.mark.parametrize(
    ("expected", "fields", "verdict"),
    [
        ({"minimum": 0.8}, {"value": 0.8}, PASS),
        ({"minimum": 0.8}, {"value": 0.79}, FAIL),
        ({"minimum": 0.0}, {"value": 0.0}, PASS),
        ({"minimum": 0.0}, {"value": -0.01}, FAIL),
        ({"maximum": 0.1}, {"value": 0.1, "direction": LOWER}, PASS),
        ({"maximum": 0.1}, {"value": 0.11, "direction": LOWER}, FAIL),
        ({"max_distance_to_target": 0.1}, {"value": 0.6, "direction": CLOSE, "target": 0.5}, PASS),
        ({"max_distance_to_target": 0.1}, {"value": 0.4, "direction": CLOSE, "target": 0.5}, PASS),
        ({"max_distance_to_target": 0.1}, {"value": 0.39, "direction": CLOSE, "target": 0.5}, FAIL),
        ({"max_distance_to_target": 0.1}, {"value": 0.5}, Lack.NO_TARGET),
        # The worse end of the interval, whatever is expected.
        ({"minimum": 0.8, "conservative": True}, {"value": 0.9, "interval": interval(0.79, 0.95)}, FAIL),
        ({"minimum": 0.8, "conservative": True}, {"value": 0.9, "interval": interval(0.81, 0.95)}, PASS),
        ({"maximum": 0.8, "conservative": True}, {"value": 0.7, "interval": interval(0.6, 0.81)}, FAIL),
        (
            {"max_distance_to_target": 0.1, "conservative": True},
            {"value": 0.5, "direction": CLOSE, "target": 0.5, "interval": interval(0.39, 0.55)},
            FAIL,
        ),
        ({"minimum": 0.8, "conservative": True}, {"value": 0.9}, Lack.NO_INTERVAL),
        ({"minimum": 0.8, "min_sample_size": 100}, {"value": 0.9, "sample_size": 99}, Lack.TOO_FEW_SAMPLES),
        ({"minimum": 0.8, "min_sample_size": 100}, {"value": 0.9}, Lack.TOO_FEW_SAMPLES),
        ({"minimum": 0.8, "min_sample_size": 100}, {"value": 0.9, "sample_size": 100}, PASS),
    ],
)
def test_each_expectation_is_held_against_its_bound(
    expected: dict[str, Any], fields: dict[str, Any], verdict: Verdict | Lack
) -> None:
    assert said(rule(**expected), report(result(**fields))) is verdict


@pytest.mark.parametrize(
    ("direction", "value", "old", "bound", "verdict"),
    [
        (Direction.HIGHER_IS_BETTER, 0.80, 0.81, 0.01, PASS),
        (Direction.HIGHER_IS_BETTER, 0.799, 0.81, 0.01, FAIL),
        (Direction.HIGHER_IS_BETTER, 0.9, 0.81, 0.0, PASS),
        (Direction.HIGHER_IS_BETTER, 0.82, 0.81, -0.02, FAIL),
        (Direction.HIGHER_IS_BETTER, 0.83, 0.81, -0.02, PASS),
        (LOWER, 0.82, 0.81, 0.01, PASS),
        (LOWER, 0.821, 0.81, 0.01, FAIL),
        (LOWER, 0.1, 0.81, 0.0, PASS),
    ],
)
def test_not_worse_than_the_baseline_goes_by_direction(
    direction: Direction, value: float, old: float, bound: float, verdict: Verdict
) -> None:
    own = report(result(value=value, direction=direction))
    other = report(result(value=old, direction=direction), of=BASELINE)
    assert said(rule(max_loss_to_baseline=bound), own, against=[other]) is verdict
    relative = rule(max_relative_loss_to_baseline=bound / old)
    assert said(relative, own, against=[other]) is verdict


def test_close_to_a_target_is_compared_by_distance() -> None:
    def at(value: float, of: str = MODEL) -> EvaluationReport:
        return report(result(value=value, direction=CLOSE, target=0.5), of=of)

    for value, verdict in ((0.42, PASS), (0.58, PASS), (0.41, FAIL), (0.5, PASS)):
        assert said(rule(max_loss_to_baseline=0.03), at(value), against=[at(0.55, BASELINE)]) is verdict


def test_of_a_baseline_of_zero_no_loss_is_accepted() -> None:
    zero = report(result(value=0.0, direction=LOWER), of=BASELINE)
    relative = rule(max_relative_loss_to_baseline=0.5)
    assert said(relative, report(result(value=0.0, direction=LOWER)), against=[zero]) is PASS
    assert said(relative, report(result(value=0.001, direction=LOWER)), against=[zero]) is FAIL


def test_the_worse_end_is_compared_with_the_baseline() -> None:
    own = report(result(value=0.9, interval=interval(0.8, 0.95)))
    other = report(result(value=0.85, interval=interval(0.5, 0.99)), of=BASELINE)
    assert said(rule(max_loss_to_baseline=0.0), own, against=[other]) is PASS
    assert said(rule(max_loss_to_baseline=0.0, conservative=True), own, against=[other]) is FAIL
    assert said(rule(max_loss_to_baseline=0.05, conservative=True), own, against=[other]) is PASS


COMPARED = result(value=0.7, comparators=(Comparator(name="old", model=BASELINE, value=0.6),))


def test_the_baselines_own_newest_result_counts_and_else_the_comparator() -> None:
    asked = rule(max_loss_to_baseline=0.0)
    own = report(COMPARED)
    assert said(asked, own) is PASS
    older = report(result(value=0.65), of=BASELINE, key="z", evaluate_time=OLDER)
    newer = report(result(value=0.75), of=BASELINE, key="a")
    assert said(asked, own, against=[older]) is PASS
    assert said(asked, own, against=[older, newer]) is FAIL
    assert judged(asked, own, against=[older, newer]).rows[0].baseline == 0.75
    assert said(asked, report(result(value=0.7))) is Lack.NO_BASELINE
    assert said(asked, own, baseline="") is Lack.NO_BASELINE
    assert said(asked, own, baseline="modelTypes/ctr/models/third") is Lack.NO_BASELINE


def test_only_the_same_thing_is_compared() -> None:
    asked = rule(max_loss_to_baseline=0.0)
    own = report(COMPARED, suite_version="2")
    # Something else of the baseline does not count, so its comparator of 0.6 does.
    others = [
        report(result(value=0.9), of=BASELINE, suite_version="1"),
        report(result(value=0.9), of=BASELINE, suite_version="2", suite="other"),
        report(result(value=0.9, conditions={"prompt": "few_shot"}), of=BASELINE, suite_version="2"),
        report(result(value=0.9, at={"flops": 1.0}), of=BASELINE, suite_version="2"),
        report(result(value=0.9, unit="%"), of=BASELINE, suite_version="2"),
        report(result(value=0.9, human_rating=HumanRating()), of=BASELINE, suite_version="2"),
    ]
    for other in others:
        assert said(asked, own, against=[other]) is PASS
    assert said(asked, own, against=[report(result(value=0.9), of=BASELINE, suite_version="2")]) is FAIL


def test_what_the_baseline_has_may_be_old_but_not_expired() -> None:
    asked = rule(max_loss_to_baseline=0.0, max_age=timedelta(days=1))
    own = report(COMPARED)
    old = report(result(value=0.75), of=BASELINE, evaluate_time=OLDER)
    assert said(asked, own, against=[old]) is FAIL
    # Its comparator would let it pass: expiry never helps.
    assert said(asked, own, against=[replace(old, expire_time=NOW)]) is Lack.EXPIRED


SAFETY = {"violence": 40.0, "weapons": 12.0, "self_harm": 60.0}


def by_category(values: dict[str, float], **fields: Any) -> EvaluationReport:
    return report(
        *(result("steps", value, slice={"harm": key}, unit="steps") for key, value in values.items()),
        # Neither of these is a slice of that key alone.
        result("steps", 1.0),
        result("steps", 2.0, slice={"harm": "violence", "language": "de"}),
        **fields,
    )


def test_the_worst_slice_decides() -> None:
    asked = rule(metric="steps", worst_slice_by="harm", minimum=12.0)
    found = judged(asked, by_category(SAFETY))
    assert found.verdict is PASS
    assert [row.slice["harm"] for row in found.rows] == ["weapons", "violence", "self_harm"]
    assert found.explanation == "steps of harm=weapons (the worst of 3) is 12 steps; at least 12 steps is expected."
    assert said(replace(asked, minimum=13.0), by_category(SAFETY)) is FAIL
    assert said(replace(asked, minimum=None, maximum=60.0), by_category(SAFETY)) is PASS
    assert said(replace(asked, minimum=None, maximum=59.0), by_category(SAFETY)) is FAIL


def test_slices_that_are_expected_must_be_there() -> None:
    asked = rule(metric="steps", worst_slice_by="harm", minimum=10.0, expected_slices=("violence", "fraud"))
    assert said(asked, by_category(SAFETY)) is Lack.MISSING_SLICES
    assert "for harm fraud" in judged(asked, by_category(SAFETY)).explanation
    assert said(asked, by_category(SAFETY | {"fraud": 10.0})) is PASS
    # What is there and bad fails, whatever else is missing.
    assert said(replace(asked, minimum=13.0), by_category(SAFETY)) is FAIL


def test_one_row_without_what_is_needed_keeps_all_from_passing() -> None:
    asked = rule(worst_slice_by="k", minimum=0.5, min_sample_size=10)
    rows = [result(value=0.9, slice={"k": "a"}, sample_size=10), result(value=0.9, slice={"k": "b"}, sample_size=9)]
    assert said(asked, report(*rows)) is Lack.TOO_FEW_SAMPLES
    assert said(asked, report(*rows, result(value=0.1, slice={"k": "c"}, sample_size=10))) is FAIL
    assert said(asked, report(rows[0])) is PASS


def test_a_verdict_shows_the_rows_that_decided_and_no_more_than_some() -> None:
    rows = [result(value=float(number), slice={"k": str(number)}) for number in range(30, 0, -1)]
    found = judged(rule(worst_slice_by="k", minimum=2.0), report(*rows))
    assert len(found.rows) == MAX_ROWS
    assert (found.rows[0].value, found.rows[0].index, found.rows[0].verdict) == (1.0, 29, FAIL)
    assert (found.rows[1].value, found.rows[1].verdict) == (2.0, PASS)
    assert found.rows[0].source == report().name
    assert (found.rows[0].judged, found.rows[0].bound) == (1.0, 2.0)


def test_the_newest_report_decides_and_no_older_one_takes_its_place() -> None:
    asked = rule(minimum=0.8)
    good, bad = report(result(value=0.9), key="a"), report(result(value=0.1), key="b", evaluate_time=OLDER)
    assert said(asked, good, bad) is PASS
    assert said(asked, replace(good, evaluate_time=OLDER), replace(bad, evaluate_time=NOW)) is FAIL
    # At the same time the later name.
    assert said(asked, good, replace(bad, evaluate_time=NOW)) is FAIL
    newest_bad = replace(bad, evaluate_time=NOW)
    assert said(asked, replace(good, evaluate_time=OLDER), replace(newest_bad, expire_time=NOW)) is Lack.EXPIRED
    # One that says nothing of this does not count.
    assert said(asked, good, report(result("other", 0.1), key="z")) is PASS


@pytest.mark.parametrize(
    ("wanted", "fields", "other"),
    [
        ({"suite": "eval"}, {}, {"suite": "another"}),
        ({"evaluators": (EvaluatorKind.THIRD_PARTY,)}, {"evaluator": Evaluator(kind=EvaluatorKind.THIRD_PARTY)}, {}),
        ({"slice": {"a": "b"}}, {"results": (result(slice={"a": "b"}),)}, {"results": (result(),)}),
        ({}, {"results": (result(),)}, {"results": (result(slice={"a": "b"}),)}),
        (
            {"method": Method.ONLINE_EXPERIMENT},
            {"results": (result(online_experiment=OnlineExperiment(experiment="x")),)},
            {"results": (result(offline_estimate=OfflineEstimate(estimator="ips", logging_policy="l")),)},
        ),
        (
            {"method": Method.OFFLINE_ESTIMATE},
            {"results": (result(offline_estimate=OfflineEstimate(estimator="ips", logging_policy="l")),)},
            {"results": (result(online_experiment=OnlineExperiment(experiment="x")),)},
        ),
        ({"method": Method.EVALUATION}, {}, {"results": (result(human_rating=HumanRating()),)}),
        ({"method": Method.HUMAN_RATING}, {"results": (result(human_rating=HumanRating()),)}, {}),
        # A change is never taken for the metric itself.
        ({}, {}, {"results": (result(form=Form.DIFFERENCE, relative_to="x"),)}),
        ({"form": Form.RATIO}, {"results": (result(form=Form.RATIO, relative_to="x"),)}, {}),
        (
            {"conditions": {"prompt": "few_shot"}},
            {"results": (result(conditions={"prompt": "few_shot", "seed": "1"}),)},
            {"results": (result(conditions={"prompt": "zero_shot"}),)},
        ),
        (
            {"at": {"flops": 2e12}},
            {"results": (result(at={"flops": 2e12}),)},
            {"results": (result(at={"flops": 1e12}),)},
        ),
    ],
)
def test_a_rule_is_about_what_it_names(wanted: dict[str, Any], fields: dict[str, Any], other: dict[str, Any]) -> None:
    asked = rule(minimum=0.5, **wanted)
    assert said(asked, report(**fields)) is PASS
    found = judged(asked, report(**other))
    assert found.lack is Lack.MISSING
    # Newer evidence of something else changes nothing.
    assert said(asked, report(**fields, evaluate_time=OLDER), report(**other, key="z")) is PASS


def test_several_results_that_a_rule_is_about_must_all_be_good() -> None:
    curve = [result("ne", ne, direction=LOWER, at={"flops": flops}) for flops, ne in ((1e12, 0.8), (2e12, 0.7))]
    assert said(rule(metric="ne", maximum=0.75), report(*curve)) is FAIL
    assert said(rule(metric="ne", maximum=0.75, at={"flops": 2e12}), report(*curve)) is PASS


@pytest.mark.parametrize(
    ("fields", "now_said"),
    [
        ({"expire_time": NOW + timedelta(seconds=1)}, PASS),
        ({"expire_time": NOW}, Lack.EXPIRED),
        ({"evaluate_time": NOW - timedelta(days=7) + timedelta(seconds=1)}, PASS),
        ({"evaluate_time": NOW - timedelta(days=7)}, Lack.EXPIRED),
    ],
)
def test_what_has_expired_or_is_too_old_is_no_evidence(fields: dict[str, Any], now_said: Verdict | Lack) -> None:
    assert said(rule(minimum=0.5, max_age=timedelta(days=7)), report(**fields)) is now_said
    # Nor does it fail.
    bad = report(result(value=0.1), **fields)
    assert said(rule(minimum=0.5, max_age=timedelta(days=7)), bad) is (FAIL if now_said is PASS else now_said)


def rated(*pairs: tuple[str, int, int], key: str = "a", **fields: Any) -> RiskAssessment:
    rows = (complete_risk(risk(likelihood, severity, dimension=where)) for where, likelihood, severity in pairs)
    return assessment(*rows, key=key, **fields)


def test_no_risk_may_be_higher_than_the_rule_says() -> None:
    rows = rated(("privacy", 2, 4), ("fairness", 3, 4), ("safety", 1, 1))
    assert said(rule(max_residual_risk=12), rows) is PASS
    found = judged(rule(max_residual_risk=11), rows)
    assert (found.verdict, found.rows[0].index, found.rows[0].judged) == (FAIL, 1, 12)
    assert found.explanation == "The highest residual risk of 3 risks is 12 (harm); at most 11 is accepted."
    assert said(rule(max_residual_risk=8, dimension="privacy"), rows) is PASS
    assert said(rule(max_residual_risk=7, dimension="privacy"), rows) is FAIL


def test_an_assessment_that_does_not_look_at_something_says_nothing_of_it() -> None:
    asked = rule(max_residual_risk=25, dimension="privacy")
    assert said(asked, rated(("fairness", 1, 1))) is Lack.MISSING
    assert said(asked) is Lack.MISSING
    older = rated(("privacy", 1, 1), key="a", assess_time=OLDER)
    assert said(asked, older, rated(("fairness", 1, 1), key="z")) is PASS
    assert said(asked, replace(older, expire_time=NOW)) is Lack.EXPIRED
    assert said(replace(asked, max_age=timedelta(days=1)), older) is Lack.EXPIRED


def test_a_row_that_was_assessed_long_ago_is_too_old_by_itself() -> None:
    fresh, old = complete_risk(risk()), complete_risk(risk(assess_time=OLDER))
    asked = rule(max_residual_risk=9, max_age=timedelta(days=1))
    assert said(asked, assessment(fresh)) is PASS
    assert said(asked, assessment(fresh, old)) is Lack.EXPIRED
    assert said(replace(asked, max_residual_risk=8), assessment(fresh, old)) is FAIL


def test_all_rules_together_pass_only_if_each_does() -> None:
    evidence = Evidence.of(report())

    def opinion(*rules: EvidenceRule) -> tuple[Verdict, str]:
        found = judge(rules, evidence, "", Evidence(), NOW)
        return found.verdict, found.explanation

    good, bad, silent = rule(id="g", minimum=0.5), rule(id="b", minimum=0.9), rule(id="s", metric="x", minimum=0.9)
    assert opinion(good) == (PASS, "The only rule passes.")
    assert opinion(good, good) == (PASS, "All 2 rules pass.")
    assert opinion(good, silent) == (INCONCLUSIVE, "Of 2 rules it lacks evidence for s.")
    assert opinion(good, silent, bad) == (FAIL, "Of 3 rules it fails b and lacks evidence for s.")
    assert opinion()[0] is PASS and opinion()[1].startswith("No rules")


def test_explanations_have_the_figures() -> None:
    other = report(result(value=0.85), of=BASELINE)
    for asked, words in (
        (rule(minimum=0.85), "f1 is 0.8; at least 0.85 is expected."),
        (
            rule(max_loss_to_baseline=0.01),
            "f1 is 0.8, 0.05 worse than the baseline's 0.85; at most 0.01 worse is accepted.",
        ),
        (
            rule(max_relative_loss_to_baseline=-0.1),
            "f1 is 0.8, 5.882 % worse than the baseline's 0.85; at least 10 % better is expected.",
        ),
        (rule(metric="x", suite="s", minimum=1.0), "There is no result of x in the suite s."),
        (
            rule(minimum=0.8, min_sample_size=5),
            "f1 in r rests on a number of samples that it does not say; at least 5 are needed.",
        ),
    ):
        assert judged(asked, report(), against=[other]).explanation == words


# Properties.

# A report is a few small numbers, so that drawing it is quick and shrinks well.
values = st.sampled_from((-3.0, -1.0, 0.0, 0.5, 1.0, 3.0))
rows = st.tuples(
    values, st.sampled_from((0, 10)), st.sampled_from((None, 0.5, 2.0)), st.sampled_from((None, -1.0, 1.0))
)
expiries = st.sampled_from((None, -1, 1))


def drawn_result(
    key: str, value: float, sample_size: int, width: float | None, other: float | None
) -> EvaluationResult:
    return result(
        value=value,
        slice={"k": key} if key else {},
        sample_size=sample_size,
        interval=None if width is None else interval(value - width, value + width),
        comparators=() if other is None else (Comparator(name="old", model=BASELINE, value=other),),
    )


def reports(of: str = MODEL, most: int = 3, least: int = 0) -> st.SearchStrategy[list[EvaluationReport]]:
    """Up to some reports of a model, each of a few slices, at different times."""
    one = st.tuples(st.dictionaries(st.sampled_from(("", "a", "b")), rows, min_size=1), st.integers(0, 3), expiries)

    def made(drawn: dict[str, Any]) -> list[EvaluationReport]:
        return [
            report(
                *(drawn_result(key, *row) for key, row in results.items()),
                key=name,
                of=of,
                evaluate_time=NOW - timedelta(days=days),
                expire_time=None if expiry is None else NOW + timedelta(days=expiry),
            )
            for name, (results, days, expiry) in drawn.items()
        ]

    return st.dictionaries(st.sampled_from("xyz"), one, min_size=least, max_size=most).map(made)


def drawn_rule(
    name: str, bound: float, by: str, expected: tuple[str, ...], conservative: bool, least: int, days: int | None
) -> EvidenceRule:
    return rule(
        **{name: bound},
        worst_slice_by=by,
        expected_slices=expected if by else (),
        conservative=conservative,
        min_sample_size=least,
        max_age=None if days is None else timedelta(days=days),
    )


some_rules = st.builds(
    drawn_rule,
    st.sampled_from(["minimum", "max_loss_to_baseline", "max_relative_loss_to_baseline"]),
    values,
    st.sampled_from(["", "k"]),
    st.sampled_from([(), ("a",), ("a", "b")]),
    st.booleans(),
    st.sampled_from([0, 5]),
    st.sampled_from([None, 2]),
)
some = settings(max_examples=100)


@some
@given(some_rules, reports(least=1), reports(of=BASELINE, most=1), st.sampled_from((0.25, 1.0, 4.0)))
def test_a_better_value_never_turns_a_pass_into_a_failure(
    asked: EvidenceRule, own: list[EvaluationReport], against: list[EvaluationReport], more: float
) -> None:
    before = judged(asked, *own, against=against).verdict

    def raised(each: EvaluationResult) -> EvaluationResult:
        moved = None if each.interval is None else interval(each.interval.low + more, each.interval.high + more)
        return replace(each, value=each.value + more, interval=moved)

    better = [replace(each, results=tuple(map(raised, each.results))) for each in own]
    after = judged(asked, *better, against=against).verdict
    assert before is not PASS or after is PASS
    assert after is not FAIL or before is FAIL


@some
@given(some_rules, reports(), reports(of=BASELINE, most=2))
def test_expiry_never_helps(asked: EvidenceRule, own: list[EvaluationReport], against: list[EvaluationReport]) -> None:
    before = judged(asked, *own, against=against)
    for mine, others in (
        ([replace(each, expire_time=NOW) for each in own], against),
        (own, [replace(each, expire_time=NOW) for each in against]),
    ):
        after = judged(asked, *mine, against=others).verdict
        assert after in (before.verdict, INCONCLUSIVE)
        assert after is not PASS or before.verdict is PASS
    for each in own:
        rest = [replace(other, expire_time=NOW) if other is each else other for other in own]
        assert judged(asked, *rest, against=against).verdict is not PASS or before.verdict is PASS


@some
@given(some_rules, reports(most=1), reports(of=BASELINE, most=2))
def test_removing_evidence_never_turns_anything_into_a_pass(
    asked: EvidenceRule, own: list[EvaluationReport], against: list[EvaluationReport]
) -> None:
    """Of one report. Of several the newest speaks: without it the one before does, as if nothing had come after it."""
    before = judged(asked, *own, against=against).verdict
    assert judged(asked, against=against).verdict is INCONCLUSIVE
    for each in own:
        for gone in range(len(each.results)):
            rest = each.results[:gone] + each.results[gone + 1 :]
            after = judged(asked, replace(each, results=rest), against=against).verdict
            # A slice that fails may only be left out unnoticed where nobody said that it is expected.
            unexpected = asked.worst_slice_by and each.results[gone].slice.get("k") not in asked.expected_slices
            assert after is not PASS or before is PASS or unexpected


@some
@given(some_rules, reports(least=1))
def test_older_evidence_changes_nothing(asked: EvidenceRule, own: list[EvaluationReport]) -> None:
    found = judged(asked, *own)
    decided = [each for each in own if found.rows and each.name == found.rows[0].source]
    if decided:
        assert judged(asked, *decided) == found
    else:
        assert found.lack is Lack.MISSING


@some
@given(some_rules, reports(), reports(of=BASELINE, most=2))
def test_a_pass_rests_on_rows_that_are_valid_and_as_expected(
    asked: EvidenceRule, own: list[EvaluationReport], against: list[EvaluationReport]
) -> None:
    found = judged(asked, *own, against=against)
    if found.verdict is not PASS:
        return
    assert found.rows
    for row in found.rows:
        assert row.verdict is PASS
        assert row.sample_size >= asked.min_sample_size
        assert row.expire_time is None or row.expire_time > NOW
        assert row.time is not None and (asked.max_age is None or row.time > NOW - asked.max_age)
    assert {row.slice.get("k") for row in found.rows} >= set(asked.expected_slices)


@given(st.permutations(range(4)))
def test_the_order_in_which_evidence_is_read_does_not_matter(order: list[int]) -> None:
    several = [report(result(value=float(n)), key=f"r{n}", evaluate_time=NOW - timedelta(days=n % 2)) for n in range(4)]
    asked = rule(minimum=1.5)
    assert judged(asked, *(several[place] for place in order)) == judged(asked, *several)


# Rules by themselves.


def wrong_paths(*rules: EvidenceRule) -> set[str]:
    wrong = Violations("")
    check_evidence_rules(wrong, rules, "rules")
    return {each.path for each in wrong.found}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"id": "Not an id", "minimum": 1.0}, "rules[0].id"),
        ({}, "rules[0]"),
        ({"minimum": 1.0, "maximum": 2.0}, "rules[0]"),
        ({"minimum": 1.0, "metric": ""}, "rules[0].metric"),
        ({"minimum": 1.0, "suite": "No"}, "rules[0].suite"),
        ({"minimum": float("nan")}, "rules[0].minimum"),
        ({"max_distance_to_target": -1.0}, "rules[0].max_distance_to_target"),
        ({"minimum": 1.0, "slice": {"a": "b"}, "worst_slice_by": "a"}, "rules[0].worst_slice_by"),
        ({"minimum": 1.0, "expected_slices": ("a",)}, "rules[0].expected_slices"),
        ({"minimum": 1.0, "worst_slice_by": "k", "expected_slices": ("a", "a")}, "rules[0].expected_slices[1]"),
        ({"minimum": 1.0, "max_age": timedelta(seconds=59)}, "rules[0].max_age"),
        ({"minimum": 1.0, "min_sample_size": -1}, "rules[0].min_sample_size"),
        ({"minimum": 1.0, "dimension": "privacy"}, "rules[0].dimension"),
        ({"minimum": 1.0, "at": {"flops": float("inf")}}, "rules[0].at.flops"),
        ({"max_residual_risk": 101}, "rules[0].max_residual_risk"),
        ({"max_residual_risk": 5, "metric": "f1"}, "rules[0].metric"),
        ({"max_residual_risk": 5, "dimension": "Not an id"}, "rules[0].dimension"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, Any], path: str) -> None:
    assert wrong_paths(rule(**fields)) == {path}


def test_rules_are_checked_with_the_model_type_that_has_them() -> None:
    fine = tuple(
        rule(id=f"r{number}", **{name: 1 if name == "max_residual_risk" else 0.0})
        for number, name in enumerate(EXPECTATIONS)
    )
    assert check_model_type(model_type(evidence_rules=fine)).evidence_rules == fine
    with pytest.raises(InvalidFields) as wrong:
        check_model_type(model_type(evidence_rules=(fine[0], fine[0], rule(id="x")), purpose="x" * 2000))
    assert {each.path for each in wrong.value.violations} == {
        "model_type.purpose",
        "model_type.evidence_rules[1].id",
        "model_type.evidence_rules[2]",
    }
