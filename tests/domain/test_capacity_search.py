"""The search for a replica's maximum load: which rate comes next, where it ends, and why it may not."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.capacity.domain.loadtest import Cause, LatencyStopper, Outcome, Probe, Stoppers
from modelfleetd.capacity.loadtest.histogram import Histogram
from modelfleetd.capacity.loadtest.search import Found, NotFound, Plan, Search
from modelfleetd.errors import InvalidFields

STOPPERS = Stoppers(latency_p99_ms=60.0)


@functools.cache
def latencies_of(slow: float) -> bytes:
    latencies = Histogram()
    latencies.record(np.where(np.arange(10_000) < 10_000 * slow, 100.0, 10.0))
    return latencies.encode()


def probe_of(plan: Plan, outcome: Outcome, *, failing: float = 0.0, slow: float = 0.0) -> Probe:
    """A probe of 10,000 requests with that outcome, and shares that failed and were slow."""
    return Probe(
        intended_qps=plan.qps,
        actual_qps=plan.qps,
        requests=10_000,
        errors=round(10_000 * failing),
        latency_p99_ms=100.0 if slow > 0.01 else 10.0,
        outcome=outcome,
        certification=plan.certification,
        explanation="",
        histogram=latencies_of(slow),
    )


def run(start: float, decide: Callable[[Plan], Outcome | Probe]) -> tuple[Search, list[Plan]]:
    search, plans = Search(start, STOPPERS), []
    while (plan := search.plan) is not None:
        plans.append(plan)
        found = decide(plan)
        search.add(found if isinstance(found, Probe) else probe_of(plan, found))
    return search, plans


def keeps(rate: float) -> Callable[[Plan], Outcome]:
    return lambda plan: Outcome.WITHIN if plan.qps <= rate else Outcome.OVER


def test_an_exact_server_is_bracketed_to_five_percent_and_certified_below() -> None:
    search, plans = run(100.0, keeps(400))
    assert isinstance(search.result, Found)
    assert 400 / 1.05 <= search.result.max_qps <= 400
    assert plans[-1].certification
    assert [round(plan.qps) for plan in plans[:4]] == [100, 110, 128, 164]


@settings(max_examples=50)
@given(maximum=st.floats(1.0, 1e5), start=st.floats(0.1, 10.0))
def test_the_bracket_only_narrows_and_always_holds_the_maximum(maximum: float, start: float) -> None:
    search, brackets = Search(maximum * start, STOPPERS), []
    while (plan := search.plan) is not None:
        assert search.remaining.requests > 0
        assert 0 < search.remaining.seconds < math.inf
        search.add(probe_of(plan, keeps(maximum)(plan)))
        brackets.append((search.highest_within_qps, search.lowest_beyond_qps or math.inf))
    assert isinstance(search.result, Found)
    assert maximum / 1.05 <= search.result.max_qps <= maximum
    assert len(brackets) <= 14
    assert all(within <= maximum < beyond for within, beyond in brackets)
    assert [within for within, _ in brackets] == sorted(within for within, _ in brackets)
    assert [beyond for _, beyond in brackets] == sorted((beyond for _, beyond in brackets), reverse=True)
    assert search.remaining.requests == 0


def test_a_rate_that_is_not_confirmed_is_stepped_down_by_two_percent() -> None:
    search, plans = run(100.0, _confirmed_below(390.0))
    runs = [plan.qps for plan in plans if plan.certification]
    assert isinstance(search.result, Found)
    assert len(runs) > 1
    assert [later / earlier for earlier, later in itertools.pairwise(runs)] == pytest.approx([0.98] * (len(runs) - 1))
    assert search.result.max_qps == runs[-1] <= 390.0
    assert (search.highest_within_qps, search.lowest_beyond_qps) == (runs[-1], runs[-2])


def _confirmed_below(rate: float) -> Callable[[Plan], Outcome]:
    def decide(plan: Plan) -> Outcome:
        if plan.certification:
            return Outcome.WITHIN if plan.qps <= rate else Outcome.UNDECIDED
        return keeps(420)(plan)

    return decide


@pytest.mark.parametrize(
    ("decide", "cause", "words"),
    [
        (lambda plan: Outcome.GENERATOR_LIMIT, Cause.GENERATOR_LIMIT, "requests/s the load generator was the limit"),
        (lambda plan: Outcome.TRANSPORT_ERRORS, Cause.UNRELATED_ERRORS, "did not reach the replica"),
        (lambda plan: Outcome.UNSTABLE, Cause.UNSTABLE_LATENCY, "did not settle"),
        (lambda plan: Outcome.OVER, Cause.NOTHING_WITHIN, "Not even 0.1 requests/s"),
        (lambda plan: Outcome.WITHIN, Cause.NOTHING_BEYOND, "Even 1e+06 requests/s"),
        (_confirmed_below(0.0), Cause.UNSTABLE_LATENCY, "although short ones were within"),
        (
            lambda plan: probe_of(plan, Outcome.OVER, failing=0.03),
            Cause.UNRELATED_ERRORS,
            "3.00% of the requests failed",
        ),
    ],
)
def test_a_search_that_does_not_converge_says_which_of_its_causes_it_was_and_what_to_do(
    decide: Callable[[Plan], Outcome | Probe], cause: Cause, words: str
) -> None:
    search, _ = run(100.0, decide)
    assert isinstance(search.result, NotFound)
    assert search.result.cause is cause
    assert words in str(search.result)
    assert str(search.result).endswith(cause.advice)


def test_errors_that_fall_with_the_load_are_those_of_the_load() -> None:
    def decide(plan: Plan) -> Probe:
        failing = max(0.0, plan.qps - 20) / 1000
        return probe_of(plan, Outcome.OVER if failing > 0.001 else Outcome.WITHIN, failing=failing)

    search, _ = run(200.0, decide)
    assert isinstance(search.result, Found)
    assert 20.0 <= search.result.max_qps <= 21.0


def test_errors_at_every_rate_are_told_long_before_the_lowest_rate() -> None:
    _, plans = run(1000.0, lambda plan: probe_of(plan, Outcome.OVER, failing=0.03))
    assert len(plans) <= 7
    assert plans[-1].qps > 100


@pytest.mark.parametrize("blind", [Outcome.GENERATOR_LIMIT, Outcome.TRANSPORT_ERRORS, Outcome.UNSTABLE])
def test_a_probe_that_says_nothing_of_the_replica_is_repeated_and_never_counts_as_over(blind: Outcome) -> None:
    answers = iter([blind, Outcome.WITHIN, blind, blind, Outcome.WITHIN])
    search, plans = run(100.0, lambda plan: next(answers, keeps(130.0)(plan)))
    assert isinstance(search.result, Found)
    assert search.result.max_qps >= 130 / 1.05
    assert len({plan.qps for plan in plans[:2]}) == len({plan.qps for plan in plans[2:5]}) == 1


@pytest.mark.parametrize(("known", "first"), [((364.0, 0.0), 400.4), ((0.0, 440.0), 400.0), ((364.0, 440.0), 400.2)])
def test_an_interrupted_search_goes_on_from_either_end_that_was_found(known: tuple[float, float], first: float) -> None:
    search = Search(100.0, STOPPERS, known=known)
    plans = []
    while (plan := search.plan) is not None:
        plans.append(plan)
        assert search.highest_within_qps >= known[0]
        search.add(probe_of(plan, keeps(410.0)(plan)))
    assert plans[0].qps == pytest.approx(first, abs=0.1)
    assert isinstance(search.result, Found)
    assert 410 / 1.05 <= search.result.max_qps <= 410


def sends(most: float, then: Callable[[Plan], Outcome]) -> Callable[[Plan], Outcome]:
    return lambda plan: then(plan) if plan.qps <= most else Outcome.GENERATOR_LIMIT


@pytest.mark.parametrize("start", [100.0, 1000.0])
def test_a_generator_that_is_too_slow_tells_the_highest_rate_that_was_kept(start: float) -> None:
    search, plans = run(start, sends(420.0, keeps(1000.0)))
    assert isinstance(search.result, NotFound)
    assert search.result.cause is Cause.GENERATOR_LIMIT
    not_sent = min(plan.qps for plan in plans if plan.qps > 420)
    kept = search.highest_within_qps
    assert 420 / 1.05 <= kept <= 420 < not_sent <= kept * 1.05
    assert f"{kept:.4g}/s was kept; the generator could not send {not_sent:.4g}/s: " in str(search.result)
    assert search.lowest_beyond_qps == 0
    assert not any(plan.certification for plan in plans)


@settings(max_examples=50)
@given(start=st.floats(100.0, 1200.0), spare=st.floats(1.0, 3.0))
def test_a_rate_that_cannot_be_sent_does_not_keep_a_search_from_a_maximum_below(start: float, spare: float) -> None:
    # A bracket of 5% that is kept by the generator too.
    search, _ = run(start, sends(400.0 * 1.06 * spare, keeps(400.0)))
    assert isinstance(search.result, Found)
    assert 400 / 1.05 <= search.result.max_qps <= 400


def test_a_generator_that_can_send_nothing_is_told_soon() -> None:
    _, plans = run(1000.0, lambda plan: Outcome.GENERATOR_LIMIT)
    assert len({plan.qps for plan in plans}) <= 7
    assert plans[-1].qps > 100


def test_an_undecided_probe_counts_as_what_it_leans_to_but_never_confirms_anything() -> None:
    def decide(plan: Plan) -> Probe:
        return probe_of(plan, Outcome.UNDECIDED, slow=0.008 if plan.qps <= 100 else 0.012)

    search, plans = run(100.0, decide)
    assert plans[1].qps > plans[0].qps
    assert isinstance(search.result, NotFound)
    assert search.result.cause is Cause.UNSTABLE_LATENCY
    _, plans = run(100.0, lambda plan: probe_of(plan, Outcome.UNDECIDED, failing=0.002))
    assert plans[1].qps < plans[0].qps


def test_only_the_first_probe_of_a_clone_waits_until_its_latency_has_settled() -> None:
    _, plans = run(100.0, keeps(400))
    assert [plan.settle for plan in plans] == [True] + [False] * (len(plans) - 1)
    assert plans[0].warm_up_seconds > 60 > plans[1].warm_up_seconds
    short = Search(100.0, STOPPERS, certification_requests=1_000).plan
    assert short is not None
    assert short.warm_up_seconds == plans[0].warm_up_seconds / 50


def test_what_remains_shrinks_to_the_certification() -> None:
    search = Search(390.0, STOPPERS)
    seconds = []
    while (plan := search.plan) is not None:
        seconds.append(search.remaining.seconds)
        search.add(probe_of(plan, keeps(400)(plan)))
    assert seconds[-1] == pytest.approx(50_000 / 390, rel=0.1)
    assert seconds == sorted(seconds, reverse=True)


def test_stoppers_are_any_number_of_percentiles_of_which_the_tightest_holds() -> None:
    stoppers = Stoppers(
        latency_p99_ms=60.0,
        latencies=(LatencyStopper(50.0, 10.0), LatencyStopper(99.0, 50.0), LatencyStopper(99.9, 200.0)),
    )
    assert [str(limit) for limit in stoppers.latency_limits] == ["p50 ≤ 10 ms", "p99 ≤ 50 ms", "p99.9 ≤ 200 ms"]
    assert [limit.share for limit in stoppers.latency_limits] == [0.5, 0.01, 0.001]
    assert stoppers.longest_ms == 200.0
    assert Stoppers().latency_limits == ()
    assert Stoppers().longest_ms == 0.0
    rare = dataclasses.replace(stoppers, latencies=(LatencyStopper(99.99, 50.0),))
    # (1 - 0.0001) ** n <= 0.025 at this many.
    assert rare.needed_requests == 36_889


def test_stoppers_that_make_no_sense_are_refused_all_at_once() -> None:
    with pytest.raises(InvalidFields) as refused:
        Stoppers(-1.0, 1.0, (LatencyStopper(30.0, 5.0), LatencyStopper(99.0, 0.0), LatencyStopper(math.nan, math.inf)))
    assert [violation.path for violation in refused.value.violations] == [
        "load_test.stoppers.latency_p99_ms",
        "load_test.stoppers.error_rate",
        "load_test.stoppers.latencies[0].percentile",
        "load_test.stoppers.latencies[1].latency_ms",
        "load_test.stoppers.latencies[2].percentile",
        "load_test.stoppers.latencies[2].latency_ms",
    ]
    with pytest.raises(InvalidFields, match="at most 8"):
        Stoppers(latencies=tuple(LatencyStopper(50.0 + number, 5.0) for number in range(9)))
