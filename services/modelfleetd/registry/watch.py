"""The stream of revisions: ordered, complete, and as slow as its reader without holding up any other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import RevisionOutOfRange, invalid
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.scopes import Seen, Wanted, scopes_of, types_needed
from modelfleetd.registry.store import Store
from modelfleetd.registry.wire import revision_of

HEARTBEAT_SECONDS = 10.0
# How much of a backlog is in memory at a time, for each watcher that is behind.
_BATCH = 50
_EVERYTHING = Wanted()


class Watches:
    """Makes streams of revisions, all fed by one follower."""

    def __init__(self, store: Store, follower: Follower, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._store = store
        self._follower = follower
        self._heartbeat_seconds = heartbeat_seconds
        self._made: tuple[pb.Revision | None, pb.WatchRevisionsResponse] = (None, pb.WatchRevisionsResponse())

    async def after(self, position: int, wanted: Wanted = _EVERYTHING) -> AsyncIterator[pb.WatchRevisionsResponse]:
        """Yields every revision after one that is wanted, in order, as they come.

        A heartbeat comes first, whenever nothing has come for a while, and now and then where much is passed over.

        Raises:
            InvalidFields: the revision is negative.
            RevisionOutOfRange: it does not exist, or what follows it is gone.
        """
        if position < 0:
            raise invalid("after_revision", "must be 0 (from the first one) or a revision")
        generation = self._follower.generation
        if position > self._current:
            await self._follower.catch_up()
        await self._expect(position)
        yield self._message(position)
        spoke = time.monotonic()
        while True:
            moved = self._follower.moved
            if generation != self._follower.generation:
                # The history that was sent is not the database's any more.
                raise RevisionOutOfRange(position, 1, self._current)
            found = await self._next(position, wanted)
            told = position
            for seen in found:
                position = seen.revision.number
                if wanted.fits(seen):
                    told = position
                    yield self._revision_message(seen.revision)
                    spoke = time.monotonic()
            passed_over = len(found) == _BATCH and told != position
            # Where all that comes is passed over, it is as quiet as where nothing comes.
            if passed_over or not (found or await self._has_moved(moved, spoke + self._heartbeat_seconds)):
                yield self._message(position)
                spoke = time.monotonic()

    async def _has_moved(self, moved: asyncio.Event, until: float) -> bool:
        """Waits for the next revision, but not longer than to a moment on the monotonic clock."""
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await moved.wait()
        except TimeoutError:
            return False
        return True

    @property
    def _current(self) -> int:
        return self._follower.snapshot.revision

    def _message(self, position: int) -> pb.WatchRevisionsResponse:
        return pb.WatchRevisionsResponse(current_revision=self._current, position=position)

    def _revision_message(self, revision: pb.Revision) -> pb.WatchRevisionsResponse:
        """Returns the message with a revision: one for all who get it now, since a revision may be of some MiB."""
        made_of, made = self._made
        if made_of is not revision or made.current_revision != self._current:
            made = pb.WatchRevisionsResponse(
                revision=revision, current_revision=self._current, position=revision.number
            )
            self._made = (revision, made)
        return made

    async def _expect(self, position: int) -> None:
        """Makes clear that everything after a position can be had."""
        current = self._current
        # Only a position that is not in memory makes it necessary to ask.
        if position > current or self._follower.recent(position, 1) is None:
            base = (await self._store.history.base()).number
            if not base <= position <= current:
                raise RevisionOutOfRange(position, base + 1, current)

    async def _next(self, position: int, wanted: Wanted) -> Sequence[Seen]:
        recent = self._follower.recent(position, _BATCH)
        if recent is not None:
            return recent
        # Too far behind for what is in memory: from the database, so that nobody is held up and nothing piles up.
        stored = await self._store.revisions_from(position + 1, _BATCH)
        if not stored or stored[0].number != position + 1:
            base = (await self._store.history.base()).number
            raise RevisionOutOfRange(position, base + 1, self._current)
        revisions = [revision_of(each) for each in stored]
        return await self._seen(revisions) if wanted.sets else [Seen(each, frozenset()) for each in revisions]

    async def _seen(self, revisions: Sequence[pb.Revision]) -> list[Seen]:
        """Returns what revisions of the past are about: model types as they were then come from the database."""
        needed: dict[str, int] = {}
        for revision in revisions:
            for name in types_needed(revision):
                needed.setdefault(name, revision.number - 1)
        changes = await self._store.history.changes_as_of(needed)
        types = {name: pb.ResourceChange.FromString(change).model_type for name, change in changes.items()}
        seen = []
        for revision in revisions:
            seen.append(Seen(revision, scopes_of(revision, types.get)))
            types |= {
                change.resource: change.model_type for change in revision.changes if change.HasField("model_type")
            }
        return seen
