"""Healthy ranges and service levels: what cannot be is refused when it is written, with the reason."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from modelfleetd.errors import InvalidFields
from modelfleetd.registry.domain import rules
from modelfleetd.registry.domain.monitoring import expect_declared
from modelfleetd.registry.domain.resources import HealthyRange, Metric, Prediction, ServiceLevel
from tests.support.registry import model, model_type

START = datetime(2025, 6, 1, tzinfo=UTC)


def healthy(**fields: Any) -> HealthyRange:
    given: dict[str, Any] = {"prediction": "click", "metric": Metric.CALIBRATION, "low": 0.9, "high": 1.1} | fields
    return HealthyRange(**given)


def of_type(*ranges: HealthyRange, **fields: Any) -> Any:
    return model_type(predictions=(Prediction(id="click"),), healthy_ranges=ranges, **fields)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"metric": None}, "healthy_ranges[0].metric"),
        ({"prediction": "buy"}, "healthy_ranges[0].prediction"),
        ({"low": 1.2}, "healthy_ranges[0]"),
        ({"high": math.inf}, "healthy_ranges[0]"),
        ({"low": math.nan}, "healthy_ranges[0]"),
        ({"low": 0.0, "high": 0.0}, "healthy_ranges[0]"),
        ({"hour_of_week_factors": (1.0,) * 24}, "healthy_ranges[0].hour_of_week_factors"),
        ({"hour_of_week_factors": (0.0,) * 168}, "healthy_ranges[0].hour_of_week_factors"),
        ({"window": timedelta(minutes=4)}, "healthy_ranges[0].window"),
        ({"window": timedelta(seconds=330)}, "healthy_ranges[0].window"),
        ({"pages_per_week": 11.0}, "healthy_ranges[0].pages_per_week"),
        ({"history_start_time": START, "history_end_time": START}, "healthy_ranges[0].history_end_time"),
    ],
)
def test_a_range_that_cannot_be_is_refused_by_its_path(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        rules.check_model_type(of_type(healthy(**fields)))
    assert [violation.path for violation in refused.value.violations] == [f"model_type.{path}"]


def test_a_metric_of_a_prediction_has_one_range() -> None:
    with pytest.raises(InvalidFields, match="healthy_ranges"):
        rules.check_model_type(of_type(healthy(), healthy(high=1.2)))
    rules.check_model_type(of_type(healthy(), healthy(metric=Metric.NE)))


def test_volume_is_of_the_route_and_so_of_the_type_alone() -> None:
    volume = healthy(metric=Metric.VOLUME, low=1000, high=9000)
    assert rules.check_model_type(of_type(volume)).healthy_ranges[0].window == timedelta(hours=1)
    with pytest.raises(InvalidFields, match="belongs to the model type"):
        rules.check_model(model(healthy_ranges=(volume,)))


def test_a_model_gets_ranges_of_what_its_type_declares_and_keeps_those_of_what_it_declared() -> None:
    declares = of_type()
    other = model(healthy_ranges=(healthy(prediction="buy"),))
    with pytest.raises(InvalidFields, match="click"):
        expect_declared(other, None, declares)
    expect_declared(replace(other, description="changed"), other, declares)


@pytest.mark.parametrize("target", [0.5, 0.93, 1.0, -0.1, math.nan])
@pytest.mark.parametrize("name", ["stability", "availability"])
def test_a_target_whose_alert_could_never_fire_is_refused_with_the_reason(name: str, target: float) -> None:
    with pytest.raises(InvalidFields, match=r"could never fire") as refused:
        rules.check_model_type(of_type(service_level=ServiceLevel(**{name: target})))
    assert refused.value.violations[0].path == f"model_type.service_level.{name}"


def test_the_least_target_can_still_page() -> None:
    rules.check_model_type(of_type(service_level=ServiceLevel(stability=0.9306, availability=0.999)))
    assert 1 / (1 - 0.9306) > 14.4
