"""Estimates: the formulas in numbers that were worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.capacity.domain.certificate import Certificate, in_force
from modelfleetd.capacity.domain.certificate import Source as CertificateSource
from modelfleetd.capacity.domain.demand import Demand, MeasuredDemand, Source
from modelfleetd.capacity.domain.estimate import (
    ASSUMED,
    DEFAULT,
    INFERRED,
    REQUEST,
    Estimate,
    PeakUnits,
    RegionEstimate,
    Replaced,
    Replica,
    Wanted,
    estimate,
    in_region,
)
from modelfleetd.capacity.domain.replicas import Headroom, replicas_for_share
from modelfleetd.errors import CertificateExpired, CertificateMissing, InvalidFields

NOW = datetime(2025, 6, 1, tzinfo=UTC)
EU, US = "regions/eu", "regions/us"
REPLICA = Replica(max_qps=10.0, certificate="certificates/c1", flavor="flavors/gpu", unit_cost=2.5, units=2)
MODEL = "modelTypes/ctr/models/v2"


def demand(peaks: Mapping[str, float], failover: Mapping[tuple[str, str], int] | None = None, **fields: int) -> Demand:
    measured = tuple(MeasuredDemand(region, peak) for region, peak in peaks.items())
    return Demand("modelTypes/ctr", measured, failover=failover or {}, **fields)


def estimated(
    carried: Demand,
    headroom: Headroom | None = None,
    *,
    replica: Replica = REPLICA,
    replaced: Replaced | None = None,
    share: int = 0,
    **wanted: Any,
) -> Estimate:
    asked = Wanted(MODEL, headroom or Headroom(), **wanted)
    shares = dict.fromkeys(carried.regions, share)
    return estimate("estimates/e1", asked, carried, replica, replaced, shares, NOW)


def in_eu(carried: Demand, headroom: Headroom, replica: Replica = REPLICA) -> RegionEstimate:
    return in_region(carried.regions[0], Wanted(MODEL, headroom), carried, replica, None, 0)


def test_one_region_needs_its_demand_over_the_normal_utilization_and_machine_loss() -> None:
    # 686 / (10 × 0.7) = 98; 98 / 0.98 = 100 exactly, which floating point would lift to 101.
    found = estimated(demand({EU: 686.0})).regions[0]
    assert (found.demand_qps, found.failover_demand_qps, found.replicas) == (686.0, 686.0, 100)
    assert found.units == 200
    assert found.cost_per_hour == 500.0


def test_growth_and_fanout_multiply_the_peak() -> None:
    carried = demand({EU: 100.0}, growth_basis_points=2_000, fanout_basis_points=25_000)
    assert estimated(carried).regions[0].demand_qps == 300.0


def test_failover_counts_the_worst_single_region_and_not_all_of_them() -> None:
    shifts = {(EU, US): 6_000, ("regions/ap", US): 10_000, (US, US): 10_000}
    carried = demand({EU: 1_000.0, US: 500.0, "regions/ap": 200.0}, failover=shifts)
    found = {region.region: region for region in estimated(carried).regions}
    assert found[US].failover_demand_qps == 500 + 600
    assert found[EU].failover_demand_qps == 1_000
    # max(500/7, 1100/9) = 122.22; / 0.98 = 124.7
    assert found[US].replicas == 125


def test_headroom_is_the_maximum_of_both_terms_and_not_their_product() -> None:
    margins = Headroom(machine_loss=0.0)
    assert in_eu(demand({EU: 700.0}), margins).replicas == 100
    with_failover = demand({EU: 700.0, US: 180.0}, {(US, EU): 10_000})
    assert in_eu(with_failover, margins).replicas == 100


def test_the_explanation_holds_every_formula_with_its_numbers() -> None:
    carried = demand({EU: 500.0, US: 100.0}, {(US, EU): 5_000}, growth_basis_points=3_720)
    assert estimated(carried).regions[0].explanation.splitlines() == [
        "D = peak × (1 + growth) × fanout = 500 × (1 + 0.372) × 1 = 686 requests/s",
        "F = D + what comes over from regions/us = 686 + 137.2 × 0.5 = 754.6 requests/s",
        "N = ceil(max(D/(μ·u), F/(μ·v)) / (1−b)) = ceil(max(686/(10×0.7), 754.6/(10×0.9)) / 0.98) = "
        "ceil(max(98.00, 83.84) / 0.98) = 100 replicas",
        "cost = 100 × 2 units × 2.5 = 500 an hour",
    ]


def test_every_input_has_a_value_a_unit_and_a_source() -> None:
    measured = MeasuredDemand(EU, 686.0, Source.PROMETHEUS, time=NOW)
    carried = Demand("modelTypes/ctr", (measured, MeasuredDemand(US, 10.0)), failover={(US, EU): 5_000})
    replaced = Replaced("old", "flavors/gpu", 2.5, 2, None, {EU: 9}, {EU: 4_000, US: 10_000}, frozenset({US}))
    made = estimated(carried, Headroom(machine_loss=0.05), replaced=replaced, share_basis_points=500)
    found = {(one.id, one.region): one for one in made.inputs}
    assert (found["max_qps", ""].value, found["max_qps", ""].source) == (10.0, "certificates/c1")
    assert (found["peak_qps", EU].value, found["peak_qps", EU].unit) == (686.0, "requests/s")
    assert (found["peak_qps", EU].source, found["peak_qps", EU].time) == ("Prometheus", NOW)
    assert (found["peak_qps", US].source, found["peak_qps", US].time) == ("modelTypes/ctr", None)
    assert (found["share", ""].value, found["share", ""].source) == (0.05, REQUEST)
    assert (found["max_step", ""].value, found["max_step", ""].source) == (0.2, DEFAULT)
    assert (found["replaced_booked_units", EU].value, found["replaced_booked_units", EU].source) == (9.0, "pools")
    assert (found["replaced_share", EU].value, found["replaced_share", EU].source) == (0.4, "modelTypes/ctr")
    assert (found["replaced_share", US].value, found["replaced_share", US].source) == (1.0, ASSUMED)
    assert (found["machine_loss", ""].value, found["machine_loss", ""].source) == (0.05, REQUEST)
    assert found["normal_utilization", ""].source == DEFAULT
    assert (found["unit_cost", ""].value, found["unit_cost", ""].source) == (2.5, "flavors/gpu")
    assert found[f"failover_share_to:{EU}", US].value == 0.5
    assert all(one.unit and one.source for one in found.values())


def test_no_demand_still_takes_the_fewest_replicas() -> None:
    found = estimated(demand({EU: 0.0})).regions[0]
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
    carried = demand(dict(zip(regions, peaks, strict=True)), failover)
    found = in_eu(carried, Headroom(), Replica(max_qps, "c", "f", 1.0, 1))
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
        source=CertificateSource.STATED,
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
    assert in_force(known, MODEL, "flavors/gpu", NOW, allow_expired=True).name == "c"


def test_an_expired_certificate_is_refused_by_name_unless_it_is_allowed() -> None:
    known = [certificate("certificates/b", 1, 5)]
    with pytest.raises(CertificateExpired) as refused:
        in_force(known, MODEL, "flavors/gpu", NOW)
    assert refused.value.metadata["certificate"] == "certificates/b"
    assert refused.value.metadata["expire_time"] == "2025-05-02 00:00 UTC"
    assert in_force(known, MODEL, "flavors/gpu", NOW, allow_expired=True).name == "certificates/b"
    with pytest.raises(CertificateMissing):
        in_force(known, MODEL, "flavors/x", NOW, allow_expired=True)


# 500 replicas of the old model and 420 of the new one for the whole route, as LAUNCH.md works it out.
OLD = "modelTypes/ctr/models/v1"
FREE = Headroom(normal_utilization=1.0, failover_utilization=1.0, machine_loss=0.0)
NEWER = Replica(max_qps=500.0, certificate="certificates/c2", flavor="flavors/cpu", unit_cost=2.5, units=1)
CARRIED = demand({EU: 210_000.0})


def old(**fields: Any) -> Replaced:
    older = Replica(max_qps=420.0, certificate="certificates/c1", flavor="flavors/cpu", unit_cost=2.5, units=1)
    return Replaced(OLD, **{"flavor": "flavors/cpu", "unit_cost": 2.5, "units": 1, "replica": older,
                            "shares": {EU: 10_000}, **fields})  # fmt: skip


def test_a_takeover_shows_what_is_replaced_the_peak_of_the_swap_and_the_difference_in_cost() -> None:
    found = estimated(CARRIED, FREE, replica=NEWER, replaced=old())
    (region,) = found.regions
    assert (region.replicas, region.share_replicas, region.replaced_replicas) == (420, 420, 500)
    assert region.swap_peaks == (PeakUnits("flavors/cpu", 584),)
    assert region.unit_changes == (PeakUnits("flavors/cpu", -80),)
    assert (found.replaced_cost_per_hour, found.cost_change_per_hour, found.cost_ratio) == (1_250.0, -200.0, 0.84)
    assert (found.replaces, found.replaced_certificate, found.warnings) == (OLD, "certificates/c1", ())
    assert region.swap_explanation.splitlines() == [
        "peak = max over steps of R_new(share after the step) + R_old(share before it)",
        "  to 20%: 84 × 1 + 500 × 1 = 584",
        "  to 40%: 168 × 1 + 400 × 1 = 568",
        "  to 60%: 252 × 1 + 300 × 1 = 552",
        "  to 80%: 336 × 1 + 200 × 1 = 536",
        "  to 100%: 420 × 1 + 100 × 1 = 520",
        "peak = 584 units of flavors/cpu",
        "cost before = 500 × 1 × 2.5 = 1250 an hour",
        "cost after = 420 × 1 × 2.5 = 1050 an hour",
    ]


def test_an_experiment_takes_its_share_from_the_baseline_and_leaves_it_the_rest() -> None:
    found = estimated(CARRIED, FREE, replica=NEWER, replaced=old(), share_basis_points=500)
    (region,) = found.regions
    # 21 new beside 500, then 475: and not yet the whole route.
    assert (region.replicas, region.share_replicas, region.swap_peaks[0].units) == (420, 21, 521)
    assert region.unit_changes[0].units == 21 + 475 - 500
    assert found.costs.ratio_for_same_traffic == Fraction(84, 100)


def test_an_experiment_that_shrinks_gives_back_and_the_baseline_grows_first() -> None:
    found = estimated(CARRIED, FREE, replica=NEWER, replaced=old(shares={EU: 5_000}), share=5_000, share_basis_points=1)
    (region,) = found.regions
    # 210 + 250 now; the baseline grows by 2,000 basis points at a time: 350 + 210, 450 + 126, 500 + 42.
    assert (region.replaced_replicas, region.share_replicas, region.swap_peaks[0].units) == (250, 2, 576)
    assert region.unit_changes[0].units == 2 + 500 - 210 - 250


def test_what_is_freed_of_one_flavor_does_not_pay_for_another() -> None:
    newer = Replica(max_qps=21_000.0, certificate="c", flavor="flavors/gpu", unit_cost=40.0, units=4)
    (region,) = estimated(CARRIED, FREE, replica=newer, replaced=old()).regions
    assert region.swap_peaks == (PeakUnits("flavors/cpu", 500), PeakUnits("flavors/gpu", 40))
    assert region.unit_changes == (PeakUnits("flavors/cpu", -500), PeakUnits("flavors/gpu", 40))


def test_without_a_certificate_the_replicas_are_inferred_from_bookings_and_that_is_said() -> None:
    found = estimated(CARRIED, FREE, replica=NEWER, replaced=old(replica=None, booked_units={EU: 45}, shares={EU: 900}))
    assert found.regions[0].replaced_replicas == 45
    assert found.replaced_certificate == INFERRED
    assert found.costs.replaced_whole == 500 * Fraction(5, 2)
    assert found.warnings == (
        f"{OLD} has no certificate: its replicas are inferred from what pools have booked for it.",
    )


def test_where_nothing_is_known_of_what_is_replaced_it_counts_for_nothing_and_that_is_said() -> None:
    found = estimated(CARRIED, FREE, replica=NEWER, replaced=old(replica=None))
    assert (found.cost_ratio, found.replaced_certificate, found.regions[0].replaced_flavor) == (0.0, "", "")
    assert found.cost_change_per_hour == 1_050.0
    assert "neither a certificate nor bookings" in found.warnings[0]


def test_a_certificate_that_was_used_after_its_expiry_is_a_warning_on_either_side() -> None:
    late = replace(NEWER, expire_time=NOW - timedelta(days=3))
    found = estimated(CARRIED, replica=late, replaced=old(replica=replace(late, certificate="c1")))
    assert found.certificate_expired
    assert found.warnings == (
        "certificates/c2 expired at 2025-05-29 00:00 UTC and was used all the same: measure again.",
        f"c1 of {OLD}, which is replaced, expired at 2025-05-29 00:00 UTC.",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("share_basis_points", 0), ("share_basis_points", 10_001), ("max_step_basis_points", 99)],
)
def test_a_share_out_of_its_range_is_refused_with_its_path(field: str, value: int) -> None:
    with pytest.raises(InvalidFields) as refused:
        Wanted(MODEL, **{field: value})  # type: ignore[arg-type]
    assert refused.value.violations[0].path == f"estimate.{field}"


@given(
    new=st.integers(1, 3_000),
    old_replicas=st.integers(1, 3_000),
    now=st.integers(0, 10_000),
    target=st.integers(1, 10_000),
    step=st.sampled_from([10_000, 2_000, 700, 100]),
)
def test_the_peak_covers_both_ends_and_costs_are_those_of_the_ends(
    new: int, old_replicas: int, now: int, target: int, step: int
) -> None:
    replica = Replica(float(10_000 / new), "c", "flavors/cpu", 2.5, 3)
    replaced = old(replica=None, booked_units={EU: old_replicas}, shares={EU: 10_000 - now})
    made = estimated(
        demand({EU: 10_000.0}), FREE, replica=replica, replaced=replaced, share=now,
        share_basis_points=target, max_step_basis_points=step,
    )  # fmt: skip
    (region,) = made.regions
    takeover = region.takeover
    for end in (takeover.before, takeover.after):
        assert all(peak.units >= end[peak.flavor] for peak in region.swap_peaks)
    changed = sum(change.units for change in region.unit_changes)
    assert changed == sum(takeover.after.values()) - sum(takeover.before.values())
    assert made.costs.after - made.costs.before == changed * Fraction(5, 2)
