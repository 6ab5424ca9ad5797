"""`launch plan` and `launch create`."""

from __future__ import annotations

from typing import Any

import click

from modelfleet.cli import render
from modelfleet.cli.launch import view
from modelfleet.cli.launch.follow import watch_to_end
from modelfleet.cli.launch.told import with_session
from modelfleet.cli.launch.wishes import wanted, with_wishes
from modelfleet.cli.session import Session


@click.command("plan")
@with_wishes
@with_session
def plan(session: Session, **wishes: Any) -> None:
    """Show the whole plan of a launch without creating anything."""
    found = session.client.launcher.create_launch(launch=wanted(**wishes), validate_only=True)
    if session.is_table:
        for line in view.plan_parts(found):
            render.console().print(line)
    else:
        render.dump(session, render.as_data(found))


@click.command("create")
@with_wishes
@click.option("--id", "launch_id", default="", help="Id of the launch. Default: the service makes one.")
@click.option("--queue", is_flag=True, help="Wait for the launch that is active on the route instead of being refused.")
@click.option("--watch", is_flag=True, help="Follow it until it ends.")
@with_session
def create(session: Session, launch_id: str, queue: bool, watch: bool, **wishes: Any) -> None:
    """Launch a model: it replaces the baseline, starts, ramps or ends as an experiment, is resized, or comes back."""
    made = session.client.launcher.create_launch(launch=wanted(**wishes), launch_id=launch_id, queue=queue)
    if watch:
        watch_to_end(session, made.name)
    elif session.is_table:
        click.echo(f"created {made.name}\n{made.summary}\nfollow it: modelfleet launch watch {render.short(made.name)}")
    else:
        render.dump(session, render.as_data(made))
