"""When a launch is looked at: whenever it wants to be, except where nothing can have changed since the last look."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from modelfleetd.clock import ManualClock
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import State
from modelfleetd.rehearsal.launches import SOONEST
from modelfleetd.rehearsal.routes import Routes

# Looks at which nothing can have changed are left out, for so long at most.
_QUIET: Final = 30.0
_QUIETEST: Final = 600.0
# While nothing happens on a route the gates of a bake are asked so often; at its end in any case.
_JUDGED: Final = 120.0
# What only others can end: whoever does wakes the launch.
_UP_TO_OTHERS: Final = frozenset({"AwaitingApproval", "AwaitingPeople", "RouteBusy"})
# What is refused for want of capacity is asked for again so much after something was freed, at most.
_AGAIN: Final = 30.0


class Looks:
    """Says when launches are looked at.

    Attributes:
        refused: launches that were refused for want of capacity, since something was freed last.
        convinces: whether no gate has anything to find in a launch's candidate, however often it is asked.
    """

    def __init__(self, clock: ManualClock, routes: Routes) -> None:
        self.refused: dict[str, None] = {}
        self.convinces: Callable[[Launch], bool] = _nothing_is_sure
        self._clock = clock
        self._routes = routes

    def patience(self, launch: Launch, seconds: float) -> float:
        """Seconds until a launch is really looked at that wants to be looked at in so many."""
        waiting = launch.condition("Waiting")
        match waiting.reason if waiting is not None else "":
            case reason if reason in _UP_TO_OTHERS:
                return max(seconds, _QUIETEST if launch.reservation else 6 * _QUIETEST)
            case "CapacityPromised":
                return max(seconds, _QUIETEST)
            case "Refused" if launch.state in (State.ESTIMATING, State.PREPARING) and seconds >= _AGAIN / 2:
                self.refused[launch.name] = None
                return 6 * _QUIETEST
            case "Baking":
                return max(seconds, min(self._next_event(launch), self._until_judged(launch)))
            case "Paused" if self.convinces(launch):
                return max(seconds, self._next_event(launch))
            case "Frozen":
                return max(seconds, self._next_event(launch))
            case "ReplicasStarting" if launch.touched:
                return max(seconds, min(self._enough(launch), self._until(launch.step.deadline)))
        if seconds >= 1.0 or not launch.touched:
            return seconds
        return max(seconds, min(self._next_event(launch, quiet=1.0), _QUIET if seconds >= 0.2 else seconds))

    def freed(self, wake: Callable[[str, float], None], draw: Callable[[], float]) -> None:
        """Units have become free: who was refused asks again soon."""
        refused, self.refused = self.refused, {}
        for name in refused:
            wake(name, _AGAIN * draw())

    def _until_judged(self, launch: Launch) -> float:
        """Seconds until the gates of a bake are asked again, or it ends."""
        end, judge = launch.bake_end, launch.step.next_judge
        if end is None:
            return self._until(judge) if judge is not None else 0.0
        return self._until(end) if self.convinces(launch) else min(_JUDGED, self._until(end))

    def _enough(self, launch: Launch) -> float:
        """Seconds until so many replicas are there as a step needs: no fewer of them would let the launch go on."""
        model_type, plan = launch.model_type, launch.plan
        if plan is None or len(plan.regions) > 1:
            return self._next_event(launch)
        region, target = plan.regions[0].region, self._routes[model_type].target
        needs = launch.region_plan.candidate.needs(launch.step_plan.share)
        simulator = self._routes.simulators[model_type, region]
        missing = needs - simulator.available(target, launch.rising)
        return self._in(simulator.next_event_for(launch.rising, missing))

    def _next_event(self, launch: Launch, quiet: float = _QUIETEST) -> float:
        """Seconds until something happens on a route, `_QUIETEST` at most; `quiet` where only requests are due."""
        due = self._routes.next_event(launch.model_type)
        return quiet if due is None else self._in(due)

    def _in(self, due: float | None) -> float:
        return _QUIETEST if due is None else min(_QUIETEST, max(SOONEST, due - self._clock.monotonic() + SOONEST))

    def _until(self, moment: datetime | None) -> float:
        return _QUIETEST if moment is None else (moment - self._clock.now()).total_seconds()


def _nothing_is_sure(_: Launch) -> bool:
    return False
