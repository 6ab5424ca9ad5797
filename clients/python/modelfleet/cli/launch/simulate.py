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


@click.command("simulate")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--seed", type=click.IntRange(0), help="Instead of that in the file.")
@click.option(
    "--seeds", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many: says how a launch ends."
)
@click.option("--ablations", is_flag=True, help="A fleet also without recycling and without future reservations.")
@click.option("--plot", "path", metavar="FILE", help="Write the picture of a launch into a .png or .svg file.")
@with_session
def simulate(session: Session, file: str, seed: int | None, seeds: int, ablations: bool, path: str | None) -> None:
    """Rehearse a launch in virtual time before making it.

    FILE is a scenario in YAML, or what `modelfleet launch plan … -o json` prints; - reads it from standard input.
    Nothing that runs is touched. The same seed goes the same way. Exits with 1 where a promise was broken.

    Example: modelfleet launch plan ctr/v8 --pool feed -o json | modelfleet launch simulate -
    """
    if path is not None:
        _check_picture(path)
    text = sys.stdin.read(_MOST_BYTES + 1) if file == "-" else ""
    wishes = ["--seed", str(seed)] if seed is not None else []
    wishes += [f"--{name}" for name, wanted in (("ablations", ablations), ("plot", path is not None)) if wanted]
    found, status = _run([file, "--seeds", str(seeds), *wishes], text)
    if not session.is_table:
        render.dump(session, found)
    elif found["kind"] == "fleet":
        _show_fleet(found)
    else:
        _show_launch(found)
    if path is not None:
        render.picture(_charts(found["launch"]), path)
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
    start, drain = assumed["start_seconds"], assumed["drain_seconds"]
    click.echo(
        f"{assumed['old']} replicas become {assumed['new']} with {assumed['spare']} to spare; a replica starts in "
        f"{_between(start)} and ends in {_between(drain)}; seed {launch['seed']}"
    )
    for note in assumed["notes"]:
        click.echo(f"not as planned: {note}")
    click.echo()
    rows = [
        [_clock(line["seconds"]), str(line["step"] or ""), *_serving(launch["served"], line["seconds"]), _said(line)]
        for line in _news(launch["timeline"])
    ]
    render.console().print(render.table(["TIME", "STEP", "NEW", "OLD", "REPLICAS", "WHAT"], rows))
    render.curves(_charts(launch))
    click.echo(f"\n{launch['outcome']}" + ("" if launch["ended"] else " It had not ended after eight days."))
    phases = ", ".join(f"{each['state'].lower()} {_clock(each['seconds'])}" for each in launch["phases"])
    click.echo(f"took {_clock(launch['seconds'])}: {phases}")
    held = f"of the {launch['hold_units']:,} units that it held" if launch["hold_units"] else "units; it held none"
    click.echo(f"peak {launch['peak_units']:,} {held}")
    _promises(launch["broken_promises"], launch["effects"])
    click.echo(f"trace {launch['trace'][:16]}")
    if len(seeds) > 1:
        _show_seeds(seeds)


def _news(timeline: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The timeline without a gate that says again what it has said at the same step."""
    said: dict[tuple[int, str], str] = {}
    for line in timeline:
        event, _, rest = line["text"].partition(": ")
        if line["kind"] == "event" and event == "GateJudged":
            gate, _, verdict = rest.partition(": ")
            verdict = verdict.partition(":")[0]
            if said.get((line["step"], gate)) == verdict:
                continue
            said[line["step"], gate] = verdict
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


def _charts(launch: Mapping[str, Any]) -> list[Chart]:
    served = launch["served"]
    end = max([launch["seconds"], *(point["seconds"] for point in served)], default=0.0)
    minutes = [point["seconds"] / 60 for point in served] + [end / 60]

    def series(label: str, field: str, scale: float = 1.0) -> Series:
        values = [point[field] / scale for point in served]
        return Series(label, minutes, [*values, *values[-1:]], kind="steps")

    if not served:
        return []
    return [
        Chart(
            "Shares of the traffic",
            "minutes since the launch was created",
            "share in %",
            [series("new", "new_share_basis_points", 100), series("old", "old_share_basis_points", 100)],
            zero_y=True,
            height=0.7,
        ),
        Chart(
            "Replicas that exist",
            "minutes since the launch was created",
            "replicas",
            [series("new", "new_replicas"), series("old", "old_replicas")],
            limits=[Limit(launch["hold_units"], "hold")] if launch["hold_units"] else [],
            zero_y=True,
            height=0.7,
        ),
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
