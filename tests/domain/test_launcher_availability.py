"""The availability gate: what a few errors say, and what many do; and latency that is one moment's, or lasts."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from modelfleetd.launcher.domain.availability import SLOW_LOOKS, judge, least_increase, looked, wilson
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.observed import Observed, Seen
from modelfleetd.launcher.domain.policy import AvailabilityGate, Policy
from modelfleetd.launcher.domain.record import Verdict
from tests.domain.test_launcher_decisions import at_step, baking

LAUNCH = baking()


def seen(
    candidate: tuple[int, int],
    baseline: tuple[int, int] = (100_000, 0),
    *,
    latency: tuple[float | None, float | None] = (15.0, 15.0),
    age: timedelta | None = timedelta(0),
    launch: Launch = LAUNCH,
) -> Seen:
    """Requests and errors of both sides since the split, and their percentiles."""
    found = at_step(launch, statistics_age=age)

    def side(known: Observed, counts: tuple[int, int], p99: float | None) -> Observed:
        return replace(known, since_split=counts[0], errors_since_split=counts[1], latency_p99_ms=p99)

    return replace(
        found,
        candidate=side(found.candidate, candidate, latency[0]),
        baseline=side(found.baseline, baseline, latency[1]),
    )


def later(found: Seen, intervals: int) -> Seen:
    """The same, so many intervals of the proxy later."""
    assert found.time is not None
    return replace(found, time=found.time + intervals * timedelta(seconds=5))


def said(found: Seen, launch: Launch = LAUNCH, *, final: bool = True) -> Verdict:
    return judge(looked(launch, found), found, final=final).verdict


def gated(**limits: float) -> Launch:
    return baking(Policy(availability_gate=AvailabilityGate(**limits)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("candidate", "baseline", "verdict"),
    [
        ((10_000, 0), (40_000, 0), Verdict.PASS),
        ((10_000, 40), (40_000, 0), Verdict.PASS),
        # One error in 120 is more than 0.5 %, and says nothing yet.
        ((120, 1), (480, 0), Verdict.INCONCLUSIVE),
        ((480, 1), (1_920, 0), Verdict.PASS),
        ((10_000, 80), (40_000, 0), Verdict.FAIL),
        # The baseline fails as often: it is not the candidate.
        ((10_000, 200), (40_000, 800), Verdict.PASS),
        # More than 5 % is too much, whatever the baseline does.
        ((10_000, 700), (40_000, 2_800), Verdict.FAIL),
        # At the last step the baseline has no traffic to compare with.
        ((10_000, 200), (0, 0), Verdict.PASS),
        ((10_000, 700), (0, 0), Verdict.FAIL),
        # Few, but all of them.
        ((20, 20), (80, 0), Verdict.FAIL),
    ],
)
def test_errors_fail_a_candidate_only_where_chance_does_not_explain_them(
    candidate: tuple[int, int], baseline: tuple[int, int], verdict: Verdict
) -> None:
    assert said(seen(candidate, baseline)) is verdict


def test_with_few_requests_it_passes_on_the_platforms_word_and_says_so_once_the_bake_is_over() -> None:
    few = seen((12, 0))
    assert said(few, final=False) is Verdict.INCONCLUSIVE
    found = judge(LAUNCH, few, final=True)
    assert found.verdict is Verdict.PASS and "only 12 requests" in found.explanation
    short = replace(few, candidate=replace(few.candidate, available=few.candidate.desired - 1))
    assert judge(LAUNCH, short, final=True).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("age", [None, timedelta(minutes=1)])
def test_numbers_that_are_old_are_no_verdict(age: timedelta | None) -> None:
    assert said(seen((10_000, 10_000), age=age)) is Verdict.ERROR


@pytest.mark.parametrize(
    ("latency", "limits", "slow"),
    [
        ((16.0, 15.0), {}, False),
        ((23.0, 15.0), {}, True),
        # More than half as much again, and not a millisecond.
        ((1.6, 1.0), {}, False),
        ((23.0, 15.0), {"max_latency_p99_increase": 1.0}, False),
        ((16.0, 15.0), {"max_latency_p99_ms": 15.5}, True),
        ((None, 15.0), {}, False),
        ((500.0, None), {}, False),
    ],
)
def test_a_candidate_is_slow_where_it_several_intervals_in_a_row_found_so(
    latency: tuple[float | None, float | None], limits: dict[str, float], slow: bool
) -> None:
    launch = gated(**limits)
    verdicts = []
    for interval in range(SLOW_LOOKS):
        found = later(seen((10_000, 0), latency=latency, launch=launch), interval)
        # Looks at the same interval count once.
        for _ in range(SLOW_LOOKS):
            launch = looked(launch, found)
        verdicts.append(judge(launch, found, final=True).verdict)
    expected = [*[Verdict.INCONCLUSIVE] * (SLOW_LOOKS - 1), Verdict.FAIL] if slow else [Verdict.PASS] * SLOW_LOOKS
    assert verdicts == expected
    recovered = later(seen((10_000, 0), launch=launch), SLOW_LOOKS)
    assert said(recovered, launch) is Verdict.PASS


def test_the_slowest_hundredth_of_few_requests_says_nothing() -> None:
    launch = gated()
    for interval in range(SLOW_LOOKS):
        for sides in (((999, 0), (100_000, 0)), ((5_000, 0), (999, 0))):
            found = later(seen(*sides, latency=(500.0, 15.0), launch=launch), interval)
            launch = looked(launch, found)
            assert judge(launch, found, final=True).verdict is Verdict.PASS


@given(st.integers(1, 100_000), st.data())
def test_wilsons_bounds_enclose_the_rate_and_draw_closer_with_more_requests(requests: int, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, requests))
    low, high = wilson(errors, requests)
    assert 0 <= low <= errors / requests + 1e-12 and errors / requests - 1e-12 <= high <= 1
    closer = wilson(10 * errors, 10 * requests)
    assert closer[1] - closer[0] <= high - low + 1e-12


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.data())
def test_an_increase_is_certain_only_where_the_rates_differ_by_more(n: int, m: int, data: st.DataObject) -> None:
    errors, before = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    low = least_increase(errors, n, before, m)
    assert low <= errors / n - before / m + 1e-12
    if errors < n:
        assert least_increase(errors + 1, n, before, m) >= low - 1e-12


def test_wilsons_bound_errs_about_as_rarely_as_it_says() -> None:
    for rate in (0.001, 0.005, 0.05):
        for requests in (1_000, 20_000):
            first = next(errors for errors in range(requests + 1) if wilson(errors, requests)[0] > rate)
            errs = float(binom.sf(first - 1, requests, rate))
            # One-sided 99 %, but for what a discrete distribution and rare errors leave.
            assert errs < 0.03, (rate, requests, errs)


def test_a_candidate_that_is_as_good_as_its_baseline_is_hardly_ever_sent_back() -> None:
    draw = random.Random(7)
    verdicts = []
    for _ in range(300):
        sides = [(n, sum(draw.random() < 0.002 for _ in range(n))) for n in (400, 1_600)]
        verdicts.append(said(seen(sides[0], sides[1])))
    assert verdicts.count(Verdict.FAIL) == 0 and verdicts.count(Verdict.PASS) > 250


def test_figures_are_those_that_decided() -> None:
    found = judge(LAUNCH, seen((10_000, 80), (40_000, 40)), final=True)
    assert found.figures["candidate.error_rate"] == 0.008 and found.figures["baseline.error_rate"] == 0.001
    assert found.figures["error_rate_increase"] == pytest.approx(0.007)
    assert 0.005 < found.figures["error_rate_increase.low"] < 0.007
    assert all(math.isfinite(value) for value in found.figures.values())
    assert "80 of 10000 failed (0.8 %)" in found.explanation
