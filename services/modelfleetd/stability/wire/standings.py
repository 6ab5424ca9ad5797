"""Standings, roll-ups and serving reports."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from google.protobuf import timestamp_pb2

from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.codec import timestamp_from_proto, timestamp_to_proto, to_proto
from modelfleetd.stability.domain.availability import Availability, AvailabilityState, Report
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.rollup import Group, Row
from modelfleetd.stability.domain.standing import ModelState

_AVAILABLE, _UNAVAILABLE = AvailabilityState.AVAILABLE, AvailabilityState.UNAVAILABLE


def reports(statuses: Iterable[registry_pb2.ServingStatus]) -> dict[str, dict[str, Report]]:
    """Returns what agents reported, by model and region."""
    found: dict[str, dict[str, Report]] = {}
    for status in statuses:
        observed = timestamp_from_proto(status.observe_time)
        for model in status.models:
            latency = model.latency_p99_ms if model.HasField("latency_p99_ms") else None
            report = Report(model.requests, model.errors, latency, observed)
            found.setdefault(model.model, {})[status.region] = report
    return found


def summary(row: Row) -> pb.ModelStability:
    """Returns what lists can be filtered by."""
    model, standing = row.model, row.standing
    made = pb.ModelStability(
        model=model.name,
        model_type=model.model_type,
        state=row.state.value,  # type: ignore[arg-type]
        role=model.role.value,  # type: ignore[arg-type]
        tier=model.tier.value,  # type: ignore[arg-type]
        team=model.team,
        surface=model.surface,
        funnel_stage=model.funnel_stage.value,  # type: ignore[arg-type]
        product=model.product,
        share_basis_points=model.share_basis_points,
        request_rate=row.request_rate,
    )
    made.availability.state = row.availability.value  # type: ignore[assignment]
    if standing is not None and standing.culprit is not None:
        made.culprit_prediction = standing.culprit[0]
        made.culprit_metric = standing.culprit[1].value  # type: ignore[assignment]
    return made


def model_stability(row: Row, evaluate_time: datetime | None, *, show_metrics: bool = False) -> pb.ModelStability:
    """Returns a model with its standing; of the metrics only the culprit unless all are to be shown."""
    made, standing = summary(row), row.standing
    if standing is None or evaluate_time is None:
        made.explanation = "It has not been evaluated yet: that is done each minute."
        return made
    made.explanation = standing.explanation
    made.since.CopyFrom(timestamp_to_proto(standing.since))
    made.evaluate_time.CopyFrom(timestamp_to_proto(evaluate_time))
    made.availability.CopyFrom(_availability(standing.availability))
    decisive = standing.decisive
    shown = standing.metrics if show_metrics else () if decisive is None else (decisive,)
    made.metrics.extend(map(_metric, shown))
    return made


def group(found: Group) -> pb.StabilityGroup:
    """Returns the figures of a part of the fleet."""
    states, both = found.states, found.both
    return pb.StabilityGroup(
        group=found.name,
        models=found.models,
        stable=states[ModelState.STABLE],
        unstable=states[ModelState.UNSTABLE],
        unknown=states[ModelState.UNKNOWN],
        not_applicable=states[ModelState.NOT_APPLICABLE],
        stable_share=found.stable_share,
        stable_traffic_share=found.stable_traffic_share,
        available_stable=both[_AVAILABLE, ModelState.STABLE],
        available_unstable=both[_AVAILABLE, ModelState.UNSTABLE],
        unavailable_stable=both[_UNAVAILABLE, ModelState.STABLE],
        unavailable_unstable=both[_UNAVAILABLE, ModelState.UNSTABLE],
        worst=found.worst,
    )


def evaluated(moment: datetime | None) -> timestamp_pb2.Timestamp | None:
    """Returns when the fleet was last evaluated."""
    return None if moment is None else timestamp_to_proto(moment)


def _metric(found: WindowVerdict) -> pb.MetricStability:
    return pb.MetricStability(
        prediction=found.prediction,
        metric=found.metric.value,  # type: ignore[arg-type]
        state=found.state.value,  # type: ignore[arg-type]
        value=to_proto(found.estimate, pb.Estimate),
        range=to_proto(found.limits, pb.Limits),
        start_time=timestamp_to_proto(found.start),
        end_time=timestamp_to_proto(found.end),
        immature=found.immature,
        label_coverage=found.label_coverage,
        positives=found.positives,
        examples=found.examples,
        explanation=found.explanation,
    )


def _availability(found: Availability) -> pb.Availability:
    return to_proto(found, pb.Availability)
