"""The peak of a swap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.capacity.domain.replicas import replicas_for_share
from modelfleetd.capacity.domain.swap import Side, Swap, full_route


def test_the_peak_of_500_to_420_in_steps_of_a_fifth_is_584() -> None:
    swap = Swap(Side("cpu", 420, 1), full_route(500, "cpu"), 10_000, 2)
    assert [step.new_replicas + step.old_replicas for step in swap.steps(2_000)] == [584, 568, 552, 536, 520]
    assert swap.peaks(2_000) == {"cpu": 584}


def test_freed_capacity_of_one_flavor_does_not_pay_for_another() -> None:
    swap = Swap(Side("gpu", 10, 4), full_route(500, "cpu"), 10_000, 2)
    assert swap.peaks(2_000) == {"gpu": 40, "cpu": 500}


def test_an_experiment_without_a_model_to_replace_needs_what_its_share_needs() -> None:
    swap = Swap(Side("cpu", 420, 2), None, 500, 2)
    assert swap.peaks(2_000) == {"cpu": 42}


@given(st.integers(0, 2_000), st.integers(0, 2_000), st.sampled_from([10_000, 5_000, 2_000, 500, 100]))
def test_smaller_steps_never_need_more_and_every_step_carries_the_whole_route(new: int, old: int, step: int) -> None:
    swap = Swap(Side("cpu", new, 1), full_route(old, "cpu"), 10_000, 2)
    assert swap.peaks(step)["cpu"] >= swap.peaks(max(1, step // 2))["cpu"]
    steps = list(swap.steps(step))
    assert steps[-1].share == 10_000
    assert steps[-1].new_replicas == replicas_for_share(new, 10_000, 2)
    assert steps[0].old_replicas == replicas_for_share(old, 10_000, 2)
