"""Plans: the worked examples, and LAUNCH.md's properties 1 to 4 for all inputs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import PlanInfeasible
from modelfleetd.launcher.domain.envelope import Envelope, of_plan, within
from modelfleetd.launcher.domain.plan import Plan, RegionPlan
from modelfleetd.launcher.domain.planning import Inputs, Pace, Room, make, together
from modelfleetd.launcher.domain.policy import Policy
from modelfleetd.launcher.domain.replicas import inferred_full, replicas_for, share_of
from modelfleetd.launcher.domain.shares import agrees
from modelfleetd.launcher.domain.sides import Side

CPU, GPU = "flavors/cpu", "flavors/gpu"
PACE, POLICY = Pace(), Policy()


def swap(
    old: int, new: int, free: int, *, pace: Pace = PACE, new_flavor: str = CPU, new_free: int = 0, least: int = 2
) -> RegionPlan:
    room = {CPU: Room(booked=old, free=free)}
    if new_flavor != CPU:
        room[new_flavor] = Room(free=new_free)
    candidate = Side("new", new_flavor, new, least)
    baseline = Side("old", CPU, old, least, running=max(old, least), share=10_000)
    return make(Inputs("regions/eu", candidate, baseline, room), pace)


def test_500_to_420_in_steps_of_a_fifth_peaks_at_584_and_then_ever_less() -> None:
    plan = swap(500, 420, free=1_000)
    assert [step.peak_units for step in plan.steps] == [584, 568, 552, 536, 520]
    (hold,) = plan.holds
    assert (hold.hold_units, hold.moved_units, hold.extra_units) == (584, 500, 84)


def test_84_spare_units_suffice_for_it() -> None:
    assert len(swap(500, 420, free=84).steps) == 5


def test_500_to_600_with_100_spare_ones_never_ends_and_the_answer_says_what_it_needs() -> None:
    with pytest.raises(PlanInfeasible) as raised:
        swap(500, 600, free=100)
    assert raised.value.metadata["missing_units"] == "4"
    assert "needs 104 free, and then takes 19 steps" in raised.value.message
    assert len(swap(500, 600, free=104).steps) == 19


def test_with_little_to_spare_the_steps_follow_what_was_freed() -> None:
    plan = swap(500, 500, free=50)
    assert [step.share for step in plan.steps] == list(range(1_000, 10_001, 1_000))
    assert all(step.peak_units <= 550 for step in plan.steps)


def test_what_one_flavor_frees_does_not_pay_for_another() -> None:
    plan = swap(500, 40, free=0, new_flavor=GPU, new_free=40)
    assert [step.share for step in plan.steps] == [2_000, 4_000, 6_000, 8_000, 10_000]
    assert {hold.flavor: hold.hold_units for hold in plan.holds} == {CPU: 500, GPU: 40}
    with pytest.raises(PlanInfeasible) as raised:
        swap(500, 40, free=500, new_flavor=GPU, new_free=39)
    assert raised.value.metadata["flavor"] == GPU and raised.value.metadata["missing_units"] == "1"
    assert f"it lacks 1 unit of {GPU}" in raised.value.message


def test_the_first_model_of_a_route_takes_everything_in_one_step() -> None:
    plan = make(Inputs("regions/eu", Side("new", CPU, 40), None, {CPU: Room(free=40)}), Pace())
    assert [(step.share, step.new_replicas, step.old_before) for step in plan.steps] == [(10_000, 40, 0)]


def test_a_limit_that_is_too_tight_is_named() -> None:
    with pytest.raises(PlanInfeasible, match=r"20 steps of at most 5 %, and 5 are allowed\.$"):
        swap(50, 50, free=50, pace=Pace(max_step=500, max_steps=5))
    with pytest.raises(PlanInfeasible, match="longer than the launch's deadline"):
        swap(50, 50, free=50, pace=Pace(bake=timedelta(hours=3), deadline=timedelta(hours=10)))


def test_regions_that_each_fit_the_deadline_are_refused_where_together_they_do_not() -> None:
    pace = Pace(bake=timedelta(hours=1), deadline=timedelta(hours=12))
    region = swap(50, 50, free=50, pace=pace)
    assert together((region, region), pace).expected_duration < pace.deadline
    with pytest.raises(PlanInfeasible, match=r"15 steps in 3 regions take .* longer than the launch's deadline"):
        together((region, region, region), pace)


def test_more_replicas_than_the_share_needs_are_counted_while_they_run() -> None:
    baseline = Side("old", CPU, 50, running=70, share=10_000)
    plan = make(Inputs("regions/eu", Side("new", CPU, 50), baseline, {CPU: Room(70, 10)}), Pace())
    assert plan.steps[0].old_before == 70 and plan.steps[0].old_after == 40


@given(
    old=st.integers(1, 3_000),
    new=st.integers(1, 3_000),
    free=st.integers(0, 3_000),
    least=st.integers(1, 5),
    max_step=st.integers(25, 10_000),
)
def test_every_plan_keeps_the_promises(old: int, new: int, free: int, least: int, max_step: int) -> None:
    pace = Pace(max_step, 100, deadline=timedelta(days=400))
    try:
        plan = swap(old, new, free, pace=pace, least=least)
    except PlanInfeasible as error:
        missing = int(error.metadata["missing_units"])
        if missing:
            swap(old, new, free + missing, pace=pace, least=least)
            with pytest.raises(PlanInfeasible):
                swap(old, new, free + missing - 1, pace=pace, least=least)
        return
    held = plan.held(CPU)
    assert held <= old + free
    before = 0
    for step in plan.steps:
        assert before < step.share <= before + max_step
        # 1: what each side has at each moment carries its share, before the shift and after it.
        assert step.old_before >= replicas_for(old, 10_000 - before, least)
        assert step.new_replicas >= replicas_for(new, step.share, least)
        assert step.old_after >= replicas_for(old, 10_000 - step.share, least)
        # 2: both fit the hold; 3: so does the way back, which has the same peak.
        assert step.new_replicas + step.old_before == step.peak_units <= held
        before = step.share
    assert before == 10_000
    # 4: with room for the whole candidate, the fewest steps that the step size allows.
    if free >= replicas_for(new, 10_000, least):
        assert len(plan.steps) == -(-10_000 // max_step)


@given(
    full=st.integers(0, 5_000), least=st.integers(1, 5), available=st.integers(0, 6_000), most=st.integers(0, 10_000)
)
def test_the_share_that_replicas_carry_is_the_largest_that_they_suffice_for(
    full: int, least: int, available: int, most: int
) -> None:
    share = share_of(full, available, least, most)
    assert 0 <= share <= most
    assert replicas_for(full, share, least) <= available or share == 0
    if share < most:
        assert replicas_for(full, share + 1, least) > available


def test_shares_are_integers_so_three_fifths_of_420_are_252() -> None:
    assert replicas_for(420, 6_000, 2) == 252
    assert inferred_full(252, 6_000) == 420


@pytest.mark.parametrize(
    ("intended", "observed", "requests", "agree"),
    [
        (2_000, 2_100, 10**9, True),
        (2_000, 2_101, 10**9, False),
        (2_000, 3_100, 100, True),
        (2_000, 3_300, 100, False),
        (10_000, 9_900, 50, True),
        (10_000, 9_899, 50, False),
    ],
)
def test_a_share_is_observed_up_to_chance(intended: int, observed: int, requests: int, agree: bool) -> None:
    assert agrees(intended, observed, requests) is agree


def test_an_approval_covers_smaller_plans_and_no_others() -> None:
    def envelope(plan: RegionPlan, policy: Policy = POLICY, baseline: str = "old") -> Envelope:
        return of_plan(
            Plan((plan,)),
            policy,
            candidate="new",
            serving_spec_digest="sha256:1",
            baseline=baseline,
            strategy="REPLACE_BASELINE",
        )

    approved = envelope(swap(500, 420, free=1_000))
    assert within(envelope(swap(500, 420, free=60)), approved)
    for other in (
        envelope(swap(500, 450, free=1_000)),
        envelope(swap(500, 420, free=60), baseline="another"),
        envelope(swap(500, 420, free=60), Policy(bake_duration=timedelta(0))),
    ):
        assert not within(other, approved)
        assert other.digest != approved.digest
