"""Following a launch until it ends."""

from __future__ import annotations

from collections.abc import Iterator

import click

from modelfleet.cli import render, watching
from modelfleet.cli.launch import live, view
from modelfleet.cli.session import Session
from modelfleet.launcher.v1 import launcher_pb2 as pb


def launch_name(value: str) -> str:
    """The name of a launch that is given as its id or its name.

    Raises:
        click.UsageError: it is neither.
    """
    launch_id = value.removeprefix("launches/")
    if "/" in launch_id:
        raise click.UsageError(
            f"LAUNCH: must be the id of a launch or launches/ID, not '{value}'; an attempt is explained by "
            "modelfleet launch attempts LAUNCH/ATTEMPT",
            click.get_current_context(silent=True),
        )
    return f"launches/{launch_id}"


def updates_of(session: Session, name: str) -> Iterator[pb.Launch]:
    """Every change of a launch until it has ended."""
    return watching.updates(
        lambda: session.client.launcher.watch_launch(name=name), lambda launch: launch.state in view.ENDED
    )


def stream(session: Session, updates: Iterator[pb.Launch]) -> pb.Launch | None:
    """Prints every change as it comes: a line of JSON, or a document of YAML."""
    last = None
    for last in updates:
        render.emit(session, render.as_data(last))
    return last


def followed(session: Session, name: str) -> pb.Launch | None:
    """Draws a launch until it has ended. Whoever stops looking is told that the launch goes on without them."""
    try:
        return live.follow(updates_of(session, name))
    except KeyboardInterrupt:
        launch = render.short(name)
        click.echo(
            f"{name} goes on by itself. Look again: modelfleet launch watch {launch}\n"
            f"Take it back: modelfleet launch abort {launch} --reason WHY",
            err=True,
        )
        raise click.Abort from None


def watch_to_end(session: Session, name: str) -> None:
    last = followed(session, name) if session.is_table else stream(session, updates_of(session, name))
    if last is not None and last.state != pb.Launch.SUCCEEDED:
        # Why is in what was shown last.
        raise click.ClickException(
            f"{name} ended as {render.enum(last, 'state')}; more: modelfleet launch describe {render.short(name)}"
        )
