"""ListSlos over gRPC: pages of 50 of a fleet of 1,000 model types with 30 days of minutes; beside it GetSlo.

Registry, stability and client share one process. Every 20 calls a minute more is evaluated, so that calls meet the
reading of it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.figures import Figure

NAMES = ("stability.list_slos_p99_ms",)
_TYPES = 1000
_CALLS = 600
_WARM_UP = 20
_PAGE = 50
_A_MINUTE = 20
_AT_ONCE = 100
_ORDERS = ("", "budget_left")


async def run() -> list[Figure]:
    """Measures."""
    from modelfleet.synthetic import generate
    from modelfleetd.clock import ManualClock
    from modelfleetd.kit.migrations import migrate
    from modelfleetd.registry import migrations as registry_migrations
    from modelfleetd.registry.app import build as build_registry
    from modelfleetd.stability import migrations
    from modelfleetd.stability.app import build as build_stability
    from modelfleetd.stability.budgets import KEPT
    from modelfleetd.stability.domain.maturity import minute_of
    from modelfleetd.stability.domain.slices import Slice
    from tests.support.postgres import Postgres
    from tests.support.servers import client_of, running
    from tests.support.slices import write_history, write_minute
    from tests.support.stability import NOW
    from tests.support.synthetic import write_fleet
    from tests.support.wait import until

    # As stability's clock stands still, it evaluates one minute itself; the others are written here.
    minute = minute_of(NOW)
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        url = postgres.create()
        await migrate(url, "registry", registry_migrations)
        await write_fleet(url, generate(_TYPES, 2))
        async with (
            running("registry", build_registry, url) as registry,
            running(
                "stability", build_stability, url, clock=ManualClock(NOW), registry_address=registry.address
            ) as service,
            client_of(registry, service, timeout=60) as client,
        ):
            stability = client.stability
            await migrate(url, "stability", migrations)
            slos = [slo.name async for slo in stability.list_slos_all(page_size=1000)]
            chance = np.random.default_rng(1)
            month = chance.choice(np.array([1, 1, 1, 1, 2, 3], dtype=np.uint8), size=30 * 1440)
            minute += 4 * 1440
            for begin in range(0, len(slos), _AT_ONCE):
                part = slos[begin : begin + _AT_ONCE]
                await write_history(url, minute, {(slo, kind): month for slo in part for kind in KEPT})
            began = time.perf_counter()
            await until(lambda: stability.list_slos(page_size=1), timeout=300)
            read = time.perf_counter() - began
            pages, gets, sizes = [], [], []
            for number in range(-_WARM_UP, _CALLS):
                if number % _A_MINUTE == 0:
                    minute += 1
                    await write_minute(url, minute, {(slo, kind): Slice.GOOD for slo in slos for kind in KEPT})
                asked: dict[str, Any] = {"order_by": _ORDERS[number % 2], "filter": "tier <= TIER4", "page_size": _PAGE}
                page, answer = await _timed(stability.list_slos(**asked))
                got, _ = await _timed(stability.get_slo(name=slos[number % len(slos)]))
                if number >= 0:
                    pages.append(page)
                    gets.append(got)
                    sizes.append(len(answer.slos))
    shown = (
        f"{len(slos):,} objectives, pages of {min(sizes)}, read at the start within {read:.1f} s; median "
        f"{1e3 * sorted(pages)[len(pages) // 2]:.1f} ms; GetSlo p99 {1e3 * _p99(gets):.1f} ms, median "
        f"{1e3 * sorted(gets)[len(gets) // 2]:.1f} ms"
    )
    return [Figure(name=NAMES[0], value=1e3 * _p99(pages), unit="ms", yardstick=shown, target=100.0, better="lower")]


async def _timed(call: Awaitable[Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = await call
    return time.perf_counter() - began, answer


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]
