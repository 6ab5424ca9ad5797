"""A model type in a registry, for benchmarks and fault tests that send a real stability what a real clock says."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient, columns
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.errors import DeadlineExceeded, Unavailable
from modelfleet.registry.v1 import registry_pb2 as registry
from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.columns import Examples, RawBatch, decode_examples
from modelfleetd.stability.domain.maturity import age_buckets
from modelfleetd.stability.domain.summary import Statistics, count_positives, expose, pick, scored, summarise_examples
from modelfleetd.stability.domain.sums import Exposure, Positives, Sums
from tests.domain.stability_rows import bin_totals, totals
from tests.support.wait import until

TYPE: Final = "modelTypes/ctr"
MODELS: Final = (f"{TYPE}/models/a", f"{TYPE}/models/b")
# Of `click` a missing label is a negative; a `buy` counts with its label.
CLICK, BUY = "click", "buy"
PREDICTIONS: Final = (CLICK, BUY, "like")


async def register(registry_address: str) -> None:
    """Registers the model type with its models; labels come for ten minutes."""
    window = Duration(seconds=600)
    predictions = [registry.Prediction(id=name, attribution_window=window) for name in PREDICTIONS]
    predictions[1].missing_label = registry.Prediction.IGNORED
    spec = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
    async with AsyncClient("127.0.0.1:1", registry=registry_address) as client:
        await client.registry.create_team(team_id="feed", team=registry.Team())
        await client.registry.create_region(region_id="eu", region=registry.Region(agent_address="127.0.0.1:1"))
        made = registry.ModelType(team="teams/feed", regions=["regions/eu"], predictions=predictions)
        await client.registry.create_model_type(model_type_id="ctr", model_type=made)
        for model in MODELS:
            given = registry.Model(serving_spec=spec)
            await client.registry.create_model(parent=TYPE, model_id=model.rsplit("/", 1)[-1], model=given)


@asynccontextmanager
async def stability_at(address: str, **options: Any) -> AsyncIterator[AsyncClient]:
    """Gives a client of a stability that listens there."""
    async with AsyncClient("127.0.0.1:1", stability=address, **options) as client:
        yield client


class Load:
    """Producers that send examples, predictions and labels, and repeat each batch until it is answered.

    What they got acknowledged is remembered, to be added up apart: all of it at once, in this process.
    """

    def __init__(self, clients: Sequence[AsyncClient], *, first_timeout: float = 10.0) -> None:
        """Sends to any of the clients; a first attempt has up to so many seconds, which may be too few."""
        self._clients = clients
        self._first_timeout = first_timeout
        self._chance = random.Random(1)
        self.acknowledged = 0
        self.failures: Counter[str] = Counter()
        self.repeated = 0  # batches that were answered as written before
        self._examples: list[dict[str, Any]] = []
        self._joined: list[dict[str, Any]] = []
        self._ending = False

    @asynccontextmanager
    async def running(self, producers: int) -> AsyncIterator[None]:
        """Runs so many producers until the block ends and each has what it sent acknowledged."""
        tasks = [asyncio.create_task(self._produce(number)) for number in range(producers)]
        try:
            yield
            self._ending = True
            await asyncio.wait_for(asyncio.gather(*tasks), 60)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def acknowledge(self, batches: int) -> None:
        """Waits until so many more batches were answered."""
        wanted = self.acknowledged + batches
        await until(lambda: self.acknowledged >= wanted, timeout=60)

    async def fail(self, attempts: int) -> None:
        """Waits until so many more attempts have failed."""
        wanted = self.failures.total() + attempts
        await until(lambda: self.failures.total() >= wanted, timeout=60)

    async def repeat(self, batches: int) -> None:
        """Waits until so many more batches were answered as written before."""
        wanted = self.repeated + batches
        await until(lambda: self.repeated >= wanted, timeout=60)

    def expected(self) -> dict[tuple[str, str], tuple[Any, Any]]:
        """Sums, and bins, by model and prediction, of everything that was acknowledged, as one batch."""
        found: dict[tuple[str, str], Statistics] = {}
        for sent in self._examples:
            found[sent["series"]] = found.get(sent["series"], Statistics.none()) + summarise_examples(_rows(sent))
        for sent in self._joined:
            rows = _rows(sent)
            positive = np.flatnonzero(rows.label)
            ages = age_buckets(rows.event[positive], sent["label_time"][positive])
            counted = expose(scored(rows)) + count_positives(pick(scored(rows), positive), ages)
            found[sent["series"]] = found.get(sent["series"], Statistics.none()) + counted
        return {
            series: (
                {minute: sums for (_, _, minute), sums in totals(statistics).items()},
                {(hour, number): sums for (_, _, hour, number), sums in bin_totals(statistics).items()},
            )
            for series, statistics in found.items()
        }

    async def _produce(self, number: int) -> None:
        rng = np.random.default_rng(number)
        sequence = itertools.count(1)
        name = f"load-{number}-{uuid.uuid4().hex}"
        for turn in itertools.count():
            if self._ending:
                return
            rows = int(rng.integers(1, 200))
            series = (MODELS[turn % 2], CLICK)
            common: dict[str, Any] = {
                "model_type": TYPE, "producer": name, "model": series[0], "prediction": series[1],
            }  # fmt: skip
            event = time.time_ns() // 1000 - rng.integers(0, 120_000_000, rows)
            sent: dict[str, Any] = {
                "series": series,
                "event_time": event,
                "score": rng.beta(0.5, 5, rows),
                "weight": rng.lognormal(0, 2, rows).clip(0, 1e6),
                "label": (rng.random(rows) < 0.3).astype(np.uint8),
            }
            scores = {key: sent[key] for key in ("event_time", "score", "weight")}
            if turn % 3:
                examples = columns.examples(**common, sequence=next(sequence), **scores, label=sent["label"])
                await self._sent("write_examples", examples)
                self._examples.append(sent)
                continue
            ids = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
            positive = sent["label"] == 1
            sent["label_time"] = event + rng.integers(0, 500_000_000, rows).clip(0, 120_000_000)
            calls: list[tuple[str, Any]] = [
                ("write_predictions", columns.predictions(**common, sequence=next(sequence), **scores, request_id=ids))
            ]
            if positive.any():
                times = sent["label_time"][positive]
                labels = columns.labels(**common, sequence=next(sequence), request_id=ids[positive], label_time=times)
                calls.insert(int(rng.integers(0, 2)), ("write_labels", labels))
            for method, request in calls:
                await self._sent(method, request)
            self._joined.append(sent)

    async def _sent(self, method: str, request: Any) -> None:
        # Not always as many: however fast the machine is, some attempts end while the batch is being committed.
        timeout = self._first_timeout * self._chance.uniform(0.1, 1)
        for attempt in itertools.count():
            client = self._clients[(request.batch.sequence + attempt) % len(self._clients)]
            try:
                answer = await getattr(client.stability, method)(request, timeout=timeout)
            except (Unavailable, DeadlineExceeded) as error:
                self.failures[type(error).__name__] += 1
                timeout = 10.0
                await asyncio.sleep(0.02)
            else:
                assert answer.accepted_rows == len(request.model_index), answer
                self.acknowledged += 1
                self.repeated += answer.duplicate
                return


def _rows(sent: dict[str, Any]) -> Examples:
    """What was sent, as the service would decode it."""
    raw = RawBatch(
        models=1,
        windows=(timedelta(minutes=10),),
        model_index=bytes(len(sent["label"])),
        event_time_micros=columns.pack_times(sent["event_time"]),
        score=columns.pack_float64(sent["score"]),
        weight=columns.pack_float64(sent["weight"]),
        label=columns.pack_uint8(sent["label"]),
    )
    rows, refusals = decode_examples(raw, datetime.now(UTC))
    assert len(refusals) == 0
    return rows


async def stored(url: str) -> dict[tuple[str, str], tuple[Any, Any]]:
    """The sums, and bins, that the tables hold, by model and prediction, to the last bit."""
    database = await Database.open(url, "stability", max_size=1)
    found: dict[tuple[str, str], tuple[dict[int, Sums], dict[tuple[int, int], tuple[int, ...]]]] = {}
    try:
        parts: tuple[tuple[str, Any], ...] = (("exposure", Exposure), ("positives", Positives))
        for table, kind in parts:
            names = kind.names()
            added = ", ".join(f"sum({name}) AS {name}" for name in names)
            query = (
                f"SELECT model, prediction, minute, {added} FROM {table} JOIN series ON id = series GROUP BY 1, 2, 3"
            )
            for record in await database.fetch(query):
                sums, _ = found.setdefault((record["model"], record["prediction"]), ({}, {}))
                more = Sums(**{table: kind(*(int(record[name]) for name in names))})
                sums[record["minute"]] = sums.get(record["minute"], Sums()) + more
        query = "SELECT model, prediction, minute, bin, w, wp, wy FROM bins JOIN series ON id = series"
        for record in await database.fetch(query):
            _, bins = found[record["model"], record["prediction"]]
            bins[record["minute"], record["bin"]] = tuple(int(record[name]) for name in ("w", "wp", "wy"))
    finally:
        await database.close()
    return found
