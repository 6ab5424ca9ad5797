"""What evidence says a model gains over the one that it replaces: a change relative to it, with its interval."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from modelfleetd.capacity.domain.exact import exact

# An interval that holds less often says too little to spend money on.
LEAST_CONFIDENCE: Final = 9_000
# What a change may say that it is relative to, besides the model's name and id.
_BASELINE_WORDS: Final = frozenset({"baseline", "control"})


class Direction(enum.Enum):
    """Which values are good."""

    HIGHER_IS_BETTER = "HIGHER_IS_BETTER"
    LOWER_IS_BETTER = "LOWER_IS_BETTER"
    CLOSE_TO_TARGET = "CLOSE_TO_TARGET"


class Form(enum.Enum):
    """What a value is."""

    ABSOLUTE = "ABSOLUTE"
    DIFFERENCE = "DIFFERENCE"
    RATIO = "RATIO"


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """Both ends, and how often such an interval holds the true value, in basis points."""

    low: float
    high: float
    confidence_basis_points: int


@dataclass(frozen=True, slots=True)
class Comparator:
    """The same figure of another model."""

    name: str
    model: str
    value: float
    interval: ConfidenceInterval | None = None


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One figure of an evaluation, as far as gains are concerned."""

    metric: str
    value: float
    direction: Direction | None
    form: Form | None = None
    slice: Mapping[str, str] = field(default_factory=dict)
    interval: ConfidenceInterval | None = None
    comparators: tuple[Comparator, ...] = ()
    relative_to: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found about the candidate."""

    name: str
    baseline: str
    results: tuple[EvaluationResult, ...]
    evaluate_time: datetime
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better the metric is, relative to what is replaced: above 0 is better, whichever direction is good.

    Attributes:
        report: that says so.
        time: of the evaluation.
    """

    value: Fraction
    low: Fraction
    high: Fraction
    confidence_basis_points: int
    report: str
    time: datetime


class Lacking(Exception):
    """There is no such gain; the message is a sentence that says why, and what would be one."""


def gain(
    reports: Iterable[EvaluationReport], metric: str, replaced: str, max_age: timedelta | None, now: datetime
) -> Gain:
    """Returns the gain that the newest report in force states.

    Args:
        reports: of the candidate.
        metric: which.
        replaced: the model that it is to be better than; empty where there is none.
        max_age: oldest evidence that counts; None: as long as it is in force.
        now: decides what has expired.

    Raises:
        Lacking: there is none, it has expired, or it is not what a decision can rest on.
    """
    about = [report for report in reports if any(_is_about(result, metric) for result in report.results)]
    if not about:
        raise Lacking(f"There is no evaluation result of {metric}, over all of the data, of the candidate.")
    newest_first = sorted(about, key=lambda report: (report.evaluate_time, report.name), reverse=True)
    valid = [report for report in newest_first if not _has_expired(report, max_age, now)]
    if not valid:
        newest = newest_first[0]
        raise Lacking(
            f"The newest result of {metric}, in {newest.name} of {newest.evaluate_time:%Y-%m-%d %H:%M} UTC, has expired"
            " or is too old."
        )
    if not replaced:
        raise Lacking("There is no model that it replaces: there is nothing to be better than.")
    return _of_report(valid[0], metric, replaced)


def _has_expired(report: EvaluationReport, max_age: timedelta | None, now: datetime) -> bool:
    too_old = max_age is not None and now - report.evaluate_time > max_age
    return too_old or (report.expire_time is not None and report.expire_time <= now)


def _is_about(result: EvaluationResult, metric: str) -> bool:
    return result.metric == metric and not result.slice


def _of_report(report: EvaluationReport, metric: str, replaced: str) -> Gain:
    """The first result of the report that is a gain; otherwise what its last one lacks."""
    results = [result for result in report.results if _is_about(result, metric)]
    why = ""
    for result in results:
        try:
            return _of_result(report, result, results, replaced)
        except Lacking as lacking:
            why = str(lacking)
    raise Lacking(f"{report.name}: {why}")


