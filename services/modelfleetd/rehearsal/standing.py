"""Where a launch in flight stands, read from what `modelfleet launch describe -o json` prints; and whether a rehearsed
launch has got as far. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.kit.codec import timestamp_from_proto
from modelfleetd.launcher.domain import preemption, waves
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.words import span

# In any other state a launch has done nothing yet that could be carried over: it is rehearsed from its beginning.
_CARRIED_OVER: Final = frozenset({State.AWAITING_APPROVAL, State.SHIFTING, State.FINALIZING, State.ROLLING_BACK})
_ORDER: Final = (
    State.PENDING, State.ESTIMATING, State.AWAITING_APPROVAL, State.PREPARING, State.SHIFTING, State.FINALIZING,
)  # fmt: skip


class Stage(enum.IntEnum):
    """How far a step has got."""

    STARTING = 1
    SHIFTED = 2
    BAKING = 3
    PASSED = 4


_STAGES: Final = {
    Stage.STARTING: "its replicas start",
    Stage.SHIFTED: "its share is shifted",
    Stage.BAKING: "it bakes",
    Stage.PASSED: "its bake is over",
}


@dataclass(frozen=True, slots=True)
class Growing:
    """What the side that grows has in a region: its share in basis points, and replicas that are asked for, are
    available, or exist.
    """

    share: int
    desired: int
    available: int
    existing: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a launch stands.

    Attributes:
        state: its state.
        began: when its attempt began.
        region: the first of the wave that is being shifted; empty: none is.
        step: of that wave.
        stage: of that step.
        waits_for_people: whether it stands at a people's gate.
        promoted: whether somebody has promoted it.
        growing: by region.
        bake_end: until when the step bakes.
        deadline: of the launch; None: it stands still.
        step_deadline: of the step.
        pauses: reasons to pause, each with its author.
        abort: why it goes back, and by whom.
    """

    state: State
    began: datetime
    region: str = ""
    step: int = 0
    stage: Stage = Stage.STARTING
    waits_for_people: bool = False
    promoted: bool = False
    growing: Mapping[str, Growing] = field(default_factory=dict)
    bake_end: datetime | None = None
    deadline: datetime | None = None
    step_deadline: datetime | None = None
    pauses: tuple[tuple[str, str], ...] = ()
    abort: tuple[str, str] | None = None


def standing_of(launch: pb.Launch) -> Standing | None:
    """Where a launch stands; None where it has done nothing yet that could be carried over, or has ended."""
    state = State.__members__.get(pb.Launch.State.Name(launch.state))
    if state not in _CARRIED_OVER:
        return None
    pauses = tuple((one.author, one.reason) for one in launch.pause_reasons if not preemption.is_author(one.author))
    lead = _lead(launch)
    if lead is None and state is not State.AWAITING_APPROVAL:
        return None
    progress = {one.region: one for one in launch.progress}
    there = progress.get(lead.region) if lead is not None else None
    return Standing(
        state=state,
        began=timestamp_from_proto(launch.phase_times[0].start_time if launch.phase_times else launch.create_time),
        region=lead.region if lead is not None else "",
        step=launch.current_step if lead is not None else 0,
        stage=_stage(launch, lead, there) if lead is not None and there is not None else Stage.STARTING,
        waits_for_people=state is State.SHIFTING and _may(launch, "ApproveLaunch"),
        promoted=state is State.SHIFTING and not _may(launch, "PromoteLaunch"),
        growing={
            region.region: _growing(region, launch, progress[region.region])
            for region in launch.plan.regions
            if region.region in progress
        },
        bake_end=timestamp_from_proto(there.bake_end_time) if there and there.HasField("bake_end_time") else None,
        deadline=timestamp_from_proto(launch.deadline_time) if launch.HasField("deadline_time") else None,
        step_deadline=(
            timestamp_from_proto(launch.step_deadline_time) if launch.HasField("step_deadline_time") else None
        ),
        pauses=pauses,
        abort=(launch.abort.author, launch.abort.reason) if launch.HasField("abort") else None,
    )


def _may(launch: pb.Launch, verb: str) -> bool:
    return any(allowed.startswith(verb) for allowed in launch.allowed_verbs)


def _lead(launch: pb.Launch) -> pb.RegionPlan | None:
    """The first region of the wave that is being shifted, or was last."""
    begun = {one.region for one in launch.progress if one.step}
    waves_begun = [region.wave for region in launch.plan.regions if region.region in begun]
    if not waves_begun or not launch.current_step:
        return None
    return next(region for region in launch.plan.regions if region.wave == max(waves_begun))


def _grows(launch: pb.Launch, region: pb.RegionPlan) -> bool:
    return region.new_model in ("", launch.candidate)


def _sides(
    region: pb.RegionPlan, launch: pb.Launch, progress: pb.RegionProgress
) -> tuple[pb.SideProgress, pb.SideProgress]:
    both = progress.candidate, progress.baseline
    return both if _grows(launch, region) else (both[1], both[0])


def _growing(region: pb.RegionPlan, launch: pb.Launch, progress: pb.RegionProgress) -> Growing:
    new, _ = _sides(region, launch, progress)
    return Growing(new.intended_basis_points, new.desired_replicas, new.available_replicas, new.total_replicas)


