"""One launch from end to end: `modelfleetd up`, real Envoy, real processes, real traffic."""

from __future__ import annotations

import pytest

from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2
from tests.support.wait import until
from tests.support.whole import NEW, OLD, POOL, TYPE, Whole, whole

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_a_candidate_is_taken_back_and_then_takes_over_without_a_failed_request_on_two_spare_replicas() -> None:
    async with whole() as everything:
        await everything.register(old=5, new=4, spare=2)
        first = await everything.ended(await everything.launch(OLD, "first"))
        assert first.state == launcher_pb2.Launch.SUCCEEDED, first.summary
        await _is_taken_back_in_the_middle(everything)
        await _takes_over(everything)


async def _is_taken_back_in_the_middle(everything: Whole) -> None:
    before = len(await everything.effects())
    async with everything.traffic() as traffic:
        name = await everything.launch(NEW, "aborted", bake=60.0)
        await until(lambda: traffic.answered[NEW] > 10, timeout=40)
        await everything.client.launcher.abort_launch(name=name, reason="the reader changed their mind")
        launch = await everything.ended(name)
    assert launch.state == launcher_pb2.Launch.ROLLED_BACK, launch.summary
    assert not traffic.failed
    assert await everything.broken_promises(launch, before) == []
    assert (await everything.client.registry.get_model_type(name=TYPE)).baseline == OLD
    (usage,) = (await everything.client.capacity.get_pool(name=POOL)).usages
    assert (usage.serving_units, usage.held_units, usage.available_units) == (5, 0, 2)


async def _takes_over(everything: Whole) -> None:
    before = len(await everything.effects())
    async with everything.traffic() as traffic:
        await until(lambda: traffic.answered[OLD] > 20)
        launch = await everything.ended(await everything.launch(NEW, "second", bake=1.0))
        await until(lambda: traffic.answered[NEW] > 20)
    assert launch.state == launcher_pb2.Launch.SUCCEEDED, launch.summary
    assert not traffic.failed
    assert await everything.broken_promises(launch, before) == []
    assert len(launch.plan.regions[0].steps) > 1, "with two spare replicas it must recycle"

    # Registry, capacity and platform agree.
    model_type = await everything.client.registry.get_model_type(name=TYPE)
    assert model_type.baseline == NEW
    assert [(s.model, s.share_basis_points) for s in model_type.splits[0].shares if s.share_basis_points] == [
        (NEW, 10_000)
    ]
    roles = {m.name: m.role for m in (await everything.client.registry.list_models(parent=TYPE)).models}
    assert roles == {OLD: registry_pb2.Model.RETIRED, NEW: registry_pb2.Model.BASELINE}
    (usage,) = (await everything.client.capacity.get_pool(name=POOL)).usages
    assert (usage.serving_units, usage.held_units, usage.retained_units, usage.available_units) == (4, 0, 0, 3)
    revision = await everything.client.registry.get_revision(name=f"revisions/{launch.revision}")
    assert revision.launch == launch.name
    assert await everything.most_units() <= 7
