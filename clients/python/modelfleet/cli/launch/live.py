"""The live view of a launch: where it is, what it waits for, what serves, what its gates say, and what is left."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.launch import view
from modelfleet.cli.launch.advice import ends_by, pause_ends_by
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb

_LABEL, _LEAST_BAR, _MOST_BAR = 11, 16, 50
# What stands beside a bar.
_BESIDE = 42
_REFRESHES = 2
# What a computation leaves of zero.
_NOISE = 1e-12
_PASSING = {pb.Launch.FINALIZING, pb.Launch.SUCCEEDED}
_BACK = {pb.Launch.ROLLING_BACK, pb.Launch.ROLLED_BACK}
_VERDICTS = {
    serving_pb2.PASS: ("✓", "green"),
    serving_pb2.FAIL: ("✗", "bold red"),
    serving_pb2.INCONCLUSIVE: ("?", "yellow"),
    serving_pb2.ERROR: ("!", "red"),
}


class Frame:
    """One picture of the live view, as wide as it is drawn."""

    def __init__(self, launch: pb.Launch, now: datetime | None = None) -> None:
        self._launch = launch
        self._now = now or datetime.now(UTC)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws it in the room there is: where it would be higher than the terminal, without the figures of gates."""
        whole = Group(*self._parts(options, figures=True))
        lines = len(console.render_lines(whole, options.update(height=None), pad=False))
        fits = not console.is_terminal or lines < console.height
        yield whole if fits else Group(*self._parts(options, figures=False))

    def _parts(self, options: ConsoleOptions, *, figures: bool) -> Iterator[RenderableType]:
        launch, now = self._launch, self._now
        bar = max(_LEAST_BAR, min(_MOST_BAR, options.max_width - _LABEL - _BESIDE))
        yield _head(launch, now)
        yield Text(launch.summary)
        yield from _waits(launch, now)
        for plan in launch.plan.regions:
            yield Text("")
            yield _steps(launch, plan)
            progress = next((found for found in launch.progress if found.region == plan.region), None)
            if progress is not None and (_step_of(launch, plan) <= len(plan.steps) or launch.state in _BACK):
                yield _serving(launch, plan, progress, bar)
        yield from _gates(launch, now, figures=figures)
        if launch.state not in view.ENDED:
            yield from _left(launch, now)


def _head(launch: pb.Launch, now: datetime) -> Text:
    """`new replaces old of ctr  SHIFTING  3m 12s`."""
    state = (render.enum(launch, "state"), view.STATE_STYLE.get(launch.state, "bold cyan"))
    attempt = f"  attempt {launch.attempt}" if launch.attempt > 1 else ""
    return Text.assemble((view.headline(launch), "bold"), "  ", state, f"  {_took(launch, now)}{attempt}")


def _took(launch: pb.Launch, now: datetime) -> str:
    end = _moment(launch.end_time) if launch.HasField("end_time") else now
    return render.seconds((end - _moment(launch.create_time)).total_seconds())


def _waits(launch: pb.Launch, now: datetime) -> Iterator[Text]:
    """What it waits for, since when, and what ends that; then whatever else is true of it."""
    for condition in launch.conditions:
        if condition.type == "Waiting" and not launch.pause_reasons:
            ends = ends_by(launch, condition.reason)
            end = f"; ends by {ends}" if ends else ""
            yield Text.assemble((_label("waits"), "bold"), f"{condition.reason} {_since(condition.since, now)}{end}")
        elif condition.type not in ("Waiting", "Paused", "NeedsAttention"):
            yield Text.assemble((_label(condition.type), "yellow"), condition.message)
    if any(condition.type == "NeedsAttention" for condition in launch.conditions):
        yield Text("needs attention: it does not get on by itself", style="bold red")
    for why in launch.pause_reasons:
        yield Text.assemble(
            (_label("paused"), "bold yellow"),
            f"by {why.author} {_since(why.time, now)}: {why.reason}; ends by {pause_ends_by(launch, why)}",
        )
    if launch.HasField("abort") and launch.state not in view.ENDED:
        yield Text.assemble((_label("goes back"), "bold yellow"), f"by {launch.abort.author}: {launch.abort.reason}")


def _label(word: str) -> str:
    return f"{word:<{_LABEL - 1}} "


