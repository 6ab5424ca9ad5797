"""Load tests as jobs: they end, whoever dies in between, and nothing of a clone is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from modelfleet.recordings import RecordingError
from modelfleetd.capacity.domain.loadtest import Cause, LatencyStopper, Outcome, Probe, State, Stoppers, Wanted
from modelfleetd.capacity.loadtest import clone, job
from modelfleetd.capacity.loadtest.generator import Load
from modelfleetd.capacity.loadtest.job import LoadTests
from modelfleetd.capacity.loadtest.search import Plan
from modelfleetd.capacity.registry import Model
from modelfleetd.capacity.store import certificates, loadtests
from modelfleetd.capacity.store.loadtests import Claim
from modelfleetd.clock import Clock, ManualClock, SystemClock
from modelfleetd.kit.db import Database
from modelfleetd.platform.model import DesiredServing, EffectKind, Fence, ServingSpec, TargetKind
from modelfleetd.platform.simulator import Behaviour, Simulator
from tests.support.wait import until

NAME, MODEL, EU = "loadTests/t1", "modelTypes/ctr/models/v2", "regions/eu"
FAST = Behaviour(start_seconds=(0.02, 0.05), terminate_seconds=(0.02, 0.05), acknowledge_seconds=(0.01, 0.02))
SPEC = ServingSpec(command=("serve",), flavor="flavors/cpu", startup_timeout=timedelta(seconds=0.5), digest="sha256:ab")
STOPPERS = Stoppers(60.0, latencies=(LatencyStopper(50.0, 20.0),))
MAXIMUM = 100.0


class Killed(BaseException):
    """The process is gone at this very point: nothing after it happens."""


class OneModel:
    """What a load test asks the registry, for a fleet of one model in one region."""

    async def model(self, name: str, field: str) -> Model:
        return Model(name, "modelTypes/ctr", SPEC)

    async def agent_address(self, region: str, field: str) -> str:
        return "agent"


class Fragile:
    """Passes calls to the agent, and kills the caller before or after the n-th one."""

    def __init__(self, agent: Simulator, kill_at: int = 0, *, after: bool = False) -> None:
        self._agent, self._kill_at, self._after = agent, kill_at, after
        self._calls = 0

    async def _passed(self, call: Any) -> Any:
        self._calls += 1
        if self._calls == self._kill_at and not self._after:
            call.close()
            raise Killed
        answer = await call
        if self._calls == self._kill_at:
            raise Killed
        return answer

    async def agent(self) -> Any:
        return await self._passed(self._agent.agent())

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Any:
        return await self._passed(self._agent.apply(target, kind, fence, desired))

    async def observe(self, target: str, epoch: int = 0) -> Any:
        return await self._passed(self._agent.observe(target, epoch))

    async def list(self) -> Any:
        return await self._passed(self._agent.list())

    async def effects(self, after: int = 0, target: str = "", limit: int = 1000) -> Any:
        return await self._passed(self._agent.effects(after, target, limit))


class Known:
    """A replica with a known maximum; a probe may be told to wait, or to kill its process."""

    def __init__(self) -> None:
        self.warm_ups = 0
        self.probes: list[Plan] = []
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.kill_at: Plan | int | None = None
        self.stopped = False
        # What else than the maximum decides.
        self.find: Callable[[Plan], Probe] | None = None

    async def warm_up(self, plan: Plan) -> None:
        self.warm_ups += 1

    async def probe(self, plan: Plan) -> Probe:
        self.probes.append(plan)
        try:
            await self.going_on.wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        if self.kill_at == len(self.probes) or (self.kill_at == -1 and plan.certification):
            raise Killed
        if self.find is not None:
            return self.find(plan)
        return probe_of(plan, Outcome.WITHIN if plan.qps <= MAXIMUM else Outcome.OVER)


def probe_of(plan: Plan, outcome: Outcome, errors: int = 0) -> Probe:
    """What a probe of 1,000 requests found."""
    found = Probe(plan.qps, plan.qps, 1000, errors, 10.0, outcome, plan.certification, "as the test has it")
    return replace(found, rate_ratio=0.999, send_late_p99_ms=0.4, histogram=b"of this probe")


class Bench:
    """One load test, an agent, and workers that come and go."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.agent = Simulator(SystemClock(), behaviour=FAST)
        self.known = Known()
        self.unreadable = ""

    def worker(self, holder: str, platform: Any = None, clock: Clock | None = None) -> LoadTests:
        @asynccontextmanager
        async def open_load(address: str, target: str, claim: Claim) -> AsyncIterator[Load]:
            if self.unreadable:
                raise RecordingError(self.unreadable)
            yield self.known

        agent = platform or self.agent
        registry: Any = OneModel()
        clock = clock or SystemClock()
        return LoadTests(self.database, registry, lambda _: agent, open_load, clock, holder, lease_seconds=30)

    async def create(self) -> None:
        wanted = Wanted(MODEL, EU, SPEC.flavor, (b"x",), STOPPERS, 80.0, 5000)
        wanted = replace(wanted, recording_digest="sha256:cd", validity_duration=timedelta(days=7))
        async with self.database.transaction() as conn:
            await loadtests.insert(conn, NAME, wanted, "alice")

    async def state(self) -> State:
        return (await loadtests.get(self.database, NAME)).state

    async def let_the_lease_end(self) -> None:
        await self.database.execute("UPDATE load_tests SET lease_expire_time = now()")

    async def replicas(self) -> int:
        return sum(model.existing_replicas for target in await self.agent.list() for model in target.models)

    async def succeeded(self) -> None:
        """Checks that it ended well: one certificate, no clone, at no moment more than one."""
        found = await loadtests.get(self.database, NAME)
        assert found.state is State.SUCCEEDED, found.message
        assert found.certificate is not None
        made = await certificates.get(self.database, found.certificate)
        assert MAXIMUM / 1.05 <= made.max_qps <= MAXIMUM
        assert await self.database.fetchval("SELECT count(*) FROM certificates") == 1
        await self.clean()

    async def clean(self) -> None:
        assert await self.replicas() == 0
        assert not await self.database.fetchval("SELECT clone_present FROM load_tests")
        existing = 0
        for effect in self.agent.ledger:
            existing += (effect.kind is EffectKind.REPLICA_STARTED) - (effect.kind is EffectKind.REPLICA_TERMINATED)
            assert existing <= 1


