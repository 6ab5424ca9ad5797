"""`modelfleet launch hold`: models that are not to be launched."""

from __future__ import annotations

import click

from modelfleet.cli import render
from modelfleet.cli.launch.told import with_session
from modelfleet.cli.registry import MODEL
from modelfleet.cli.resources import Resource
from modelfleet.cli.session import FleetGroup, Session
from modelfleet.launcher.v1 import holds_pb2 as pb


def _short_model(name: str) -> str:
    return name.removeprefix("modelTypes/").replace("/models/", "/")


HOLD = Resource(
    service="launcher",
    method="hold",
    collection="holds",
    pattern="holds/{}",
    message=pb.Hold,
    columns=[
        ("HOLD", lambda m: render.short(m.name)),
        ("MODEL", lambda m: _short_model(m.model)),
        ("REASON", lambda m: m.reason),
        ("BY", lambda m: m.actor + (f" ({render.short(m.launch)})" if m.launch else "")),
        ("SINCE", lambda m: render.clock(m.create_time)),
        ("LIFTED", lambda m: f"by {m.lifted_by}: {m.lift_reason}" if m.lifted_by else ""),
    ],
    nothing="No model is on hold. Forbid to launch one: modelfleet launch hold create TYPE/MODEL --reason WHY",
    reasons=False,
)


@click.group("hold", cls=FleetGroup)
def group() -> None:
    """Forbid to launch a model, and lift that again. A rollback of a finished launch holds its model by itself."""


@group.command("list")
@click.argument("model", metavar="[TYPE/MODEL]", required=False, default="")
@click.option("--all", "include_lifted", is_flag=True, help="Also those that were lifted.")
@with_session
def list_(session: Session, model: str, include_lifted: bool) -> None:
    """List the holds in force, newest first, on one model or on all."""
    found = list(HOLD.pages(session, model=MODEL.name(model) if model else "", include_lifted=include_lifted))
    render.listing(session, found, HOLD.columns, HOLD.nothing)
    if session.is_table and any(not _lifted(hold) for hold in found):
        click.echo("lift one: modelfleet launch hold lift HOLD --reason WHY")


@group.command("get")
@click.argument("hold", metavar="HOLD")
@with_session
def get(session: Session, hold: str) -> None:
    """Show a hold with all its fields."""
    render.show(session, HOLD.call(session, "get", name=HOLD.name(hold)))


@group.command("create")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--reason", required=True, help="Why it is not to be launched; whoever tries is told.")
@click.option("--id", "hold_id", default="", help="Id of the hold. Default: the service makes one.")
@with_session
def create(session: Session, model: str, reason: str, hold_id: str) -> None:
    """Forbid to launch a model. Launches of it that have not begun are cancelled; what serves goes on serving."""
    made = HOLD.call(session, "create", hold_id=hold_id, hold=pb.Hold(model=MODEL.name(model), reason=reason))
    if not session.is_table:
        render.dump(session, render.as_data(made))
        return
    click.echo(f"created {made.name}: {_short_model(made.model)} is not launched until somebody lifts it")
    click.echo(f"lift it: modelfleet launch hold lift {render.short(made.name)} --reason WHY")


@group.command("lift")
@click.argument("hold", metavar="HOLD")
@click.option("--reason", required=True, help="Why it may be launched again.")
@with_session
def lift(session: Session, hold: str, reason: str) -> None:
    """Lift a hold, so that its model may be launched again."""
    lifted = HOLD.call(session, "lift", name=HOLD.name(hold), reason=reason)
    if not session.is_table:
        render.dump(session, render.as_data(lifted))
        return
    model = _short_model(lifted.model)
    click.echo(f"{lifted.name} is lifted, by {lifted.lifted_by}: {lifted.lift_reason}")
    click.echo(f"launch it: modelfleet launch create {model} --pool POOL")


def _lifted(hold: object) -> bool:
    return isinstance(hold, pb.Hold) and bool(hold.lifted_by)
