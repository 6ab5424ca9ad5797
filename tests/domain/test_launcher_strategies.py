"""Every strategy in virtual time: what is left in registry, capacity and platform, and that each leads back as well."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.strategies import Strategy
from tests.support.chance import chosen
from tests.support.rehearsal import NEW, OLD, TARGET, Rehearsal

QUICK = Policy(bake_duration=timedelta(seconds=1), stability_gate=StabilityGate(disabled=True))
AT_ONCE = Policy(bake_duration=timedelta(0), max_step_basis_points=10_000, stability_gate=StabilityGate(disabled=True))


@dataclass(frozen=True)
class Story:
    """A launch, and what it leaves behind: shares, replicas, and new roles."""

    given: dict[str, Any]
    shares: dict[str, int]
    replicas: dict[str, int]
    roles: dict[str, str]
    policy: Policy = QUICK

    def rehearsal(self, **more: Any) -> Rehearsal:
        given: dict[str, Any] = {"free": 40, "policy": self.policy} | self.given | more
        return Rehearsal(**given)


STORIES = {
    "replacing with a holdout": Story(
        {"old": 50, "new": 42, "holdout": 1_000},
        {NEW: 9_000, OLD: 1_000},
        {NEW: 38, OLD: 5},
        {NEW: "BASELINE", OLD: "HOLDOUT"},
    ),
    "replacing by an experiment": Story(
        {"old": 50, "new": 42, "experiment_share": 2_000, "strategy": Strategy.REPLACE_BASELINE},
        {NEW: 10_000},
        {NEW: 42},
        {NEW: "BASELINE", OLD: "RETIRED"},
    ),
    "starting an experiment": Story(
        {"old": 50, "new": 60, "target": 1_500, "strategy": Strategy.START_EXPERIMENT},
        {NEW: 1_500, OLD: 8_500},
        {NEW: 9, OLD: 43},
        {NEW: "EXPERIMENT"},
    ),
    "ramping up": Story(
        {"old": 50, "new": 60, "experiment_share": 500, "target": 3_000, "strategy": Strategy.RAMP},
        {NEW: 3_000, OLD: 7_000},
        {NEW: 18, OLD: 35},
        {},
    ),
    "ramping down": Story(
        {"old": 50, "new": 60, "experiment_share": 3_000, "target": 500, "strategy": Strategy.RAMP},
        {NEW: 500, OLD: 9_500},
        {NEW: 3, OLD: 48},
        {},
    ),
    "ending a holdout": Story(
        {"old": 50, "new": 60, "experiment_share": 1_000, "role": "HOLDOUT"},
        {OLD: 10_000},
        {OLD: 50},
        {NEW: "RETIRED"},
        AT_ONCE,
    ),
    "growing": Story(
        {"old": 30, "new": 44, "strategy": Strategy.RESIZE},
        {OLD: 10_000},
        {OLD: 44},
        {},
    ),
    "shrinking": Story(
        {"old": 44, "new": 30, "strategy": Strategy.RESIZE},
        {OLD: 10_000},
        {OLD: 30},
        {},
    ),
    "rolling back": Story(
        {"old": 42, "new": 50, "role": "RETIRED", "strategy": Strategy.ROLL_BACK},
        {NEW: 10_000},
        {NEW: 50},
        {NEW: "BASELINE", OLD: "RETIRED"},
        AT_ONCE,
    ),
    "rolling back to a holdout": Story(
        {"old": 42, "new": 50, "role": "HOLDOUT", "experiment_share": 1_000, "strategy": Strategy.ROLL_BACK},
        {NEW: 10_000},
        {NEW: 50},
        {NEW: "BASELINE", OLD: "RETIRED"},
        AT_ONCE,
    ),
}


async def serves(rehearsal: Rehearsal, shares: dict[str, int], replicas: dict[str, int]) -> None:
    seen = await rehearsal.simulator.observe(TARGET)
    assert seen.desired is not None
    assert {s.model: s.share_basis_points for s in seen.desired.shares} == shares
    assert {m.model: m.replicas for m in seen.desired.models} == replicas
    assert {model: seen.model(model).existing_replicas for model in replicas} == replicas


def booked(rehearsal: Rehearsal) -> dict[str, int]:
    return {model: units for (_, model), units in rehearsal.pool.booked.items() if units}


@pytest.mark.parametrize("name", STORIES)
async def test_registry_capacity_and_platform_agree_in_the_end(name: str) -> None:
    story = STORIES[name]
    rehearsal = story.rehearsal()
    await rehearsal.prepare()
    launch = await rehearsal.run()
    assert launch.state is State.SUCCEEDED, "\n".join(rehearsal.store.events)
    assert rehearsal.broken_promises() == []
    await serves(rehearsal, story.shares, story.replicas)
    assert rehearsal.books.roles == story.roles
    (split,) = rehearsal.books.splits.values()
    assert {share.model: share.share for share in split} == story.shares
    assert rehearsal.settled == "succeeded" and booked(rehearsal) == story.replicas


@pytest.mark.parametrize(("name", "state"), [("ramping up", State.ROLLED_BACK), ("ramping down", State.SUCCEEDED)])
async def test_a_bad_experiment_gets_no_more_and_is_not_kept_from_getting_less(name: str, state: State) -> None:
    judged = Policy(bake_duration=timedelta(seconds=1), stability_gate=StabilityGate())
    rehearsal = STORIES[name].rehearsal(policy=judged)
    rehearsal.books.verdict = Verdict.FAIL
    await rehearsal.prepare()
    launch = await rehearsal.run()
    assert launch.state is state, "\n".join(rehearsal.store.events)
    assert bool(rehearsal.books.asked) is (state is State.ROLLED_BACK)


# After how many entries of the history people abort, and how much is free.
ABORTS = [(name, after, free) for name in STORIES for after in range(1, 19) for free in (14, 40)]


@pytest.mark.faults
@pytest.mark.parametrize(("name", "after", "free"), chosen(ABORTS, 12))
async def test_an_abort_at_any_step_gives_everybody_back_what_they_had(name: str, after: int, free: int) -> None:
    rehearsal = STORIES[name].rehearsal(free=free, mean_life_seconds=300.0)
    await rehearsal.prepare()
    before = await rehearsal.simulator.observe(TARGET)
    assert before.desired is not None
    shares = {share.model: share.share_basis_points for share in before.desired.shares}

    def abort() -> None:
        if len(rehearsal.store.events) >= after:
            rehearsal.abort()

    launch = await rehearsal.run(between=abort)
    assert rehearsal.broken_promises() == [], "\n".join(rehearsal.store.events)
    if launch.state is State.SUCCEEDED:
        # It was done before: the registry had it in its books.
        assert rehearsal.aborted_at is None or launch.revision
        return
    assert launch.state in (State.ROLLED_BACK, State.CANCELLED), "\n".join(rehearsal.store.events)
    rehearsal.simulator.behaviour = type(rehearsal.behaviour)()
    await rehearsal.clock.advance(60)
    await serves(rehearsal, shares, rehearsal.running)
    assert booked(rehearsal) == rehearsal.running and rehearsal.settled in ("released", "cancelled", "")


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(STORIES)),
    seed=st.integers(0, 2**32),
    free=st.integers(2, 40),
    crash_rate=st.sampled_from([0.0, 0.02, 0.1]),
    lost=st.sampled_from([0.0, 0.1]),
    hang_rate=st.sampled_from([0.0, 0.0, 0.2]),
    life=st.sampled_from([None, 400.0]),
    abort_at=st.none() | st.floats(0, 60),
    other_share=st.sampled_from([0, 1_000]),
)
def test_whatever_goes_wrong_every_strategy_keeps_the_promises_and_converges(
    name: str,
    seed: int,
    free: int,
    crash_rate: float,
    lost: float,
    hang_rate: float,
    life: float | None,
    abort_at: float | None,
    other_share: int,
) -> None:
    async def run() -> None:
        rehearsal = STORIES[name].rehearsal(
            free=free,
            seed=seed,
            crash_rate=crash_rate,
            lost_call_rate=lost / 2,
            lost_answer_rate=lost,
            hang_rate=hang_rate,
            mean_life_seconds=life,
            other_share=other_share,
        )
        await rehearsal.prepare()
        start = rehearsal.clock.monotonic()

        def between() -> None:
            if abort_at is not None and rehearsal.clock.monotonic() - start >= abort_at:
                rehearsal.abort()

        launch = await rehearsal.run(1_500, between)
        assert rehearsal.broken_promises() == [], "\n".join(rehearsal.store.events)
        if launch.plan is None:
            return  # It does not fit; there is nothing to promise.
        rehearsal.simulator.behaviour = type(rehearsal.behaviour)()
        rehearsal.crashes.rate = rehearsal.books.platform.hang_rate = 0.0
        launch = await rehearsal.run(3_000, between)
        assert launch.ended, "\n".join(rehearsal.store.events[-40:])
        assert rehearsal.broken_promises() == [], "\n".join(rehearsal.store.events)
        after = STORIES[name].roles if launch.state is State.SUCCEEDED else {}
        assert rehearsal.books.roles == after

    asyncio.run(run())
