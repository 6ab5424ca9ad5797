"""`launch simulate`: rehearse a launch, or a whole fleet, in virtual time. Needs no fleet that runs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Final

import click

from modelfleet.cli import render
from modelfleet.cli.launch.told import with_session
from modelfleet.cli.session import Session
from modelfleet.plot import Chart, Limit, Series

_MOST_BYTES: Final = 4 << 20
# Its exit status where the file cannot be rehearsed, or not in that way.
_REFUSED: Final = 2
_INTERRUPTED: Final = 130
_MINUTES: Final = "minutes since the launch was created"
_MINUTES_ON: Final = "minutes from where the launch is"
_SHARE: Final = "share in %"


@click.command("simulate")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--with",
    "beside",
    type=click.Path(exists=True, dir_okay=False),
    help="Of a plan: a scenario without `launch:`, with the machines, accidents, answers … that it does not know.",
)
@click.option("--seed", type=click.IntRange(0), help="Instead of that in the file.")
@click.option(
    "--seeds", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many: says how a launch ends."
)
@click.option("--ablations", is_flag=True, help="A fleet also without recycling and without future reservations.")
@click.option("--plot", "path", metavar="FILE", help="Write the picture of a launch into a .png or .svg file.")
@with_session
def simulate(
    session: Session, file: str, beside: str | None, seed: int | None, seeds: int, ablations: bool, path: str | None
) -> None:
    """Rehearse a launch in virtual time before making it.

    FILE is a scenario in YAML, or what `modelfleet launch plan … -o json` prints; - reads it from standard input.
    Every strategy, region, flavor and gate of a plan is rehearsed; what a plan does not know is said first, and --with
    says it instead. Nothing that runs is touched. The same seed goes the same way. Exits with 1 where a promise was
    broken.

    Example: modelfleet launch plan ctr/v8 --pool feed -o json | modelfleet launch simulate -
    """
    if path is not None:
        _check_picture(path)
    text = sys.stdin.read(_MOST_BYTES + 1) if file == "-" else ""
    wishes = ["--seed", str(seed)] if seed is not None else []
    wishes += ["--with", beside] if beside is not None else []
    wishes += [f"--{name}" for name, wanted in (("ablations", ablations), ("plot", path is not None)) if wanted]
    found, status = _run([file, "--seeds", str(seeds), *wishes], text)
    if not session.is_table:
        render.dump(session, found)
    elif found["kind"] == "fleet":
        _show_fleet(found)
    else:
        _show_launch(found)
    if path is not None:
        render.picture(_charts(found["launch"], found["assumed"]), path)
    if status:
        raise click.exceptions.Exit(status)


def _check_picture(path: str) -> None:
    from modelfleet import plot

    try:
        plot.check(path)
    except plot.CannotPlot as error:
        raise click.UsageError(f"--plot: {error}") from None


def _run(wishes: Sequence[str], text: str) -> tuple[dict[str, Any], int]:
    """Runs the rehearsal in a process of its own: the client has nothing of the services in it."""
    command = [sys.executable, "-m", "modelfleetd", "simulate", *wishes, "--progress"]
    # In a group of its own, so that it ends as a whole, with those that share its work, and has nothing to say then.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        process_group=0,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        answer: list[str] = []
        # Both ends are read at once: neither pipe may fill up.
        reading = threading.Thread(target=lambda out: answer.append(out.read()), args=(process.stdout,))
        reading.start()
        try:
            # Whoever finds a mistake before it has read everything says it, and does not read on.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(text)
                process.stdin.close()
            said = _follow(process.stderr)
            status = process.wait()
        except KeyboardInterrupt:
            _end(process)
            click.echo("modelfleet: the rehearsal was interrupted; nothing that runs was touched", err=True)
            raise click.exceptions.Exit(_INTERRUPTED) from None
        except BaseException:
            _end(process)
            raise
        finally:
            reading.join()
    if status == _REFUSED:
        # Everything that is wrong, each on a line of its own.
        for line in said:
            click.echo(f"modelfleet: {line}", err=True)
        raise click.exceptions.Exit(1)
    if status not in (0, 1) or not answer or not answer[0].strip():
        raise click.ClickException("\n".join(said[-20:]) or "the rehearsal ended without an answer")
    return json.loads(answer[0]), status


def _follow(lines: Iterable[str]) -> list[str]:
    """Shows how far it is; returns what else it says."""
    said: list[str] = []
    done: int | None = None
    with contextlib.ExitStack() as shown:
        for line in lines:
            if not line.startswith('{"done"'):
                said.append(line.rstrip())
                continue
            told = json.loads(line)
            if done is None:
                # Of one launch nobody knows how long it takes.
                total = told["total"] if told["total"] > 1 else None
                advance = shown.enter_context(render.progress("rehearses", total))
                done = 0
            advance(told["done"] - done)
            done = told["done"]
    return said


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# One launch


def _show_launch(found: Mapping[str, Any]) -> None:
    launch, assumed, seeds = found["launch"], found["assumed"], found["seeds"]
    _show_assumed(assumed, launch["seed"])
    if launch["begun"]:
        click.echo(launch["begun"])
    click.echo()
    regions = {each["region"]: each for each in launch["regions"]}
    several = len(regions) > 1
    rows = []
    for line in _news(launch["timeline"]):
        there = regions.get(line["region"]) if several else next(iter(regions.values()))
        serving = _serving(there["served"], line["seconds"]) if there is not None else ["", "", ""]
        where = [render.short(line["region"])] if several else []
        rows.append([_clock(line["seconds"]), *where, str(line["step"] or ""), *serving, _said(line)])
    columns = ["TIME", *(["REGION"] if several else []), "STEP", "NEW", "OLD", "REPLICAS", "WHAT"]
    render.console().print(render.table(columns, rows))
    render.curves(_charts(launch, assumed))
    click.echo(f"\n{launch['outcome']}" + (f" {launch['left']}" if launch["left"] else ""))
    phases = ", ".join(f"{each['state'].lower()} {_clock(each['seconds'])}" for each in launch["phases"])
    click.echo(f"took {_clock(launch['seconds'])}: {phases}")
    for each in launch["regions"]:
        _show_units(each, several)
    _promises(launch["broken_promises"], launch["effects"])
    click.echo(f"trace {launch['trace'][:16]}")
    if len(seeds) > 1:
        _show_seeds(seeds)


def _show_assumed(assumed: Mapping[str, Any], seed: int) -> None:
    """What was rehearsed, and what was taken for granted that nobody has said."""
    regions = assumed["regions"]
    for each in regions:
        where = f"{render.short(each['region'])}: " if len(regions) > 1 else ""
        click.echo(f"{where}{_does(each, assumed)} with {_spare(each['free_units'])} to spare")
    start, drain = assumed["start_seconds"], assumed["drain_seconds"]
    click.echo(f"a replica starts in {_between(start)} and ends in {_between(drain)}; seed {seed}")
    for note in assumed["notes"]:
        click.echo(f"assumed: {note}")


def _does(region: Mapping[str, Any], assumed: Mapping[str, Any]) -> str:
    """What the launch is to do in a region."""
    old, new, share = region["old_replicas"], region["new_replicas_full"], region["new_share_basis_points"] / 100
    target = assumed["target_share_basis_points"] / 100
    match assumed["strategy"]:
        case "START_EXPERIMENT":
            return f"an experiment gets {target:g} % beside {old} replicas; it would need {new} for everything,"
        case "RAMP":
            return f"an experiment goes from {share:g} % to {target:g} %"
        case "END_EXPERIMENT":
            return f"an experiment with {share:g} % and {render.count(region['new_replicas'], 'replica')} ends"
        case "RESIZE":
            return f"{region['new_replicas']} replicas of one model become as many as its share needs of {new}"
        case "ROLL_BACK":
            return f"{old} replicas go back to {new} of the model before"
        case _ if not old:
            return f"the first model of its route starts on {render.count(new, 'replica')}"
        case _:
            return f"{old} replicas become {new}"


def _spare(free: Mapping[str, int]) -> str:
    if len(free) == 1:
        return f"{next(iter(free.values())):,}"
    return " and ".join(f"{units:,} of {render.short(flavor)}" for flavor, units in free.items())


def _show_units(region: Mapping[str, Any], several: bool) -> None:
    for each in region["units"]:
        where = f"{render.short(region['region'])}: " if several else ""
        of = f" of {render.short(each['flavor'])}" if len(region["units"]) > 1 else ""
        held = (
            f"of the {each['hold_units']:,} units{of} that it held" if each["hold_units"] else f"units{of}; held none"
        )
        click.echo(f"{where}peak {each['peak_units']:,} {held}")


def _news(timeline: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The timeline without a gate that says again what it has said at the same step."""
    said: dict[tuple[str, int, str], str] = {}
    for line in timeline:
        event, _, rest = line["text"].partition(": ")
        if line["kind"] == "event" and event == "GateJudged":
            gate, _, verdict = rest.partition(": ")
            verdict = verdict.partition(":")[0]
            key = (line["region"], line["step"], gate)
            if said.get(key) == verdict:
                continue
            said[key] = verdict
        yield line


