"""The fleet rehearsal: a thousand model types, ten thousand launches in seven simulated days with faults.

The domains of all four services with stores in memory, on two processes. Beside the time and the promises that were
broken it prints the figures of the launches, and those of the same fleet without recycling and without future
reservations: what they bring; and once more for a tenth of it whose pools have half as much to spare as their largest
route takes. `BENCH_ABLATIONS=0` leaves all of these out; `BENCH_FLEET=200x2000` takes a smaller fleet.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from modelfleetd.rehearsal.fleet_outcome import FleetOutcome, Share
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.fleet_run import Progress, run_fleet
from tests.bench.figures import Figure

NAMES = (
    "launcher.rehearsal_seconds",
    "launcher.rehearsal_broken_promises",
    "launcher.rehearsal_cpu_milliseconds_per_launch",
)
_SIZE: Final = tuple(int(part) for part in os.environ.get("BENCH_FLEET", "1000x10000").split("x"))
_ABLATIONS: Final = os.environ.get("BENCH_ABLATIONS", "1") != "0"
_SHOWN: Final = 8
_WIDTH: Final = 120


async def run() -> list[Figure]:
    """Measures both."""
    plan = FleetPlan(types=_SIZE[0], launches=_SIZE[1], days=7.0 * min(1.0, _SIZE[1] / (10 * _SIZE[0])))
    scarce = replace(plan, types=-(-plan.types // 10), launches=-(-plan.launches // 10), spare=0.06, least_spare=0.5)
    found = await _compared(plan)
    scarce_ones: Mapping[str, FleetOutcome] = {}
    if _ABLATIONS:
        print("Where units are scarce:")
        scarce_ones = await _compared(scarce)
    outcome = found["as it is"]
    cost = 1_000 * outcome.cpu_seconds / plan.launches
    return [
        Figure(name=NAMES[0], value=outcome.seconds, unit="s", target=600.0, better="lower"),
        Figure(
            name=NAMES[1],
            value=float(sum(each.broken for each in [*found.values(), *scarce_ones.values()])),
            unit="promises",
            target=0.0,
            better="lower",
        ),
        Figure(name=NAMES[2], value=cost, unit="ms", target=110.0, better="lower"),
    ]


async def _compared(plan: FleetPlan) -> Mapping[str, FleetOutcome]:
    """A fleet, and the same without what is to be compared; printed side by side."""
    plans = {"as it is": plan}
    if _ABLATIONS:
        plans["no recycling"] = replace(plan, recycling=False)
        plans["no future reservations"] = replace(plan, future_reservations=False)
    found = {name: await asyncio.to_thread(run_fleet, each, 2, _tell) for name, each in plans.items()}
    Console(width=_WIDTH).print(table_of(found))
    for name, outcome in found.items():
        for broken in outcome.first_broken[:_SHOWN]:
            print(f"{name}: broken: {broken}")
    return found


def _tell(progress: Progress) -> None:
    if progress.teams_done % 5 == 0 or progress.teams_done == progress.teams:
        print(
            f"  {progress.teams_done} of {progress.teams} teams, {progress.launches_done:,} launches, "
            f"{progress.broken} promises broken, {progress.seconds:.0f} s",
            file=sys.stderr,
        )


def table_of(found: Mapping[str, FleetOutcome]) -> Table:
    """The figures of fleets side by side: one row for each, one column for each fleet."""
    fleets = list(found.values())
    rows: dict[str, list[str]] = {}

    def row(name: str, value: Callable[[FleetOutcome], str]) -> None:
        rows[name] = [value(fleet) for fleet in fleets]

    row("launches that ended", lambda fleet: f"{fleet.statistics.launches:,}")
    row("  succeeded", lambda fleet: f"{fleet.statistics.succeeded:,}")
    row("  rolled back", lambda fleet: f"{fleet.statistics.rolled_back:,}")
    row("  cancelled", lambda fleet: f"{fleet.statistics.cancelled:,}")
    row("succeeded, of the largest tenth", lambda fleet: _part(fleet.large))
    row("succeeded, of TIER0 and TIER1", lambda fleet: _part(fleet.important))
    row("launches that did not end", lambda fleet: f"{fleet.unfinished:,}")
    row("succeeded a week", lambda fleet: f"{fleet.statistics.succeeded_per_week:,.0f}")
    row("time to launch, median", lambda fleet: _span(fleet.statistics.median_duration))
    row("time to launch, 90 %", lambda fleet: _span(fleet.statistics.p90_duration))
    for phase in dict.fromkeys(each.phase for fleet in fleets for each in fleet.statistics.phases):

        def of_phase(fleet: FleetOutcome, phase: str = phase) -> str:
            there = next((each for each in fleet.statistics.phases if each.phase == phase), None)
            return "-" if there is None else f"{_span(there.median_duration)} / {_span(there.p90_duration)}"

        row(f"  {phase}, median / 90 %", of_phase)
    row("in use on average", lambda fleet: f"{fleet.utilisation:.1%}")
    row("in use at most", lambda fleet: f"{fleet.peak / fleet.quota:.1%}")
    waits = [{each.cause: each.total_duration for each in fleet.statistics.waits} for fleet in fleets]
    causes = [{each.cause: each.count for each in fleet.statistics.causes} for fleet in fleets]
    gates = [{each.cause: each.count for each in fleet.statistics.failed_gates} for fleet in fleets]
    for cause in _largest(waits):
        rows[f"waited for {cause}"] = [_span(each.get(cause)) for each in waits]
    row("waited for people to answer", lambda fleet: _span(fleet.statistics.people_wait))
    for cause in _largest(causes):
        rows[f"went back by {cause}"] = [f"{each.get(cause, 0):,}" for each in causes]
    for gate in _largest(gates):
        rows[f"verdicts FAIL of {gate}"] = [f"{each.get(gate, 0):,}" for each in gates]
    row("the launcher died", lambda fleet: f"{fleet.crashes:,} times")
    row("calls hung past the lease", lambda fleet: f"{fleet.stalls:,}")
    row("promises judged at", lambda fleet: f"{fleet.effects:,} events")
    row("promises broken", lambda fleet: f"{fleet.broken:,}")
    row("this machine took", lambda fleet: f"{fleet.seconds:,.0f} s")
    row("processor", lambda fleet: f"{1_000 * fleet.cpu_seconds / fleet.plan.launches:,.0f} ms a launch")
    table = Table("", *found, box=None, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def _largest(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names that say most, over all fleets."""
    names = dict.fromkeys(name for each in found for name in each)
    return sorted(names, key=lambda name: max(each[name] for each in found if name in each), reverse=True)[:_SHOWN]


def _part(share: Share) -> str:
    return f"{share.succeeded:,} of {share.launches:,}"


def _span(time: timedelta | None) -> str:
    if time is None:
        return "-"
    hours = time / timedelta(hours=1)
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"
