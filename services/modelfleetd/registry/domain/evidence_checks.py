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
    Violations,
    check_numbers,
    check_words,
)

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
    _dataset(wrong, report.dataset, "dataset")
    _times(wrong, report.evaluate_time, report.expire_time, now, "evaluate_time")
    _links(wrong, report.links)
    check_words(wrong, report.labels, "labels", MAX_LABELS)
    count = f"must have 1 to {MAX_RESULTS:,} entries, there are {len(report.results):,}; split it by suite or slice"
    wrong.expect(1 <= len(report.results) <= MAX_RESULTS, "results", count)
    for index, result in enumerate(report.results[:MAX_RESULTS]):
        _result(wrong, result, f"results[{index}]")
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


def _result(wrong: Violations, result: EvaluationResult, path: str) -> None:
    wrong.expect(names.is_id(result.metric), f"{path}.metric", names.ID_EXPECTATION)
    check_words(wrong, result.slice, f"{path}.slice", 10, least=1)
    check_words(wrong, result.conditions, f"{path}.conditions", 20)
    check_numbers(wrong, result.at, f"{path}.at", 10)
    wrong.text(result.unit, f"{path}.unit", 50)
    _value(wrong, result, path)
    wrong.expect(result.sample_size >= 0, f"{path}.sample_size", "must be 0 (not known) or more")
    _interval(wrong, result.interval, f"{path}.interval")
    _change(wrong, result, path)
    _comparators(wrong, result.comparators, f"{path}.comparators")
    _grades(wrong, result.grades, f"{path}.grades")
    _dataset(wrong, result.dataset, f"{path}.dataset")
    _offline(wrong, result.offline_estimate, f"{path}.offline_estimate")
    _online(wrong, result.online_experiment, f"{path}.online_experiment")
    _human(wrong, result.human_rating, f"{path}.human_rating")


def _value(wrong: Violations, result: EvaluationResult, path: str) -> None:
    for name in ("value", "lowest", "highest", "target"):
        number = getattr(result, name)
        wrong.expect(number is None or math.isfinite(number), f"{path}.{name}", "must be a finite number")
    lowest = -math.inf if result.lowest is None else result.lowest
    highest = math.inf if result.highest is None else result.highest
    wrong.expect(not lowest > highest, f"{path}.highest", "must not be below lowest")
    lowest = min(lowest, highest)
    within = f"must be within lowest to highest, {lowest:g} to {highest:g}"
    wrong.expect(not (result.value < lowest or result.value > highest), f"{path}.value", within)
    wrong.expect(result.direction is not None, f"{path}.direction", "is required: which values are good")
    if result.direction is Direction.CLOSE_TO_TARGET:
        wrong.expect(result.target is not None, f"{path}.target", "is required with CLOSE_TO_TARGET: the best value")
        reachable = result.target is None or not (result.target < lowest or result.target > highest)
        wrong.expect(reachable, f"{path}.target", within)
    else:
        wrong.expect(result.target is None, f"{path}.target", "goes with CLOSE_TO_TARGET only")


def _change(wrong: Violations, result: EvaluationResult, path: str) -> None:
    if result.form in (None, Form.ABSOLUTE):
        said = "goes with the forms DIFFERENCE and RATIO; state the form"
        wrong.expect(not result.relative_to, f"{path}.relative_to", said)
    else:
        wrong.text(result.relative_to, f"{path}.relative_to", MAX_TEXT, least=1)


def _interval(wrong: Violations, interval: ConfidenceInterval | None, path: str) -> None:
    if interval is None:
        return
    finite = math.isfinite(interval.low) and math.isfinite(interval.high)
    wrong.expect(finite and interval.low <= interval.high, path, "must have finite ends with low <= high")
    is_confidence = 0 <= interval.confidence_basis_points < 10_000
    wrong.expect(is_confidence, f"{path}.confidence_basis_points", "must be 1 to 9,999, or 0 for 9,500 (95 %)")


def _comparators(wrong: Violations, comparators: Sequence[Comparator], path: str) -> None:
    wrong.count(comparators, path, MAX_COMPARATORS)
    for index, each in enumerate(comparators[:MAX_COMPARATORS]):
        wrong.text(each.name, f"{path}[{index}].name", MAX_TEXT, least=1)
        wrong.expect(math.isfinite(each.value), f"{path}[{index}].value", "must be a finite number")
        _interval(wrong, each.interval, f"{path}[{index}].interval")
    wrong.unique([each.name for each in comparators[:MAX_COMPARATORS]], path, ".name")
    wrong.unique([each.model for each in comparators[:MAX_COMPARATORS] if each.model], path, ".model")


