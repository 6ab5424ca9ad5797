"""The load generator in virtual time: open loop, honest about lateness, and about itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from modelfleetd.capacity.domain.loadtest import Cause, LatencyStopper, Outcome, Probe, Stoppers
from modelfleetd.capacity.loadtest.generator import Answer, OpenLoop
from modelfleetd.capacity.loadtest.histogram import Histogram
from modelfleetd.capacity.loadtest.search import Found, NotFound, Plan, Result, Search
from modelfleetd.clock import ManualClock

T = TypeVar("T")
STOPPERS = Stoppers(latency_p99_ms=60.0, error_rate=0.004)


class Serial:
    """A replica that serves one request at a time, in a constant time."""

    def __init__(
        self, clock: ManualClock, seconds: float, answer: Callable[[int], Answer] = lambda _: Answer.OK
    ) -> None:
        self._clock, self._seconds, self._answer = clock, seconds, answer
        self.free = 0.0
        self.requests = 0

    async def __call__(self, body: bytes) -> Answer:
        self.requests += 1
        answer = self._answer(self.requests)
        now = self._clock.monotonic()
        self.free = max(now, self.free) + self._seconds
        await self._clock.sleep(self.free - now)
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


def open_loop(sender: Serial, clock: ManualClock, stoppers: Stoppers = STOPPERS, requests: int = 1_000) -> OpenLoop:
    return OpenLoop(sender, [b"x"], stoppers, requests, clock, random.Random(1))


async def probe(
    sender: Callable[[ManualClock], Serial],
    qps: float,
    *,
    certification: bool = False,
    clock: ManualClock | None = None,
    stoppers: Stoppers = STOPPERS,
) -> Probe:
    clock = clock or ManualClock()
    load = open_loop(sender(clock), clock, stoppers)
    return await in_virtual_time(clock, load.probe(Plan(qps, certification, warm_up_seconds=0.1)))


async def searched(sender: Serial, clock: ManualClock, start_qps: float, requests: int) -> tuple[Result, list[Probe]]:
    search, probes = Search(start_qps, STOPPERS, requests), list[Probe]()
    load = open_loop(sender, clock, requests=requests)
    while (plan := search.plan) is not None:
        probes.append(await in_virtual_time(clock, load.probe(plan)))
        search.add(probes[-1])
    assert search.result is not None
    return search.result, probes


async def test_a_rate_well_below_the_maximum_is_within() -> None:
    found = await probe(lambda clock: Serial(clock, 0.01), 40.0)
    assert found.outcome is Outcome.WITHIN
    assert (found.intended_qps, found.errors) == (40.0, 0)
    assert 1_000 <= found.requests < 1_400
    assert abs(found.actual_qps / 40.0 - 1) < 0.1
    assert 9.9 <= found.latency_p50_ms <= found.latency_p90_ms <= found.latency_p99_ms <= found.latency_p999_ms
    assert found.latency_p99_ms <= 60.0
    assert found.send_late_p99_ms < 0.01
    histogram = Histogram.decode(found.histogram)
    assert len(histogram) == found.requests
    assert histogram.percentile_ms(99) == found.latency_p99_ms
    assert found.start_time is not None
    assert found.end_time is not None
    assert (found.end_time - found.start_time).total_seconds() == pytest.approx(found.requests / 40.0, rel=0.15)


async def test_a_rate_beyond_the_capacity_of_the_server_is_over_and_arrivals_do_not_wait_for_answers() -> None:
    found = await probe(lambda clock: Serial(clock, 0.01), 150.0)
    assert found.outcome is Outcome.OVER
    # A closed loop would have fallen to the server's 100 requests/s and seen 10 ms.
    assert abs(found.actual_qps / 150.0 - 1) < 0.15
    assert found.latency_p99_ms > 300.0


async def test_whoever_would_have_been_sent_during_a_stall_is_counted_as_waiting_through_it() -> None:
    """No coordinated omission: a stall of a second at 100 requests/s is seen by 100 requests, not by one."""

    class Stalling(Serial):
        async def __call__(self, body: bytes) -> Answer:
            if self.requests == 600:
                self.free = self._clock.monotonic() + 1.0
            return await super().__call__(body)

    lenient = Stoppers(latencies=(LatencyStopper(50.0, 500.0),), error_rate=0.004)
    found = await probe(lambda clock: Stalling(clock, 0.001), 100.0, stoppers=lenient)
    waited = Histogram.decode(found.histogram).share_above(100.0) * found.requests
    # Those of 0.9 s, and of the backlog after it.
    assert 80 <= waited <= 130
    assert found.outcome in {Outcome.WITHIN, Outcome.UNSTABLE}
    assert found.send_late_p99_ms < 0.01


async def test_failures_beyond_the_error_rate_are_over() -> None:
    found = await probe(lambda clock: Serial(clock, 0.001, lambda n: Answer.FAILED if n % 20 == 0 else Answer.OK), 40.0)
    assert found.outcome is Outcome.OVER
    assert found.errors > 0


@pytest.mark.parametrize("every", [1, 30])
async def test_requests_that_never_reach_the_replica_say_nothing_of_its_load(every: int) -> None:
    found = await probe(
        lambda clock: Serial(clock, 0.001, lambda n: Answer.UNREACHED if n % every == 0 else Answer.OK), 40.0
    )
    assert found.outcome is Outcome.TRANSPORT_ERRORS
    assert "did not reach the replica" in found.explanation


class Late(ManualClock):
    """The clock of a machine on which every wake-up comes late, as on one that has too much to do."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self._late = late

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds + self._late)


