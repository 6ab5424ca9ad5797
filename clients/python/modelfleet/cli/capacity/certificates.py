"""`modelfleet capacity certificate`: what one replica of a model carries, and who says so."""

from __future__ import annotations

import click

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.capacity.nouns import FLAVOR
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import FleetGroup, Session, with_session


@click.group(cls=FleetGroup)
def certificate() -> None:
    """Certificates: what one replica of a model carries, and who says so."""


@certificate.command("state")
@click.argument("model", metavar="TYPE/MODEL")
@click.option(
    "--max-qps", type=click.FloatRange(min=0, min_open=True), required=True, help="Requests a second of one replica."
)
@click.option("--flavor", "of_flavor", help="Flavor it ran on. Default: the model's.")
@click.option("--note", default="", help="Why the number may be believed.")
@with_session
def state_certificate(session: Session, model: str, max_qps: float, of_flavor: str | None, note: str) -> None:
    """State what one replica carries, by hand."""
    name = MODEL.name(model)
    flavor_name = (
        FLAVOR.name(of_flavor) if of_flavor else session.client.registry.get_model(name=name).serving_spec.flavor
    )
    wanted = pb.Certificate(model=name, flavor=flavor_name, max_qps=max_qps, note=note)
    render.show(session, session.client.capacity.create_certificate(certificate=wanted))


@certificate.command("list")
@click.argument("model", required=False, default="")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_certificates(session: Session, model: str, limit: int) -> None:
    """List certificates, newest first, of one model (TYPE/MODEL) or of all."""
    answer = session.client.capacity.list_certificates(model=MODEL.name(model) if model else "", page_size=limit)
    columns: list[render.Column] = [
        ("CERTIFICATE", lambda m: render.short(m.name)),
        ("MODEL", lambda m: m.model.removeprefix("modelTypes/").replace("/models/", "/")),
        ("MAX QPS", lambda m: f"{m.max_qps:.1f}"),
        ("FLAVOR", lambda m: render.short(m.flavor)),
        ("SOURCE", lambda m: render.enum(m, "source")),
        ("EXPIRES", lambda m: render.clock(m.expire_time)),
    ]
    render.listing(
        session, answer.certificates, columns, "No certificates. State one: modelfleet capacity certificate state"
    )
