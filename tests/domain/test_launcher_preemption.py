"""Mitigations in virtual time: an experiment ends at any moment of a launch on the same route, which then goes on."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain.launch import Strategy
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.replicas import replicas_for
from modelfleetd.launcher.domain.states import State
from modelfleetd.platform.model import EffectKind
from modelfleetd.rehearsal.chance import NO_TROUBLE, Trouble
from modelfleetd.rehearsal.routes import REGION, Route, Served
from tests.support.rehearsal import LAUNCH, NEW, OLD, OTHER, QUICK, TYPE, Rehearsal

# One step, and no bake: what a mitigation has where nothing else is asked for.
AT_ONCE = Policy(bake_duration=timedelta(0), max_step_basis_points=10_000, stability_gate=StabilityGate(disabled=True))
MITIGATION = "launches/m"


async def incident(
    *,
    old: int = 50,
    new: int = 42,
    experiment: int = 60,
    share: int = 2_000,
    free: int = 16,
    seed: int = 0,
    trouble: Trouble = NO_TROUBLE,
) -> Rehearsal:
    """A launch from `old` to `new`, and an experiment beside it that has to end at some moment."""
    fleet = Rehearsal(seed=seed, spare=free)
    fleet.add_type(Route(TYPE, {REGION: old}, startup=timedelta(seconds=60)))
    fleet.add_model(TYPE, "new", {REGION: new})
    fleet.add_model(TYPE, "other", {REGION: experiment})
    beside = Served(share, replicas_for(experiment, share, 2))
    rest = Served(10_000 - share, replicas_for(old, 10_000 - share, 2))
    fleet.serves(TYPE, REGION, {OLD: rest, OTHER: beside}, {OLD: "BASELINE", OTHER: "EXPERIMENT"})
    await fleet.start()
    fleet.create("l", TYPE, NEW, policy=QUICK)
    fleet.troubled(trouble)
    return fleet


def mitigate(fleet: Rehearsal, trouble: Trouble = NO_TROUBLE) -> int:
    """Ends the experiment: the launch holds, where it can. Gives how many effects there were before."""
    fleet.simulator(TYPE).catch_up()
    fleet.create("m", TYPE, OTHER, strategy=Strategy.END_EXPERIMENT, policy=AT_ONCE, trouble=trouble)
    return len(fleet.simulator(TYPE).ledger)


def assert_the_launch_held(fleet: Rehearsal, since: int) -> None:
    """While the mitigation was there, nobody else acted, and the candidate had what it had."""
    end = fleet.launch(MITIGATION).end_time
    found = fleet.simulator(TYPE).ledger
    accepted = [(effect, effect.desired) for effect in found if effect.kind is EffectKind.ACCEPTED and effect.desired]
    before = [desired for effect, desired in accepted if effect.sequence <= since]
    for effect, desired in accepted:
        if effect.sequence > since and (end is None or effect.time < end):
            assert effect.key.startswith("m/"), effect
            assert desired.share_of(NEW) == before[-1].share_of(NEW), effect


@pytest.mark.parametrize(("seconds", "free"), [(0.3, 16), (3, 16), (16, 40), (25, 16)])
async def test_an_experiment_ends_at_any_moment_of_a_launch_which_goes_on_and_succeeds(
    seconds: float, free: int
) -> None:
    fleet, splits = await incident(free=free), list[dict[str, int]]()
    await fleet.pass_by(seconds)
    since = mitigate(fleet)
    assert fleet.launch().preempted_by == MITIGATION
    fleet.when(
        MITIGATION,
        lambda launch: launch.state is State.SUCCEEDED,
        lambda fleet: splits.append(fleet.registry.split(TYPE, REGION)),
    )
    await fleet.pass_by()
    assert fleet.launch(MITIGATION).state is State.SUCCEEDED, fleet.said()
    assert fleet.launch().state is State.SUCCEEDED, fleet.said()
    assert fleet.broken() == [], fleet.said()
    assert_the_launch_held(fleet, since)
    assert fleet.serving() == {NEW: (10_000, 42)}
    assert fleet.outcome(LAUNCH).booked == {REGION: {NEW: 42}}
    # The mitigation has not recorded what the launch had not brought to its end.
    assert splits == [{OLD: 10_000}]
    assert fleet.launch().preempted_by == ""


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    old=st.integers(6, 24),
    ratio=st.floats(0.6, 1.4),
    experiment=st.integers(6, 60),
    share=st.sampled_from([500, 2_000, 4_000]),
    free=st.integers(6, 40),
    at=st.floats(0, 60),
    crash_rate=st.sampled_from([0.0, 0.03, 0.1]),
    lost=st.sampled_from([0.0, 0.1]),
    abort_after=st.none() | st.floats(0, 30),
    give_up_after=st.none() | st.floats(0, 10),
)
def test_whatever_goes_wrong_with_both_the_promises_hold_and_both_end(
    seed: int,
    old: int,
    ratio: float,
    experiment: int,
    share: int,
    free: int,
    at: float,
    crash_rate: float,
    lost: float,
    abort_after: float | None,
    give_up_after: float | None,
) -> None:
    async def story() -> None:
        trouble = Trouble(crash_rate=crash_rate, agent_lost_rate=lost)
        fleet = await incident(
            old=old,
            new=max(2, round(old * ratio)),
            experiment=experiment,
            share=share,
            free=free,
            seed=seed,
            trouble=trouble,
        )
        await fleet.pass_by(at)
        since = mitigate(fleet, Trouble(crash_rate=crash_rate))
        holds = bool(fleet.launch().preempted_by)
        if abort_after is not None:
            fleet.after(abort_after, lambda fleet: fleet.abort(LAUNCH))
        if give_up_after is not None:
            fleet.after(give_up_after, lambda fleet: fleet.abort(MITIGATION))
        await fleet.pass_by(120)
        fleet.heal()
        if fleet.launch().plan is None or fleet.launch().state is State.PREPARING:
            # It does not fit, or waits for what the mitigation keeps for a rollback.
            fleet.abort(LAUNCH)
        await fleet.pass_by(1_500)
        if fleet.launch(MITIGATION).plan is None:
            fleet.abort(MITIGATION)
            await fleet.pass_by(1_500)
        assert fleet.launch().ended, fleet.said()
        assert fleet.launch(MITIGATION).ended, fleet.said()
        # Everybody agrees: capacity has booked what really runs.
        assert fleet.broken() == [], fleet.said()
        if holds:
            assert_the_launch_held(fleet, since)

    asyncio.run(story())
