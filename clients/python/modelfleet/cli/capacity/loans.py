"""`modelfleet capacity loan`: capacity of one pool that serves for another."""

from __future__ import annotations

from datetime import datetime

import click
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.capacity.v1 import loans_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.capacity.nouns import FLAVOR, POOL
from modelfleet.cli.parameters import UNTIL
from modelfleet.cli.session import FleetGroup, Session, with_session


@click.group(cls=FleetGroup)
def loan() -> None:
    """Loans: one pool's consent that another serves on its units.

    Until a time, which the lender says.
    """


_COLUMNS: list[render.Column] = [
    ("LOAN", lambda m: render.short(m.name)),
    ("LENDER", lambda m: render.short(m.lender)),
    ("BORROWER", lambda m: render.short(m.borrower)),
    ("FLAVOR", lambda m: render.short(m.flavor)),
    ("REGION", lambda m: render.short(m.region)),
    ("UNITS", lambda m: str(m.units)),
    ("STATE", lambda m: render.enum(m, "state")),
    ("UNTIL", lambda m: render.clock(m.end_time if m.HasField("end_time") else m.expire_time)),
    ("BY", lambda m: m.actor),
    ("REASON", lambda m: m.reason),
]


@loan.command("create")
@click.argument("lender", metavar="LENDER")
@click.argument("borrower", metavar="BORROWER")
@click.option("--units", type=click.IntRange(min=1), required=True, help="How many units.")
@click.option("--flavor", "of_flavor", required=True, metavar="FLAVOR", help="Of which flavor.")
@click.option("--region", required=True, metavar="REGION", help="In which region.")
@click.option("--until", type=UNTIL, required=True, metavar="TIME", help="Until when: 30d, 2026-12-24. At most 365 d.")
@click.option("--reason", default="", help="Why, in the lender's words.")
@click.option("--dry-run", is_flag=True, help="Only check; change nothing.")
@with_session
def create_loan(
    session: Session,
    lender: str,
    borrower: str,
    units: int,
    of_flavor: str,
    region: str,
    until: datetime,
    reason: str,
    dry_run: bool,
) -> None:
    """Lend units of LENDER's pool to BORROWER's.

    Its models may end up serving on them.
    For the peak of a swap a pool needs no loan: it borrows what its organisation has not used.
    """
    expires = Timestamp()
    expires.FromDatetime(until)
    wanted = pb.Loan(
        lender=POOL.name(lender),
        borrower=POOL.name(borrower),
        flavor=FLAVOR.name(of_flavor),
        region=f"regions/{render.short(region)}",
        units=units,
        expire_time=expires,
        reason=reason,
    )
    render.show(session, session.client.capacity.create_loan(loan=wanted, validate_only=dry_run))


@loan.command("list")
@click.option("--pool", "of_pool", default="", metavar="POOL", help="Only of this pool, as lender or borrower.")
@click.option("--active", is_flag=True, help="Only those in force.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_loans(session: Session, of_pool: str, active: bool, limit: int) -> None:
    """List loans, newest first."""
    answer = session.client.capacity.list_loans(
        pool=POOL.name(of_pool) if of_pool else "", active_only=active, page_size=limit
    )
    render.listing(
        session, answer.loans, _COLUMNS, "No loans. Lend: modelfleet capacity loan create LENDER BORROWER --units 10 …"
    )


@loan.command("get")
@click.argument("name", metavar="LOAN")
@with_session
def get_loan(session: Session, name: str) -> None:
    """Show a loan."""
    render.show(session, session.client.capacity.get_loan(name=f"loans/{render.short(name)}"))


@loan.command("end")
@click.argument("name", metavar="LOAN")
@with_session
def end_loan(session: Session, name: str) -> None:
    """End a loan before its time.

    What serves on it goes on serving, and counts as overdue.
    """
    render.show(session, session.client.capacity.end_loan(name=f"loans/{render.short(name)}"))
