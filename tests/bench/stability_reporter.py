"""What `modelfleet.StabilityReporter` adds to a call, in the thread that serves, while its thread packs and sends.

A service of its own process takes what is sent. Beside it, what copying the same arrays takes in the same thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelfleet import StabilityReporter
from tests.bench.figures import Figure
from tests.support.postgres import Postgres
from tests.support.processes import registry_process, stability_process
from tests.support.stability_load import CLICK, MODELS, TYPE, register

NAMES = ("stability.reporter_p999_us",)

# Candidates of one request of a ranking model, with a request id for each.
_ROWS = 500
_CALLS = 8_000
# Between calls: about what one serving process carries.
_PACE_SECONDS = 0.005


async def run() -> list[Figure]:
    """Measures predictions as they are, and examples added up, on one thread."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder), "")
        stack.callback(postgres.stop)
        url = postgres.create()
        async with registry_process(url) as (_, registry), stability_process(url, registry) as (_, stability):
            await register(registry)
            times, copying = await asyncio.to_thread(_measured, stability)
    p999 = statistics.quantiles(times, n=1000)[-1]
    return [
        Figure(
            name=NAMES[0],
            value=p999 * 1e6,
            unit="µs/call",
            yardstick=f"99.9th percentile of {len(times):,} calls of {_ROWS} rows each, a quarter predictions, "
            f"the rest examples that are added up; median {statistics.median(times) * 1e6:.0f} µs; copying the arrays "
            f"alone: median {statistics.median(copying) * 1e6:.0f} µs, 99.9th percentile "
            f"{statistics.quantiles(copying, n=1000)[-1] * 1e6:.0f} µs",
            target=1000.0,
            better="lower",
        )
    ]


def _measured(address: str) -> tuple[Sequence[float], Sequence[float]]:
    rng = np.random.default_rng(1)
    score, label = rng.beta(1, 20, _ROWS), np.zeros(_ROWS)
    ids = rng.integers(0, 256, (_CALLS, _ROWS, 16), dtype=np.uint8)
    names: dict[str, Any] = {"model": MODELS[0], "prediction": CLICK}
    with StabilityReporter(TYPE, address, aggregate=True, buffer_rows=2_000_000) as reporter:
        times = _paced(
            lambda call: (
                reporter.report_examples(**names, score=score, label=label)
                if call % 4
                else reporter.report_predictions(**names, score=score, request_id=ids[call])
            )
        )
        copying = _paced(lambda call: (score.copy(), ids[call].copy()))
        assert reporter.flush(300)
        counts = reporter.counts
        assert (counts.accepted, counts.rejected, counts.dropped) == (_CALLS * _ROWS, {}, 0), (counts, reporter.error)
    return times, copying


def _paced(call: Callable[[int], Any]) -> Sequence[float]:
    times = []
    for number in range(_CALLS):
        began = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - began)
        time.sleep(_PACE_SECONDS)
    return times
