"""The newest decidable window and its verdict: of one series, of many at once, and at every past minute."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelfleetd.stability.domain import estimates
from modelfleetd.stability.domain.choosing import SETTLING
from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits
from modelfleetd.stability.domain.delays import Delays, histogram, learn, prior
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.minute_series import COLUMNS, MinuteSeries, empty_series
from modelfleetd.stability.domain.sums import Exposure, Positives, Sums
from modelfleetd.stability.domain.window_kinds import Case
from modelfleetd.stability.domain.window_verdict import CONFIDENCE, Reason, Stability
from modelfleetd.stability.domain.windows import decide, decide_all, decide_many, minutes_needed
from tests.support.simulated_streams import START, arrived

HOUR = timedelta(hours=1)
CLICK = DeclaredPrediction("click", HOUR, False, Limits(0.5, 2.0), None, 10)
RANGE = HealthyRange("click", Metric.CALIBRATION, 0.8, 1.25)
EVEN = prior(HOUR)
NOW = START + 600


def series(
    minutes: int = 600, examples: float = 250.0, rate: float = 0.02, positives: float = 5.0, *, waits: bool = False
) -> MinuteSeries:
    """Returns the same each minute: so many examples, of this mean prediction, and positives that have come."""
    made = empty_series(NOW - minutes, minutes)
    l0, l1 = -math.log1p(-rate), -math.log(rate)
    loss = (examples - positives) * l0 + positives * l1
    each = {
        "examples": examples,
        "weight": examples,
        "weight_squares": examples,
        "expected": examples * rate,
        "expected_variance": examples * rate * (1.0 - rate),
        "loss": loss,
        "loss_by_squares": loss,
        "loss_squares": (examples - positives) * l0**2 + positives * l1**2,
        "positives": positives,
        "observed": positives,
        "observed_squares": positives,
        "positive_loss": positives * l1,
        "waiting": examples if waits else 0.0,
        "waiting_expected": examples * rate if waits else 0.0,
        "seen": examples,
    }
    for name in COLUMNS:
        getattr(made, name)[:] = each[name]
    return made


def without(made: MinuteSeries, *columns: str, last: int) -> MinuteSeries:
    """Returns a series whose last minutes are empty: in some columns, or in all."""
    for name in columns or COLUMNS:
        getattr(made, name)[-last:] = 0.0
    return made


def verdict(
    made: MinuteSeries, healthy: HealthyRange = RANGE, delays: Delays = EVEN, **declared: object
) -> WindowVerdict:
    return decide(made, healthy, replace(CLICK, **declared), delays, moment_of(NOW))  # type: ignore[arg-type]


LABELS = ("positives", "observed", "observed_squares", "positive_loss")


def test_a_value_within_its_range_is_stable_and_one_outside_is_not() -> None:
    assert verdict(series(rate=0.02)).state is Stability.STABLE
    high = verdict(series(rate=0.03))
    assert (high.state, high.reason) == (Stability.UNSTABLE, Reason.VALUE)
    assert high.estimate.value == pytest.approx(1.5)
    assert verdict(series(rate=0.014)).state is Stability.UNSTABLE
    assert (high.end, high.end - high.start) == (moment_of(NOW), HOUR)


def test_an_interval_that_is_wider_than_the_range_and_reaches_into_it_is_unknown_wherever_the_value_lies() -> None:
    few = verdict(series(examples=25.0, positives=0.5, rate=0.026))  # 1.3 by 30 positives
    assert (few.state, few.reason) == (Stability.UNKNOWN, Reason.WIDE)
    assert few.estimate.value > few.limits.high
    far = verdict(series(examples=25.0, positives=0.5, rate=0.06))
    assert (far.state, far.reason) == (Stability.UNSTABLE, Reason.VALUE)


def test_positives_that_are_merely_late_are_no_evidence() -> None:
    # Labels come evenly over an hour: of a minute that is `age` old, age/60 of them.
    made = series(waits=True)
    made.observed[-60:] *= np.minimum(1.0, (np.arange(60, 0, -1) - 0.5) / 60.0)
    made.observed_squares[:] = made.positives[:] = made.observed
    evenly = Delays(HOUR, prior(HOUR).densities, 1e9)
    found = verdict(made, replace(RANGE, low=0.7, high=1.4), evenly)
    assert (found.state, found.immature) == (Stability.STABLE, True)
    assert found.estimate.value == pytest.approx(1.0)
    assert 0.5 <= found.label_coverage < 0.52
    at_once = learn(HOUR, histogram(1e9, [1.0]))
    alarmed = verdict(made, replace(RANGE, low=0.7, high=1.4), at_once)
    assert alarmed.state is Stability.UNSTABLE, "what the correction is for"


def test_labels_whose_delay_is_not_known_yet_are_waited_for() -> None:
    # Of a new type nobody knows that its labels come at once: taken to come evenly, they would be twice too many.
    made = series(waits=True)
    for delays in (prior(HOUR), learn(HOUR, histogram(5.0, [5.0]))):
        found = verdict(made, replace(RANGE, low=0.7, high=1.4), delays)
        assert (found.state, found.immature) == (Stability.STABLE, False)
        assert found.end <= moment_of(NOW) - HOUR
        assert found.estimate.value == pytest.approx(1.0)


def test_lost_labels_are_found_in_the_newest_window_and_not_hidden_behind_an_older_one() -> None:
    found = verdict(without(series(), *LABELS, last=60))
    assert (found.state, found.reason, found.end) == (Stability.UNSTABLE, Reason.EVIDENCE, moment_of(NOW))
    assert not found.estimate.known and found.estimate.low > 1.25
    nearly = without(series(), *LABELS, last=60)
    nearly.positives[-1] = nearly.observed[-1] = nearly.observed_squares[-1] = 5.0
    assert verdict(nearly).state is Stability.UNSTABLE, "five positives where 300 were predicted"


def test_no_positive_is_evidence_once_the_upper_end_of_the_range_would_have_shown_one() -> None:
    # e^-S <= 1.7e-4 from S = 8.68 on, and S is the predicted positives over the highest healthy calibration.
    def none(expected: float) -> Reason:
        made = series(rate=expected / 15_000.0, positives=0.0)
        return verdict(made, replace(RANGE, high=1.0), min_positives=1).reason

    assert none(8.6) is Reason.FEW
    assert none(8.7) is Reason.EVIDENCE


def test_more_positives_than_chance_explains_are_evidence_where_nearly_none_were_predicted() -> None:
    found = verdict(series(rate=0.00002, positives=0.5))  # 0.3 predicted, 30 there
    assert (found.state, found.reason) == (Stability.UNSTABLE, Reason.EVIDENCE)
    assert verdict(series(rate=0.0005, positives=0.2)).state is Stability.UNKNOWN  # 7.5 predicted, 12 there


def test_a_quiet_hour_leaves_the_verdict_to_the_newest_window_that_held_enough_but_for_no_longer_than_its_width() -> (
    None
):
    healthy = replace(RANGE, low=0.0, high=4.0)
    found = verdict(without(series(), last=59), healthy)
    assert (found.state, found.end) == (Stability.STABLE, moment_of(NOW - 1))  # two minutes of data, 10 expected
    assert verdict(without(series(), last=118), healthy).state is Stability.STABLE
    gone = verdict(without(series(), last=119), healthy)
    assert (gone.state, gone.reason) == (Stability.UNKNOWN, Reason.NO_DATA)


def test_a_model_without_traffic_is_unknown() -> None:
    for metric in (Metric.CALIBRATION, Metric.NE):
        found = verdict(empty_series(NOW, 0), replace(RANGE, metric=metric))
        assert (found.state, found.reason) == (Stability.UNKNOWN, Reason.NO_DATA)
        assert found.estimate == estimates.NO_DATA
        assert "no example" in found.explanation


def test_normalized_entropy_is_of_mature_minutes_alone() -> None:
    healthy = HealthyRange("click", Metric.NE, 0.9, 1.1)
    # The attribution window of an hour and its slack of six minutes have passed of what lies 66 minutes back.
    found = verdict(without(series(waits=True), *LABELS, last=66), healthy)
    assert (found.state, found.end, found.immature) == (Stability.STABLE, moment_of(NOW - 66), False)
    assert found.estimate.value == pytest.approx(1.0)
    assert verdict(series(), healthy).end == moment_of(NOW), "labels that come with their examples are not waited for"


def test_normalized_entropy_of_equal_labels_is_unknown() -> None:
    found = verdict(series(positives=0.0), HealthyRange("click", Metric.NE, 0.9, 1.1))
    assert (found.state, found.reason, found.estimate) == (Stability.UNKNOWN, Reason.UNDEFINED, estimates.UNDEFINED)


def test_where_only_labelled_examples_count_coverage_is_by_count() -> None:
    made = series(waits=True)
    made.seen[:] = 625.0
    found = verdict(made, ignores_missing=True)
    assert (found.state, found.reason, found.label_coverage) == (Stability.UNKNOWN, Reason.COVERAGE, 0.4)
    assert "40 % of the labels have come" in found.explanation
    made.seen[:] = 375.0
    found = verdict(made, ignores_missing=True)
    assert found.state is Stability.STABLE
    assert found.estimate.value == pytest.approx(1.0)


VOLUME = HealthyRange("click", Metric.VOLUME, 12_500.0, 17_500.0)


def test_a_newest_minute_that_is_half_there_is_no_drop() -> None:
    made = without(series(waits=True), last=4)
    made.seen[-6] = 50.0
    found = verdict(made, VOLUME)
    assert (found.state, found.end, found.examples) == (Stability.STABLE, moment_of(NOW - 5), 15_000 - 200)
    assert verdict(series(waits=True), VOLUME).end == moment_of(NOW - SETTLING)


def test_silence_is_a_drop_once_it_is_longer_than_data_may_be_late() -> None:
    def state(silent: int, **columns: bool) -> Stability:
        return verdict(without(series(waits=True), last=silent), VOLUME).state

    assert state(10) is Stability.STABLE
    assert state(18) is Stability.STABLE, "ten minutes late, eight of sixty missing"
    assert state(22) is Stability.UNSTABLE
    found = verdict(without(series(waits=True), last=500), VOLUME)
    assert (found.state, found.examples) == (Stability.UNSTABLE, 0), "and not a gap"
    assert "is 0 examples" in found.explanation and "below 12,500 to 17,500" in found.explanation


def test_examples_that_are_sent_with_their_labels_may_be_late_by_the_attribution_window() -> None:
    made = without(series(), last=70)
    assert verdict(made, VOLUME).state is Stability.STABLE
    assert verdict(without(made, last=100), VOLUME).state is Stability.UNSTABLE


@given(st.integers(0, 3 * 10080), st.integers(5, 1440))
@settings(max_examples=30)
def test_limits_are_those_of_the_range_at_the_end_of_the_window(minute: int, width: int) -> None:
    factors = tuple(np.random.default_rng(1).uniform(0.5, 1.5, 168).tolist())
    healthy = replace(VOLUME, hour_of_week_factors=factors, window=timedelta(minutes=width))
    made = series(minutes=2000)
    found = decide(made, healthy, CLICK, EVEN, moment_of(NOW + minute))
    expected = healthy.at(found.end)
    assert (found.limits.low, found.limits.high) == pytest.approx((expected.low, expected.high))


def noisy(seed: int, minutes: int = 400, *, waits: bool = True, weighted: bool = False) -> MinuteSeries:
    """Returns a series by chance, with gaps, whose labels come evenly over the hour."""
    rng = np.random.default_rng(seed)
    examples = rng.poisson(rng.choice([5.0, 40.0, 400.0]), minutes) * (rng.random(minutes) < 0.9)
    rate, w = float(rng.choice([0.02, 0.3])), float(rng.choice([0.1, 7.0])) if weighted else 1.0
    arrivals = np.stack([rng.poisson(examples * rate * share) for share in EVEN.densities]).astype(np.float64)
    k = np.minimum(arrivals.sum(axis=0), examples)
    l0, l1 = -math.log1p(-rate), -math.log(rate)
    n, loss = examples.astype(np.float64), (examples - k) * l0 + k * l1
    squares = (examples - k) * l0**2 + k * l1**2
    return MinuteSeries(
        NOW - minutes, n, n * w, n * w**2, n * rate * w, n * rate * (1 - rate) * w**2, loss * w, loss * w**2,
        squares * w**2, k, k * w, k * w**2, k * l1 * w**2, n * waits, n * rate * w * waits, n,
        arrivals=np.where(arrivals.sum(axis=0) > 0, arrivals * k / np.maximum(arrivals.sum(axis=0), 1), 0.0) * w,
    )  # fmt: skip


def _sums(made: MinuteSeries, start: int, end: int) -> Sums:
    """Returns a window's sums in the form in which they are stored."""
    part = slice(start - made.start, end - made.start)
    total = {name: float(getattr(made, name)[part].sum()) for name in COLUMNS}
    scaled = {name: round(value * SCALE) for name, value in total.items()}
    # As if every label were negative, and what positives change: here all of it is put into the first.
    exposure = Exposure(
        round(total["examples"]), scaled["weight"], scaled["weight_squares"], scaled["expected"],
        scaled["expected_variance"], scaled["loss"], scaled["loss_by_squares"], scaled["loss_squares"],
    )  # fmt: skip
    positives = Positives(
        round(total["positives"]), scaled["observed"], scaled["observed_squares"], scaled["positive_loss"]
    )
    return Sums(exposure, positives)


