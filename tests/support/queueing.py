"""Simulated replicas whose highest rate is known, in virtual time, and the real judge and search run against them.

A replica is given moments of arrival and answers in their order. Where there is a formula its maximum comes from that;
else from one very long simulation, which `simulated_maximum` makes again.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelfleetd.capacity.domain.loadtest import Probe, Stoppers
from modelfleetd.capacity.loadtest.generator import WARM_UP_REQUESTS, WARM_UP_SHARE
from modelfleetd.capacity.loadtest.search import Plan, Result, Search
from modelfleetd.capacity.loadtest.verdicts import Judge, Length, Settling

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers in the order of arrival.

    Attributes:
        ends: when each was given, in seconds.
    """

    arrivals: Floats
    ends: Floats
    failed: Flags

    @property
    def latencies_ms(self) -> Floats:
        """From the arrival to the answer."""
        return (self.ends - self.arrivals) * 1000


class Replica(Protocol):
    """One replica, with whatever state it has by now."""

    def serve(self, arrivals: Floats) -> Answers:
        """Takes further arrivals, in seconds from its start; answers what is decided by now, in order."""


class OneServer:
    """One request after the other."""

    def __init__(self, service: Callable[[Floats], Floats]) -> None:
        """Makes an idle one; `service` gives the seconds that requests which arrive at those moments take."""
        self._service = service
        self._free = 0.0

    def serve(self, arrivals: Floats) -> Answers:
        """Lindley's recursion, as a running maximum."""
        service = self._service(arrivals)
        done = np.cumsum(service)
        ends = done + np.maximum.accumulate(np.maximum(arrivals - (done - service), self._free))
        self._free = float(ends[-1])
        return Answers(arrivals, ends, np.zeros(len(arrivals), dtype=np.bool_))


class ManyServers:
    """The longest-waiting request goes to whichever of several workers is free first."""

    def __init__(self, workers: int, service: Callable[[int], Floats]) -> None:
        """Makes an idle one; `service` gives the seconds that so many requests take."""
        self._free = [0.0] * workers
        self._service = service

    def serve(self, arrivals: Floats) -> Answers:
        free, replace = self._free, heapq.heapreplace
        ends = []
        for arrival, seconds in zip(arrivals.tolist(), self._service(len(arrivals)).tolist(), strict=True):
            first = free[0]
            end = (arrival if arrival > first else first) + seconds
            replace(free, end)
            ends.append(end)
        return Answers(arrivals, np.array(ends), np.zeros(len(arrivals), dtype=np.bool_))


class Refusing:
    """Several workers and no queue: who finds them busy is refused at once. It errs before it slows."""

    def __init__(self, workers: int, service: Callable[[int], Floats]) -> None:
        """Makes an idle one; `service` gives the seconds that so many requests take."""
        self._free = [0.0] * workers
        self._service = service

    def serve(self, arrivals: Floats) -> Answers:
        free, replace = self._free, heapq.heapreplace
        ends, failed = [], []
        for arrival, seconds in zip(arrivals.tolist(), self._service(len(arrivals)).tolist(), strict=True):
            is_refused = free[0] > arrival
            if is_refused:
                ends.append(arrival + 0.0005)
            else:
                replace(free, arrival + seconds)
                ends.append(arrival + seconds)
            failed.append(is_refused)
        return Answers(arrivals, np.array(ends), np.array(failed))


class Batching:
    """Gathers requests into batches, which end when they are full or have waited: quicker under load, up to a point."""

    def __init__(self, most: int, wait: float, once: float, each: float) -> None:
        """Makes an idle one.

        Args:
            most: requests in a batch.
            wait: seconds that the first of a batch waits for others at the most.
            once: seconds that a batch takes,
            each: and for each request in it.
        """
        self._most, self._wait, self._once, self._each = most, wait, once, each
        self._free = 0.0
        self._waiting: list[float] = []

    def serve(self, arrivals: Floats) -> Answers:
        waiting = self._waiting + arrivals.tolist()
        most, wait, free = self._most, self._wait, self._free
        ends: list[float] = []
        begin = 0
        # A batch is decided where the requests that could join it are known.
        while begin + most <= len(waiting):
            start = max(free, min(waiting[begin] + wait, waiting[begin + most - 1]))
            end = bisect.bisect_right(waiting, start, begin, begin + most)
            free = start + self._once + self._each * (end - begin)
            ends.extend([free] * (end - begin))
            begin = end
        self._free, self._waiting = free, waiting[begin:]
        return Answers(np.array(waiting[:begin]), np.array(ends), np.zeros(begin, dtype=np.bool_))