def _of_result(
    report: EvaluationReport, result: EvaluationResult, others: Sequence[EvaluationResult], replaced: str
) -> Gain:
    interval = result.interval
    if interval is None:
        raise Lacking(f"the result of {result.metric} has no interval; a point says nothing of its lower end.")
    if interval.confidence_basis_points < LEAST_CONFIDENCE:
        raise Lacking(
            f"the interval of {result.metric} holds in {interval.confidence_basis_points / 100:g} % of the cases only; "
            f"at least {LEAST_CONFIDENCE / 100:g} % is asked for."
        )
    # An interval that misses the value (as percentiles of a bootstrap may) makes nothing better than the value.
    ends = _Ends(min(interval.low, result.value), result.value, max(interval.high, result.value))
    confidence = interval.confidence_basis_points
    form = result.form or Form.ABSOLUTE
    if form is Form.ABSOLUTE:
        base = _comparator(result, replaced)
        if base.interval is not None:
            confidence = min(confidence, base.interval.confidence_basis_points)
        changes = _against(result, ends, base)
    else:
        _check_relative(report, result, replaced)
        changes = _of_ratio(result, ends) if form is Form.RATIO else ends.over(_base(result, others, replaced))
    return _in_direction(result, changes, confidence, report)


class _Ends:
    """A value between the ends of its interval, in exact fractions."""

    def __init__(self, low: float | Fraction, value: float | Fraction, high: float | Fraction) -> None:
        self.low, self.value, self.high = (
            end if isinstance(end, Fraction) else exact(end) for end in (low, value, high)
        )

    def over(self, of: Fraction) -> _Ends:
        return _Ends(self.low / of, self.value / of, self.high / of)

    def less_one(self) -> _Ends:
        return _Ends(self.low - 1, self.value - 1, self.high - 1)


def _of_ratio(result: EvaluationResult, ends: _Ends) -> _Ends:
    if result.unit not in ("", "1", "%"):
        raise Lacking(f"the ratio of {result.metric} is in {result.unit}; a ratio has no unit, or %.")
    return ends.over(Fraction(100 if result.unit == "%" else 1)).less_one()


def _against(result: EvaluationResult, ends: _Ends, base: Comparator) -> _Ends:
    """The change against the baseline's figure; where that has an interval too, the least against the most."""
    least = most = exact(base.value)
    if base.interval is not None:
        least, most = min(least, exact(base.interval.low)), max(most, exact(base.interval.high))
    if least <= 0:
        raise Lacking(f"the {result.metric} of {base.model} may be 0 or less: no change is a part of that.")
    low = ends.low / (most if ends.low >= 0 else least)
    high = ends.high / (least if ends.high >= 0 else most)
    return _Ends(low, ends.value / exact(base.value), high).less_one()


def _in_direction(
    result: EvaluationResult,
    changes: _Ends,
    confidence: int,
    report: EvaluationReport,
) -> Gain:
    low, value, high = changes.low, changes.value, changes.high
    if result.direction is Direction.LOWER_IS_BETTER:
        low, value, high = -high, -value, -low
    elif result.direction is not Direction.HIGHER_IS_BETTER:
        raise Lacking(f"neither more nor less of {result.metric} is better: it has a target.")
    return Gain(value, low, high, confidence, report.name, report.evaluate_time)


def _comparator(result: EvaluationResult, replaced: str) -> Comparator:
    found = next((each for each in result.comparators if each.model == replaced), None)
    if found is None:
        raise Lacking(f"the result of {result.metric} has no comparator with the model {replaced}.")
    return found


def _check_relative(report: EvaluationReport, result: EvaluationResult, replaced: str) -> None:
    """Expects a change to be relative to the model that is replaced, and not to something of its own."""
    if report.baseline != replaced:
        said = report.baseline or "nothing that it names"
        raise Lacking(
            f"it was measured against {said} and not against {replaced}; `baseline` of the report says which."
        )
    words = _BASELINE_WORDS | {replaced.casefold(), replaced.rpartition("/")[2].casefold()}
    if result.relative_to.strip().casefold() not in words:
        raise Lacking(f"the {result.metric} is relative to '{result.relative_to}', not to the baseline.")


def _base(result: EvaluationResult, others: Sequence[EvaluationResult], replaced: str) -> Fraction:
    """The metric of the replaced model, of which a difference is a part."""
    for other in (result, *(each for each in others if (each.form or Form.ABSOLUTE) is Form.ABSOLUTE)):
        for comparator in other.comparators:
            if comparator.model == replaced and comparator.value > 0:
                return exact(comparator.value)
    for other in others:
        if (other.form or Form.ABSOLUTE) is Form.ABSOLUTE and other.value > result.value:
            return exact(other.value) - exact(result.value)
    raise Lacking(
        f"the difference of {result.metric} is a part of nothing: name the value of {replaced} as a comparator, or"
        " state a ratio."
    )