@given(st.integers(0, 10_000), st.sampled_from([5, 30, 60]), st.booleans())
@settings(max_examples=40)
def test_the_value_and_its_interval_are_those_of_the_metrics(seed: int, width: int, weighted: bool) -> None:
    made = noisy(seed, waits=False, weighted=weighted)
    for metric, formula in (
        (Metric.CALIBRATION, estimates.calibration),
        (Metric.NE, estimates.normalized_entropy),
    ):
        found = verdict(made, HealthyRange("click", metric, 0.5, 2.0, window=timedelta(minutes=width)), min_positives=1)
        start, end = NOW - (moment_of(NOW) - found.start) // timedelta(minutes=1), 0
        end = start + width
        expected = formula(_sums(made, start, end), CONFIDENCE)
        assert found.estimate.state is expected.state
        ours = (found.estimate.value, found.estimate.low, found.estimate.high)
        if expected.known:
            assert ours == pytest.approx((expected.value, expected.low, expected.high), rel=1e-6, abs=1e-9)


@given(st.integers(0, 10_000), st.sampled_from(list(Metric)), st.sampled_from([5, 20, 120]))
@settings(max_examples=40)
# Of exactly as many positives as are needed, rounding leaves a little less.
@example(36, Metric.CALIBRATION, 120)
def test_a_replay_says_at_each_minute_what_was_said_then(seed: int, metric: Metric, width: int) -> None:
    made = noisy(seed)
    healthy = HealthyRange("click", metric, 0.9, 1.1, window=timedelta(minutes=width))
    first, end = made.start + 90, made.end
    replayed = decide_all(made, healthy, CLICK, EVEN, first, end).all(["click"] * (end - first))
    for minute in (first, first + 61, end - 100, end - 1):
        then = decide(arrived(made, HOUR, minute), healthy, CLICK, EVEN, moment_of(minute))
        again = replayed[minute - first]
        assert (again.state, again.reason, again.end) == (then.state, then.reason, then.end)
        assert again.estimate.value == pytest.approx(then.estimate.value, rel=1e-9)
        assert again.label_coverage == pytest.approx(then.label_coverage)
        assert (again.immature, again.examples) == (then.immature, then.examples)


