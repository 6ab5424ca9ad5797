"""The simulator: same seed, same trace; faults on demand; and a swap on it that keeps every promise."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.clock import ManualClock
from modelfleetd.errors import FleetError, PartUnavailable
from modelfleetd.platform.ledger import Promise, peak, violations
from modelfleetd.platform.model import DesiredServing, Effect, Fence, FlavorUnits, TargetKind
from modelfleetd.platform.simulator import Behaviour, Simulator
from tests.support.serving import CPU, NEW, OLD, TARGET, serving


async def _swap(seed: int, behaviour: Behaviour, full: int = 10, step: int = 2_000) -> list[Effect]:
    """Replaces OLD by NEW as a launcher would: grow, wait, shift, wait, shrink, wait."""
    clock = ManualClock()
    platform = Simulator(clock, seed=seed, behaviour=behaviour)
    acts = 0

    async def reach(desired: DesiredServing) -> None:
        nonlocal acts
        acts += 1
        while True:
            try:
                await platform.apply(TARGET, TargetKind.ROUTE, Fence(acts, f"swap/1/{acts}/act"), desired)
                break
            except FleetError:
                await clock.advance(0.5)
        for _ in range(2_000):
            await clock.advance(0.5)
            try:
                seen = await platform.observe(TARGET, acts)
            except PartUnavailable:
                continue
            reached = all(
                model.available_replicas == model.desired_replicas == model.existing_replicas for model in seen.models
            )
            if reached and seen.acknowledged_generation == seen.generation:
                return
        raise AssertionError("the state was never reached")

    def needed(share: int) -> int:
        return math.ceil(full * share / 10_000)

    await reach(serving({OLD: full}))
    await reach(serving({OLD: full}, {OLD: 10_000}))
    for share in range(step, 10_001, step):
        before = 10_000 - share + step
        await reach(serving({NEW: needed(share), OLD: needed(before)}, {NEW: share - step, OLD: before}))
        await reach(serving({NEW: needed(share), OLD: needed(before)}, {NEW: share, OLD: 10_000 - share}))
        await reach(serving({NEW: needed(share), OLD: needed(10_000 - share)}, {NEW: share, OLD: 10_000 - share}))
    return platform.ledger


def _promise(full: int = 10, extra: int = 2) -> Promise:
    return Promise(TARGET, lambda _, share: math.ceil(full * share / 10_000), {CPU: full + extra})


async def test_a_swap_with_two_spare_replicas_keeps_every_promise() -> None:
    ledger = await _swap(1, Behaviour())
    assert violations(ledger, [_promise()]) == []
    assert peak(ledger, TARGET) == 12


async def test_the_checker_sees_a_hold_that_is_too_small() -> None:
    found = violations(await _swap(1, Behaviour()), [_promise(extra=1)])
    assert {violation.rule for violation in found} == {"what exists fits the hold"}


async def test_the_checker_sees_replicas_taken_from_a_side_that_needs_them() -> None:
    found = violations(await _swap(1, Behaviour()), [_promise(full=11, extra=9)])
    assert "each side has what its share needs (act)" in {violation.rule for violation in found}


async def test_an_act_that_leaves_every_replica_is_charged_for_the_share_that_it_asks_for() -> None:
    clock = ManualClock()
    platform = Simulator(clock, behaviour=Behaviour(acknowledge_seconds=(5, 5), retry_seconds=100))

    async def ask(key: str, **shares: int) -> None:
        split = {model: share for model, share in ((NEW, shares["new"]), (OLD, shares["old"])) if share}
        await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, key), serving({NEW: 6, OLD: 3}, split))

    await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "first"), serving({NEW: 6, OLD: 3}))
    await clock.advance(10)
    await ask("half", new=5_000, old=5_000)
    await clock.advance(10)
    promise = replace(_promise(full=6, extra=10), after=len(platform.ledger))
    assert platform.kill(OLD) == 1
    await clock.advance(1)
    await ask("none", new=10_000, old=0)
    # The proxy still gives the old one its half; what two replicas carry may be given back.
    await ask("third", new=6_700, old=3_300)
    assert violations(platform.ledger, [promise]) == []
    await ask("half again", new=5_000, old=5_000)
    assert [found.rule for found in violations(platform.ledger, [promise])] == [
        "each side has what its share needs (act)"
    ]


async def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    behaviour = Behaviour(mean_life_seconds=200, start_failure_rate=0.1, lost_call_rate=0.1, lost_answer_rate=0.1)
    first, again, other = await _swap(7, behaviour), await _swap(7, behaviour), await _swap(8, behaviour)
    assert first == again
    assert first != other


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), life=st.sampled_from([None, 100.0, 400.0]), failing=st.floats(0, 0.3))
async def test_the_ledger_is_sound_whatever_befalls_the_machines(seed: int, life: float | None, failing: float) -> None:
    behaviour = Behaviour(mean_life_seconds=life, start_failure_rate=failing, lost_answer_rate=0.1)
    assert violations(await _swap(seed, behaviour)) == []


async def test_traffic_follows_the_acknowledged_shares() -> None:
    clock = ManualClock()
    platform = Simulator(clock, seed=3, behaviour=Behaviour(requests_per_second=1_000))
    await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "a"), serving({NEW: 1, OLD: 1}))
    await clock.advance(5)
    shares = {NEW: 2_500, OLD: 7_500}
    await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "b"), serving({NEW: 1, OLD: 1}, shares))
    await clock.advance(60)
    seen = await platform.observe(TARGET)
    assert sum(model.requests_since_split for model in seen.models) >= 59_000
    assert abs(seen.model(NEW).observed_basis_points - 2_500) < 100
    assert seen.model(NEW).errors == seen.model(OLD).errors == 0


async def test_no_more_replicas_exist_than_the_capacity_allows() -> None:
    clock = ManualClock()
    platform = Simulator(clock, capacity=(FlavorUnits(CPU, 3),))
    await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "a"), serving({OLD: 5}))
    await clock.advance(10)
    seen = await platform.observe(TARGET)
    assert seen.model(OLD).available_replicas == 3


async def test_a_lost_answer_leaves_an_act_that_is_repeated_without_effect() -> None:
    clock = ManualClock()
    platform = Simulator(clock, behaviour=Behaviour(lost_answer_rate=1.0))
    for _ in range(3):
        try:
            await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "a"), serving({OLD: 1}))
        except PartUnavailable:
            continue
        raise AssertionError("the answer was not lost")
    assert [effect.key for effect in platform.ledger if effect.key] == ["a"]


async def _served(behaviour: Behaviour, replicas: int = 2) -> tuple[ManualClock, Simulator]:
    """A target on which OLD serves everything."""
    clock = ManualClock()
    platform = Simulator(clock, seed=3, behaviour=behaviour)
    await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "a"), serving({OLD: replicas, NEW: replicas}))
    await clock.advance(5)
    shares = {OLD: 10_000}
    await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "b"), serving({OLD: replicas, NEW: replicas}, shares))
    await clock.advance(60)
    return clock, platform


async def test_a_replica_for_which_no_machine_comes_stays_in_its_start_until_one_does() -> None:
    clock = ManualClock()
    platform = Simulator(clock)
    platform.pending_models.add(OLD)
    await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "a"), serving({OLD: 3}))
    await clock.advance(100_000)
    seen = (await platform.observe(TARGET)).model(OLD)
    assert (seen.starting_replicas, seen.available_replicas) == (3, 0)
    assert seen.message == "3 replicas wait for a machine"
    platform.settle_starts()
    await clock.advance(10)
    assert (await platform.observe(TARGET)).model(OLD).available_replicas == 3


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    lost=st.floats(0, 0.5),
    delay=st.floats(0, 5),
    looks=st.floats(0, 3),
    slow=st.floats(0, 0.5),
)
async def test_a_swap_keeps_every_promise_when_effects_are_late_or_lost_and_looks_are_old(
    seed: int, lost: float, delay: float, looks: float, slow: float
) -> None:
    behaviour = Behaviour(
        lost_effect_rate=lost,
        effect_delay_seconds=(0.0, delay),
        looks_every_seconds=looks,
        slow_termination_rate=slow,
        slow_terminate_seconds=(10.0, 20.0),
        pending_rate=0.1,
        pending_seconds=(5.0, 20.0),
    )
    assert violations(await _swap(seed, behaviour), [_promise()]) == []


async def test_traffic_follows_its_weights_late_and_evenly() -> None:
    clock, platform = await _served(Behaviour(requests_per_second=10_000, traffic_lag_seconds=100))
    both = serving({OLD: 2, NEW: 2}, {NEW: 10_000})
    await platform.apply(TARGET, TargetKind.ROUTE, Fence(1, "c"), both)
    await clock.advance(50)
    seen = await platform.observe(TARGET)
    # Until now a quarter of the requests on average.
    assert seen.model(NEW).acknowledged_basis_points == 10_000
    assert abs(seen.model(NEW).observed_basis_points - 2_500) < 100
    await clock.advance(150)
    later = await platform.observe(TARGET)
    moved = later.model(OLD).requests - seen.model(OLD).requests
    assert abs(moved - 10_000 * 50 / 4) < 2_500


async def test_latency_and_errors_grow_with_the_load_of_a_replica() -> None:
    async def at(carried: float) -> tuple[float, float]:
        clock, platform = await _served(Behaviour(requests_per_second=1_000, replica_requests_per_second=carried))
        await clock.advance(60)
        seen = (await platform.observe(TARGET)).model(OLD)
        assert seen.latency_p50_ms is not None
        return seen.latency_p50_ms, seen.errors_since_split / seen.requests_since_split

    assert (await at(1_000)) == (10.0, 0.0)
    idle, busy, beyond = await at(1e6), await at(550), await at(400)
    assert idle[0] < 5.1 and 50 < busy[0] < 60 and busy[1] == 0
    assert beyond[0] == 100 and abs(beyond[1] - 0.2) < 0.01


async def test_counters_that_cannot_be_read_grow_old() -> None:
    clock, platform = await _served(Behaviour(measures_every_seconds=10))
    platform.measures = False
    before = await platform.observe(TARGET)
    await clock.advance(45)
    after = await platform.observe(TARGET)
    assert before.statistics_age is not None and after.statistics_age is not None
    assert after.statistics_age.total_seconds() == before.statistics_age.total_seconds() + 45
    assert after.model(OLD).requests == before.model(OLD).requests


async def test_how_often_somebody_looks_changes_nothing_about_what_happens() -> None:
    async def ledger(looks: int) -> list[Effect]:
        clock, platform = await _served(Behaviour(mean_life_seconds=50, start_failure_rate=0.2))
        for _ in range(looks):
            await clock.advance(200 / looks)
            await platform.observe(TARGET)
        return platform.ledger

    assert await ledger(1) == await ledger(50)
