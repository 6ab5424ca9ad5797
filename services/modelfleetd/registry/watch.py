"""The stream of revisions: ordered, complete, and as slow as its reader without holding up any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import RevisionOutOfRange, invalid
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.store import Store
from modelfleetd.registry.wire import revision_of

HEARTBEAT_SECONDS = 10.0
# How much of a backlog is in memory at a time, for each watcher that is behind.
_BATCH = 100


class Watches:
    """Makes streams of revisions, all fed by one follower."""

    def __init__(self, store: Store, follower: Follower, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._store = store
        self._follower = follower
        self._heartbeat_seconds = heartbeat_seconds

    async def after(self, position: int) -> AsyncIterator[pb.WatchRevisionsResponse]:
        """Yields every revision after one, in order, as they come; a heartbeat first, and while nothing comes.

        Raises:
            InvalidFields: the revision is negative.
            RevisionOutOfRange: it does not exist, or what follows it is gone.
        """
        if position < 0:
            raise invalid("after_revision", "must be 0 (from the first one) or a revision")
        generation = self._follower.generation
        if position > self._current:
            await self._follower.catch_up()
        yield await self._heartbeat(position)
        while True:
            moved = self._follower.moved
            if generation != self._follower.generation:
                # The history that was sent is not the database's any more.
                raise RevisionOutOfRange(position, 1, self._current)
            found = await self._next(position)
            for revision in found:
                yield pb.WatchRevisionsResponse(revision=revision, current_revision=self._current)
                position = revision.number
            if not found:
                try:
                    async with asyncio.timeout(self._heartbeat_seconds):
                        await moved.wait()
                except TimeoutError:
                    yield pb.WatchRevisionsResponse(current_revision=self._current)

    @property
    def _current(self) -> int:
        return self._follower.snapshot.revision

    async def _heartbeat(self, position: int) -> pb.WatchRevisionsResponse:
        """Returns the first message, once it is clear that everything after the position can be had."""
        current = self._current
        # Only a position that is not in memory makes it necessary to ask.
        if position > current or self._follower.recent(position) is None:
            oldest = await self._store.oldest_revision()
            if not oldest - 1 <= position <= current:
                raise RevisionOutOfRange(position, oldest, current)
        return pb.WatchRevisionsResponse(current_revision=current)

    async def _next(self, position: int) -> Sequence[pb.Revision]:
        recent = self._follower.recent(position)
        if recent is not None:
            return recent[:_BATCH]
        # Too far behind for what is in memory: from the database, so that nobody is held up and nothing piles up.
        stored = await self._store.revisions_from(position + 1, _BATCH)
        if not stored or stored[0].number != position + 1:
            raise RevisionOutOfRange(position, await self._store.oldest_revision(), self._current)
        return [revision_of(each) for each in stored]
