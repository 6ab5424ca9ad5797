"""Healthy ranges: what holds whatever the history, and how often they are left while all is well."""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.stability.domain import false_alarms, slo
from modelfleetd.stability.domain.criteria import DEFAULT_CALIBRATION, DeclaredPrediction, Limits
from modelfleetd.stability.domain.delays import prior
from modelfleetd.stability.domain.exact import Floats
from modelfleetd.stability.domain.fleet import Metric
from modelfleetd.stability.domain.history import COLUMNS, STEP, History, calibrations
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.range_replay import limits_at, replay_on
from modelfleetd.stability.domain.range_terms import Terms
from modelfleetd.stability.domain.ranges import Basis, Proposal, propose, propose_model
from modelfleetd.stability.domain.slices import Slice
from modelfleetd.stability.domain.tolerance import Spread, reach, signed_root
from tests.support.histories import START, of_sums, simulated

CLICK = DeclaredPrediction("click", timedelta(hours=1), False, DEFAULT_CALIBRATION, None, 10)
SEEDS = st.integers(0, 2**32 - 1)
DAY = 1440 // STEP


def terms(metric: Metric = Metric.CALIBRATION, *, target: float = 0.99, width: int = 0, pages: float = 0.05) -> Terms:
    return Terms(CLICK, metric, target, pages, ranges=6, width=width)


def proposed(history: History, of: Terms | None = None) -> Proposal:
    found = propose(history, of or terms())
    assert found is not None
    return found


def reach_of(proposal: Proposal) -> float:
    return math.log(proposal.range.high / proposal.range.low)


def part(history: History, first: int, end: int) -> History:
    return History(history.start + first * STEP, STEP, history.sums[:, first:end])


@given(seed=SEEDS, scale=st.sampled_from([0.25, 3.0]))
@settings(max_examples=4)
def test_a_model_that_is_miscalibrated_by_a_factor_has_its_range_moved_by_it(seed: int, scale: float) -> None:
    history = simulated(seed=seed, season=0.1)
    moved = of_sums(history.column("examples"), history.column("expected"), history.column("observed"))
    moved.sums[[COLUMNS.index("expected"), COLUMNS.index("expected_variance")]] *= scale
    # What varies is what was observed, and that is the same.
    one, other = proposed(history, terms(width=60)), proposed(moved, terms(width=60))
    assert other.range.low == pytest.approx(one.range.low * scale, rel=2e-3)
    assert other.range.high == pytest.approx(one.range.high * scale, rel=2e-3)
    assert other.range.hour_of_week_factors == pytest.approx(one.range.hour_of_week_factors, rel=1e-4)


@given(seed=SEEDS, data=st.data())
@settings(max_examples=4)
def test_the_order_of_weeks_hardly_matters(seed: int, data: st.DataObject) -> None:
    history = simulated(seed=seed, season=0.1)
    order = data.draw(st.permutations(range(4)))
    weeks = [history.sums[:, week * 7 * DAY : (week + 1) * 7 * DAY] for week in order]
    shuffled = History(START, STEP, np.concatenate(weeks, axis=1))
    one, other = proposed(history, terms(width=60)), proposed(shuffled, terms(width=60))
    # Only the few windows that lie across two weeks are others.
    assert other.range.low == pytest.approx(one.range.low, rel=0.02)
    assert other.range.high == pytest.approx(one.range.high, rel=0.02)


@given(seed=SEEDS)
@settings(max_examples=4)
def test_more_history_of_the_same_kind_makes_no_range_much_wider(seed: int) -> None:
    history = simulated(seed=seed, days=28)
    week, all_ = proposed(part(history, 0, 7 * DAY), terms(width=60)), proposed(history, terms(width=60))
    assert reach_of(all_) <= reach_of(week) * 1.1


@given(seed=SEEDS)
@settings(max_examples=4)
def test_fewer_false_alarms_and_a_stricter_objective_take_a_wider_range(seed: int) -> None:
    history = simulated(seed=seed, days=14)
    reaches = [reach_of(proposed(history, terms(width=60, pages=pages))) for pages in (0.01, 0.1, 1.0)]
    assert reaches == sorted(reaches, reverse=True)
    assert reach_of(proposed(history, terms(width=60, target=0.999))) >= reach_of(
        proposed(history, terms(width=60, target=0.95))
    )


