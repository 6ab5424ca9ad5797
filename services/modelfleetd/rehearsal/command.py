"""`modelfleetd simulate`: rehearses a launch or a fleet in virtual time, and prints the outcome as JSON.

`modelfleet launch simulate` runs it and shows the outcome. Progress goes to standard error as lines of JSON where it is
asked for. It needs no service and no database.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from modelfleetd.rehearsal.files import parse
from modelfleetd.rehearsal.fleet_outcome import FleetOutcome
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.fleet_run import Progress, run_fleet
from modelfleetd.rehearsal.reading import ScenarioInvalid
from modelfleetd.rehearsal.report import as_data
from modelfleetd.rehearsal.scenario import Scenario
from modelfleetd.rehearsal.single import rehearse

_MOST_BYTES: Final = 4 << 20
_MOST_SEEDS: Final = 10_000


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status: 2 where the file cannot be rehearsed, 1 where a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="modelfleetd simulate", description="Rehearses a launch or a fleet in virtual time; prints JSON."
    )
    parser.add_argument(
        "file", help="a scenario, or what `modelfleet launch plan -o json` prints; - for standard input"
    )
    parser.add_argument(
        "--with", dest="beside", help="of a plan: a scenario without `launch:`, with what it does not know"
    )
    parser.add_argument("--seed", type=int, help="instead of that in the file")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from the first one on (a launch only)")
    parser.add_argument("--ablations", action="store_true", help="a fleet also without what makes it frugal")
    parser.add_argument("--plot", action="store_true", help="refuse what has no picture, a fleet")
    parser.add_argument("--processes", type=int, default=2, help="that share the work of a fleet")
    parser.add_argument("--progress", action="store_true", help="tell standard error how far it is")
    given = parser.parse_args(argv)
    if not 1 <= given.seeds <= _MOST_SEEDS:
        parser.error(f"--seeds must be 1 to {_MOST_SEEDS:,}")
    read = given.file
    try:
        text = _text(given.file)
        read = given.beside or given.file
        scenario = parse(text, given.seed, _text(given.beside) if given.beside else "")
    except (OSError, UnicodeError, ValueError) as error:
        sys.stderr.write(f"{read}: {error}\n")
        return 2
    except ScenarioInvalid as error:
        for problem in error.problems:
            sys.stderr.write(f"{read}: {problem}\n")
        return 2
    refused = _refused(scenario, given)
    if refused:
        sys.stderr.write(f"{given.file}: {refused}\n")
        return 2
    # Losses are what is rehearsed: nobody needs to be warned of them.
    logging.getLogger("modelfleetd.launcher").setLevel(logging.CRITICAL)
    try:
        found, broken = _fleet(scenario, given) if isinstance(scenario, FleetPlan) else _launches(scenario, given)
    except KeyboardInterrupt:
        return 130
    json.dump(found, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
    return 1 if broken else 0


def _refused(scenario: Scenario | FleetPlan, given: argparse.Namespace) -> str:
    """What is asked for that there is not; empty where there is."""
    if isinstance(scenario, Scenario):
        return "this is a launch; --ablations is for a `fleet:`" if given.ablations else ""
    if given.plot:
        return "this is a fleet, which has a table; --plot is for one launch"
    if given.seeds > 1:
        return "this is a fleet, of many launches; --seeds is for one launch, and --seed S takes another seed"
    return ""


def _text(file: str) -> str:
    if file == "-":
        text = sys.stdin.read(_MOST_BYTES + 1)
    else:
        with Path(file).open(encoding="utf-8") as opened:
            text = opened.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"is larger than {_MOST_BYTES >> 20} MiB")
    return text


def _launches(scenario: Scenario, given: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The first seed in full, and of each the outcome."""
    first: dict[str, Any] = {}
    seeds: list[dict[str, Any]] = []
    broken = 0
    _tell(given, done=0, total=given.seeds)
    for number in range(given.seeds):
        report = asyncio.run(rehearse(replace(scenario, seed=scenario.seed + number)))
        first = first or as_data(report)
        broken += len(report.broken)
        seeds.append(
            {
                "seed": report.seed,
                "state": report.state,
                "seconds": round(report.seconds, 3),
                "outcome": report.sentence,
                "broken_promises": len(report.broken),
                "trace": report.trace,
            }
        )
        _tell(given, done=number + 1, total=given.seeds)
    assumed: dict[str, Any] = {
        "strategy": scenario.strategy.name,
        "regions": [
            {
                "region": place.region,
                "old_replicas_full": place.old,
                "new_replicas_full": place.new,
                "old_replicas": place.old_running,
                "new_replicas": place.new_running,
                "old_share_basis_points": place.old_share,
                "new_share_basis_points": place.new_share,
                "free_units": dict(place.spare),
            }
            for place in scenario.places
        ],
        "target_share_basis_points": scenario.share,
        "old_units_per_replica": scenario.old_model.units,
        "new_units_per_replica": scenario.new_model.units,
        "start_seconds": list(scenario.machines.start_seconds),
        "drain_seconds": list(scenario.machines.terminate_seconds),
        "bake_seconds": scenario.policy.bake_duration.total_seconds(),
        "notes": [str(note) for note in scenario.notes],
    }
    return {"kind": "launch", "assumed": assumed, "launch": first, "seeds": seeds}, broken


def _fleet(plan: FleetPlan, given: argparse.Namespace) -> tuple[dict[str, Any], int]:
    plans = [("as planned", plan)]
    if given.ablations:
        plans.append(("without recycling", replace(plan, recycling=False)))
        plans.append(("without future reservations", replace(plan, future_reservations=False)))
    runs = []
    broken = 0
    total = sum(each.teams for _, each in plans)
    before = 0
    _tell(given, done=0, total=total)
    for name, each in plans:

        def told(progress: Progress, before: int = before) -> None:
            _tell(given, done=before + progress.teams_done, total=total)

        outcome = run_fleet(each, min(given.processes, each.teams), told)
        broken += outcome.broken
        before += each.teams
        runs.append({"name": name, **_of_fleet(outcome)})
    return {"kind": "fleet", "plan": asdict(plan), "runs": runs}, broken


def _of_fleet(outcome: FleetOutcome) -> dict[str, Any]:
    found: dict[str, Any] = _plain(asdict(outcome))
    # How long the machine took is not part of the outcome.
    del found["plan"], found["seconds"], found["cpu_seconds"]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _tell(given: argparse.Namespace, *, done: int, total: int) -> None:
    if given.progress:
        sys.stderr.write(json.dumps({"done": done, "total": total}) + "\n")
        sys.stderr.flush()
