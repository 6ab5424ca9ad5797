"""The search for the highest rate that a replica keeps: gallop, bisect in log space, certify, step down.

A `Search` says what to probe next, is given what the probe found, and ends with a result. No I/O, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from modelfleetd.capacity.domain.loadtest import DEFAULT_CERTIFICATION_REQUESTS, Cause, Outcome, Probe, Stoppers
from modelfleetd.capacity.loadtest.histogram import Histogram
from modelfleetd.capacity.loadtest.verdicts import Length

FIRST_STEP = math.log(1.1)
STEP_GROWTH = 1.6
BRACKET = math.log(1.05)
STEP_DOWN = 0.98
# Up to this part of what may be slow or fail, a probe that stays undecided counts as within. The certification decides:
# were all undecided ones beyond, the result would be lower by several percent for replicas whose tail is flat.
LEAN = 0.95
LOWEST_QPS = 0.1
HIGHEST_QPS = 1e6
_MOST_STEPS_DOWN = 12
# A probe that says nothing of the replica is repeated this often.
_REPEATS = 2
# Errors that are no fewer at this fraction of a rate do not come from the load. A generator that cannot send it either
# will not send any.
_MUCH_LOWER = 0.25
_NO_FEWER = 0.5

# How long a probe warms up for in a test of the default length; shorter tests take their share of it. The clone's first
# warm-up outlasts a cold cache and goes on until the latency has settled.
FIRST_WARM_UP_SECONDS = 75.0
WARM_UP_SECONDS = 3.0
CERTIFICATION_WARM_UP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The next probe.

    Attributes:
        warm_up_seconds: of the load before it that is thrown away.
        settle: the clone is new: warm it up below the rate, until its latency has settled.
    """

    qps: float
    certification: bool = False
    warm_up_seconds: float = WARM_UP_SECONDS
    settle: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The highest rate that a fresh run confirmed."""

    max_qps: float


@dataclass(frozen=True, slots=True)
class NotFound:
    """The search ended without a result, at this rate."""

    cause: Cause
    qps: float
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} {self.cause.advice}"


@dataclass(frozen=True, slots=True)
class Remaining:
    """What a search still takes, roughly."""

    requests: int
    seconds: float


Result: TypeAlias = Found | NotFound
_Steps: TypeAlias = Generator[Plan, Probe, Result]


class Search:
    """One search under way.

    Attributes:
        plan: the next probe; None at the end.
        result: None before the end.
        highest_within_qps: the highest rate that it takes to be within so far; 0 before the first.
        lowest_beyond_qps: the lowest rate above it that it takes to be beyond so far; 0 before the first.
    """

    def __init__(
        self,
        start_qps: float,
        stoppers: Stoppers,
        certification_requests: int = DEFAULT_CERTIFICATION_REQUESTS,
        known: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Begins at a rate: the predecessor's certificate, or a guess; or from what is known already.

        Args:
            known: the highest rate within and the lowest one beyond that an interrupted search has found; 0 for an end
                that it has not found. The search goes on from them, and does not look at the start.
        """
        self._start = start_qps
        self._stoppers = stoppers
        self._certification_requests = certification_requests
        self._scale = certification_requests / DEFAULT_CERTIFICATION_REQUESTS
        self._is_new = True
        self._failing: list[Probe] = []
        # Rates that the generator cannot send: no higher ones are tried. They say nothing of the replica.
        self._not_sent: list[float] = []
        self.result: Result | None = None
        self.highest_within_qps, self.lowest_beyond_qps = known
        self._steps = self._run()
        self.plan: Plan | None = next(self._steps)

    def add(self, probe: Probe) -> None:
        """Takes what the planned probe found; sets the next plan, or the result."""
        try:
            self.plan = self._steps.send(probe)
        except StopIteration as end:
            self.plan, self.result = None, end.value

    def length(self, plan: Plan) -> Length:
        """Returns how many requests a probe takes."""
        of = Length.of_certification if plan.certification else Length.of_search
        return of(plan.qps, self._certification_requests)

    @property
    def remaining(self) -> Remaining:
        """What is left to do as far as one can tell: the planned probe, the bisection, and the certification."""
        if self.plan is None:
            return Remaining(0, 0.0)
        rate = self.plan.qps
        plans = [self.plan]
        if not self.plan.certification:
            within, above = self.highest_within_qps, self._upper_end
            # Before there is a bracket: one more step, to one that is as wide as the second step.
            width = math.log(above / within) if within and above else FIRST_STEP * STEP_GROWTH
            more = max(0, math.ceil(math.log2(width / BRACKET))) - bool(within and above)
            plans += [Plan(rate)] * max(0, more) + [Plan(rate, certification=True)]
        requests = sum(self.length(plan).planned for plan in plans)
        warm_ups = sum(plan.warm_up_seconds for plan in plans)
        return Remaining(requests + math.ceil(warm_ups * rate), requests / rate + warm_ups)

    @property
    def _has_bracket(self) -> bool:
        """Whether there is a rate that is within, and one above it that is beyond or that cannot be sent."""
        return bool(self.highest_within_qps and self._upper_end)

    @property
    def _upper_end(self) -> float:
        """The lowest rate that is beyond or that the generator cannot send; 0 before the first."""
        beyond = [self.lowest_beyond_qps] if self.lowest_beyond_qps else []
        return min(beyond + self._not_sent, default=0.0)

    def _run(self) -> _Steps:
        ended = None if self._has_bracket else (yield from self._gallop())
        while ended is None and math.log(self._upper_end / self.highest_within_qps) > BRACKET:
            ended = yield from self._try(math.sqrt(self.highest_within_qps * self._upper_end))
        if ended is None and self._upper_end in self._not_sent:
            ended = self._kept_all_that_was_sent()
        return ended or (yield from self._certify())

    def _gallop(self) -> Generator[Plan, Probe, NotFound | None]:
        """Finds a rate that is within and one that is not, in steps that grow; one end may be known."""
        rate, step = self._start, FIRST_STEP
        if known := self.highest_within_qps or self.lowest_beyond_qps:
            rate, step = self._next_rate(known, step), step * STEP_GROWTH
        while True:
            ended = yield from self._try(rate)
            if ended is not None:
                return ended
            if self._has_bracket:
                return None
            if rate >= HIGHEST_QPS and self.highest_within_qps:
                return NotFound(Cause.NOTHING_BEYOND, rate, f"Even {rate:.4g} requests/s were within the stoppers.")
            if rate <= LOWEST_QPS and self.lowest_beyond_qps:
                return NotFound(Cause.NOTHING_WITHIN, rate, f"Not even {rate:.4g} requests/s were within the stoppers.")
            rate, step = self._next_rate(rate, step), step * STEP_GROWTH

    def _next_rate(self, rate: float, step: float) -> float:
        """Returns a rate above one that is within, or below one that is not."""
        return min(HIGHEST_QPS, max(LOWEST_QPS, rate * math.exp(step if self.highest_within_qps else -step)))

    def _try(self, rate: float) -> Generator[Plan, Probe, NotFound | None]:
        """Probes a rate, and moves an end of the bracket to it."""
        probe = yield from self._probe(rate)
        if isinstance(probe, NotFound):
            return self._not_sendable(probe) if probe.cause is Cause.GENERATOR_LIMIT else probe
        if self._counts_as_within(probe):
            self.highest_within_qps = rate
        else:
            self.lowest_beyond_qps = rate
            return self._unrelated_errors(probe)
        return None

    def _not_sendable(self, found: NotFound) -> NotFound | None:
        """Tries no higher rate than this any more; it is the end where a much lower one could not be sent either."""
        self._not_sent.append(found.qps)
        is_much_lower = found.qps <= max(LOWEST_QPS, _MUCH_LOWER * max(self._not_sent))
        return found if is_much_lower and not self.highest_within_qps else None

    def _kept_all_that_was_sent(self) -> NotFound:
        kept, not_sent = self.highest_within_qps, self._upper_end
        cause, why = _BLIND[Outcome.GENERATOR_LIMIT]
        return NotFound(cause, kept, f"{kept:.4g}/s was kept; the generator could not send {not_sent:.4g}/s: {why}.")

    def _certify(self) -> _Steps:
        rate = self.highest_within_qps
        for _ in range(_MOST_STEPS_DOWN):
            probe = yield from self._probe(rate, certification=True)
            if isinstance(probe, NotFound):
                return probe
            if probe.outcome is Outcome.WITHIN:
                self.highest_within_qps = rate
                return Found(rate)
            self.lowest_beyond_qps = rate
            rate *= STEP_DOWN
            self.highest_within_qps = min(self.highest_within_qps, rate)
        reason = f"No rate down to {rate:.4g} requests/s was confirmed by a fresh run, although short ones were within."
        return NotFound(Cause.UNSTABLE_LATENCY, rate, reason)

    def _counts_as_within(self, probe: Probe) -> bool:
        """One that is undecided at its end counts as what it leans to, with a margin; the certification decides."""
        if probe.outcome is not Outcome.UNDECIDED:
            return probe.outcome is Outcome.WITHIN
        latencies = Histogram.decode(probe.histogram)
        limits = self._stoppers.latency_limits
        is_quick = all(latencies.share_above(limit.latency_ms) <= LEAN * limit.share for limit in limits)
        return is_quick and probe.errors <= LEAN * self._stoppers.error_rate * probe.requests

    def _probe(self, rate: float, *, certification: bool = False) -> Generator[Plan, Probe, Probe | NotFound]:
        """Probes a rate, again where the probe says nothing of the replica."""
        for _ in range(1 + _REPEATS):
            first, self._is_new = self._is_new, False
            seconds = CERTIFICATION_WARM_UP_SECONDS if certification else WARM_UP_SECONDS
            seconds = FIRST_WARM_UP_SECONDS if first else seconds
            probe = yield Plan(rate, certification, seconds * self._scale, settle=first)
            if probe.outcome not in _BLIND:
                return probe
        cause, reason = _BLIND[probe.outcome]
        return NotFound(cause, rate, f"At {rate:.4g} requests/s {reason}.")

    def _unrelated_errors(self, probe: Probe) -> NotFound | None:
        """Says whether errors are as frequent at a much lower rate: then no lower one will help."""
        share = probe.errors / max(1, probe.requests)
        if share <= self._stoppers.error_rate:
            return None
        self._failing.append(probe)
        for other in self._failing:
            is_much_lower = probe.intended_qps <= _MUCH_LOWER * other.intended_qps
            if is_much_lower and share >= _NO_FEWER * other.errors / other.requests:
                reason = (
                    f"{share:.2%} of the requests failed at {probe.intended_qps:.4g} requests/s, "
                    f"{other.errors / other.requests:.2%} at {other.intended_qps:.4g}: it is not the load."
                )
                return NotFound(Cause.UNRELATED_ERRORS, probe.intended_qps, reason)
        return None


_BLIND = {
    Outcome.GENERATOR_LIMIT: (Cause.GENERATOR_LIMIT, "the load generator was the limit, not the replica"),
    Outcome.TRANSPORT_ERRORS: (Cause.UNRELATED_ERRORS, "requests did not reach the replica"),
    Outcome.UNSTABLE: (Cause.UNSTABLE_LATENCY, "the latency did not settle while the rate stood still"),
}
