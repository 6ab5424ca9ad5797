"""Simulated models under watch: each fault is found by what should see it, and healthy days raise no alarm.

A small, seeded part of `tests/bench/detection.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from modelfleetd.stability.domain.delays import histogram, learn
from modelfleetd.stability.domain.fleet import Metric
from modelfleetd.stability.domain.slices import Slice
from tests.support.simulated_streams import DAY, START, Fault, cut, live, make_model
from tests.support.simulated_watch import Key, Watch, begins, fires, model_slices, unstable, watch

HISTORY_DAYS, DAYS = 14, 3
SINCE = (HISTORY_DAYS + 2) * DAY + 600
FIRST, END = HISTORY_DAYS * DAY, (HISTORY_DAYS + DAYS) * DAY

BUSY = (1, 60.0)  # seed, positives a minute


@cache
def watched(seed: int, positives_per_minute: float) -> Watch:
    model = make_model(seed, tasks=2, positives_per_minute=positives_per_minute)
    return watch(live(model, HISTORY_DAYS + DAYS), HISTORY_DAYS)


def minutes_to_page(one: Watch, fault: Fault, within: int) -> tuple[int, set[Key]]:
    """Returns when a fault pages, and which metrics were unstable by then."""
    wrong = one.verdicts(one.with_fault(fault, SINCE, SINCE + within), SINCE, SINCE + within)
    # Before the fault there were good minutes only, which the long windows need.
    before = np.full(6 * 60, Slice.GOOD, dtype=np.uint8)
    whole = np.concatenate((before, model_slices(known.state for known in wrong.values())))
    firing = fires(whole, one.model.target)[len(before) :]
    assert firing.any(), f"{fault.value} is not found within {within} minutes"
    page = int(np.argmax(firing)) + 1
    return page, {key for key, known in wrong.items() if unstable(known)[:page].any()}


@pytest.mark.parametrize(("seed", "positives_per_minute"), [BUSY, (2, 10.0), (3, 1.0)])
def test_healthy_days_raise_no_alarm(seed: int, positives_per_minute: float) -> None:
    one = watched(seed, positives_per_minute)
    slices = model_slices(known.state for known in one.verdicts(one.series, FIRST, END).values())
    assert not fires(slices, one.model.target).any()
    assert np.mean(slices == Slice.GOOD) > 0.95, "and not by being undecided"


@pytest.mark.parametrize(("fault", "within"), [(Fault.SCALE_2, 45), (Fault.SCALE_1_3, 120)])
def test_a_changed_scale_is_found_by_calibration(fault: Fault, within: int) -> None:
    page, culprits = minutes_to_page(watched(*BUSY), fault, within)
    assert Key(0, Metric.CALIBRATION) in culprits
    assert Key(1, Metric.CALIBRATION) not in culprits, "the other prediction has nothing wrong"
    assert page < within


def test_a_lost_feature_is_found_by_entropy_and_not_by_calibration() -> None:
    _, culprits = minutes_to_page(watched(*BUSY), Fault.FEATURE_LOST, 12 * 60)
    assert culprits == {Key(0, Metric.NE)}


def test_lost_labels_are_found_by_calibration_within_the_hour() -> None:
    page, culprits = minutes_to_page(watched(*BUSY), Fault.LABELS_DOWN, 60)
    assert {key.metric for key in culprits} == {Metric.CALIBRATION}
    assert page < 60


def test_halved_traffic_is_found_by_volume_alone() -> None:
    _, culprits = minutes_to_page(watched(*BUSY), Fault.TRAFFIC_HALVED, 60)
    assert culprits == {Key(0, Metric.VOLUME)}


def test_without_correction_for_late_labels_healthy_days_would_page() -> None:
    one = watched(*BUSY)
    at_once = tuple(learn(task.window, histogram(1e12, [1.0])) for task in one.model.tasks)
    bug = replace(one, delays=at_once)
    slices = model_slices(known.state for known in bug.verdicts(one.series, FIRST, END).values())
    assert len(begins(fires(slices, one.model.target))) > 0


def test_faults_happen_to_no_minute_before_them() -> None:
    one = watched(*BUSY)
    wrong = one.with_fault(Fault.SCALE_2, SINCE, SINCE + 60)
    healthy = cut(wrong[0], START + SINCE - 360, START + SINCE)
    faulty = cut(wrong[0], START + SINCE, START + SINCE + 60)
    assert healthy.expected.sum() / healthy.observed.sum() == pytest.approx(1.0, rel=0.05)
    assert faulty.expected.sum() / faulty.observed.sum() == pytest.approx(2.0, rel=0.1)
