"""What is available to a pool, alone and within an organisation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.capacity.domain.quota import Share, available_alone, available_in_parent, available_to_child

NOTHING = Share(nominal=0)


def test_a_lends_twenty_of_its_hundred_so_b_has_a_hundred_and_twenty() -> None:
    a = Share(nominal=100, usage=80, lending_limit=20)
    b = Share(nominal=100, usage=0)
    assert available_to_child(b, NOTHING, [a, b]) == 120
    assert available_to_child(a, NOTHING, [a, b]) == 120


def test_what_a_pool_does_not_lend_stays_its_own_when_others_borrow_everything() -> None:
    a = Share(nominal=100, usage=0, lending_limit=20)
    b = Share(nominal=100, usage=120)
    assert available_to_child(b, NOTHING, [a, b]) == 0
    assert available_to_child(a, NOTHING, [a, b]) == 80


def test_a_borrowing_limit_bounds_what_comes_from_others() -> None:
    a = Share(nominal=100)
    b = Share(nominal=100, usage=90, borrowing_limit=5)
    assert available_to_child(b, NOTHING, [a, b]) == 15


def test_a_pool_alone_has_what_it_owns_and_is_negative_after_a_cut() -> None:
    assert available_alone(Share(nominal=100, usage=30)) == 70
    assert available_alone(Share(nominal=20, usage=30)) == -10


def test_the_organisation_adds_quota_of_its_own() -> None:
    children = [Share(nominal=10, usage=10), Share(nominal=10, usage=5)]
    assert available_in_parent(Share(nominal=7), children) == 12


SHARES = st.builds(
    Share,
    nominal=st.integers(0, 50),
    usage=st.just(0),
    lending_limit=st.none() | st.integers(0, 60),
    borrowing_limit=st.none() | st.integers(0, 60),
)


@given(
    st.lists(SHARES, min_size=1, max_size=4), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), max_size=30)
)
def test_whatever_is_admitted_by_the_rule_the_organisation_never_uses_more_than_it_owns(
    pools: list[Share], admissions: list[tuple[int, int]]
) -> None:
    for index, units in admissions:
        pool = pools[index % len(pools)]
        if units <= available_to_child(pool, NOTHING, pools):
            pools[index % len(pools)] = Share(
                pool.nominal, pool.usage + units, pool.lending_limit, pool.borrowing_limit
            )
        assert sum(one.usage for one in pools) <= sum(one.nominal for one in pools)
        for one in pools:
            # What is not lent can always be used by its owner.
            assert available_to_child(one, NOTHING, pools) >= max(0, one.local_quota - one.usage)
