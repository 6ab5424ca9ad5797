"""Estimates: the formulas in numbers that were worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.capacity.domain.certificate import Certificate, Source, in_force
from modelfleetd.capacity.domain.estimate import (
    DEFAULT,
    REQUEST,
    Demand,
    Estimate,
    Headroom,
    Replica,
    estimate,
    filled,
    in_region,
    replicas_for_share,
)
from modelfleetd.errors import CertificateMissing, InvalidFields

NOW = datetime(2025, 6, 1, tzinfo=UTC)
EU, US = "regions/eu", "regions/us"
REPLICA = Replica(max_qps=10.0, certificate="certificates/c1", flavor="flavors/gpu", unit_cost=2.5, units=2)
MODEL = "modelTypes/ctr/models/v2"


def estimated(demand: Demand, headroom: Headroom | None = None) -> Estimate:
    return estimate("estimates/e1", MODEL, tuple(demand.peaks), demand, REPLICA, headroom or Headroom(), NOW)


def test_one_region_needs_its_demand_over_the_normal_utilization_and_machine_loss() -> None:
    # 686 / (10 × 0.7) = 98; 98 / 0.98 = 100 exactly, which floating point would lift to 101.
    found = estimated(Demand({EU: 686.0})).regions[0]
    assert (found.demand_qps, found.failover_demand_qps, found.replicas) == (686.0, 686.0, 100)
    assert found.units == 200
    assert found.cost_per_hour == 500.0


def test_growth_and_fanout_multiply_the_peak() -> None:
    demand = Demand({EU: 100.0}, growth_basis_points=2_000, fanout_basis_points=25_000)
    assert estimated(demand).regions[0].demand_qps == 300.0


def test_failover_counts_the_worst_single_region_and_not_all_of_them() -> None:
    shifts = {(EU, US): 6_000, ("regions/ap", US): 10_000, (US, US): 10_000}
    demand = Demand({EU: 1_000.0, US: 500.0, "regions/ap": 200.0}, failover=shifts)
    found = {region.region: region for region in estimated(demand).regions}
    assert found[US].failover_demand_qps == 500 + 600
    assert found[EU].failover_demand_qps == 1_000
    # max(500/7, 1100/9) = 122.22; / 0.98 = 124.7
    assert found[US].replicas == 125


def test_headroom_is_the_maximum_of_both_terms_and_not_their_product() -> None:
    margins = filled(Headroom(machine_loss=0.0))
    alone = in_region(EU, Demand({EU: 700.0}), REPLICA, margins).replicas
    assert alone == 100
    with_failover = Demand({EU: 700.0, US: 180.0}, failover={(US, EU): 10_000})
    assert in_region(EU, with_failover, REPLICA, margins).replicas == 100


def test_the_explanation_holds_the_formula_with_its_numbers() -> None:
    found = estimated(Demand({EU: 686.0})).regions[0]
    assert found.explanation == (
        "N = ceil(max(D/(μ·u), F/(μ·v)) / (1−b)) = ceil(max(686/(10×0.7), 686/(10×0.9)) / 0.98) = "
        "ceil(max(98.00, 76.22) / 0.98) = 100 replicas; 100 × 2 units × 2.5 an hour"
    )


def test_every_input_has_a_value_a_unit_and_a_source() -> None:
    demand = Demand({EU: 686.0, US: 10.0}, failover={(US, EU): 5_000}, source="modelTypes/ctr")
    found = {(one.id, one.region): one for one in estimated(demand, Headroom(machine_loss=0.05)).inputs}
    assert (found["max_qps", ""].value, found["max_qps", ""].source) == (10.0, "certificates/c1")
    assert (found["peak_qps", EU].value, found["peak_qps", EU].unit) == (686.0, "requests/s")
    assert found["peak_qps", EU].source == "modelTypes/ctr"
    assert (found["machine_loss", ""].value, found["machine_loss", ""].source) == (0.05, REQUEST)
    assert found["normal_utilization", ""].source == DEFAULT
    assert (found["unit_cost", ""].value, found["unit_cost", ""].source) == (2.5, "flavors/gpu")
    assert found[f"failover_share_to:{EU}", US].value == 0.5
    assert all(one.unit and one.source for one in found.values())


def test_no_demand_still_takes_the_fewest_replicas() -> None:
    found = estimated(Demand({EU: 0.0})).regions[0]
    assert (found.replicas, found.units) == (0, 4)
    assert "at least 2, so 2" in found.explanation


def test_replicas_of_a_share_are_counted_in_integers() -> None:
    # In floating point 0.2 + 0.2 + 0.2 is above 0.6, and ceil(420 × that) is 253.
    assert replicas_for_share(420, 6_000, 2) == 252
    assert replicas_for_share(420, 0, 2) == 0
    assert replicas_for_share(420, 1, 2) == 2
    assert replicas_for_share(420, 10_000, 2) == 420
    assert replicas_for_share(0, 10_000, 2) == 2


@given(st.integers(0, 10**6), st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 100))
def test_replicas_never_shrink_as_the_share_grows_and_both_sides_together_cover_the_route(
    replicas: int, share: int, other: int, fewest: int
) -> None:
    low, high = sorted((share, other))
    assert replicas_for_share(replicas, low, fewest) <= replicas_for_share(replicas, high, fewest)
    both = replicas_for_share(replicas, share, 1) + replicas_for_share(replicas, 10_000 - share, 1)
    assert both >= replicas


@given(
    peaks=st.lists(st.floats(0, 1e6), min_size=1, max_size=4),
    shifts=st.lists(st.integers(0, 10_000), min_size=4, max_size=4),
    max_qps=st.floats(0.01, 1e5),
)
def test_the_demand_is_carried_normally_and_with_any_one_region_down_after_random_losses(
    peaks: list[float], shifts: list[int], max_qps: float
) -> None:
    regions = [f"regions/r{index}" for index in range(len(peaks))]
    failover = {(one, regions[0]): shift for one, shift in zip(regions, shifts, strict=False)}
    demand = Demand(dict(zip(regions, peaks, strict=True)), failover=failover)
    replica = Replica(max_qps, "c", "f", 1.0, 1)
    found = in_region(regions[0], demand, replica, filled(Headroom()))
    left = found.replicas * 0.98 * max_qps
    assert left * 0.70 >= found.demand_qps * (1 - 1e-9)
    for one, shift, peak in list(zip(regions, shifts, peaks, strict=False))[1:]:
        assert left * 0.90 >= (peaks[0] + peak * shift / 10_000) * (1 - 1e-9), one


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("normal_utilization", 0.0),
        ("normal_utilization", 1.01),
        ("failover_utilization", float("nan")),
        ("machine_loss", 1.0),
        ("machine_loss", -0.1),
        ("min_replicas", 0),
    ],
)
def test_a_margin_out_of_its_range_is_refused_with_its_path(field: str, value: float) -> None:
    with pytest.raises(InvalidFields) as refused:
        Headroom(**{field: value})  # type: ignore[arg-type]
    assert refused.value.violations[0].path == f"estimate.headroom.{field}"


def certificate(name: str, day: int, expires: int, flavor: str = "flavors/gpu") -> Certificate:
    return Certificate(
        name=name,
        model=MODEL,
        flavor=flavor,
        max_qps=10.0,
        confidence=0.95,
        source=Source.STATED,
        note="",
        actor="alice",
        create_time=datetime(2025, 5, day, tzinfo=UTC),
        expire_time=datetime(2025, expires, 2, tzinfo=UTC),
    )


def test_the_newest_certificate_that_has_not_expired_counts() -> None:
    known = [
        certificate("a", 1, 12),
        certificate("b", 1, 5),
        certificate("c", 2, 12),
        certificate("d", 9, 12, "flavors/x"),
    ]
    assert in_force(known, MODEL, "flavors/gpu", NOW).name == "c"
    with pytest.raises(CertificateMissing):
        in_force(known[1:2], MODEL, "flavors/gpu", NOW)
