"""Keeps this process's snapshot at the newest revision, and the newest revisions at hand for watchers.

Whoever writes here hands its own revision over; the revisions of other replicas are asked for every half second, and at
once by whoever waits for one. Nothing depends on being told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import RevisionOutOfRange, invalid
from modelfleetd.kit.db import Connection
from modelfleetd.registry.scopes import Seen, scopes_of
from modelfleetd.registry.snapshot import Snapshot
from modelfleetd.registry.store import Store
from modelfleetd.registry.wire import KINDS, message_of_stored, revision_of

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
_BATCH = 200
_KEPT = frozenset(kind.name for kind in KINDS if kind.in_memory)
# Watchers that are no further behind than this are served from memory, all from the same messages.
_RECENT = 1024
_RECENT_BYTES = 64 << 20


class Follower:
    """The snapshot, and what keeps it current."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking = asyncio.Lock()
        self._moved = asyncio.Event()
        self._recent: deque[Seen] = deque()
        self._recent_bytes = 0
        self.snapshot = Snapshot()
        # Grows with each load: who follows revisions across one would not notice that history is another.
        self.generation = 0

    async def load(self) -> None:
        """Reads the whole current state: at start, and where the database's history is not the one followed so far."""
        number, hash_, resources = await self._store.load(_KEPT)
        self._recent.clear()
        self._recent_bytes = 0
        self.generation += 1
        self.snapshot = Snapshot.of((message_of_stored(kind, state) for kind, state in resources), number, hash_)
        self._wake()
        _log.info("snapshot loaded: %d resources at revision %d", len(resources), number)

    async def catch_up(self) -> None:
        """Goes on to where the database was, or later, when this was called."""
        async with self._asking:
            while await self._step():
                pass

    async def catch_up_within(self, conn: Connection) -> None:
        """Goes on to the newest revision, in a transaction that holds it; then decide on the snapshot."""
        while await self._step(conn):
            pass

    async def _step(self, conn: Connection | None = None) -> bool:
        """Asks for the next revisions and applies them. Says whether there may be more."""
        known, hash_ = self.snapshot.revision, self.snapshot.hash
        if known and await self._store.hash_of(known, conn) != hash_:
            # Only where a primary was lost together with what it had not yet passed on.
            _log.error("revision %d is not what it was: the database lost history; loading again", known)
            await self.load()
            return True
        found = await self._store.revisions_from(known + 1, _BATCH, conn)
        for stored in found:
            # A writer of this process may have been faster.
            if stored.number > self.snapshot.revision:
                self.apply(revision_of(stored))
        return bool(found)

    def apply(self, revision: pb.Revision) -> None:
        """Takes over a committed revision unless it is known. A gap is left for the next question to the database."""
        if revision.number == self.snapshot.revision + 1:
            seen = Seen(revision, scopes_of(revision, self.snapshot.model_types.get))
            self.snapshot.apply(revision)
            self._keep(seen)
            self._wake()

    def _keep(self, seen: Seen) -> None:
        """Keeps a revision for watchers, and no more of the older ones than there is room for."""
        self._recent.append(seen)
        self._recent_bytes += seen.revision.ByteSize()
        while len(self._recent) > _RECENT or (self._recent_bytes > _RECENT_BYTES and len(self._recent) > 1):
            self._recent_bytes -= self._recent.popleft().revision.ByteSize()

    async def reach(self, min_revision: int, path: str = "min_revision") -> None:
        """Returns once the snapshot has a revision, which the field at `path` of the request asks for.

        Raises:
            InvalidFields: it is negative.
            RevisionOutOfRange: it does not exist.
        """
        if min_revision < 0:
            raise invalid(path, "must be 0 or a revision that was seen")
        if min_revision > self.snapshot.revision:
            await self.catch_up()
        if min_revision > self.snapshot.revision:
            raise RevisionOutOfRange(min_revision, 0, self.snapshot.revision)

    def recent(self, after: int, limit: int) -> list[Seen] | None:
        """Returns up to `limit` revisions after one, in order; None where they are no longer in memory."""
        missing = self.snapshot.revision - after
        if missing <= 0:
            return []
        if missing > len(self._recent):
            return None
        # By index, for most who ask want the last one: going there from the first takes long for a hundred watchers.
        first = len(self._recent) - missing
        return [self._recent[at] for at in range(first, min(first + limit, len(self._recent)))]

    @property
    def moved(self) -> asyncio.Event:
        """What is set when the next revision comes. To miss none, take it before looking at the snapshot."""
        return self._moved

    def _wake(self) -> None:
        # Everybody who waits now wakes up; who waits from now on waits for the next.
        self._moved.set()
        self._moved = asyncio.Event()
