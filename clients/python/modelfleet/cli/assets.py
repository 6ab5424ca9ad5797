"""`modelfleet registry asset`, and `modelfleet registry find`: what lies elsewhere, and what it belongs to."""

from __future__ import annotations

import click

from modelfleet.cli import render
from modelfleet.cli.resources import Resource, add_standard_verbs
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.registry.v1 import assets_pb2 as pb


def short_entry(name: str) -> str:
    """A model type or model as people write it: `feed_ctr`, `feed_ctr/v7`."""
    return name.removeprefix("modelTypes/").replace("/models/", "/")


ASSET = Resource(
    "registry",
    "asset",
    "assets",
    "assets/{}",
    pb.Asset,
    [
        ("ASSET", lambda m: render.short(m.name)),
        ("KIND", lambda m: render.enum(m, "kind")),
        ("TEAM", lambda m: render.short(m.team)),
        ("BELONGS TO", lambda m: ", ".join(map(short_entry, [*m.model_types, *m.models]))),
        ("URI", lambda m: m.uri),
    ],
    "No assets yet. Create one: modelfleet registry asset create feed-dashboard --set kind=DASHBOARD "
    "--set uri=https://… --set team=teams/feed --set 'model_types=[modelTypes/feed_ctr]'",
)
_WORDS = {
    pb.EntryMatch.NAME: "name",
    pb.EntryMatch.PART_OF_NAME: "part of the name",
    pb.EntryMatch.ASSET_URI: "asset",
    pb.EntryMatch.TRAINING_FLOW: "training flow",
    pb.EntryMatch.CHECKPOINT: "checkpoint",
    pb.EntryMatch.ARTIFACT: "artifact",
    pb.EntryMatch.SERVING_ENDPOINT: "endpoint",
}


@click.group(cls=FleetGroup)
def asset() -> None:
    """Assets: training flows, checkpoints, endpoints, datasets, dashboards, and whose they are."""


add_standard_verbs(asset, ASSET)


@click.command("find")
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, the best first.")
@with_session
def find(session: Session, query: str, limit: int) -> None:
    """Find model types and models by what you know of them.

    A name or a part of one, the URI of an asset, a training flow, a checkpoint or an artifact, or the address of an
    endpoint.
    """
    answer = session.client.registry.lookup_entries(query=query, page_size=limit)
    columns: list[render.Column] = [
        ("ENTRY", lambda m: short_entry(m.resource)),
        ("FOUND BY", lambda m: _WORDS.get(m.basis, "")),
        ("MATCH", lambda m: m.matched),
        ("ASSET", lambda m: render.short(m.asset)),
    ]
    nothing = f"Nothing fits '{query}'. A part of a name, a whole URI, or host:port of an endpoint is found."
    render.listing(session, answer.matches, columns, nothing)
    if not session.is_table:
        return
    if answer.truncated:
        click.echo(f"There are more than {limit}; narrow it down, or give --limit.")
    if answer.matches:
        best = answer.matches[0].resource
        noun = "model" if "/models/" in best else "type"
        click.echo(f"More: modelfleet registry {noun} get {short_entry(best)}")


def add_to(group: click.Group) -> None:
    """Adds the commands of this file."""
    group.add_command(asset)
    group.add_command(find)
