"""Watchers that read nothing hold up nobody and pile up nothing; when they read again, they get everything in order."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct, Value

from modelfleet.registry.v1 import registry_pb2 as pb
from tests.support.processes import registry_process
from tests.support.registry_calls import CTR, Registry, populate
from tests.support.registry_load import Watcher, caller
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_SLOW = 10
_CALLERS = 16
_ALONE, _BESIDE = 300, 2000
# A revision of an entry of this size has some more: the stream of each slow watcher is of about 22 MiB.
_ATTRIBUTES = Struct(fields={"notes": Value(string_value="Ranks what is on the shelf. " * 400)})
# The registry keeps the last 1024 revisions for all watchers together, here about 12 MiB. The rest is for what Python
# and gRPC hold on to. If it kept what the slow ones do not read, that would be more than 200 MiB.
_GROWTH_MIB = 64
# A connection takes this many bytes that nobody has read: more than an entry, far less than the stream.
_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10))


def memory_mib(process: int) -> float:
    """Memory of a process that is in use, as the kernel sees it."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def write(registry: Registry, count: int) -> list[float]:
    """Writes so many revisions from several callers at once; returns how long each call took, in seconds."""
    seconds: list[float] = []
    left = iter(range(count))

    async def write_again_and_again() -> None:
        for number in left:
            began = time.monotonic()
            await registry.UpdateModelType(
                model_type=pb.ModelType(name=CTR, labels={"site": f"{count}-{number}"}),
                update_mask={"paths": ["labels.site"]},
            )
            seconds.append(time.monotonic() - began)

    await asyncio.gather(*(write_again_and_again() for _ in range(_CALLERS)))
    return seconds


@asynccontextmanager
async def watchers_that_do_not_read(address: str, after: int) -> AsyncIterator[Sequence[Any]]:
    """Gives streams that have been opened, each over a connection of its own, and of which nobody reads more."""
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(_SLOW):
            registry = await stack.enter_async_context(caller(address, 10.0, *_WINDOW))
            stream = registry.WatchRevisions(after_revision=after)
            assert (await stream.read()).current_revision == after
            streams.append(stream)
        yield streams
        for stream in streams:
            stream.cancel()


async def read_to(stream: Any, newest: int) -> list[pb.WatchRevisionsResponse]:
    """Returns the revisions that a stream gives, up to one."""
    messages: list[pb.WatchRevisionsResponse] = []
    while not messages or messages[-1].position < newest:
        message = await stream.read()
        assert message is not grpc.aio.EOF
        if message.HasField("revision"):
            messages.append(message)
    return messages


async def test_watchers_that_read_nothing_hold_up_nobody_and_miss_nothing(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        process, address = await stack.enter_async_context(registry_process(database_url))
        registry = await stack.enter_async_context(caller(address))
        await populate(registry)
        await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, attributes=_ATTRIBUTES))
        quick = await stack.enter_async_context(Watcher(registry).watching())

        alone = await write(registry, _ALONE)
        before = (await registry.ListTeams()).revision
        await until(lambda: quick.position >= before)
        slow = await stack.enter_async_context(watchers_that_do_not_read(address, before))
        memory = memory_mib(process.process.pid)

        beside = await write(registry, _BESIDE)
        newest = (await registry.ListTeams()).revision
        assert newest == before + _BESIDE
        await until(lambda: quick.position >= newest, timeout=30)
        growth = memory_mib(process.process.pid) - memory
        assert growth < _GROWTH_MIB, f"the registry grew by {growth:.0f} MiB"
        quick.expect_linear(newest)
        # Nobody waits for them: a write takes no longer than before.
        shown = f"median {statistics.median(alone):.4f} s alone, {statistics.median(beside):.4f} s beside slow watchers"
        assert statistics.median(beside) < 2 * statistics.median(alone) + 0.01, shown
        assert max(beside) < 2.0

        # Now they read: each gets everything, though it is no longer in memory.
        for messages in await asyncio.gather(*(read_to(stream, newest) for stream in slow[:2])):
            assert [message.revision.number for message in messages] == list(range(before + 1, newest + 1))
            made_before = sum(message.current_revision < newest for message in messages)
            assert made_before < _BESIDE / 10, "the server waited for them, instead of sending it all on"
        growth = memory_mib(process.process.pid) - memory
        assert growth < _GROWTH_MIB, f"the registry grew by {growth:.0f} MiB"
