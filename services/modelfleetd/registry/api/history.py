"""Revisions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from modelfleet.registry.v1 import history_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.errors import ResourceNotFound, RevisionOutOfRange, invalid
from modelfleetd.kit import paging
from modelfleetd.registry import wire
from modelfleetd.registry.api.base import Base, Context
from modelfleetd.registry.scopes import Wanted


class History(Base):
    """Revisions."""

    # History.

    async def GetRevision(self, request: pb.GetRevisionRequest, context: Context) -> pb.Revision:
        (number,) = names.REVISION.parse(request.name)
        stored = await self._store.revision(int(number))
        base = (await self._store.history.base()).number
        if int(number) <= base:
            raise RevisionOutOfRange(int(number), base + 1, self._follower.snapshot.revision)
        if stored is None:
            raise ResourceNotFound(request.name)
        return wire.revision_of(stored)

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Context) -> pb.ListRevisionsResponse:
        _expect_entry(request.resource)
        page = paging.read(request, int)
        before = None if page.position is None else int(page.position[0])
        stored = await self._store.revisions_before(request.resource, before, page.size + 1)
        shown, token = page.answer(stored, lambda revision: (revision.number,), wire.revision_of)
        return pb.ListRevisionsResponse(revisions=shown, next_page_token=token)

    async def DiffRevisions(self, request: pb.DiffRevisionsRequest, context: Context) -> pb.DiffRevisionsResponse:
        _expect_entry(request.resource)
        return await self._past.differences(request)

    async def ReadHistory(
        self, request: history_pb2.ReadHistoryRequest, context: Context
    ) -> AsyncIterator[history_pb2.ReadHistoryResponse]:
        async for response in self._readout.stream(request.after_revision, with_state=request.with_state):
            yield response

    async def CompactHistory(
        self, request: history_pb2.CompactHistoryRequest, context: Context
    ) -> history_pb2.CompactHistoryResponse:
        return await self._compaction.compact(request)

    async def WatchRevisions(
        self, request: pb.WatchRevisionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchRevisionsResponse]:
        async for response in self._watches.after(request.after_revision, Wanted.of(request)):
            yield response


def _expect_entry(resource: str) -> None:
    if resource and not any(kind.pattern.match(resource) for kind in wire.KINDS):
        accepted = ", ".join(kind.pattern.template for kind in wire.KINDS)
        raise invalid("resource", f"must be empty or a name of the form {accepted}")
