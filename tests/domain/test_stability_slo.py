"""Service levels: burn rates, what fires and when it stops, budgets, and what a tier gives."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelfleetd.stability.domain.fleet import ServiceLevel, Tier, completed
from modelfleetd.stability.domain.slices import Slice, Slices
from modelfleetd.stability.domain.slo import (
    LONGEST_WINDOW,
    MIN_BAD,
    PAIRS,
    WINDOWS,
    BurnRate,
    Response,
    Tally,
    burn_rates,
    burning,
    coverage_slices,
    firing,
    tally,
)

HOUR, DAY = 60, 1440
UNSET = ServiceLevel(0.0, 0.0, 0.0, 0.0, 0.0)
TARGETS = st.sampled_from([0.9306, 0.95, 0.98, 0.99, 0.995, 0.999, 0.99999])


def minutes(*runs: tuple[int, Slice]) -> Slices:
    """Slices, run by run."""
    return np.concatenate([np.full(length, value, dtype=np.uint8) for length, value in runs])


def histories(longest: int = LONGEST_WINDOW + 200) -> st.SearchStrategy[Slices]:
    """Slices in runs, as faults and outages make them."""
    runs = st.lists(st.tuples(st.integers(1, 700), st.sampled_from(list(Slice))), min_size=1, max_size=12)
    return runs.map(lambda found: minutes(*found)[:longest])


def first_minute(fires: npt.NDArray[np.bool_]) -> int | None:
    """The first minute at which something fires, counted from 0."""
    found = np.flatnonzero(fires)
    return int(found[0]) if len(found) else None


def by_the_book(slices: Slices, target: float) -> list[BurnRate]:
    """The definition, literally: minute by minute, window by window."""
    found = []
    for pair in PAIRS:
        rates: list[float | None] = []
        bad_of_long = 0
        for width in pair.minutes:
            window = [Slice(value) for value in slices[-width:]]
            bad = sum(value is Slice.BAD for value in window)
            valid = bad + sum(value is Slice.GOOD for value in window)
            rates.append((bad / valid) / (1 - target) if valid and 2 * valid >= width else None)
            bad_of_long = bad if width == pair.minutes[0] else bad_of_long
        known = [rate for rate in rates if rate is not None]
        fires = len(known) == 2 and all(rate > pair.factor * (1 + 1e-12) for rate in known) and bad_of_long >= MIN_BAD
        found.append(
            BurnRate(
                pair.response, pair.long_window, pair.short_window, pair.factor, rates[0], rates[1], bad_of_long, fires
            )
        )
    return found


# --- burn rates -------------------------------------------------------------------------------------------------------


@given(histories(), TARGETS)
@settings(max_examples=60)
def test_burn_rates_are_those_of_the_definition(slices: Slices, target: float) -> None:
    for ours, expected in zip(burn_rates(slices, target), by_the_book(slices, target), strict=True):
        assert replace(ours, long_burn_rate=None, short_burn_rate=None) == replace(
            expected, long_burn_rate=None, short_burn_rate=None
        )
        for mine, theirs in (
            (ours.long_burn_rate, expected.long_burn_rate),
            (ours.short_burn_rate, expected.short_burn_rate),
        ):
            assert mine == (None if theirs is None else pytest.approx(theirs, rel=1e-9))


@given(st.lists(histories(600), min_size=1, max_size=5), TARGETS)
@settings(max_examples=40)
def test_a_replay_says_at_each_minute_what_was_said_then(rows: list[Slices], target: float) -> None:
    length = min(map(len, rows))
    matrix = np.stack([row[:length] for row in rows])
    for response in Response:
        replayed = firing(matrix, target, response)
        for minute in {0, length // 3, length // 2, length - 1}:
            then = burning(matrix[:, : minute + 1], np.full(len(rows), target))
            assert replayed[:, minute].tolist() == then.fires(response).tolist()


@given(arrays(np.uint8, (4, 400), elements=st.integers(0, 3)), TARGETS)
@settings(max_examples=40)
def test_subjects_do_not_influence_each_other(matrix: Slices, target: float) -> None:
    together = burning(matrix, np.full(4, target))
    assert [together.of(row) for row in range(4)] == [burn_rates(matrix[row], target) for row in range(4)]


@given(histories(), TARGETS)
@settings(max_examples=40)
def test_minutes_beyond_the_longest_window_change_nothing(slices: Slices, target: float) -> None:
    older = minutes((LONGEST_WINDOW, Slice.BAD))
    padded = np.concatenate([np.zeros(max(0, LONGEST_WINDOW - len(slices)), dtype=np.uint8), slices])
    assert burn_rates(np.concatenate([older, padded]), target) == burn_rates(slices, target)


@given(histories(), TARGETS)
@settings(max_examples=40)
def test_a_minute_that_was_bad_rather_than_good_never_stops_an_alert(slices: Slices, target: float) -> None:
    worse = np.where(slices == Slice.GOOD, np.uint8(Slice.BAD), slices)
    for before, after in zip(burn_rates(slices, target), burn_rates(worse, target), strict=True):
        assert after.firing or not before.firing


def test_empty_windows_have_no_burn_rate_rather_than_0() -> None:
    for nothing in (minutes((DAY, Slice.NONE)), minutes((DAY, Slice.UNKNOWN)), np.empty(0, dtype=np.uint8)):
        for rate in burn_rates(nothing, 0.99):
            assert (rate.long_burn_rate, rate.short_burn_rate, rate.bad, rate.firing) == (None, None, 0, False)
    assert burn_rates(minutes((DAY, Slice.GOOD)), 0.99)[0].long_burn_rate == 0.0


def test_a_window_counts_from_the_minute_on_that_half_of_it_is_valid() -> None:
    before, after = (burn_rates(minutes((length, Slice.BAD)), 0.99)[0] for length in (29, 30))
    assert before.long_burn_rate is None and not before.firing
    assert after.long_burn_rate == pytest.approx(100.0) and after.firing
    # Unknown minutes fill a window, but say nothing.
    half = minutes((31, Slice.UNKNOWN), (29, Slice.BAD))
    assert burn_rates(half, 0.99)[0].long_burn_rate is None


# --- what fires, and when ---------------------------------------------------------------------------------------------

WELL = (3 * DAY, Slice.GOOD)


@pytest.mark.parametrize(
    ("target", "page_after"),
    # The third bad minute, or however many of an hour it takes: 14.4 (1 - target) 60.
    [(0.999, 3), (0.995, 5), (0.99, 9), (0.98, 18), (0.95, 44)],
)
def test_total_failure_pages_within_minutes(target: float, page_after: int) -> None:
    fires = firing(minutes(WELL, (HOUR, Slice.BAD)), target, Response.PAGE)
    assert first_minute(fires) == WELL[0] + page_after - 1


@given(st.integers(1, 2), st.integers(0, 3 * DAY), TARGETS)
@settings(max_examples=50)
def test_a_blip_of_two_minutes_never_fires(length: int, before: int, target: float) -> None:
    blip = minutes((before, Slice.GOOD), (length, Slice.BAD), (3 * DAY, Slice.GOOD))
    assert not any(firing(blip, target, response).any() for response in Response)


def test_a_page_stops_within_the_short_window_once_it_has_recovered() -> None:
    fires = firing(minutes(WELL, (20, Slice.BAD), (2 * HOUR, Slice.GOOD)), 0.99, Response.PAGE)
    assert int(np.flatnonzero(fires)[-1]) == WELL[0] + 20 - 1 + 4
    alone = [burn_rates(minutes(WELL, (20, Slice.BAD), (good, Slice.GOOD)), 0.99)[0].firing for good in (4, 5)]
    assert alone == [True, False]


def test_a_slow_leak_is_a_ticket_and_no_page() -> None:
    leak = np.tile(minutes((1, Slice.BAD), (24, Slice.GOOD)), 4 * DAY // 25)  # 4 % bad: four times the budget of 99 %
    assert not firing(leak, 0.99, Response.PAGE).any()
    tickets = firing(leak, 0.99, Response.TICKET)
    assert tickets[-1] and (first_minute(tickets) or 0) >= DAY // 2 - 1


def test_what_was_unknown_is_outside_the_budget() -> None:
    outage = minutes(WELL, (3 * HOUR, Slice.UNKNOWN))
    assert not any(firing(outage, 0.999, response).any() for response in Response)
    # Bad minutes among unknown ones weigh what they weigh among those that are known.
    half = np.tile(minutes((1, Slice.BAD), (1, Slice.UNKNOWN)), HOUR)
    assert burn_rates(half, 0.99)[0].long_burn_rate == pytest.approx(100.0)


def test_each_pair_spends_what_the_table_says_of_the_budget() -> None:
    for pair in PAIRS:
        assert pair.factor * pair.minutes[0] / (30 * DAY) == pytest.approx(pair.budget_spent)


def test_three_days_of_a_thousand_models_take_less_than_a_tenth_of_a_second() -> None:
    chance = np.random.default_rng(7)
    matrix = chance.choice(
        np.array(list(Slice), dtype=np.uint8), p=[0.02, 0.9, 0.05, 0.03], size=(1000, LONGEST_WINDOW)
    )
    targets = np.full(1000, 0.99)
    burning(matrix, targets)
    start = time.process_time()
    found = burning(matrix, targets)
    assert time.process_time() - start < 0.1
    assert found.bad.shape == (1000, len(WINDOWS))


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_a_budget_is_of_the_minutes_that_count() -> None:
    month = Tally(good=43_200 - 216, bad=216)
    assert month.budget_left(0.99) == pytest.approx(0.5)
    assert Tally(good=43_200).budget_left(0.99) == 1.0
    assert Tally(good=0, bad=10).budget_left(0.99) == pytest.approx(-99.0)
    # A week so far: the budget is that of a week.
    assert Tally(good=10_080 - 50, bad=50, unknown=20_000).budget_left(0.99) == pytest.approx(1 - 50 / 100.8)


def test_no_minute_counted_is_no_budget_rather_than_a_whole_one() -> None:
    assert Tally().budget_left(0.99) is None
    assert Tally(unknown=500).budget_left(0.99) is None


@given(histories(), TARGETS)
@settings(max_examples=40)
def test_what_is_left_and_what_is_burnt_say_the_same(slices: Slices, target: float) -> None:
    counted = tally(slices)
    left = counted.budget_left(target)
    if left is not None:
        assert 1 - left == pytest.approx(counted.bad / (counted.good + counted.bad) / (1 - target))
        assert left <= 1.0


@given(histories(), histories())
@settings(max_examples=30)
def test_tallies_add_up_and_coverage_counts_the_same_minutes(one: Slices, other: Slices) -> None:
    both = np.concatenate([one, other])
    assert tally(one) + tally(other) == tally(both)
    assert tally(coverage_slices(both)) == tally(both).coverage
    counted = tally(both)
    assert counted.good + counted.bad + counted.unknown == int((both != Slice.NONE).sum())


# --- service levels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "target"),
    [
        (Tier.TIER0, 0.999),
        (Tier.TIER1, 0.995),
        (Tier.TIER2, 0.99),
        (Tier.TIER3, 0.98),
        (Tier.TIER4, 0.95),
        (Tier.UNSTATED, 0.95),
    ],
)
def test_a_tier_gives_what_is_not_stated(tier: Tier, target: float) -> None:
    assert completed(UNSET, tier) == ServiceLevel(target, 0.9, target, 0.99, 0.0)
    stated = ServiceLevel(0.97, 0.5, 0.9999, 0.9, 250.0)
    assert completed(stated, tier) == stated


def test_the_lowest_target_is_where_the_fastest_page_can_still_fire() -> None:
    always = minutes((2 * HOUR, Slice.BAD))
    assert not burn_rates(always, 0.9305)[0].firing
    assert burn_rates(always, 0.9306)[0].firing