@pytest.fixture
async def bench(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(job, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(job, "_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(clone, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(clone, "_GRACE_SECONDS", 0.5)
    database = await Database.open(database_url, "capacity", max_size=4)
    made = Bench(database)
    await made.create()
    yield made
    await database.close()


async def test_a_load_test_ends_in_a_certificate_and_its_clone_is_gone(bench: Bench) -> None:
    assert await bench.worker("a").round()
    await bench.succeeded()
    found = await loadtests.get_whole(bench.database, NAME)
    assert found.certificate is not None
    assert (found.attempt, found.current_qps, found.expected_end_time, found.cause) == (1, 0.0, None, None)
    assert found.start_time is not None
    assert found.end_time is not None
    assert found.start_time <= found.end_time
    assert bench.known.warm_ups == 1
    # Each probe keeps its whole distribution, and the certificate says what it rests on.
    assert {probe.histogram for probe in found.probes} == {b"of this probe"}
    made = await certificates.get(bench.database, found.certificate)
    assert made.stoppers == found.stoppers == STOPPERS
    assert (made.region, made.recording, made.recording_digest) == (EU, None, "sha256:cd")
    assert (made.requests, made.serving_spec_digest) == (1000, "sha256:ab")
    assert made.generator_health is not None
    assert (made.generator_health.rate_ratio, made.generator_health.send_late_p99_ms) == (0.999, 0.4)
    assert made.generator_health.cpu_fraction >= 0
    assert made.expire_time - made.create_time == timedelta(days=7)
    assert [probe.outcome for probe in found.probes][-1] is Outcome.WITHIN
    assert found.probes[-1].certification
    assert found.lowest_beyond_qps > MAXIMUM >= found.highest_within_qps
    assert not await bench.worker("b").round()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 10))
async def test_whoever_dies_at_whatever_call_to_the_agent_the_next_one_brings_it_to_its_end(
    bench: Bench, call: int, after: bool
) -> None:
    first = bench.worker("dies", Fragile(bench.agent, call, after=after))
    try:
        await first.round()
    except Killed:
        assert not await bench.worker("too early").round()
        await bench.let_the_lease_end()
        while await bench.worker("next").round():
            pass
    await bench.succeeded()


@pytest.mark.parametrize("kill_at", [1, 2, -1])
async def test_whoever_dies_in_the_search_or_the_certification_is_replaced(bench: Bench, kill_at: int) -> None:
    bench.known.kill_at = kill_at
    with pytest.raises(Killed):
        await bench.worker("dies").round()
    assert await bench.replicas() == 1
    bench.known.kill_at = None
    await bench.let_the_lease_end()
    assert await bench.worker("next").round()
    await bench.succeeded()


async def test_a_load_test_whose_holders_keep_dying_fails_and_leaves_nothing(bench: Bench) -> None:
    for _ in range(3):
        bench.known.kill_at = len(bench.known.probes) + 1
        with pytest.raises(Killed):
            await bench.worker("dies").round()
        await bench.let_the_lease_end()
    assert await bench.worker("next").round()
    found = await loadtests.get(bench.database, NAME)
    assert (found.state, found.cause) == (State.FAILED, Cause.INTERRUPTED)
    assert found.message.startswith("It was begun 3 times and interrupted each time. Look why the capacity service")
    await bench.clean()


async def test_cancelling_ends_it_at_once_and_the_clone_goes(bench: Bench) -> None:
    bench.known.going_on.clear()
    working = asyncio.create_task(bench.worker("a").round())
    await until(lambda: bench.known.probes)
    async with bench.database.transaction() as conn:
        await loadtests.cancel(conn, NAME, "Cancelled by alice.")
    await asyncio.wait_for(working, 30)
    assert await bench.state() is State.CANCELLED
    await bench.clean()
    assert await bench.database.fetchval("SELECT count(*) FROM certificates") == 0


async def test_a_cancellation_stops_the_probe_within_a_second(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_LOOK_SECONDS", 0.25)
    clock = ManualClock()
    bench.known.going_on.clear()
    working = asyncio.create_task(bench.worker("a", clock=clock).round())

    async def is_probing() -> bool:
        await clock.advance(0.25)
        return bool(bench.known.probes)

    await until(is_probing)
    async with bench.database.transaction() as conn:
        await loadtests.cancel(conn, NAME, "Cancelled by alice.")
    # Whenever in between it looked last: a look is due within this time.
    for _ in range(3):
        await clock.advance(0.25)
    await until(lambda: bench.known.stopped)

    async def has_ended() -> bool:
        await clock.advance(0.25)
        return working.done()

    await until(has_ended)
    assert await bench.state() is State.CANCELLED


async def test_a_new_attempt_begins_where_the_interrupted_one_was(bench: Bench) -> None:
    bench.known.kill_at = -1
    with pytest.raises(Killed):
        await bench.worker("dies").round()
    bench.known.kill_at = None
    seen = await loadtests.get(bench.database, NAME)
    assert seen.state is State.CERTIFYING
    assert seen.highest_within_qps > 80.0
    tried = len(bench.known.probes)
    await bench.let_the_lease_end()
    assert await bench.worker("next").round()
    # There is a bracket already, so nothing is left but to confirm its lower end.
    first = bench.known.probes[tried]
    assert (first.qps, first.certification) == (seen.highest_within_qps, True)
    await bench.succeeded()
    found = await loadtests.get_whole(bench.database, NAME)
    # The probes are those of this attempt.
    assert (found.attempt, len(found.probes)) == (2, len(bench.known.probes) - tried)


@pytest.mark.parametrize(
    ("cause", "find"),
    [
        (Cause.NOTHING_BEYOND, lambda plan: probe_of(plan, Outcome.WITHIN)),
        (Cause.NOTHING_WITHIN, lambda plan: probe_of(plan, Outcome.OVER)),
        (Cause.UNRELATED_ERRORS, lambda plan: probe_of(plan, Outcome.OVER, errors=300)),
        (Cause.GENERATOR_LIMIT, lambda plan: probe_of(plan, Outcome.GENERATOR_LIMIT)),
        (Cause.UNSTABLE_LATENCY, lambda plan: probe_of(plan, Outcome.UNSTABLE)),
    ],
)
async def test_a_load_test_that_does_not_converge_says_which_of_its_causes_it_was_and_what_to_do(
    bench: Bench, cause: Cause, find: Callable[[Plan], Probe]
) -> None:
    bench.known.find = find
    assert await bench.worker("a").round()
    found = await loadtests.get(bench.database, NAME)
    assert (found.state, found.cause, found.certificate) == (State.FAILED, cause, None)
    assert found.message.endswith(cause.advice)
    await bench.clean()


async def test_a_recording_that_cannot_be_read_is_named_as_the_cause(bench: Bench) -> None:
    bench.unreadable = "its files are gone"
    assert await bench.worker("a").round()
    found = await loadtests.get(bench.database, NAME)
    assert (found.state, found.cause) == (State.FAILED, Cause.RECORDING_UNREADABLE)
    assert "cannot be replayed: its files are gone. Look whether" in found.message
    await bench.clean()


async def test_a_clone_that_goes_away_under_load_is_not_taken_for_errors_of_the_model(bench: Bench) -> None:
    def loses_its_replica(plan: Plan) -> Probe:
        bench.agent.failing_models.add(MODEL)
        bench.agent.kill(MODEL)
        return probe_of(plan, Outcome.TRANSPORT_ERRORS, errors=1000)

    bench.known.find = loses_its_replica
    assert await bench.worker("a").round()
    found = await loadtests.get(bench.database, NAME)
    assert (found.state, found.cause) == (State.FAILED, Cause.CLONE_UNAVAILABLE)
    assert found.message.startswith("The clone did not stay available: ")
    assert len(bench.known.probes) == 1
    await bench.clean()


async def test_a_certification_that_cannot_end_in_time_is_not_begun(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 5,000 requests at some 95/s are 53 s.
    monkeypatch.setattr(job, "_MOST_SECONDS", 40.0)
    assert await bench.worker("a").round()
    found = await loadtests.get(bench.database, NAME)
    assert (found.state, found.cause) == (State.FAILED, Cause.OUT_OF_TIME)
    assert "with 5,000 requests would take" in found.message
    assert not any(plan.certification for plan in bench.known.probes)
    # What was found is still shown.
    assert MAXIMUM / 1.05 <= found.highest_within_qps <= MAXIMUM < found.lowest_beyond_qps
    await bench.clean()


async def test_a_cancelled_load_test_without_a_holder_is_cleaned_by_the_next(bench: Bench) -> None:
    bench.known.kill_at = 1
    with pytest.raises(Killed):
        await bench.worker("dies").round()
    async with bench.database.transaction() as conn:
        await loadtests.cancel(conn, NAME, "Cancelled by alice.")
    await bench.let_the_lease_end()
    # Not in the queue of tests: one that runs for an hour does not keep the clone alive.
    assert not await bench.worker("next").round()
    assert await bench.worker("next").clean_up()
    assert await bench.state() is State.CANCELLED
    await bench.clean()


async def test_a_holder_that_was_stalled_past_its_lease_cannot_touch_its_successors_clone(bench: Bench) -> None:
    bench.known.going_on.clear()
    stalled = asyncio.create_task(bench.worker("stalled").round())
    await until(lambda: len(bench.known.probes) == 1)
    await bench.let_the_lease_end()
    second = asyncio.create_task(bench.worker("next").round())
    # The stalled one finds out that it lost its claim, tries to remove the clone, and is refused.
    await asyncio.wait_for(stalled, 30)
    await until(lambda: len(bench.known.probes) == 2)
    assert await bench.replicas() == 1
    bench.known.going_on.set()
    await asyncio.wait_for(second, 10)
    await bench.succeeded()


@pytest.mark.parametrize("how", ["taken over", "cancelled"])
async def test_whoever_comes_too_late_to_record_the_end_leaves_no_certificate(bench: Bench, how: str) -> None:
    async with bench.database.transaction() as conn:
        late = await loadtests.claim(conn, "late", 30)
    assert late is not None
    await bench.let_the_lease_end()
    async with bench.database.transaction() as conn:
        if how == "cancelled":
            await loadtests.cancel(conn, NAME, "Cancelled by alice.")
        else:
            assert await loadtests.claim(conn, "next", 30)
    with pytest.raises(job._ClaimLost):
        probe = probe_of(Plan(90.0, certification=True), Outcome.WITHIN)
        await bench.worker("late")._record(late, job._End("One replica carries 90.", confirmed=(probe, "sha256:x")))
    assert await bench.database.fetchval("SELECT count(*) FROM certificates") == 0
    assert await bench.state() is (State.CANCELLED if how == "cancelled" else State.PENDING)


async def test_a_service_that_stops_hands_over_at_once(bench: Bench) -> None:
    bench.known.going_on.clear()
    stopping = asyncio.create_task(bench.worker("stops").round())
    await until(lambda: bench.known.probes)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    bench.known.going_on.set()
    assert await bench.worker("next").round()
    await bench.succeeded()


async def test_an_agent_that_is_away_for_a_while_is_waited_for(bench: Bench) -> None:
    bench.agent.partitioned = True
    assert await bench.worker("a").round()
    assert await bench.state() is State.STARTING
    bench.agent.partitioned = False
    await until(bench.worker("a").round)
    await bench.succeeded()


async def test_a_clone_that_never_becomes_available_fails_the_test_and_is_removed(bench: Bench) -> None:
    bench.agent.failing_models.add(MODEL)
    assert await bench.worker("a").round()
    found = await loadtests.get(bench.database, NAME)
    assert (found.state, found.cause) == (State.FAILED, Cause.CLONE_UNAVAILABLE)
    assert found.message.startswith("The clone did not become available")
    assert Cause.CLONE_UNAVAILABLE.advice in found.message
    await bench.clean()
