"""The search and its judge against simulated servers whose maximum is known, in virtual time.

The whole table, 200 searches on each server, is a benchmark: python -m tests.bench --only capacity.search.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import pytest

from modelfleetd.capacity.domain.loadtest import Cause, Outcome, Stoppers
from modelfleetd.capacity.loadtest.search import Found, NotFound
from tests.support.queueing import (
    CASES,
    Answers,
    Case,
    Floats,
    OneServer,
    Replica,
    VirtualLoad,
    double_and_bisect,
    erlang_b,
    run_search,
)

NAMES = [case.name for case in CASES]
# Those that are simulated without a loop over requests are quick; the others are certified with fewer.
FULL = {"M/D/1": 6, "cold cache": 4, "rare pauses": 2}


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_certified_rate_is_close_below_the_known_maximum_in_few_probes(case: Case) -> None:
    draw = random.Random(case.name)
    claims, probes = [], []
    requests = 50_000 if case.name in FULL else 10_000
    for seed in range(FULL.get(case.name, 3)):
        found = run_search(case, case.maximum * draw.uniform(0.75, 1.25), seed, requests)
        assert isinstance(found.result, Found), found.result
        claims.append(found.result.max_qps / case.maximum)
        probes.append(len(found.probes))
    assert max(claims) <= 1.02
    assert min(claims) >= 0.82
    assert float(np.mean(claims)) >= 0.90
    assert float(np.mean(probes)) <= 10
    assert max(probes) <= 16


def test_doubling_and_bisecting_with_point_percentiles_claims_too_much() -> None:
    # What the search is for: the same servers, the same start, and no confirmation.
    for case in (CASES[0], CASES[5]):
        claims = [double_and_bisect(case, case.maximum * 1.1, seed).max_qps / case.maximum for seed in range(12)]
        assert sum(claim > 1.02 for claim in claims) >= 3


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_long_run_finds_the_maximum_where_it_is_said_to_be(case: Case) -> None:
    """Well below it few enough are slow or fail, well above it too many; the run begins when the cache is warm."""
    for share, is_within in ((0.93, True), (1.07, False)):
        rate, load = case.maximum * share, VirtualLoad(case, np.random.default_rng(2))
        load.skip(rate / 2, 10_000)
        load.skip(rate, 5_000)
        answers = load.answers(rate, 60_000 if case.name != "rare pauses" else 300_000)
        slow = [
            np.mean(answers.latencies_ms > limit.latency_ms) / limit.share for limit in case.stoppers.latency_limits
        ]
        worst = max(*map(float, slow), float(answers.failed.mean()) / case.stoppers.error_rate)
        assert is_within == (worst < 1), (share, worst)


def test_erlang_b_is_that_of_the_tables() -> None:
    # Erlang B for 10 servers and 5 erlang, and for one server: a / (1 + a).
    assert erlang_b(10, 5.0) == pytest.approx(0.018385, abs=1e-6)
    assert erlang_b(1, 3.0) == 0.75


def test_the_batching_server_is_quicker_under_load_up_to_a_point() -> None:
    case = next(case for case in CASES if case.name == "batching")

    def typical(rate: float) -> float:
        load = VirtualLoad(case, np.random.default_rng(1))
        return float(np.median(load.answers(rate, 20_000).latencies_ms))

    assert typical(5.0) > 1.3 * typical(137.0)
    assert typical(165.0) > 1.2 * typical(137.0)


def test_a_pause_delays_what_arrives_in_it_until_its_end() -> None:
    case = next(case for case in CASES if case.name == "rare pauses")
    load = VirtualLoad(case, np.random.default_rng(1))
    answers = load.answers(100.0, 100_000)
    late = answers.latencies_ms[answers.latencies_ms > 10.0]
    # 200 ms in each 20.2 s, and what is left of the queue after it; nobody waits longer than the pause and the queue.
    assert len(late) / 100_000 == pytest.approx(0.2 / 20.2 / (1 - 100 * 0.002), rel=0.1)
    assert 190.0 < late.max() < 230.0
    assert float(np.median(late)) == pytest.approx(100.0, rel=0.1)


def test_a_cold_cache_spoils_a_search_that_does_not_wait_for_it() -> None:
    case = next(case for case in CASES if case.name == "cold cache")
    found = run_search(case, case.maximum * 0.9, seed=1)
    assert isinstance(found.result, Found)
    assert 0.9 <= found.result.max_qps / case.maximum <= 1.02
    assert found.probes[0].outcome in {Outcome.WITHIN, Outcome.UNDECIDED}
    cold = VirtualLoad(case, np.random.default_rng(1)).answers(case.maximum * 0.9, 5_000)
    assert float(np.mean(cold.latencies_ms > 30.0)) > 0.5


class Failing:
    """Answers a share of the requests with an error, however many there are."""

    def __init__(self, inner: Replica, share: float, draw: np.random.Generator) -> None:
        self._inner, self._share, self._draw = inner, share, draw

    def serve(self, arrivals: Floats) -> Answers:
        answers = self._inner.serve(arrivals)
        return dataclasses.replace(answers, failed=self._draw.random(len(arrivals)) < self._share)


def constant(seconds: float) -> Callable[[Floats], Floats]:
    return lambda arrivals: np.full(len(arrivals), seconds)


@pytest.mark.parametrize(
    ("make", "cause", "words"),
    [
        (lambda draw: Failing(OneServer(constant(0.002)), 0.03, draw), Cause.UNRELATED_ERRORS, "it is not the load"),
        (lambda draw: OneServer(constant(0.1)), Cause.NOTHING_WITHIN, "Not even 0.1 requests/s"),
        # Each second makes it three percent slower, from next to nothing.
        (
            lambda draw: OneServer(lambda arrivals: 1e-9 * 1.03 ** np.minimum(arrivals, 600)),
            Cause.UNSTABLE_LATENCY,
            "did not settle",
        ),
    ],
)
def test_a_search_on_a_server_without_a_maximum_says_why(
    make: Callable[[np.random.Generator], Replica], cause: Cause, words: str
) -> None:
    found = run_search(Case("", make, Stoppers(latency_p99_ms=60.0), 0.0), 50.0, seed=1)
    assert isinstance(found.result, NotFound)
    assert found.result.cause is cause
    assert words in str(found.result)
    assert len(found.probes) <= 10
