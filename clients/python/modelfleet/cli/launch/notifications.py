"""`modelfleet launch notifications`: what people were told, and what has not arrived."""

from __future__ import annotations

import itertools

import click

from modelfleet.cli import render
from modelfleet.cli.launch.follow import launch_name
from modelfleet.cli.launch.told import with_session
from modelfleet.cli.session import Session
from modelfleet.launcher.v1 import notifications_pb2 as pb

_NOTHING = (
    "Nobody was told anything. Receivers are named by `modelfleetd launcher --webhooks FILE.yaml` and "
    "`--alertmanager-url URL`."
)


def state(found: pb.Notification) -> str:
    """Where it stands, and what keeps it."""
    said = render.enum(found, "state")
    return f"{said}: {found.last_error} ({render.count(found.attempts, 'attempt')})" if found.last_error else said


COLUMNS: list[render.Column] = [
    ("WRITTEN", lambda m: render.clock(m.create_time)),
    ("LAUNCH", lambda m: render.short(m.launch)),
    ("KIND", lambda m: render.enum(m, "kind")),
    ("RECEIVER", lambda m: m.receiver),
    ("STATE", state),
    ("DELIVERED", lambda m: render.clock(m.deliver_time)),
    ("MESSAGE", lambda m: m.message),
]


@click.command("notifications")
@click.argument("launch", required=False, default="")
@click.option("--pending", is_flag=True, help="Only those that have not arrived yet.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many, newest first.")
@with_session
def notifications(session: Session, launch: str, pending: bool, limit: int) -> None:
    """List what people were told of a launch, or of all, newest first; and what has not arrived yet."""
    found = session.client.launcher.list_notifications_all(
        launch=launch_name(launch) if launch else "", pending_only=pending, page_size=min(limit, 1000)
    )
    nothing = "Everything has arrived." if pending else _NOTHING
    render.listing(session, itertools.islice(found, limit), COLUMNS, nothing)
