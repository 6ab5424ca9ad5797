"""Load tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.recordings import Digest
from modelfleetd import names
from modelfleetd.capacity.api.base import Base, Context, actor, before, new_name
from modelfleetd.capacity.domain.loadtest import DEFAULT_START_QPS, ENDED, State
from modelfleetd.capacity.registry import Model
from modelfleetd.capacity.store import certificates, loadtests
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import loadtests as wire
from modelfleetd.errors import WrongState
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection


def _digest(asked: pb.LoadTest) -> str:
    """Returns the digest of sample requests, made as that of a recording is."""
    digest = Digest()
    for sample in asked.sample_requests:
        digest.add(sample)
    return str(digest)


class LoadTests(Base):
    """Implements the methods of load tests."""

    async def CreateLoadTest(self, request: pb.CreateLoadTestRequest, context: Context) -> pb.LoadTest:
        model = await self._registry.model(request.load_test.model, "load_test.model")
        await self._registry.check_regions([("load_test.region", request.load_test.region)])
        wanted = wire.wanted_from_proto(
            request.load_test, model.spec.flavor, await self._start_qps(model), _digest(request.load_test)
        )
        name, by = new_name(names.LOAD_TEST, "t"), actor()

        async def act(conn: Connection) -> pb.LoadTest:
            return wire.load_test_to_proto(await loadtests.insert(conn, name, wanted, by))

        return await change(self._database, request, pb.LoadTest, act)

    async def _start_qps(self, model: Model) -> float:
        predecessor = await certificates.newest_of_type(self._database, model.model_type, model.spec.flavor)
        return DEFAULT_START_QPS if predecessor is None else predecessor.max_qps

    async def GetLoadTest(self, request: pb.GetLoadTestRequest, context: Context) -> pb.LoadTest:
        return wire.load_test_to_proto(await loadtests.get_whole(self._database, request.name))

    async def ListLoadTests(self, request: pb.ListLoadTestsRequest, context: Context) -> pb.ListLoadTestsResponse:
        page = paging.read(request, int)
        found = await loadtests.page(self._database, request.model, before(page), page.size + 1)
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: wire.load_test_to_proto(row.load_test)
        )
        return pb.ListLoadTestsResponse(load_tests=shown, next_page_token=token)

    async def CancelLoadTest(self, request: pb.CancelLoadTestRequest, context: Context) -> pb.LoadTest:
        by = actor()

        async def act(conn: Connection) -> pb.LoadTest:
            found = await loadtests.lock(conn, request.name)
            if found.state is State.CANCELLED:
                return wire.load_test_to_proto(found)
            if found.state in ENDED:
                raise WrongState(found.name, found.state.name, ())
            return wire.load_test_to_proto(await loadtests.cancel(conn, found.name, f"Cancelled by {by}."))

        return await change(self._database, request, pb.LoadTest, act)

    async def WatchLoadTest(self, request: pb.WatchLoadTestRequest, context: Context) -> AsyncIterator[pb.LoadTest]:
        async for found in self._watching.changes(request.name):
            yield wire.load_test_to_proto(found)
