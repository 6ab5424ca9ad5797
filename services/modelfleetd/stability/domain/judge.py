"""The judge: criteria against evidence. Pure, so that it can be replayed on any past span.

An interval wholly outside its range is a FAIL however few positives it rests on; a value inside is a PASS with at least
the demanded positives; all else is INCONCLUSIVE, and says what is missing. Where most of what was sent cannot be right,
what is left is no fair sample, and the verdict is an ERROR.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.stability.domain import shortfall
from modelfleetd.stability.domain import words as say
from modelfleetd.stability.domain.criteria import ANYTHING, Criterion, Limits
from modelfleetd.stability.domain.estimates import Estimate, calibration_ratio, entropy_ratio, expected_count
from modelfleetd.stability.domain.maturity import mature_before, matures_at, moment_of
from modelfleetd.stability.domain.points import Evidence, Point, Span, make_point, rate_per_second
from modelfleetd.stability.domain.sums import NOTHING, Sums


class Verdict(enum.Enum):
    """What a check found."""

    PASS = 1
    FAIL = 2
    INCONCLUSIVE = 3
    ERROR = 4


# A finding of the first decides. What fails by fair evidence fails, whatever is wrong with other evidence.
_PRECEDENCE: Final = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS)


class Metric(enum.Enum):
    """What was looked at."""

    CALIBRATION = 1
    NE = 2
    NE_REGRESSION = 3
    CALIBRATION_DIFFERENCE = 4


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
class Comparison:
    """Matured evidence of both models, of the same minutes: those in which no example of either waits for its label."""

    span: Span
    candidate: Sums
    baseline: Sums


@dataclass(frozen=True, slots=True)
class Case:
    """All that a judgement of one prediction rests on."""

    criterion: Criterion
    window: timedelta  # the attribution window of the prediction
    span: Span
    now: datetime
    candidate: Evidence
    baseline: Evidence | None = None
    comparison: Comparison | None = None  # where the criterion demands anything in relation to the baseline

    @property
    def metrics(self) -> list[Metric]:
        """What the criterion demands."""
        wanted, compares = self.criterion, self.comparison is not None
        demanded = (
            (Metric.CALIBRATION, wanted.calibration is not None),
            (Metric.NE, wanted.ne is not None),
            (Metric.NE_REGRESSION, compares and wanted.max_ne_regression > 0.0),
            (Metric.CALIBRATION_DIFFERENCE, compares and wanted.max_calibration_difference > 0.0),
        )
        return [metric for metric, is_demanded in demanded if is_demanded]


def compare(
    criterion: Criterion, span: Span, before: int, candidate: Evidence, baseline: Evidence, settled: tuple[Sums, Sums]
) -> Comparison | None:
    """Returns what the two models are compared by; None where the criterion does not ask for it.

    Examples that came with their labels are mature at once, others once their labels have had their time. So that both
    sides are of the same minutes, where any example waits both go by the minutes before the first that is not mature.

    Args:
        criterion: what is demanded.
        span: of the evidence.
        before: the first minute that is not mature.
        candidate: all evidence of the candidate.
        baseline: all evidence of the baseline.
        settled: what there is of both, in this order, in the minutes before `before`.
    """
    if not criterion.compares:
        return None
    if candidate.first_waiting is None and baseline.first_waiting is None:
        return Comparison(span, candidate.matured, baseline.matured)
    return Comparison(Span(span.start, max(span.start, min(before, span.end))), *settled)


def judge(cases: Sequence[Case], span: Span) -> Judgement:
    """Returns the verdict of the finding that weighs most. Where nothing was demanded nothing passes."""
    findings = tuple(_judge(_asked(case, metric)) for case in cases for metric in case.metrics)
    by_verdict = {verdict: [f for f in findings if f.verdict is verdict] for verdict in _PRECEDENCE}
    verdict = next((verdict for verdict in _PRECEDENCE if by_verdict[verdict]), Verdict.INCONCLUSIVE)
    decisive = by_verdict[verdict]
    explanation = say.conclusion([f.explanation for f in decisive], len(findings))
    return Judgement(verdict, explanation, findings, span.start_time, span.end_time)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One thing that a criterion demands, and the evidence and numbers that decide it."""

    case: Case
    metric: Metric
    sums: Sums  # of the candidate: what is judged
    other: Sums | None  # of the baseline, where it is compared with
    ours: Point
    theirs: Point | None

    @property
    def subject(self) -> str:
        is_entropy = self.metric in {Metric.NE, Metric.NE_REGRESSION}
        return say.subject(self.case.criterion.prediction, "NE" if is_entropy else "calibration")


