"""`modelfleet capacity flavor|pool`: what there is, and whose it is."""

from __future__ import annotations

import click

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.capacity.nouns import FLAVOR, POOL
from modelfleet.cli.capacity.usage import history, show_usages, tree, usage
from modelfleet.cli.registry import MODEL
from modelfleet.cli.resources import add_standard_verbs
from modelfleet.cli.session import FleetGroup, Session, with_session


@click.group(cls=FleetGroup)
def flavor() -> None:
    """Flavors: kinds of machines with a cost per unit."""


@click.group(cls=FleetGroup)
def pool() -> None:
    """Pools: quotas of organisations and teams, and their use."""


add_standard_verbs(flavor, FLAVOR)
add_standard_verbs(pool, POOL)
for command in (usage, history, tree):
    pool.add_command(command)


@pool.command("book")
@click.argument("name", metavar="POOL")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--units", type=click.IntRange(min=0), required=True, help="How many; 0 takes the booking away.")
@click.option("--flavor", "of_flavor", required=True, metavar="FLAVOR", help="Of which flavor.")
@click.option("--region", required=True, metavar="REGION", help="In which region.")
@click.option("--reason", default="", help="Why; kept in the ledger.")
@click.option("--dry-run", is_flag=True, help="Only check; change nothing.")
@with_session
def book(
    session: Session, name: str, model: str, units: int, of_flavor: str, region: str, reason: str, dry_run: bool
) -> None:
    """Book what a model uses that serves without a launch.

    Instead of what it had booked there before.
    """
    wanted = pb.ModelUnits(
        model=MODEL.name(model), flavor=FLAVOR.name(of_flavor), region=f"regions/{render.short(region)}", units=units
    )
    found = session.client.capacity.book_usage(
        pool=POOL.name(name), usages=[wanted], reason=reason, validate_only=dry_run
    )
    show_usages(session, found)


@pool.command("bookings")
@click.argument("name", metavar="POOL")
@with_session
def bookings(session: Session, name: str) -> None:
    """List what each model has booked in a pool."""
    columns: list[render.Column] = [
        ("MODEL", lambda m: m.model.removeprefix("modelTypes/").replace("/models/", "/")),
        ("FLAVOR", lambda m: render.short(m.flavor)),
        ("REGION", lambda m: render.short(m.region)),
        ("UNITS", lambda m: str(m.units)),
    ]
    found = session.client.capacity.list_bookings_all(pool=POOL.name(name), page_size=1000)
    render.listing(session, found, columns, "Nothing is booked.")


@pool.command("ledger")
@click.argument("name", metavar="POOL")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def ledger(session: Session, name: str, limit: int) -> None:
    """List the changes of a pool's usage, newest first.

    Who changed what, when, and why.
    """
    answer = session.client.capacity.list_ledger_entries(pool=POOL.name(name), page_size=limit)
    columns: list[render.Column] = [
        ("TIME", lambda m: render.clock(m.time)),
        ("FLAVOR", lambda m: render.short(m.flavor)),
        ("REGION", lambda m: render.short(m.region)),
        ("ACCOUNT", lambda m: render.enum(m, "account")),
        ("UNITS", lambda m: f"{m.delta_units:+d}"),
        ("MODEL", lambda m: render.short(m.model)),
        ("LAUNCH", lambda m: render.short(m.launch)),
        ("REASON", lambda m: m.reason),
    ]
    render.listing(session, answer.entries, columns, "Nothing was ever booked.")
