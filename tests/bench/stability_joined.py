"""Predictions joined with labels that come later: both sent at a steady rate, every prediction gets its label.

For 60 s; JOINED_SECONDS=600 for the ten minutes that the target is about. Registry, stability, PostgreSQL with its
default durability and the client share the machine. The prediction is one whose examples count only with their label,
which costs most: a label of either kind has to find its prediction.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelfleet import AsyncClient, columns
from tests.bench.figures import Figure
from tests.support.postgres import Postgres
from tests.support.processes import part, registry_process, stability_process
from tests.support.stability_load import BUY, MODELS, TYPE, register, stability_at

NAMES = ("stability.joined_predictions_per_second",)

_SECONDS = float(os.environ.get("JOINED_SECONDS", "60"))
# Offered, so that ten minutes fit on a disk and rows do not wait in memory of the client.
_OFFERED = 40_000
_BATCH_ROWS = 8_000
# Labels come so long after their predictions.
_DELAY = 10.0
_UNDER_WAY = 4
_WINDOW = 10.0


async def run() -> list[Figure]:
    """Sends for so long, and looks that every label has found its prediction."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder), "")
        stack.callback(postgres.stop)
        url = postgres.create()
        async with (
            registry_process(url) as (_, registry),
            stability_process(url, registry) as (_, stability),
            part(__name__, stability) as client,
        ):
            await register(registry)
            await client.line()
            client.send("go")
            joined, slowest, seconds = json.loads(await client.line())
            async with stability_at(stability) as asking:
                total = (await asking.stability.query_series(model=MODELS[0], prediction=BUY)).total
            assert total.examples == joined, f"{joined} were joined, {total.examples} are counted"
    return [
        Figure(
            name=NAMES[0],
            value=joined / seconds,
            unit="joined/s",
            yardstick=f"offered {_OFFERED:,}/s for {seconds:.0f} s (JOINED_SECONDS), labels {_DELAY:.0f} s after their "
            f"predictions; in the slowest {_WINDOW:.0f} s {slowest:,.0f}/s",
            target=20_000,
            better="higher",
        )
    ]


class _Producer:
    """Sends predictions by the clock, and the labels of those that are old enough."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._sequence = itertools.count(1)
        self._rng = np.random.default_rng(1)
        self._unlabelled: deque[tuple[float, npt.NDArray[np.uint8]]] = deque()
        # When how many were joined.
        self.joined: list[tuple[float, int]] = []

    async def send(self) -> tuple[int, float, float]:
        """Returns how many were joined, how many a second in the slowest stretch, and for how long it was sent."""
        start = time.perf_counter()
        ticks = iter(range(int(_SECONDS * _OFFERED / _BATCH_ROWS)))

        async def by_the_clock() -> None:
            for tick in ticks:
                await asyncio.sleep(max(0.0, start + tick * _BATCH_ROWS / _OFFERED - time.perf_counter()))
                await self._predict()
                while self._unlabelled and time.perf_counter() - self._unlabelled[0][0] >= _DELAY:
                    await self._label(self._unlabelled.popleft()[1])

        await asyncio.gather(*(by_the_clock() for _ in range(_UNDER_WAY)))
        while self._unlabelled:
            await self._label(self._unlabelled.popleft()[1])
        seconds = time.perf_counter() - start
        # The first labels come late, as they do.
        stretches = np.arange(start + _DELAY, start + seconds - _WINDOW + 1e-9, _WINDOW)
        slowest = min(
            (sum(rows for when, rows in self.joined if begin <= when < begin + _WINDOW) for begin in stretches),
            default=0,
        )
        return sum(rows for _, rows in self.joined), slowest / _WINDOW, seconds

    async def _predict(self) -> None:
        ids = self._rng.integers(0, 256, (_BATCH_ROWS, 16), dtype=np.uint8)
        request = columns.predictions(
            **self._common(), request_id=ids, event_time=self._now(), score=self._rng.beta(1, 20, _BATCH_ROWS)
        )
        answer = await self._client.stability.write_predictions(request, timeout=30)
        assert answer.accepted_rows == _BATCH_ROWS, answer
        self._unlabelled.append((time.perf_counter(), ids))

    async def _label(self, ids: npt.NDArray[np.uint8]) -> None:
        labels = self._rng.random(_BATCH_ROWS) < 0.05
        request = columns.labels(**self._common(), request_id=ids, label_time=self._now(), label=labels)
        answer = await self._client.stability.write_labels(request, timeout=30)
        assert answer.accepted_rows == _BATCH_ROWS, answer
        self.joined.append((time.perf_counter(), _BATCH_ROWS))

    def _common(self) -> dict[str, Any]:
        return {
            "model_type": TYPE,
            "producer": "bench",
            "sequence": next(self._sequence),
            "model": MODELS[0],
            "prediction": BUY,
        }

    def _now(self) -> npt.NDArray[np.int64]:
        return np.full(_BATCH_ROWS, time.time_ns() // 1000)


async def _produce(address: str) -> None:
    async with stability_at(address) as client:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(json.dumps(await _Producer(client).send()), flush=True)


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_produce(*sys.argv[1:]))
