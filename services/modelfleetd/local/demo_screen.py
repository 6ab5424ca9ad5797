"""The demo's screen: words that a person follows, and on a terminal a table that lives.

Without a terminal (CI, a pipe) the table becomes a line every few seconds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.stability.v1 import stability_pb2
from modelfleetd.local import demo_fleet as fleet
from modelfleetd.local.demo_watch import Picture

_LINE_EVERY = 3.0


class DemoScreen:
    """Says what happens, and shows the picture while there is one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._picture: Picture | None = None
        self._began, self._began_at = time.monotonic(), datetime.now(UTC)
        self._last_line = 0.0

    def headline(self, text: str) -> None:
        """Says that a new part of the story begins."""
        self.console.print()
        self.console.print(Text(text, style="bold"), soft_wrap=True)

    def say(self, text: str) -> None:
        """Says a sentence."""
        self.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)

    def event(self, text: str, moment: datetime | None = None) -> None:
        """Says what happened, with its time since the demo began; now where no moment is given."""
        seconds = self.seconds if moment is None else (moment - self._began_at).total_seconds()
        self.console.print(f"  {seconds:5.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    @property
    def seconds(self) -> float:
        """How long the demo has been going on."""
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def live(self, picture: Picture) -> Iterator[None]:
        """Shows the picture for as long as the block runs."""
        self._picture = picture
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            try:
                yield
            finally:
                self._picture = None
            return
        with Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True):
            try:
                yield
            finally:
                self._picture = None

    def tick(self) -> None:
        """Writes a line where there is no live table and the last one is a while ago."""
        if self._picture is None or (self.console.is_terminal and not self.console.is_dumb_terminal):
            return
        if time.monotonic() - self._last_line >= _LINE_EVERY:
            self._last_line = time.monotonic()
            self.event(" | ".join(text for text in line_of(self._picture) if text))

    def _render(self) -> Group | Text:
        return Text("") if self._picture is None else table_of(self._picture, self.seconds)


def line_of(picture: Picture) -> list[str]:
    """Returns the picture in the parts of one line."""
    launch, counts = picture.launch, picture.traffic.counts
    parts = []
    if launch is not None:
        state = launcher_pb2.Launch.State.Name(launch.state)
        parts.append(f"{state}, step {launch.current_step} of {steps_of(launch)}")
        if side := _sides(launch):
            candidate, baseline = side
            parts.append(f"candidate {_share(candidate)}")
            parts.append(f"replicas {_replicas(candidate)} new {_replicas(baseline)} old")
    if picture.usage is not None:
        unused = 0 if launch is None else sum(region.free_units for region in launch.progress)
        parts.append(f"free {picture.usage.available_units} in the pool, {unused} in the hold")
    for model, word in ((fleet.CANDIDATE, "candidate"), (fleet.BASELINE, "baseline")):
        if (point := picture.points.get(model)) and point.examples:
            parts.append(f"{word} calibration {_estimate(point.calibration)}")
    parts.append(f"{counts.served.total()} served, {counts.failed} failed")
    return parts


def table_of(picture: Picture, seconds: float) -> Group:
    """Returns the picture as a table for a terminal."""
    launch, counts, traffic = picture.launch, picture.traffic.counts, picture.traffic
    table = Table(box=None, padding=(0, 2), show_header=True, header_style="dim")
    for title in ("", "candidate", "baseline"):
        table.add_column(title, no_wrap=True)
    if launch is not None and (side := _sides(launch)):
        candidate, baseline = side
        table.add_row("share intended", _basis(candidate.intended_basis_points), _basis(baseline.intended_basis_points))
        table.add_row("share observed", _basis(candidate.observed_basis_points), _basis(baseline.observed_basis_points))
        table.add_row("replicas (available of existing)", _replicas(candidate), _replicas(baseline))
    new, old = (picture.points.get(model) for model in (fleet.CANDIDATE, fleet.BASELINE))
    table.add_row("calibration, 99 % interval", _shown(new, "calibration"), _shown(old, "calibration"))
    table.add_row("NE, matured minutes", _shown(new, "ne"), _shown(old, "ne"))
    table.add_row("impressions, clicks so far", _evidence(new), _evidence(old))
    table.add_row("requests served", *(f"{counts.served[model]:,}" for model in (fleet.CANDIDATE, fleet.BASELINE)))
    lines: list[RenderableType] = [Text(""), Text(_headline(picture, seconds), style="bold"), table]
    if picture.usage is not None:
        free, nominal = picture.usage.available_units, picture.usage.nominal_units
        unused = "" if launch is None else f", {sum(region.free_units for region in launch.progress)} of them unused"
        held = f"{picture.usage.held_units} held by the launch{unused}"
        lines.append(Text(f"  pool: {free} of {nominal} units free, {held}"))
    again = "" if counts.passes == 1 else f", for the {_ordinal(counts.passes)} time"
    lines.append(
        Text(
            f"  traffic: four days of the log in {traffic.duration:.0f} s ({traffic.compression:,.0f} times as fast)"
            f"{again}; {counts.failed} failed requests",
            style="red" if counts.failed else "",
        )
    )
    if launch is not None and launch.summary:
        lines.append(Text(f"  {launch.summary}", style="italic"))
    return Group(*lines)


def steps_of(launch: launcher_pb2.Launch) -> int:
    """Returns how many steps the plan has."""
    return max((len(region.steps) for region in launch.plan.regions), default=0)


def _headline(picture: Picture, seconds: float) -> str:
    if picture.silent_since is not None:
        return f"  {seconds:.0f} s  the launcher does not answer; traffic goes on"
    launch = picture.launch
    if launch is None:
        return f"  {seconds:.0f} s"
    state = launcher_pb2.Launch.State.Name(launch.state)
    return f"  {seconds:.0f} s  {launch.name}: {state}, step {launch.current_step} of {steps_of(launch)}"


def _sides(launch: launcher_pb2.Launch) -> tuple[launcher_pb2.SideProgress, launcher_pb2.SideProgress] | None:
    return next(((region.candidate, region.baseline) for region in launch.progress), None)


def _share(side: launcher_pb2.SideProgress) -> str:
    return f"{_basis(side.intended_basis_points)}, observed {_basis(side.observed_basis_points)}"


def _basis(points: int) -> str:
    return f"{points / 100:.1f} %"


def _replicas(side: launcher_pb2.SideProgress) -> str:
    return f"{side.available_replicas}/{side.total_replicas}"


def _shown(point: stability_pb2.Point | None, metric: str) -> str:
    return "-" if point is None else _estimate(getattr(point, metric))


def _evidence(point: stability_pb2.Point | None) -> str:
    return "-" if point is None else f"{point.examples:,}, {point.positives}"


def _estimate(estimate: stability_pb2.Estimate) -> str:
    if estimate.state != stability_pb2.Estimate.VALUE:
        return "not yet"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def metrics_of(point: stability_pb2.Point) -> str:
    """Returns what is known of a model, in one line."""
    return (
        f"calibration {_estimate(point.calibration)}, NE {_estimate(point.ne)}; "
        f"{point.examples:,} impressions, {point.positives} clicks"
    )


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