def _show_seeds(seeds: Sequence[Mapping[str, Any]]) -> None:
    ended = Counter(each["state"] for each in seeds)
    told = ", ".join(f"{count:,} {state.lower().replace('_', ' ')}" for state, count in ended.most_common())
    click.echo(f"\n{render.count(len(seeds), 'seed')}: {told}")
    times = sorted(each["seconds"] for each in seeds if each["state"] == "SUCCEEDED")
    if times:
        ninth = times[math.ceil(0.9 * len(times)) - 1]
        click.echo(f"time to launch: median {_clock(median(times))}, nine of ten within {_clock(ninth)}")
    # The worst is one that did not succeed, or else the slowest.
    worst = max(seeds, key=lambda each: (each["broken_promises"], each["state"] != "SUCCEEDED", each["seconds"]))
    click.echo(f"worst: seed {worst['seed']}, after {_clock(worst['seconds'])}: {worst['outcome']}")
    broken = sum(each["broken_promises"] for each in seeds)
    click.echo(f"promises broken with any seed: {broken}")
    click.echo(f"look at it: modelfleet launch simulate FILE --seed {worst['seed']}")


def _promises(broken: Sequence[str], effects: int) -> None:
    if not broken:
        click.echo(f"no promise broken at {effects:,} events")
        return
    click.echo(f"{render.count(len(broken), 'promise')} broken at {effects:,} events; each is a defect of modelfleet:")
    for each in broken[:10]:
        click.echo(f"  {each}")


