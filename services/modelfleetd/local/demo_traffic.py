"""The demo's traffic: the log's impressions in their arrival pattern, and its clicks as late labels.

The log's clock is run faster (`compression`); a request carries a few impressions that followed one another. The log
says whether an impression was clicked but not when: labels are sent a short, random while after the answer, as clicks
come. When the log ends it begins anew, which the screen says. A request that fails is counted and never repeated.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

import grpc

from modelfleet.inference.v2 import open_inference_pb2 as pb
from modelfleet.inference.v2 import open_inference_pb2_grpc as rpc
from modelfleetd.local.demo_data import Impressions
from modelfleetd.local.demo_evidence import Evidence
from modelfleetd.local.demo_training import columns_of
from modelfleetd.local.model_server import OUTPUT, encode_request

BATCH = 16
_DEADLINE_SECONDS = 10.0
# Clicks come after this long on average, and after no more than three times as long.
LABEL_DELAY_SECONDS = 0.5
_PAUSE_BETWEEN_PASSES = 0.5


@dataclass(slots=True)
class Counts:
    """What became of the requests so far."""

    served: Counter[str] = field(default_factory=Counter)
    """Requests that were answered, by model."""
    failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Failed requests by what was said."""
    impressions: int = 0
    clicks: int = 0
    passes: int = 1
    """How often the log has been begun."""
    late_seconds: float = 0.0
    """How far the sender is behind its schedule."""

    @property
    def requests(self) -> int:
        """All requests that have ended."""
        return self.served.total() + self.failed


@dataclass(frozen=True, slots=True)
class ReplayedRequest:
    """A few impressions that followed one another."""

    at: float
    """Seconds after the beginning of the log, compressed."""
    message: pb.ModelInferRequest
    clicks: tuple[int, ...]
    """Which of the impressions were clicked."""


class Traffic:
    """Replays impressions until it is cancelled."""

    def __init__(self, address: str, model_type: str, impressions: Impressions, compression: float) -> None:
        self.counts = Counts()
        self.compression = compression
        self._address = address
        self._model_type = model_type
        self._requests = plan(model_type.rpartition("/")[2], impressions, compression)
        self._random = random.Random(7)

    @property
    def duration(self) -> float:
        """Seconds that one pass over the log takes."""
        return self._requests[-1].at + _PAUSE_BETWEEN_PASSES

    @property
    def mean_rate(self) -> float:
        """Requests a second, on average over the log."""
        return len(self._requests) / self.duration

    @property
    def peak_rate(self) -> float:
        """Requests in the busiest second."""
        return float(max(Counter(int(request.at) for request in self._requests).values()))

    async def run(self, evidence: Evidence) -> None:
        """Sends, and hands what was predicted and clicked to `evidence`."""
        headers = (("x-modelfleet-model-type", self._model_type.rpartition("/")[2]),)
        async with grpc.aio.insecure_channel(self._address) as channel, asyncio.TaskGroup() as calls:
            stub = rpc.GRPCInferenceServiceStub(channel)
            while True:
                began = time.monotonic()
                for request in self._requests:
                    wait = began + request.at - time.monotonic()
                    self.counts.late_seconds = max(0.0, -wait)
                    if wait > 0:
                        await asyncio.sleep(wait)
                    calls.create_task(self._send(stub, headers, request, evidence))
                await asyncio.sleep(_PAUSE_BETWEEN_PASSES)
                self.counts.passes += 1

    async def _send(
        self,
        stub: rpc.GRPCInferenceServiceAsyncStub,
        headers: tuple[tuple[str, str], ...],
        request: ReplayedRequest,
        evidence: Evidence,
    ) -> None:
        call = stub.ModelInfer(request.message, timeout=_DEADLINE_SECONDS, metadata=headers)
        try:
            answer = await call
            told = {key: str(value) for key, value in await call.initial_metadata() or ()}
        except grpc.aio.AioRpcError as error:
            self.counts.failed += 1
            self.counts.failures[f"{error.code().name}: {error.details()}"] += 1
            return
        model = told.get("x-modelfleet-model", "")
        scores = next((list(out.contents.fp64_contents) for out in answer.outputs if out.name == OUTPUT), [])
        self.counts.served[model] += 1
        self.counts.impressions += len(scores)
        ids = [uuid.uuid4().bytes for _ in scores]
        evidence.predicted(model, ids, scores)
        for place in request.clicks:
            self.counts.clicks += 1
            delay = min(self._random.expovariate(1 / LABEL_DELAY_SECONDS), 3 * LABEL_DELAY_SECONDS)
            asyncio.get_running_loop().call_later(delay, evidence.clicked, model, ids[place])


def plan(name: str, impressions: Impressions, compression: float) -> list[ReplayedRequest]:
    """Cuts the log into requests, each at the time of its last impression."""
    columns = columns_of(impressions)
    requests = []
    for first in range(0, len(impressions), BATCH):
        rows = slice(first, first + BATCH)
        cells = {column: list(values[rows]) for column, values in columns.items()}
        clicks = tuple(place for place, click in enumerate(impressions.click[rows]) if click)
        at = float(impressions.time[rows][-1] - impressions.time[0]) / compression
        requests.append(ReplayedRequest(at, encode_request(name, str(first), cells), clicks))
    return requests
