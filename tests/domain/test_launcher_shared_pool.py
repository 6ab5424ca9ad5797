"""Several launches in virtual time that share one pool: they wait for each other, and all of them end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.reservation import Reservation
from modelfleetd.capacity.domain.reservation import State as Held
from modelfleetd.errors import PartUnavailable
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.states import State
from modelfleetd.rehearsal.chance import Trouble
from modelfleetd.rehearsal.routes import FLAVOR, REGION, Route
from tests.support.rehearsal import Rehearsal

MINUTE = timedelta(minutes=1)
HERE = Place(FLAVOR, REGION)
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
FIRST, SECOND, THIRD = (f"launches/l{number}" for number in range(3))


async def shared(
    free: int,
    sizes: Sequence[tuple[int, int]],
    *,
    seed: int = 0,
    policy: Policy = POLICY,
    trouble: Trouble | None = None,
    tiers: Sequence[str] = (),
) -> Rehearsal:
    """Launches `launches/l0`, `launches/l1` … on routes of their own, and `free` units beside what serves."""
    fleet = Rehearsal(seed=seed, spare=free)
    for number, (old, _) in enumerate(sizes):
        tier = tiers[number] if tiers else "TIER2"
        fleet.add_type(Route(f"modelTypes/r{number}", {REGION: old}, startup=timedelta(seconds=60), tier=tier))
    await fleet.start()
    for number, (_, new) in enumerate(sizes):
        candidate = fleet.add_model(f"modelTypes/r{number}", "new", {REGION: new})
        name = fleet.create(f"l{number}", f"modelTypes/r{number}", candidate, policy=policy)
        fleet.troubled(trouble or Trouble(), name)
    fleet.after_round = lambda _: expect_nobody_waits_while_there_is_room(fleet)
    return fleet


def expect_nobody_waits_while_there_is_room(fleet: Rehearsal) -> None:
    """Who is first in line has no room, and on its way nobody waits for another launch: no circle."""
    line = in_line(fleet)
    if line:
        first = line[0]
        moved = sum(fleet.capacity.booked(model, HERE) for model in first.replaced_models)
        assert first.items[0].hold_units - moved > fleet.capacity.free(HERE), first
    for name, row in fleet.launches.rows.items():
        held = fleet.capacity.found(name)
        moving = row.launch.state in (State.SHIFTING, State.FINALIZING)
        assert not moving or (held is not None and (held.activate_time is not None or held.outcome is not None))


def in_line(fleet: Rehearsal, *, hopeful: bool = True) -> list[Reservation]:
    """Those who wait, in their order; of them those whom others will free enough, or all."""
    fleet.capacity.catch_up()
    waiting = [(fleet.capacity.hold(found.name), found) for found in fleet.capacity.waiting]
    waiting.sort(key=lambda each: each[0].position)
    return [found for hold, found in waiting if hold.promises or not hopeful]


def waits_for_more(fleet: Rehearsal, name: str) -> bool:
    """Whether the pool has to be given more: it never fits, or not since others took what it was promised."""
    launch, held = fleet.launch(name), fleet.capacity.found(name)
    if held is not None and held.state is Held.PENDING:
        return held not in in_line(fleet)
    return launch.plan is None or (not launch.reservation and "nothing that others free" in str(launch.conditions))


async def two_in_line(free: int = 12, *, stuck: bool = False) -> Rehearsal:
    """The first launch holds what the second one needs; that one stands in line."""
    fleet = await shared(free, [(20, 20), (20, 20)])
    if stuck:
        fleet.troubled(Trouble(failing=True), FIRST)
    await fleet.run(fleet.clock.monotonic() + 30)
    assert fleet.launch(FIRST).state is State.SHIFTING
    assert fleet.launch(SECOND).state is State.PREPARING and fleet.reasons(SECOND) == {"CapacityPromised"}
    return fleet


async def go_on(fleet: Rehearsal, seconds: float = 20_000) -> list[State]:
    """Lets so much time pass. Returns what has become of the launches."""
    await fleet.run(fleet.clock.monotonic() + seconds)
    return [row.launch.state for row in fleet.launches.rows.values()]


async def test_a_launch_that_finds_no_room_waits_for_the_one_before_it_and_then_succeeds() -> None:
    fleet = await two_in_line()
    (waiting,) = fleet.launch(SECOND).conditions
    assert waiting.message.startswith("waits for ") and "that launches/l0 frees at about" in waiting.message
    assert waiting.message.endswith("; first in line")
    assert await go_on(fleet) == [State.SUCCEEDED] * 2
    assert fleet.broken() == [], fleet.said()
    events = [event.partition(":")[0] for event in fleet.history(SECOND)]
    # In line, then held, then the plan is made again, and only then anything starts.
    turn = events.index("CapacityReserved")
    assert events.index("CapacityPromised") < turn < events.index("Estimated", turn) < events.index("ReplicasStarted")


async def test_it_begins_as_soon_as_the_other_is_aborted() -> None:
    fleet = await two_in_line()
    assert fleet.abort(FIRST) == ""
    assert await go_on(fleet) == [State.ROLLED_BACK, State.SUCCEEDED]
    assert fleet.broken() == [], fleet.said()


async def test_a_launch_that_is_aborted_in_line_leaves_it_and_nothing_of_it_is_held() -> None:
    fleet = await two_in_line()
    assert fleet.abort(SECOND) == ""
    assert await go_on(fleet) == [State.SUCCEEDED, State.CANCELLED]
    assert fleet.capacity.free(HERE) == 12 and fleet.broken() == []


async def test_a_slip_of_the_one_before_is_told_and_the_one_in_line_says_so() -> None:
    fleet = await two_in_line(stuck=True)
    (before,) = fleet.launch(SECOND).conditions
    version = fleet.launch(SECOND).version
    await go_on(fleet, 100)
    assert fleet.launch(FIRST).state is State.SHIFTING
    (after,) = fleet.launch(SECOND).conditions
    assert after.message != before.message and after.since == before.since
    # Who watches the launch is told.
    assert fleet.launch(SECOND).version > version


async def test_a_paused_launch_is_heard_of_and_its_end_stays_what_it_was() -> None:
    fleet = await shared(12, [(20, 20)], policy=SLOW)
    await go_on(fleet, 30)
    before = fleet.capacity.found(FIRST)
    assert before is not None and fleet.launch(FIRST).state is State.SHIFTING
    assert fleet.pause(FIRST) == ""
    await go_on(fleet, 3_600)
    after = fleet.capacity.found(FIRST)
    assert after is not None and after.expected_release_time == before.expected_release_time
    assert after.renew_time is not None and fleet.clock.now() - after.renew_time < 5 * MINUTE


async def test_a_hold_that_waits_for_a_person_is_kept_alive() -> None:
    fleet = await shared(12, [(20, 20), (20, 20)], policy=SLOW)
    await go_on(fleet, 30)
    assert fleet.pause(SECOND) == fleet.abort(FIRST) == ""
    # Longer than a hold lives without being activated.
    await go_on(fleet, 2 * 3_600)
    held = fleet.capacity.found(SECOND)
    assert held is not None and held.state is Held.HELD and held.activate_time is None
    assert fleet.resume(SECOND) == ""
    assert await go_on(fleet) == [State.ROLLED_BACK, State.SUCCEEDED]


async def test_the_more_important_launch_goes_first() -> None:
    fleet = await shared(12, [(20, 20), (20, 20), (20, 20)], tiers=["TIER2", "TIER3", "TIER0"])
    await go_on(fleet, 30)
    assert [held.launch for held in in_line(fleet, hopeful=False)] == [THIRD, SECOND]
    # What the other one was promised is the more important one's now, and is promised once only.
    assert [held.launch for held in in_line(fleet)] == [THIRD]
    await go_on(fleet)
    first, last, before = (row.launch.end_time for row in fleet.launches.rows.values())
    assert first is not None and before is not None and last is not None and first < before < last


async def test_where_nothing_that_is_held_would_ever_suffice_it_is_infeasible_as_ever() -> None:
    fleet = await shared(4, [(20, 20), (20, 60)])
    await go_on(fleet, 60)
    assert fleet.launch(SECOND).plan is None and fleet.reasons(SECOND) == {"Refused"}


async def test_capacity_that_does_not_answer_renewals_holds_up_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = await shared(12, [(20, 20)])
    await go_on(fleet, 5)

    def is_away(part: str) -> None:
        if part == "capacity":
            raise PartUnavailable(part)

    with monkeypatch.context() as patch:
        patch.setattr(fleet.chance, "call", is_away)
        await go_on(fleet, 3_000)
    # Every step is done and the registry knows; only the settlement cannot be.
    stuck = fleet.launch(FIRST)
    assert stuck.state is State.FINALIZING and stuck.revision and not stuck.settled
    assert await go_on(fleet) == [State.SUCCEEDED]


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
    # Those in line want more than will ever be free.
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
        trouble = Trouble(crash_rate=crash_rate, lost_rate=lost, agent_lost_rate=lost, mean_life_seconds=life)
        fleet = await shared(free, sizes, seed=seed, trouble=trouble)
        names, draw = list(fleet.launches.rows), fleet.chance.draw

        def after_round(_: Launch) -> None:
            expect_nobody_waits_while_there_is_room(fleet)
            name = draw.choice(names)
            if draw.random() < abort_rate:
                fleet.abort(name)
            if draw.random() < restless:
                fleet.fidget(name)

        fleet.after_round = after_round
        await go_on(fleet, 250)
        assert fleet.broken() == [], fleet.said()
        fleet.after_round = lambda _: expect_nobody_waits_while_there_is_room(fleet)
        fleet.heal()
        for name in names:
            fleet.resume(name, any_author=True)
        for rounds in count():
            await go_on(fleet, 300)
            if all(fleet.launch(name).ended or waits_for_more(fleet, name) for name in names):
                break
            assert rounds < 20, fleet.said()
        assert fleet.broken() == [], fleet.said()
        assert in_line(fleet) == []

    asyncio.run(story())