class Pausing:
    """Another replica that stops altogether now and then: for whatever is inside, time stands still."""

    def __init__(self, inner: Replica, seconds: float, gaps: Callable[[], float]) -> None:
        """Makes one.

        Args:
            inner: what works in between.
            seconds: of a pause.
            gaps: gives the seconds from the end of a pause to the next.
        """
        self._inner, self._seconds, self._gaps = inner, seconds, gaps
        self._begins = [gaps()]

    def serve(self, arrivals: Floats) -> Answers:
        # Answers may come after pauses that no arrival has seen yet.
        while self._begins[-1] < float(arrivals[-1]) + 600.0:
            self._begins.append(self._begins[-1] + self._seconds + self._gaps())
        self._forget(float(arrivals[0]) - 600.0)
        begins = np.array(self._begins)
        # Pauses in the inner replica's own time, in which they last no time at all.
        own_begins = begins - self._seconds * np.arange(self._gone, self._gone + len(begins))
        before = np.searchsorted(begins, arrivals, side="right")
        into = np.where(before > 0, arrivals - begins[np.maximum(before - 1, 0)], np.inf)
        own = arrivals - self._seconds * (self._gone + before) + np.maximum(0.0, self._seconds - into)
        answers = self._inner.serve(own)
        ends = answers.ends + self._seconds * (self._gone + np.searchsorted(own_begins, answers.ends, side="left"))
        return Answers(arrivals, ends, answers.failed)

    _gone = 0

    def _forget(self, moment: float) -> None:
        gone = bisect.bisect_left(self._begins, moment)
        self._gone += gone
        del self._begins[:gone]


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of replica with the rate up to which it keeps its stoppers.

    Attributes:
        make: makes a fresh one.
        maximum: of `stoppers`, in requests/s.
    """

    name: str
    make: Callable[[np.random.Generator], Replica]
    stoppers: Stoppers
    maximum: float


def md1_maximum(service_ms: float, limit_ms: float, share: float = 0.01) -> float:
    """Returns the rate at which that share takes longer in M/D/1 (Erlang), in requests/s."""
    ratio = limit_ms / service_ms - 1
    return _highest(lambda load: 1 - _waiting_at_most(ratio, Fraction(load)) <= share) * 1000 / service_ms


def _waiting_at_most(ratio: float, load: Fraction) -> float:
    """P(wait ≤ ratio service times) of M/D/1 at a load, exact in fractions because its terms alternate."""
    wait = Fraction(ratio)
    total = Fraction(0)
    for k in range(math.floor(wait) + 1):
        part = load * (k - wait)
        total += Fraction(part**k, math.factorial(k)) * Fraction(math.exp(-float(part)))
    return float((1 - load) * total)


def mmc_maximum(workers: int, service_ms: float, limit_ms: float, share: float = 0.01) -> float:
    """Returns the rate at which that share takes longer in M/M/c (Erlang C), in requests/s."""
    service = 1000 / service_ms
    limit = limit_ms / 1000

    def is_within(load: float) -> bool:
        offered = load * workers
        busy = erlang_b(workers, offered)
        waits = busy / (1 - load * (1 - busy))
        # The time in the queue is exponential for those who wait; the sum of it and of the service is a mixture.
        drain = workers * service * (1 - load)
        apart = service - drain
        longer = math.exp(-service * limit)
        if abs(apart) > 1e-9 * service:
            both = (service * math.exp(-drain * limit) - drain * longer) / apart
        else:
            both = (1 + service * limit) * longer
        return (1 - waits) * longer + waits * both <= share

    return _highest(is_within) * workers * service


def erlang_b(workers: int, offered: float) -> float:
    """Returns the share that finds all workers busy where nobody queues, whatever the distribution of the service."""
    inverse = 1.0
    for count in range(1, workers + 1):
        inverse = 1 + inverse * count / offered
    return 1 / inverse


def refusing_maximum(workers: int, service_ms: float, share: float) -> float:
    """Returns the rate at which that share is refused, in requests/s."""
    return _highest(lambda load: erlang_b(workers, load * workers) <= share) * workers * 1000 / service_ms


def _highest(is_within: Callable[[float], bool]) -> float:
    low, high = 0.001, 0.9999
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_within(middle) else (low, middle)
    return low


def simulated_maximum(case: Case, requests: int, seed: int = 1) -> float:
    """Returns the rate at which the worst share is as high as it may be, to 0.1 %, in runs of so many requests."""

    def is_within(rate: float) -> bool:
        load = VirtualLoad(case, np.random.default_rng(seed))
        load.skip(rate, requests // 100)
        limits = case.stoppers.latency_limits
        beyond, errors, count = np.zeros(len(limits)), 0, 0
        while count < requests:
            answers = load.answers(rate, 100_000)
            latencies = answers.latencies_ms
            beyond += [np.count_nonzero(answers.failed | (latencies > limit.latency_ms)) for limit in limits]
            errors += int(answers.failed.sum())
            count += len(latencies)
        is_quick = all(found <= limit.share * count for found, limit in zip(beyond, limits, strict=True))
        return is_quick and errors <= case.stoppers.error_rate * count

    low, high = case.maximum * 0.9, case.maximum * 1.1
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_within(middle) else (low, middle)
    return math.sqrt(low * high)


class VirtualLoad:
    """Load on a simulated replica: what `OpenLoop` does, in virtual time."""

    def __init__(self, case: Case, draw: np.random.Generator, certification_requests: int = 50_000) -> None:
        self._case = case
        self._draw = draw
        self._certification_requests = certification_requests
        self._replica = case.make(draw)
        self._now = 0.0
        self._end = 0.0
        self.sent = 0

    @property
    def seconds(self) -> float:
        """That have passed."""
        return self._now

    def answers(self, qps: float, count: int) -> Answers:
        """Sends requests at random moments until so many are answered; returns those."""
        parts = [self._kept] if len(self._kept.arrivals) else []
        have = len(self._kept.arrivals)
        while have < count:
            arrivals = self._now + np.cumsum(self._draw.exponential(1 / qps, count - have))
            self._now = float(arrivals[-1])
            self.sent += len(arrivals)
            found = self._replica.serve(arrivals)
            parts.append(found)
            have += len(found.arrivals)
        whole = Answers(*(np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS))
        self._kept = Answers(*(getattr(whole, name)[count:] for name in _COLUMNS))
        self._end = max(self._end, float(whole.ends.max()))
        return Answers(*(getattr(whole, name)[:count] for name in _COLUMNS))

    _kept = Answers(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.bool_))

    def skip(self, qps: float, count: int) -> None:
        """Sends requests whose answers do not matter."""
        for _ in range(0, count, 10_000):
            self.answers(qps, min(count, 10_000))

    def rest(self) -> None:
        """Waits until everything is answered."""
        self._kept = VirtualLoad._kept
        self._now = max(self._now, self._end)

    def probe(self, plan: Plan) -> Probe:
        """Tries one rate until there is a verdict."""
        if plan.settle:
            self._settle(plan)
        of = Length.of_certification if plan.certification else Length.of_search
        length = of(plan.qps, self._certification_requests)
        judge = Judge(self._case.stoppers, length, certification=plan.certification)
        self.skip(plan.qps, max(WARM_UP_REQUESTS, math.ceil(plan.qps * plan.warm_up_seconds)))
        outcome = None
        while outcome is None:
            answers = self.answers(plan.qps, judge.until_check)
            outcome = judge.add_batches(answers.latencies_ms, answers.failed)
        self.rest()
        return Probe(
            intended_qps=plan.qps,
            actual_qps=plan.qps,
            requests=judge.requests,
            errors=judge.errors,
            latency_p99_ms=judge.histogram.percentile_ms(99),
            outcome=outcome,
            certification=plan.certification,
            explanation=judge.explain(outcome),
            histogram=judge.histogram.encode(),
        )

    def _settle(self, plan: Plan) -> None:
        settling, begin = Settling(plan.warm_up_seconds), self._now
        while True:
            answers = self.answers(plan.qps * WARM_UP_SHARE, 500)
            for end, latency in zip(answers.ends.tolist(), answers.latencies_ms.tolist(), strict=True):
                if settling.add(end - begin, latency):
                    self.rest()
                    return


_COLUMNS = ("arrivals", "ends", "failed")


@dataclass(frozen=True, slots=True)
class Run:
    """What one search found, and what it took."""

    result: Result
    probes: tuple[Probe, ...]
    requests: int
    seconds: float


def run_search(case: Case, start_qps: float, seed: int, certification_requests: int = 50_000) -> Run:
    """Runs the real search and judge against a simulated replica."""
    load = VirtualLoad(case, np.random.default_rng(seed), certification_requests)
    search = Search(start_qps, case.stoppers, certification_requests)
    probes = []
    while (plan := search.plan) is not None:
        probes.append(load.probe(plan))
        search.add(probes[-1])
    assert search.result is not None
    return Run(search.result, tuple(probes), load.sent, load.seconds)


@dataclass(frozen=True, slots=True)
class Believed:
    """What doubling and bisecting took to be the maximum, and what that took."""

    max_qps: float
    probes: int
    requests: int
    seconds: float


def double_and_bisect(case: Case, start_qps: float, seed: int) -> Believed:
    """Searches as common tools do: doubles or halves, bisects to 5 %, and believes each percentile as it is."""
    load = VirtualLoad(case, np.random.default_rng(seed))
    probes = 0

    def is_within(rate: float) -> bool:
        nonlocal probes
        probes += 1
        load.skip(rate, max(WARM_UP_REQUESTS, math.ceil(rate * 3)))
        count = max(5_000, math.ceil(rate * 10))
        answers = load.answers(rate, count)
        load.rest()
        latencies = np.sort(answers.latencies_ms)
        is_quick = all(
            latencies[math.ceil(count * (1 - limit.share)) - 1] <= limit.latency_ms
            for limit in case.stoppers.latency_limits
        )
        return is_quick and int(answers.failed.sum()) <= case.stoppers.error_rate * count

    within = beyond = None
    rate = start_qps
    while within is None or beyond is None:
        if is_within(rate):
            within, rate = rate, rate * 2
        else:
            beyond, rate = rate, rate / 2
    while beyond / within > 1.05:
        middle = (within + beyond) / 2
        within, beyond = (middle, beyond) if is_within(middle) else (within, middle)
    return Believed(within, probes, load.sent, load.seconds)


def _exponential(draw: np.random.Generator, seconds: float) -> Callable[[int], Floats]:
    return lambda count: draw.exponential(seconds, count)


def _lognormal(draw: np.random.Generator, mean: float, sigma: float) -> Callable[[int], Floats]:
    return lambda count: draw.lognormal(math.log(mean) - sigma * sigma / 2, sigma, count)


def _cold(seconds: float) -> Callable[[Floats], Floats]:
    return lambda arrivals: np.where(arrivals < 60.0, 3 * seconds, seconds)


def _pausing(draw: np.random.Generator) -> Pausing:
    inner = OneServer(lambda arrivals: np.full(len(arrivals), 0.002))
    return Pausing(inner, 0.2, lambda: float(draw.uniform(16.0, 24.0)))


# The maxima that are numbers were simulated: 18,000,000 requests at three rates for M/G/16, `simulated_maximum` with
# 10,000,000 requests at each rate for batching and for pauses.
CASES = (
    Case(
        "M/D/1",
        lambda draw: OneServer(lambda arrivals: np.full(len(arrivals), 0.010)),
        Stoppers(latency_p99_ms=60.0),
        md1_maximum(10.0, 60.0),
    ),
    Case(
        "M/M/8",
        lambda draw: ManyServers(8, _exponential(draw, 0.050)),
        Stoppers(latency_p99_ms=300.0),
        mmc_maximum(8, 50.0, 300.0),
    ),
    Case(
        "M/G/16, lognormal",
        lambda draw: ManyServers(16, _lognormal(draw, 0.016, 1.0)),
        Stoppers(latency_p99_ms=130.0),
        925.2,
    ),
    Case(
        "batching",
        lambda draw: Batching(16, 0.200, 0.032, 0.004),
        Stoppers(latency_p99_ms=320.0),
        154.3,
    ),
    Case(
        "cold cache",
        lambda draw: OneServer(_cold(0.004)),
        Stoppers(latency_p99_ms=30.0),
        md1_maximum(4.0, 30.0),
    ),
    Case("rare pauses", _pausing, Stoppers(latency_p99_ms=170.0), 399.0),
    Case(
        "errors first",
        lambda draw: Refusing(16, _exponential(draw, 0.050)),
        Stoppers(latency_p99_ms=375.0),
        refusing_maximum(16, 50.0, 0.001),
    ),
)
