"""`modelfleet capacity certificate`: what one replica of a model carries, and who says so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import RenderableType
from rich.text import Text

from modelfleet import wording
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.capacity import loadtest_view
from modelfleet.cli.capacity.nouns import FLAVOR
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import FleetGroup, Session, with_session


@click.group(cls=FleetGroup)
def certificate() -> None:
    """Certificates: what one replica carries, and who says so."""


@certificate.command("state")
@click.argument("model", metavar="TYPE/MODEL")
@click.option(
    "--max-qps", type=click.FloatRange(min=0, min_open=True), required=True, help="Requests a second of one replica."
)
@click.option("--flavor", "of_flavor", metavar="FLAVOR", help="Flavor it ran on. Default: the model's.")
@click.option("--note", default="", help="Why the number may be believed.")
@click.option("--validity", type=DURATION, help="How long it is valid. Default 90d.")
@with_session
def state_certificate(
    session: Session, model: str, max_qps: float, of_flavor: str | None, note: str, validity: Duration | None
) -> None:
    """State what one replica carries, by hand."""
    name = MODEL.name(model)
    flavor_name = (
        FLAVOR.name(of_flavor) if of_flavor else session.client.registry.get_model(name=name).serving_spec.flavor
    )
    wanted = pb.Certificate(model=name, flavor=flavor_name, max_qps=max_qps, note=note)
    if validity is not None:
        wanted.expire_time.FromDatetime(datetime.now(UTC) + validity.ToTimedelta())
    render.show(session, session.client.capacity.create_certificate(certificate=wanted))


@certificate.command("list")
@click.argument("model", metavar="[TYPE/MODEL]", required=False, default="")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_certificates(session: Session, model: str, limit: int) -> None:
    """List certificates of one model or of all, newest first."""
    answer = session.client.capacity.list_certificates(model=MODEL.name(model) if model else "", page_size=limit)
    columns: list[render.Column] = [
        ("CERTIFICATE", lambda m: render.short(m.name)),
        ("MODEL", lambda m: wording.short_model(m.model)),
        ("MAX QPS", lambda m: f"{m.max_qps:.1f}"),
        ("CONFIDENCE", lambda m: f"{m.confidence:.0%}" if m.confidence else "-"),
        ("FLAVOR", lambda m: render.short(m.flavor)),
        ("SOURCE", lambda m: render.enum(m, "source")),
        ("EXPIRES", lambda m: "EXPIRED" if _is_over(m.expire_time) else render.clock(m.expire_time)),
    ]
    render.listing(
        session,
        answer.certificates,
        columns,
        "No certificates. Measure one: modelfleet capacity loadtest create TYPE/MODEL --region REGION; or state one: "
        "modelfleet capacity certificate state TYPE/MODEL --max-qps QPS",
    )


@certificate.command("show")
@click.argument("name", metavar="CERTIFICATE")
@with_session
def show_certificate(session: Session, name: str) -> None:
    """Show what a certificate says and what it rests on."""
    found = session.client.capacity.get_certificate(name=f"certificates/{render.short(name)}")
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    for part in _details(found):
        render.console().print(part)


def _details(found: pb.Certificate) -> Iterator[RenderableType]:
    sure = f"at {found.confidence:.0%} confidence" if found.confidence else "no confidence stated"
    yield Text.assemble(
        (f"{found.name}  ", "bold"), f"one replica carries at least {loadtest_view.rate(found.max_qps)}, {sure}"
    )
    where = f" in {render.short(found.region)}" if found.region else ""
    end = render.clock(found.expire_time)
    measured = found.source == pb.Certificate.LOAD_TEST
    rows = [
        ("model", f"{wording.short_model(found.model)} on {render.short(found.flavor)}{where}"),
        ("source", render.enum(found, "source") + (f" {found.load_test}" if found.load_test else "")),
        ("note", found.note),
        ("kept", loadtest_view.stoppers(found.stoppers) if found.HasField("stoppers") else ""),
        ("confirmed with", f"{found.requests:,} requests" if found.requests else ""),
        ("replayed", loadtest_view.replayed(found.recording, found.recording_digest) if measured else ""),
        ("generator", _health(found.generator_health) if found.HasField("generator_health") else ""),
        ("serving spec", found.serving_spec_digest),
        ("made", f"{render.clock(found.create_time)} UTC by {found.actor}"),
        ("valid", f"EXPIRED {end} UTC: measure again" if _is_over(found.expire_time) else f"until {end} UTC"),
    ]
    yield render.facts(rows)


def _health(health: pb.GeneratorHealth) -> str:
    return (
        f"sent {health.rate_ratio:.1%} of the rate, 1 % of the requests {health.send_late_p99_ms:.3g} ms late or "
        f"later, with {health.cpu_fraction:.0%} of a core"
    )


def _is_over(end: Timestamp) -> bool:
    return end.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
