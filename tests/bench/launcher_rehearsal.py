"""The fleet rehearsal: a thousand model types, ten thousand launches in seven simulated days with faults.

The domains of all four services with stores in memory, on two processes. Beside the time and the promises that were
broken it prints the figures of the launches, and those of the same fleet without recycling and without future
reservations: what they bring. `BENCH_ABLATIONS=0` leaves these out; `BENCH_FLEET=200x2000` takes a smaller fleet.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Final

from modelfleetd.rehearsal.fleet_outcome import FleetOutcome
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.fleet_run import Progress, run_fleet
from tests.bench.figures import Figure

NAMES = ("launcher.rehearsal_seconds", "launcher.rehearsal_broken_promises")
_SIZE: Final = tuple(int(part) for part in os.environ.get("BENCH_FLEET", "1000x10000").split("x"))
_ABLATIONS: Final = os.environ.get("BENCH_ABLATIONS", "1") != "0"
_SHOWN: Final = 8


async def run() -> list[Figure]:
    """Measures both."""
    plan = FleetPlan(types=_SIZE[0], launches=_SIZE[1])
    outcome = await asyncio.to_thread(run_fleet, plan, 2, _tell)
    ablations = {"as it is": outcome}
    if _ABLATIONS:
        ablations["without recycling"] = await asyncio.to_thread(run_fleet, replace(plan, recycling=False), 2, _tell)
        without = replace(plan, future_reservations=False)
        ablations["without future reservations"] = await asyncio.to_thread(run_fleet, without, 2, _tell)
    for name, found in ablations.items():
        _show(name, found)
    broken = float(sum(found.broken for found in ablations.values()))
    return [
        Figure(name=NAMES[0], value=outcome.seconds, unit="s", target=600.0, better="lower"),
        Figure(name=NAMES[1], value=broken, unit="promises", target=0.0, better="lower"),
    ]


def _tell(progress: Progress) -> None:
    if progress.teams_done % 5 == 0 or progress.teams_done == progress.teams:
        print(
            f"  {progress.teams_done} of {progress.teams} teams, {progress.launches_done:,} launches, "
            f"{progress.broken} promises broken, {progress.seconds:.0f} s",
            file=sys.stderr,
        )


def _show(name: str, found: FleetOutcome) -> None:
    figures = found.statistics
    print(f"{name}: {figures.launches:,} launches in {found.seconds:.0f} s, {found.broken} promises broken")
    print(f"  succeeded {figures.succeeded:,}, rolled back {figures.rolled_back:,}, cancelled {figures.cancelled:,}")
    print(f"  unfinished {found.unfinished:,}; peak {found.peak:,} of {found.quota:,} units")
    print(f"  time to launch: median {_span(figures.median_duration)}, p90 {_span(figures.p90_duration)}")
    for wait in figures.waits[:_SHOWN]:
        print(
            f"  waited for {wait.cause}: {wait.launches:,} launches, {wait.total_duration / timedelta(hours=1):,.0f} h"
        )
    for cause in figures.causes:
        print(f"  went back by {cause.cause}: {cause.count:,}")
    for broken in found.first_broken[:_SHOWN]:
        print(f"  broken: {broken}")


def _span(time: timedelta | None) -> str:
    return "-" if time is None else f"{time / timedelta(hours=1):.2f} h"
