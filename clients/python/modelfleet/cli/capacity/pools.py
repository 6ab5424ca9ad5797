"""`modelfleet capacity flavor|pool`: what there is, and whose it is."""

from __future__ import annotations

import click

from modelfleet.cli import render
from modelfleet.cli.capacity.nouns import FLAVOR, POOL
from modelfleet.cli.resources import add_standard_verbs
from modelfleet.cli.session import FleetGroup, Session, with_session


@click.group(cls=FleetGroup)
def flavor() -> None:
    """Flavors: kinds of machines with a cost per unit."""


@click.group(cls=FleetGroup)
def pool() -> None:
    """Pools: teams' quotas by flavor and region."""


add_standard_verbs(flavor, FLAVOR)
add_standard_verbs(pool, POOL)


@pool.command("usage")
@click.argument("name", metavar="POOL")
@with_session
def usage(session: Session, name: str) -> None:
    """Show what a pool owns, uses and has free, by flavor and region."""
    found = session.client.capacity.get_pool(name=POOL.name(name))
    columns: list[render.Column] = [
        ("FLAVOR", lambda m: render.short(m.flavor)),
        ("REGION", lambda m: render.short(m.region)),
        ("NOMINAL", lambda m: str(m.nominal_units)),
        ("SERVING", lambda m: str(m.serving_units)),
        ("HELD", lambda m: str(m.held_units)),
        ("RETAINED", lambda m: str(m.retained_units)),
        ("AVAILABLE", lambda m: str(m.available_units)),
    ]
    render.listing(
        session, found.usages, columns, f"{found.name} has no quota. Set one: modelfleet capacity pool update"
    )


@pool.command("ledger")
@click.argument("name", metavar="POOL")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def ledger(session: Session, name: str, limit: int) -> None:
    """List the changes of a pool's usage, newest first: who, when, why."""
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
