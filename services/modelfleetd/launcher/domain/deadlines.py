"""How the deadlines of a launch move: what counts against them, and what does not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import STABILITY, StepState

NO_TIME: Final = timedelta(0)


def postponed(launch: Launch, by: timedelta) -> Launch:
    """Pushes every deadline on: time does not count while it is paused, or while nobody could look."""
    step, people = launch.step, launch.people_wait
    return replace(
        launch,
        people_wait=people and replace(people, deadline=people.deadline + by),
        deadline=None if launch.deadline is None else launch.deadline + by,
        approval_deadline=None if launch.approval_deadline is None else launch.approval_deadline + by,
        step=replace(step, deadline=None if step.deadline is None else step.deadline + by),
    )


def accounted(launch: Launch, now: datetime) -> Launch:
    """Accounts for time in which its deadlines stood still although nobody had paused it.

    Time in which a gate could not judge is no bake, and counts against no deadline unless the policy says so. Time in
    which a freeze window or people hold it back counts against no deadline either, but that of the people; what bakes
    goes on baking.
    """
    since, frozen, people, asked = launch.step.held_since, launch.frozen, launch.people_wait, launch.asked
    still = [] if since is None or errors_count(launch) else [since]
    still += [] if asked.held_since is None else [asked.held_since]
    still += [] if frozen is None else [frozen.counted]
    still += [] if people is None else [people.accounted]
    # While it is paused its deadlines stand still anyway.
    if still and not launch.paused:
        launch = postponed(launch, now - min(still))
    launch = replace(
        launch,
        asked=asked if asked.held_since is None else replace(asked, held_since=now),
        frozen=frozen and replace(frozen, counted=now),
        people_wait=people and replace(people, accounted=now),
    )
    if since is None:
        return launch
    step, start = launch.step, launch.step.bake_start
    return replace(launch, step=replace(step, held_since=now, bake_start=start and start + (now - since)))


def errors_count(launch: Launch) -> bool:
    """Whether time in which a gate cannot be asked counts against deadlines: the policy may say so of the judge."""
    return launch.policy.stability_gate.roll_back_on_error and STABILITY in launch.step.erring


def begin_step(launch: Launch, number: int, now: datetime, region: int | None = None) -> Launch:
    """Goes on to a step, with fresh gates and a fresh deadline."""
    at = launch.step.region if region is None else region
    launch = accounted(launch, now)
    deadline = now + launch.policy.step_deadline + launch.policy.bake_duration
    return replace(launch, step=StepState(region=at, number=number, start_time=now, deadline=deadline))


def ask_again(launch: Launch, now: datetime) -> Launch:
    """Says when the gate is asked next: a part of the bake later, within reason, and always at the bake's end."""
    bake = launch.policy.bake_duration.total_seconds()
    seconds = max(2.0, min(60.0, bake / 4), min(300.0, bake / 20))
    again, end = now + timedelta(seconds=seconds), launch.bake_end
    if end is not None and now < end:
        again = min(again, end)
    return replace(launch, step=replace(launch.step, next_judge=again))


def alarm_after(launch: Launch, now: datetime) -> Launch:
    """On the way back something got on: people are called where nothing does from now on, for as long as a step may."""
    return replace(launch, step=replace(launch.step, deadline=now + launch.policy.step_deadline))
