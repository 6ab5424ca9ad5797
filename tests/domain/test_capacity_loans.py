"""Loans as values: what may be offered, and how much a lender lends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.capacity.domain.loan import Offer, check_lending, check_organisation
from modelfleetd.capacity.domain.quota import Headroom
from modelfleetd.errors import InvalidFields, LoanExceedsLending

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def offer(units: int = 10, borrower: str = "pools/b", days: float = 1, reason: str = "") -> Offer:
    return Offer("pools/a", borrower, "flavors/cpu", "regions/eu", units, NOW + timedelta(days=days), reason, NOW)


def lender(nominal: int, lends: int | None = None, lent: int = 0, parent: str | None = "pools/org") -> Headroom:
    return Headroom("flavors/cpu", "regions/eu", nominal, lending_limit_units=lends, lent_units=lent, parent=parent)


def test_an_offer_that_cannot_be_is_refused_with_every_reason() -> None:
    with pytest.raises(InvalidFields) as refused:
        offer(0, "pools/a", 366, "x" * 1001)
    paths = [one.path for one in refused.value.violations]
    assert paths == ["loan.units", "loan.borrower", "loan.expire_time", "loan.reason"]
    with pytest.raises(InvalidFields):
        offer(days=0)


@given(
    units=st.integers(1, 50), nominal=st.integers(0, 50), lends=st.none() | st.integers(0, 60), lent=st.integers(0, 50)
)
def test_all_loans_in_force_together_are_at_most_what_is_lent_and_owned(
    units: int, nominal: int, lends: int | None, lent: int
) -> None:
    most = nominal if lends is None else min(lends, nominal)
    if units + lent <= most:
        check_lending(offer(units), lender(nominal, lends, lent))
    else:
        with pytest.raises(LoanExceedsLending) as refused:
            check_lending(offer(units), lender(nominal, lends, lent))
        assert refused.value.metadata["lendable"] == str(max(0, most - lent))


def test_an_organisation_lends_all_that_it_owns_itself_and_who_owns_nothing_lends_nothing() -> None:
    check_lending(offer(50), lender(50, lends=0, parent=None))
    with pytest.raises(LoanExceedsLending):
        check_lending(offer(1), None)


@pytest.mark.parametrize(
    ("lender_parent", "borrower_parent", "is_one"),
    [
        ("pools/org", "pools/org", True),
        (None, "pools/a", True),
        ("pools/b", None, True),
        ("pools/org", "pools/other", False),
        (None, None, False),
        ("pools/org", None, False),
    ],
)
def test_lender_and_borrower_belong_to_one_organisation(
    lender_parent: str | None, borrower_parent: str | None, is_one: bool
) -> None:
    if is_one:
        check_organisation(offer(), lender_parent, borrower_parent)
    else:
        with pytest.raises(InvalidFields, match="same organisation as pools/a"):
            check_organisation(offer(), lender_parent, borrower_parent)


def test_a_loan_moves_what_may_be_served_with_from_lender_to_borrower_and_makes_nothing() -> None:
    a = Headroom("f", "r", 100, serving_units=80, lent_units=20, parent="pools/org")
    b = Headroom("f", "r", 100, serving_units=90, held_units=30, ending_units=25, loaned_units=20, parent="pools/org")
    assert (a.end_units, b.end_units) == (80, 120)
    assert (a.end_room, b.end_room) == (0, 5)
    assert (a.overdue_units, b.overdue_units) == (0, 0)
    assert Headroom("f", "r", 100, serving_units=130, loaned_units=20, parent="pools/org").overdue_units == 10
