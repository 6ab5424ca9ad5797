"""The judge: criteria against evidence. Pure, so that it can be replayed on any past span.

An interval wholly outside its range is a FAIL however few positives it rests on; a value inside is a PASS with at least
the demanded positives; all else is INCONCLUSIVE, and says what is missing. Where most of what was sent cannot be right,
what is left is no fair sample, and the verdict is an ERROR.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.stability.domain import shortfall
from modelfleetd.stability.domain import words as say
from modelfleetd.stability.domain.criteria import ANYTHING, Criterion, Limits
from modelfleetd.stability.domain.estimates import (
    Estimate,
    calibration,
    calibration_ratio,
    entropy_ratio,
    expected_count,
    normalized_entropy,
)
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
    asked = _all_asked(cases)
    decisions = [_decide(each) for each in asked]
    verdict, explanation = _conclusion(decisions)
    findings = tuple(_finding(each, decision) for each, decision in zip(asked, decisions, strict=True))
    return Judgement(verdict, explanation, findings, span.start_time, span.end_time)


def verdict_of(cases: Sequence[Case]) -> tuple[Verdict, str]:
    """Returns the verdict and explanation of `judge` alone, at a third of the cost: for thousands of moments."""
    return _conclusion([_decide(each) for each in _all_asked(cases)])


@dataclass(frozen=True, slots=True)
class _Asked:
    """One thing that a criterion demands, and the evidence that decides it."""

    case: Case
    metric: Metric
    sums: Sums  # of the candidate: what is judged
    other: Sums  # of the baseline, where it is compared with

    @property
    def subject(self) -> str:
        return say.subject(self.case.criterion.prediction, "NE" if self.metric in _ENTROPY else "calibration")

    @property
    def is_comparison(self) -> bool:
        return self.metric in _COMPARISONS


_ENTROPY: Final = {Metric.NE, Metric.NE_REGRESSION}
_COMPARISONS: Final = {Metric.NE_REGRESSION, Metric.CALIBRATION_DIFFERENCE}


@dataclass(frozen=True, slots=True)
class _Decision:
    """The verdict on what was asked, and why."""

    verdict: Verdict
    explanation: str
    missing_positives: int = 0
    expected_time: datetime | None = None


def _all_asked(cases: Sequence[Case]) -> list[_Asked]:
    return [_asked(case, metric) for case in cases for metric in case.metrics]


def _asked(case: Case, metric: Metric) -> _Asked:
    both = case.comparison
    if both is not None and metric in _COMPARISONS:
        return _Asked(case, metric, both.candidate, both.baseline)
    immature = metric is Metric.CALIBRATION and case.criterion.include_immature
    return _Asked(case, metric, case.candidate.total if immature else case.candidate.matured, NOTHING)


def _conclusion(decisions: Sequence[_Decision]) -> tuple[Verdict, str]:
    found = {decision.verdict for decision in decisions}
    verdict = next((verdict for verdict in _PRECEDENCE if verdict in found), Verdict.INCONCLUSIVE)
    decisive = [decision.explanation for decision in decisions if decision.verdict is verdict]
    return verdict, say.conclusion(decisive, len(decisions))


def _finding(asked: _Asked, decision: _Decision) -> Finding:
    """Returns a decision with the numbers of both sides."""
    case, both = asked.case, asked.case.comparison
    span, ours, theirs = case.span, case.candidate, case.baseline
    if both is not None and asked.is_comparison:
        span, ours, theirs = both.span, Evidence(both.candidate), Evidence(both.baseline)
    point = functools.partial(
        make_point,
        span,
        confidence=case.criterion.confidence,
        mature_before=mature_before(case.now, case.window),
        matured_only=not (asked.metric is Metric.CALIBRATION and case.criterion.include_immature),
    )
    return Finding(
        case.criterion.prediction,
        asked.metric,
        decision.verdict,
        point(ours),
        None if theirs is None else point(theirs),
        decision.explanation,
        decision.missing_positives,
        decision.expected_time,
    )


def _decide(asked: _Asked) -> _Decision:
    case = asked.case
    sides = {"the candidate": case.candidate, "the baseline": case.baseline if asked.is_comparison else None}
    for who, evidence in sides.items():
        if evidence is not None and evidence.malformed > evidence.examples:
            text = say.unusable(case.criterion.prediction, who, evidence.malformed, evidence.examples)
            return _Decision(Verdict.ERROR, f"{text}.")
    return _JUDGES[asked.metric](asked)


def _judge_calibration(asked: _Asked) -> _Decision:
    sums, criterion = asked.sums, asked.case.criterion
    limits = criterion.calibration or ANYTHING
    estimate = calibration(sums, criterion.confidence)
    if not sums.observed and sums.examples:
        seen = say.no_positive(criterion.prediction, sums.examples, expected_count(sums))
        if estimate.low > limits.high:
            text = say.overpredicting(seen, estimate.low, limits, criterion.confidence)
            return _Decision(Verdict.FAIL, f"{text}.")
        return _inconclusive(asked, sums, seen, criterion.min_positives)
    if not estimate.known:
        return _inconclusive(asked, sums, say.no_example(asked.subject), criterion.min_positives)
    text = say.measured(asked.subject, estimate, criterion.confidence, sums)
    return _compare(asked, estimate, limits, f"{text}, {say.position(estimate, limits)}")


def _judge_entropy(asked: _Asked) -> _Decision:
    sums, criterion = asked.sums, asked.case.criterion
    limits = criterion.ne or ANYTHING
    estimate = normalized_entropy(sums, criterion.confidence)
    if not estimate.known:
        seen = say.equal_labels(asked.subject, sums) if sums.examples else say.no_example(asked.subject)
        return _inconclusive(asked, sums, seen, shortfall.for_pass(sums, criterion.min_positives))
    text = say.measured(asked.subject, estimate, criterion.confidence, sums)
    return _compare(asked, estimate, limits, f"{text}, {say.position(estimate, limits)}")


def _judge_regression(asked: _Asked) -> _Decision:
    criterion = asked.case.criterion
    most = criterion.max_ne_regression
    ratio = entropy_ratio(asked.sums, asked.other, criterion.confidence)
    if not ratio.known:
        seen = say.not_comparable(asked.subject, asked.sums, asked.other)
        return _inconclusive(asked, asked.sums, seen, shortfall.for_pass(asked.sums, criterion.min_positives))
    values = [normalized_entropy(sums, criterion.confidence).value for sums in (asked.sums, asked.other)]
    text = say.compared(asked.subject, values, ratio, criterion.confidence, f"at most +{say.percent(most)}")
    return _compare(asked, ratio, Limits(0.0, 1.0 + most), text)


def _judge_difference(asked: _Asked) -> _Decision:
    criterion = asked.case.criterion
    most = criterion.max_calibration_difference
    limits = Limits(1.0 / (1.0 + most), 1.0 + most)
    ratio = calibration_ratio(asked.sums, asked.other, criterion.confidence)
    if ratio.known:
        values = [sums.expected / sums.observed for sums in (asked.sums, asked.other)]
        text = say.compared(asked.subject, values, ratio, criterion.confidence, say.between(limits))
        return _compare(asked, ratio, limits, text)
    seen = say.not_comparable(asked.subject, asked.sums, asked.other)
    if ratio.low > limits.high or 0.0 < ratio.high < limits.low:
        text = say.one_sided(seen, ratio, criterion.confidence, say.between(limits))
        return _Decision(Verdict.FAIL, f"{text}.")
    return _inconclusive(asked, asked.sums, seen, shortfall.for_pass(asked.sums, criterion.min_positives))


def _compare(asked: _Asked, estimate: Estimate, limits: Limits, text: str) -> _Decision:
    """Judges a number by its interval. For a PASS both sides need their positives."""
    if estimate.low > limits.high or estimate.high < limits.low:
        return _Decision(Verdict.FAIL, f"{text}.")
    criterion, sums = asked.case.criterion, asked.sums
    if not limits.low <= estimate.value <= limits.high:
        if asked.metric is Metric.CALIBRATION:
            missing = shortfall.for_calibration(sums, estimate, limits, criterion.confidence)
        else:
            missing = shortfall.for_normal(sums, estimate, limits)
        return _inconclusive(asked, sums, text, missing)
    # The side that is further from it is waited for.
    scarce, of = sums, "it"
    if asked.is_comparison and asked.other.effective_positives < sums.effective_positives:
        scarce, of = asked.other, "the baseline"
    if scarce.effective_positives >= criterion.min_positives:
        return _Decision(Verdict.PASS, f"{text}.")
    return _inconclusive(asked, scarce, text, shortfall.for_pass(scarce, criterion.min_positives), of)


_JUDGES: Final[dict[Metric, Callable[[_Asked], _Decision]]] = {
    Metric.CALIBRATION: _judge_calibration,
    Metric.NE: _judge_entropy,
    Metric.NE_REGRESSION: _judge_regression,
    Metric.CALIBRATION_DIFFERENCE: _judge_difference,
}


def _inconclusive(asked: _Asked, sums: Sums, text: str, missing: int | None, of: str = "it") -> _Decision:
    """Returns a decision that says how many positives are missing and when they can be expected."""
    case = asked.case
    expected = None if missing is None else _expected(case, sums, missing)
    immature = asked.metric is Metric.CALIBRATION and case.criterion.include_immature
    waiting = 0 if immature else case.candidate.waiting.examples
    needs = say.needs(missing, expected, case.now, of)
    text = f"{text}; {needs}{say.still_waiting(waiting, _first_maturity(case))}."
    return _Decision(Verdict.INCONCLUSIVE, text, missing or 0, expected)


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