class Stuck(ManualClock):
    """The clock of an event loop that does something else now and then: whatever is due then waits until its end."""

    def __init__(self, every: float, length: float) -> None:
        super().__init__()
        self._every, self._length = every, length

    async def sleep(self, seconds: float) -> None:
        wake = self.monotonic() + max(0.0, seconds)
        begin = wake // self._every * self._every
        await super().sleep(max(wake, begin + self._length if wake - begin < self._length else wake) - self.monotonic())


async def test_a_generator_that_cannot_keep_the_rate_says_so() -> None:
    found = await probe(lambda clock: Serial(clock, 0.0001), 100.0, clock=Late(0.05))
    assert found.outcome is Outcome.GENERATOR_LIMIT
    assert found.actual_qps < 98.0
    assert "requests/s were sent" in found.explanation


async def test_a_slow_event_loop_that_keeps_the_rate_is_the_generators_limit_and_never_over() -> None:
    found = await probe(lambda clock: Serial(clock, 0.001), 100.0, clock=Stuck(1.0, 0.1))
    # Counted from the intended moment it looks as if the replica were over.
    assert Histogram.decode(found.histogram).share_above(60.0) > 0.02
    assert found.actual_qps > 98.0
    assert found.outcome is Outcome.GENERATOR_LIMIT
    assert found.send_late_p99_ms > 60.0
    assert "without what the generator added" in found.explanation


async def test_a_slow_event_loop_does_not_excuse_a_slow_replica() -> None:
    found = await probe(lambda clock: Serial(clock, 0.0102), 100.0, clock=Stuck(1.0, 0.02))
    assert found.outcome is Outcome.OVER


async def test_a_search_whose_generator_is_the_limit_says_so() -> None:
    clock = Stuck(1.0, 0.2)
    result, probes = await searched(Serial(clock, 0.001), clock, 100.0, 1_000)
    assert isinstance(result, NotFound)
    assert result.cause is Cause.GENERATOR_LIMIT
    assert "the model is not to blame" in str(result)
    assert {found.outcome for found in probes} == {Outcome.GENERATOR_LIMIT}


async def test_a_defect_of_the_sender_ends_the_probe() -> None:
    class Broken(Serial):
        async def __call__(self, body: bytes) -> Answer:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await probe(lambda clock: Broken(clock, 0.001), 40.0)


async def test_a_probe_that_is_cancelled_ends_at_once_and_leaves_nothing_under_way() -> None:
    class Silent(Serial):
        under_way = 0

        async def __call__(self, body: bytes) -> Answer:
            self.under_way += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.under_way -= 1
            return Answer.OK

    clock = ManualClock()
    silent = Silent(clock, 0.0)
    task = asyncio.create_task(open_loop(silent, clock).probe(Plan(100.0)))
    await clock.advance(1.0)
    assert silent.under_way > 50
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert silent.under_way == 0


async def test_the_replica_is_at_rest_when_a_probe_ends() -> None:
    clock = ManualClock()
    serial = Serial(clock, 0.01)
    await in_virtual_time(clock, open_loop(serial, clock).probe(Plan(200.0, warm_up_seconds=0.1)))
    assert serial.free <= clock.monotonic()


async def test_a_new_clone_is_warmed_up_until_its_latency_has_settled_and_none_of_that_counts() -> None:
    class Cold(Serial):
        async def __call__(self, body: bytes) -> Answer:
            self._seconds = 0.05 if self._clock.monotonic() < 3.0 else 0.001
            return await super().__call__(body)

    clock = ManualClock()
    plan = Plan(100.0, warm_up_seconds=4.0, settle=True)
    found = await in_virtual_time(clock, open_loop(Cold(clock, 0.0), clock).probe(plan))
    assert found.outcome is Outcome.WITHIN
    assert found.latency_p999_ms < 20.0
    assert found.start_time is not None
    # At least as long as planned, and below the rate: 70 requests/s are more than it serves while it is cold.
    assert (found.start_time - ManualClock().now()).total_seconds() >= 4.0
    again = await probe(lambda clock: Cold(clock, 0.0), 100.0)
    assert again.outcome is not Outcome.WITHIN


async def test_search_and_generator_together_find_the_maximum_of_a_server() -> None:
    clock = ManualClock()
    result, probes = await searched(Serial(clock, 0.01), clock, 60.0, 1_000)
    assert isinstance(result, Found)
    # 62.95 requests/s by Erlang's formula for M/D/1; so short a test is not sure of the last percents.
    assert 0.8 <= result.max_qps / 62.95 <= 1.05
    assert probes[-1].certification
    assert probes[-1].requests >= 1_000
