"""Forgetting old revisions: first they are out of sight, all at once; then their rows go, a few at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator

from modelfleet.registry.v1 import history_pb2
from modelfleetd.errors import RevisionOutOfRange, invalid
from modelfleetd.kit.idempotency import once
from modelfleetd.registry.readout import checkpoint, kept_changes
from modelfleetd.registry.store import Base, HistoryStore
from modelfleetd.registry.wire import is_deletion

_log = logging.getLogger(__name__)

# Revisions whose rows are deleted in one transaction.
_BATCH = 200


class Compaction:
    """Moves the base of history, and deletes what is before it."""

    def __init__(self, store: HistoryStore) -> None:
        self._store = store

    async def compact(self, request: history_pb2.CompactHistoryRequest) -> history_pb2.CompactHistoryResponse:
        """Lets history begin with a revision: nobody sees what came before it any more.

        Raises:
            InvalidFields: it is not positive.
            RevisionOutOfRange: it does not exist yet.
        """
        if request.oldest_kept < 1:
            raise invalid("oldest_kept", "must be the number of a revision")
        made = await self._base_before(request.oldest_kept)
        async with self._store.compacting() as (conn, base):

            async def act() -> history_pb2.CompactHistoryResponse:
                moves = made.number > base.number
                if moves and not request.validate_only:
                    await self._store.move_base(conn, made)
                    _log.warning("history before revision %d is forgotten", request.oldest_kept)
                return history_pb2.CompactHistoryResponse(
                    base=checkpoint(made if moves else base), forgotten=made.number - base.number if moves else 0
                )

            return await once(conn, request, history_pb2.CompactHistoryResponse, act)

    async def _base_before(self, oldest_kept: int) -> Base:
        """Returns what a revision follows, with the digest of what has to be kept of it and before."""
        number = oldest_kept - 1
        async with self._store.reading() as reading:
            base, head = await reading.base(), await reading.head()
            if oldest_kept > head.number:
                raise RevisionOutOfRange(oldest_kept, base.number + 1, head.number)
            found = await reading.point(number) if number > base.number else None
            if found is None:
                return Base()
            return Base(found.number, found.hash, found.time, await _digest(kept_changes(reading, number)))

    async def forget(self) -> None:
        """Deletes the rows of revisions before the base. Ended at any point, it goes on where it was."""
        while (forgotten := await self._store.forgotten(_BATCH)).numbers:
            # What an entry was at the base is still asked for; that it was gone by then is not.
            ended = [(revision, position) for revision, position, change in forgotten.last if is_deletion(change)]
            await self._store.forget(forgotten.numbers, ended)
            _log.info("revisions up to %d are deleted, up to %d to go", forgotten.numbers[-1], forgotten.base)


async def _digest(kept: AsyncIterator[list[history_pb2.KeptChange]]) -> bytes:
    digest = hashlib.sha256()
    async for changes in kept:
        for change in changes:
            for part in (change.resource.encode(), str(change.revision).encode(), change.change):
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(part)
    return digest.digest()
