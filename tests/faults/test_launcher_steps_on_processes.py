"""A launch of each strategy that is aborted in the middle, and one that is taken back when it is done: on the whole
system, with real replicas and traffic, judged by the node's ledger. `make test` draws one strategy a day.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from modelfleet.errors import Cancelled, DeadlineExceeded, Unavailable
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.platform.model import EffectKind
from tests.support.chance import SEED, chosen, on_its_day
from tests.support.wait import until
from tests.support.whole import NEW, OLD, POOL, TYPE, Whole, whole

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(900), on_its_day("in the middle")]

# An abort comes after so many entries of the history: from the reservation to the end of a first step.
_ENTRIES = range(4, 10)
_BAKE = 2.0


@dataclass(frozen=True)
class Standing:
    """What there is while nothing goes on."""

    baseline: str
    split: dict[str, int]
    serving_units: int
    held_units: int
    replicas: dict[str, int]


async def standing(everything: Whole) -> Standing:
    """What registry, capacity and the node say."""
    model_type = await everything.client.registry.get_model_type(name=TYPE)
    (usage,) = (await everything.client.capacity.get_pool(name=POOL)).usages
    alive: Counter[str] = Counter()
    for effect in await everything.effects():
        alive[effect.model] += effect.kind is EffectKind.REPLICA_STARTED
        alive[effect.model] -= effect.kind is EffectKind.REPLICA_TERMINATED
    return Standing(
        model_type.baseline,
        {share.model: share.share_basis_points for share in model_type.splits[0].shares if share.share_basis_points},
        usage.serving_units,
        usage.held_units,
        {model: count for model, count in alive.items() if count},
    )


async def _succeeds(everything: Whole, name: str) -> None:
    launch = await everything.ended(name)
    assert launch.state == pb.Launch.SUCCEEDED, launch.summary


async def _nothing(everything: Whole) -> None: ...


async def _experiment(everything: Whole) -> None:
    """The new model has a part of the traffic."""
    if NEW not in (await standing(everything)).split:
        started = await everything.launch(NEW, "started", strategy=pb.Launch.START_EXPERIMENT, target=4_000)
        await _succeeds(everything, started)


async def _needs_more(everything: Whole) -> None:
    await everything.certify(OLD, 5)


async def _replaced(everything: Whole) -> None:
    """The new model has taken over, a while ago."""
    if NEW in (await standing(everything)).split:
        await _succeeds(everything, await everything.launch(NEW, "ended", strategy=pb.Launch.END_EXPERIMENT))
    await _succeeds(everything, await everything.launch(NEW, "replaced", window=3_600.0))


Begins = Callable[[Whole], Awaitable[str]]


def _launches(strategy: pb.Launch.Strategy.ValueType, model: str = NEW, target: int = 0, step: int = 4_000) -> Begins:
    async def begin(everything: Whole) -> str:
        launch_id = f"aborted-{pb.Launch.Strategy.Name(strategy).lower()}"
        return await everything.launch(model, launch_id, strategy=strategy, target=target, max_step=step, bake=_BAKE)

    return begin


async def _takes_back(everything: Whole) -> str:
    made = await everything.client.launcher.roll_back_launch(
        name="launches/replaced", launch_id="aborted-roll_back", reason="people complain"
    )
    return made.name


# What has to be there before, and what is aborted; in an order in which each finds what those before have left.
STRATEGIES: dict[str, tuple[Callable[[Whole], Awaitable[None]], Begins]] = {
    "REPLACE_BASELINE": (_nothing, _launches(pb.Launch.REPLACE_BASELINE)),
    "START_EXPERIMENT": (_nothing, _launches(pb.Launch.START_EXPERIMENT, target=4_000)),
    "RAMP": (_experiment, _launches(pb.Launch.RAMP, target=6_000)),
    "END_EXPERIMENT": (_experiment, _launches(pb.Launch.END_EXPERIMENT, step=2_000)),
    "ROLL_BACK": (_replaced, _takes_back),
    "RESIZE": (_needs_more, _launches(pb.Launch.RESIZE, OLD)),
}


async def test_a_launch_of_any_strategy_that_is_aborted_in_the_middle_leaves_everything_as_it_was(
    subtests: pytest.Subtests,
) -> None:
    async with whole() as everything:
        await everything.register(old=4, new=4, spare=3)
        await _succeeds(everything, await everything.launch(OLD, "first"))
        for name in chosen(list(STRATEGIES), 1):
            prepare, begin = STRATEGIES[name]
            with subtests.test(name):
                await prepare(everything)
                await _is_aborted(everything, name, begin)
            if name == "ROLL_BACK":
                with subtests.test("it is taken back"):
                    await _is_taken_back(everything)


async def _is_aborted(everything: Whole, strategy: str, begin: Begins) -> None:
    before, effects = await standing(everything), len(await everything.effects())
    entries = random.Random(f"{SEED} {strategy}").choice(_ENTRIES)
    async with everything.traffic() as traffic:
        await until(lambda: sum(traffic.answered.values()) > 20)
        name = await begin(everything)

        async def is_so_far() -> bool:
            with contextlib.suppress(Unavailable, DeadlineExceeded, Cancelled):
                return len((await everything.client.launcher.list_launch_events(name=name)).events) >= entries
            return False

        await until(is_so_far, timeout=60)
        await everything.client.launcher.abort_launch(name=name, reason="it looks bad")
        launch = await everything.ended(name)
    assert launch.state in (pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED), launch.summary
    assert not traffic.failed
    assert await everything.broken_promises(launch, effects) == []
    assert await standing(everything) == before, entries


async def _is_taken_back(everything: Whole) -> None:
    """The model that has taken over goes, and the one before serves as before."""
    effects = len(await everything.effects())
    async with everything.traffic() as traffic:
        await until(lambda: traffic.answered[NEW] > 20)
        made = await everything.client.launcher.roll_back_launch(
            name="launches/replaced", launch_id="taken-back", reason="people complain"
        )
        launch = await everything.ended(made.name)
        await until(lambda: traffic.answered[OLD] > 20)
    assert launch.state == pb.Launch.SUCCEEDED, launch.summary
    assert not traffic.failed
    assert await everything.broken_promises(launch, effects) == []
    assert await standing(everything) == Standing(OLD, {OLD: 10_000}, 4, 0, {OLD: 4})
