"""Two registries on one database take writes at the same time: history is linear, every watch complete, both agree."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import grpc
import pytest

from modelfleet.registry.v1 import registry_pb2 as pb
from tests.support.contracts import refusal
from tests.support.processes import registry_process
from tests.support.registry_calls import CTR, Registry, populate, request_id
from tests.support.registry_load import Load, Watcher, caller, state_after, state_of, verified
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

_WRITES = 400
_CALLERS = 12
_SET = [pb.EntryChange(model_type=pb.ModelType(name=f"modelTypes/set{n}", team="teams/feed")) for n in range(60)]


async def newest(registry: Registry) -> int:
    return int((await registry.ListTeams()).revision)


async def test_writes_on_two_replicas_make_one_history_that_both_tell_in_full(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        registries = []
        for _ in range(2):
            _, address = await stack.enter_async_context(registry_process(database_url))
            registries.append(await stack.enter_async_context(caller(address)))
        one, other = registries
        await populate(one)
        before = await newest(one)
        watchers = [await stack.enter_async_context(Watcher(registry).watching()) for registry in registries]
        load = Load(registries, seed=1, twice=0.2)
        applied = request_id()
        async with load.running(_CALLERS):
            await load.acknowledge(_WRITES // 2)
            # A file set in the middle of it, from both at once: as one revision, and only one.
            made = await asyncio.gather(*(each.ApplyEntries(changes=_SET, request_id=applied) for each in registries))
            await load.acknowledge(_WRITES // 2)
        assert not load.failures, "nobody is refused because others write"
        last = max(await newest(one), await newest(other))
        # Each write is a revision, however often it was asked for.
        assert last == before + len(load.acknowledged) + 1

        await until(lambda: all(watcher.position >= last for watcher in watchers))
        for watcher in watchers:
            watcher.expect_linear(last)
            assert not watcher.ends
        assert watchers[0].revisions == watchers[1].revisions
        load.expect_each_once(watchers[0].revisions)
        assert {write.method for write in load.acknowledged} == {
            "CreateModel", "DeleteModel", "UpdateModel", "UpdateModelType",
        }  # fmt: skip
        assert made[0] == made[1]
        assert len(watchers[0].revisions[made[0].revision - 1].changes) == len(_SET)

        states = [await state_of(registry, last) for registry in registries]
        assert states[0] == states[1] == state_after(watchers[0].revisions)
        assert (await verified(one)).head == (await verified(other)).head

        # Repeated elsewhere, each call answers the same and changes nothing.
        chance = random.Random(2)
        for registry in registries:
            sample = chance.sample(load.acknowledged, 60)
            answers = await asyncio.gather(*(write.again(registry) for write in sample))
            assert answers == [write.answer for write in sample]
        assert await newest(one) == await newest(other) == last


async def test_an_etag_is_good_for_one_write_on_whichever_replica(database_url: str) -> None:
    """Many read, change and write back the same entry: of those who read the same, one is taken."""
    async with AsyncExitStack() as stack:
        registries = []
        for _ in range(2):
            _, address = await stack.enter_async_context(registry_process(database_url))
            registries.append(await stack.enter_async_context(caller(address)))
        read = await populate(registries[0])
        for attempt in range(10):
            asked = [
                registry.UpdateModelType(
                    model_type=pb.ModelType(name=CTR, etag=read.etag, labels={"site": f"{attempt}-{number}"}),
                    update_mask={"paths": ["labels.site"]},
                )
                for number, registry in enumerate(registries * 4)
            ]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            (taken,) = [answer for answer in answers if isinstance(answer, pb.ModelType)]
            refused = [refusal(answer).reason for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
            assert refused == ["ETAG_MISMATCH"] * (len(asked) - 1)
            assert taken.revision == read.revision + 1
            read = taken
