"""Demand: peaks from rates, how doubtful they are, and what comes over when a region fails."""

from __future__ import annotations

import io
import itertools
import math
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.demand import peaks_of
from modelfleet.demand import quantile_of as quantile_of_client
from modelfleetd.capacity.domain.demand import (
    MAX_POINTS,
    STEP,
    Demand,
    MeasuredDemand,
    Query,
    Rates,
    Stated,
    measured,
    minutes,
    pieces,
    quantile_of,
    stated,
)

NOW = datetime(2025, 6, 1, 12, 34, 56, tzinfo=UTC)
EU, US, AP = "regions/eu", "regions/us", "regions/ap"
QUERY = Query('sum(rate(rpc_total{type="{model_type}",dc="{region}"}[1m]))', timedelta(days=28), 0.999)


def test_ids_take_the_place_of_the_words_in_braces_and_other_braces_stay() -> None:
    assert QUERY.text("modelTypes/ctr", EU) == 'sum(rate(rpc_total{type="ctr",dc="eu"}[1m]))'


def test_the_window_ends_with_the_newest_full_minute_and_has_as_many_minutes_as_it_says() -> None:
    start, end = minutes(QUERY, NOW)
    assert end == datetime(2025, 6, 1, 12, 34, tzinfo=UTC)
    assert (end - start) / STEP + 1 == QUERY.points() == 28 * 1440


@given(st.integers(1, 60_000))
def test_a_window_is_asked_for_in_pieces_that_prometheus_answers_and_each_minute_once(count: int) -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    spans = list(pieces(start, start + STEP * (count - 1)))
    sizes = [(last - first) // STEP + 1 for first, last in spans]
    assert sum(sizes) == count
    assert max(sizes) <= MAX_POINTS
    assert all(after[0] - before[1] == STEP for before, after in itertools.pairwise(spans))


def test_a_quantile_is_one_of_the_rates_and_exact_at_the_boundary() -> None:
    rates = [float(rate) for rate in range(1, 1001)]
    assert quantile_of(rates, 0.999) == 999.0  # in floating point 0.999 × 1000 may fall on either side of 999
    assert quantile_of(rates, 1.0) == 1000.0
    assert quantile_of(rates[:10], 0.999) == 10.0
    assert quantile_of([7.0], 1e-9) == 7.0


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50), st.floats(0.001, 1))
def test_at_least_the_quantile_of_the_rates_is_no_higher_and_the_command_line_finds_the_same(
    rates: list[float], quantile: float
) -> None:
    found = quantile_of(rates, quantile)
    assert found in rates
    assert sum(rate <= found for rate in rates) >= math.floor(quantile * len(rates))
    assert quantile_of_client(rates, quantile) == found


def of(rates: Rates, query: Query = QUERY) -> MeasuredDemand:
    start, end = minutes(query, NOW)
    return measured(EU, query, "up", rates, start, end)


def test_a_full_window_of_fresh_rates_raises_no_doubt() -> None:
    found = of(Rates([1.0] * QUERY.points(), minutes(QUERY, NOW)[1]))
    assert (found.peak_qps, found.coverage, found.points, found.warning) == (1.0, 1.0, QUERY.points(), "")


def test_few_old_or_dropped_samples_are_said() -> None:
    newest = NOW - timedelta(days=2)
    found = of(Rates([5.0] * 500, newest, dropped=3))
    assert found.warning == (
        "only 500 of 40,320 minutes are known (1%); the 0.999 quantile of 500 points is their maximum; "
        "3 samples were no rates (NaN, infinite or negative) and do not count; "
        "the newest point is of 2025-05-30 12:34 UTC"
    )


def test_an_old_stated_peak_is_said_and_one_without_a_time_is_not() -> None:
    assert stated(Stated(EU, 5.0, "a guess", NOW - timedelta(days=120)), NOW).warning == "stated 120 days ago"
    found = stated(Stated(EU, 5.0, "a guess"), NOW)
    assert (found.detail, found.time, found.warning) == ("a guess", None, "")


ROUTE = Demand(
    "modelTypes/ctr",
    (MeasuredDemand(EU, 1_000.0), MeasuredDemand(US, 500.0)),
    growth_basis_points=1_000,
    fanout_basis_points=20_000,
    failover={(EU, US): 6_000, (US, EU): 2_000, (EU, AP): 4_000, (AP, US): 10_000},
)


def test_the_worst_failure_is_named_with_what_it_sends() -> None:
    assert ROUTE.worst_failed(US) == EU
    assert ROUTE.coming_from(EU, US) == 1_000 * 2 * 11 * 6 / 100
    assert ROUTE.on_failover(US) == 1_100 + 1_320
    assert Demand("modelTypes/ctr", (MeasuredDemand(EU, 5.0),)).worst_failed(EU) == ""


def test_traffic_that_would_go_where_the_type_is_not_served_is_said() -> None:
    assert list(ROUTE.warnings()) == [
        "When regions/eu fails, 40 % of its demand goes to regions/ap, where the model type is not served."
    ]


@pytest.mark.parametrize("region", [EU, US])
def test_failover_demand_is_that_of_the_worst_single_failure(region: str) -> None:
    others = [ROUTE.coming_from(other, region) for other in (EU, US, AP)]
    assert ROUTE.on_failover(region) == ROUTE.in_region(region) + max(others)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: no column time, region, qps"),
        ("time,qps\n", "line 1: no column region"),
        ("time,region,qps\nyesterday,eu,1\n", "line 2: 'yesterday' is no time"),
        ("time,region,qps\n2026-01-01T00:00Z,eu,NaN\n", "line 2: 'NaN' is no rate"),
        ("time,region,qps\n2026-01-01T00:00Z,eu,-1\n", "line 2: '-1' is no rate"),
        ("time,region,qps\n2026-01-01,eu,1\n2026-01-01T00:00Z,eu,2\n", "regions/eu has 2026-01-01 00:00:00 UTC twice"),
        ("time,region,qps\n2026-01-01T00:00Z,eu\n", "line 2: 2 values"),
        ("time,region,qps\n2026-01-01T00:00Z,,1\n", "line 2: no region"),
        ("time,region,qps\n", "no rows"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_of_rates_is_told_the_line(content: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        peaks_of(io.StringIO(content), timedelta(days=28), 0.999)


def test_a_file_may_have_its_columns_in_any_order_and_only_its_window_counts() -> None:
    rows = "QPS, region ,host,time\n5,eu,a,2026-01-29T00:00:00+01:00\n\n9,regions/eu,a,2026-01-01\n"
    rows += "1,us,b,2026-01-28T23:30\n"
    eu, us = peaks_of(io.StringIO(rows), timedelta(days=27, hours=23), 1.0)
    assert (eu.region, eu.qps, eu.rows) == (EU, 5.0, 1)
    assert (us.region, us.last) == (US, datetime(2026, 1, 28, 23, 30, tzinfo=UTC))
