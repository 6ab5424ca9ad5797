"""`modelfleet registry criticality`: TIER0 and TIER1 are asked for by one person and approved by another."""

from __future__ import annotations

from typing import Any

import click
from google.protobuf.duration_pb2 import Duration

from modelfleet.cli import render
from modelfleet.cli.parameters import DURATION, ENTRY
from modelfleet.cli.resources import Resource
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import criticality_pb2 as pb

REQUEST = Resource(
    "registry",
    "criticality_request",
    "criticality_requests",
    "criticalityRequests/{}",
    pb.CriticalityRequest,
    [
        ("REQUEST", lambda m: render.short(m.name)),
        ("ENTRY", lambda m: m.resource),
        ("TIER", lambda m: render.enum(m, "tier")),
        ("STATE", lambda m: render.enum(m, "state")),
        ("ASKED BY", lambda m: m.requester),
        ("ASKED", lambda m: render.clock(m.create_time)),
        ("DECIDED BY", lambda m: m.decided_by),
        ("EXPIRES", lambda m: render.day(m.expire_time)),
    ],
    "No requests. Ask for a tier: modelfleet registry criticality request --help",
)

_STATES = [name for name in pb.CriticalityRequest.State.keys() if not name.endswith("_UNSPECIFIED")]  # noqa: SIM118


@click.group(cls=FleetGroup)
def criticality() -> None:
    """TIER0 and TIER1: asked for with evidence, approved by another person, for a time."""


@criticality.command("request")
@click.argument("entry", metavar="TYPE[/MODEL]", type=ENTRY)
@click.option(
    "--tier", required=True, type=click.Choice(["TIER0", "TIER1"]), help="What it can cause: a SEV0, or a SEV1."
)
@click.option("--on-call", required=True, help="The rotation that answers at any hour, 24x7.")
@click.option("--metric", required=True, help="The business metric that it contributes to.")
@click.option("--contribution", required=True, help="What it contributes, and how that is known.")
@click.option("--link", "links", multiple=True, metavar="URI", help="Where to read more; may be repeated.")
@click.option("--lifetime", type=DURATION, help="How long an approval is to hold: 1d to 730d. Default 365d.")
@click.option("--reason", default="", help="Why; kept in the history.")
@click.option("--dry-run", is_flag=True, help="Only check; change nothing.")
@with_session
def request(
    session: Session,
    entry: str,
    tier: str,
    on_call: str,
    metric: str,
    contribution: str,
    links: tuple[str, ...],
    lifetime: Duration | None,
    reason: str,
    dry_run: bool,
) -> None:
    """Ask for TIER0 or TIER1, or to renew it. It takes effect when another person approves."""
    evidence = pb.CriticalityEvidence(
        on_call_24x7=on_call, business_metric=metric, contribution=contribution, links=links
    )
    made = session.client.registry.request_criticality(
        resource=entry,
        tier=serving_pb2.Tier.Value(tier),
        evidence=evidence,
        lifetime=lifetime,
        reason=reason,
        validate_only=dry_run,
    )
    if not session.is_table:
        render.dump(session, render.as_data(made))
    elif dry_run:
        click.echo(f"would ask for {tier} of {entry}")
    else:
        click.echo(f"asked for {tier} of {entry}: {made.name}")
        click.echo(f"another person approves it: modelfleet registry criticality approve {render.short(made.name)}")


_DECIDING = (
    click.argument("request", metavar="REQUEST"),
    click.option("--etag", default="", help="Only if it is as it was seen: the etag that `show` gives."),
    click.option("--dry-run", is_flag=True, help="Only check; change nothing."),
)


def _deciding(command: Any) -> Any:
    for option in reversed(_DECIDING):
        command = option(command)
    return command


def _decided(session: Session, made: pb.CriticalityRequest, dry_run: bool) -> None:
    if not session.is_table:
        render.dump(session, render.as_data(made))
    else:
        state = render.enum(made, "state").lower()
        click.echo(f"{'would be ' if dry_run else ''}{state}: {render.enum(made, 'tier')} of {made.resource}")


@criticality.command("approve")
@_deciding
@click.option("--reason", default="", help="Why; kept in the history.")
@with_session
def approve(session: Session, request: str, etag: str, dry_run: bool, reason: str) -> None:
    """Approve a request that somebody else has made: the entry gets its tier at once."""
    made = session.client.registry.approve_criticality(
        name=REQUEST.name(request), etag=etag, reason=reason, validate_only=dry_run
    )
    _decided(session, made, dry_run)
    if session.is_table and not dry_run:
        click.echo(f"it holds until {render.day(made.expire_time)}; ask again before then to renew it")


@criticality.command("reject")
@_deciding
@click.option("--reason", required=True, help="Why, for who asked.")
@with_session
def reject(session: Session, request: str, etag: str, dry_run: bool, reason: str) -> None:
    """Reject a request."""
    made = session.client.registry.reject_criticality(
        name=REQUEST.name(request), etag=etag, reason=reason, validate_only=dry_run
    )
    _decided(session, made, dry_run)


@criticality.command("withdraw")
@_deciding
@click.option("--reason", default="", help="Why; kept in the history.")
@with_session
def withdraw(session: Session, request: str, etag: str, dry_run: bool, reason: str) -> None:
    """Take a request back."""
    made = session.client.registry.withdraw_criticality(
        name=REQUEST.name(request), etag=etag, reason=reason, validate_only=dry_run
    )
    _decided(session, made, dry_run)


@criticality.command("list")
@click.option("--state", type=click.Choice(_STATES, case_sensitive=False), help="Only those in this state.")
@with_session
def list_requests(session: Session, state: str | None) -> None:
    """List requests, whatever became of them."""
    found = REQUEST.pages(session, filter=f"state = {state}" if state else "")
    render.listing(session, found, REQUEST.columns, f"No request is {state}." if state else REQUEST.nothing)


@criticality.command("show")
@click.argument("request", metavar="REQUEST")
@with_session
def show(session: Session, request: str) -> None:
    """Show a request with its evidence and what was decided."""
    render.show(session, REQUEST.call(session, "get", name=REQUEST.name(request)))
