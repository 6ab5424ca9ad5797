"""Reading: series and judgements."""

from __future__ import annotations

import asyncio

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.errors import PartUnavailable, invalid
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability.api.base import Base, Context
from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits, checked, confidence_or_default
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
        # Thousands of points take a while to make, and others shall not wait for them.
        return await asyncio.to_thread(wire.series, found, *self._ranges(request.model, prediction))

    def _ranges(
        self, model: str, prediction: DeclaredPrediction
    ) -> tuple[HealthyRange | Limits | None, HealthyRange | Limits | None]:
        """Returns the ranges in force of calibration and NE: of a model that does not serve, the declared ones."""
        try:
            watched = self._fleet.view().models.get(model)
        except PartUnavailable:
            watched = None
        if watched is None:
            return prediction.calibration_range, prediction.ne_range
        calibration, ne = (watched.ranges.get((prediction.id, each)) for each in (Metric.CALIBRATION, Metric.NE))
        return calibration, ne

    async def JudgeModel(self, request: pb.JudgeModelRequest, context: Context) -> pb.Judgement:
        model_type, _ = MODEL.parse(request.model, "model")
        if request.baseline:
            baseline_type, _ = MODEL.parse(request.baseline, "baseline")
            if baseline_type != model_type or request.baseline == request.model:
                raise invalid("baseline", f"must be another model of {MODEL_TYPE.format(model_type)}")
        declared = await self._registry.declared_of_model(request.model)
        if request.baseline:
            await self._registry.check_models([("baseline", request.baseline)])
        criteria = checked(wire.criteria(request), declared.predictions, has_baseline=bool(request.baseline))
        start, end = wire.times(request)
        if start is None:
            raise invalid("start_time", "is required")
        found = await self._reader.judge(declared, request.model, request.baseline, criteria, start, end)
        return wire.judgement(found)