def test_seasons_are_found_and_only_where_there_are_any() -> None:
    seasonal = proposed(simulated(seed=1, season=0.2, positives=50), terms(width=60))
    assert seasonal.basis is Basis.SEASONAL
    # A window of an hour lags behind by half of one, on average by the minutes it ends at by another half.
    hour = (np.arange(168) % 24 - 0.0) * np.pi / 12.0
    truth = np.exp(0.2 * np.sin(hour))
    assert np.abs(np.log(np.array(seasonal.range.hour_of_week_factors) / truth)).max() < 0.05
    assert proposed(simulated(seed=2, positives=50), terms(width=60)).basis is Basis.LEVEL
    # Two weeks are the least.
    assert proposed(simulated(seed=3, season=0.2, days=13), terms(width=60)).basis is Basis.LEVEL
    # What is seasonal is no spread.
    flat = proposed(simulated(seed=1, positives=50), terms(width=60))
    assert reach_of(seasonal) < reach_of(flat) * 1.25


def test_an_incident_in_the_history_is_shown_and_widens_nothing() -> None:
    fault = np.ones(28 * DAY)
    fault[10 * DAY : 10 * DAY + 36] = 2.0  # three hours
    clean, dirty = proposed(simulated(seed=4)), proposed(simulated(seed=4, fault=fault))
    assert reach_of(dirty) <= reach_of(clean) * 1.1
    assert (clean.pages, clean.outside) == (0, ())
    assert dirty.pages == 1 and len(dirty.outside) == 1
    when = moment_of(START + 10 * 1440)
    assert timedelta(0) <= dirty.page_times[0] - when <= timedelta(hours=1)
    assert dirty.outside[0].worst > dirty.range.high
    assert f"It would have paged 1 time in the 28 days of the history: {dirty.page_times[0]:%Y-%m-%d %H:%M}." in (
        dirty.explanation
    )


def test_the_busier_a_model_the_shorter_its_window() -> None:
    widths = [proposed(simulated(seed=5, positives=rate)).range.window for rate in (500.0, 20.0, 1.0)]
    assert widths == sorted(widths) and widths[0] <= timedelta(minutes=15) and widths[-1] >= timedelta(hours=6)


def test_a_wander_that_no_window_averages_out_is_held_by_the_range() -> None:
    calm, wandering = (proposed(simulated(seed=6, positives=100, wander=w), terms(width=60)) for w in (0.0, 0.05))
    assert reach_of(wandering) > 1.5 * reach_of(calm)


def test_labels_that_are_still_to_come_make_the_range_wider() -> None:
    late = Terms(CLICK, Metric.CALIBRATION, 0.99, ranges=6, width=15, delays=prior(CLICK.attribution_window))
    history = simulated(seed=7, positives=50)
    assert reach_of(proposed(history, late)) == pytest.approx(
        # Half of the labels have come when a window is judged: twice the variance.
        reach_of(proposed(history, terms(width=15))) * math.sqrt(2.0), rel=0.05,
    )  # fmt: skip


def test_too_little_history_gives_a_wide_default_that_is_safe_for_few_positives() -> None:
    few = proposed(simulated(seed=8, positives=0.02))
    assert few.basis is Basis.DEFAULT and few.range.window == timedelta(days=1)
    assert few.range.low <= 0.5 and few.range.high >= 2.0 and few.pages == 0
    nothing = of_sums(*(np.zeros(0) for _ in range(3)))
    assert proposed(nothing).range.at(moment_of(START)) == Limits(0.5, 2.0)
    assert proposed(nothing, terms(Metric.NE)).range.at(moment_of(START)) == Limits(0.0, 1.1)
    assert propose(nothing, terms(Metric.VOLUME)) is None


def test_volume_has_a_strong_season_and_growth_is_allowed_for() -> None:
    history = simulated(seed=9, daily=1.0)
    volume = proposed(history, terms(Metric.VOLUME, width=60))
    assert volume.basis is Basis.SEASONAL and volume.pages == 0
    low, high = limits_at(volume.range, history.windows(60).ends)
    assert (high / low < 2.0).all()  # while the volume itself varies by more than seven times
    growing = History(START, STEP, history.sums * np.exp(np.arange(28 * DAY) / DAY * 0.01))
    grown = proposed(growing, terms(Metric.VOLUME, width=60))
    assert "growth of +7." in grown.explanation
    later = History(growing.end, STEP, growing.sums * math.exp(0.28))
    assert not replay_on(later, grown.range, terms(Metric.VOLUME)).page_times
    halved = History(growing.end, STEP, later.sums * 0.5)
    assert replay_on(halved, grown.range, terms(Metric.VOLUME)).page_times


def test_a_model_shares_its_false_alarms_among_all_its_ranges() -> None:
    history = simulated(seed=10, days=14)
    declared = {name: DeclaredPrediction(name, CLICK.attribution_window, False, DEFAULT_CALIBRATION, None, 10)
                for name in ("click", "buy", "like")}  # fmt: skip
    alone = propose_model({"click": history}, {}, {"click": CLICK}, target=0.99, width=60)
    three = propose_model({"click": history}, {"click": history}, declared, target=0.99, width=60)
    assert [(p.range.prediction, p.range.metric) for p in three] == [("click", metric) for metric in Metric]
    assert reach_of(three[0]) > reach_of(alone[0])


