"""Reading launches: list, describe, watch, events."""

from __future__ import annotations

import click

from modelfleet.cli import completion, render
from modelfleet.cli.launch import explain, view
from modelfleet.cli.launch.follow import launch_name, watch_to_end
from modelfleet.cli.launch.told import with_session
from modelfleet.cli.session import Session


@click.command("list")
@click.argument("model_type", required=False, default="")
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_launches(session: Session, model_type: str, active: bool, limit: int) -> None:
    """List launches, newest first, of one model type or of all."""
    answer = session.client.launcher.list_launches(
        model_type=f"modelTypes/{render.short(model_type)}" if model_type else "", active_only=active, page_size=limit
    )
    columns: list[render.Column] = [
        ("LAUNCH", lambda m: render.short(m.name)),
        ("CANDIDATE", lambda m: m.candidate.removeprefix("modelTypes/").replace("/models/", "/")),
        ("STATE", lambda m: render.enum(m, "state") + (" (paused)" if m.pause_reasons else "")),
        ("STEP", view.step_of),
        ("SHARE", view.share_of),
        ("BY", lambda m: m.actor),
        ("CREATED", lambda m: render.clock(m.create_time)),
        ("TOOK", view.took),
    ]
    render.listing(
        session, answer.launches, columns, "No launches. Start one: modelfleet launch create TYPE/MODEL --pool POOL"
    )


@click.command("describe")
@click.argument("launch", shell_complete=completion.launches)
@with_session
def describe(session: Session, launch: str) -> None:
    """Explain a launch: what it does or waits for, its plan, its gates, what happened."""
    found = session.client.launcher.get_launch(name=launch_name(launch))
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    events = list(session.client.launcher.list_launch_events_all(name=found.name, page_size=1000))
    attempts = list(session.client.launcher.list_attempts_all(parent=found.name)) if found.attempt > 1 else []
    told = session.client.launcher.list_notifications(launch=found.name).notifications
    for part in explain.describe_parts(found, events, attempts=attempts, told=told):
        render.console().print(part)


@click.command("attempts")
@click.argument("launch", metavar="LAUNCH[/ATTEMPT]", shell_complete=completion.launches)
@with_session
def attempts(session: Session, launch: str) -> None:
    """List the attempts of a launch, newest first; or explain one of them, such as l1/1."""
    name, _, attempt = launch.removeprefix("launches/").replace("/attempts/", "/").partition("/")
    if not attempt:
        found = session.client.launcher.list_attempts_all(parent=launch_name(name), page_size=1000)
        render.listing(session, found, explain.ATTEMPT_COLUMNS, "No attempts.")
        return
    one = session.client.launcher.get_attempt(name=f"{launch_name(name)}/attempts/{attempt}")
    if not session.is_table:
        render.dump(session, render.as_data(one))
        return
    for part in explain.describe_parts(one.launch, ()):
        render.console().print(part)


@click.command("watch")
@click.argument("launch", shell_complete=completion.launches)
@with_session
def watch(session: Session, launch: str) -> None:
    """Follow a launch live until it ends. Exit status 1 unless it succeeds. With -o json, a line for each change."""
    watch_to_end(session, launch_name(launch))


@click.command("events")
@click.argument("launch", shell_complete=completion.launches)
@with_session
def events(session: Session, launch: str) -> None:
    """List what happened to a launch, oldest first."""
    found = session.client.launcher.list_launch_events_all(name=launch_name(launch), page_size=1000)
    render.listing(session, found, view.EVENT_COLUMNS, "Nothing happened yet.")
