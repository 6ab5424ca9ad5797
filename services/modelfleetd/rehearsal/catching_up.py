"""Brings a rehearsed launch to where a launch in flight stands.

Until it is there everything goes as usual and everybody agrees, so that machines, capacity and the registry are as the
launcher's own rounds leave them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import Promotion
from modelfleetd.launcher.domain.states import State
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.standing import Standing, has_gone_back, has_reached, said_of

# Replicas that have become available are counted so often.
_LOOK: Final = 1.0
# Whoever is asked meanwhile agrees so much later.
_AGREES: Final = 0.1
# A launch whose steps take longer than it may is not followed.
_LONGEST: Final = 30 * 86_400.0


class CatchingUp:
    """One launch that is to be where another one stands.

    Args:
        fleet: in which it is.
        name: of the launch.
        model_type: its route.
        at: where the other one stands.
        arrived: called once it is there, with where that is in words.
    """

    def __init__(
        self, fleet: Fleet, name: str, model_type: str, at: Standing, arrived: Callable[[str], object]
    ) -> None:
        self._fleet = fleet
        self._name = name
        self._model_type = model_type
        self._at = at
        self._arrived = arrived
        self._is_there = self._goes_back = False

    @property
    def _launch(self) -> Launch:
        return self._fleet.launches.rows[self._name].launch

    async def run(self) -> bool:
        """Runs until it is there; whether it has got there."""
        fleet = self._fleet
        self._agree(lambda launch: launch.people_wait is not None, fleet.approve)
        self._agree(lambda launch: launch.state is State.AWAITING_APPROVAL, fleet.approve)
        # Where its gates cannot decide by what little traffic it had, those of the launch in flight did.
        self._agree(lambda launch: launch.paused, self._promote)
        fleet.when(self._name, self._has_come, lambda _: self._go_on())
        self._look(fleet)
        while not self._is_there and not self._launch.ended and fleet.clock.monotonic() < _LONGEST:
            await fleet.run(fleet.clock.monotonic() + _LOOK)
        return self._is_there

    def _look(self, fleet: Fleet) -> None:
        """Machines may be so far although the launcher has no reason to look."""
        if not self._is_there and not self._launch.ended:
            if self._has_come(self._launch):
                self._go_on()
            fleet.after(_LOOK, self._look)

    def _has_come(self, launch: Launch) -> bool:
        if self._goes_back:
            return has_gone_back(launch, self._at)
        return has_reached(launch, self._way, self._replicas)

    @property
    def _way(self) -> Standing:
        """Where it has to be: one that goes back has to have come to the step first at which it turned round, and one
        that is about to be written down to the end of its last.
        """
        at = self._at
        return at if at.state is State.AWAITING_APPROVAL else replace(at, state=State.SHIFTING)

    def _replicas(self, region: str, model: str) -> tuple[int, int]:
        fleet, target = self._fleet, self._fleet.routes[self._model_type].target
        machines = fleet.simulator(self._model_type, region)
        desired = machines.desired(target)
        return desired.replicas_of(model) if desired is not None else 0, machines.available(target, model)

    def _agree(self, is_asked: Callable[[Launch], bool], agree: Callable[[str], str]) -> None:
        def agrees(fleet: Fleet) -> None:
            if self._is_there:
                return
            if is_asked(self._launch):
                agree(self._name)
            fleet.after(_AGREES, lambda fleet: fleet.when(self._name, is_asked, hears))

        def hears(fleet: Fleet) -> None:
            fleet.after(_AGREES, agrees)

        self._fleet.when(self._name, is_asked, hears)

    def _promote(self, name: str) -> str:
        refused = self._fleet.promote(name, "rehearsal", "its gates let it pass")
        return self._fleet.resume(name, any_author=True) or refused

    def _go_on(self) -> None:
        """It is there; or where the other one turned round, and turns round too."""
        if self._is_there or not self._has_come(self._launch):
            return
        fleet, at, now = self._fleet, self._at, self._fleet.clock.now()
        if at.abort is not None and not self._goes_back:
            author, reason = at.abort
            fleet.abort(self._name, author, reason)
            self._goes_back = True
            fleet.when(self._name, self._has_come, lambda _: self._go_on())
            return
        self._is_there = True
        after = _as_it_stands(self._launch, at, now)
        said = said_of(after, at, now)
        for author, reason in at.pauses:
            if verbs.is_allowed(after, "PauseLaunch"):
                after = verbs.pause(after, author, reason, now)
        fleet.launches.put(after, said)
        self._arrived(said)


def _as_it_stands(launch: Launch, at: Standing, now: datetime) -> Launch:
    """The launch with what the other one's times are, and whether somebody has promoted that."""
    step = launch.step
    promoted = launch.promoted if at.promoted else None
    if at.promoted and promoted is None:
        promoted = Promotion("somebody", "promoted before", now)
    if at.bake_end is not None and step.bake_start is not None and not step.passed:
        step = replace(step, bake_start=min(now, at.bake_end - launch.policy.bake_duration), extensions=0)
    if at.step_deadline is not None and step.deadline is not None:
        step = replace(step, deadline=at.step_deadline)
    deadline = at.deadline if at.deadline is not None and launch.deadline is not None else launch.deadline
    first, *others = launch.phase_times
    phases = (replace(first, start_time=min(first.start_time, at.began)), *others)
    return replace(launch, promoted=promoted, step=step, deadline=deadline, phase_times=phases)