def _since(stamp: Timestamp, now: datetime) -> str:
    began = _moment(stamp)
    return f"for {render.seconds((now - began).total_seconds())}, since {began:%H:%M:%S}"


def _steps(launch: pb.Launch, plan: pb.RegionPlan) -> Text:
    """A region's steps in a row: done, now, to come."""
    at = _step_of(launch, plan)
    progress = next((found for found in launch.progress if found.region == plan.region), pb.RegionProgress())
    grows = progress.baseline if launch.strategy == pb.Launch.END_EXPERIMENT else progress.candidate
    has = grows.intended_basis_points
    row = Text()
    row.append(_label(render.short(plan.region)), style="bold")
    for step in plan.steps:
        share = render.percent(step.share_basis_points)
        returned = launch.state in _BACK and step.number <= at and step.share_basis_points > has
        if returned or (step.number == at and launch.state in _BACK):
            row.append(f"◀{share}", style="bold yellow")
        elif step.number < at or (step.number == at and launch.state in _PASSING):
            row.append(f"✓{share}", style="green")
        elif step.number == at:
            row.append(f"▶{share}", style="bold cyan")
        else:
            row.append(f"·{share}", style="dim")
        row.append("  ")
    row.rstrip()
    return row


def _step_of(launch: pb.Launch, plan: pb.RegionPlan) -> int:
    """The step that a region is at; one more than its last where the launch has gone on to other regions."""
    waves = {found.region: found.wave or at for at, found in enumerate(launch.plan.regions, 1)}
    reached = [waves[found.region] for found in launch.progress if found.step and found.region in waves]
    known = next((found.step for found in launch.progress if found.region == plan.region), 0)
    return len(plan.steps) + 1 if known and max(reached, default=0) > waves[plan.region] else known


def _serving(launch: pb.Launch, plan: pb.RegionPlan, progress: pb.RegionProgress, width: int) -> RenderableType:
    """Share and replicas of both models as bars, each with its figures."""
    mine, _ = view.models(launch)
    new, old = progress.candidate, progress.baseline
    seen = new.observed_basis_points + old.observed_basis_points
    most = max(plan.new_replicas_full, plan.old_replicas_full, new.total_replicas, old.total_replicas, 1)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=_LABEL - 1, no_wrap=True)
    grid.add_column(width=width, no_wrap=True)
    grid.add_column()
    grid.add_row(
        "intended",
        _share_bar(new.intended_basis_points, width),
        f"{render.percent(new.intended_basis_points)} for the {mine}",
    )
    grid.add_row(
        "observed",
        _share_bar(new.observed_basis_points, width) if seen else "",
        f"{render.percent(new.observed_basis_points)}; {_requests(new, old)}" if seen else "no requests yet",
    )
    for label, side in ((mine, new), ("baseline", old)) if launch.baseline else ((mine, new),):
        grid.add_row(label, _replica_bar(side, most, width), _replicas(side))
    flavors = f", of {len(plan.holds)} flavors together" if len(plan.holds) > 1 else ""
    grid.add_row("hold", "", f"{progress.free_units} of {plan.hold_units} units are free{flavors}")
    return grid


def _requests(new: pb.SideProgress, old: pb.SideProgress) -> str:
    """How many there were at all: the share beside it is of those since the split."""
    failed = new.errors + old.errors
    return f"{new.requests + old.requests:,} requests so far" + (f", {failed:,} failed" if failed else "")


def _replicas(side: pb.SideProgress) -> str:
    ending = side.total_replicas - side.desired_replicas
    more = f", {ending} to end" if ending > 0 else ""
    return f"{side.available_replicas} of {side.desired_replicas} available, {side.total_replicas} exist{more}"


def _share_bar(share: int, width: int) -> Text:
    full = round(width * share / 10_000)
    return Text.assemble(("█" * full, "green"), ("·" * (width - full), "dim"))


def _replica_bar(side: pb.SideProgress, most: int, width: int) -> Text:
    """█ is available, ▒ is wanted and not available yet, ░ exists beyond what is wanted and ends."""
    up, wanted, there = side.available_replicas, side.desired_replicas, side.total_replicas
    ends = [round(width * replicas / most) for replicas in (up, max(up, wanted), max(up, wanted, there))]
    return Text.assemble(
        ("█" * ends[0], "green"), ("▒" * (ends[1] - ends[0]), "yellow"), ("░" * (ends[2] - ends[1]), "dim")
    )


