"""Every accident at every place of a launch's path, on real processes, PostgreSQL and Envoy.

One system stays up for each worker, and requests come in all the while; one launch after another takes its only route
to the next model, or goes back on the way there, while one accident happens at one place.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Coroutine
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.kit.places import PLACES, Way
from tests.support.accidents import ACTIONS, FAINTING, NOBODY, REFUSAL, REFUSING, THIRD, Arena, arena
from tests.support.chance import SEED, chosen, on_its_day
from tests.support.people import ENDED, dry_run, ungated
from tests.support.whole import NEW, OLD

# Each worker has a system of its own; a few cases share one.
_SYSTEMS = 4 if os.environ.get("MODELFLEET_FAULTS") == "all" else 1
_MOST_PAUSES = 40
_ENDING = ("intent_finalize", "intent_settle", "FinalizeLaunch", "SettleReservation")
_REPLICAS = {OLD: 3, NEW: 4, THIRD: 3}
# Where an accident can befall a launch that holds while an experiment ends, or what ends that.
_WHILE_ONE_HOLDS = {
    "launcher.commit": "CreateLaunch",
    "launcher.record": "change intent_start intent_shift intent_reduce intent_finalize intent_settle outcome",
    "launcher.act": "start shift reduce",
    "launcher.call": "ObserveServing ActivateReservation FinalizeLaunch SettleReservation",
}
_WHILE_ONE_HOLDS_AND_GOES_BACK = "after_record.change before_record.outcome after_call.ObserveServing before_act.shift"
_SIDES = ("before", "after")
# Of an experiment, in basis points, and its replicas: the fewest that a model has.
_EXPERIMENT, _FEWEST = 3_000, 2
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    on_its_day("at places"),
]


def _cases() -> list[object]:
    """Every place with every accident; neighbours differ in what happens, so that no part dies twice in a row."""
    cases = [(place, ACTIONS[(at + turn) % 4]) for turn, (at, place) in product(range(4), enumerate(PLACES))]
    return [_case(at, place, action, called=f"{place}-{action}") for at, (place, action) in enumerate(chosen(cases, 2))]


def _case(at: int, *values: object, called: str) -> object:
    """A case on one of the systems."""
    return pytest.param(*values, id=called, marks=pytest.mark.xdist_group(f"matrix-{at % _SYSTEMS}"))


def _while_one_holds() -> list[object]:
    """Each of these places with one accident, the next place with the next one."""
    named = [(of, name) for of, names in _WHILE_ONE_HOLDS.items() for name in names.split()]
    cases = [
        (f"{of.replace('.', f'.{_SIDES[at % 2]}_')}.{name}", ACTIONS[(at + at // 4) % 4], True)
        for at, (of, name) in enumerate(named)
    ]
    # All of the traffic needs more than the launch holds then, so it goes back.
    cases += [
        (f"launcher.{of}", ACTIONS[at % 4], False) for at, of in enumerate(_WHILE_ONE_HOLDS_AND_GOES_BACK.split())
    ]
    return [
        _case(at, place, action, goes_on, called=f"{place}-{action}-{'on' if goes_on else 'back'}")
        for at, (place, action, goes_on) in enumerate(chosen(cases, 1))
    ]


def _pairs() -> list[object]:
    """Two accidents in one launch: one on its way, one when it ends, so that the second place is still to come."""
    draw = random.Random(SEED)
    forward = [place for place, way in PLACES.items() if way is Way.FORWARD]
    ends = [place for place in forward if any(word in place for word in _ENDING)]
    begins = [place for place in forward if place not in ends]
    pairs = [
        ((draw.choice(begins), draw.choice(ends)), (draw.choice(ACTIONS), draw.choice(ACTIONS))) for _ in range(24)
    ]
    return [
        _case(at, list(zip(places, actions, strict=True)), called=f"{places[0]}-{actions[0]}-{places[1]}-{actions[1]}")
        for at, (places, actions) in enumerate(chosen(pairs, 1))
    ]


@pytest_asyncio.fixture(loop_scope="module", scope="module", name="system")
async def _system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Arena]:
    async with arena(Path(tmp_path_factory.mktemp("matrix"))) as found:
        yield found


@pytest.mark.parametrize(("place", "action"), _cases())
async def test_a_launch_ends_as_it_was_to_whatever_happens_wherever(system: Arena, place: str, action: str) -> None:
    way = PLACES[place]
    if way is Way.BACK and action in ("kill", "drop"):
        # There are two reasons to go back, and one way.
        way = Way.ABORTED
    await _launch(system, way, [(place, action)])


@pytest.mark.parametrize("accidents", _pairs())
async def test_two_accidents_in_one_launch(system: Arena, accidents: list[tuple[str, str]]) -> None:
    await _launch(system, Way.FORWARD, accidents)


@pytest.mark.parametrize(("place", "action", "goes_on"), _while_one_holds())
async def test_an_experiment_ends_while_a_launch_holds(system: Arena, place: str, action: str, goes_on: bool) -> None:
    """Both are on the route at once; the accident befalls whoever comes to the place first."""
    await system.come_to_rest()
    if system.serving not in (OLD, THIRD):
        await system.succeeds(OLD)
        await system.come_to_rest()
    other = THIRD if system.serving == OLD else OLD
    held, ends = (other, NEW) if goes_on else (NEW, other)
    await system.succeeds(ends, strategy=pb.Launch.START_EXPERIMENT, share=_EXPERIMENT)
    before = len(await system.everything.effects())
    holding = await system.start(held, bake=600.0)
    await system.bakes(holding, 1)

    async def tell() -> _Told:
        ending = await system.start(ends, bake=0, strategy=pb.Launch.END_EXPERIMENT)
        told = [(await system.ended(ending), pb.Launch.SUCCEEDED)]
        if goes_on:
            await system.reaches(holding, lambda launch: not launch.preempted_by)
            await system.promote(holding)
        expected = pb.Launch.SUCCEEDED if goes_on else pb.Launch.ROLLED_BACK
        return [*told, (await system.ended(holding), expected)]

    happening = asyncio.create_task(_befall(system, [(place, action)]))
    launches = await _told_of(system, happening, tell())
    for event in ("Preempted", "PreemptionEnded"):
        await system.assert_happened_once(holding, event)
    ending, last = (launch for launch, _ in launches)
    await system.assert_promises_kept([last, ending], before, beside=_FEWEST)
    await _assert_is_over(system, launches[1:])


async def _launch(system: Arena, way: Way, accidents: list[tuple[str, str]]) -> None:
    await system.come_to_rest()
    before = len(await system.everything.effects())
    story = _Story(system, _befall(system, accidents))
    launches = await _told_of(system, story.happening, story.tell(way))
    await system.assert_promises_kept([launch for launch, _ in launches], before)
    await _assert_is_over(system, launches, but=NOBODY if way is Way.LOST else REFUSAL)


async def _told_of(system: Arena, happening: asyncio.Task[None], story: Coroutine[Any, Any, _Told]) -> _Told:
    """Has a story told, and asserts that the accident has happened, and that every launch ended as it was to."""
    try:
        launches = await story
        await asyncio.wait({happening}, timeout=20)
        assert happening.done(), "the failpoint was never passed"
        await happening
    finally:
        happening.cancel()
        system.disarm()
    for launch, expected in launches:
        assert launch.state == expected, launch.summary
    return launches


async def _assert_is_over(system: Arena, launches: _Told, *, but: str = REFUSAL) -> None:
    """Asserts that everybody agrees on what serves after all that, and that no request has failed."""
    ended = [launch.candidate for launch, _ in launches if launch.state == pb.Launch.SUCCEEDED]
    serving = ended[-1] if ended else system.serving
    await system.assert_all_agree(serving, _REPLICAS[serving])
    system.assert_no_request_failed(but=but)


async def _befall(system: Arena, accidents: list[tuple[str, str]]) -> None:
    for place, action in accidents:
        await system.befall(place, action)


_Told: TypeAlias = list[tuple[pb.Launch, "pb.Launch.State.ValueType"]]


class _Story:
    """One launch, or two on one route, while accidents happen. Says how each ended, and how it was to end."""

    def __init__(self, system: Arena, accidents: Coroutine[Any, Any, None]) -> None:
        self._system = system
        # The next models, other than the one that serves.
        self._next, self._after = [model for model in (NEW, OLD, THIRD) if model != system.serving][:2]
        self.happening = asyncio.create_task(accidents)

    async def tell(self, way: Way) -> _Told:
        """Has a launch go a way."""
        match way:
            case Way.FORWARD:
                return await self._through(self._system.start(self._next, bake=0))
            case Way.JUDGED:
                return await self._through(self._system.start(self._next, bake=1.5, policy=dry_run()))
            case Way.ANEW:
                self._system.begin_everything_anew()
                return await self._through(self._system.start(self._next, bake=0))
            case Way.ABORTED:
                return await self._aborted()
            case Way.BACK:
                return await self._refused()
            case Way.QUEUED:
                return await self._queued()
            case Way.WAITED:
                return await self._waited()
            case Way.CANCELLED:
                return await self._cancelled()
            case Way.STEERED:
                return await self._steered(pauses=1)
            case Way.INTERRUPTED:
                return await self._steered(pauses=_MOST_PAUSES)
            case Way.LOST:
                return await self._lost()
            case Way.OVERTAKEN:
                return await self._overtaken()
            case Way.TAKEN_BACK:
                return await self._taken_back()
            case Way.REJECTED:
                return await self._rejected()
            case Way.PROMOTED:
                return await self._promoted()
            case Way.RETRIED:
                return await self._retried()
            case Way.FROZEN:
                return await self._frozen()
            case Way.HELD:
                return await self._held()
            case Way.TOLD:
                return await self._told()

    async def _through(self, start: Coroutine[Any, Any, str]) -> _Told:
        return [(await self._system.ended(await start), pb.Launch.SUCCEEDED)]

    async def _aborted(self) -> _Told:
        """Aborted once it has all of the traffic, while it is still watched."""
        name = await self._system.start(self._next, bake=600.0)
        await self._system.skip(name, 1)
        await self._system.reaches(name, lambda launch: launch.current_step == 2)
        await self._system.abort(name)
        return [(await self._system.ended(name), pb.Launch.ROLLED_BACK)]

    async def _refused(self) -> _Told:
        """The candidate answers nothing: the gate of availability sends the launch back."""
        policy = ungated()
        policy.availability_gate.min_requests = 5
        launch = await self._system.ended(await self._system.start(REFUSING, bake=1.5, policy=policy))
        return [(launch, pb.Launch.ROLLED_BACK)]

    async def _queued(self) -> _Told:
        names = [
            await self._system.start(self._next, bake=0.5, queue=True),
            await self._system.start(self._after, bake=0, queue=True),
        ]
        return [(await self._system.ended(name), pb.Launch.SUCCEEDED) for name in names]

    async def _waited(self) -> _Told:
        async with self._system.crowded() as leave:
            name = await self._system.start(self._next, bake=0)
            await self._system.reaches(name, _is_in_line)
            await leave()
            return [(await self._system.ended(name), pb.Launch.SUCCEEDED)]

    async def _cancelled(self) -> _Told:
        async with self._system.crowded():
            name = await self._system.start(self._next, bake=0)
            await self._system.reaches(name, _is_in_line)
            await self._system.abort(name)
            launch = await self._system.ended(name)
            # Whoever frees the rest would pass the same places.
            await asyncio.wait({self.happening}, timeout=20)
            return [(launch, pb.Launch.CANCELLED)]

    async def _steered(self, pauses: int) -> _Told:
        name = await self._system.start(self._next, bake=600.0, policy=_approved_first())
        await self._system.approve(name)
        # A verb that comes in the middle of a round ends the round.
        for _ in range(pauses):
            await self._system.pause_and_resume(name)
            if self.happening.done():
                break
        for step in (1, 2):
            await self._system.skip(name, step)
        return await self._through(_just(name))

    async def _lost(self) -> _Told:
        """All of the traffic goes back at once, to a baseline that has already given up what its share did not need."""
        name = await self._system.start(FAINTING, bake=600.0)
        await self._system.skip(name, 1)
        # The next ones never become ready, so that there is no step after this one.
        await self._system.faint(_REPLICAS[self._system.serving])
        return [(await self._system.ended(name), pb.Launch.ROLLED_BACK)]

    async def _overtaken(self) -> _Told:
        name = await self._system.start(self._next, bake=600.0)
        await self._system.bakes(name, 1)
        await self._system.know_newer_epoch()
        await self._system.promote(name)
        return await self._through(_just(name))

    async def _taken_back(self) -> _Told:
        """The launch under way moves the very model that the mitigation takes away, so it goes back first."""
        system = self._system
        before = await system.last_replacement()
        if before is None:
            before = await system.succeeds(self._next)
        other = next(model for model in (NEW, OLD, THIRD) if model not in (before.candidate, before.baseline))
        under_way = await system.start(other, bake=600.0)
        await system.bakes(under_way, 1)
        mitigation = await system.roll_back(before.name)
        told = [
            (await system.ended(under_way), pb.Launch.ROLLED_BACK),
            (await system.ended(mitigation), pb.Launch.SUCCEEDED),
        ]
        # What it has taken away does not come back by mistake.
        assert await system.lift_holds() == 1
        return told

    async def _rejected(self) -> _Told:
        name = await self._system.start(self._next, bake=0, policy=_approved_first())
        await self._system.reject(name)
        launch = await self._system.ended(name)
        await self._system.assert_happened_once(name, "Rejected")
        return [(launch, pb.Launch.CANCELLED)]

    async def _promoted(self) -> _Told:
        name = await self._system.start(self._next, bake=600.0)
        await self._system.promote(name)
        launch = await self._system.ended(name)
        await self._system.assert_happened_once(name, "Promoted")
        return [(launch, pb.Launch.SUCCEEDED)]

    async def _retried(self) -> _Told:
        name = await self._system.start(self._next, bake=600.0)
        await self._system.abort(name)
        first = await self._system.ended(name)
        assert first.state in (pb.Launch.CANCELLED, pb.Launch.ROLLED_BACK), first.summary
        await self._system.retry(name)
        await self._system.promote(name)
        launch = await self._system.ended(name)
        await self._system.assert_happened_once(name, "Retried")
        assert launch.attempt == 2
        return [(launch, pb.Launch.SUCCEEDED)]

    async def _frozen(self) -> _Told:
        window = await self._system.freeze()
        name = await self._system.start(self._next, bake=0)
        await self._system.reaches(name, _is_frozen)
        await self._system.override(name, window)
        launch = await self._system.ended(name)
        await self._system.assert_happened_once(name, "FreezeOverridden")
        assert await self._system.thaw() == 1
        return [(launch, pb.Launch.SUCCEEDED)]

    async def _held(self) -> _Told:
        name = await self._system.start(self._next, bake=0, policy=_approved_first())
        await self._system.awaits_approval(name)
        await self._system.hold(self._next)
        launch = await self._system.ended(name)
        await self._system.assert_happened_once(name, "Aborted")
        assert await self._system.lift_holds() == 1
        return [(launch, pb.Launch.CANCELLED)]

    async def _told(self) -> _Told:
        name = await self._system.start(self._next, bake=0)
        launch = await self._system.ended(name)
        # The accident is over before anybody is sure of what arrives.
        await asyncio.wait({self.happening}, timeout=20)
        await self._system.assert_told(name)
        return [(launch, pb.Launch.SUCCEEDED)]


async def _just(name: str) -> str:
    return name


def _approved_first() -> pb.LaunchPolicy:
    policy = ungated()
    policy.approval = pb.LaunchPolicy.REQUIRED
    return policy


def _is_frozen(launch: pb.Launch) -> bool:
    return any(condition.reason == "Frozen" for condition in launch.conditions) or launch.state in ENDED


def _is_in_line(launch: pb.Launch) -> bool:
    return any(condition.reason == "CapacityPromised" for condition in launch.conditions) or launch.state in ENDED
