"""Reading series."""

from __future__ import annotations

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.errors import PartUnavailable, invalid
from modelfleetd.names import MODEL
from modelfleetd.stability.api.base import Base, Context
from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits, confidence_or_default
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.wire import series as wire


class Series(Base):
    """Hands questions about series to the reader."""

    async def QuerySeries(self, request: pb.QuerySeriesRequest, context: Context) -> pb.QuerySeriesResponse:
        MODEL.parse(request.model, "model")
        confidence = confidence_or_default(request.confidence, "confidence")
        declared = await self._registry.declared_of_model(request.model)
        prediction = declared.predictions.get(request.prediction or next(iter(declared.predictions)))
        if prediction is None:
            raise invalid("prediction", f"must be one that the model type declares: {', '.join(declared.predictions)}")
        found = await self._reader.series(
            request.model,
            prediction,
            *wire.times(request),
            wire.resolution(request),
            confidence=confidence,
            matured_only=request.matured_only,
        )
        return wire.series(found, *self._ranges(request.model, prediction))

    def _ranges(
        self, model: str, prediction: DeclaredPrediction
    ) -> tuple[HealthyRange | Limits | None, HealthyRange | Limits | None]:
        """Returns the ranges in force of calibration and NE, also of a model that does not serve yet."""
        try:
            ranges = self._fleet.healthy_ranges(model)
        except PartUnavailable:
            ranges = {}
        calibration = ranges.get((prediction.id, Metric.CALIBRATION), prediction.calibration_range)
        return calibration, ranges.get((prediction.id, Metric.NE), prediction.ne_range)
