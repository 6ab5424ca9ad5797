"""Verdicts on series of answers: what a probe says, when it says so, and how sure it is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from modelfleetd.capacity.domain.loadtest import LatencyStopper, Outcome, Stoppers
from modelfleetd.capacity.loadtest.verdicts import Judge, Length, Settling, interval
from tests.support.queueing import CASES, Case, VirtualLoad

STOPPERS = Stoppers(latency_p99_ms=60.0, error_rate=0.001)
CERTIFICATION = 50_000
MD1 = CASES[0]


def counts(flags: NDArray[np.bool_], batches: int = 20) -> tuple[NDArray[np.int64], int]:
    return flags.reshape(batches, -1).sum(axis=1), len(flags) // batches


def judge_of(qps: float, stoppers: Stoppers = STOPPERS, *, certification: bool = False) -> Judge:
    of = Length.of_certification if certification else Length.of_search
    return Judge(stoppers, of(qps, CERTIFICATION), certification=certification)


def verdict(judge: Judge, latencies: NDArray[np.float64], failed: NDArray[np.bool_] | None = None) -> Outcome | None:
    """Feeds answers until there is a verdict; None where they do not suffice."""
    fails = np.zeros(len(latencies), dtype=np.bool_) if failed is None else failed
    while judge.requests + judge.until_check <= len(latencies):
        part = slice(judge.requests, judge.requests + judge.until_check)
        if (outcome := judge.add_batches(latencies[part], fails[part])) is not None:
            return outcome
    return None


def probed(case: Case, share: float, seed: int, *, certification: bool = False) -> tuple[Outcome, Judge]:
    """Probes a simulated server at a share of its maximum."""
    qps = case.maximum * share
    judge, load = (
        judge_of(qps, case.stoppers, certification=certification),
        VirtualLoad(case, np.random.default_rng(seed)),
    )
    load.skip(qps, 2_000)
    outcome = None
    while outcome is None:
        answers = load.answers(qps, judge.until_check)
        outcome = judge.add_batches(answers.latencies_ms, answers.failed)
    return outcome, judge


def test_the_interval_of_correlated_answers_is_wider_than_that_of_independent_ones() -> None:
    places = np.arange(10_000)
    independent, bursts = interval(*counts(places % 100 == 0)), interval(*counts(places % 2_500 < 25))
    assert independent.share == bursts.share == 0.01
    assert bursts.high > 1.3 * independent.high


def test_an_interval_of_ever_the_same_is_that_of_independent_answers() -> None:
    # Wilson's interval of 100 of 10,000, worked out by hand to four digits.
    found = interval(*counts(np.arange(10_000) % 100 == 0))
    assert (found.low, found.high) == pytest.approx((0.00823, 0.01215), abs=1e-5)
    none = interval(*counts(np.zeros(10_000, dtype=np.bool_)))
    assert (none.share, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1.96**2 / (10_000 + 1.96**2), rel=1e-3)


def test_the_interval_covers_the_truth_of_a_queue_at_its_maximum_where_that_of_independent_answers_does_not() -> None:
    covered = {"batch means": 0, "independent": 0}
    runs = 60
    for seed in range(runs):
        load = VirtualLoad(MD1, np.random.default_rng(seed))
        load.skip(MD1.maximum, 2_000)
        slow = load.answers(MD1.maximum, 40_000).latencies_ms > 60.0
        found = interval(*counts(slow))
        half = 1.96 * math.sqrt(found.share * (1 - found.share) / len(slow))
        covered["batch means"] += found.low <= 0.01 <= found.high
        covered["independent"] += abs(found.share - 0.01) <= half
    assert covered["batch means"] >= 0.85 * runs
    assert covered["independent"] <= 0.65 * runs


def test_a_probe_that_is_grossly_over_or_under_ends_early_but_a_certification_never_ends_early_with_good_news() -> None:
    outcome, judge = probed(MD1, 1.7, 7)
    assert outcome is Outcome.OVER
    assert judge.requests < judge.length.early
    lenient = dataclasses.replace(MD1, stoppers=Stoppers(latency_p99_ms=60.0, error_rate=0.1))
    outcome, judge = probed(lenient, 0.4, 7)
    assert outcome is Outcome.WITHIN
    assert judge.length.early <= judge.requests < judge.length.planned
    outcome, judge = probed(MD1, 0.5, 7, certification=True)
    assert (outcome, judge.requests) == (Outcome.WITHIN, judge.length.planned)
    assert judge.requests >= CERTIFICATION


def test_being_a_little_over_or_under_ends_nothing_before_the_planned_length() -> None:
    for share in (0.015, 0.005):
        judge = judge_of(50.0)
        slow = np.random.default_rng(1).random(judge.length.planned) < share
        assert verdict(judge, np.where(slow, 100.0, 10.0)[: judge.length.planned - judge.length.batch]) is None


def test_a_single_pause_does_not_end_a_probe() -> None:
    judge = judge_of(1_000.0)
    latencies = np.full(judge.length.planned, 10.0)
    # 400 ms of the first seconds: three percent of what the first look sees, all of it in a row.
    latencies[500:900] = 200.0
    assert judge.length.first >= 2_500
    assert verdict(judge, latencies) in {Outcome.WITHIN, None}
    assert judge.requests > judge.length.first


def test_an_undecided_probe_goes_on_and_ends_undecided() -> None:
    judge = judge_of(50.0)
    latencies = np.where(np.arange(judge.length.most) % 101 == 0, 100.0, 10.0)
    assert verdict(judge, latencies) is Outcome.UNDECIDED
    assert judge.requests == judge.length.most == 4 * judge.length.planned
    assert "0.991 % [" in judge.explain(Outcome.UNDECIDED).replace("%", " %")


def test_each_stopper_is_judged_and_any_of_them_ends_the_search() -> None:
    stoppers = Stoppers(latencies=(LatencyStopper(50.0, 20.0), LatencyStopper(99.9, 500.0)))
    places = np.arange(100_000)
    usual = np.where(places % 2 == 0, 10.0, 15.0)
    assert verdict(judge_of(50.0, stoppers), usual) is Outcome.WITHIN
    assert verdict(judge_of(50.0, stoppers), usual * 2.5) is Outcome.OVER
    assert verdict(judge_of(50.0, stoppers), np.where(places % 50 == 0, 600.0, usual)) is Outcome.OVER
    assert verdict(judge_of(50.0, stoppers), usual, places % 100 == 0) is Outcome.OVER
    judge = judge_of(50.0, stoppers)
    assert verdict(judge, np.where(places % 50 == 0, 600.0, usual)) is Outcome.OVER
    assert "took longer than 500 ms, at most 0.1% may" in judge.explain(Outcome.OVER)


def test_errors_alone_stop_a_search_too_and_a_failed_request_is_a_slow_one() -> None:
    failed = np.random.default_rng(1).random(20_000) < 0.05
    judge = judge_of(50.0, Stoppers(error_rate=0.01))
    assert verdict(judge, np.full(20_000, 5.0), failed) is Outcome.OVER
    assert "failed, at most 1% may" in judge.explain(Outcome.OVER)
    assert judge.errors == failed[: judge.requests].sum()
    assert verdict(judge_of(50.0, Stoppers(60.0, 0.9)), np.full(20_000, 5.0), failed) is Outcome.OVER


def test_answers_one_by_one_are_judged_as_in_batches() -> None:
    draw = np.random.default_rng(3)
    latencies, failed = draw.exponential(15.0, 20_000), draw.random(20_000) < 0.0005
    together, single = judge_of(50.0), judge_of(50.0)
    outcome = verdict(together, latencies, failed)
    found = next(
        result
        for latency, fails in zip(latencies.tolist(), failed.tolist(), strict=True)
        if (result := single.add(latency, failed=fails)) is not None
    )
    assert (outcome, together.requests, together.errors) == (found, single.requests, single.errors)
    assert together.explain(found) == single.explain(found)
    assert (together.histogram.counts == single.histogram.counts).all()


@pytest.mark.parametrize("slower", [3.0, 1 / 3])
def test_halves_that_differ_far_beyond_their_noise_are_an_unstable_measurement(slower: float) -> None:
    judge = judge_of(50.0)
    latencies = 3.0 + np.random.default_rng(1).exponential(2.0, judge.length.planned)
    latencies[judge.length.planned // 2 :] *= slower
    assert verdict(judge, latencies) is Outcome.UNSTABLE
    assert "the typical latency went from" in judge.explain(Outcome.UNSTABLE)


def test_a_drift_to_beyond_a_stopper_is_over_and_noise_is_no_drift() -> None:
    growing = np.linspace(10.0, 200.0, 20_000)
    assert verdict(judge_of(50.0), growing) in {Outcome.OVER, Outcome.UNSTABLE}
    assert verdict(judge_of(50.0), growing + 100.0) is Outcome.OVER
    unstable = [probed(case, 0.97, seed)[0] is Outcome.UNSTABLE for case in CASES[:2] for seed in range(10)]
    assert not any(unstable)


def test_the_looks_of_a_certification_claim_too_much_no_more_often_than_one_would() -> None:
    # Independent answers whose true share is exactly what it may be: a claim is wrong.
    draw, claims, runs = np.random.default_rng(5), 0, 200
    stoppers = Stoppers(error_rate=0.5, latencies=(LatencyStopper(90.0, 60.0),))
    length = Length(batch=5, first=100, early=1_600, planned=1_600, most=12_800)
    for _ in range(runs):
        judge = Judge(stoppers, length, certification=True)
        claims += verdict(judge, np.where(draw.random(length.most) < 0.1, 100.0, 10.0)) is Outcome.WITHIN
    # 2.5 % would be 5; more than 11 happen once in 100 times then.
    assert claims <= 11


def test_lengths_follow_the_certification_and_the_rate() -> None:
    slow, quick = Length.of_search(20.0, 50_000), Length.of_search(2_000.0, 50_000)
    assert 5_000 <= slow.planned < 5_200
    assert quick.planned >= 30 * 2_000
    assert Length.of_search(2_000.0, 1_000).planned < 1_400
    assert Length.of_certification(20.0, 50_000).most == Length.of_certification(20.0, 50_000).planned < 51_000
    assert Length.of_certification(400.0, 50_000).most == 8 * Length.of_certification(400.0, 50_000).planned
    for length in (slow, quick, Length.of_certification(20.0, 50_000), Length.of_certification(3_000.0, 50_000)):
        assert length.first <= length.early <= length.planned <= length.most
        assert all(check % (20 * length.batch) == 0 for check in length.checks)
        assert length.checks[-1] == length.most
        assert length.planned in length.checks
        # Counts by batch are all that is kept.
        assert length.most // length.batch <= 20 * 16 * 8


def test_a_latency_has_settled_when_it_no_longer_falls_and_at_the_latest_in_four_times_the_time() -> None:
    def settled_after(latency_ms: float, slower: float, until: float) -> float:
        settling, moment = Settling(75.0), 0.0
        while not settling.add(moment, latency_ms * (slower if moment < until else 1.0)):
            moment += 0.1
        return moment

    assert 75.0 <= settled_after(10.0, 1.0, 0.0) < 85.0
    assert settled_after(10.0, 3.0, 70.0) > 90.0
    settling, moment = Settling(75.0), 0.0
    while not settling.add(moment, math.exp(moment / 10)):
        moment += 0.1
    assert 300.0 <= moment < 310.0
