"""Plans of every strategy: LAUNCH.md's properties 1 to 4 for all inputs, and what each comes to."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import PlanInfeasible
from modelfleetd.launcher.domain.plan import RegionPlan
from modelfleetd.launcher.domain.planning import Inputs, Pace, Room, make
from modelfleetd.launcher.domain.replicas import replicas_for
from modelfleetd.launcher.domain.sides import Side
from modelfleetd.launcher.domain.strategies import RULES, Goal, Strategy, check_asked, final_share, inputs_of

CPU, EU = "flavors/cpu", "regions/eu"
SWAPS = [strategy for strategy in Strategy if strategy.rule.swaps]


def planned(
    strategy: Strategy,
    candidate: Side,
    baseline: Side | None,
    free: int,
    *,
    target: int = 0,
    holdout: int = 0,
    pace: Pace | None = None,
) -> RegionPlan:
    """The plan of a launch of that strategy, where so much is free."""
    room = {CPU: Room(candidate.running + (baseline.running if baseline else 0), free)}
    both = candidate.share + (baseline.share if baseline else 0)
    final = final_share(strategy, both=both, present=candidate.share, target=target, holdout=holdout)
    raises = final >= candidate.share and strategy.rule.goal is not Goal.NOTHING
    new, old = (candidate, baseline) if raises or baseline is None else (baseline, candidate)
    sides = Inputs(EU, new, old, room)
    made = make(inputs_of(strategy, sides, raises=raises, target=target, holdout=holdout), pace or Pace())
    assert made.share_at_end(candidate.model) == final
    return made


def side(model: str, full: int, share: int, *, least: int = 2, more: int = 0) -> Side:
    running = replicas_for(full, share, least) + more
    return Side(model, CPU, full, least, running=running, share=share)


def test_what_500_to_420_holds_does_not_depend_on_why() -> None:
    replacing = planned(Strategy.REPLACE_BASELINE, side("new", 420, 0), side("old", 500, 10_000), 84)
    back = planned(Strategy.ROLL_BACK, side("new", 420, 0), side("old", 500, 10_000), 84)
    assert replacing.held(CPU) == back.held(CPU) == 584
    # With room for all of it at once, a rollback is one step.
    pace = Pace(max_step=10_000, bake=timedelta(0))
    (step,) = planned(Strategy.ROLL_BACK, side("new", 420, 0), side("old", 500, 10_000), 420, pace=pace).steps
    assert (step.share, step.new_replicas, step.old_before, step.old_after) == (10_000, 420, 500, 0)


def test_a_holdout_keeps_its_share_and_the_replicas_for_it() -> None:
    plan = planned(Strategy.REPLACE_BASELINE, side("new", 420, 0), side("old", 500, 10_000), 84, holdout=500)
    last = plan.steps[-1]
    assert (last.share, last.new_replicas, last.old_share, last.old_after) == (9_500, 399, 500, 25)
    assert plan.at_end == {CPU: 424} and plan.held(CPU) == 584


def test_a_small_experiment_holds_what_it_needs_beside_the_whole_baseline() -> None:
    plan = planned(Strategy.START_EXPERIMENT, side("new", 420, 0), side("old", 500, 10_000), 50, target=1_000)
    (step,) = plan.steps
    assert (step.new_replicas, step.old_after, plan.held(CPU)) == (42, 450, 542)
    # To end it again the baseline has to grow first.
    assert plan.for_rollback == {CPU: 50}


def test_ramping_down_grows_the_baseline() -> None:
    plan = planned(Strategy.RAMP, side("new", 420, 3_000), side("old", 500, 7_000), 200, target=500)
    assert plan.candidate.model == "old" and [step.share for step in plan.steps] == [9_000, 9_500]
    assert (plan.steps[-1].new_replicas, plan.steps[-1].old_after) == (475, 21)


def test_resizing_holds_the_larger_of_both_numbers_and_books_the_new_one() -> None:
    larger = planned(Strategy.RESIZE, Side("m", CPU, 500, running=420, share=10_000), None, 80)
    assert (larger.held(CPU), larger.holds[0].extra_units, larger.at_end) == (500, 80, {CPU: 500})
    (step,) = larger.steps
    assert (step.new_replicas, step.taken_units, step.freed_units, step.peak_units) == (500, 80, 0, 500)
    smaller = planned(Strategy.RESIZE, Side("m", CPU, 420, running=500, share=10_000), None, 0)
    assert (smaller.held(CPU), smaller.holds[0].extra_units, smaller.at_end) == (500, 0, {CPU: 420})
    (step,) = smaller.steps
    assert (step.new_replicas, step.taken_units, step.freed_units, step.peak_units) == (420, 0, 80, 500)
    assert (smaller.cost_peak, smaller.for_rollback) == (0.0, {})
    with pytest.raises(PlanInfeasible, match=r"from 420 replicas to 500 .* needs 80 free, and then takes 1 step;"):
        planned(Strategy.RESIZE, Side("m", CPU, 500, running=420, share=10_000), None, 79)


@given(
    full=st.integers(1, 3_000),
    running=st.integers(1, 3_000),
    share=st.integers(1, 10_000),
    least=st.integers(1, 5),
    free=st.integers(0, 3_000),
)
def test_a_resized_model_has_just_what_its_share_needs_whatever_it_had(
    full: int, running: int, share: int, least: int, free: int
) -> None:
    model = Side("m", CPU, full, least, running=running, share=share)
    needed = replicas_for(full, share, least)
    if needed > running + free:
        with pytest.raises(PlanInfeasible) as raised:
            planned(Strategy.RESIZE, model, None, free)
        assert int(raised.value.metadata["missing_units"]) == needed - running - free
        return
    plan = planned(Strategy.RESIZE, model, None, free)
    (step,) = plan.steps
    assert (step.share, step.new_replicas, plan.goal) == (share, needed, share)
    # What it had fits as well: so does the way back.
    assert plan.held(CPU) == step.peak_units == max(needed, running) <= running + free


@given(
    strategy=st.sampled_from(SWAPS),
    old=st.integers(1, 2_000),
    new=st.integers(1, 2_000),
    free=st.integers(0, 2_000),
    least=st.integers(1, 5),
    max_step=st.integers(25, 10_000),
    others=st.sampled_from([0, 0, 1_500]),
    present=st.integers(1, 4_000),
    wanted=st.integers(1, 4_000),
    surplus=st.sampled_from([0, 0, 7]),
)
def test_every_plan_of_every_strategy_keeps_the_promises(
    strategy: Strategy,
    old: int,
    new: int,
    free: int,
    least: int,
    max_step: int,
    others: int,
    present: int,
    wanted: int,
    surplus: int,
) -> None:
    serves = strategy in (Strategy.RAMP, Strategy.END_EXPERIMENT)
    has = present if serves else 0
    both = 10_000 - others
    candidate = side("new", new, has, least=least)
    baseline = side("old", old, both - has, least=least, more=surplus)
    target = wanted if strategy.rule.has_target else 0
    holdout = wanted if strategy.rule.may_hold_out else 0
    pace = Pace(max_step, 400, bake=timedelta(0), deadline=timedelta(days=400))
    try:
        plan = planned(strategy, candidate, baseline, free, target=target, holdout=holdout, pace=pace)
    except PlanInfeasible:
        return
    rising, falling = plan.candidate, plan.baseline
    assert falling is not None
    booked = candidate.running + baseline.running
    held = plan.held(CPU)
    assert held <= booked + free
    before, had_old = rising.share, falling.running
    for step in plan.steps:
        assert before <= step.share <= before + max_step and step.share + step.old_share == both
        # 1: what each side has at each moment carries its share, before the shift and after it.
        assert step.old_before >= replicas_for(falling.full, both - before, least)
        assert step.new_replicas >= replicas_for(rising.full, step.share, least)
        assert step.old_after >= replicas_for(falling.full, step.old_share, least)
        # 2: both fit the hold; 3: so does the way back, where the giving side grows to what it had before the step.
        assert step.new_replicas + step.old_before == step.peak_units <= held
        assert replicas_for(rising.full, step.share, least) + step.old_before <= held
        assert step.old_before <= had_old
        before, had_old = step.share, step.old_after
    assert plan.goal == before
    # 4: with room for everything that grows, the fewest steps that the step size allows.
    distance = plan.goal - rising.share
    if free >= replicas_for(rising.full, plan.goal, least):
        assert len(plan.steps) == max(1, -(-distance // max_step))
    # What stays for a rollback is within what was held.
    assert plan.at_end[CPU] + plan.for_rollback.get(CPU, 0) <= held


def test_every_strategy_is_described_and_mitigations_go_everywhere_ungated() -> None:
    assert set(RULES) == set(Strategy)
    for strategy, rule in RULES.items():
        named = {wrong.path for wrong in check_asked(strategy, target=500, holdout=500, regions=1)}
        assert ("launch.target_share_basis_points" in named) is (not rule.has_target)
        assert ("launch.holdout_share_basis_points" in named) is (strategy is not Strategy.REPLACE_BASELINE)
        assert ("launch.regions" in named) is rule.mitigation
        assert not (rule.mitigation and rule.gated)
