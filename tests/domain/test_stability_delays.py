"""F(age): the share of positives that have come by an age."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.stability.domain.delays import (
    BUCKETS,
    MIN_SHARE,
    NO_AGES,
    AgeHistogram,
    Delays,
    ages,
    histogram,
    learn,
    pooled,
    prior,
)
from modelfleetd.stability.domain.maturity import AGE_BOUNDS, MINUTE_MICROS, age_buckets, minute_of
from tests.domain.stability_rows import NOW

windows = st.integers(1, 30 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes))
histograms = st.builds(
    lambda count, weights: AgeHistogram(count, tuple(weights)),
    st.floats(0, 1e9),
    st.lists(st.floats(0, 1e9), min_size=BUCKETS, max_size=BUCKETS),
)


@given(windows, histograms, histograms)
def test_the_share_is_positive_never_falls_and_is_one_at_the_windows_end(
    window: timedelta, own: AgeHistogram, others: AgeHistogram
) -> None:
    delays = learn(window, own, others)
    minutes = window / timedelta(minutes=1)
    shares = delays.shares(np.linspace(-10.0, minutes * 1.2, 500))
    assert shares.min() >= MIN_SHARE
    assert shares.max() <= 1.0
    assert (np.diff(shares) >= 0.0).all()
    assert delays.share(minutes) == delays.share(2 * minutes) == 1.0


@given(windows)
def test_before_anything_is_known_labels_come_evenly_and_it_says_so(window: timedelta) -> None:
    delays = learn(window, NO_AGES)
    assert not delays.learned
    assert delays == prior(window)
    minutes = window / timedelta(minutes=1)
    for part in (0.01, 0.25, 0.5, 0.9):
        assert delays.share(part * minutes) == pytest.approx(max(part, MIN_SHARE), rel=1e-9)


def test_a_learned_share_is_that_of_the_cohort_and_exact_at_the_bounds() -> None:
    rng = np.random.default_rng(5)
    window = timedelta(hours=6)
    delay = rng.exponential(40.0, 200_000)
    delay = delay[delay < 360.0]
    delays = learn(window, _seen(delay))
    assert delays.learned
    for bound in AGE_BOUNDS[:12] / MINUTE_MICROS:
        assert delays.share(bound) == pytest.approx((delay < bound).mean(), abs=1e-4)
    # Within a bucket, half an octave wide, labels are taken to come evenly.
    for age in (5.0, 20.0, 40.0, 75.0, 150.0):
        assert delays.share(age) == pytest.approx((delay < age).mean(), abs=0.02)


def test_a_young_series_leans_on_its_predictions_other_models_and_an_old_one_on_itself() -> None:
    window = timedelta(hours=1)
    early, late = np.full(10_000, 0.5), np.full(10_000, 50.0)
    assert learn(window, NO_AGES, _seen(late)).share(10.0) == pytest.approx(0.0, abs=1e-3)
    assert learn(window, _seen(early[:50]), _seen(late)).share(10.0) == pytest.approx(0.5, abs=0.01)
    assert learn(window, _seen(early), _seen(late)).share(10.0) > 0.99


def test_what_was_seen_fades_and_histograms_add_up() -> None:
    seen = _seen(np.array([0.5, 2.5, 2.5]))
    half = seen.after(84.0)
    assert (half.positives, sum(half.weights)) == (1.5, 1.5)
    assert pooled([half, half]) == seen
    assert histogram(3.0, seen.weights[:4]) == seen


def test_labels_that_a_shorter_window_leaves_out_are_not_waited_for() -> None:
    seen = _seen(np.array([5.0, 10.0, 500.0] * 1000))
    assert learn(timedelta(hours=24), seen).share(30.0) == pytest.approx(2 / 3, abs=1e-2)
    assert learn(timedelta(minutes=30), seen).share(24.0) > 0.99


def test_events_of_a_minute_are_half_a_minute_younger_than_its_start() -> None:
    minute = minute_of(NOW)
    assert ages(np.array([minute - 10, minute - 1]), NOW).tolist() == [9.5, 0.5]


def _seen(delay_minutes: np.ndarray[tuple[int], np.dtype[np.float64]]) -> AgeHistogram:
    labels = (delay_minutes * MINUTE_MICROS).astype(np.int64)
    counts = np.bincount(age_buckets(np.zeros_like(labels), labels), minlength=BUCKETS)
    return AgeHistogram(float(len(labels)), tuple(counts.astype(float).tolist()))


def test_delays_compare_by_what_they_hold() -> None:
    assert Delays(timedelta(hours=1), (1.0,), 2.0) == Delays(timedelta(hours=1), (1.0,), 2.0)
