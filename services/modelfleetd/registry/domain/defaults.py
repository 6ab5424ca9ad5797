"""Defaults, written out when an entry is stored: a later change of a default changes no entry."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from modelfleetd.registry.domain.resources import (
    DemandSource,
    HealthyRange,
    MissingLabel,
    Prediction,
    PrometheusDemand,
    Range,
)
from modelfleetd.registry.domain.serving import WHOLE


def complete_prediction(prediction: Prediction) -> Prediction:
    """Returns a prediction with its defaults written out."""
    return replace(
        prediction,
        attribution_window=prediction.attribution_window or timedelta(hours=1),
        missing_label=prediction.missing_label or MissingLabel.NEGATIVE,
        calibration_range=prediction.calibration_range or Range(low=0.5, high=2.0),
        min_positives=prediction.min_positives or 10,
        min_label_coverage=prediction.min_label_coverage or 0.5,
    )


def complete_range(healthy: HealthyRange) -> HealthyRange:
    """Returns a healthy range with its defaults written out."""
    return replace(healthy, window=healthy.window or timedelta(hours=1))


def complete_demand(demand: DemandSource) -> DemandSource:
    """Returns a demand source with its defaults written out."""
    measured = demand.prometheus
    return replace(
        demand,
        fanout_basis_points=demand.fanout_basis_points or WHOLE,
        prometheus=None if measured is None else complete_prometheus(measured),
    )


def complete_prometheus(source: PrometheusDemand) -> PrometheusDemand:
    """Returns how demand is read from Prometheus with its defaults written out."""
    return replace(source, window=source.window or timedelta(days=28), quantile=source.quantile or 0.999)
