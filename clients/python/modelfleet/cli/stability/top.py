"""`modelfleet stability top`: the worst models, live."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.session import Session, with_session
from modelfleet.cli.stability import standing_view as view
from modelfleet.cli.stability.status import FILTER
from modelfleet.cli.watching import updates
from modelfleet.stability.v1 import stability_pb2 as pb

_STATES: Final = (
    pb.ModelStability.UNSTABLE,
    pb.ModelStability.UNKNOWN,
    pb.ModelStability.STABLE,
    pb.ModelStability.NOT_APPLICABLE,
)
# Lines above and below the table.
_FRAME: Final = 4


@click.command("top")
@FILTER
@click.option("--limit", type=click.IntRange(1, 1000), help="Models to show. Default: as many as fit, at least 10.")
@with_session
def top(session: Session, fitting: str, limit: int | None) -> None:
    """Watch the worst models live; Ctrl-C ends it.

    Each with what is wrong with it: value against range, and since when.

    Where nothing is a terminal, it is printed once; with -o json or yaml each change is printed as it comes.
    """
    board = Board()
    changes = updates(lambda: session.client.stability.watch_stability(filter=fitting), lambda _: False)
    try:
        if not session.is_table:
            for change in changes:
                if change.models or change.removed:
                    render.emit(session, render.as_data(change))
            return
        terminal = Console()
        if not terminal.is_terminal:
            # All that fit come first, then a message without any.
            for change in changes:
                board.take(change)
                if not change.models:
                    break
            render.console().print(board.picture(limit or 10, render.console().width))
            return
        live_board(board, changes, terminal, limit)
    except KeyboardInterrupt:
        click.echo("", err=True)


def live_board(
    board: Board, changes: Iterable[pb.WatchStabilityResponse], terminal: Console, limit: int | None
) -> None:
    """Draws the board again with each change, and leaves the last one on the screen when it is interrupted."""
    has_own_screen = sys.stdin.isatty()
    shown: RenderableType | None = None
    try:
        with Live(console=terminal, auto_refresh=False, screen=has_own_screen) as live:
            for change in changes:
                board.take(change)
                shown = board.picture(limit or max(10, terminal.height - _FRAME), terminal.width)
                live.update(shown, refresh=True)
    except KeyboardInterrupt:
        # What is drawn on a screen of its own goes with it.
        if has_own_screen and shown is not None:
            terminal.print(shown)
        raise


class Board:
    """What a watch has told so far."""

    def __init__(self) -> None:
        self._models: dict[str, pb.ModelStability] = {}
        self._evaluated = pb.WatchStabilityResponse()

    def take(self, change: pb.WatchStabilityResponse) -> None:
        """Takes what a message says."""
        self._models |= {model.model: model for model in change.models}
        for name in change.removed:
            self._models.pop(name, None)
        if change.HasField("evaluate_time"):
            self._evaluated = change

    def picture(self, most: int, width: int) -> RenderableType:
        """The worst of them."""
        models = sorted(self._models.values(), key=_rank)
        unstable = sum(model.state == pb.ModelStability.UNSTABLE for model in models)
        unavailable = sum(model.availability.state == pb.Availability.UNAVAILABLE for model in models)
        unknown = sum(model.state == pb.ModelStability.UNKNOWN for model in models)
        counted = f"{unstable} unstable, {unavailable} unavailable, {unknown} unknown of {len(models)}"
        style = "bold red" if unstable or unavailable else "bold green"
        evaluated = self._evaluated.evaluate_time
        when = f"  evaluated {render.clock(evaluated)} UTC" if evaluated.seconds else "  not evaluated yet"
        table = view.table(view.COLUMNS, models[:most], width) if models else Text("No model fits.")
        more = [Text(f"and {len(models) - most} more", style="dim")] if len(models) > most else []
        return Group(Text.assemble((counted, style), (when, "dim")), table, *more)


def _rank(model: pb.ModelStability) -> tuple[bool, bool, int, int, float, str]:
    """The worst first, as lists have them."""
    is_unstable = model.state == pb.ModelStability.UNSTABLE
    is_unavailable = model.availability.state == pb.Availability.UNAVAILABLE
    is_bad, is_both = is_unstable or is_unavailable, is_unstable and is_unavailable
    return not is_bad, not is_both, _STATES.index(model.state), model.tier or 9, -model.request_rate, model.model
