"""Whole launches in virtual time, with everything that can go wrong: properties 1 to 3 hold at every event."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.states import State
from tests.support.rehearsal import NEW, OLD, OTHER, TARGET, Rehearsal

GATED = Policy(bake_duration=timedelta(seconds=8), stability_gate=StabilityGate())


async def ends_as(rehearsal: Rehearsal, state: State) -> None:
    launch = await rehearsal.run()
    assert launch.state is state, "\n".join(rehearsal.store.events)
    assert rehearsal.broken_promises() == []


async def serves_only(rehearsal: Rehearsal, model: str, replicas: int) -> None:
    seen = await rehearsal.simulator.observe(TARGET)
    assert seen.desired is not None
    assert {m.model: m.replicas for m in seen.desired.models} == {model: replicas}
    assert {s.model: s.share_basis_points for s in seen.desired.shares} == {model: 10_000}


async def test_a_launch_with_little_to_spare_recycles_and_succeeds() -> None:
    rehearsal = Rehearsal(old=50, new=42, free=4)
    await rehearsal.prepare()
    await ends_as(rehearsal, State.SUCCEEDED)
    await serves_only(rehearsal, NEW, 42)
    assert rehearsal.settled == "succeeded"
    (shares,) = rehearsal.books.splits.values()
    assert [(share.model, share.share) for share in shares] == [(NEW, 10_000)]


@pytest.mark.parametrize("seconds", [0.0, 0.5, 3, 6, 9, 12, 20, 30, 45])
async def test_an_abort_at_any_time_leads_back(seconds: float) -> None:
    rehearsal = Rehearsal(old=50, new=42, free=10)
    await rehearsal.prepare()
    await rehearsal.run(seconds)
    rehearsal.abort()
    launch = await rehearsal.run()
    assert launch.state in (State.ROLLED_BACK, State.CANCELLED)
    assert rehearsal.broken_promises() == []
    await serves_only(rehearsal, OLD, 50)


@pytest.mark.parametrize("free", [2, 5, 40])
async def test_an_experiment_ends_with_its_traffic_at_the_baseline_which_grows_first(free: int) -> None:
    rehearsal = Rehearsal(old=50, new=60, free=free, experiment_share=2_000)
    await rehearsal.prepare()
    await ends_as(rehearsal, State.SUCCEEDED)
    await serves_only(rehearsal, OLD, 50)
    assert rehearsal.books.roles == {NEW: "RETIRED"} and rehearsal.settled == "succeeded"
    assert rehearsal.books.asked == 0
    (shares,) = rehearsal.books.splits.values()
    assert [(share.model, share.share) for share in shares] == [(OLD, 10_000)]


async def test_with_room_an_experiment_ends_in_one_step_without_a_bake() -> None:
    policy = Policy(
        bake_duration=timedelta(0), max_step_basis_points=10_000, stability_gate=StabilityGate(disabled=True)
    )
    rehearsal = Rehearsal(old=50, new=60, free=40, experiment_share=2_000, policy=policy)
    await rehearsal.prepare()
    await ends_as(rehearsal, State.SUCCEEDED)
    plan = rehearsal.launch.plan
    assert plan is not None and [step.share for step in plan.regions[0].steps] == [10_000]


@pytest.mark.parametrize("seconds", [0.0, 0.5, 3, 6, 9, 12, 20])
async def test_an_abort_gives_the_experiment_back_what_it_had(seconds: float) -> None:
    rehearsal = Rehearsal(old=50, new=60, free=5, experiment_share=2_000, other_share=1_000)
    await rehearsal.prepare()
    await rehearsal.run(seconds)
    rehearsal.abort()
    launch = await rehearsal.run()
    assert launch.state in (State.ROLLED_BACK, State.CANCELLED)
    assert rehearsal.broken_promises() == []
    seen = await rehearsal.simulator.observe(TARGET)
    assert seen.desired is not None
    replicas = {model.model: model.replicas for model in seen.desired.models}
    assert replicas == rehearsal.running | {OTHER: replicas[OTHER]}
    shares = {share.model: share.share_basis_points for share in seen.desired.shares}
    assert shares == {NEW: 2_000, OLD: 7_000, OTHER: 1_000}


async def test_an_experiment_whose_replicas_are_gone_is_ended_all_the_same() -> None:
    rehearsal = Rehearsal(old=40, new=40, free=10, experiment_share=1_000)
    await rehearsal.prepare()
    rehearsal.simulator.failing_models.add(NEW)
    assert rehearsal.simulator.kill(NEW, 100) > 0
    await ends_as(rehearsal, State.SUCCEEDED)
    await serves_only(rehearsal, OLD, 40)


async def test_a_side_that_carries_a_dead_models_share_is_made_short_again_only_after_people_were_called() -> None:
    rehearsal = Rehearsal(old=60, new=60, free=30, experiment_share=3_000, other_share=1_000)
    await rehearsal.prepare()
    await rehearsal.run(6)
    rehearsal.simulator.failing_models.add(OTHER)
    assert rehearsal.simulator.kill(OTHER, 100) > 0
    rehearsal.abort()
    launch = await rehearsal.run(300)
    assert launch.state is State.ROLLING_BACK
    assert {condition.reason for condition in launch.conditions} >= {"CarriesOthers"}
    assert rehearsal.broken_promises() == []
    assert (await rehearsal.run()).state is State.ROLLED_BACK


async def test_replicas_that_are_about_to_be_drained_are_given_no_weight_back() -> None:
    rehearsal = Rehearsal(old=20, new=20, free=6, acknowledge_seconds=(0.5, 1.0))
    await rehearsal.prepare()
    reduced = 0

    def abort_after_a_reduction() -> None:
        nonlocal reduced
        reduced = sum(event.startswith("OldReduced") for event in rehearsal.store.events)
        if reduced == 2:
            rehearsal.abort()

    launch = await rehearsal.run(between=abort_after_a_reduction)
    assert launch.state is State.ROLLED_BACK and reduced == 2
    assert rehearsal.broken_promises() == []


async def test_a_gate_that_fails_leads_back_and_says_why() -> None:
    rehearsal = Rehearsal(old=20, new=20, free=6, policy=GATED)
    await rehearsal.prepare()
    rehearsal.books.verdict = Verdict.FAIL
    await ends_as(rehearsal, State.ROLLED_BACK)
    abort = rehearsal.launch.abort
    assert abort is not None and abort.author == "gate/stability"
    await serves_only(rehearsal, OLD, 20)
    assert rehearsal.books.finalized == {"launches/l": False}


async def test_a_gate_that_cannot_decide_extends_the_bake_and_then_pauses() -> None:
    rehearsal = Rehearsal(old=20, new=20, free=6, policy=GATED)
    await rehearsal.prepare()
    rehearsal.books.verdict = Verdict.INCONCLUSIVE
    launch = await rehearsal.run(200)
    assert launch.state is State.SHIFTING and launch.step.extensions == 3
    # Every two seconds, and no oftener although the bake is over.
    assert rehearsal.books.asked <= 110
    assert [pause.author for pause in launch.pause_reasons] == ["gate/stability"]
    rehearsal.books.verdict = Verdict.FAIL
    # Paused, the gate goes on to be measured, and the safety rollback stays live.
    await ends_as(rehearsal, State.ROLLED_BACK)


async def test_a_judge_that_is_away_holds_the_launch_and_rolls_nothing_back() -> None:
    rehearsal = Rehearsal(old=20, new=20, free=6, policy=GATED)
    await rehearsal.prepare()
    rehearsal.books.verdict = Verdict.ERROR
    launch = await rehearsal.run(2_000)
    assert launch.state is State.SHIFTING and launch.step.number == 1
    assert {condition.reason for condition in launch.conditions} >= {"GateErrored"}
    rehearsal.books.verdict = Verdict.PASS
    await ends_as(rehearsal, State.SUCCEEDED)


async def test_an_agent_that_is_cut_off_holds_the_launch_and_its_deadlines() -> None:
    rehearsal = Rehearsal(old=20, new=20, free=6)
    await rehearsal.prepare()
    await rehearsal.run(4)
    rehearsal.simulator.partitioned = True
    before = len(rehearsal.simulator.ledger)
    launch = await rehearsal.run(3_000)
    acts = [effect for effect in rehearsal.simulator.ledger[before:] if effect.key]
    assert launch.state is State.SHIFTING and acts == []
    rehearsal.simulator.partitioned = False
    await ends_as(rehearsal, State.SUCCEEDED)


async def test_a_candidate_whose_replicas_never_start_is_taken_back_at_the_deadline() -> None:
    # A short one: all that time, the agent tries again twice a second and the launcher looks.
    policy = Policy(step_deadline=timedelta(seconds=30), stability_gate=StabilityGate(disabled=True))
    rehearsal = Rehearsal(old=20, new=20, free=6, policy=policy)
    rehearsal.simulator.failing_models.add(NEW)
    await rehearsal.prepare()
    await ends_as(rehearsal, State.ROLLED_BACK)
    abort = rehearsal.launch.abort
    assert abort is not None and abort.author == "deadline"
    await serves_only(rehearsal, OLD, 20)


async def test_a_candidate_that_dies_as_a_whole_is_taken_back_at_once() -> None:
    rehearsal = Rehearsal(old=20, new=20, free=6)
    await rehearsal.prepare()
    await rehearsal.run(12)
    rehearsal.simulator.failing_models.add(NEW)
    assert rehearsal.simulator.kill(NEW, 100) > 0
    await ends_as(rehearsal, State.ROLLED_BACK)
    assert rehearsal.launch.abort is not None and rehearsal.launch.abort.author == "availability"


@pytest.mark.parametrize("aborted", [False, True])
async def test_an_experiment_without_replicas_stops_neither_the_launch_nor_its_way_back(aborted: bool) -> None:
    rehearsal = Rehearsal(old=40, new=24, free=20, other_share=1_000)
    await rehearsal.prepare()
    rehearsal.simulator.failing_models.add(OTHER)
    assert rehearsal.simulator.kill(OTHER, 100) > 0
    await rehearsal.run(30)
    assert rehearsal.launch.step.number > 1
    if aborted:
        rehearsal.abort()
    started = rehearsal.clock.monotonic()
    await ends_as(rehearsal, State.ROLLED_BACK if aborted else State.SUCCEEDED)
    assert rehearsal.clock.monotonic() - started < 120
    seen = await rehearsal.simulator.observe(TARGET)
    assert seen.model(OLD if aborted else NEW).acknowledged_basis_points == 10_000


async def test_a_hanging_call_that_comes_through_after_the_lease_does_no_harm() -> None:
    rehearsal = Rehearsal(old=50, new=42, free=10, hang_rate=0.5, seed=3)
    await rehearsal.prepare()
    await ends_as(rehearsal, State.SUCCEEDED)
    assert rehearsal.hung > 2


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
        rehearsal = Rehearsal(
            old=old,
            new=max(2, round(old * ratio)),
            free=free,
            seed=seed,
            crash_rate=crash_rate,
            lost_call_rate=lost / 2,
            lost_answer_rate=lost,
            hang_rate=hang_rate,
            mean_life_seconds=life,
            other_share=other_share,
            experiment_share=experiment_share,
            policy=GATED if gated else None,
        )
        await rehearsal.prepare()
        if other_share and restless and not experiment_share:
            rehearsal.simulator.failing_models.add(OTHER)
            rehearsal.simulator.kill(OTHER, 100)
        start = rehearsal.clock.monotonic()

        def between() -> None:
            if abort_at is not None and rehearsal.clock.monotonic() - start >= abort_at:
                rehearsal.abort()
            if rehearsal.draw.random() < restless:
                # People pause and resume, and the judge comes and goes.
                rehearsal.draw.choice((rehearsal.pause, rehearsal.resume))()
                rehearsal.books.verdict = rehearsal.draw.choice(
                    (Verdict.PASS, Verdict.PASS, Verdict.ERROR, Verdict.INCONCLUSIVE)
                )

        launch = await rehearsal.run(2_500, between)
        if launch.plan is None:
            return  # It does not fit; there is nothing to promise.
        assert rehearsal.broken_promises() == [], "\n".join(rehearsal.store.events)
        rehearsal.simulator.behaviour = type(rehearsal.behaviour)()
        rehearsal.crashes.rate = rehearsal.books.platform.hang_rate = restless = 0.0
        rehearsal.books.verdict = Verdict.PASS
        rehearsal.resume()
        launch = await rehearsal.run(5_000, between)
        assert launch.ended, "\n".join(rehearsal.store.events[-40:])
        assert rehearsal.broken_promises() == [], "\n".join(rehearsal.store.events)
        outcome = {State.SUCCEEDED: "succeeded", State.ROLLED_BACK: "released"}.get(launch.state)
        assert rehearsal.settled in (outcome, "cancelled", "")

    asyncio.run(story())
