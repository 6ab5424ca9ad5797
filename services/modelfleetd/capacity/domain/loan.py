"""Loans: a lender's consent that another pool's models serve on its capacity until a time."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.capacity.domain.pool import MAX_UNITS, Place
from modelfleetd.capacity.domain.quota import Headroom, Share
from modelfleetd.errors import FieldViolation, LoanExceedsLending, invalid

MAX_TIME = timedelta(days=365)
MAX_REASON = 1000


class State(enum.Enum):
    """Where a loan is in its life; beside each, who moves it on."""

    ACTIVE = "ACTIVE"  # the worker, when its time is over; whoever ends it before
    EXPIRED = "EXPIRED"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a lender offers.

    Raises:
        InvalidFields: units or time out of range, the reason too long, or a pool lends to itself.
    """

    lender: str
    borrower: str
    flavor: str
    region: str
    units: int
    expire_time: datetime
    reason: str
    now: datetime

    def __post_init__(self) -> None:
        wrong = []
        if not 1 <= self.units <= MAX_UNITS:
            wrong.append(FieldViolation("loan.units", f"must be 1 to {MAX_UNITS:,}"))
        if self.borrower == self.lender:
            wrong.append(FieldViolation("loan.borrower", "must be another pool than the lender"))
        if not self.now < self.expire_time <= self.now + MAX_TIME:
            wrong.append(FieldViolation("loan.expire_time", "must be in the future, at most 365 days from now"))
        if len(self.reason) > MAX_REASON:
            wrong.append(FieldViolation("loan.reason", f"must have at most {MAX_REASON:,} characters"))
        refuse(wrong)

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)


@dataclass(frozen=True, slots=True)
class Loan:
    """A loan that was made."""

    name: str
    lender: str
    borrower: str
    flavor: str
    region: str
    units: int
    reason: str
    state: State
    actor: str
    create_time: datetime
    expire_time: datetime
    end_time: datetime | None = None

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)


def check_organisation(offer: Offer, lender_parent: str | None, borrower_parent: str | None) -> None:
    """Raises InvalidFields unless both pools belong to one organisation."""
    if (lender_parent or offer.lender) != (borrower_parent or offer.borrower):
        raise invalid("loan.borrower", f"must be a pool of the same organisation as {offer.lender}")


def check_lending(offer: Offer, lender: Headroom | None) -> None:
    """Checks that a lender lends so much, its loans in force included. An organisation's own pool lends all it owns.

    Raises LoanExceedsLending.
    """
    lends = 0
    if lender is not None:
        limit = None if lender.parent is None else lender.lending_limit_units
        lends = Share(lender.nominal_units, lending_limit=limit).stored_in_parent - lender.lent_units
    if offer.units > lends:
        raise LoanExceedsLending(offer.lender, offer.flavor, offer.region, offer.units, max(0, lends))
