"""What alerts say of a model's newest standing, in words with figures."""

from __future__ import annotations

import math

from modelfleetd.stability.domain.alert import Kind
from modelfleetd.stability.domain.alerting import Culprit, Known
from modelfleetd.stability.domain.availability import Availability, AvailabilityState
from modelfleetd.stability.domain.estimates import State
from modelfleetd.stability.domain.fleet import Metric, ServiceLevel
from modelfleetd.stability.domain.standing import MetricStanding, Standing
from modelfleetd.stability.domain.window_verdict import Stability
from modelfleetd.stability.domain.words import count, number, percent, subject

_NAMES = {Metric.CALIBRATION: "calibration", Metric.NE: "NE", Metric.VOLUME: "volume"}


def known_of(standing: Standing, level: ServiceLevel) -> Known:
    """Returns what an alert can say of a model.

    Args:
        standing: of the model.
        level: what its users may expect.
    """
    outside = [metric for metric in standing.metrics if metric.state is Stability.UNSTABLE]
    outside.sort(key=lambda metric: metric.key != standing.culprit)
    explanations = {
        Kind.NOT_OBSERVED: _undecided(standing),
        Kind.UNAVAILABLE: _availability(standing.availability, level),
    }
    return Known(
        culprits=tuple(Culprit(metric.prediction, metric.metric, _outside(metric)) for metric in outside),
        since=standing.since,
        explanations={kind: text for kind, text in explanations.items() if text},
    )


def _outside(metric: MetricStanding) -> str:
    what = subject(metric.prediction, _NAMES[metric.metric])
    estimate, limits = metric.estimate, metric.limits
    value = number(estimate.value) if estimate.state is State.VALUE else f"at least {number(estimate.low)}"
    side = "below" if estimate.state is State.VALUE and estimate.value < limits.low else "above"
    evidence = "" if metric.metric is Metric.VOLUME else f" by {count(metric.positives, 'positive')}"
    return f"{what} is {value}{evidence}, {side} its range of {_range(metric)}"


def _range(metric: MetricStanding) -> str:
    limits = metric.limits
    if math.isinf(limits.high):
        return f"{number(limits.low)} and more"
    return f"{number(limits.low)} to {number(limits.high)}"


def _undecided(standing: Standing) -> str:
    """What is missing, of the metric that has least of it."""
    unknown = [metric for metric in standing.metrics if metric.state is Stability.UNKNOWN]
    if not unknown:
        return "" if standing.metrics else "no metric of it could be looked at"
    least = min(unknown, key=lambda metric: (metric.examples, metric.label_coverage, metric.positives))
    what = subject(least.prediction, _NAMES[least.metric])
    if not least.examples:
        return f"{what} cannot be decided: there are no examples"
    return (
        f"{what} cannot be decided: {count(least.positives, 'positive')} among {count(least.examples, 'example')}, "
        f"labels of {percent(round(least.label_coverage, 3))} of them are there"
    )


def _availability(found: Availability, level: ServiceLevel) -> str:
    if found.state is not AvailabilityState.UNAVAILABLE:
        return ""
    share = f"{percent(round(found.success_share, 5))} of {count(found.requests, 'request')} succeeded"
    told = f"{share}, where {percent(level.min_success_share)} should"
    if found.latency_p99_ms is not None and 0.0 < level.max_latency_p99_ms < found.latency_p99_ms:
        most = number(level.max_latency_p99_ms)
        told += f", and 1 % took {number(found.latency_p99_ms)} ms or more, where {most} ms are allowed"
    return told
