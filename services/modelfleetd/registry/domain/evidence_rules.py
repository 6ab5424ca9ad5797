"""What evidence says about a model, rule by rule. No verdict from silence: what is missing or expired never passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from modelfleetd.registry.domain.evidence import Direction, EvaluationResult, EvidenceRule, Form, Risk, RiskAssessment
from modelfleetd.registry.domain.evidence_checks import subject_of
from modelfleetd.registry.domain.evidence_verdicts import Evidence, Finding, Judgement, Lack, Opinion, Row, Verdict
from modelfleetd.registry.domain.evidence_words import lacking, risk_told, short, subject, told

MAX_ROWS: Final = 20
# Sums and differences of decimal figures are off by less than this: 0.81 - 0.80 is no more than 0.01.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class _Judged:
    """A row with what it lacks, if anything, and how far it is from failing: the less, the worse."""

    row: Row
    margin: float
    lack: Lack | None = None


def judge(
    rules: Sequence[EvidenceRule], evidence: Evidence, baseline: str, baselines: Evidence, now: datetime
) -> Opinion:
    """Judges a model by its evidence.

    Args:
        rules: that it has to keep to, checked.
        evidence: of the model.
        baseline: the name of the model that "the baseline" means; empty where there is none.
        baselines: evidence of the baseline.
        now: decides what has expired.
    """
    reports = _by_metric(evidence.findings)
    against = _Baseline(baseline, _by_metric(baselines.findings))
    judgements = tuple(
        _judge_results(rule, reports.get(rule.metric, ()), against, now)
        if rule.max_residual_risk is None
        else _judge_risks(rule, rule.max_residual_risk, evidence.assessments, now)
        for rule in rules
    )
    failed = [each.rule for each in judgements if each.verdict is Verdict.FAIL]
    without = [each.rule for each in judgements if each.verdict is Verdict.INCONCLUSIVE]
    verdict = Verdict.FAIL if failed else Verdict.INCONCLUSIVE if without else Verdict.PASS
    if not rules:
        explanation = "No rules: nothing is asked of the evidence. Rules are evidence_rules of the model type."
    elif verdict is Verdict.PASS:
        explanation = "The only rule passes." if len(rules) == 1 else f"All {len(rules)} rules pass."
    else:
        parts = [f"fails {', '.join(failed)}"] if failed else []
        parts += [f"lacks evidence for {', '.join(without)}"] if without else []
        explanation = f"Of {len(rules)} rule{'s' if len(rules) > 1 else ''} it {' and '.join(parts)}."
    return Opinion(verdict=verdict, explanation=explanation, judgements=judgements)


def metrics_of(rules: Iterable[EvidenceRule]) -> frozenset[str]:
    """Returns the metrics that rules are about: results of others need not be read."""
    return frozenset(rule.metric for rule in rules if rule.metric)


def compares(rule: EvidenceRule) -> bool:
    """Says whether a rule compares with the baseline."""
    return rule.max_loss_to_baseline is not None or rule.max_relative_loss_to_baseline is not None


def _by_metric(findings: Iterable[Finding]) -> Mapping[str, Sequence[Sequence[Finding]]]:
    """Returns the findings of each metric, report by report, the newest report first."""
    found: dict[str, dict[str, list[Finding]]] = {}
    for each in findings:
        found.setdefault(each.result.metric, {}).setdefault(each.report.name, []).append(each)
    return {metric: sorted(reports.values(), key=_age, reverse=True) for metric, reports in found.items()}


def _age(findings: Sequence[Finding]) -> tuple[datetime, str]:
    report = findings[0].report
    return _moment(report.evaluate_time), report.name


class _Baseline:
    """What rules compare with."""

    def __init__(self, name: str, reports: Mapping[str, Sequence[Sequence[Finding]]]) -> None:
        self._name = name
        newest: dict[tuple[object, ...], Finding] = {}
        for findings in (each for of_metric in reports.values() for each in of_metric):
            for finding in findings:
                newest.setdefault(_comparable(finding), finding)
        self._newest = newest

    def value(self, finding: Finding, now: datetime) -> float | Lack:
        """Returns the baseline's value of the same thing, or what is lacking.

        Its own newest result counts. Where that has expired, nothing else takes its place: expiry would make a loss
        look smaller otherwise.
        """
        if not self._name:
            return Lack.NO_BASELINE
        own = self._newest.get(_comparable(finding))
        if own is not None:
            expires = own.report.expire_time
            return Lack.EXPIRED if expires is not None and expires <= now else own.result.value
        for comparator in finding.result.comparators:
            if comparator.model == self._name:
                return comparator.value
        return Lack.NO_BASELINE


def _judge_results(
    rule: EvidenceRule, reports: Sequence[Sequence[Finding]], baseline: _Baseline, now: datetime
) -> Judgement:
    matching = ([each for each in findings if _is_about(rule, each)] for findings in reports)
    found = next((findings for findings in matching if findings), [])
    if not found:
        return _without(rule, Lack.MISSING, f"There is no result of {subject(rule)}.")
    report = found[0].report
    if _has_expired(rule, report.evaluate_time, report.expire_time, now):
        said = f"The newest result of {subject(rule)}, in {short(report.name)}, has expired or is too old."
        return _without(rule, Lack.EXPIRED, said, [_row(each) for each in found])
    return _verdict(rule, [_judge_finding(rule, each, baseline, now) for each in found])


def _is_about(rule: EvidenceRule, finding: Finding) -> bool:
    report, result = finding.report, finding.result
    if result.metric != rule.metric or (rule.suite and report.suite != rule.suite):
        return False
    if rule.worst_slice_by:
        if set(result.slice) != {rule.worst_slice_by}:
            return False
    elif result.slice != rule.slice:
        return False
    evaluator = None if report.evaluator is None else report.evaluator.kind
    return (
        (result.form or Form.ABSOLUTE) is (rule.form or Form.ABSOLUTE)
        and (not rule.evaluators or evaluator in rule.evaluators)
        and (rule.method is None or result.method is rule.method)
        and rule.conditions.items() <= result.conditions.items()
        and rule.at.items() <= result.at.items()
    )


def _judge_finding(rule: EvidenceRule, finding: Finding, baseline: _Baseline, now: datetime) -> _Judged:
    result = finding.result
    if rule.min_sample_size > result.sample_size:
        return _Judged(_row(finding), math.inf, Lack.TOO_FEW_SAMPLES)
    if rule.conservative and result.interval is None:
        return _Judged(_row(finding), math.inf, Lack.NO_INTERVAL)
    low, high = _ends(rule, result)
    if rule.minimum is not None:
        return _held(finding, low, rule.minimum, low - rule.minimum)
    if rule.maximum is not None:
        return _held(finding, high, rule.maximum, rule.maximum - high)
    badness = _badness(result)
    if badness is None or (rule.max_distance_to_target is not None and result.target is None):
        return _Judged(_row(finding), math.inf, Lack.NO_TARGET)
    worst = max(badness(low), badness(high))
    if rule.max_distance_to_target is not None:
        return _held(finding, worst, rule.max_distance_to_target, rule.max_distance_to_target - worst)
    other = baseline.value(finding, now)
    if isinstance(other, Lack):
        return _Judged(_row(finding), math.inf, other)
    loss, bound = worst - badness(other), rule.max_loss_to_baseline
    if bound is None:
        # As a part of the baseline's value; of a baseline of 0 no part is anything.
        loss, bound = loss / (abs(other) or 1.0), (rule.max_relative_loss_to_baseline or 0.0) if other else 0.0
    return _held(finding, loss, bound, bound - loss, other)


def _ends(rule: EvidenceRule, result: EvaluationResult) -> tuple[float, float]:
    """Returns what counts as the value at the least and at the most."""
    if rule.conservative and result.interval is not None:
        # An interval that misses the value (as percentiles of a bootstrap may) makes nothing better than the value.
        return min(result.interval.low, result.value), max(result.interval.high, result.value)
    return result.value, result.value


def _badness(result: EvaluationResult) -> Callable[[float], float] | None:
    """Returns how bad a value of this metric is, in its unit: the less, the better. None where there is no target."""
    if result.direction is Direction.HIGHER_IS_BETTER:
        return lambda value: -value
    if result.direction is Direction.LOWER_IS_BETTER:
        return lambda value: value
    target = result.target
    return None if target is None else lambda value: abs(value - target)


def _comparable(finding: Finding) -> tuple[object, ...]:
    report, result = finding.report, finding.result
    return (report.suite, report.suite_version, result.unit, result.target, *subject_of(result, report.dataset))


def _held(finding: Finding, judged: float, bound: float, margin: float, baseline: float | None = None) -> _Judged:
    holds = margin >= -_ROUNDING * max(1.0, abs(bound))
    verdict = Verdict.PASS if holds else Verdict.FAIL
    return _Judged(_row(finding, judged=judged, bound=bound, baseline=baseline, verdict=verdict), margin)


def _verdict(rule: EvidenceRule, judged: Sequence[_Judged]) -> Judgement:
    """Returns what the rows say together: the worst one decides, and nothing passes while something is lacking."""
    ordered = sorted(judged, key=lambda each: (_order(each), each.margin, each.row.index))
    rows = tuple(each.row for each in ordered[:MAX_ROWS])
    worst = ordered[0]
    slices = {each.row.slice.get(rule.worst_slice_by, "") for each in judged}
    missing = [value for value in rule.expected_slices if value not in slices]
    if worst.row.verdict is Verdict.FAIL:
        return Judgement(rule=rule.id, verdict=Verdict.FAIL, explanation=told(rule, worst.row, len(judged)), rows=rows)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        said = f"{short(worst.row.source)} has no result of {rule.metric} for {rule.worst_slice_by} {shown}."
        return _without(rule, Lack.MISSING_SLICES, said, rows)
    if worst.lack is not None:
        return _without(rule, worst.lack, lacking(rule, worst.row, worst.lack), rows)
    return Judgement(rule=rule.id, verdict=Verdict.PASS, explanation=told(rule, worst.row, len(judged)), rows=rows)


def _order(judged: _Judged) -> int:
    return 0 if judged.row.verdict is Verdict.FAIL else 1 if judged.lack is not None else 2


def _judge_risks(rule: EvidenceRule, bound: int, assessments: Sequence[RiskAssessment], now: datetime) -> Judgement:
    about = f"risks in {rule.dimension}" if rule.dimension else "risks"
    covering = [each for each in assessments if any(_counts(rule, risk) for risk in each.risks)]
    if not covering:
        return _without(rule, Lack.MISSING, f"There is no assessment of {about}.")
    newest = max(covering, key=lambda each: (_moment(each.assess_time), each.name))
    judged = [
        _judge_risk(rule, bound, newest, index, now) for index, risk in enumerate(newest.risks) if _counts(rule, risk)
    ]
    ordered = sorted(judged, key=lambda each: (_order(each), each.margin, each.row.index))
    rows, worst = tuple(each.row for each in ordered[:MAX_ROWS]), ordered[0]
    if worst.lack is not None:
        said = f"{short(newest.name)}, the newest assessment of {about}, or a row of it, has expired or is too old."
        return _without(rule, worst.lack, said, rows)
    said = risk_told(about, worst.row, len(judged))
    return Judgement(rule=rule.id, verdict=worst.row.verdict, explanation=said, rows=rows)


def _counts(rule: EvidenceRule, risk: Risk) -> bool:
    return not rule.dimension or risk.dimension == rule.dimension


def _judge_risk(rule: EvidenceRule, bound: int, assessment: RiskAssessment, index: int, now: datetime) -> _Judged:
    risk = assessment.risks[index]
    made = risk.assess_time or assessment.assess_time
    expired = _has_expired(rule, made, assessment.expire_time, now)
    row = Row(
        source=assessment.name,
        index=index,
        metric=risk.event,
        judged=risk.residual,
        bound=bound,
        time=made,
        expire_time=assessment.expire_time,
        value=risk.residual,
        verdict=Verdict.INCONCLUSIVE if expired else Verdict.PASS if risk.residual <= bound else Verdict.FAIL,
    )
    return _Judged(row, bound - risk.residual, Lack.EXPIRED if expired else None)


def _has_expired(rule: EvidenceRule, made: datetime | None, expires: datetime | None, now: datetime) -> bool:
    too_old = rule.max_age is not None and now - _moment(made) >= rule.max_age
    return too_old or (expires is not None and expires <= now)


def _moment(made: datetime | None) -> datetime:
    if made is None:
        raise ValueError("evidence without its time was not checked")
    return made


def _row(
    finding: Finding,
    *,
    judged: float = 0.0,
    bound: float = 0.0,
    baseline: float | None = None,
    verdict: Verdict = Verdict.INCONCLUSIVE,
) -> Row:
    report, result = finding.report, finding.result
    return Row(
        source=report.name,
        index=finding.index,
        metric=result.metric,
        slice=result.slice,
        judged=judged,
        bound=bound,
        baseline=baseline,
        time=report.evaluate_time,
        expire_time=report.expire_time,
        value=result.value,
        unit=result.unit,
        target=result.target,
        sample_size=result.sample_size,
        verdict=verdict,
    )


def _without(rule: EvidenceRule, lack: Lack, said: str, rows: Sequence[Row] = ()) -> Judgement:
    return Judgement(
        rule=rule.id,
        verdict=Verdict.INCONCLUSIVE,
        explanation=said,
        lack=lack,
        rows=tuple(rows[:MAX_ROWS]),
    )
