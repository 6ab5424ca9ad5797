"""The search for a replica's maximum load, against servers whose maximum is known, in virtual time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest

from modelfleetd.capacity.domain.loadtest import Outcome, Stoppers
from modelfleetd.capacity.loadtest.search import Cause, Found, NotFound, Plan, search
from modelfleetd.capacity.loadtest.verdicts import Judge, Length, interval

SERVICE_MS = 10.0
STOPPERS = Stoppers(latency_p99_ms=60.0, error_rate=0.001)
CERTIFICATION = 50_000


def waiting_at_most(ratio: float, load: Fraction) -> float:
    """P(wait ≤ ratio service times) of M/D/1 at a load (Erlang), exact in fractions because its terms alternate."""
    wait = Fraction(ratio)
    total = Fraction(0)
    for k in range(math.floor(wait) + 1):
        part = load * (k - wait)
        total += Fraction(part**k, math.factorial(k)) * Fraction(math.exp(-float(part)))
    return float((1 - load) * total)


def known_maximum() -> float:
    """The rate at which 1 % of an M/D/1 server's requests take longer than the stopper, in requests/s."""
    low, high = 0.01, 0.999
    ratio = (STOPPERS.latency_p99_ms - SERVICE_MS) / SERVICE_MS
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if waiting_at_most(ratio, Fraction(middle)) > 0.99 else (low, middle)
    return low * 1000 / SERVICE_MS


def md1(rate: float, draw: random.Random) -> Iterator[tuple[float, bool]]:
    """Latencies of a server with one worker and a constant service time, in the order of arrival."""
    now = free = 0.0
    while True:
        now += draw.expovariate(rate) * 1000
        free = max(now, free) + SERVICE_MS
        yield free - now, False


def probe(plan: Plan, answers: Iterator[tuple[float, bool]], certification: int = CERTIFICATION) -> tuple[Outcome, int]:
    length = Length.of_certification if plan.certification else Length.of_search
    judge = Judge(STOPPERS, length(certification), certification=plan.certification)
    for _ in range(500):
        next(answers)
    for latency, failed in answers:
        if (outcome := judge.add(latency, failed=failed)) is not None:
            return outcome, judge.requests
    raise AssertionError("unreachable")


def run(start: float, decide: Callable[[Plan], Outcome]) -> tuple[Found | NotFound, list[Plan]]:
    job, plans = search(start), []
    plan = next(job)
    while True:
        plans.append(plan)
        try:
            plan = job.send(decide(plan))
        except StopIteration as end:
            return end.value, plans


@pytest.mark.parametrize("seed", range(12))
def test_the_certified_rate_is_close_below_the_known_maximum_of_an_md1_server(seed: int) -> None:
    draw = random.Random(seed)
    maximum = known_maximum()
    start = maximum * draw.uniform(0.75, 1.25)
    found, plans = run(start, lambda plan: probe(plan, md1(plan.qps, draw))[0])
    assert isinstance(found, Found)
    assert 0.9 <= found.max_qps / maximum <= 1.02
    assert len(plans) <= 12


def test_an_exact_server_is_bracketed_to_five_percent_and_certified_below() -> None:
    found, plans = run(100.0, lambda plan: Outcome.WITHIN if plan.qps <= 400 else Outcome.OVER)
    assert isinstance(found, Found)
    assert 400 / 1.05 <= found.max_qps <= 400
    assert plans[-1].certification
    assert [round(plan.qps) for plan in plans[:4]] == [100, 110, 128, 164]


def test_a_rate_that_is_not_confirmed_is_stepped_down_by_two_percent() -> None:
    found, plans = run(100.0, lambda plan: _confirmed_below(plan, 390.0))
    runs = [plan.qps for plan in plans if plan.certification]
    assert isinstance(found, Found)
    assert len(runs) > 1
    assert [later / earlier for earlier, later in itertools.pairwise(runs)] == pytest.approx([0.98] * (len(runs) - 1))
    assert found.max_qps == runs[-1] <= 390.0


def _confirmed_below(plan: Plan, rate: float) -> Outcome:
    if plan.certification:
        return Outcome.WITHIN if plan.qps <= rate else Outcome.UNDECIDED
    return Outcome.WITHIN if plan.qps <= 420 else Outcome.OVER


@pytest.mark.parametrize(
    ("decide", "cause"),
    [
        (lambda plan: Outcome.GENERATOR_LIMIT, Cause.GENERATOR_LIMIT),
        (lambda plan: Outcome.TRANSPORT_ERRORS, Cause.TRANSPORT_ERRORS),
        (lambda plan: Outcome.OVER, Cause.NOTHING_WITHIN),
        (lambda plan: Outcome.WITHIN, Cause.NOTHING_BEYOND),
        (lambda plan: _confirmed_below(plan, 0.0), Cause.UNSTABLE),
    ],
)
def test_a_search_that_does_not_converge_says_which_of_its_causes_it_was(
    decide: Callable[[Plan], Outcome], cause: Cause
) -> None:
    found, _ = run(100.0, decide)
    assert isinstance(found, NotFound)
    assert found.cause is cause


def test_a_probe_that_the_generator_could_not_keep_never_counts_as_over() -> None:
    answers = iter([Outcome.GENERATOR_LIMIT, Outcome.WITHIN, Outcome.TRANSPORT_ERRORS, Outcome.WITHIN])
    found, plans = run(100.0, lambda plan: next(answers, Outcome.WITHIN if plan.qps <= 130 else Outcome.OVER))
    assert isinstance(found, Found)
    assert found.max_qps >= 130 / 1.05
    assert plans[0].qps == plans[1].qps
    assert plans[2].qps == plans[3].qps


def test_a_probe_that_is_grossly_over_or_under_ends_early_but_a_certification_never_ends_early_with_good_news() -> None:
    draw = random.Random(7)
    maximum = known_maximum()
    planned = Length.of_search(CERTIFICATION).planned
    assert probe(Plan(maximum * 1.7), md1(maximum * 1.7, draw)) == (Outcome.OVER, planned // 4)
    assert probe(Plan(maximum * 0.5), md1(maximum * 0.5, draw)) == (Outcome.WITHIN, planned // 4)
    outcome, requests = probe(Plan(maximum * 0.5, certification=True), md1(maximum * 0.5, draw))
    assert (outcome, requests) == (Outcome.WITHIN, CERTIFICATION)


def test_errors_alone_stop_a_search_too() -> None:
    judge = Judge(Stoppers(error_rate=0.01), Length.of_search(CERTIFICATION), certification=False)
    outcome = None
    draw = random.Random(1)
    while outcome is None:
        outcome = judge.add(5.0, failed=draw.random() < 0.05)
    assert outcome is Outcome.OVER
    assert "failed, at most 1.000% may" in judge.explain(outcome)


def test_the_interval_of_correlated_answers_is_wider_than_that_of_independent_ones() -> None:
    independent = [index % 100 == 0 for index in range(10_000)]
    bursts = [index % 2_500 < 25 for index in range(10_000)]
    assert interval(independent).share == interval(bursts).share == 0.01
    assert interval(bursts).high > 1.3 * interval(independent).high