def test_what_rounding_leaves_of_no_positive_is_no_positive() -> None:
    # 0.6 - 0.1 - 0.2 - 0.3 is not 0 in binary: positives of the newest minutes, which the window judged does not hold.
    made = without(series(examples=100.0, rate=0.004, positives=0.0), last=30)
    made.observed[-3:] = made.observed_squares[-3:] = made.positives[-3:] = [0.3, 0.2, 0.1]
    replayed = decide_all(made, replace(RANGE, window=timedelta(minutes=30)), CLICK, EVEN, NOW, NOW + 1)
    assert replayed.end[0] < NOW - 3
    assert not replayed.all(["click"])[0].estimate.known


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
@settings(max_examples=15)
def test_many_are_decided_as_each_alone(seeds: list[int]) -> None:
    alone = [noisy(seed, waits=seed % 2 == 0) for seed in seeds]
    together = MinuteSeries(NOW - 400, *(np.stack([getattr(one, name) for one in alone]) for name in COLUMNS))
    cases = [
        Case(row, HealthyRange("click", metric, 0.9, 1.1, window=timedelta(minutes=width)), CLICK, EVEN)
        for row in range(len(alone))
        for metric in Metric
        for width in (5, 60)
    ]
    found = decide_many(together, cases, moment_of(NOW))
    for case, one in zip(cases, found, strict=True):
        expected = decide(alone[case.row], case.healthy, CLICK, EVEN, moment_of(NOW))
        assert (one.state, one.reason, one.end, one.estimate.state) == (
            expected.state,
            expected.reason,
            expected.end,
            expected.estimate.state,
        )
        assert one.estimate.value == pytest.approx(expected.estimate.value, rel=1e-9)


