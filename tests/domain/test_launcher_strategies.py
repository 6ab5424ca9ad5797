"""Every strategy in virtual time: what is left in registry, capacity and platform, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.strategies import Strategy
from modelfleetd.rehearsal.chance import Trouble
from tests.support.steps.cases import CASES, RECYCLING, ROOM, creates
from tests.support.steps.course import Course
from tests.support.steps.oracle import what_is_wrong
from tests.support.steps.stories import undisturbed


@pytest.mark.parametrize("name", CASES)
async def test_registry_capacity_and_platform_agree_in_the_end(name: str) -> None:
    course = await undisturbed(CASES[name], ROOM)
    assert course.launch.state is State.SUCCEEDED, course.history()
    assert what_is_wrong(course) == []


JUDGED = Policy(bake_duration=timedelta(minutes=10), stability_gate=StabilityGate())


@pytest.mark.parametrize(
    ("name", "share", "state"), [("ramping up", 5_000, State.ROLLED_BACK), ("ramping down", 2_000, State.SUCCEEDED)]
)
async def test_a_bad_experiment_gets_no_more_and_is_not_kept_from_getting_less(
    name: str, share: int, state: State
) -> None:
    bad = Trouble(calibration=2.0)
    begin = creates(Strategy.RAMP, policy=JUDGED, target_share=share, trouble=bad)
    course = Course(replace(CASES[name], begin=begin), ROOM)
    await course.prepare()
    launch = await course.run(20_000)
    assert launch.state is state, course.history()
    judged = [event for event in course.history() if "GateJudged: stability" in event]
    assert bool(judged) is (state is State.ROLLED_BACK)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(CASES)),
    seed=st.integers(0, 2**32),
    free=st.integers(RECYCLING, 40),
    crash_rate=st.sampled_from([0.0, 0.02, 0.1]),
    lost=st.sampled_from([0.0, 0.1]),
    stall_rate=st.sampled_from([0.0, 0.0, 0.2]),
    life=st.sampled_from([None, 400.0]),
    abort_at=st.none() | st.floats(0, 60),
)
def test_whatever_goes_wrong_every_strategy_keeps_the_promises_and_converges(
    name: str,
    seed: int,
    free: int,
    crash_rate: float,
    lost: float,
    stall_rate: float,
    life: float | None,
    abort_at: float | None,
) -> None:
    async def run() -> None:
        trouble = Trouble(
            crash_rate=crash_rate,
            lost_rate=lost,
            agent_lost_rate=lost / 2,
            stall_rate=stall_rate,
            mean_life_seconds=life,
        )
        course = Course(CASES[name], free, trouble=trouble, seed=seed)
        await course.prepare()
        if abort_at is not None:
            course.fleet.after(abort_at, lambda _: course.abort_between())
        await course.run(600)
        course.heal()
        await course.run()
        assert what_is_wrong(course) == [], "\n".join(course.history()[-40:])

    asyncio.run(run())
