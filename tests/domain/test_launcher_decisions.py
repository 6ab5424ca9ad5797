"""What a launch does next, decision by decision: made-up launches and observations, no machinery."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from modelfleetd.launcher.domain.actions import Action, Judge, Wait
from modelfleetd.launcher.domain.decide import next_action
from modelfleetd.launcher.domain.launch import (
    GateVerdict,
    Launch,
    ModelFacts,
    PhaseTime,
    State,
    Strategy,
    Verdict,
    begin_step,
)
from modelfleetd.launcher.domain.observed import Observed, Seen
from modelfleetd.launcher.domain.outcomes import judged
from modelfleetd.launcher.domain.plan import Inputs, Pace, Plan, Room, Side, make
from modelfleetd.launcher.domain.policy import Policy, StabilityGate

TYPE, CPU, EU = "modelTypes/ctr", "flavors/cpu", "regions/eu"
OLD, NEW = f"{TYPE}/models/old", f"{TYPE}/models/new"
T0 = datetime(2025, 1, 1, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
POLICY = Policy()


def planned(old: int = 50, new: int = 50, free: int = 20) -> Plan:
    """A swap in five steps."""
    candidate, baseline = Side(NEW, CPU, new), Side(OLD, CPU, old, running=old, share=10_000)
    return Plan((make(Inputs(EU, candidate, baseline, {CPU: Room(old, free)}), Pace()),))


def facts(model: str) -> ModelFacts:
    return ModelFacts(model, "sha256:0", {})


def pending(policy: Policy = POLICY) -> Launch:
    """A launch that has just been created."""
    return Launch(
        name="launches/l",
        uid="u",
        model_type=TYPE,
        candidate=NEW,
        strategy=Strategy.REPLACE_BASELINE,
        pool="pools/p",
        regions=(EU,),
        policy=policy,
        actor="alice",
        trace_id="0" * 31 + "1",
        create_time=T0,
        update_time=T0,
        baseline=OLD,
        phase_times=(PhaseTime(State.PENDING, T0),),
    )


def shifting(policy: Policy = POLICY, number: int = 1, **fields: object) -> Launch:
    """A launch at the beginning of a step."""
    launch = replace(
        pending(policy),
        state=State.SHIFTING,
        plan=planned(),
        gated=not policy.stability_gate.disabled,
        reservation="reservations/r",
        activated=True,
        touched=True,
        deadline=T0 + policy.launch_deadline,
        phase_times=(PhaseTime(State.SHIFTING, T0),),
        **fields,  # type: ignore[arg-type]
    )
    return begin_step(launch, number, T0, region=0)


def at_step(launch: Launch, **changes: object) -> Seen:
    """Both sides are just as the step wants them, and the traffic as well."""
    step = launch.step_plan

    def side(replicas: int, share: int) -> Observed:
        return Observed(replicas, share, available=replicas, acknowledged=share, observed=share)

    seen = Seen(
        EU,
        side(step.new_replicas, step.share),
        side(step.old_before, step.old_share),
        requests=1_000,
        split_age=MINUTE,
        time=T0,
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def baking(policy: Policy = POLICY) -> Launch:
    """A launch whose first step has just begun to bake."""
    launch = shifting(policy)
    begins = next_action(launch, at_step(launch), T0)
    return begins.launch  # type: ignore[union-attr]


def says(launch: Launch, verdict: Verdict, now: datetime, *, final: bool) -> Launch:
    """The gate has answered."""
    found = GateVerdict("stability", EU, launch.step.number, verdict, "as the test wants", now)
    return judged(launch, found, final=final, now=now)


def decides(launch: Launch, now: datetime) -> Action:
    return next_action(launch, at_step(launch), now)


def judges(launch: Launch, verdict: Verdict, until: datetime, start: datetime = T0) -> tuple[Launch, list[datetime]]:
    """Lets the gate answer the same as often as it is asked; the moments at which it was."""
    asked: list[datetime] = []
    now = start
    while now < until:
        action = decides(launch, now)
        if isinstance(action, Judge):
            asked.append(now)
            launch = says(launch, verdict, now, final=action.final)
            assert len(asked) < 10_000
            continue
        assert isinstance(action, Wait), action
        now += max(0.05, action.seconds) * SECOND
    return launch, asked


# Gates


def test_a_gate_that_has_paused_a_launch_is_asked_at_its_interval_and_no_oftener() -> None:
    launch, asked = judges(baking(), Verdict.INCONCLUSIVE, T0 + 60 * MINUTE)
    assert launch.paused and launch.step.extensions == 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(asked) <= 61 and min(gaps) >= 60 * SECOND


def test_a_gate_is_always_asked_when_the_bake_ends() -> None:
    policy = Policy(bake_duration=90 * SECOND, stability_gate=StabilityGate(max_extensions=0))
    launch, asked = judges(baking(policy), Verdict.INCONCLUSIVE, T0 + 91 * SECOND)
    assert T0 + 90 * SECOND in asked and launch.paused
