"""Any process can die at any point: each part of the system is killed again and again while a launch is under way."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest

from modelfleet.launcher.v1 import launcher_pb2
from tests.support.chance import chosen, on_its_day
from tests.support.wait import until
from tests.support.whole import NEW, OLD, POOL, TYPE, Whole, whole

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(900), on_its_day("now and then")]

_PARTS = ("registry", "capacity", "stability", "node", "front-door", "launcher", "postgres")
# Killed at intervals of this many seconds; drawn anew each time, from a seed.
_BETWEEN = (0.8, 2.5)
_MOST_KILLS = 6


def _is_another(everything: Whole, part: str, previous: int | None) -> bool:
    return everything.system.process(part) not in {previous, None}


async def _kill_now_and_then(everything: Whole, part: str, chance: random.Random, killed: list[int | None]) -> None:
    while len(killed) < _MOST_KILLS:
        await asyncio.sleep(chance.uniform(*_BETWEEN))
        previous = everything.system.process(part)
        if everything.kill(part):
            killed.append(previous)
        await until(partial(_is_another, everything, part, previous), timeout=30)


async def test_a_launch_ends_as_if_nothing_had_happened_when_a_part_is_killed(subtests: pytest.Subtests) -> None:
    """One launch after another on one system, each of the next model, while one part after another is killed."""
    async with whole() as everything:
        await everything.register(old=5, new=5, spare=2)
        parts = chosen(_PARTS, 1)
        models = [NEW, *(f"{TYPE}/models/new-{number}" for number in range(1, len(parts)))]
        for model in models[1:]:
            await everything.add_model(model, 5)
        first = await everything.ended(await everything.launch(OLD, "first"))
        assert first.state == launcher_pb2.Launch.SUCCEEDED, first.summary
        for part, baseline, model in zip(parts, [OLD, *models], models, strict=False):
            with subtests.test(part):
                await _ends_as_if_nothing_had_happened(everything, part, baseline, model)


async def _ends_as_if_nothing_had_happened(everything: Whole, part: str, baseline: str, model: str) -> None:
    before = len(await everything.effects())
    async with everything.traffic(rate=40.0) as traffic:
        await until(lambda: traffic.answered[baseline] > 20)
        name = await everything.launch(model, f"without-{part}", bake=2.0)
        killed: list[int | None] = []
        killing = asyncio.create_task(_kill_now_and_then(everything, part, random.Random(part), killed))
        launch = await everything.ended(name, timeout=150)
        killing.cancel()
        await until(lambda: traffic.answered[model] > 20)
    assert len(killed) >= 2, "the launch was too fast to be disturbed"
    assert launch.state == launcher_pb2.Launch.SUCCEEDED, launch.summary
    assert not traffic.failed, "replicas and traffic go on while anything else is dead"
    assert await everything.broken_promises(launch, before) == []
    assert (await everything.client.registry.get_model_type(name=TYPE, timeout=30)).baseline == model
    (usage,) = (await everything.client.capacity.get_pool(name=POOL, timeout=30)).usages
    assert (usage.serving_units, usage.held_units, usage.available_units) == (5, 0, 2)
    # The next part is killed when this one is back.
    assert len((await everything.client.launcher.list_launches(timeout=30)).launches) >= 2