def _asked(case: Case, metric: Metric) -> _Asked:
    both = case.comparison
    if both is None or metric in {Metric.CALIBRATION, Metric.NE}:
        immature = metric is Metric.CALIBRATION and case.criterion.include_immature
        sums = case.candidate.total if immature else case.candidate.matured
        point = functools.partial(_point, case, case.span, immature=immature)
        theirs = None if case.baseline is None else point(case.baseline)
        return _Asked(case, metric, sums, None, point(case.candidate), theirs)
    point = functools.partial(_point, case, both.span)
    sides = (point(Evidence(both.candidate)), point(Evidence(both.baseline)))
    return _Asked(case, metric, both.candidate, both.baseline, *sides)


def _point(case: Case, span: Span, evidence: Evidence, *, immature: bool = False) -> Point:
    before = mature_before(case.now, case.window)
    confidence = case.criterion.confidence
    return make_point(span, evidence, confidence=confidence, mature_before=before, matured_only=not immature)


def _judge(asked: _Asked) -> Finding:
    case = asked.case
    sides = {"the candidate": case.candidate, "the baseline": case.baseline if asked.other else None}
    for who, evidence in sides.items():
        if evidence is not None and evidence.malformed > evidence.total.examples:
            text = say.unusable(case.criterion.prediction, who, evidence.malformed, evidence.total.examples)
            return _finding(asked, Verdict.ERROR, text)
    return _JUDGES[asked.metric](asked)


def _judge_calibration(asked: _Asked) -> Finding:
    sums, criterion, estimate = asked.sums, asked.case.criterion, asked.ours.calibration
    limits = criterion.calibration or ANYTHING
    if not sums.observed and sums.examples:
        seen = say.no_positive(criterion.prediction, sums.examples, expected_count(sums))
        if estimate.low > limits.high:
            text = say.overpredicting(seen, estimate.low, limits, criterion.confidence)
            return _finding(asked, Verdict.FAIL, text)
        return _inconclusive(asked, sums, seen, criterion.min_positives)
    if not estimate.known:
        return _inconclusive(asked, sums, say.no_example(asked.subject), criterion.min_positives)
    text = say.measured(asked.subject, estimate, criterion.confidence, asked.ours)
    return _compare(asked, estimate, limits, f"{text}, {say.position(estimate, limits)}")


def _judge_entropy(asked: _Asked) -> Finding:
    sums, criterion, estimate = asked.sums, asked.case.criterion, asked.ours.ne
    limits = criterion.ne or ANYTHING
    if not estimate.known:
        seen = say.equal_labels(asked.subject, asked.ours) if sums.examples else say.no_example(asked.subject)
        return _inconclusive(asked, sums, seen, shortfall.for_pass(sums, criterion.min_positives))
    text = say.measured(asked.subject, estimate, criterion.confidence, asked.ours)
    return _compare(asked, estimate, limits, f"{text}, {say.position(estimate, limits)}")


