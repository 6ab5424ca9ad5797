"""Examples through gRPC into committed buckets: batches of packed columns, and a row a message beside them.

Registry, stability, PostgreSQL with its default durability and the client that packs the columns share the machine.
A batch is of one model, with the scores of three predictions for the same requests, one after the other, of the last
minute; the client packs each anew and has several under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from modelfleet import AsyncClient, columns
from tests.bench.figures import Figure
from tests.support.postgres import Postgres
from tests.support.processes import part, registry_process, stability_process
from tests.support.stability_load import MODELS, PREDICTIONS, TYPE, register, stability_at

NAMES = ("stability.ingest_examples_per_second",)

_ROUNDS = 5
_SECONDS = 3.0
# 3.9 MB a message.
_BATCH_ROWS = 3 * 68_000
_UNDER_WAY = 4
_SINGLE_CALLERS = 32


async def run() -> list[Figure]:
    """Measures both in turn, and looks that all of it is in the tables."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder), "")
        stack.callback(postgres.stop)
        url = postgres.create()
        async with (
            registry_process(url) as (_, registry),
            stability_process(url, registry) as (service, stability),
            part(__name__, stability) as client,
        ):
            await register(registry)
            await client.line()
            spent = {
                "client": client.cpu_seconds,
                "service": service.cpu_seconds,
                "PostgreSQL": postgres.cpu_seconds,
            }

            async def told(command: str) -> float:
                client.send(command)
                return float(json.loads(await client.line()))

            rounds, cpu = [], dict.fromkeys(spent, 0.0)
            for _ in range(_ROUNDS):
                before, sent = {name: read() for name, read in spent.items()}, await told("sent")
                batches = await told("batches")
                millions = (await told("sent") - sent) / 1e6
                for name, read in spent.items():
                    cpu[name] += (read() - before[name]) / millions / _ROUNDS
                rounds.append((batches, await told("rows")))
            sent = await told("sent")
            async with stability_at(stability) as asking:
                counted = [
                    (await asking.stability.query_series(model=model, prediction=prediction)).total.examples
                    for model in MODELS
                    for prediction in PREDICTIONS
                ]
            assert sum(counted) == sent, f"{sent} were acknowledged, {sum(counted)} are counted"
    single = statistics.median(rows for _, rows in rounds)
    return [
        Figure(
            name=NAMES[0],
            value=statistics.median(batches for batches, _ in rounds),
            unit="examples/s",
            yardstick=f"a row a message, {_SINGLE_CALLERS} under way, in the same run: {single:,.0f}/s; batches "
            f"of {_BATCH_ROWS:,} rows, {_UNDER_WAY} under way; CPU seconds for a million examples: "
            + ", ".join(f"{name} {seconds:.2f}" for name, seconds in cpu.items()),
            target=2e6,
            better="higher",
        )
    ]


class _Producer:
    """Sends batches and counts what was acknowledged."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._sequence = itertools.count(1)
        self.sent = 0
        rng = np.random.default_rng(1)
        self._scores = rng.beta(1, 20, _BATCH_ROWS)
        self._labels = (rng.random(_BATCH_ROWS) < self._scores).astype(np.uint8)
        self._predictions = np.repeat(np.arange(3, dtype=np.uint8), _BATCH_ROWS // 3)

    async def rate(self, rows: int, callers: int) -> float:
        """Returns the rows a second that so many callers get acknowledged."""
        start, before = time.perf_counter(), self.sent
        end = start + _SECONDS

        async def send_again_and_again() -> None:
            while time.perf_counter() < end:
                await self._send(rows)

        await asyncio.gather(*(send_again_and_again() for _ in range(callers)))
        return (self.sent - before) / (time.perf_counter() - start)

    async def _send(self, rows: int) -> None:
        sequence = next(self._sequence)
        now = time.time_ns() // 1000
        spread = np.linspace(-59e6, 0, rows // 3).astype(np.int64) if rows > 1 else np.zeros(1, np.int64)
        times = now + (np.tile(spread, 3) if rows > 1 else spread)
        request = columns.examples(
            model_type=TYPE, producer="bench", sequence=sequence, model=MODELS[sequence % 2], prediction=PREDICTIONS[0],
            event_time=times, score=self._scores[:rows], label=self._labels[:rows],
        )  # fmt: skip
        if rows > 1:
            request.batch.predictions.extend(PREDICTIONS[1:])
            request.prediction_index = columns.pack_uint8(self._predictions)
        answer = await self._client.stability.write_examples(request, timeout=30)
        assert answer.accepted_rows == rows, answer
        self.sent += rows


async def _produce(address: str) -> None:
    async with stability_at(address) as client:
        producer = _Producer(client)
        print("ready", flush=True)
        while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
            answers: dict[str, Any] = {
                "batches": lambda: producer.rate(_BATCH_ROWS, _UNDER_WAY),
                "rows": lambda: producer.rate(1, _SINGLE_CALLERS),
            }
            said = producer.sent if command == "sent" else await answers[command]()
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_produce(*sys.argv[1:]))