def _grades(wrong: Violations, grades: Sequence[Grade], path: str) -> None:
    wrong.count(grades, path, MAX_GRADES)
    for index, grade in enumerate(grades[:MAX_GRADES]):
        wrong.text(grade.label, f"{path}[{index}].label", MAX_TEXT, least=1)
        wrong.expect(math.isfinite(grade.rank), f"{path}[{index}].rank", "must be a finite number")
        wrong.expect(grade.count >= 0, f"{path}[{index}].count", "must be 0 or more")
    wrong.unique([grade.label for grade in grades[:MAX_GRADES]], path, ".label")


def _dataset(wrong: Violations, dataset: EvaluationDataset | None, path: str) -> None:
    if dataset is not None:
        wrong.text(dataset.name, f"{path}.name", MAX_TEXT)
        wrong.text(dataset.uri, f"{path}.uri", MAX_URI)
        wrong.text(dataset.version, f"{path}.version", MAX_TEXT)


def _offline(wrong: Violations, estimate: OfflineEstimate | None, path: str) -> None:
    if estimate is None:
        return
    wrong.text(estimate.estimator, f"{path}.estimator", MAX_TEXT, least=1)
    wrong.text(estimate.logging_policy, f"{path}.logging_policy", MAX_TEXT, least=1)
    size, clip = estimate.effective_sample_size, estimate.weight_clip
    is_size = math.isfinite(size) and size >= 0
    wrong.expect(is_size, f"{path}.effective_sample_size", "must be 0 (not known) or more")
    is_clip = clip is None or (math.isfinite(clip) and clip > 0)
    wrong.expect(is_clip, f"{path}.weight_clip", "must be more than 0, or unset where no weight was cut")


def _online(wrong: Violations, online: OnlineExperiment | None, path: str) -> None:
    if online is None:
        return
    wrong.text(online.experiment, f"{path}.experiment", MAX_TEXT, least=1)
    wrong.text(online.control, f"{path}.control", MAX_TEXT)
    ordered = online.start_time is None or online.end_time is None or online.start_time <= online.end_time
    wrong.expect(ordered, f"{path}.end_time", "must not be before start_time")
    wrong.expect(online.exposed_units >= 0, f"{path}.exposed_units", "must be 0 (not known) or more")


def _human(wrong: Violations, rating: HumanRating | None, path: str) -> None:
    if rating is None:
        return
    wrong.expect(rating.raters >= 0, f"{path}.raters", "must be 0 (not known) or more")
    per_item = rating.ratings_per_item
    is_count = math.isfinite(per_item) and per_item >= 0
    wrong.expect(is_count, f"{path}.ratings_per_item", "must be 0 (not known) or more")
    is_scale = math.isfinite(rating.scale_low) and math.isfinite(rating.scale_high)
    ordered = is_scale and rating.scale_low <= rating.scale_high
    wrong.expect(ordered, f"{path}.scale_high", "must be finite and not below scale_low")
    agreed = rating.agreement is None or math.isfinite(rating.agreement)
    wrong.expect(agreed, f"{path}.agreement", "must be a finite number")
    wrong.text(rating.agreement_metric, f"{path}.agreement_metric", MAX_TEXT)
    wrong.text(rating.rubric, f"{path}.rubric", MAX_PROSE)


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
        _risk(wrong, risk, levels, now, f"risks[{index}]")
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


def _risk(wrong: Violations, risk: Risk, levels: int, now: datetime, path: str) -> None:
    wrong.text(risk.event, f"{path}.event", MAX_PROSE, least=1)
    wrong.text(risk.stakeholder, f"{path}.stakeholder", MAX_TEXT, least=1)
    wrong.expect(names.is_id(risk.dimension), f"{path}.dimension", names.ID_EXPECTATION)
    for name in ("likelihood", "severity"):
        level = f"must be 1 (least) to {levels}, the levels of the assessment"
        wrong.expect(1 <= getattr(risk, name) <= levels, f"{path}.{name}", level)
        after = f"must be 1 (least) to {levels}, or 0 where it is as {name}"
        wrong.expect(0 <= getattr(risk, f"residual_{name}") <= levels, f"{path}.residual_{name}", after)
    wrong.count(risk.mitigations, f"{path}.mitigations", 50)
    for index, mitigation in enumerate(risk.mitigations[:50]):
        wrong.text(mitigation, f"{path}.mitigations[{index}]", MAX_PROSE, least=1)
    wrong.text(risk.assessor, f"{path}.assessor", MAX_TEXT)
    _not_ahead(wrong, risk.assess_time, now, f"{path}.assess_time")


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
