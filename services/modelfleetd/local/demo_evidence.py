"""What the demo tells stability: every prediction as it is made, every click when it comes, in batches."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from modelfleet import AsyncClient
from modelfleet.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from modelfleet.stability.v1 import stability_pb2 as pb

_Request = TypeVar("_Request")

_PAUSE = 0.25
_RETRY_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class _Prediction:
    model: str
    request_id: bytes
    time_micros: int
    score: float


@dataclass(frozen=True, slots=True)
class _Click:
    model: str
    request_id: bytes
    time_micros: int


class Evidence:
    """Collects, and writes a few times a second. A batch that was not answered is sent again as it was."""

    def __init__(self, client: AsyncClient, model_type: str, prediction: str) -> None:
        self.predictions = 0
        self.clicks = 0
        self.rejected: Counter[str] = Counter()
        self._client = client
        self._model_type = model_type
        self._prediction = prediction
        self._producer = f"demo/{uuid.uuid4()}"
        self._sequence = 0
        self._predicted: list[_Prediction] = []
        self._clicked: list[_Click] = []

    def predicted(self, model: str, request_ids: Sequence[bytes], scores: Sequence[float]) -> None:
        """Notes the predictions that a model has just answered with."""
        now = _now_micros()
        pairs = zip(request_ids, scores, strict=True)
        self._predicted.extend(_Prediction(model, request_id, now, score) for request_id, score in pairs)

    def clicked(self, model: str, request_id: bytes) -> None:
        """Notes that an impression has just been clicked."""
        self._clicked.append(_Click(model, request_id, _now_micros()))

    async def run(self) -> None:
        """Writes until it is cancelled."""
        while True:
            await asyncio.sleep(_PAUSE)
            await self.flush()

    async def flush(self) -> None:
        """Writes what there is: predictions first, so that labels find them."""
        predicted, self._predicted = self._predicted, []
        clicked, self._clicked = self._clicked, []
        if predicted:
            batch, index = self._batch([row.model for row in predicted])
            request = pb.WritePredictionsRequest(
                batch=batch,
                model_index=index,
                request_id=b"".join(row.request_id for row in predicted),
                event_time_micros=_integers([row.time_micros for row in predicted]),
                score=np.array([row.score for row in predicted], dtype="<f8").tobytes(),
            )
            self._note(await self._write(self._client.stability.write_predictions, request))
            self.predictions += len(predicted)
        if clicked:
            batch, index = self._batch([row.model for row in clicked])
            labels = pb.WriteLabelsRequest(
                batch=batch,
                model_index=index,
                request_id=b"".join(row.request_id for row in clicked),
                label_time_micros=_integers([row.time_micros for row in clicked]),
            )
            self._note(await self._write(self._client.stability.write_labels, labels))
            self.clicks += len(clicked)

    def _batch(self, rows: Sequence[str]) -> tuple[pb.Batch, bytes]:
        models = sorted(set(rows))
        self._sequence += 1
        batch = pb.Batch(
            model_type=self._model_type,
            producer=self._producer,
            sequence=self._sequence,
            models=models,
            predictions=[self._prediction],
        )
        places = {model: place for place, model in enumerate(models)}
        return batch, bytes(places[model] for model in rows)

    async def _write(
        self, write: Callable[[_Request], Awaitable[pb.WriteResponse]], request: _Request
    ) -> pb.WriteResponse:
        while True:
            try:
                return await write(request)
            except (Unavailable, DeadlineExceeded, ResourceExhausted):  # by sequence it counts once, however often sent
                await asyncio.sleep(_RETRY_PAUSE)

    def _note(self, answer: pb.WriteResponse) -> None:
        for rows in answer.rejected:
            self.rejected[pb.RejectedRows.Reason.Name(rows.reason)] += rows.rows


def _integers(values: Sequence[int]) -> bytes:
    return np.array(values, dtype="<i8").tobytes()


def _now_micros() -> int:
    return time.time_ns() // 1_000