@given(st.integers(0, 10_000), st.sampled_from(list(Metric)))
@settings(max_examples=15)
def test_minutes_before_those_needed_change_nothing(seed: int, metric: Metric) -> None:
    made = noisy(seed)
    healthy = HealthyRange("click", metric, 0.9, 1.1, window=timedelta(minutes=30))
    needed = minutes_needed(healthy, CLICK)
    assert needed < made.minutes
    assert verdict(made.between(NOW - needed, NOW), healthy) == verdict(made, healthy)


def test_explanations_say_what_was_found_and_what_it_is_held_against() -> None:
    assert verdict(series(rate=0.03)).explanation == (
        "calibration of click is 1.5 (99 % interval 1.29 to 1.75) by 300 positives among 15,000 examples "
        "over 2025-03-03 09:00 to 10:00 UTC, above 0.8 to 1.25."
    )
    assert verdict(series(examples=25.0, positives=0.5)).explanation == (
        "calibration of click is not known well enough: 1 (99 % interval 0.635 to 1.69) by 30 positives among "
        "1,500 examples over 2025-03-03 09:00 to 10:00 UTC is wider than 0.8 to 1.25."
    )
    assert verdict(without(series(), *LABELS, last=60)).explanation == (
        "calibration of click is far above 0.8 to 1.25, or its labels are lost: 0 positives among 15,000 examples "
        "over 2025-03-03 09:00 to 10:00 UTC, fewer than predictions allow for."
    )
    few = verdict(series(examples=1.0, positives=0.0)).explanation
    assert few.endswith(
        "0 positives among 60 examples over 2025-03-03 09:00 to 10:00 UTC, at least 10 positives are needed."
    )