def _serving(served: Sequence[Mapping[str, Any]], seconds: float) -> list[str]:
    """Shares and replicas of both models at a moment."""
    place = bisect_right(served, seconds, key=lambda point: point["seconds"])
    if not place:
        return ["", "", ""]
    point = served[place - 1]
    new, old = point["new_share_basis_points"] / 100, point["old_share_basis_points"] / 100
    return [f"{new:g} %", f"{old:g} %", f"{point['new_replicas']} + {point['old_replicas']}"]


def _said(line: Mapping[str, Any]) -> str:
    return line["text"] if line["kind"] == "event" else f"! {line['text']}"


def _charts(launch: Mapping[str, Any], assumed: Mapping[str, Any]) -> list[Chart]:
    regions = [each for each in launch["regions"] if each["served"]]
    if not regions:
        return []
    end = max([launch["seconds"], *(point["seconds"] for each in regions for point in each["served"])])

    def chart(title: str, unit: str, series: list[Series], limits: list[Limit]) -> Chart:
        # A model that is not there has no curve.
        drawn = [each for each in series if any(each.y)] or series[:1]
        minutes = _MINUTES_ON if launch["begun"] else _MINUTES
        return Chart(title, minutes, unit, drawn, limits=limits, zero_y=True, height=0.7)

    def series(label: str, region: Mapping[str, Any], field: str, scale: float = 1.0) -> Series:
        served = region["served"]
        values = [point[field] / scale for point in served]
        minutes = [point["seconds"] / 60 for point in served]
        return Series(label, [*minutes, end / 60], [*values, *values[-1:]], kind="steps")

    if len(regions) > 1:
        names = [(render.short(each["region"]), each) for each in regions]
        shares = [series(name, each, "new_share_basis_points", 100) for name, each in names]
        new = [series(name, each, "new_replicas") for name, each in names]
        old = [series(name, each, "old_replicas") for name, each in names]
        return [
            chart("Share of the new model, by region", _SHARE, shares, []),
            chart("Replicas of the new model, by region", "replicas", new, []),
            chart("Replicas of the old model, by region", "replicas", old, []),
        ]
    (region,) = regions
    # Units and replicas are the same only where each takes one, of one flavor.
    units = region["units"] if assumed["old_units_per_replica"] == assumed["new_units_per_replica"] == 1 else []
    limits = [Limit(units[0]["hold_units"], "hold")] if len(units) == 1 and units[0]["hold_units"] else []
    shares = [
        series("new", region, "new_share_basis_points", 100),
        series("old", region, "old_share_basis_points", 100),
    ]
    replicas = [series("new", region, "new_replicas"), series("old", region, "old_replicas")]
    return [
        chart("Shares of the traffic", _SHARE, shares, []),
        chart("Replicas that exist", "replicas", replicas, limits),
    ]