def _judge_regression(asked: _Asked) -> Finding:
    criterion, theirs = asked.case.criterion, asked.theirs or asked.ours
    most = criterion.max_ne_regression
    ratio = entropy_ratio(asked.sums, asked.other or NOTHING, criterion.confidence)
    if not ratio.known:
        seen = say.not_comparable(asked.subject, asked.ours, theirs)
        return _inconclusive(asked, asked.sums, seen, shortfall.for_pass(asked.sums, criterion.min_positives))
    values = (asked.ours.ne.value, theirs.ne.value)
    text = say.compared(asked.subject, values, ratio, criterion.confidence, f"at most +{say.percent(most)}")
    return _compare(asked, ratio, Limits(0.0, 1.0 + most), text)


def _judge_difference(asked: _Asked) -> Finding:
    criterion, theirs = asked.case.criterion, asked.theirs or asked.ours
    most = criterion.max_calibration_difference
    limits = Limits(1.0 / (1.0 + most), 1.0 + most)
    ratio = calibration_ratio(asked.sums, asked.other or NOTHING, criterion.confidence)
    if ratio.known:
        values = (asked.ours.calibration.value, theirs.calibration.value)
        text = say.compared(asked.subject, values, ratio, criterion.confidence, say.between(limits))
        return _compare(asked, ratio, limits, text)
    seen = say.not_comparable(asked.subject, asked.ours, theirs)
    if ratio.low > limits.high or 0.0 < ratio.high < limits.low:
        return _finding(asked, Verdict.FAIL, say.one_sided(seen, ratio, criterion.confidence, say.between(limits)))
    return _inconclusive(asked, asked.sums, seen, shortfall.for_pass(asked.sums, criterion.min_positives))


def _compare(asked: _Asked, estimate: Estimate, limits: Limits, text: str) -> Finding:
    """Judges a number by its interval. For a PASS both sides need their positives."""
    if estimate.low > limits.high or estimate.high < limits.low:
        return _finding(asked, Verdict.FAIL, text)
    criterion, sums, other = asked.case.criterion, asked.sums, asked.other
    if not limits.low <= estimate.value <= limits.high:
        if asked.metric is Metric.CALIBRATION:
            missing = shortfall.for_calibration(sums, estimate, limits, criterion.confidence)
        else:
            missing = shortfall.for_normal(sums, estimate, limits)
        return _inconclusive(asked, sums, text, missing)
    # The one that is further from it is waited for.
    scarce, of = sums, "it"
    if other is not None and other.effective_positives < sums.effective_positives:
        scarce, of = other, "the baseline"
    if scarce.effective_positives >= criterion.min_positives:
        return _finding(asked, Verdict.PASS, text)
    return _inconclusive(asked, scarce, text, shortfall.for_pass(scarce, criterion.min_positives), of)


_JUDGES: Final[dict[Metric, Callable[[_Asked], Finding]]] = {
    Metric.CALIBRATION: _judge_calibration,
    Metric.NE: _judge_entropy,
    Metric.NE_REGRESSION: _judge_regression,
    Metric.CALIBRATION_DIFFERENCE: _judge_difference,
}


def _finding(asked: _Asked, verdict: Verdict, text: str) -> Finding:
    prediction = asked.case.criterion.prediction
    return Finding(prediction, asked.metric, verdict, asked.ours, asked.theirs, f"{text}.")


def _inconclusive(asked: _Asked, sums: Sums, text: str, missing: int | None, of: str = "it") -> Finding:
    """Returns a finding that says how many positives are missing and when they can be expected."""
    case = asked.case
    expected = None if missing is None else _expected(case, sums, missing)
    immature = asked.metric is Metric.CALIBRATION and case.criterion.include_immature
    waiting = 0 if immature else case.candidate.waiting.examples
    needs = say.needs(missing, expected, case.now, of)
    text = f"{text}; {needs}{say.still_waiting(waiting, _first_maturity(case))}"
    finding = _finding(asked, Verdict.INCONCLUSIVE, text)
    return replace(finding, missing_positives=missing or 0, expected_time=expected)


def _expected(case: Case, sums: Sums, missing: int) -> datetime | None:
    """Returns when that many more positives will have come at the present rate."""
    if case.span.end_time < case.now:
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
