"""The load generator in virtual time: open loop, honest about lateness, and about itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from modelfleetd.capacity.domain.loadtest import Outcome, Probe, Stoppers
from modelfleetd.capacity.loadtest.generator import Answer, OpenLoop
from modelfleetd.capacity.loadtest.search import Found, Plan, search
from modelfleetd.clock import ManualClock

T = TypeVar("T")
STOPPERS = Stoppers(latency_p99_ms=60.0, error_rate=0.004)


class Serial:
    """A replica that serves one request at a time, in a constant time."""

    def __init__(
        self, clock: ManualClock, seconds: float, answer: Callable[[int], Answer] = lambda _: Answer.OK
    ) -> None:
        self._clock, self._seconds, self._answer = clock, seconds, answer
        self._free = 0.0
        self.requests = 0

    async def __call__(self, body: bytes) -> Answer:
        self.requests += 1
        answer = self._answer(self.requests)
        now = self._clock.monotonic()
        self._free = max(now, self._free) + self._seconds
        await self._clock.sleep(self._free - now)
        return answer


async def in_virtual_time(clock: ManualClock, work: Awaitable[T]) -> T:
    """Lets time jump to whatever is next as soon as nobody has anything to do."""
    task = asyncio.ensure_future(work)
    while not task.done():
        for _ in range(4):
            await asyncio.sleep(0)
        if clock.next_wake is not None:
            clock.set(clock.next_wake)
    return task.result()


async def probe(sender: Callable[[ManualClock], Serial], qps: float, *, certification: bool = False) -> Probe:
    clock = ManualClock()
    load = OpenLoop(sender(clock), [b"x"], STOPPERS, 1_000, clock, random.Random(1))
    return await in_virtual_time(clock, load.probe(Plan(qps, certification)))


async def test_a_rate_well_below_the_maximum_is_within() -> None:
    found = await probe(lambda clock: Serial(clock, 0.01), 40.0)
    assert found.outcome is Outcome.WITHIN
    assert (found.intended_qps, found.errors, found.requests) == (40.0, 0, 1_000)
    assert abs(found.actual_qps / 40.0 - 1) < 0.1
    assert 10.0 <= found.latency_p99_ms <= 60.0


async def test_a_rate_beyond_the_capacity_of_the_server_is_over_and_arrivals_do_not_wait_for_answers() -> None:
    found = await probe(lambda clock: Serial(clock, 0.01), 150.0)
    assert found.outcome is Outcome.OVER
    # A closed loop would have fallen to the server's 100 requests/s and seen 10 ms.
    assert abs(found.actual_qps / 150.0 - 1) < 0.1
    assert found.latency_p99_ms > 500.0


async def test_failures_beyond_the_error_rate_are_over() -> None:
    found = await probe(lambda clock: Serial(clock, 0.001, lambda n: Answer.FAILED if n % 20 == 0 else Answer.OK), 40.0)
    assert found.outcome is Outcome.OVER
    assert found.errors > 0


async def test_requests_that_never_reach_the_replica_say_nothing_of_its_load() -> None:
    found = await probe(lambda clock: Serial(clock, 0.001, lambda n: Answer.UNREACHED), 40.0)
    assert found.outcome is Outcome.TRANSPORT_ERRORS
    assert "did not reach" in found.explanation


class Slow(ManualClock):
    """The clock of a machine on which every wake-up comes late, as on one that has too much to do."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self._late = late

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds + self._late)


async def test_a_generator_that_cannot_keep_the_rate_says_so() -> None:
    clock = Slow(0.05)
    load = OpenLoop(Serial(clock, 0.0001), [b"x"], STOPPERS, 1_000, clock, random.Random(1))
    found = await in_virtual_time(clock, load.probe(Plan(100.0)))
    assert found.outcome is Outcome.GENERATOR_LIMIT
    assert found.actual_qps < 98.0


async def test_a_defect_of_the_sender_ends_the_probe() -> None:
    class Broken(Serial):
        async def __call__(self, body: bytes) -> Answer:
            raise ZeroDivisionError

    try:
        await probe(lambda clock: Broken(clock, 0.001), 40.0)
    except ZeroDivisionError:
        return
    raise AssertionError("the probe went on")


async def test_search_and_generator_together_find_the_maximum_of_a_server() -> None:
    clock, draw = ManualClock(), random.Random(3)
    load = OpenLoop(Serial(clock, 0.01), [b"x"], STOPPERS, 20_000, clock, draw)
    job, result = search(55.0), None
    plan = next(job)
    while result is None:
        found = await in_virtual_time(clock, load.probe(plan))
        try:
            plan = job.send(found.outcome)
        except StopIteration as end:
            result = end.value
    assert isinstance(result, Found)
    # 62.95 requests/s by Erlang's formula for M/D/1.
    assert 0.88 <= result.max_qps / 62.95 <= 1.02