def _between(seconds: Sequence[float]) -> str:
    least, most = seconds
    return f"{least:g} s" if least == most else f"{least:g} to {most:g} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# A fleet


def _show_fleet(found: Mapping[str, Any]) -> None:
    plan, runs = found["plan"], found["runs"]
    click.echo(
        f"{render.count(plan['types'], 'model type')}, {plan['launches']:,} launches in "
        f"{plan['days']:g} days, seed {plan['seed']}\n"
    )
    figures: list[tuple[str, Any]] = [
        ("succeeded", lambda run: f"{run['statistics']['succeeded']:,}"),
        ("  of the largest tenth", lambda run: f"{run['large']['succeeded']:,} of {run['large']['launches']:,}"),
        ("  of TIER0 and TIER1", lambda run: f"{run['important']['succeeded']:,} of {run['important']['launches']:,}"),
        ("rolled back", lambda run: f"{run['statistics']['rolled_back']:,}"),
        ("cancelled", lambda run: f"{run['statistics']['cancelled']:,}"),
        ("not ended", lambda run: f"{run['unfinished']:,}"),
        ("time to launch, median", lambda run: _time(run["statistics"]["median_duration"])),
        ("time to launch, nine of ten", lambda run: _time(run["statistics"]["p90_duration"])),
        ("time lost for capacity", lambda run: _time(_waited(run, "CapacityPromised", "Refused"))),
        ("peak of the pools, units", lambda run: f"{run['peak']:,} of {run['quota']:,}"),
        ("launchers that crashed", lambda run: f"{run['crashes']:,}"),
        ("promises broken", lambda run: f"{run['broken']:,}"),
        ("trace", lambda run: run["trace"][:16]),
    ]
    rows = [[name, *(cell(run) for run in runs)] for name, cell in figures]
    render.console().print(render.table(["", *(run["name"].upper() for run in runs)], rows))
    for run in runs:
        for each in run["first_broken"][:5]:
            click.echo(f"{run['name']}: {each}")
    causes = ", ".join(f"{each['cause']} ({each['count']})" for each in runs[0]["statistics"]["causes"])
    click.echo(f"\ntaken back by: {causes or 'nothing'}")
    if len(runs) == 1:
        click.echo("what recycling and future reservations bring: --ablations")


def _waited(run: Mapping[str, Any], *causes: str) -> float:
    return sum(float(each["total_duration"]) for each in run["statistics"]["waits"] if each["cause"] in causes)


def _time(seconds: float | None) -> str:
    return "none" if seconds is None else _clock(seconds)
