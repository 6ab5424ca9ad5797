"""What alerts say of a model's newest standing, in words with figures."""

from __future__ import annotations

from modelfleetd.stability.domain.alert import Kind
from modelfleetd.stability.domain.alerting import Culprit, Known
from modelfleetd.stability.domain.availability import Availability, AvailabilityState
from modelfleetd.stability.domain.fleet import ServiceLevel
from modelfleetd.stability.domain.standing import ModelState, Standing
from modelfleetd.stability.domain.window_verdict import Stability
from modelfleetd.stability.domain.words import count, number, percent


def known_of(standing: Standing, level: ServiceLevel) -> Known:
    """Returns what an alert can say of a model.

    Args:
        standing: of the model.
        level: what its users may expect.
    """
    outside = [metric for metric in standing.metrics if metric.state is Stability.UNSTABLE]
    outside.sort(key=lambda metric: (metric.prediction, metric.metric) != standing.culprit)
    explanations = {Kind.UNAVAILABLE: _unavailable(standing.availability, level)}
    if standing.state is ModelState.UNKNOWN and standing.decisive is not None:
        explanations[Kind.NOT_OBSERVED] = standing.decisive.explanation
    return Known(
        culprits=tuple(Culprit(metric.prediction, metric.metric, metric.explanation) for metric in outside),
        since=standing.since,
        explanations={kind: text for kind, text in explanations.items() if text},
    )


def _unavailable(found: Availability, level: ServiceLevel) -> str:
    if found.state is not AvailabilityState.UNAVAILABLE:
        return ""
    share = f"{percent(round(found.success_share, 5))} of {count(found.requests, 'request')} succeeded"
    told = f"{share}, where {percent(level.min_success_share)} should"
    if found.latency_p99_ms is not None and 0.0 < level.max_latency_p99_ms < found.latency_p99_ms:
        most = number(level.max_latency_p99_ms)
        told += f", and 1 % took {number(found.latency_p99_ms)} ms or more, where {most} ms are allowed"
    return told
