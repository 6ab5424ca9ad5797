"""When a launch is looked at: whenever it wants to be, except where nothing can have changed since the last look."""

from __future__ import annotations

from collections.abc import Callable
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
    """

    def __init__(self, clock: ManualClock, routes: Routes) -> None:
        self.refused: dict[str, None] = {}
        self._clock = clock
        self._routes = routes

    def patience(self, launch: Launch, seconds: float) -> float:
        """Seconds until a launch is really looked at that wants to be looked at in so many."""
        waiting = launch.condition("Waiting")
        reason = waiting.reason if waiting is not None else ""
        if reason in _UP_TO_OTHERS:
            return max(seconds, _QUIETEST if launch.reservation else 6 * _QUIETEST)
        if reason == "CapacityPromised":
            return max(seconds, _QUIETEST)
        if reason == "Refused" and launch.state in (State.ESTIMATING, State.PREPARING) and seconds >= _AGAIN / 2:
            self.refused[launch.name] = None
            return 6 * _QUIETEST
        if reason == "Baking":
            return max(seconds, min(self._next_event(launch.model_type, _QUIETEST), self._until_judged(launch)))
        if reason == "Frozen":
            return max(seconds, self._next_event(launch.model_type, _QUIETEST))
        if seconds >= 1.0 or not launch.touched:
            return seconds
        return max(seconds, min(self._next_event(launch.model_type), _QUIET if seconds >= 0.2 else seconds))

    def freed(self, wake: Callable[[str, float], None], draw: Callable[[], float]) -> None:
        """Units have become free: who was refused asks again soon."""
        refused, self.refused = self.refused, {}
        for name in refused:
            wake(name, _AGAIN * draw())

    def _until_judged(self, launch: Launch) -> float:
        """Seconds until the gates of a bake are asked again, or it ends."""
        end, judge, now = launch.bake_end, launch.step.next_judge, self._clock.now()
        if end is None:
            return (judge - now).total_seconds() if judge is not None else 0.0
        return min(_JUDGED, (end - now).total_seconds())

    def _next_event(self, model_type: str, quiet: float = 1.0) -> float:
        """Seconds until something happens on a route, `_QUIETEST` at most; `quiet` where only requests are due."""
        due = self._routes.next_event(model_type)
        if due is None:
            return quiet
        return min(_QUIETEST, max(SOONEST, due - self._clock.monotonic() + SOONEST))
