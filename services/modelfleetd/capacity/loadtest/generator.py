"""Sends requests at a rate, open loop: arrivals never wait for answers, and latency counts from the intended send time,
so that nothing is hidden by a generator or a server that falls behind.

The generator watches itself: where it could not keep the rate, the probe says so and nothing about the replica.
"""

from __future__ import annotations

import asyncio
import enum
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np

from modelfleetd.capacity.domain.loadtest import DEFAULT_CERTIFICATION_REQUESTS, Outcome, Probe, Stoppers
from modelfleetd.capacity.loadtest.histogram import Histogram
from modelfleetd.capacity.loadtest.search import Plan
from modelfleetd.capacity.loadtest.verdicts import Judge, Length, Settling
from modelfleetd.clock import Clock

WARM_UP_REQUESTS = 50
# A new clone is warmed up at this share of the first rate: a guess that is too high would only fill its queue.
WARM_UP_SHARE = 0.7
# An actual rate this far below the intended one is the generator's limit.
LAG = 0.02
# More than this share of requests that never reached a replica says nothing of the load.
_UNREACHED_SHARE = 0.05
_CHUNK = 256


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

    async def warm_up(self, plan: Plan) -> None:
        """Makes a new clone ready for being measured."""

    async def probe(self, plan: Plan) -> Probe:
        """Tries one rate until there is a verdict."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """One request that was answered.

    Attributes:
        late_ms: after the intended moment it was sent.
        delay_ms: that the generator itself has added to the latency, as far as it can tell: it sent late, and it was
            late with its own work when the answer came.
    """

    latency_ms: float
    late_ms: float
    delay_ms: float
    answer: Answer


class OpenLoop:
    """Load from this process."""

    def __init__(
        self,
        sender: Sender,
        samples: Sequence[bytes] | AsyncIterator[bytes],
        stoppers: Stoppers,
        certification_requests: int,
        clock: Clock,
        draw: random.Random,
        warm_up_seconds: float | None = None,
    ) -> None:
        """Makes the load.

        Args:
            sender: of requests to the replica.
            samples: what is sent, in this order, samples over and over; an iterator must not end.
            stoppers: that the replica is held against.
            certification_requests: of the fresh run.
            clock: by which requests are sent.
            draw: of the moments at which they are.
            warm_up_seconds: of a new clone; None: until its latency has settled.
        """
        self.sender = sender
        self.requests = _over_and_over(samples) if isinstance(samples, Sequence) else samples
        self._warm_up_seconds = warm_up_seconds
        self.clock = clock
        self.draw = draw
        self._stoppers = stoppers
        self._certification_requests = certification_requests
        self._scale = certification_requests / DEFAULT_CERTIFICATION_REQUESTS

    async def probe(self, plan: Plan) -> Probe:
        """Tries one rate, with arrivals at random moments (Poisson), until there is a verdict."""
        if plan.settle:
            await self.warm_up(plan)
        of = Length.of_certification if plan.certification else Length.of_search
        judge = Judge(self._stoppers, of(plan.qps, self._certification_requests), certification=plan.certification)
        watch = _Watch(judge, self._stoppers, max(WARM_UP_REQUESTS, math.ceil(plan.qps * plan.warm_up_seconds)))
        stream = _Stream(self, plan.qps, watch.take)
        await stream.run()
        outcome, explanation = watch.outcome(stream)
        found = judge.histogram
        return Probe(
            intended_qps=plan.qps,
            actual_qps=stream.actual_qps,
            rate_ratio=stream.rate_ratio,
            requests=judge.requests,
            errors=judge.errors,
            latency_p50_ms=found.percentile_ms(50),
            latency_p90_ms=found.percentile_ms(90),
            latency_p99_ms=found.percentile_ms(99),
            latency_p999_ms=found.percentile_ms(99.9),
            send_late_p99_ms=watch.late_p99_ms,
            outcome=outcome,
            certification=plan.certification,
            explanation=explanation,
            start_time=stream.start_time,
            end_time=self.clock.now(),
            histogram=found.encode(),
        )

    async def warm_up(self, plan: Plan) -> None:
        """Sends requests below the planned rate, for the time that was asked for or until the latency has settled."""
        settling = Settling(plan.warm_up_seconds)
        begin = self.clock.monotonic()

        def take(found: _Answered) -> bool:
            elapsed = self.clock.monotonic() - begin
            if self._warm_up_seconds is not None:
                return elapsed >= self._warm_up_seconds
            return settling.add(elapsed, found.latency_ms)

        await _Stream(self, plan.qps * WARM_UP_SHARE, take).run()


async def _over_and_over(samples: Sequence[bytes]) -> AsyncIterator[bytes]:
    while True:
        for sample in samples:
            yield sample


class _Stream:
    """Requests at one rate until whoever takes the answers has enough; he gets them in the order of sending."""

    def __init__(self, load: OpenLoop, qps: float, take: Callable[[_Answered], bool]) -> None:
        self._load = load
        self._qps = qps
        self._take = take
        self._enough = asyncio.get_running_loop().create_future()
        self._pending: set[asyncio.Task[None]] = set()
        # Those whose turn has not come: a request before them is still under way.
        self._answers: dict[int, _Answered] = {}
        self._next = 0
        self.sent = 0
        self.start_time: datetime | None = None
        # When the next request is due, and (intended, actual) moments of the first and the last send.
        self._due = 0.0
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    async def run(self) -> None:
        """Returns when there is enough and everything that was sent is answered. A defect of the sender is raised."""
        sending = asyncio.create_task(self._send_all())
        sending.add_done_callback(self._pass_on)
        try:
            await self._enough
            sending.cancel()
            # The replica is at rest before the next rate.
            await asyncio.gather(*self._pending)
        finally:
            sending.cancel()
            for task in tuple(self._pending):
                task.cancel()
            await asyncio.gather(sending, *self._pending, return_exceptions=True)

    async def _send_all(self) -> None:
        clock, draw, requests = self._load.clock, self._load.draw, self._load.requests
        self.start_time = clock.now()
        self._due = clock.monotonic()
        while True:
            # Before it is due: a recording may have to be read first.
            body = await anext(requests)
            self._due += draw.expovariate(self._qps)
            # Sleeping also where it is late lets answers in.
            await clock.sleep(max(0.0, self._due - clock.monotonic()))
            now = clock.monotonic()
            self._last = (self._due, now)
            self._first = self._first or self._last
            task = asyncio.create_task(self._send(self.sent, self._due, now, body))
            self.sent += 1
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)
            task.add_done_callback(self._pass_on)

    async def _send(self, number: int, due: float, now: float, body: bytes) -> None:
        answer = await self._load.sender(body)
        end = self._load.clock.monotonic()
        late = now - due
        delay = late + self._behind(end)
        self._answers[number] = _Answered((end - due) * 1000, late * 1000, delay * 1000, answer)
        while not self._enough.done() and (found := self._answers.pop(self._next, None)) is not None:
            self._next += 1
            if self._take(found):
                self._enough.set_result(None)

    def _behind(self, now: float) -> float:
        """Says how late this process is with everything, and so with an answer, as far as its sends tell.

        Either the next send is overdue, or the last one was, not longer ago than it was late.
        """
        due, sent = self._last
        last = sent - due
        return max(now - self._due, last if now - sent <= last else 0.0, 0.0)

    def _pass_on(self, task: asyncio.Task[None]) -> None:
        """A defect ends the stream instead of leaving it to wait for ever."""
        if not task.cancelled() and (error := task.exception()) and not self._enough.done():
            self._enough.set_exception(error)

    @property
    def planned_seconds(self) -> float:
        """Between the first and the last send, as they were to be."""
        return self._last[0] - self._first[0] if self._first else 0.0

    @property
    def seconds(self) -> float:
        """Between the first and the last send, as they were."""
        return self._last[1] - self._first[1] if self._first else 0.0

    @property
    def actual_qps(self) -> float:
        """The rate that was really sent, in requests/s."""
        return (self.sent - 1) / self.seconds if self.seconds > 0 else 0.0

    @property
    def rate_ratio(self) -> float:
        """The rate that was really sent over the one that these random moments ask for."""
        return self.planned_seconds / self.seconds if self.seconds > 0 else 1.0


class _Watch:
    """Judges the answers of a probe after its warm-up, and whether the generator is to blame for what they show."""

    def __init__(self, judge: Judge, stoppers: Stoppers, warm_up: int) -> None:
        self._judge = judge
        self._stoppers = stoppers
        self._warm_up = warm_up
        self._outcome = Outcome.UNDECIDED
        self._unreached = 0
        self._late = Histogram()
        self._late_ms: list[float] = []
        # By stopper: requests beyond it for which the generator is not to blame; and those whose send alone is not.
        self._limits = [limit.latency_ms for limit in stoppers.latency_limits]
        self._slow_by_itself = [0] * len(self._limits)

    def take(self, found: _Answered) -> bool:
        if self._warm_up:
            self._warm_up -= 1
            return False
        unreached = found.answer is Answer.UNREACHED
        self._unreached += unreached
        if not unreached:
            for place, limit in enumerate(self._limits):
                self._slow_by_itself[place] += found.latency_ms - found.delay_ms > limit
        self._late_ms.append(found.late_ms)
        if len(self._late_ms) == _CHUNK:
            self._count_late()
        outcome = self._judge.add(found.latency_ms, failed=found.answer is not Answer.OK)
        if outcome is None:
            return False
        self._outcome = outcome
        return True

    def _count_late(self) -> None:
        self._late.record(np.array(self._late_ms))
        self._late_ms.clear()

    @property
    def late_p99_ms(self) -> float:
        """One percent of the requests were sent this late or later, in milliseconds."""
        self._count_late()
        return self._late.percentile_ms(99)

    def outcome(self, stream: _Stream) -> tuple[Outcome, str]:
        """Returns what the probe found and why; where the generator or the way is to blame, that."""
        judge, outcome = self._judge, self._outcome
        if stream.planned_seconds > 0 and stream.seconds > stream.planned_seconds / (1 - LAG):
            wanted = (stream.sent - 1) / stream.planned_seconds
            return Outcome.GENERATOR_LIMIT, (
                f"GENERATOR_LIMIT: {stream.actual_qps:.4g} of {wanted:.4g} requests/s were sent, 1 % of them "
                f"{self.late_p99_ms:.3g} ms late or later."
            )
        if self._unreached > _UNREACHED_SHARE * max(1, judge.requests):
            return (
                Outcome.TRANSPORT_ERRORS,
                f"TRANSPORT_ERRORS: {self._unreached:,} requests did not reach the replica.",
            )
        if outcome in {Outcome.OVER, Outcome.UNSTABLE} and self._is_within_by_itself:
            if self._unreached:
                return Outcome.TRANSPORT_ERRORS, (
                    f"TRANSPORT_ERRORS: {self._unreached:,} requests did not reach the replica; it kept the others "
                    "within the stoppers."
                )
            return Outcome.GENERATOR_LIMIT, (
                f"GENERATOR_LIMIT: 1 % of the requests were sent {self.late_p99_ms:.3g} ms late or later; without what "
                "the generator added, the replica was within its stoppers."
            )
        return outcome, judge.explain(outcome)

    @property
    def _is_within_by_itself(self) -> bool:
        """Whether the replica would have been within its stoppers but for requests sent late or lost on the way."""
        requests, failed = self._judge.requests, self._judge.errors - self._unreached
        slow = zip(self._slow_by_itself, self._stoppers.latency_limits, strict=True)
        is_quick = all(count <= limit.share * requests for count, limit in slow)
        return is_quick and failed <= self._stoppers.error_rate * requests
