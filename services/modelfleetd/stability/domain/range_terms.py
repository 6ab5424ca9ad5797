"""What a healthy range is for, and the values that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.history import (
    Values,
    Windows,
    calibrations,
    entropies,
    volumes,
)

DEFAULT_PAGES_PER_WEEK: Final = 0.05


@dataclass(frozen=True, slots=True)
class Terms:
    """What a range is for.

    Attributes:
        prediction: which.
        metric: which.
        target: of the model's stability objective.
        pages_per_week: false alarms to allow for the whole model.
        ranges: of the model, over all its predictions and metrics: they share these.
        width: of the windows, in minutes; 0: whichever sees faults soonest.
        delays: of labels that come later than their examples; None: they come together.
        current: the range in force.
    """

    prediction: DeclaredPrediction
    metric: Metric
    target: float
    pages_per_week: float = DEFAULT_PAGES_PER_WEEK
    ranges: int = 1
    width: int = 0
    delays: Delays | None = None
    current: HealthyRange | None = None


def values_of(windows: Windows, terms: Terms) -> Values:
    if terms.metric is Metric.CALIBRATION:
        return calibrations(windows, terms.prediction.min_positives)
    if terms.metric is Metric.NE:
        return entropies(windows, terms.prediction.min_positives)
    return volumes(windows)
