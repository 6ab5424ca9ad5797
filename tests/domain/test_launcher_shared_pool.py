"""Several launches in virtual time that share one pool: they wait for each other, and all of them end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelfleetd.clock import ManualClock
from modelfleetd.launcher.domain.hold import HoldState
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.states import ENDED, State
from tests.support.memory_pool import MemoryPool
from tests.support.rehearsal import NEW, Rehearsal

MINUTE = timedelta(minutes=1)
# Steps are as large as they may be, so that a launch rather waits than to take smaller ones for ever.
POLICY = Policy(
    bake_duration=timedelta(seconds=20),
    max_step_basis_points=5_000,
    max_steps=3,
    rollback_window=MINUTE,
    stability_gate=StabilityGate(disabled=True),
)
# Bakes for long, so it is looked at seldom.
SLOW = replace(POLICY, bake_duration=10 * MINUTE)


class Shared:
    """Launches `launches/l0`, `launches/l1` … on a pool with `free` units beside what serves."""

    def __init__(self, free: int, sizes: Sequence[tuple[int, int]], seed: int = 0, policy: Policy = POLICY) -> None:
        self.clock = ManualClock()
        self.pool = MemoryPool(self.clock, free + sum(old for old, _ in sizes))
        self.launches = [
            Rehearsal(
                old=old,
                new=new,
                name=f"launches/l{number}",
                clock=self.clock,
                pool=self.pool,
                seed=seed + number,
                policy=policy,
            )
            for number, (old, new) in enumerate(sizes)
        ]

    async def prepare(self) -> None:
        for rehearsal in self.launches:
            await rehearsal.prepare()

    async def run(self, seconds: float = 20_000, between: Callable[[], None] = lambda: None) -> None:
        """Lets the rounds of all launches follow each other as they are due, until all have ended."""
        end = self.clock.monotonic() + seconds
        due = {rehearsal.name: self.clock.monotonic() for rehearsal in self.launches}
        while self.clock.monotonic() < end:
            left = [rehearsal for rehearsal in self.launches if rehearsal.store.state not in ENDED]
            if not left:
                break
            rehearsal = min(left, key=lambda found: due[found.name])
            await self.clock.advance(max(0.0, due[rehearsal.name] - self.clock.monotonic()))
            await rehearsal.round()
            due[rehearsal.name] = self.clock.monotonic() + max(0.05, rehearsal.store.due)
            self.expect_nobody_waits_while_there_is_room()
            between()
        for rehearsal in self.launches:
            rehearsal.simulator.catch_up()

    def expect_nobody_waits_while_there_is_room(self) -> None:
        """Who is first in line has no room, and on its way nobody waits for another launch: no circle."""
        if self.pool.line:
            first = self.pool.hold(self.pool.line[0].name)
            assert first.state is HoldState.HELD or first.promises or first.message
        for rehearsal in self.launches:
            held = self.pool.of(rehearsal.name)
            moving = rehearsal.store.state in (State.SHIFTING, State.FINALIZING)
            assert not moving or (held is not None and (held.activated or held.outcome))

    def waits_for_more(self, rehearsal: Rehearsal) -> bool:
        """Whether the pool has to be given more: it never fits, or not since others took what it was promised."""
        launch, held = rehearsal.launch, self.pool.of(rehearsal.name)
        if held in self.pool.line:
            return self.pool.is_hopeless(held)
        return launch.plan is None or (not launch.reservation and "nothing that others free" in str(launch.conditions))

    def expect_promises_kept(self) -> None:
        for rehearsal in self.launches:
            assert rehearsal.broken_promises() == [], "\n".join(rehearsal.store.events)


def reasons(rehearsal: Rehearsal) -> set[str]:
    return {condition.reason for condition in rehearsal.launch.conditions}


async def two_in_line(free: int = 12, *, stuck: bool = False) -> Shared:
    """The first launch holds what the second one needs; that one stands in line."""
    shared = Shared(free, [(20, 20), (20, 20)])
    if stuck:
        shared.launches[0].simulator.failing_models.add(NEW)
    await shared.prepare()
    await shared.run(30)
    first, second = shared.launches
    assert first.launch.state is State.SHIFTING
    assert second.launch.state is State.PREPARING and reasons(second) == {"CapacityPromised"}
    return shared


async def test_a_launch_that_finds_no_room_waits_for_the_one_before_it_and_then_succeeds() -> None:
    shared = await two_in_line()
    _, second = shared.launches
    (waiting,) = second.launch.conditions
    assert waiting.message.startswith("waits for ") and "that launches/l0 frees at about" in waiting.message
    assert waiting.message.endswith("; first in line")
    await shared.run()
    assert [rehearsal.launch.state for rehearsal in shared.launches] == [State.SUCCEEDED] * 2
    shared.expect_promises_kept()
    events = [event.partition(":")[0] for event in second.store.events]
    # In line, then held, then the plan is made again, and only then anything starts.
    turn = events.index("CapacityReserved")
    assert events.index("CapacityPromised") < turn < events.index("Estimated", turn) < events.index("ReplicasStarted")


async def test_it_begins_as_soon_as_the_other_is_aborted() -> None:
    shared = await two_in_line()
    shared.launches[0].abort()
    await shared.run()
    assert [rehearsal.launch.state for rehearsal in shared.launches] == [State.ROLLED_BACK, State.SUCCEEDED]
    shared.expect_promises_kept()


async def test_a_launch_that_is_aborted_in_line_leaves_it_and_nothing_of_it_is_held() -> None:
    shared = await two_in_line()
    shared.launches[1].abort()
    await shared.run()
    assert [rehearsal.launch.state for rehearsal in shared.launches] == [State.SUCCEEDED, State.CANCELLED]
    await shared.clock.advance(120)
    shared.pool.room("launches/l0", [shared.pool.reservations["reservations/r1"].item], [])
    assert shared.pool.free == 12


async def test_a_slip_of_the_one_before_is_told_and_the_one_in_line_says_so() -> None:
    shared = await two_in_line(stuck=True)
    first, second = shared.launches
    (before,) = second.launch.conditions
    version = second.store.version
    await shared.run(100)
    assert first.launch.state is State.SHIFTING
    (after,) = second.launch.conditions
    assert after.message != before.message and after.since == before.since
    # Who watches the launch is told.
    assert second.store.version > version


async def test_a_paused_launch_is_heard_of_and_its_end_stays_what_it_was() -> None:
    shared = Shared(12, [(20, 20)], policy=SLOW)
    await shared.prepare()
    await shared.run(30)
    (only,) = shared.launches
    held = shared.pool.of(only.name)
    assert held is not None and only.launch.state is State.SHIFTING
    told = held.request.release
    only.pause()
    await shared.run(3_600)
    assert held.request.release == told
    assert (shared.clock.now() - held.renew_time) < 5 * MINUTE


async def test_a_hold_that_waits_for_a_person_is_kept_alive() -> None:
    shared = Shared(12, [(20, 20), (20, 20)], policy=SLOW)
    await shared.prepare()
    await shared.run(30)
    first, second = shared.launches
    second.pause()
    first.abort()
    # Longer than a hold lives without being activated.
    await shared.run(2 * 3_600)
    held = shared.pool.of(second.name)
    assert held is not None and held.state is HoldState.HELD and not held.activated
    second.resume()
    await shared.run()
    assert second.launch.state is State.SUCCEEDED


async def test_the_more_important_launch_goes_first() -> None:
    shared = Shared(12, [(20, 20), (20, 20), (20, 20)])
    shared.launches[1].books.tier, shared.launches[2].books.tier = "TIER3", "TIER0"
    await shared.prepare()
    await shared.run(30)
    assert [held.request.launch for held in shared.pool.line] == ["launches/l2", "launches/l1"]
    await shared.run()
    first, last, before = (rehearsal.launch.end_time for rehearsal in shared.launches)
    assert first is not None and before is not None and last is not None and first < before < last


async def test_where_nothing_that_is_held_would_ever_suffice_it_is_infeasible_as_ever() -> None:
    shared = Shared(4, [(20, 20), (20, 60)])
    await shared.prepare()
    await shared.run(60)
    _, second = shared.launches
    assert second.launch.plan is None and reasons(second) == {"Refused"}


async def test_capacity_that_does_not_answer_renewals_holds_up_no_launch() -> None:
    shared = Shared(12, [(20, 20)])
    await shared.prepare()
    (only,) = shared.launches
    await shared.run(5)
    only.books.lost_rate = 1.0
    await shared.run(3_000)
    # Every step is done and the registry knows; only the settlement cannot be.
    stuck = only.launch
    assert stuck.state is State.FINALIZING and stuck.revision and not stuck.settled
    only.books.lost_rate = 0.0
    await shared.run()
    assert only.launch.state.name == "SUCCEEDED"


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.tuples(st.integers(4, 16), st.integers(4, 16)), min_size=2, max_size=3),
    free=st.integers(5, 14),
    abort_rate=st.sampled_from([0.0, 0.002]),
    crash_rate=st.sampled_from([0.0, 0.03]),
    lost=st.sampled_from([0.0, 0.1]),
    life=st.sampled_from([None, 600.0]),
    restless=st.sampled_from([0.0, 0.02]),
)
@example(
    seed=224,
    sizes=[(5, 4), (14, 9), (11, 12)],
    free=5,
    abort_rate=0.002,
    crash_rate=0.03,
    lost=0.0,
    life=None,
    restless=0.0,
)
def test_whatever_goes_wrong_all_that_share_a_pool_converge_and_no_promise_is_broken(
    seed: int,
    sizes: list[tuple[int, int]],
    free: int,
    abort_rate: float,
    crash_rate: float,
    lost: float,
    life: float | None,
    restless: float,
) -> None:
    async def story() -> None:
        shared = Shared(free, sizes, seed)
        await shared.prepare()
        draw = shared.launches[0].draw
        for rehearsal in shared.launches:
            rehearsal.crashes.rate, rehearsal.books.lost_rate = crash_rate, lost
            rehearsal.simulator.behaviour = type(rehearsal.behaviour)(
                lost_call_rate=lost / 2, lost_answer_rate=lost, mean_life_seconds=life
            )

        def between() -> None:
            rehearsal = draw.choice(shared.launches)
            if draw.random() < abort_rate:
                rehearsal.abort()
            if draw.random() < restless:
                draw.choice((rehearsal.pause, rehearsal.resume))()

        await shared.run(250, between)
        shared.expect_promises_kept()
        for rehearsal in shared.launches:
            rehearsal.crashes.rate = rehearsal.books.lost_rate = 0.0
            rehearsal.simulator.behaviour = type(rehearsal.behaviour)()
            rehearsal.resume()
        for _ in range(20):
            await shared.run(300)
            if all(rehearsal.launch.ended or shared.waits_for_more(rehearsal) for rehearsal in shared.launches):
                break
        else:
            raise AssertionError("\n".join(event for found in shared.launches for event in found.store.events[-20:]))
        shared.expect_promises_kept()
        assert all(shared.pool.is_hopeless(held) for held in shared.pool.line)

    asyncio.run(story())