def figures_of(verdict: pb.GateVerdict) -> str:
    """The figures of a verdict, by name: `click.calibration 1.01, click.positives 420`."""
    figures = sorted(verdict.figures.items())
    return ", ".join(f"{name} {value if abs(value) > _NOISE else 0:.4g}" for name, value in figures)


def _gates(launch: pb.Launch, now: datetime, *, figures: bool) -> Iterator[RenderableType]:
    """Each gate with what it said last, how long ago, and its figures."""
    last = {(verdict.gate, verdict.region): verdict for verdict in launch.gate_verdicts}
    if not last:
        return
    yield Text("")
    for verdict in last.values():
        mark, style = _VERDICTS.get(verdict.verdict, ("·", ""))
        ago = render.seconds((now - _moment(verdict.time)).total_seconds())
        where = f" in {render.short(verdict.region)}" if len(launch.plan.regions) > 1 and verdict.region else ""
        dry = ", not enforced" if verdict.dry_run else ""
        yield Text.assemble(
            (f"{mark} ", style),
            (verdict.gate, "bold"),
            f"{where} ",
            (render.enum(verdict, "verdict"), style),
            f" at step {verdict.step}, {ago} ago{dry}: {verdict.explanation}",
        )
        if figures and verdict.figures:
            yield Text(f"  {figures_of(verdict)}", style="dim")


def _left(launch: pb.Launch, now: datetime) -> Iterator[RenderableType]:
    """The time that is left: of the bake, of the step, of the launch."""
    left: list[str] = []
    bakes = [region.bake_end_time for region in launch.progress if region.HasField("bake_end_time")]
    if bakes and launch.state == pb.Launch.SHIFTING:
        left.append(f"bake {_until(max(bakes, key=_moment), now)}")
    for field, what in (
        ("step_deadline_time", "step at most"),
        ("deadline_time", "launch at most"),
        ("expected_end_time", "expected end"),
    ):
        if launch.HasField(field):  # type: ignore[arg-type]
            left.append(f"{what} {_until(getattr(launch, field), now)}")
    if stands_still(launch):
        left.append("expected end and deadlines stand still while it is paused")
    if left:
        yield Text("")
        yield Text.assemble((_label("left"), "bold"), " · ".join(left))


def stands_still(launch: pb.Launch) -> bool:
    """Whether a pause holds back what it would be due until."""
    going = launch.state not in view.ENDED and launch.state != pb.Launch.ROLLING_BACK
    return going and bool(launch.pause_reasons) and not launch.HasField("deadline_time")


def _until(stamp: Timestamp, now: datetime) -> str:
    """`2m 3s (14:05:00)`; with the day where it is not today."""
    end = _moment(stamp)
    shown = f"{end:%H:%M:%S}" if end.date() == now.date() else f"{end:%F %H:%M}"
    seconds = (end - now).total_seconds()
    return f"{render.seconds(seconds)} ({shown})" if seconds > 0 else f"over since {shown}"


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _line(launch: pb.Launch) -> tuple[object, ...]:
    """What has to change before it is said again where there is no terminal: not how long something lasts."""

    def kinds(condition: serving_pb2.Condition) -> tuple[str, str]:
        return condition.type, condition.reason

    return (
        launch.state,
        launch.current_step,
        tuple(kinds(condition) for condition in launch.conditions),
        tuple((why.author, why.reason) for why in launch.pause_reasons),
        launch.abort.author,
    )


def follow(updates: Iterable[pb.Launch]) -> pb.Launch | None:
    """Draws a launch live until it ends; without a terminal, a line for each new thing. Gives the last state."""
    last: pb.Launch | None = None
    if not sys.stdout.isatty():
        said: tuple[object, ...] = ()
        printed = ""
        for last in updates:
            text = f"{render.enum(last, 'state')} {last.summary}"
            if _line(last) != said and text != printed:
                print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)
                printed = text
            said = _line(last)
        return last

    def draw() -> RenderableType:
        return Frame(last) if last is not None else Group()

    # Between two changes the clock goes on.
    with Live(
        get_renderable=draw, console=render.console(), refresh_per_second=_REFRESHES, vertical_overflow="visible"
    ) as shown:
        for update in updates:
            last = update
            shown.refresh()
    return last
