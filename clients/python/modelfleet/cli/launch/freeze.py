"""`modelfleet launch freeze`: times in which launches neither start nor raise weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.cli import render
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.launch.freeze_view import FREEZE_WINDOW, opens
from modelfleet.cli.launch.told import with_session
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.session import FleetGroup, Session
from modelfleet.launcher.v1 import freeze_pb2 as pb

_TIERS = tuple(f"TIER{number}" for number in range(5))
# The option of each field, and the field by its option's name.
_FLAGS = {
    "freeze_window.start": "--start",
    "freeze_window.duration": "--duration",
    "freeze_window.time_zone": "--time-zone",
    "freeze_window.rrule": "--rrule",
    "freeze_window.exdates": "--except",
    "freeze_window.teams": "--team",
    "freeze_window.surfaces": "--surface",
    "freeze_window.tiers": "--tier",
    "freeze_window.reason": "--reason",
}


def _options(*, required: bool) -> tuple[Any, ...]:
    """The options that describe a window; those that a new one needs are `required`."""
    empty = "" if required else " Give '' for all."
    return (
        click.option(
            "--start", required=required, metavar="TIME",
            help="When it opens first, as local time of --time-zone: 2026-12-20 or 2026-12-20T18:00.",
        ),
        click.option("--duration", type=DURATION, required=required, help="How long it is open each time: 8h, 2d."),
        click.option("--time-zone", metavar="ZONE", help="IANA name, such as Europe/Berlin. Default UTC."),
        click.option(
            "--rrule", metavar="RULE",
            help="When it opens again, as in RFC 5545: 'FREQ=WEEKLY;BYDAY=FR'. Default: never.",
        ),
        click.option(
            "--except", "exdates", multiple=True, metavar="TIME", help="A start that is left out; may be repeated."
        ),
        click.option("--team", "teams", multiple=True, help=f"Only launches of this team; may be repeated.{empty}"),
        click.option("--surface", "surfaces", multiple=True, help=f"Only of this surface; may be repeated.{empty}"),
        click.option(
            "--tier", "tiers", multiple=True, type=click.Choice((*_TIERS, *([] if required else [""]))),
            metavar="TIER", help=f"Only of this tier, TIER0 to TIER4; may be repeated.{empty}",
        ),
        click.option("--reason", required=required, help="What it is for; those who wait for it read it."),
        click.option("--dry-run", is_flag=True, help="Only check, and say when it would open; change nothing."),
    )  # fmt: skip


def _with_options(*, required: bool) -> Callable[[Any], Any]:
    def with_options(command: Any) -> Any:
        for option in reversed(_options(required=required)):
            command = option(command)
        return command

    return with_options


def _local(text: str) -> str:
    """A local time as the service has it: of a day, its midnight."""
    return f"{text}T00:00:00" if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else text


def _window(given: dict[str, Any]) -> tuple[pb.FreezeWindow, list[str]]:
    """The window that the options describe, and the fields that they name."""
    named = {field: value for field, value in given.items() if value not in (None, ())}
    made = pb.FreezeWindow()
    for field, value in named.items():
        if field == "duration":
            made.duration.CopyFrom(value)
        elif isinstance(value, str):
            setattr(made, field, _local(value) if field == "start" else value)
        else:
            getattr(made, field).extend(_listed(field, value))
    return made, sorted(named)


def _listed(field: str, values: Sequence[str]) -> list[str]:
    present = [value for value in values if value]
    if field == "teams":
        return [f"teams/{render.short(value)}" for value in present]
    return [_local(value) for value in present] if field == "exdates" else present


@click.group(cls=FleetGroup)
def freeze() -> None:
    """Freeze windows: times in which launches wait.

    In a window, launches of its scope neither start nor raise weight. What runs keeps what it has; abort, rollback and
    mitigation are never held back.
    """


@freeze.command("create")
@click.argument("window", metavar="WINDOW")
@_with_options(required=True)
@with_session
def create(session: Session, window: str, dry_run: bool, **given: Any) -> None:
    """Create a freeze window.

    Of your teams, as their OWNER. One without --team holds back everybody and takes an ADMIN.
    """
    wanted, _ = _window(given)
    with told_in_flags(_FLAGS):
        made = session.client.launcher.create_freeze_window(
            freeze_window_id=render.short(FREEZE_WINDOW.name(window)), freeze_window=wanted, validate_only=dry_run
        )
    _after(session, made, "would be" if dry_run else "is")


@freeze.command("list")
@click.option("--active", is_flag=True, help="Only those that open again, or are open.")
@with_session
def list_windows(session: Session, active: bool) -> None:
    """List freeze windows: when each opens next, and whom it holds back."""
    found = FREEZE_WINDOW.pages(session, active_only=active)
    nothing = "No freeze window opens any more." if active else FREEZE_WINDOW.nothing
    render.listing(session, found, FREEZE_WINDOW.columns, nothing)


@freeze.command("get")
@click.argument("window", metavar="WINDOW")
@with_session
def get(session: Session, window: str) -> None:
    """Show a freeze window with all its fields."""
    found = session.client.launcher.get_freeze_window(name=FREEZE_WINDOW.name(window))
    render.show(session, found)
    if session.is_table:
        # As YAML has it, so that what was printed can be read again.
        click.echo(f"# {opens(found)}")


@freeze.command("update")
@click.argument("window", metavar="WINDOW")
@_with_options(required=False)
@with_session
def update(session: Session, window: str, dry_run: bool, **given: Any) -> None:
    """Change a freeze window; what is not given stays. Launches follow within seconds."""
    wanted, fields = _window(given)
    if not fields:
        raise click.UsageError("nothing to change; give --duration, --rrule or another option")
    wanted.name = FREEZE_WINDOW.name(window)
    with told_in_flags(_FLAGS):
        made = session.client.launcher.update_freeze_window(
            freeze_window=wanted, update_mask=FieldMask(paths=fields), validate_only=dry_run
        )
    _after(session, made, "would be" if dry_run else "is")


@freeze.command("delete")
@click.argument("window", metavar="WINDOW")
@with_session
def delete(session: Session, window: str) -> None:
    """Delete a freeze window. Launches that it holds back go on."""
    name = FREEZE_WINDOW.name(window)
    session.client.launcher.delete_freeze_window(name=name)
    if session.is_table:
        click.echo(f"deleted {name}; launches that it held back go on")
    else:
        render.dump(session, {"name": name, "deleted": True})


def _after(session: Session, window: pb.FreezeWindow, verb: str) -> None:
    """Says what a window is now, and when it opens."""
    if not session.is_table:
        render.dump(session, render.as_data(window))
        return
    click.echo(f"{window.name} {verb} {opens(window)}")
    click.echo("launches that it would hold back say so in their plan: modelfleet launch plan TYPE/MODEL --pool POOL")
