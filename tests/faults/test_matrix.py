"""Every accident at every place of a launch's path, on real processes, PostgreSQL and Envoy.

One system stays up for each worker; one launch after another takes its only route to the next model, or is aborted on
the way there, while one accident happens at one place.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path

import pytest
import pytest_asyncio

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.kit.places import PLACES, Way
from tests.support.accidents import ACTIONS, Arena, arena
from tests.support.chance import SEED, chosen
from tests.support.wait import until
from tests.support.whole import NEW, OLD

# Each worker has a system of its own; a few cases share one.
_SYSTEMS = 3 if os.environ.get("MODELFLEET_FAULTS") == "all" else 1
_ENDING = ("intent_finalize", "intent_settle", "FinalizeLaunch", "SettleReservation")
_REPLICAS = {OLD: 3, NEW: 4}
pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


def _cases() -> list[object]:
    """Every place with every accident; neighbours differ in what happens, so that no part dies twice in a row."""
    cases = [(place, ACTIONS[(at + turn) % 4]) for turn, (at, place) in product(range(4), enumerate(PLACES))]
    return [
        pytest.param(place, action, id=f"{place}-{action}", marks=pytest.mark.xdist_group(f"matrix-{at % _SYSTEMS}"))
        for at, (place, action) in enumerate(chosen(cases, 2))
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
        pytest.param(
            list(zip(places, actions, strict=True)),
            id=f"{places[0]}-{actions[0]}-{places[1]}-{actions[1]}",
            marks=pytest.mark.xdist_group(f"matrix-{at % _SYSTEMS}"),
        )
        for at, (places, actions) in enumerate(chosen(pairs, 1))
    ]


@pytest_asyncio.fixture(loop_scope="module", scope="module", name="system")
async def _system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Arena]:
    async with arena(Path(tmp_path_factory.mktemp("matrix"))) as found:
        yield found


@pytest.mark.parametrize(("place", "action"), _cases())
async def test_a_launch_ends_as_it_was_to_whatever_happens_wherever(system: Arena, place: str, action: str) -> None:
    await _launch(system, PLACES[place], [(place, action)])


@pytest.mark.parametrize("accidents", _pairs())
async def test_two_accidents_in_one_launch(system: Arena, accidents: list[tuple[str, str]]) -> None:
    await _launch(system, Way.FORWARD, accidents)


async def _launch(system: Arena, way: Way, accidents: list[tuple[str, str]]) -> None:
    before = len(await system.everything.effects())
    candidate = NEW if system.serving == OLD else OLD
    happening = asyncio.create_task(_befall(system, accidents))
    try:
        match way:
            case Way.FORWARD:
                launch = await system.ended(await system.start(candidate, bake=0))
                system.serving = candidate if launch.state == pb.Launch.SUCCEEDED else system.serving
                expected = pb.Launch.SUCCEEDED
            case Way.BACK:
                launch = await _back(system, candidate)
                expected = pb.Launch.ROLLED_BACK
        await asyncio.wait({happening}, timeout=20)
        assert happening.done(), f"{accidents}: the failpoint was never passed"
        await happening
    finally:
        happening.cancel()
        system.disarm()
    assert launch.state == expected, launch.summary
    await system.assert_promises_kept(launch, before)
    await system.assert_all_agree(system.serving, _REPLICAS[system.serving])


async def _befall(system: Arena, accidents: list[tuple[str, str]]) -> None:
    for place, action in accidents:
        await system.befall(place, action)


async def _back(system: Arena, candidate: str) -> pb.Launch:
    """A launch that is aborted once it has all of the traffic, while it is still watched."""
    name = await system.start(candidate, bake=1.0)

    async def is_last_step() -> bool:
        found = await system.find(name)
        return found is not None and found.current_step >= 2

    await until(is_last_step, timeout=90)
    await system.abort(name)
    return await system.ended(name)
