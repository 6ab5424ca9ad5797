"""The search for a replica's maximum, 200 times on each simulated server whose maximum is known: probes, and claims."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from modelfleetd.capacity.loadtest.search import Found
from tests.bench.figures import Figure
from tests.support.queueing import CASES, double_and_bisect, run_search

NAMES = ("capacity.search_probes_mean", "capacity.search_overclaim_share")

_RUNS = int(os.environ.get("BENCH_SEARCHES", "200"))
_OVERCLAIM = 1.02


@dataclass(frozen=True, slots=True)
class Search:
    """One search: what it found, as a share of the known maximum (None: nothing), and what it took."""

    claim: float | None
    probes: int
    requests: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """What the searches on one server come to."""

    searches: Sequence[Search]

    @property
    def claims(self) -> list[float]:
        return [search.claim for search in self.searches if search.claim is not None]

    @property
    def probes_mean(self) -> float:
        return float(np.mean([search.probes for search in self.searches]))

    @property
    def overclaim_share(self) -> float:
        """The share of all searches that claimed over 2 % too much."""
        return sum(claim > _OVERCLAIM for claim in self.claims) / len(self.searches)

    def cells(self) -> tuple[str, ...]:
        return (
            f"{self.probes_mean:.1f}",
            f"{np.percentile([search.probes for search in self.searches], 95):.0f}",
            f"{np.mean([search.requests for search in self.searches]):,.0f}",
            f"{np.mean([search.seconds for search in self.searches]) / 60:.0f}",
            f"{np.mean(self.claims) - 1:+.1%}",
            f"{self.overclaim_share:.1%}",
            f"{len(self.searches) - len(self.claims)}",
        )


async def run() -> list[Figure]:
    """Searches on every server, as load tests do and as common tools do."""
    jobs = [(place, seed) for seed in range(_RUNS) for place in range(len(CASES))]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        loop = asyncio.get_running_loop()
        ours = await asyncio.gather(*(loop.run_in_executor(pool, _ours, *job) for job in jobs))
        others = await asyncio.gather(*(loop.run_in_executor(pool, _others, *job) for job in jobs))
    rows = [
        Row([found for found, (of, _) in zip(ours, jobs, strict=True) if of == place]) for place in range(len(CASES))
    ]
    beside = [
        Row([found for found, (of, _) in zip(others, jobs, strict=True) if of == place]) for place in range(len(CASES))
    ]
    _print(rows, beside)
    most, worst = max(row.probes_mean for row in rows), max(row.overclaim_share for row in rows)
    servers = f"the worst of {len(CASES)} simulated servers, {_RUNS} searches each"
    return [
        Figure(
            name="capacity.search_probes_mean",
            value=most,
            unit="probes",
            yardstick=f"{servers}, from within 25 % of the maximum; doubling and bisecting takes "
            f"{max(row.probes_mean for row in beside):.1f}, none of which confirms anything",
            target=8.0,
            better="lower",
        ),
        Figure(
            name="capacity.search_overclaim_share",
            value=worst,
            unit="",
            yardstick=f"share that claims over 2 % too much, {servers}; doubling and bisecting: "
            f"{min(row.overclaim_share for row in beside):.0%} to {max(row.overclaim_share for row in beside):.0%}",
            target=0.02,
            better="lower",
        ),
    ]


def _start(place: int, seed: int) -> float:
    return CASES[place].maximum * random.Random(len(CASES) * seed + place).uniform(0.75, 1.25)


def _ours(place: int, seed: int) -> Search:
    case = CASES[place]
    found = run_search(case, _start(place, seed), seed)
    claim = found.result.max_qps / case.maximum if isinstance(found.result, Found) else None
    return Search(claim, len(found.probes), found.requests, found.seconds)


def _others(place: int, seed: int) -> Search:
    case = CASES[place]
    found = double_and_bisect(case, _start(place, seed), seed)
    return Search(found.max_qps / case.maximum, found.probes, found.requests, found.seconds)


def _print(rows: Sequence[Row], beside: Sequence[Row]) -> None:
    made = Table(title=f"{_RUNS} searches each, from within 25 % of the maximum; below: doubling and bisecting")
    made.add_column("server", no_wrap=True)
    for title in ("maximum", "probes", "p95", "requests", "minutes", "bias", "over-claim", "not found"):
        made.add_column(title, justify="right", no_wrap=True)
    for case, ours, others in zip(CASES, rows, beside, strict=True):
        made.add_row(case.name, f"{case.maximum:.1f}/s", *ours.cells())
        made.add_row("", "", *others.cells(), style="dim", end_section=True)
    Console(width=120).print(made)


if __name__ == "__main__":
    asyncio.run(run())
