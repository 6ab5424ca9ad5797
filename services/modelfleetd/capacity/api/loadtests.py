"""Load tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity.api.base import Base, Context, actor, before, new_name
from modelfleetd.capacity.domain.loadtest import DEFAULT_START_QPS, ENDED, State, Wanted, digest_of
from modelfleetd.capacity.domain.recording import State as RecordingState
from modelfleetd.capacity.registry import Model
from modelfleetd.capacity.store import certificates, loadtests, recordings
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import loadtests as wire
from modelfleetd.errors import (
    FieldViolation,
    InvalidFields,
    RecordingUnreadable,
    ReferenceNotFound,
    ResourceNotFound,
    WrongState,
)
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection


async def _replayable(conn: Connection, wanted: Wanted, model: Model) -> str:
    """Returns the digest of what is to be replayed; a recording stays until the load test has ended.

    Raises:
        ReferenceNotFound: there is no such recording.
        InvalidFields: it is of another model type.
        RecordingUnreadable: it is not ready.
    """
    if wanted.recording is None:
        return digest_of(wanted.sample_requests)
    try:
        found = await recordings.lock(conn, wanted.recording)
    except ResourceNotFound:
        raise ReferenceNotFound("load_test.recording", wanted.recording) from None
    if found.model_type != model.model_type:
        description = f"is of {found.model_type}; the model is of {model.model_type}"
        raise InvalidFields([FieldViolation("load_test.recording", description)])
    if found.state is not RecordingState.READY:
        raise RecordingUnreadable(found.name, _WHY_NOT[found.state].format(found.message.rstrip(".")))
    return found.digest


_WHY_NOT = {
    RecordingState.PENDING: "it has not begun",
    RecordingState.RECORDING: "it still records; stop it first",
    RecordingState.FAILED: "it has failed: {}",
}


class LoadTests(Base):
    """Implements the methods of load tests."""

    async def CreateLoadTest(self, request: pb.CreateLoadTestRequest, context: Context) -> pb.LoadTest:
        asked = request.load_test
        model = await self._registry.model(asked.model, "load_test.model")
        await self._registry.check_regions([("load_test.region", asked.region)])
        wanted = wire.wanted_from_proto(asked, model.spec.flavor, await self._start_qps(model))
        name, by = new_name(names.LOAD_TEST, "t"), actor()

        async def act(conn: Connection) -> pb.LoadTest:
            digest = await _replayable(conn, wanted, model)
            inserted = await loadtests.insert(conn, name, replace(wanted, recording_digest=digest), by)
            (made,) = await loadtests.with_turns(conn, [inserted])
            return wire.load_test_to_proto(made)

        return await change(self._database, request, pb.LoadTest, act)

    async def _start_qps(self, model: Model) -> float:
        predecessor = await certificates.newest_of_type(self._database, model.model_type, model.spec.flavor)
        return DEFAULT_START_QPS if predecessor is None else predecessor.max_qps

    async def GetLoadTest(self, request: pb.GetLoadTestRequest, context: Context) -> pb.LoadTest:
        whole = await loadtests.get_whole(self._database, request.name)
        (found,) = await loadtests.with_turns(self._database, [whole])
        return wire.load_test_to_proto(found)

    async def ListLoadTests(self, request: pb.ListLoadTestsRequest, context: Context) -> pb.ListLoadTestsResponse:
        page = paging.read(request, int)
        rows = await loadtests.page(self._database, request.model, before(page), page.size + 1)
        tests = await loadtests.with_turns(self._database, [row.load_test for row in rows])
        found = [replace(row, load_test=test) for row, test in zip(rows, tests, strict=True)]
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
