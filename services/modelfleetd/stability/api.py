"""Stability's methods: parse, decide, store, reply."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleet.stability.v1 import stability_pb2_grpc
from modelfleetd.errors import FieldViolation, InvalidFields, invalid
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability import wire
from modelfleetd.stability.domain.criteria import checked, confidence_or_default
from modelfleetd.stability.intake_metrics import IntakeMetrics
from modelfleetd.stability.reader import Reader
from modelfleetd.stability.registry import Registry
from modelfleetd.stability.writer import Sender, Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Of models, and of predictions: their indexes are single bytes.
_MOST_NAMES = 255
_MOST_CHARACTERS = 200


class StabilityServicer(stability_pb2_grpc.StabilityServiceServicer):
    """Hands batches to the writer and questions to the reader."""

    def __init__(self, registry: Registry, writer: Writer, reader: Reader, metrics: IntakeMetrics) -> None:
        self._registry = registry
        self._writer = writer
        self._reader = reader
        self._metrics = metrics

    async def WriteExamples(self, request: pb.WriteExamplesRequest, context: Context) -> pb.WriteResponse:
        sender = await self._sender(request)
        outcome = await self._writer.examples(sender, wire.raw_batch(request, sender.windows))
        return wire.write_response(self._metrics.counted("examples", outcome))

    async def WritePredictions(self, request: pb.WritePredictionsRequest, context: Context) -> pb.WriteResponse:
        sender = await self._sender(request)
        outcome = await self._writer.predictions(sender, wire.raw_batch(request, sender.windows))
        return wire.write_response(self._metrics.counted("predictions", outcome))

    async def WriteLabels(self, request: pb.WriteLabelsRequest, context: Context) -> pb.WriteResponse:
        sender = await self._sender(request)
        outcome = await self._writer.labels(sender, wire.raw_batch(request, sender.windows))
        return wire.write_response(self._metrics.counted("labels", outcome))

    async def QuerySeries(self, request: pb.QuerySeriesRequest, context: Context) -> pb.QuerySeriesResponse:
        MODEL.parse(request.model, "model")
        confidence = confidence_or_default(request.confidence, "confidence")
        declared = await self._registry.declared_of_model(request.model)
        prediction = declared.predictions.get(request.prediction or next(iter(declared.predictions)))
        if prediction is None:
            raise invalid("prediction", f"must be one that the model type declares: {', '.join(declared.predictions)}")
        points, total = await self._reader.series(
            request.model,
            prediction,
            *wire.times(request),
            wire.resolution(request),
            confidence=confidence,
            matured_only=request.matured_only,
        )
        return wire.series(points, total)

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

    async def _sender(self, request: wire.WriteRequest) -> Sender:
        """Checks what every batch carries; returns it with the declarations that its indexes point to.

        Raises:
            InvalidFields: names, numbers or predictions that cannot be; all of them.
            ReferenceNotFound: the model type, or a model, does not exist.
            NotConfigured: the model type declares no predictions.
        """
        batch = request.batch
        found = _wrong(batch)
        if found:
            raise InvalidFields(found)
        declared = await self._registry.declared(batch.model_type, "batch.model_type")
        known = ", ".join(declared.predictions)
        found = [
            FieldViolation(f"batch.predictions[{index}]", f"must be one that {batch.model_type} declares: {known}")
            for index, prediction in enumerate(batch.predictions)
            if prediction not in declared.predictions
        ]
        if found:
            raise InvalidFields(found)
        await self._registry.check_models([(f"batch.models[{index}]", name) for index, name in enumerate(batch.models)])
        predictions = [declared.predictions[prediction] for prediction in batch.predictions]
        return Sender(wire.batch_id(request), list(batch.models), predictions)


def _wrong(batch: pb.Batch) -> list[FieldViolation]:
    (model_type,) = MODEL_TYPE.parse(batch.model_type, "batch.model_type")
    found = []
    if not 1 <= len(batch.producer) <= _MOST_CHARACTERS:
        found.append(FieldViolation("batch.producer", f"must have 1 to {_MOST_CHARACTERS} characters"))
    if batch.sequence < 1:
        found.append(FieldViolation("batch.sequence", "must be at least 1"))
    for field, names in (("models", batch.models), ("predictions", batch.predictions)):
        if not 1 <= len(names) <= _MOST_NAMES:
            found.append(FieldViolation(f"batch.{field}", f"must have 1 to {_MOST_NAMES} entries"))
        repeated = {name for index, name in enumerate(names) if name in names[:index]}
        found += [FieldViolation(f"batch.{field}", f"has {name} twice") for name in sorted(repeated)]
    for index, model in enumerate(batch.models):
        ids = MODEL.match(model)
        if ids is None or ids[0] != model_type:
            accepted = f"must be a model of {batch.model_type}: {MODEL.format(model_type, '{model}')}"
            found.append(FieldViolation(f"batch.models[{index}]", accepted))
    return found
