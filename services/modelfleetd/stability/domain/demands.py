"""What is demanded of a model over a span: what the question brings, else the healthy ranges in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from modelfleetd.stability.domain.criteria import Criterion, DeclaredPrediction, Limits, checked
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.points import Span

Demanded: TypeAlias = Callable[[Span], Sequence[Criterion]]
Ranges: TypeAlias = Mapping[tuple[str, Metric], HealthyRange]


def demanded(
    criteria: Sequence[Criterion],
    declared: Mapping[str, DeclaredPrediction],
    ranges: Ranges,
    *,
    has_baseline: bool,
) -> Demanded:
    """Returns what is demanded of any span.

    Args:
        criteria: what the question brings.
        declared: the predictions of the model type.
        ranges: the healthy ranges in force, by prediction and metric.
        has_baseline: whether there is a model to compare with.

    Raises:
        InvalidFields: criteria make no sense.
    """
    fixed = checked(criteria, declared, has_baseline=has_baseline)
    if criteria:
        return lambda _: fixed
    return lambda span: [_in_force(criterion, ranges, span) for criterion in fixed]


def _in_force(criterion: Criterion, ranges: Ranges, span: Span) -> Criterion:
    calibration = ranges.get((criterion.prediction, Metric.CALIBRATION))
    entropy = ranges.get((criterion.prediction, Metric.NE))
    return replace(
        criterion,
        calibration=criterion.calibration if calibration is None else limits_over(calibration, span),
        ne=criterion.ne if entropy is None else limits_over(entropy, span),
    )


def limits_over(healthy: HealthyRange, span: Span) -> Limits:
    """Returns the ends for the value of a whole span: the widest of those of its hours.

    The value of a span is a mean of those of its hours, so it lies within these where each hour lies within its own.
    """
    # After a week hours repeat.
    end = min(span.end, span.start + 7 * 24 * 60)
    hourly = [healthy.at(moment_of(minute)) for minute in {*range(span.start + 1, end, 60), end}]
    return Limits(min(limits.low for limits in hourly), max(limits.high for limits in hourly))
