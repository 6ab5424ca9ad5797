"""What must be true of a report or an assessment by itself. Every violation is reported, with its path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from modelfleetd import names
from modelfleetd.registry.domain.evidence import (
    Comparator,
    ConfidenceInterval,
    Direction,
    EvaluationDataset,
    EvaluationReport,
    EvaluationResult,
    Form,
    Grade,
    HumanRating,
    OfflineEstimate,
    OnlineExperiment,
    Risk,
    RiskAssessment,
)
from modelfleetd.registry.domain.rules import (
    MAX_LABELS,
    MAX_PROSE,
    MAX_TEXT,
    MAX_URI,
    check_numbers,
    check_words,
)
from modelfleetd.registry.domain.violations import Violations

MAX_RESULTS: Final = 2000
MAX_COMPARATORS: Final = 50
MAX_GRADES: Final = 50
MAX_RISKS: Final = 500
MAX_LINKS: Final = 20
# Of the message of one report or assessment: so that its revision, and a watcher's message, hold it with ease.
MAX_BYTES: Final = 2 << 20
# Evaluators have clocks of their own.
MAX_AHEAD: Final = timedelta(minutes=5)

_DEFAULT_CONFIDENCE: Final = 9500
_DEFAULT_LEVELS: Final = 5


def check_report(report: EvaluationReport, now: datetime) -> EvaluationReport:
    """Returns the report, defaults written out, if its fields are right. Raises InvalidFields."""
    wrong = Violations("evaluation_report")
    wrong.expect(names.is_id(report.suite), "suite", names.ID_EXPECTATION)
    wrong.text(report.suite_version, "suite_version", MAX_TEXT)
    wrong.text(report.description, "description", MAX_PROSE)
    wrong.expect(report.evaluator is not None, "evaluator", "is required: who evaluated")
    if report.evaluator is not None:
        wrong.expect(report.evaluator.kind is not None, "evaluator.kind", "is required")
        wrong.text(report.evaluator.name, "evaluator.name", MAX_TEXT)
    _dataset(wrong, report.dataset)
    _times(wrong, report.evaluate_time, report.expire_time, now, "evaluate_time")
    _links(wrong, report.links)
    check_words(wrong, report.labels, "labels", MAX_LABELS)
    count = f"must have 1 to {MAX_RESULTS:,} entries, there are {len(report.results):,}; split it by suite or slice"
    wrong.expect(1 <= len(report.results) <= MAX_RESULTS, "results", count)
    for index, result in enumerate(report.results[:MAX_RESULTS]):
        _result(wrong.below(f"results[{index}]"), result)
    _unique_results(wrong, report)
    wrong.raise_if_any()
    return replace(report, results=tuple(map(complete_result, report.results)))


def complete_result(result: EvaluationResult) -> EvaluationResult:
    """Returns a result with its defaults written out: a later change of a default changes no evidence."""
    return replace(
        result,
        form=result.form or Form.ABSOLUTE,
        interval=_complete_interval(result.interval),
        comparators=tuple(
            replace(each, interval=_complete_interval(each.interval)) if each.interval else each
            for each in result.comparators
        ),
    )


def _complete_interval(interval: ConfidenceInterval | None) -> ConfidenceInterval | None:
    if interval is None or interval.confidence_basis_points:
        return interval
    return replace(interval, confidence_basis_points=_DEFAULT_CONFIDENCE)


def subject_of(result: EvaluationResult, report_dataset: EvaluationDataset | None) -> tuple[object, ...]:
    """Returns what a result is about: two results with the same one are two values of the same thing."""
    dataset = result.dataset or report_dataset
    return (
        result.metric,
        frozenset(result.slice.items()),
        result.form or Form.ABSOLUTE,
        result.relative_to,
        frozenset(result.conditions.items()),
        frozenset(result.at.items()),
        None if dataset is None else (dataset.name, dataset.version),
        result.method,
    )


def _unique_results(wrong: Violations, report: EvaluationReport) -> None:
    seen: dict[tuple[object, ...], int] = {}
    for index, result in enumerate(report.results[:MAX_RESULTS]):
        first = seen.setdefault(subject_of(result, report.dataset), index)
        same = f"is about the same as results[{first}]; tell them apart by slice, conditions or at"
        wrong.expect(first == index, f"results[{index}]", same)


def _result(wrong: Violations, result: EvaluationResult) -> None:
    wrong.expect(names.is_id(result.metric), "metric", names.ID_EXPECTATION)
    check_words(wrong, result.slice, "slice", 10, least=1)
    check_words(wrong, result.conditions, "conditions", 20)
    check_numbers(wrong, result.at, "at", 10)
    wrong.text(result.unit, "unit", 50)
    _value(wrong, result)
    wrong.expect(result.sample_size >= 0, "sample_size", "must be 0 (not known) or more")
    _interval(wrong, result.interval)
    _change(wrong, result)
    _comparators(wrong, result.comparators)
    _grades(wrong, result.grades)
    _dataset(wrong, result.dataset)
    if result.offline_estimate is not None:
        _offline(wrong.below("offline_estimate"), result.offline_estimate)
    if result.online_experiment is not None:
        _online(wrong.below("online_experiment"), result.online_experiment)
    if result.human_rating is not None:
        _human(wrong.below("human_rating"), result.human_rating)


def _value(wrong: Violations, result: EvaluationResult) -> None:
    for name in ("value", "lowest", "highest", "target"):
        number = getattr(result, name)
        wrong.expect(number is None or math.isfinite(number), name, "must be a finite number")
    lowest = -math.inf if result.lowest is None else result.lowest
    highest = math.inf if result.highest is None else result.highest
    wrong.expect(not lowest > highest, "highest", "must not be below lowest")
    lowest = min(lowest, highest)
    within = f"must be within lowest to highest, {lowest:g} to {highest:g}"
    wrong.expect(not (result.value < lowest or result.value > highest), "value", within)
    wrong.expect(result.direction is not None, "direction", "is required: which values are good")
    if result.direction is Direction.CLOSE_TO_TARGET:
        wrong.expect(result.target is not None, "target", "is required with CLOSE_TO_TARGET: the best value")
        reachable = result.target is None or not (result.target < lowest or result.target > highest)
        wrong.expect(reachable, "target", within)
    else:
        wrong.expect(result.target is None, "target", "goes with CLOSE_TO_TARGET only")


def _change(wrong: Violations, result: EvaluationResult) -> None:
    if result.form in (None, Form.ABSOLUTE):
        said = "goes with the forms DIFFERENCE and RATIO; state the form"
        wrong.expect(not result.relative_to, "relative_to", said)
    else:
        wrong.text(result.relative_to, "relative_to", MAX_TEXT, least=1)


def _interval(wrong: Violations, interval: ConfidenceInterval | None) -> None:
    if interval is None:
        return
    finite = math.isfinite(interval.low) and math.isfinite(interval.high)
    wrong.expect(finite and interval.low <= interval.high, "interval", "must have finite ends with low <= high")
    is_confidence = 0 <= interval.confidence_basis_points < 10_000
    said = "must be 1 to 9,999, or 0 for 9,500 (95 %)"
    wrong.expect(is_confidence, "interval.confidence_basis_points", said)


def _comparators(wrong: Violations, comparators: Sequence[Comparator]) -> None:
    wrong.count(comparators, "comparators", MAX_COMPARATORS)
    for index, each in enumerate(comparators[:MAX_COMPARATORS]):
        below = wrong.below(f"comparators[{index}]")
        below.text(each.name, "name", MAX_TEXT, least=1)
        below.expect(math.isfinite(each.value), "value", "must be a finite number")
        _interval(below, each.interval)
    wrong.unique([each.name for each in comparators[:MAX_COMPARATORS]], "comparators", ".name")
    wrong.unique([each.model for each in comparators[:MAX_COMPARATORS] if each.model], "comparators", ".model")


def _grades(wrong: Violations, grades: Sequence[Grade]) -> None:
    wrong.count(grades, "grades", MAX_GRADES)
    for index, grade in enumerate(grades[:MAX_GRADES]):
        below = wrong.below(f"grades[{index}]")
        below.text(grade.label, "label", MAX_TEXT, least=1)
        below.expect(math.isfinite(grade.rank), "rank", "must be a finite number")
        below.expect(grade.count >= 0, "count", "must be 0 or more")
    wrong.unique([grade.label for grade in grades[:MAX_GRADES]], "grades", ".label")


def _dataset(wrong: Violations, dataset: EvaluationDataset | None) -> None:
    if dataset is not None:
        wrong.text(dataset.name, "dataset.name", MAX_TEXT)
        wrong.text(dataset.uri, "dataset.uri", MAX_URI)
        wrong.text(dataset.version, "dataset.version", MAX_TEXT)


def _offline(wrong: Violations, estimate: OfflineEstimate) -> None:
    wrong.text(estimate.estimator, "estimator", MAX_TEXT, least=1)
    wrong.text(estimate.logging_policy, "logging_policy", MAX_TEXT, least=1)
    size, clip = estimate.effective_sample_size, estimate.weight_clip
    is_size = math.isfinite(size) and size >= 0
    wrong.expect(is_size, "effective_sample_size", "must be 0 (not known) or more")
    is_clip = clip is None or (math.isfinite(clip) and clip > 0)
    wrong.expect(is_clip, "weight_clip", "must be more than 0, or unset where no weight was cut")


def _online(wrong: Violations, online: OnlineExperiment) -> None:
    wrong.text(online.experiment, "experiment", MAX_TEXT, least=1)
    wrong.text(online.control, "control", MAX_TEXT)
    ordered = online.start_time is None or online.end_time is None or online.start_time <= online.end_time
    wrong.expect(ordered, "end_time", "must not be before start_time")
    wrong.expect(online.exposed_units >= 0, "exposed_units", "must be 0 (not known) or more")


def _human(wrong: Violations, rating: HumanRating) -> None:
    wrong.expect(rating.raters >= 0, "raters", "must be 0 (not known) or more")
    per_item = rating.ratings_per_item
    is_count = math.isfinite(per_item) and per_item >= 0
    wrong.expect(is_count, "ratings_per_item", "must be 0 (not known) or more")
    is_scale = math.isfinite(rating.scale_low) and math.isfinite(rating.scale_high)
    ordered = is_scale and rating.scale_low <= rating.scale_high
    wrong.expect(ordered, "scale_high", "must be finite and not below scale_low")
    agreed = rating.agreement is None or math.isfinite(rating.agreement)
    wrong.expect(agreed, "agreement", "must be a finite number")
    wrong.text(rating.agreement_metric, "agreement_metric", MAX_TEXT)
    wrong.text(rating.rubric, "rubric", MAX_PROSE)


def check_assessment(assessment: RiskAssessment, now: datetime) -> RiskAssessment:
    """Returns the assessment, defaults and products written out, if its fields are right. Raises InvalidFields."""
    wrong = Violations("risk_assessment")
    levels = assessment.levels or _DEFAULT_LEVELS
    wrong.text(assessment.description, "description", MAX_PROSE)
    wrong.text(assessment.assessor, "assessor", MAX_TEXT, least=1)
    _times(wrong, assessment.assess_time, assessment.expire_time, now, "assess_time")
    wrong.expect(2 <= levels <= 10, "levels", f"must be 2 to 10, or 0 for {_DEFAULT_LEVELS}")
    _links(wrong, assessment.links)
    count = f"must have 1 to {MAX_RISKS} entries, it has {len(assessment.risks):,}"
    wrong.expect(1 <= len(assessment.risks) <= MAX_RISKS, "risks", count)
    for index, risk in enumerate(assessment.risks[:MAX_RISKS]):
        _risk(wrong.below(f"risks[{index}]"), risk, levels, now)
    wrong.raise_if_any()
    return replace(assessment, levels=levels, risks=tuple(map(complete_risk, assessment.risks)))


def complete_risk(risk: Risk) -> Risk:
    """Returns a risk with its defaults written out and its products."""
    likelihood = risk.residual_likelihood or risk.likelihood
    severity = risk.residual_severity or risk.severity
    return replace(
        risk,
        inherent=risk.likelihood * risk.severity,
        residual_likelihood=likelihood,
        residual_severity=severity,
        residual=likelihood * severity,
    )


def _risk(wrong: Violations, risk: Risk, levels: int, now: datetime) -> None:
    wrong.text(risk.event, "event", MAX_PROSE, least=1)
    wrong.text(risk.stakeholder, "stakeholder", MAX_TEXT, least=1)
    wrong.expect(names.is_id(risk.dimension), "dimension", names.ID_EXPECTATION)
    for name in ("likelihood", "severity"):
        level = f"must be 1 (least) to {levels}, the levels of the assessment"
        wrong.expect(1 <= getattr(risk, name) <= levels, name, level)
        after = f"must be 1 (least) to {levels}, or 0 where it is as {name}"
        wrong.expect(0 <= getattr(risk, f"residual_{name}") <= levels, f"residual_{name}", after)
    wrong.count(risk.mitigations, "mitigations", 50)
    for index, mitigation in enumerate(risk.mitigations[:50]):
        wrong.text(mitigation, f"mitigations[{index}]", MAX_PROSE, least=1)
    wrong.text(risk.assessor, "assessor", MAX_TEXT)
    _not_ahead(wrong, risk.assess_time, now, "assess_time")


def _times(wrong: Violations, made: datetime | None, expires: datetime | None, now: datetime, field: str) -> None:
    wrong.expect(made is not None, field, "is required")
    _not_ahead(wrong, made, now, field)
    later = made is None or expires is None or made < expires
    wrong.expect(later, "expire_time", f"must be after {field}")


def _not_ahead(wrong: Violations, moment: datetime | None, now: datetime, path: str) -> None:
    in_time = moment is None or moment <= now + MAX_AHEAD
    wrong.expect(in_time, path, "must not be more than 5 min in the future; set the clock right")


def _links(wrong: Violations, links: Sequence[str]) -> None:
    wrong.count(links, "links", MAX_LINKS)
    for index, link in enumerate(links[:MAX_LINKS]):
        wrong.text(link, f"links[{index}]", MAX_URI, least=1)
