"""Which healthy ranges are in force for a model: its own, else its type's, else what the prediction declares."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias

from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleet.stability.v1 import stability_pb2

HealthyRange = monitoring_pb2.HealthyRange
Source: TypeAlias = Literal["the model", "its model type", "the prediction", "the default"]
# Of a range that states none.
USUAL_WINDOW: Final = timedelta(hours=1)
_DEFAULT: Final = stability_pb2.Limits(low=0.5, high=2.0)


def key(healthy: monitoring_pb2.HealthyRange) -> tuple[str, int]:
    """Returns what a range is of: prediction and metric."""
    return healthy.prediction, healthy.metric


def in_force(
    model: registry_pb2.Model | None, model_type: registry_pb2.ModelType
) -> Iterator[tuple[Source, monitoring_pb2.HealthyRange]]:
    """Yields the ranges in force with where they come from, prediction by prediction.

    Args:
        model: as the registry has it; None for any model of the type that has no range of its own.
        model_type: its type.
    """
    own = {} if model is None else {key(each): each for each in model.healthy_ranges}
    of_type = {key(each): each for each in model_type.healthy_ranges}
    for prediction in model_type.predictions:
        declared: dict[Any, Any] = {HealthyRange.CALIBRATION: prediction.calibration_range}
        if prediction.HasField("ne_range"):
            declared[HealthyRange.NE] = prediction.ne_range
        for metric in (HealthyRange.CALIBRATION, HealthyRange.NE, HealthyRange.VOLUME):
            wanted = (prediction.id, metric)
            if wanted in own:
                yield "the model", own[wanted]
            elif wanted in of_type:
                yield "its model type", of_type[wanted]
            elif limits := declared.get(metric):
                is_set = metric == HealthyRange.NE or prediction.HasField("calibration_range")
                given = limits if is_set else _DEFAULT
                plain = HealthyRange(prediction=prediction.id, metric=metric, low=given.low, high=given.high)
                yield "the prediction" if is_set else "the default", plain


def window_of(healthy: monitoring_pb2.HealthyRange) -> timedelta:
    """Returns the width of the windows that a range is for."""
    return healthy.window.ToTimedelta() or USUAL_WINDOW


def widest_window(model: registry_pb2.Model | None, model_type: registry_pb2.ModelType) -> timedelta:
    """Returns the width over which a model has to be judged for its ranges to fit: of the widest, at least an hour.

    Values of less time stray further by chance than a range for more allows. Volume is not judged.
    """
    judged = (each for _, each in in_force(model, model_type) if each.metric != HealthyRange.VOLUME)
    return max([USUAL_WINDOW, *map(window_of, judged)])
