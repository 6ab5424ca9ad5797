"""Which ranges the client takes to be in force, and how far back a judgement by them looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from modelfleet.cli.stability.slo import left
from modelfleet.healthy_ranges import HealthyRange, in_force, widest_window
from modelfleet.investigate import judgement_request
from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import slos_pb2

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def healthy(metric: HealthyRange.Metric.ValueType, hours: int) -> HealthyRange:
    made = HealthyRange(prediction="click", metric=metric, low=0.9, high=1.1)
    made.window.FromTimedelta(timedelta(hours=hours))
    return made


def model_type(*ranges: HealthyRange) -> registry_pb2.ModelType:
    made = registry_pb2.ModelType(name="modelTypes/feed", healthy_ranges=ranges)
    made.predictions.add(id="click").attribution_window.FromTimedelta(timedelta(minutes=30))
    return made


def test_a_models_own_range_goes_before_its_types_and_that_before_the_default() -> None:
    own = registry_pb2.Model(healthy_ranges=[healthy(HealthyRange.CALIBRATION, 6)])
    of_type = model_type(healthy(HealthyRange.CALIBRATION, 2), healthy(HealthyRange.NE, 3))
    assert [source for source, _ in in_force(own, of_type)] == ["the model", "its model type"]
    assert [source for source, _ in in_force(None, model_type())] == ["the default"]


def test_a_judgement_is_as_wide_as_the_widest_range_but_no_less_than_an_hour_and_volume_is_not_judged() -> None:
    own = registry_pb2.Model(healthy_ranges=[healthy(HealthyRange.CALIBRATION, 6)])
    assert widest_window(None, model_type(healthy(HealthyRange.VOLUME, 12))) == timedelta(hours=1)
    assert widest_window(None, model_type(healthy(HealthyRange.NE, 3))) == timedelta(hours=3)
    assert widest_window(own, model_type(healthy(HealthyRange.NE, 3))) == timedelta(hours=6)


def test_an_investigation_asks_by_the_ranges_in_force_over_the_newest_time_whose_labels_have_come() -> None:
    asked = judgement_request("modelTypes/feed/models/v8", model_type(healthy(HealthyRange.CALIBRATION, 6)), NOW)
    assert not asked.criteria
    # Six hours before the labels' half an hour, and a little for late ones.
    assert asked.start_time.ToDatetime(tzinfo=UTC) == NOW - timedelta(hours=6, minutes=33)


@pytest.mark.parametrize(("good", "bad", "share", "shown"), [(40, 2, -3.76, "(42m so far)"), (9_970, 30, 0.7, "70%")])
def test_what_is_left_of_a_budget_is_said_once_a_day_of_minutes_counts(
    good: int, bad: int, share: float, shown: str
) -> None:
    assert left(slos_pb2.Objective(target=0.99, good=good, bad=bad, budget_left=share)) == shown
