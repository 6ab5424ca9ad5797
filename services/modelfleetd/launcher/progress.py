"""What really serves, as a launch shows it."""

from __future__ import annotations

from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.observed import Observed, Seen
from modelfleetd.launcher.domain.plan import RegionPlan
from modelfleetd.launcher.domain.record import RegionProgress, Share, SideProgress
from modelfleetd.launcher.domain.states import State


def with_progress(launch: Launch, seen: Seen, split: tuple[Share, ...]) -> Launch:
    """The launch with what was just observed of one region, and the split that its agent works towards."""
    assert launch.plan is not None
    at, plan = next((at, plan) for at, plan in enumerate(launch.plan.regions) if plan.region == seen.region)
    known = next((progress for progress in launch.progress if progress.region == plan.region), None)
    there = at in waves.shifted(launch)
    step = waves.at_region(launch, at).step.number if there else (known.step if known else 0)
    sides = (_side(seen.candidate), _side(seen.baseline))
    of_candidate, of_baseline = sides if launch.candidate == launch.rising else sides[::-1]
    made = RegionProgress(
        region=plan.region,
        step=step,
        candidate=of_candidate,
        baseline=of_baseline,
        free_units=_free(seen, plan),
        bake_end_time=launch.bake_end if launch.state is State.SHIFTING and not launch.step.passed else None,
        observe_time=seen.time,
    )
    others = tuple(progress for progress in launch.progress if progress.region != plan.region)
    return replace(launch, progress=(*others, made), splits={**launch.splits, plan.region: split})


def _free(seen: Seen, plan: RegionPlan) -> int:
    return sum(max(0, seen.free(plan, hold.flavor)) for hold in plan.holds)


def _side(seen: Observed) -> SideProgress:
    return SideProgress(
        intended_basis_points=seen.share,
        observed_basis_points=seen.observed if seen.requests else seen.acknowledged,
        desired_replicas=seen.desired,
        available_replicas=seen.available,
        total_replicas=seen.existing,
        requests=seen.requests,
        errors=seen.errors,
    )
