"""Would the fault suite notice? Each bug that an engineer might make is planted, and the suite's own stories have to
find it: those that `test_launcher_steps.py` goes through, and nothing made for the bug.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest

from modelfleetd.capacity.domain.pool import Place
from modelfleetd.launcher.domain import decide, shares, undo
from modelfleetd.launcher.domain.actions import Action, Wait
from modelfleetd.launcher.domain.hold import HoldState
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.observed import Observed, Seen, ShareState
from modelfleetd.launcher.domain.record import Intent
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.looking import Look
from modelfleetd.launcher.ports import UsedUnits
from modelfleetd.launcher.round import Round
from modelfleetd.launcher.serving import seen_of
from modelfleetd.launcher.store import Change
from modelfleetd.platform import rules
from modelfleetd.platform.model import ServingObservation
from modelfleetd.platform.simulator import Simulator
from modelfleetd.rehearsal.capacity import MemoryCapacity
from modelfleetd.rehearsal.launches import MemoryLaunches
from modelfleetd.rehearsal.registry import MemoryRegistry
from tests.support.chance import chosen
from tests.support.steps.cases import CASES, ROOM, Accident
from tests.support.steps.oracle import what_is_wrong
from tests.support.steps.stories import (
    aborted,
    aborted_unanswered,
    stalled,
    unanswered,
    undisturbed,
    with_another_baseline,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

Patch: TypeAlias = pytest.MonkeyPatch
# Gives what was wrong in any of some stories.
Stories: TypeAlias = Callable[[], Awaitable[list[str]]]
CASE = CASES["replacing the baseline"]


async def _undisturbed() -> list[str]:
    return what_is_wrong(await undisturbed(CASE, ROOM))


def _aborts(moments: Iterable[int]) -> Stories:
    return lambda: aborted(CASE, ROOM, Accident.NOTHING, moments)


def _stalls(calls: Iterable[int]) -> Stories:
    return lambda: stalled(CASE, ROOM, calls, aborts=True)


def _unanswered(answers: Sequence[int]) -> Stories:
    return lambda: unanswered(CASE, ROOM, answers)


def _aborted_unanswered(moment: int, lost: Iterable[int]) -> Stories:
    return lambda: aborted_unanswered(CASE, ROOM, [moment], lost)


async def _another_baseline() -> list[str]:
    return await with_another_baseline(CASE, ROOM, [20])


# The bugs


def _fence_off(patch: Patch) -> None:
    patch.setattr(rules, "check_epoch", lambda target, epoch, floor: None)


def _floor_not_raised(patch: Patch) -> None:
    observe = Simulator.observe

    async def without_epoch(self: Simulator, target: str, epoch: int = 0) -> ServingObservation:
        return await observe(self, target)

    patch.setattr(Simulator, "observe", without_epoch)


def _late_finalisation(patch: Patch) -> None:
    finalize = MemoryRegistry.finalize

    def whoever_comes(self: MemoryRegistry, model_type: str, launch: str, **given: Any) -> int:
        self._ended.pop(launch, None)
        return finalize(self, model_type, launch, **given)

    patch.setattr(MemoryRegistry, "finalize", whoever_comes)


def _freed_too_early(patch: Patch) -> None:
    running = property(lambda self: self.starting + self.available + self.unavailable)
    patch.setattr(Observed, "existing", running)


def _weight_by_equality(patch: Patch) -> None:
    def equal(intended: int, observed: int, requests: int) -> bool:
        return intended == observed

    patch.setattr(shares, "agrees", equal)
    patch.setattr(undo, "agrees", equal)


def _current_baseline(patch: Patch) -> None:
    choose = Round._decide

    async def to_the_current_one(self: Round, launch: Launch, seen: Sequence[Seen], found: Look) -> bool:
        if launch.state is State.ROLLING_BACK and launch.plan is not None:
            now = (await self._executor._world.registry.model_type(launch.model_type)).baseline
            regions = tuple(
                replace(region, baseline=region.baseline and replace(region.baseline, model=now))
                for region in launch.plan.regions
            )
            launch = self.launch = replace(launch, baseline=now, plan=replace(launch.plan, regions=regions))
            seen = [seen_of(observation, launch.rising, launch.falling) for observation in found.seen.values()]
        return await choose(self, launch, seen, found)

    patch.setattr(Round, "_decide", to_the_current_one)


def _new_key_on_each_try(patch: Patch) -> None:
    perform, tries = Executor.perform, itertools.count()

    async def with_a_new_key(self: Executor, launch: Launch, intent: Intent, now: Any) -> tuple[Launch, str]:
        return await perform(self, launch, replace(intent, key=f"{intent.key}.{next(tries)}"), now)

    patch.setattr(Executor, "perform", with_a_new_key)


def _record_of_anybody(patch: Patch) -> None:
    record = MemoryLaunches.record

    async def unchecked(self: MemoryLaunches, change: Change) -> Launch | None:
        return await record(self, replace(change, before=self.rows[change.after.name].launch))

    patch.setattr(MemoryLaunches, "record", unchecked)


def _intent_forgotten(patch: Patch) -> None:
    async def void(self: Round, intent: Intent) -> bool:
        return await self._void(intent, "forgotten")

    patch.setattr(Round, "_settle_call", void)


def _released_before_they_are_gone(patch: Patch) -> None:
    back = undo._undo

    def without_waiting(*given: Any, **more: Any) -> Action | None:
        action = back(*given, **more)
        return None if isinstance(action, Wait) and action.reason == "Terminating" else action

    patch.setattr(undo, "_undo", without_waiting)


def _share_not_awaited(patch: Patch) -> None:
    patch.setattr(decide, "share_state", lambda seen: ShareState.OBSERVED)


def _replicas_not_awaited(patch: Patch) -> None:
    start = decide._start

    def without_waiting(launch: Launch, seen: Seen) -> Action | None:
        action = start(launch, seen)
        return None if isinstance(action, Wait) and action.reason == "ReplicasStarting" else action

    patch.setattr(decide, "_start", without_waiting)


def _settled_twice(patch: Patch) -> None:
    settle = MemoryCapacity.settle

    def again(self: MemoryCapacity, name: str, usages: Iterable[UsedUnits], *given: Any) -> None:
        known, booked = self.hold(name).state is HoldState.SETTLED, list(usages)
        settle(self, name, booked, *given)
        if known:
            for one in booked:
                _book_once_more(self, one.model, Place(one.flavor, one.region), one.units)

    patch.setattr(MemoryCapacity, "settle", again)


def _released_twice(patch: Patch) -> None:
    release = MemoryCapacity.release

    def again(self: MemoryCapacity, name: str) -> None:
        known, moved = self.hold(name).state is HoldState.SETTLED, self._reservations[name].moved
        release(self, name)
        if known:
            for one in moved:
                _book_once_more(self, one.model, Place(one.flavor, one.region), one.units)

    patch.setattr(MemoryCapacity, "release", again)


def _book_once_more(capacity: MemoryCapacity, model: str, place: Place, units: int) -> None:
    capacity.book(model, place, capacity.booked(model, place) + units)


@dataclass(frozen=True)
class Bug:
    """A bug: what it breaks, how it is planted, and the stories of which one has to find it."""

    breaks: str
    plant: Callable[[Patch], None]
    stories: Stories


_SHIFTING = range(9, 22)
BUGS = {
    "fence off at the agent": Bug("The agent lets a holder act that was overtaken.", _fence_off, _aborts(_SHIFTING)),
    "floor not raised on observe": Bug(
        "Looking refuses nobody: the former holder's act comes through after an abort.",
        _floor_not_raised,
        _aborts(_SHIFTING),
    ),
    "late finalisation accepted": Bug(
        "The registry believes whoever calls last: a launch that went back is recorded as done.",
        _late_finalisation,
        _stalls((9, 10)),
    ),
    "capacity freed too early": Bug(
        "Replicas that still end count as gone: others get their capacity while they have it.",
        _freed_too_early,
        _undisturbed,
    ),
    "weight compared by equality": Bug(
        "Chance is taken for a fault: the observed share never is exactly what is asked for.",
        _weight_by_equality,
        _undisturbed,
    ),
    "rollback to the current baseline": Bug(
        "The way back leads to whatever is the baseline by then, not to the one that was pinned.",
        _current_baseline,
        _another_baseline,
    ),
    "missing idempotency key": Bug(
        "Each try of an act has a key of its own: what is repeated is another act.",
        _new_key_on_each_try,
        _unanswered(range(1, 5)),
    ),
    "record of whoever comes": Bug(
        "What a former holder writes counts, and overwrites an abort.", _record_of_anybody, _aborts(range(2, 9))
    ),
    "intent not settled before an abort": Bug(
        "A call that may have been made is forgotten: what it has reserved stays for ever.",
        _intent_forgotten,
        _aborts(range(2, 9)),
    ),
    "release before the replicas are gone": Bug(
        "A launch that went back frees its hold while its replicas still end.",
        _released_before_they_are_gone,
        _aborts(range(20, 40, 4)),
    ),
    "share not awaited": Bug(
        "A bake begins before the proxy gives the share that is judged.", _share_not_awaited, _undisturbed
    ),
    "replicas not awaited": Bug(
        "Weight is asked for before the replicas are there that carry it.", _replicas_not_awaited, _undisturbed
    ),
    "settle not idempotent": Bug(
        "A launch whose settling is repeated has booked twice what it uses.", _settled_twice, _unanswered((4, 3))
    ),
    "hold released twice": Bug(
        "A release that is repeated books the old side once more.", _released_twice, _aborted_unanswered(20, (1, 2, 3))
    ),
}


async def found_by(stories: Stories) -> list[str]:
    """What the stories have to say; one that cannot go on has noticed something."""
    try:
        return await stories()
    except Exception as error:
        # Whatever fails a test of the suite.
        return [repr(error)]


@pytest.mark.parametrize("name", chosen(list(BUGS), 8))
async def test_the_suite_finds_a_bug_that_is_planted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[name].plant(monkeypatch)
    assert await found_by(BUGS[name].stories), BUGS[name].breaks


@pytest.mark.parametrize("name", ["late finalisation accepted", "rollback to the current baseline"])
async def test_where_no_bug_is_planted_the_same_stories_find_nothing(name: str) -> None:
    assert await found_by(BUGS[name].stories) == []
