"""Whole launches in virtual time, with everything that can go wrong: properties 1 to 3 hold at every event."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.states import State
from modelfleetd.rehearsal.chance import Trouble
from modelfleetd.rehearsal.routes import REGION
from tests.support.rehearsal import LAUNCH, NEW, OLD, OTHER, QUICK, TYPE, Rehearsal, rehearse

GATED = Policy(bake_duration=timedelta(seconds=8), stability_gate=StabilityGate())


async def ends_as(fleet: Rehearsal, state: State) -> None:
    launch = await fleet.pass_by()
    assert launch.state is state, fleet.said()
    assert fleet.broken() == []


async def test_a_launch_with_little_to_spare_recycles_and_succeeds() -> None:
    fleet = await rehearse(old=50, new=42, free=4)
    await ends_as(fleet, State.SUCCEEDED)
    assert fleet.serving() == {NEW: (10_000, 42)}
    assert fleet.settled() == "SUCCEEDED"
    assert fleet.registry.split(TYPE, REGION) == {NEW: 10_000}


@pytest.mark.parametrize("seconds", [0.0, 0.5, 3, 6, 9, 12, 20, 30, 45])
async def test_an_abort_at_any_time_leads_back(seconds: float) -> None:
    fleet = await rehearse(old=50, new=42, free=10)
    await fleet.pass_by(seconds)
    assert fleet.abort(LAUNCH) == ""
    launch = await fleet.pass_by()
    assert launch.state in (State.ROLLED_BACK, State.CANCELLED)
    assert fleet.broken() == []
    assert fleet.serving() == {OLD: (10_000, 50)}


@pytest.mark.parametrize("free", [2, 5, 40])
async def test_an_experiment_ends_with_its_traffic_at_the_baseline_which_grows_first(free: int) -> None:
    fleet = await rehearse(old=50, new=60, free=free, experiment_share=2_000)
    await ends_as(fleet, State.SUCCEEDED)
    assert fleet.serving() == {OLD: (10_000, 50)}
    assert fleet.role(NEW) == "RETIRED" and fleet.settled() == "SUCCEEDED"
    assert fleet.judge.asked == 0
    assert fleet.registry.split(TYPE, REGION) == {OLD: 10_000}


async def test_with_room_an_experiment_ends_in_one_step_without_a_bake() -> None:
    policy = Policy(
        bake_duration=timedelta(0), max_step_basis_points=10_000, stability_gate=StabilityGate(disabled=True)
    )
    fleet = await rehearse(old=50, new=60, free=40, experiment_share=2_000, policy=policy)
    await ends_as(fleet, State.SUCCEEDED)
    plan = fleet.launch().plan
    assert plan is not None and [step.share for step in plan.regions[0].steps] == [10_000]


@pytest.mark.parametrize("seconds", [0.0, 0.5, 3, 6, 9, 12, 20])
async def test_an_abort_gives_the_experiment_back_what_it_had(seconds: float) -> None:
    fleet = await rehearse(old=50, new=60, free=5, experiment_share=2_000, other_share=1_000)
    before = fleet.serving()
    await fleet.pass_by(seconds)
    assert fleet.abort(LAUNCH) == ""
    launch = await fleet.pass_by()
    assert launch.state in (State.ROLLED_BACK, State.CANCELLED)
    assert fleet.broken() == []
    assert fleet.serving() == before
    assert {model: share for model, (share, _) in before.items()} == {NEW: 2_000, OLD: 7_000, OTHER: 1_000}


async def test_an_experiment_whose_replicas_are_gone_is_ended_all_the_same() -> None:
    fleet = await rehearse(old=40, new=40, free=10, experiment_share=1_000)
    fleet.let_die(NEW)
    await ends_as(fleet, State.SUCCEEDED)
    assert fleet.serving() == {OLD: (10_000, 40)}


async def test_a_side_that_carries_a_dead_models_share_is_made_short_again_only_after_people_were_called() -> None:
    fleet = await rehearse(old=60, new=60, free=30, experiment_share=3_000, other_share=1_000)
    await fleet.pass_by(6)
    fleet.let_die(OTHER)
    assert fleet.abort(LAUNCH) == ""
    launch = await fleet.pass_by(300)
    assert launch.state is State.ROLLING_BACK
    assert fleet.reasons() >= {"CarriesOthers"}
    assert fleet.broken() == []
    assert (await fleet.pass_by()).state is State.ROLLED_BACK


async def test_replicas_that_are_about_to_be_drained_are_given_no_weight_back() -> None:
    fleet = await rehearse(old=20, new=20, free=6, acknowledge_seconds=(0.5, 1.0))

    def reductions() -> int:
        return sum(event.startswith("OldReduced") for event in fleet.history())

    fleet.when(LAUNCH, lambda _: reductions() == 2, lambda fleet: fleet.abort(LAUNCH))
    await ends_as(fleet, State.ROLLED_BACK)
    assert reductions() == 2


async def test_a_gate_that_fails_leads_back_and_says_why() -> None:
    fleet = await rehearse(old=20, new=20, free=6, policy=GATED)
    fleet.judge.verdict = Verdict.FAIL
    await ends_as(fleet, State.ROLLED_BACK)
    abort = fleet.launch().abort
    assert abort is not None and abort.author == "gate/stability"
    assert fleet.serving() == {OLD: (10_000, 20)}
    outcome = fleet.registry.outcome(LAUNCH)
    assert outcome is not None and outcome.name == "ROLLED_BACK"


async def test_a_gate_that_cannot_decide_extends_the_bake_and_then_pauses() -> None:
    fleet = await rehearse(old=20, new=20, free=6, policy=GATED)
    fleet.judge.verdict = Verdict.INCONCLUSIVE
    launch = await fleet.pass_by(200)
    assert launch.state is State.SHIFTING and launch.step.extensions == 3
    # Every two seconds, and no oftener although the bake is over.
    assert fleet.judge.asked <= 110
    assert [pause.author for pause in launch.pause_reasons] == ["gate/stability"]
    fleet.judge.verdict = Verdict.FAIL
    # Paused, the gate goes on to be measured, and the safety rollback stays live.
    await ends_as(fleet, State.ROLLED_BACK)


async def test_a_judge_that_is_away_holds_the_launch_and_rolls_nothing_back() -> None:
    fleet = await rehearse(old=20, new=20, free=6, policy=GATED)
    fleet.judge.verdict = Verdict.ERROR
    launch = await fleet.pass_by(2_000)
    assert launch.state is State.SHIFTING and launch.step.number == 1
    assert fleet.reasons() >= {"GateErrored"}
    fleet.judge.verdict = Verdict.PASS
    await ends_as(fleet, State.SUCCEEDED)


async def test_an_agent_that_is_cut_off_holds_the_launch_and_its_deadlines() -> None:
    fleet = await rehearse(old=20, new=20, free=6)
    await fleet.pass_by(4)
    simulator = fleet.simulator(TYPE)
    simulator.partitioned = True
    before = len(simulator.ledger)
    launch = await fleet.pass_by(3_000)
    acts = [effect for effect in simulator.ledger[before:] if effect.key]
    assert launch.state is State.SHIFTING and acts == []
    simulator.partitioned = False
    await ends_as(fleet, State.SUCCEEDED)


async def test_a_candidate_whose_replicas_never_start_is_taken_back_at_the_deadline() -> None:
    # A short one: all that time, the agent tries again twice a second and the launcher looks.
    policy = Policy(step_deadline=timedelta(seconds=30), stability_gate=StabilityGate(disabled=True))
    fleet = await rehearse(old=20, new=20, free=6, policy=policy, trouble=Trouble(failing=True))
    await ends_as(fleet, State.ROLLED_BACK)
    abort = fleet.launch().abort
    assert abort is not None and abort.author == "deadline"
    assert fleet.serving() == {OLD: (10_000, 20)}


async def test_a_candidate_that_dies_as_a_whole_is_taken_back_at_once() -> None:
    fleet = await rehearse(old=20, new=20, free=6)
    fleet.when(
        LAUNCH,
        lambda launch: launch.step.number == 2 and launch.step.bake_start is not None,
        lambda _: fleet.let_die(NEW),
    )
    await ends_as(fleet, State.ROLLED_BACK)
    abort = fleet.launch().abort
    assert abort is not None and abort.author == "availability"


@pytest.mark.parametrize("aborted", [False, True])
async def test_an_experiment_without_replicas_stops_neither_the_launch_nor_its_way_back(aborted: bool) -> None:
    fleet = await rehearse(old=40, new=24, free=20, other_share=1_000)
    fleet.let_die(OTHER)
    await fleet.pass_by(30)
    assert fleet.launch().step.number > 1
    if aborted:
        assert fleet.abort(LAUNCH) == ""
    started = fleet.clock.now()
    await ends_as(fleet, State.ROLLED_BACK if aborted else State.SUCCEEDED)
    end = fleet.launch().end_time
    assert end is not None and end - started < timedelta(seconds=120)
    seen = await fleet.simulator(TYPE).observe(fleet.routes[TYPE].target)
    assert seen.model(OLD if aborted else NEW).acknowledged_basis_points == 10_000


async def test_a_hanging_call_that_comes_through_after_the_lease_does_no_harm() -> None:
    fleet = await rehearse(old=50, new=42, free=10, seed=3, trouble=Trouble(stall_rate=0.5))
    await ends_as(fleet, State.SUCCEEDED)
    assert fleet.stalls > 2


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    old=st.integers(4, 60),
    ratio=st.floats(0.5, 1.5),
    free=st.integers(2, 30),
    abort_at=st.none() | st.floats(0, 120),
    crash_rate=st.sampled_from([0.0, 0.02, 0.1]),
    lost=st.sampled_from([0.0, 0.1]),
    hang_rate=st.sampled_from([0.0, 0.0, 0.2]),
    life=st.sampled_from([None, 400.0]),
    gated=st.booleans(),
    restless=st.sampled_from([0.0, 0.05]),
    other_share=st.sampled_from([0, 0, 1_000]),
    experiment_share=st.sampled_from([0, 0, 500, 3_000]),
)
def test_whatever_goes_wrong_the_promises_hold_and_the_launch_converges(
    seed: int,
    old: int,
    ratio: float,
    free: int,
    abort_at: float | None,
    crash_rate: float,
    lost: float,
    hang_rate: float,
    life: float | None,
    gated: bool,
    restless: float,
    other_share: int,
    experiment_share: int,
) -> None:
    async def story() -> None:
        nonlocal restless
        fleet = await rehearse(
            old=old,
            new=max(2, round(old * ratio)),
            free=free,
            seed=seed,
            trouble=Trouble(crash_rate=crash_rate, agent_lost_rate=lost, stall_rate=hang_rate, mean_life_seconds=life),
            other_share=other_share,
            experiment_share=experiment_share,
            policy=GATED if gated else QUICK,
        )
        if other_share and restless and not experiment_share:
            fleet.let_die(OTHER)
        if abort_at is not None:
            fleet.after(abort_at, lambda fleet: fleet.abort(LAUNCH))
        draw = fleet.chance.draw

        def after_round(_: Launch) -> None:
            if draw.random() < restless:
                # People pause and resume, and the judge comes and goes.
                fleet.fidget()
                fleet.judge.verdict = draw.choice((Verdict.PASS, Verdict.PASS, Verdict.ERROR, Verdict.INCONCLUSIVE))

        launch = await fleet.pass_by(2_500, after_round)
        assert fleet.broken() == [], fleet.said()
        if launch.plan is None:
            return  # It does not fit.
        restless = 0.0
        fleet.heal()
        fleet.resume(LAUNCH, any_author=True)
        launch = await fleet.pass_by(5_000)
        assert launch.ended, fleet.said()
        assert fleet.broken() == [], fleet.said()
        outcome = {State.SUCCEEDED: "SUCCEEDED", State.ROLLED_BACK: "ROLLED_BACK"}.get(launch.state)
        assert fleet.settled() in (outcome, "CANCELLED", "")

    asyncio.run(story())