def _stage(launch: pb.Launch, region: pb.RegionPlan, progress: pb.RegionProgress) -> Stage:
    if launch.state == pb.Launch.FINALIZING:
        return Stage.PASSED
    step = region.steps[min(launch.current_step, len(region.steps)) - 1]
    new, old = _sides(region, launch, progress)
    if progress.HasField("bake_end_time"):
        return Stage.BAKING
    swaps = bool(region.old_model)
    if swaps and new.intended_basis_points < step.share_basis_points:
        return Stage.STARTING
    if swaps and old.desired_replicas < step.old_replicas_before:
        return Stage.PASSED
    if _may(launch, "ApproveLaunch"):
        # Somebody is to let it on.
        return Stage.PASSED
    return Stage.SHIFTED if swaps or new.available_replicas >= step.new_replicas else Stage.STARTING


def lost_of(launch: pb.Launch) -> Iterator[tuple[str, str]]:
    """What of a launch in flight is not carried over, each with what it is about."""
    if launch.preempted_by:
        yield "preempted", f"{launch.preempted_by}, for which it holds, is not rehearsed: it goes on at once"
    for progress in launch.progress:
        for side, found in (("candidate", progress.candidate), ("baseline", progress.baseline)):
            missing = found.desired_replicas - found.available_replicas
            if missing > 0 and progress.HasField("bake_end_time"):
                at = progress.region.rpartition("/")[2]
                yield f"missing/{side}/{at}", f"the {missing} missing replicas of the {side} in {at} are available"
    if any(one.reason in ("GateErrored", "GateInconclusive") for one in launch.conditions):
        yield "gates", "gates that could not decide so far are asked anew"
    if launch.gate_verdicts:
        yield "measured", "what its gates have measured so far is as if all had been as usual"


def has_reached(launch: Launch, at: Standing, replicas: Callable[[str, str], tuple[int, int]]) -> bool:
    """Whether a rehearsed launch is where another one stands, or beyond.

    Args:
        launch: the rehearsed one.
        at: where that other one stands.
        replicas: of a model in a region, that are asked for, and that are available.
    """
    if at.state is State.AWAITING_APPROVAL:
        return launch.state is State.AWAITING_APPROVAL or _is_beyond(launch, at.state)
    if launch.state is not State.SHIFTING or launch.plan is None:
        return _is_beyond(launch, State.SHIFTING)
    regions = [plan.region for plan in launch.plan.regions]
    if at.region not in regions:
        return False
    target = waves.members(launch.plan, regions.index(at.region))[0]
    here, there = (launch.step.region, launch.step.number), (target, at.step)
    if here != there:
        return here > there
    if at.waits_for_people and launch.people_wait is None:
        return False
    return _stage_of(launch) >= at.stage and (at.stage > Stage.STARTING or _has_started(launch, at, replicas))


def _is_beyond(launch: Launch, state: State) -> bool:
    return launch.state in _ORDER and _ORDER.index(launch.state) > _ORDER.index(state)


def _stage_of(launch: Launch) -> Stage:
    step = launch.step
    if step.passed:
        return Stage.PASSED
    if step.bake_start is not None:
        return Stage.BAKING
    shares = {one.region: one for one in launch.progress}
    plan = launch.region_plan
    found = shares.get(plan.region)
    if found is None or not launch.rule.swaps:
        return Stage.STARTING
    growing = found.candidate if launch.raises_candidate else found.baseline
    return Stage.SHIFTED if growing.intended_basis_points >= launch.step_plan.share else Stage.STARTING


def _has_started(launch: Launch, at: Standing, replicas: Callable[[str, str], tuple[int, int]]) -> bool:
    """Whether so many of the step's replicas are asked for, and available."""
    assert launch.plan is not None
    for position in waves.shifted(launch):
        plan = launch.plan.regions[position]
        growing = at.growing.get(plan.region)
        step = waves.at_region(launch, position).step_plan
        if growing is None:
            continue
        desired, available = replicas(plan.region, launch.rising)
        if desired < min(growing.desired, step.new_replicas) or available < min(growing.available, step.new_replicas):
            return False
    return True


def has_gone_back(launch: Launch, at: Standing) -> bool:
    """Whether a rehearsed launch has gone back as far as another one: so little share, and so few replicas."""
    if launch.state is not State.ROLLING_BACK:
        return False
    shares = {one.region: one for one in launch.progress}
    for region, growing in at.growing.items():
        found = shares.get(region)
        side = None if found is None else found.candidate if launch.raises_candidate else found.baseline
        if side is not None and (side.intended_basis_points, side.total_replicas) > (growing.share, growing.existing):
            return False
    return True


def said_of(launch: Launch, at: Standing, now: datetime) -> str:
    """Where a rehearsed launch begins that has caught up, in words."""
    match launch.state:
        case State.AWAITING_APPROVAL:
            where = "its plan waits for approval"
        case State.SHIFTING:
            plan, step = launch.region_plan, launch.step
            where = f"step {step.number} of {len(plan.steps)} in {plan.region}: {_STAGES[_stage_of(launch)]}"
            end = launch.bake_end
            if not step.passed and end is not None:
                where += f" for another {span(max(end - now, end - end))}"
            if launch.people_wait is not None:
                where += ", and somebody is to look"
        case State.ROLLING_BACK:
            where = f"on its way back, from step {at.step}"
        case _:
            where = f"in state {launch.state.name}"
    paused = "".join(f"; paused by {author}: {reason}" for author, reason in at.pauses)
    return f"it begins where the launch is: {where}{paused}"
