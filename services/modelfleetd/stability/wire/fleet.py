"""What stability watches, from the registry's entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleet.snapshot import Route
from modelfleetd.kit.codec import from_proto
from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits
from modelfleetd.stability.domain.fleet import (
    FunnelStage,
    HealthyRange,
    Metric,
    Role,
    ServiceLevel,
    Tier,
    WatchedModel,
    completed,
)
from modelfleetd.stability.wire.registry import declared_prediction

_SERVING: Final = frozenset(role.value for role in Role if role.serves)


def watched_models(route: Route, on_call: str) -> dict[str, WatchedModel]:
    """Returns the models of a route that serve, with what is expected of each."""
    model_type = route.model_type
    predictions = {found.id: found for found in map(declared_prediction, model_type.predictions)}
    of_type = _ranges(model_type.healthy_ranges)
    given = {name: getattr(model_type.service_level, name) for name in ServiceLevel.__match_args__}
    shares = _shares(model_type)
    return {
        name: _watched(model, model_type, predictions, of_type, ServiceLevel(**given), shares.get(name, 0), on_call)
        for name, model in route.models.items()
        if model.role in _SERVING
    }


def _watched(
    model: registry_pb2.Model,
    model_type: registry_pb2.ModelType,
    predictions: Mapping[str, DeclaredPrediction],
    of_type: Mapping[tuple[str, Metric], HealthyRange],
    level: ServiceLevel,
    share: int,
    on_call: str,
) -> WatchedModel:
    tier = Tier(model.tier_override or model_type.tier)
    ranges = _declared(predictions) | dict(of_type) | _ranges(model.healthy_ranges)
    return WatchedModel(
        name=model.name,
        model_type=model_type.name,
        role=Role(model.role),
        tier=tier,
        team=model_type.team,
        on_call=on_call,
        surface=model_type.naming.get("surface") or model_type.labels.get("surface", ""),
        product=model_type.naming.get("app") or model_type.labels.get("product", ""),
        funnel_stage=FunnelStage(model_type.funnel_stage),
        share_basis_points=share,
        predictions=predictions,
        # A range may be left of a prediction that is not declared any more.
        ranges={key: found for key, found in ranges.items() if key[0] in predictions},
        service_level=completed(level, tier),
    )


def _declared(predictions: Mapping[str, DeclaredPrediction]) -> dict[tuple[str, Metric], HealthyRange]:
    """What predictions declare themselves, for those without a healthy range."""
    found: dict[tuple[str, Metric], HealthyRange] = {}
    for prediction in predictions.values():
        by_metric: tuple[tuple[Metric, Limits | None], ...] = (
            (Metric.CALIBRATION, prediction.calibration_range),
            (Metric.NE, prediction.ne_range),
        )
        for metric, limits in by_metric:
            if limits is not None:
                found[prediction.id, metric] = HealthyRange(prediction.id, metric, limits.low, limits.high)
    return found


def _ranges(ranges: Iterable[monitoring_pb2.HealthyRange]) -> dict[tuple[str, Metric], HealthyRange]:
    return {(found.prediction, found.metric): found for found in map(healthy_range, ranges)}


def healthy_ranges(route: Route, model: str) -> dict[tuple[str, Metric], HealthyRange]:
    """Returns the healthy ranges of a model, whether it serves or not: its own, else its type's."""
    own = route.models.get(model)
    return _ranges(route.model_type.healthy_ranges) | _ranges(() if own is None else own.healthy_ranges)


def healthy_range(message: monitoring_pb2.HealthyRange) -> HealthyRange:
    """Returns a healthy range as the registry stores it."""
    return from_proto(message, HealthyRange)


def _shares(model_type: registry_pb2.ModelType) -> dict[str, int]:
    """Mean share of each model over the regions that serve, in basis points."""
    splits = [split.shares for split in model_type.splits if split.shares]
    total: dict[str, int] = {}
    for shares in splits:
        for share in shares:
            total[share.model] = total.get(share.model, 0) + share.share_basis_points
    return {model: share // len(splits) for model, share in total.items()}
