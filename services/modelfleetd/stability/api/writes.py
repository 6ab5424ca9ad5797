"""Writing: examples, predictions, labels, statistics."""

from __future__ import annotations

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability.api.base import Base, Context
from modelfleetd.stability.domain.sampling import ALL_SAMPLED
from modelfleetd.stability.wire import batches as wire
from modelfleetd.stability.writer import Sender

# Of models, and of predictions: their indexes are single bytes.
_MOST_NAMES = 255
_MOST_CHARACTERS = 200
_WITH_REQUEST_IDS = (pb.WritePredictionsRequest, pb.WriteLabelsRequest)


class Writes(Base):
    """Hands batches to the writer."""

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

    async def WriteStatistics(self, request: pb.WriteStatisticsRequest, context: Context) -> pb.WriteResponse:
        sender = await self._sender(request)
        outcome = await self._writer.statistics(sender, wire.raw_statistics(request, sender.windows))
        return wire.write_response(self._metrics.counted("statistics", outcome))

    async def _sender(self, request: wire.WriteRequest) -> Sender:
        """Checks what every batch carries; returns it with the declarations that its indexes point to.

        Raises:
            InvalidFields: names, numbers or predictions that cannot be; all of them.
            ReferenceNotFound: the model type, or a model, does not exist.
            NotConfigured: the model type declares no predictions.
        """
        batch = request.batch
        found = _wrong(batch, has_request_ids=isinstance(request, _WITH_REQUEST_IDS))
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


def _wrong(batch: pb.Batch, *, has_request_ids: bool) -> list[FieldViolation]:
    (model_type,) = MODEL_TYPE.parse(batch.model_type, "batch.model_type")
    found = []
    if not 1 <= len(batch.producer) <= _MOST_CHARACTERS:
        found.append(FieldViolation("batch.producer", f"must have 1 to {_MOST_CHARACTERS} characters"))
    if batch.sequence < 1:
        found.append(FieldViolation("batch.sequence", "must be at least 1"))
    if not 0 <= batch.sample_permille <= ALL_SAMPLED:
        found.append(FieldViolation("batch.sample_permille", f"must be 1 to {ALL_SAMPLED}; 0: all requests are sent"))
    elif batch.sample_permille and not has_request_ids:
        found.append(FieldViolation("batch.sample_permille", "must be 0: these rows carry no request id to sample by"))
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
