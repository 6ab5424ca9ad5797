"""`modelfleet capacity reservation`: what launches hold."""

from __future__ import annotations

import click

from modelfleet.cli import render
from modelfleet.cli.capacity.nouns import POOL
from modelfleet.cli.session import FleetGroup, Session, with_session


@click.group(cls=FleetGroup)
def reservation() -> None:
    """Reservations: what launches hold."""


_RESERVATION_COLUMNS: list[render.Column] = [
    ("RESERVATION", lambda m: render.short(m.name)),
    ("LAUNCH", lambda m: render.short(m.launch)),
    ("POOL", lambda m: render.short(m.pool)),
    ("STATE", lambda m: render.enum(m, "state")),
    ("HOLD", lambda m: ", ".join(f"{i.hold_units} {render.short(i.flavor)}@{render.short(i.region)}" for i in m.items)),
    ("CREATED", lambda m: render.clock(m.create_time)),
]


@reservation.command("list")
@click.option("--pool", "of_pool", default="", help="Only of this pool.")
@click.option("--launch", "of_launch", default="", help="Only of this launch.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_reservations(session: Session, of_pool: str, of_launch: str, limit: int) -> None:
    """List reservations, newest first."""
    answer = session.client.capacity.list_reservations(
        pool=POOL.name(of_pool) if of_pool else "",
        launch=f"launches/{render.short(of_launch)}" if of_launch else "",
        page_size=limit,
    )
    render.listing(session, answer.reservations, _RESERVATION_COLUMNS, "No reservations.")


@reservation.command("get")
@click.argument("name", metavar="RESERVATION")
@with_session
def get_reservation(session: Session, name: str) -> None:
    """Show a reservation with everything that was moved, held and settled."""
    render.show(session, session.client.capacity.get_reservation(name=f"reservations/{render.short(name)}"))
