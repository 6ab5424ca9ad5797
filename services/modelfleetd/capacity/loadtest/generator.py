"""Sends requests at a rate, open loop: arrivals never wait for answers, and latency counts from the intended send time,
so that nothing is hidden by a generator or a server that falls behind.

The generator watches itself: where it could not keep the rate, the probe says so and nothing about the replica.
"""

from __future__ import annotations

import asyncio
import enum
import math
import random
from collections.abc import Sequence
from typing import Protocol

from modelfleetd.capacity.domain.loadtest import Outcome, Probe, Stoppers
from modelfleetd.capacity.loadtest.search import Plan
from modelfleetd.capacity.loadtest.verdicts import SLOW_SHARE, Judge, Length
from modelfleetd.clock import Clock

WARM_UP_SECONDS = 1.0
WARM_UP_REQUESTS = 50
# An actual rate this far below the intended one is the generator's limit.
LAG = 0.02
# More than this share of requests that never reached a replica says nothing of the load.
_UNREACHED_SHARE = 0.05


class Answer(enum.Enum):
    """What became of one request."""

    OK = "OK"
    FAILED = "FAILED"
    # It did not reach a replica.
    UNREACHED = "UNREACHED"


class Sender(Protocol):
    """Sends one request and waits for its answer; never raises for a failed one, and never waits for ever."""

    async def __call__(self, body: bytes) -> Answer: ...


class Load(Protocol):
    """Puts a replica under load."""

    async def probe(self, plan: Plan) -> Probe:
        """Tries one rate until there is a verdict."""


class OpenLoop:
    """Load from this process."""

    def __init__(
        self,
        sender: Sender,
        samples: Sequence[bytes],
        stoppers: Stoppers,
        certification_requests: int,
        clock: Clock,
        draw: random.Random,
    ) -> None:
        self._sender = sender
        self._samples = samples
        self._stoppers = stoppers
        self._certification_requests = certification_requests
        self._clock = clock
        self._draw = draw

    async def probe(self, plan: Plan) -> Probe:
        """Tries one rate, with arrivals at random moments (Poisson), until there is a verdict."""
        length = Length.of_certification if plan.certification else Length.of_search
        judge = Judge(self._stoppers, length(self._certification_requests), certification=plan.certification)
        run = _Run(self, plan.qps, judge)
        outcome = await run.verdict()
        outcome, explanation = run.watch_itself(outcome)
        return Probe(
            intended_qps=plan.qps,
            actual_qps=run.actual_qps,
            requests=judge.requests,
            errors=judge.errors,
            latency_p99_ms=judge.latency_p99_ms,
            outcome=outcome,
            certification=plan.certification,
            explanation=explanation or judge.explain(outcome),
        )


class _Run:
    """One probe under way."""

    def __init__(self, load: OpenLoop, qps: float, judge: Judge) -> None:
        self._load = load
        self._qps = qps
        self._judge = judge
        self._warm_up = max(WARM_UP_REQUESTS, math.ceil(qps * WARM_UP_SECONDS))
        self._verdict: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._pending: set[asyncio.Task[None]] = set()
        # Latency, lateness of the send, and answer, by the order of sending; judged in that order, without a gap.
        self._answers: dict[int, tuple[float, float, Answer]] = {}
        # Requests that would have been slow had they been sent in time.
        self._slow_by_itself = 0
        self._next = 0
        self._unreached = 0
        self._late_ms: list[float] = []
        # (intended, actual) moments of the first and the last send.
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    async def verdict(self) -> Outcome:
        sending = asyncio.create_task(self._send_all())
        sending.add_done_callback(self._pass_on)
        try:
            return await self._verdict
        finally:
            sending.cancel()
            for task in tuple(self._pending):
                task.cancel()
            await asyncio.gather(sending, *self._pending, return_exceptions=True)

    async def _send_all(self) -> None:
        load = self._load
        clock, draw, samples = load._clock, load._draw, load._samples
        intended = clock.monotonic()
        for number in range(self._warm_up + self._judge.length.most):
            intended += draw.expovariate(self._qps)
            # Sleeping also where it is late lets answers in.
            await clock.sleep(max(0.0, intended - clock.monotonic()))
            self._sent(intended, clock.monotonic())
            task = asyncio.create_task(self._send(number, intended, samples[number % len(samples)]))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)
            task.add_done_callback(self._pass_on)

    async def _send(self, number: int, intended: float, body: bytes) -> None:
        answer = await self._load._sender(body)
        latency_ms = (self._load._clock.monotonic() - intended) * 1000
        self._answers[number] = (latency_ms, self._late_ms[number], answer)
        while (found := self._answers.pop(self._next, None)) is not None and not self._verdict.done():
            self._next += 1
            if self._next > self._warm_up:
                self._add(*found)

    def _add(self, latency_ms: float, late_ms: float, answer: Answer) -> None:
        self._unreached += answer is Answer.UNREACHED
        self._slow_by_itself += latency_ms - late_ms > (self._load._stoppers.latency_p99_ms or math.inf)
        outcome = self._judge.add(latency_ms, failed=answer is not Answer.OK)
        if outcome is not None:
            self._verdict.set_result(outcome)

    def _sent(self, intended: float, actual: float) -> None:
        self._first = self._first or (intended, actual)
        self._last = (intended, actual)
        self._late_ms.append((actual - intended) * 1000)

    def _pass_on(self, task: asyncio.Task[None]) -> None:
        """A defect ends the probe instead of leaving it to wait for ever."""
        if not task.cancelled() and (error := task.exception()) and not self._verdict.done():
            self._verdict.set_exception(error)

    @property
    def actual_qps(self) -> float:
        """The rate that was really sent, in requests/s."""
        seconds = self._last[1] - self._first[1] if self._first else 0.0
        return (len(self._late_ms) - 1) / seconds if seconds > 0 else 0.0

    def watch_itself(self, outcome: Outcome) -> tuple[Outcome, str]:
        """Returns the outcome, or what makes it worthless and why."""
        first = self._first or self._last
        planned, took = self._last[0] - first[0], self._last[1] - first[1]
        if planned > 0 and took > planned / (1 - LAG):
            return (
                Outcome.GENERATOR_LIMIT,
                f"GENERATOR_LIMIT: {self.actual_qps:.4g} of {self._qps:.4g} requests/s sent.",
            )
        if self._unreached > _UNREACHED_SHARE * max(1, self._judge.requests):
            return Outcome.TRANSPORT_ERRORS, f"TRANSPORT_ERRORS: {self._unreached} requests did not reach the replica."
        if outcome is Outcome.OVER and self._is_to_blame:
            late = sorted(self._late_ms)[math.ceil(0.99 * len(self._late_ms)) - 1]
            return Outcome.GENERATOR_LIMIT, (
                f"GENERATOR_LIMIT: 1 % of the requests were sent {late:.3g} ms late or later; counted from when they "
                "were really sent, the replica was within its stoppers."
            )
        return outcome, ""

    @property
    def _is_to_blame(self) -> bool:
        """Whether the replica would have been within its stoppers had the requests been sent in time."""
        requests, errors = self._judge.requests, self._judge.errors
        is_quick = self._slow_by_itself <= SLOW_SHARE * requests
        return is_quick and errors <= self._load._stoppers.error_rate * requests
