"""`modelfleet registry`: teams, regions, model types, models, and who changed what."""

from __future__ import annotations

import click

from modelfleet.cli import assets, classification, code, export, history, imports, render, standard
from modelfleet.cli.criticality import criticality
from modelfleet.cli.resources import Resource, add_standard_verbs
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.registry.v1 import registry_pb2 as pb


def why_required(model_type: pb.ModelType) -> str:
    """Why a type has to be as critical as it has to be; empty where it need not be."""
    if not model_type.required_tier_path:
        return ""
    source, *between = (render.short(name) for name in model_type.required_tier_path[:-1])
    through = f" through {', '.join(between)}" if between else ""
    return f"required_tier: {render.enum(model_type, 'required_tier')} because {source} depends on it{through}"


TEAM = Resource(
    "registry",
    "team",
    "teams",
    "teams/{}",
    pb.Team,
    [
        ("TEAM", lambda m: render.short(m.name)),
        ("ON-CALL", lambda m: m.on_call),
        ("BINDINGS", lambda m: str(sum(len(binding.members) for binding in m.role_bindings))),
        ("CHANGED", lambda m: render.clock(m.update_time)),
    ],
    "No teams yet. Create one: modelfleet registry team create ranking --set on_call=pager-ranking",
)
REGION = Resource(
    "registry",
    "region",
    "regions",
    "regions/{}",
    pb.Region,
    [("REGION", lambda m: render.short(m.name)), ("AGENT", lambda m: m.agent_address)],
    "No regions yet. `modelfleetd up` creates the region 'local'.",
)
MODEL_TYPE = Resource(
    "registry",
    "model_type",
    "model_types",
    "modelTypes/{}",
    pb.ModelType,
    [
        ("MODEL TYPE", lambda m: render.short(m.name)),
        ("TEAM", lambda m: render.short(m.team)),
        ("TIER", lambda m: render.enum(m, "tier")),
        ("STAGE", lambda m: render.enum(m, "funnel_stage")),
        ("BASELINE", lambda m: render.short(m.baseline)),
        ("REGIONS", lambda m: ", ".join(render.short(region) for region in m.regions)),
    ],
    "No model types yet. Create one: modelfleet registry type create feed_ctr --set team=teams/ranking",
    remark=why_required,
)
MODEL = Resource(
    "registry",
    "model",
    "models",
    "modelTypes/{}/models/{}",
    pb.Model,
    [
        ("MODEL", lambda m: m.name.removeprefix("modelTypes/").replace("/models/", "/")),
        ("ROLE", lambda m: render.enum(m, "role")),
        ("FLAVOR", lambda m: render.short(m.serving_spec.flavor)),
        ("DESCRIPTION", lambda m: m.description),
        ("REGISTERED", lambda m: render.clock(m.create_time)),
    ],
    "No models yet. Register one: modelfleet registry model create TYPE/MODEL -f model.yaml",
)


@click.group(cls=FleetGroup)
def group() -> None:
    """Teams, regions, model types, models and their history."""


@group.group(cls=FleetGroup)
def team() -> None:
    """Teams: who owns model types, who is on call, who may do what."""


@group.group(cls=FleetGroup)
def region() -> None:
    """Regions: places with a platform agent, demand and capacity of their own."""


@group.group("type", cls=FleetGroup)
def model_type() -> None:
    """Model types: classes of models with one purpose; also the routes of traffic."""


@group.group(cls=FleetGroup)
def model() -> None:
    """Models: trained instances of a model type."""


@group.group(cls=FleetGroup)
def revision() -> None:
    """Revisions: who changed what, when and why."""


add_standard_verbs(team, TEAM)
add_standard_verbs(region, REGION)
add_standard_verbs(model_type, MODEL_TYPE)
add_standard_verbs(model, MODEL, parent="modelTypes/{}")
assets.add_to(group)
classification.add_to(group)
code.add_commands(group)
imports.add_commands(group)
for command in (criticality, standard.lint, standard.report, standard.waive, standard.discover):
    group.add_command(command)


def describe_change(change: pb.ResourceChange) -> str:
    """One resource's change in one line: `modelTypes/x updated: baseline, splits`."""
    fields = ", ".join(field.path for field in change.fields)
    what = render.enum(change, "action").lower()
    return f"{change.resource} {what}: {fields}" if fields and what == "updated" else f"{change.resource} {what}"


export.add_command(group, describe_change)
history.add_commands(group, describe_change)


@revision.command("list")
@click.argument("resource", required=False, default="")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_revisions(session: Session, resource: str, limit: int) -> None:
    """List revisions, newest first; of one resource by its full name (modelTypes/feed_ctr)."""
    answer = session.client.registry.list_revisions(resource=resource, page_size=limit)
    columns: list[render.Column] = [
        ("REVISION", lambda m: str(m.number)),
        ("TIME", lambda m: render.clock(m.time)),
        ("ACTOR", lambda m: f"{m.actor} for {m.on_behalf_of}" if m.on_behalf_of else m.actor),
        ("CHANGE", lambda m: "; ".join(describe_change(change) for change in m.changes)),
        ("REASON", lambda m: m.reason),
    ]
    render.listing(session, answer.revisions, columns, "No revisions yet.")


@revision.command("get")
@click.argument("number")
@with_session
def get_revision(session: Session, number: str) -> None:
    """Show a revision field by field: what was before, what is after."""
    found = session.client.registry.get_revision(name=f"revisions/{render.short(number)}")
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    click.echo(f"revision {found.number} at {render.clock(found.time)} by {found.actor}")
    for label, value in (("for", found.on_behalf_of), ("launch", found.launch), ("reason", found.reason)):
        if value:
            click.echo(f"{label}: {value}")
    for line in history.diff_lines(found.changes):
        click.echo(line)


@group.command("status")
@click.argument("model_type", required=False, default="")
@with_session
def status(session: Session, model_type: str) -> None:
    """Show what the platforms report to be serving, of one model type or of all."""
    name = MODEL_TYPE.name(model_type) if model_type else ""
    answer = session.client.registry.list_serving_statuses(model_type=name, page_size=1000)
    if not session.is_table:
        render.dump(session, [render.as_data(item) for item in answer.statuses])
        return
    rows = [
        [
            render.short(item.model_type),
            render.short(item.region),
            render.short(serving.model),
            render.percent(serving.share_basis_points),
            f"{serving.available_replicas}/{serving.total_replicas}",
            str(serving.requests),
            str(serving.errors),
            render.age(item.observe_time) + " ago",
        ]
        for item in answer.statuses
        for serving in item.models
    ]
    if not rows:
        click.echo("Nothing is reported to be serving. The launcher reads every agent once a minute.")
        return
    headers = ["MODEL TYPE", "REGION", "MODEL", "SHARE", "AVAILABLE", "REQUESTS", "ERRORS", "OBSERVED"]
    render.console().print(render.table(headers, rows))
