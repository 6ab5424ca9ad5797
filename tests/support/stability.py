"""Stability with a registry behind it, a clock that stands still, and a model type with models to judge."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient, columns
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.registry.v1 import registry_pb2 as registry_pb
from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.clock import ManualClock
from modelfleetd.kit.app import Service
from modelfleetd.kit.db import Database
from modelfleetd.registry.app import build as build_registry
from modelfleetd.stability.app import build as build_stability
from tests.support.servers import client_of, running

CTR, RETRIEVAL = "modelTypes/ctr", "modelTypes/retrieval"
OLD, NEW = f"{CTR}/models/old", f"{CTR}/models/new"
# `click`: a missing label is a negative; `buy`: it does not count; both wait 10 min. `like` waits 3 days.
CLICK, BUY, LIKE = "click", "buy", "like"
WINDOW = timedelta(minutes=10)
NOW = datetime(2025, 3, 1, 12, 0, 30, tzinfo=UTC)


@dataclass
class StabilityFleet:
    """A registry and stability, with a client that may do everything."""

    registry: Service
    stability: Service
    client: AsyncClient
    clock: ManualClock
    database_url: str
    _sequence: Any = field(default_factory=lambda: itertools.count(1))

    async def write(self, request: Any) -> pb.WriteResponse:
        """Sends a batch of any kind."""
        methods: dict[type, Any] = {
            pb.WriteExamplesRequest: self.client.stability.write_examples,
            pb.WritePredictionsRequest: self.client.stability.write_predictions,
            pb.WriteLabelsRequest: self.client.stability.write_labels,
            pb.WriteStatisticsRequest: self.client.stability.write_statistics,
        }
        answer: pb.WriteResponse = await methods[type(request)](request)
        return answer

    def examples(self, p: Sequence[float], y: Sequence[int], **fields: Any) -> pb.WriteExamplesRequest:
        """A batch of examples of one minute before NOW, of the new model, unless told otherwise."""
        given = self._batch() | {"event_time": [at(minutes=-1)] * len(p), "score": p, "label": y} | fields
        return columns.examples(**given)

    def predictions(self, ids: Sequence[uuid.UUID], p: Sequence[float], **fields: Any) -> pb.WritePredictionsRequest:
        """A batch of predictions, likewise."""
        given = self._batch() | {"event_time": [at(minutes=-1)] * len(p), "score": p, "request_id": ids} | fields
        return columns.predictions(**given)

    def labels(self, ids: Sequence[uuid.UUID], **fields: Any) -> pb.WriteLabelsRequest:
        """A batch of labels that came to be just now, likewise; all positive."""
        given = self._batch() | {"label_time": [at()] * len(ids), "request_id": ids} | fields
        return columns.labels(**given)

    async def total(self, model: str = NEW, prediction: str = CLICK, **fields: Any) -> pb.Point:
        """What is known of a model over the last hours."""
        given: dict[str, Any] = {"start_time": at(hours=-5), "end_time": at(hours=5)} | fields
        answer = await self.client.stability.query_series(model=model, prediction=prediction, **given)
        return answer.total

    async def sums(self) -> dict[tuple[str, str, int], tuple[int, ...]]:
        """The stored sums, to the last bit, by model, prediction and minute: exposure, then positives of any age."""
        statement = """
            SELECT model, prediction, minute, array_agg(total ORDER BY place) AS sums FROM (
                SELECT series, minute, unnest(ARRAY[sum(n), sum(w), sum(w2), sum(wp), sum(w2pq), sum(wl), sum(w2l),
                       sum(w2l2)]) AS total, generate_series(1, 8) AS place FROM exposure GROUP BY 1, 2
                UNION ALL
                SELECT series, minute, unnest(ARRAY[sum(n), sum(w), sum(w2), sum(w2l1), sum(wl), sum(w2l), sum(w2l2)]),
                       generate_series(11, 17) FROM positives GROUP BY 1, 2
            ) AS all_sums JOIN series ON series.id = series GROUP BY 1, 2, 3
        """
        return {
            (record["model"], record["prediction"], record["minute"]): tuple(int(total) for total in record["sums"])
            for record in await self.fetch(statement)
        }

    async def fetch(self, statement: str, *arguments: object) -> Sequence[Any]:
        """Reads the schema."""
        database = await Database.open(self.database_url, "stability", max_size=1)
        try:
            return await database.fetch(statement, *arguments)
        finally:
            await database.close()

    def _batch(self) -> dict[str, Any]:
        return {
            "model_type": CTR,
            "producer": "test",
            "sequence": next(self._sequence),
            "model": NEW,
            "prediction": CLICK,
        }


def at(**after_now: float) -> datetime:
    """A moment relative to NOW."""
    return NOW + timedelta(**after_now)


def some_ids(count: int) -> list[uuid.UUID]:
    """Request ids, the same in every run."""
    rng = np.random.default_rng(count)
    return [uuid.UUID(bytes=rng.bytes(16), version=4) for _ in range(count)]


def rejected(answer: pb.WriteResponse) -> dict[str, int]:
    """Rejected rows by reason."""
    return {pb.RejectedRows.Reason.Name(entry.reason): entry.rows for entry in answer.rejected}


@asynccontextmanager
async def stability_fleet(database_url: str, **config: Any) -> AsyncIterator[StabilityFleet]:
    """Runs both services and registers the model types and models."""
    clock = ManualClock(NOW)
    async with (
        running("registry", build_registry, database_url) as registry,
        running(
            "stability", build_stability, database_url, clock=clock, registry_address=registry.address, **config
        ) as stability,
        client_of(registry, stability) as client,
    ):
        await client.registry.create_team(team_id="feed", team=registry_pb.Team())
        await client.registry.create_region(region_id="eu", region=registry_pb.Region(agent_address="127.0.0.1:1"))
        window = Duration(seconds=int(WINDOW.total_seconds()))
        missing = registry_pb.Prediction.IGNORED
        predictions = [
            registry_pb.Prediction(id=CLICK, attribution_window=window),
            registry_pb.Prediction(id=BUY, attribution_window=window, missing_label=missing),
            registry_pb.Prediction(id=LIKE, attribution_window=Duration(seconds=3 * 86400)),
        ]
        common: dict[str, Any] = {"team": "teams/feed", "regions": ["regions/eu"]}
        ctr = registry_pb.ModelType(**common, predictions=predictions)
        await client.registry.create_model_type(model_type_id="ctr", model_type=ctr)
        await client.registry.create_model_type(model_type_id="retrieval", model_type=registry_pb.ModelType(**common))
        spec = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
        for parent, model in ((CTR, "old"), (CTR, "new"), (RETRIEVAL, "two_towers")):
            await client.registry.create_model(
                parent=parent, model_id=model, model=registry_pb.Model(serving_spec=spec)
            )
        yield StabilityFleet(registry, stability, client, clock, database_url)