def test_a_replay_holds_each_window_against_the_range_of_its_hour() -> None:
    found = proposed(simulated(seed=1, season=0.2, positives=50), terms(width=60)).range
    ends = np.arange(START + 60, START + 10_080, 35)
    low, high = limits_at(found, ends)
    for end, one, other in zip(ends.tolist(), low.tolist(), high.tolist(), strict=True):
        assert found.at(moment_of(end)) == Limits(one, other)


@pytest.mark.parametrize("count", [12, 60, 400])
def test_the_signed_root_of_a_count_is_normal_far_into_the_tails(count: int) -> None:
    draws = np.random.default_rng(count).poisson(count, 400_000)
    residual = -np.log(np.maximum(draws, 0.5) / count)
    deviates = signed_root(residual, np.full(len(draws), float(count)), np.full(len(draws), 1.0 / count))
    # Counts are whole numbers, so that a share is known to within that of one count.
    for distance in (2.0, 3.0, 3.5):
        for side in (-1.0, 1.0):
            near, far = (0.5 * math.erfc(d / math.sqrt(2.0)) for d in (distance - 0.25, distance + 0.25))
            assert far <= np.mean(side * deviates > distance) <= near


def test_out_of_range_no_more_often_than_alpha_with_the_stated_confidence() -> None:
    """Log-normal residuals whose centre and spread are estimated: 95 of 100 ranges hold all but alpha of the next."""
    rng, alpha, samples, trials, failures = np.random.default_rng(11), 1e-3, 300, 100, 0
    for _ in range(trials):
        residuals = rng.normal(0.0, 0.1, samples)
        mean = float(residuals.mean())
        tau2 = float(np.quantile(np.abs(residuals - mean), 0.6826895)) ** 2
        varies = Spread(1.0, tau2, samples, math.inf, samples, math.inf, 1.0)
        found = reach(varies, np.full(2, 1e-12), np.full(2, math.inf), alpha)
        ends = (mean - found.below, mean + found.above)
        outside = 0.5 * (math.erfc(-ends[0] / 0.1 / math.sqrt(2.0)) + math.erfc(ends[1] / 0.1 / math.sqrt(2.0)))
        failures += outside > alpha
    assert failures <= trials * 0.05 + 3 * math.sqrt(trials * 0.05)


@pytest.mark.parametrize(("width", "target"), [(60, 0.99), (60, 0.95), (5, 0.999)])
def test_the_table_of_distances_gives_the_pages_that_it_says(width: int, target: float) -> None:
    """Noise through slices and burn rates, at the distance that is to give one page in ten weeks."""
    rng, weeks = np.random.default_rng(width), 150
    share = false_alarms.tail(width, target, 0.1, wander=0.0)
    noise = rng.standard_normal(weeks * 10_080 + width, dtype=np.float32)
    running = np.cumsum(noise, dtype=np.float64)
    values = (running[width:] - running[:-width]) / math.sqrt(width)
    distance = _distance_of(share)
    slices = np.where(np.abs(values) > distance, Slice.BAD, Slice.GOOD).astype(np.uint8)
    firing = slo.firing(slices, target, slo.Response.PAGE)
    pages = int(np.count_nonzero(firing[1:] & ~firing[:-1]))
    assert 5 <= pages <= 30  # 15 expected, or fewer where the error budget allows for less


def _distance_of(share: float) -> float:
    low, high = 0.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2.0)) > share else (low, middle)
    return high


def test_healthy_weeks_after_the_history_page_no_more_often_than_declared() -> None:
    """Ranges from four weeks, held against the next four: of models busy and quiet, that wander and that do not."""
    pages, weeks, declared = 0, 0, terms(pages=1.0)  # a sixth of it is this range's
    for seed in range(6):
        wander = 0.03 if seed % 2 else 0.0
        history = simulated(seed=100 + seed, positives=(0.5, 5.0, 60.0)[seed % 3], days=56, season=0.05, wander=wander)
        range_ = proposed(part(history, 0, 28 * DAY), declared).range
        pages += len(replay_on(part(history, 28 * DAY, 56 * DAY), range_, declared).page_times)
        weeks += 4
    allowed = weeks * 1.0 / 6
    assert pages <= allowed + 3.0 * math.sqrt(allowed)


def test_calibrations_are_not_chosen_by_the_positives_that_came() -> None:
    """Windows with few positives by chance are among those that are looked at: else the rest would be biased."""
    examples = np.full(4000, 300.0)
    observed: Floats = np.random.default_rng(12).poisson(12.0, 4000).astype(np.float64)
    values = calibrations(of_sums(examples, np.full(4000, 12.0), observed).windows(STEP), 10)
    assert values.usable.all() or np.mean(values.usable) > 0.99
