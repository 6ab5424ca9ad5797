"""What the registry declares."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal

from modelfleet.registry.v1 import registry_pb2
from modelfleetd.kit.codec import duration_from_proto, from_proto
from modelfleetd.stability.domain.criteria import (
    DEFAULT_CALIBRATION,
    DEFAULT_LABEL_COVERAGE,
    DEFAULT_MIN_POSITIVES,
    DeclaredPrediction,
    Limits,
)

_DEFAULT_WINDOW: Final = timedelta(hours=1)


def declared_prediction(prediction: registry_pb2.Prediction) -> DeclaredPrediction:
    """Returns a prediction of the registry with its defaults filled in."""
    return DeclaredPrediction(
        id=prediction.id,
        attribution_window=duration_from_proto(prediction.attribution_window) or _DEFAULT_WINDOW,
        ignores_missing=prediction.missing_label == registry_pb2.Prediction.IGNORED,
        calibration_range=_range(prediction, "calibration_range") or DEFAULT_CALIBRATION,
        ne_range=_range(prediction, "ne_range"),
        min_positives=prediction.min_positives or DEFAULT_MIN_POSITIVES,
        min_label_coverage=prediction.min_label_coverage or DEFAULT_LABEL_COVERAGE,
    )


def _range(prediction: registry_pb2.Prediction, name: Literal["calibration_range", "ne_range"]) -> Limits | None:
    return from_proto(getattr(prediction, name), Limits) if prediction.HasField(name) else None
