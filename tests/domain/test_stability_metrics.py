"""Calibration, normalized entropy and their intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfleetd.stability.domain.estimates import (
    State,
    base_rate,
    calibration,
    entropy_ratio,
    expected_count,
    is_overpredicting,
    normalized_entropy,
)
from modelfleetd.stability.domain.intervals import garwood
from modelfleetd.stability.domain.sums import Sums
from tests.domain.stability_rows import Row, total, total_of

DATA = Path(__file__).parent / "data"
NE = json.loads((DATA / "normalized_entropy.json").read_text())
CALIBRATION = json.loads((DATA / "calibration.json").read_text())


def sums_of(case: dict[str, Any]) -> Sums:
    weights = case.get("w") or [1.0] * len(case["p"])
    return total([Row(p, y, w) for p, y, w in zip(case["p"], case["y"], weights, strict=True)])


@pytest.mark.parametrize("case", NE["cases"], ids=lambda case: case["name"])
def test_normalized_entropy_is_that_of_the_published_examples(case: dict[str, Any]) -> None:
    estimate = normalized_entropy(sums_of(case), 0.99)
    assert estimate.state is State.VALUE
    assert estimate.value == pytest.approx(case["ne"], rel=NE["tolerance_relative"])
    assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("case", NE["undefined"], ids=lambda case: case["expect"] + str(case["p"]))
def test_normalized_entropy_has_a_state_where_it_has_no_number(case: dict[str, Any]) -> None:
    assert normalized_entropy(sums_of(case), 0.99).state is State[case["expect"]]


@pytest.mark.parametrize("case", CALIBRATION["cases"], ids=lambda case: case["name"])
def test_calibration_is_predicted_over_observed(case: dict[str, Any]) -> None:
    estimate = calibration(sums_of(case), 0.99)
    assert estimate.value == pytest.approx(case["calibration"], rel=CALIBRATION["tolerance_relative"])
    assert estimate.low <= estimate.value <= estimate.high


def test_weights_of_one_and_no_weights_give_the_same_bits() -> None:
    rows = [Row(0.1 + 0.001 * i, i % 7 == 0) for i in range(300)]
    assert total(rows) == total(rows, weighted=False)


def test_garwood_is_the_published_interval() -> None:
    # Garwood 1936: 10 events at 95 %: 4.795 to 18.39.
    assert garwood(10, 0.95) == pytest.approx((4.7954, 18.3904), rel=1e-4)
    low, high = garwood(0, 0.95)
    assert low == 0.0
    assert high == pytest.approx(-math.log(0.05))


def test_ten_percent_needs_about_384_rare_positives() -> None:
    rows = [Row(0.01, 1)] * 384 + [Row(0.01, 0)] * (38_400 - 384)
    estimate = calibration(total(rows), 0.95)
    assert estimate.value == pytest.approx(1.0)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(0.10, abs=0.003)


def test_calibration_of_common_events_uses_the_variance_of_the_predictions() -> None:
    rows = [Row(0.5, i % 2) for i in range(5000)]
    estimate = calibration(total(rows), 0.9973002)
    # sd = sqrt(5000 · 0.25) / 2500; a Poisson interval would be 1.4 times as wide.
    assert estimate.high - 1.0 == pytest.approx(3 * math.sqrt(1250) / 2500, rel=1e-6)


def test_calibration_without_positives_is_undefined_but_bounded_from_below() -> None:
    estimate = calibration(total([Row(0.1, 0)] * 100), 0.99)
    assert estimate.state is State.UNDEFINED
    assert estimate.low == pytest.approx(10 / -math.log(0.01))
    assert estimate.high == math.inf


def test_no_positive_is_evidence_only_where_enough_were_predicted() -> None:
    alpha = 1.7e-4
    assert not is_overpredicting(total([Row(0.1, 0)] * 86), alpha)
    assert is_overpredicting(total([Row(0.1, 0)] * 87), alpha)
    assert not is_overpredicting(total([Row(0.1, 0)] * 1000 + [Row(0.1, 1)]), alpha)


def test_no_scale_of_weights_changes_what_is_found() -> None:
    light = total([Row(0.1, i % 9 == 0, 1.0) for i in range(90)])
    heavy = total([Row(0.1, i % 9 == 0, 1000.0) for i in range(90)])
    assert expected_count(heavy) == pytest.approx(expected_count(light))
    for metric in (calibration, normalized_entropy, base_rate):
        one, other = metric(light, 0.99), metric(heavy, 0.99)
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_examples_of_weight_zero_are_undefined_and_break_nothing() -> None:
    sums = total([Row(0.1, 1, 0.0), Row(0.2, 0, 0.0)])
    assert {m(sums, 0.99).state for m in (calibration, normalized_entropy, base_rate)} == {State.UNDEFINED}


def test_base_rate_stays_a_share() -> None:
    assert base_rate(total([Row(0.1, 0)] * 10), 0.99).high <= 1.0
    none = base_rate(total([Row(0.001, 0)] * 1000), 0.99)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(-math.log(0.01) / 1000)
    assert base_rate(total([Row(0.5, 1)] * 10), 0.99).value == 1.0


def test_a_constant_prediction_at_the_base_rate_has_an_entropy_of_one_without_any_spread() -> None:
    estimate = normalized_entropy(total([Row(0.5, i % 2) for i in range(1000)]), 0.99)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)


@pytest.mark.parametrize("base", [0.02, 0.5])
def test_intervals_hold_the_truth_as_often_as_they_say(base: float) -> None:
    rng = np.random.default_rng(7)
    size, rounds = 2000, 300
    logit = math.log(base / (1 - base))

    def draw() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        p = 1 / (1 + np.exp(-(logit + rng.normal(0, 0.8, size))))
        return p, (rng.random(size) < p).astype(int)

    # The population's own NE, from one very large sample.
    p = 1 / (1 + np.exp(-(logit + rng.normal(0, 0.8, 2_000_000))))
    rate = p.mean()
    truth = -(p * np.log(p) + (1 - p) * np.log1p(-p)).mean() / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    inside = {"ne": 0, "calibration": 0}
    for _ in range(rounds):
        p, y = draw()
        sums = total_of(p, y)
        ne, ratio = normalized_entropy(sums, 0.95), calibration(sums, 0.95)
        inside["ne"] += ne.low <= truth <= ne.high
        inside["calibration"] += ratio.low <= 1.0 <= ratio.high
    assert inside["ne"] / rounds > 0.91
    assert inside["calibration"] / rounds > 0.92


def test_the_ratio_of_entropies_is_one_for_a_model_beside_itself() -> None:
    sums = total([Row(0.2, i % 5 == 0) for i in range(500)] + [Row(0.6, i % 2) for i in range(100)])
    ratio = entropy_ratio(sums, sums, 0.99)
    assert ratio.value == 1.0
    assert ratio.low < 1.0 < ratio.high
    assert entropy_ratio(sums, Sums(), 0.99).state is State.NO_DATA
    assert entropy_ratio(sums, total([Row(0.1, 0)]), 0.99).state is State.UNDEFINED
