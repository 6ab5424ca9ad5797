"""`modelfleet stability replay`: what would the judge have said, and when first?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from modelfleet import wording
from modelfleet.cli import render
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.parameters import POINT, SPAN, Point
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session, with_session
from modelfleet.cli.stability.criteria import FLAGS, criteria, with_criteria
from modelfleet.cli.stability.judge import baseline_of
from modelfleet.cli.stability.times import moment, stamp
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.stability.v1 import stability_pb2 as pb

_MARKS = {
    serving_pb2.PASS: ("+", "green", "passes"),
    serving_pb2.FAIL: ("x", "bold red", "fails"),
    serving_pb2.INCONCLUSIVE: ("?", "yellow", "inconclusive"),
    serving_pb2.ERROR: ("!", "bold magenta", "cannot be judged"),
}
_MOST_IN_A_LINE = 120
# A verdict that goes to and fro says the same again and again.
_MOST_CHANGES = 12


@dataclass(frozen=True)
class _Bake:
    """What is replayed."""

    model: str
    baseline: str
    start: Timestamp
    end: Timestamp | None
    demanded: Sequence[pb.Criterion] = ()
    launch: launcher_pb2.Launch | None = None


@click.command("replay")
@click.argument("model", metavar="[TYPE/MODEL]", required=False, default="")
@click.option("--baseline", default="", metavar="MODEL", help="Compare with this model on the same minutes.")
@click.option("--from", "start", type=POINT, metavar="POINT", help="When the bake began: a time, or how long ago (2h).")
@click.option("--to", "end", type=POINT, metavar="POINT", help="The last moment of judging. Default: now.")
@click.option("--step", type=SPAN, default="5m", show_default=True, help="Time between two moments, whole minutes.")
@click.option("--launch", "launch", default="", metavar="LAUNCH", help="Replay this launch: its model, times and gate.")
@with_criteria
@with_session
def replay(
    session: Session,
    model: str,
    baseline: str,
    start: Point | None,
    end: Point | None,
    step: Duration,
    launch: str,
    **given: Any,
) -> None:
    """Show what the judge would have said at moments of the past.

    By the labels that had come by then; with other criteria than there were, or on a launch that had no gate:
    would it have been caught, and when?
    """
    if launch:
        if model or baseline or start or end:
            raise click.UsageError("a launch says itself which model, baseline and times; leave them out")
        bake = _of_launch(session, launch)
    else:
        if not model or start is None:
            raise click.UsageError("give TYPE/MODEL and --from, or --launch")
        name = MODEL.name(model)
        until = None if end is None else stamp(_time(end, "--to"))
        bake = _Bake(name, baseline_of(name, baseline), stamp(_time(start, "--from")), until)
    demanded = criteria(session, bake.model, bake.demanded, **given)
    times = {"start_time": "--from", "end_time": "--to", "step": "--step"}
    with told_in_flags(FLAGS | times), render.busy("replaying"):
        found = session.client.stability.replay_judgements(
            model=bake.model,
            baseline=bake.baseline,
            start_time=bake.start,
            end_time=bake.end,
            criteria=demanded,
            step=step,
        )
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    console = render.console()
    for line in _screen(bake, found, step, min(console.width, _MOST_IN_A_LINE)):
        console.print(line, soft_wrap=True)
    console.print(_changes(bake, found))


def _of_launch(session: Session, launch: str) -> _Bake:
    """Returns what a launch's gate judged: from the first weight of its candidate until the launch ended."""
    found = session.client.launcher.get_launch(name=f"launches/{render.short(launch)}")
    events = session.client.launcher.list_launch_events_all(name=found.name)
    shifted = next((event.time for event in events if event.type == "WeightShifted"), None)
    if shifted is None:
        raise click.ClickException(f"{found.name} has never given its candidate traffic: there is nothing to replay")
    # The judge is asked at whole minutes; the last one sees all of the launch.
    end = Timestamp(seconds=(found.end_time.seconds // 60 + 1) * 60) if found.HasField("end_time") else None
    demanded = [_criterion(wanted, found.baseline) for wanted in found.policy.stability_gate.criteria]
    return _Bake(found.candidate, found.baseline, shifted, end, demanded, found)


def _criterion(wanted: launcher_pb2.StabilityCriterion, baseline: str) -> pb.Criterion:
    """A gate's criterion as the launcher asks for it."""
    made = pb.Criterion(
        prediction=wanted.prediction,
        max_ne_regression=wanted.max_ne_regression if baseline else 0.0,
        max_calibration_difference=wanted.max_calibration_difference if baseline else 0.0,
        min_positives=wanted.min_positives,
        confidence=wanted.confidence,
        include_immature=wanted.include_immature,
    )
    if wanted.HasField("calibration_low") and wanted.HasField("calibration_high"):
        made.calibration.low, made.calibration.high = wanted.calibration_low, wanted.calibration_high
    return made


def _time(given: Point, option: str) -> datetime:
    if given.revision:
        raise click.UsageError(f"{option}: a revision is no time; write 2h, or 2026-11-24T15:00Z")
    return given.time or datetime.now(UTC)


def _screen(bake: _Bake, found: pb.ReplayJudgementsResponse, step: Duration, width: int) -> Iterator[Text]:
    against = f" against {render.short(bake.baseline)}" if bake.baseline else ""
    start, last = _minute(bake.start), moment(found.moments[-1].time)
    every = f"every {render.duration(step)}, {render.count(len(found.moments), 'moment')}"
    head = f"{wording.short_model(bake.model)}{against}, {start:%Y-%m-%d %H:%M} to {_clock(last, start)} UTC, {every}"
    yield Text(head, style="bold")
    if bake.launch is not None:
        ended = f", which ended as {render.enum(bake.launch, 'state')}" if bake.end else ", which goes on"
        yield Text(f"from the first traffic of {bake.launch.name}{ended}")
    yield Text("")
    yield Text(found.explanation)
    yield Text("")
    yield from _timeline(found.moments, width)
    seen = {each.verdict for each in found.moments}
    legend = Text("  ").join(Text.assemble(_MARKS[v][:2], f" {_MARKS[v][2]}") for v in _MARKS if v in seen)
    yield legend
    yield Text("")


def _timeline(moments: Sequence[pb.Replayed], width: int) -> Iterator[Text]:
    """A character a moment; each line begins with the time of its first."""
    days = moment(moments[-1].time) - moment(moments[0].time)
    form = "%H:%M" if days < timedelta(days=1) else "%d %b %H:%M"
    room = width - len("24 Nov 22:25  ")
    # Tens begin lines, so that a place in a line can be counted out.
    a_line = max(10, room - room % 10)
    for first in range(0, len(moments), a_line):
        line = moments[first : first + a_line]
        marks = [_MARKS.get(each.verdict, ("·", "")) for each in line]
        clock = f"{moment(line[0].time):{form}}  "
        yield Text.assemble((clock, "dim"), *(mark[:2] for mark in marks))


def _changes(bake: _Bake, found: pb.ReplayJudgementsResponse) -> Any:
    """A row for each change of the verdict."""
    start = _minute(bake.start)
    firsts = [next(run) for _, run in groupby(found.moments, key=lambda each: each.verdict)]
    rows = [
        [
            _clock(moment(each.time), start),
            render.seconds((moment(each.time) - start).total_seconds()),
            render.enum(each, "verdict"),
            each.explanation,
        ]
        for each in firsts[:_MOST_CHANGES]
    ]
    if len(firsts) > _MOST_CHANGES:
        rows.append(["…", "", "", f"{len(firsts) - _MOST_CHANGES} changes more; -o json has every moment"])
    return render.table(["FROM (UTC)", "AFTER", "VERDICT", "WHY"], rows)


def _minute(stamp: Timestamp) -> datetime:
    """The minute from which events are judged."""
    return moment(stamp).replace(second=0, microsecond=0)


def _clock(time: datetime, start: datetime) -> str:
    return f"{time:%H:%M}" if time.date() == start.date() else f"{time:%Y-%m-%d %H:%M}"
