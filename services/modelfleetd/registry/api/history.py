"""Revisions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.errors import ResourceNotFound, invalid
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
        if stored is None:
            raise ResourceNotFound(request.name)
        return wire.revision_of(stored)

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Context) -> pb.ListRevisionsResponse:
        if request.resource and not any(kind.pattern.match(request.resource) for kind in wire.KINDS):
            accepted = ", ".join(kind.pattern.template for kind in wire.KINDS)
            raise invalid("resource", f"must be empty or a name of the form {accepted}")
        page = paging.read(request, int)
        before = None if page.position is None else int(page.position[0])
        stored = await self._store.revisions_before(request.resource, before, page.size + 1)
        shown, token = page.answer(stored, lambda revision: (revision.number,), wire.revision_of)
        return pb.ListRevisionsResponse(revisions=shown, next_page_token=token)

    async def WatchRevisions(
        self, request: pb.WatchRevisionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchRevisionsResponse]:
        async for response in self._watches.after(request.after_revision, Wanted.of(request)):
            yield response
