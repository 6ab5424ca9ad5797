"""The judge: criteria against evidence. Pure, so that it can be replayed on any past span.

An interval wholly outside its range is a FAIL however few positives it rests on; a value inside is a PASS with at least
the demanded positives; all else is INCONCLUSIVE, and says what is missing.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleetd.stability.domain import shortfall
from modelfleetd.stability.domain import words as say
from modelfleetd.stability.domain.criteria import Criterion, Limits
from modelfleetd.stability.domain.estimates import Estimate, entropy_ratio, expected_count
from modelfleetd.stability.domain.maturity import mature_before, matures_at, moment_of
from modelfleetd.stability.domain.points import Evidence, Point, Span, make_point, rate_per_second
from modelfleetd.stability.domain.sums import Sums


class Verdict(enum.Enum):
    """What a check found."""

    PASS = 1
    FAIL = 2
    INCONCLUSIVE = 3


class Metric(enum.Enum):
    """What was looked at."""

    CALIBRATION = 1
    NE = 2
    NE_REGRESSION = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One criterion against the evidence."""

    prediction: str
    metric: Metric
    verdict: Verdict
    candidate: Point
    baseline: Point | None
    explanation: str
    missing_positives: int = 0
    expected_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judge found."""

    verdict: Verdict
    explanation: str
    findings: tuple[Finding, ...]
    start_time: datetime
    end_time: datetime


@dataclass(frozen=True, slots=True)
class Case:
    """All that a judgement of one prediction rests on."""

    criterion: Criterion
    window: timedelta  # the attribution window of the prediction
    span: Span
    now: datetime
    candidate: Evidence
    baseline: Evidence | None = None

    @property
    def calibrated_on(self) -> Sums:
        """What calibration is judged on: matured events, unless immature ones are included."""
        return self.candidate.total if self.criterion.include_immature else self.candidate.matured

    def point(self, evidence: Evidence, metric: Metric) -> Point:
        immature = metric is Metric.CALIBRATION and self.criterion.include_immature
        return make_point(
            self.span,
            evidence,
            confidence=self.criterion.confidence,
            mature_before=mature_before(self.now, self.window),
            matured_only=not immature,
        )


def judge(cases: Sequence[Case], span: Span) -> Judgement:
    """Returns FAIL where any finding fails, else INCONCLUSIVE where any is or there is none, else PASS."""
    findings = tuple(finding for case in cases for finding in _findings(case))
    by_verdict = {verdict: [f for f in findings if f.verdict is verdict] for verdict in Verdict}
    verdict = next((v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE) if by_verdict[v]), Verdict.PASS)
    decisive = by_verdict[verdict]
    explanation = say.conclusion([f.explanation for f in decisive], len(findings))
    return Judgement(verdict, explanation, findings, span.start_time, span.end_time)


def _findings(case: Case) -> list[Finding]:
    criterion, found = case.criterion, []
    if criterion.calibration is not None:
        found.append(_judge_calibration(case, criterion.calibration))
    if criterion.ne is not None:
        found.append(_judge_entropy(case, criterion.ne))
    if criterion.max_ne_regression and case.baseline is not None:
        found.append(_judge_regression(case, case.baseline))
    return found


def _judge_calibration(case: Case, limits: Limits) -> Finding:
    sums, criterion = case.calibrated_on, case.criterion
    point = case.point(case.candidate, Metric.CALIBRATION)
    estimate, subject = point.calibration, say.subject(criterion.prediction, "calibration")
    if not sums.observed and sums.examples:
        seen = say.no_positive(criterion.prediction, sums.examples, expected_count(sums))
        if estimate.low > limits.high:
            text = say.overpredicting(seen, estimate.low, limits, criterion.confidence)
            return _finding(case, Metric.CALIBRATION, Verdict.FAIL, text)
        return _inconclusive(case, Metric.CALIBRATION, sums, seen, criterion.min_positives)
    if not estimate.known:
        return _inconclusive(case, Metric.CALIBRATION, sums, say.no_example(subject), criterion.min_positives)
    text = say.measured(subject, estimate, criterion.confidence, point)
    verdict = _compare(estimate, limits, sums.effective_positives >= criterion.min_positives)
    if verdict is not Verdict.INCONCLUSIVE:
        return _finding(case, Metric.CALIBRATION, verdict, f"{text}, {say.position(estimate, limits)}")
    missing = _missing(sums, estimate, limits, criterion, rare=True)
    return _inconclusive(case, Metric.CALIBRATION, sums, f"{text}, {say.position(estimate, limits)}", missing)


def _judge_entropy(case: Case, limits: Limits) -> Finding:
    sums, criterion = case.candidate.matured, case.criterion
    point = case.point(case.candidate, Metric.NE)
    estimate, subject = point.ne, say.subject(criterion.prediction, "NE")
    if not estimate.known:
        seen = say.equal_labels(subject, point) if sums.examples else say.no_example(subject)
        return _inconclusive(case, Metric.NE, sums, seen, shortfall.for_pass(sums, criterion.min_positives))
    text = f"{say.measured(subject, estimate, criterion.confidence, point)}, {say.position(estimate, limits)}"
    verdict = _compare(estimate, limits, sums.effective_positives >= criterion.min_positives)
    if verdict is not Verdict.INCONCLUSIVE:
        return _finding(case, Metric.NE, verdict, text)
    return _inconclusive(case, Metric.NE, sums, text, _missing(sums, estimate, limits, criterion, rare=False))


def _judge_regression(case: Case, baseline: Evidence) -> Finding:
    sums, criterion = case.candidate.matured, case.criterion
    ratio = entropy_ratio(sums, baseline.matured, criterion.confidence)
    subject = say.subject(criterion.prediction, "NE")
    ours, theirs = case.point(case.candidate, Metric.NE), case.point(baseline, Metric.NE)
    if not ratio.known:
        seen = say.not_comparable(subject, ours, theirs)
        return _inconclusive(case, Metric.NE_REGRESSION, sums, seen, shortfall.for_pass(sums, criterion.min_positives))
    limits = Limits(0.0, 1.0 + criterion.max_ne_regression)
    text = say.compared(subject, ours, theirs, ratio, criterion.confidence, criterion.max_ne_regression)
    fewest = min(sums.effective_positives, baseline.matured.effective_positives)
    verdict = _compare(ratio, limits, fewest >= criterion.min_positives)
    if verdict is not Verdict.INCONCLUSIVE:
        return _finding(case, Metric.NE_REGRESSION, verdict, text)
    if fewest < sums.effective_positives and ratio.value <= limits.high:
        missing: int | None = shortfall.for_pass(baseline.matured, criterion.min_positives)
        return _inconclusive(case, Metric.NE_REGRESSION, baseline.matured, text, missing, of="the baseline")
    missing = _missing(sums, ratio, limits, criterion, rare=False)
    return _inconclusive(case, Metric.NE_REGRESSION, sums, text, missing)


def _compare(estimate: Estimate, limits: Limits, enough: bool) -> Verdict:
    if estimate.low > limits.high or estimate.high < limits.low:
        return Verdict.FAIL
    return Verdict.PASS if enough and limits.low <= estimate.value <= limits.high else Verdict.INCONCLUSIVE


def _missing(sums: Sums, estimate: Estimate, limits: Limits, criterion: Criterion, *, rare: bool) -> int | None:
    if limits.low <= estimate.value <= limits.high:
        return shortfall.for_pass(sums, criterion.min_positives)
    if rare:
        return shortfall.for_calibration(sums, estimate, limits, criterion.confidence)
    return shortfall.for_normal(sums, estimate, limits)


def _finding(case: Case, metric: Metric, verdict: Verdict, text: str) -> Finding:
    baseline = None if case.baseline is None else case.point(case.baseline, metric)
    candidate = case.point(case.candidate, metric)
    return Finding(case.criterion.prediction, metric, verdict, candidate, baseline, f"{text}.")


def _inconclusive(case: Case, metric: Metric, sums: Sums, text: str, missing: int | None, of: str = "it") -> Finding:
    """Returns a finding that says how many positives are missing and when they can be expected."""
    expected = None if missing is None else _expected(case, sums, missing)
    immature = metric is Metric.CALIBRATION and case.criterion.include_immature
    waiting = 0 if immature else case.candidate.waiting.examples
    needs = say.needs(missing, expected, case.now, of)
    plain = _finding(case, metric, Verdict.INCONCLUSIVE, text)
    return Finding(
        plain.prediction,
        metric,
        Verdict.INCONCLUSIVE,
        plain.candidate,
        plain.baseline,
        f"{text}; {needs}{say.still_waiting(waiting, _first_maturity(case))}.",
        missing or 0,
        expected,
    )


def _expected(case: Case, sums: Sums, missing: int) -> datetime | None:
    """Returns when that many more positives will have come at the present rate."""
    if case.span.end_time <= case.now:
        # No event can be added to a span in the past; all that may still come is labels.
        return _first_maturity(case)
    # What waits is missing among the positives, so the time that it came in is left out too.
    is_complete = case.criterion.include_immature or not case.candidate.waiting.examples
    complete = case.now if is_complete else moment_of(mature_before(case.now, case.window))
    rate = rate_per_second(sums.positives.n, case.span, complete)
    if not rate:
        return _first_maturity(case)
    return case.now + timedelta(seconds=missing / rate)


def _first_maturity(case: Case) -> datetime | None:
    first = case.candidate.first_waiting
    return None if first is None else matures_at(first, case.window)
