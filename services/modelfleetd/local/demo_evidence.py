"""What the demo tells stability: every prediction as it is made, every click when it comes, in batches."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from modelfleet import AsyncClient, columns
from modelfleet.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from modelfleet.stability.v1 import stability_pb2 as pb

_Request = TypeVar("_Request")

_PAUSE = 0.25
_RETRY_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class _Row:
    """A prediction, or a click where there is no score."""

    model: str
    request_id: bytes
    time_micros: int
    score: float = 0.0


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
        self._predicted: list[_Row] = []
        self._clicked: list[_Row] = []

    def predicted(self, model: str, request_ids: Sequence[bytes], scores: Sequence[float]) -> None:
        """Notes the predictions that a model has just answered with."""
        now = _now_micros()
        pairs = zip(request_ids, scores, strict=True)
        self._predicted.extend(_Row(model, request_id, now, score) for request_id, score in pairs)

    def clicked(self, model: str, request_id: bytes) -> None:
        """Notes that an impression has just been clicked."""
        self._clicked.append(_Row(model, request_id, _now_micros()))

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
            times, scores = [row.time_micros for row in predicted], [row.score for row in predicted]
            request = columns.predictions(**self._batch(predicted), event_time=times, score=scores)
            await self._write(self._client.stability.write_predictions, request)
            self.predictions += len(predicted)
        if clicked:
            labels = columns.labels(**self._batch(clicked), label_time=[row.time_micros for row in clicked])
            await self._write(self._client.stability.write_labels, labels)
            self.clicks += len(clicked)

    def _batch(self, rows: Sequence[_Row]) -> dict[str, Any]:
        self._sequence += 1
        return {
            "model_type": self._model_type,
            "producer": self._producer,
            "sequence": self._sequence,
            "model": [row.model for row in rows],
            "prediction": self._prediction,
            "request_id": [row.request_id for row in rows],
        }

    async def _write(self, write: Callable[[_Request], Awaitable[pb.WriteResponse]], request: _Request) -> None:
        while True:
            try:
                answer = await write(request)
                break
            except (Unavailable, DeadlineExceeded, ResourceExhausted):  # by its sequence it counts once
                await asyncio.sleep(_RETRY_PAUSE)
        for rows in answer.rejected:
            self.rejected[pb.RejectedRows.Reason.Name(rows.reason)] += rows.rows


def _now_micros() -> int:
    return time.time_ns() // 1_000
