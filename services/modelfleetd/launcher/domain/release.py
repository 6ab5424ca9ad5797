"""When a launch is expected to give back what it holds, and when that is worth telling: others wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.deadlines import NO_TIME
from modelfleetd.launcher.domain.hold import HoldState
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import State

# A holder is missed once nothing was heard of it for ten minutes: this leaves two attempts that may fail.
RENEW: Final = timedelta(minutes=3)
# What nobody answered is tried again so much later.
RETRY: Final = timedelta(seconds=20)
# Told at once where it has moved by more than this, and by more than a tenth of what is left.
_MOVED: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Told:
    """What capacity was told last: when the launch is expected to end (None: not known), and when it is told again."""

    release: datetime | None
    again: datetime


def is_holding(launch: Launch) -> bool:
    """Whether capacity has, or is about to have, something in the launch's name."""
    return bool(launch.reservation) and not launch.settled and not launch.ended


def told_at_first(launch: Launch, now: datetime) -> Told:
    """What the reservation itself has told."""
    return Told(launch.told_release, now if launch.reserve_time is None else launch.reserve_time + RENEW)


def is_due(told: Told, release: datetime | None, now: datetime) -> bool:
    """Whether capacity is to be told: now and then that the holder is there, and at once that its end has moved."""
    if now >= told.again:
        return True
    if release is None or told.release is None:
        return False
    return abs(release - told.release) > max(_MOVED, abs(release - now) / 10)


def times_of(launch: Launch, now: datetime) -> Mapping[str, datetime | None]:
    """What a launch is due until, by the field that shows it; None where nothing is. Pauses stop deadlines."""
    if launch.ended:
        return {}
    counting = not launch.paused and launch.state is not State.ROLLING_BACK
    return {
        "deadline_time": launch.deadline if counting else None,
        "step_deadline_time": launch.step.deadline if counting and launch.state is State.SHIFTING else None,
        "expected_end_time": expected_release(launch, now),
    }


def expected_release(launch: Launch, now: datetime) -> datetime | None:
    """When the launch is expected to end; None where only people know: then what was told last stays."""
    plan = launch.plan
    if plan is None:
        return None
    if launch.state is State.ROLLING_BACK:
        return max(now, launch.phase_times[-1].start_time + _worst_undo(launch))
    if launch.paused:
        return None
    if launch.frozen is not None:
        now = max(now, launch.frozen.end_time)
    match launch.state:
        case State.PREPARING if launch.hold is not None and launch.hold.state is HoldState.PENDING:
            return None if launch.hold.time is None else max(now, launch.hold.time) + plan.expected_duration
        case State.PREPARING:
            return now + plan.expected_duration
        case State.SHIFTING:
            return _shifted(launch, now)
        case State.FINALIZING:
            return now
        case _:
            return None


def _shifted(launch: Launch, now: datetime) -> datetime:
    """The end of the step that it is at, as far as that can be seen, and after it what the plan says."""
    plan, number = launch.plan, launch.step.number
    assert plan is not None
    wave = next(at for at, regions in enumerate(plan.waves) if launch.region_plan in regions)
    planned = max(region.takes(number) for region in plan.waves[wave])
    end = launch.bake_end or (launch.step.start_time or now) + planned
    return max(now, end) + plan.left_after(wave, number)


def _worst_undo(launch: Launch) -> timedelta:
    """How long the way back takes at worst: from the step that it turned round at; all regions go back together."""
    assert launch.plan is not None
    if not launch.touched or launch.step.number == 0:
        return NO_TIME
    wave = waves.shifted(launch)
    before = (region.steps[-1].worst_undo for region in launch.plan.regions[: wave[0]])
    there = (launch.plan.regions[at].steps[waves.at_region(launch, at).step.number - 1].worst_undo for at in wave)
    return max((*before, *there))
