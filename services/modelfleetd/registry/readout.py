"""History as it is stored, for those who verify it: what is read here is what was hashed, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from modelfleet.registry.v1 import history_pb2
from modelfleetd.errors import Overloaded, RevisionOutOfRange, invalid
from modelfleetd.kit.codec import timestamp_to_proto
from modelfleetd.registry.store import Base, HistoryReading, HistoryStore
from modelfleetd.registry.wire import is_deletion

# A message: of changes or states so many bytes (what belongs to them comes on top, and 4 MiB is the most), and no more
# rows than are read in an instant.
_BYTES = 2 << 20
_ROWS = 6000
_NAMES = 200
_CHANGES = 20
# Each holds a connection for as long as it lasts.
_MOST_READERS = 2


class Readout:
    """Makes the streams of ReadHistory."""

    def __init__(self, store: HistoryStore) -> None:
        self._store = store
        self._readers = asyncio.Semaphore(_MOST_READERS)

    async def stream(self, after: int, *, with_state: bool) -> AsyncIterator[history_pb2.ReadHistoryResponse]:
        """Yields history after a revision, and then the state where it is asked for; all of one moment.

        Raises:
            InvalidFields: the revision is negative.
            RevisionOutOfRange: it does not exist, or was forgotten.
            Overloaded: enough others read.
        """
        if after < 0:
            raise invalid("after_revision", "must be 0 (from the first one that is kept) or a revision")
        if self._readers.locked():
            raise Overloaded(5.0)
        async with self._readers, self._store.reading() as reading:
            base, head = await reading.base(), await reading.head()
            begin = base
            if after:
                found = await reading.point(after) if after > base.number else base
                if found is None or found.number != after:
                    raise RevisionOutOfRange(after, base.number, head.number)
                begin = Base(found.number, found.hash, found.time)
            yield history_pb2.ReadHistoryResponse(base=checkpoint(begin), head=checkpoint(head))
            if not after:
                async for kept in kept_changes(reading, base.number):
                    yield history_pb2.ReadHistoryResponse(kept_changes=kept)
            async for revisions in _revisions(reading, begin.number):
                yield history_pb2.ReadHistoryResponse(revisions=revisions)
            if with_state:
                async for entries in _entries(reading):
                    yield history_pb2.ReadHistoryResponse(entries=entries)


def checkpoint(point: Base) -> history_pb2.Checkpoint:
    """Returns the message of a place in the chain."""
    time = None if point.time is None else timestamp_to_proto(point.time)
    return history_pb2.Checkpoint(revision=point.number, hash=point.hash.hex(), time=time, kept_hash=point.digest.hex())


async def kept_changes(reading: HistoryReading, base: int) -> AsyncIterator[list[history_pb2.KeptChange]]:
    """Yields the newest change up to a revision of each entry that existed then, by name."""
    last = ""
    while base:
        found = await reading.newest(last, base, _NAMES)
        kept = [
            history_pb2.KeptChange(resource=each.name, revision=each.revision, change=each.change)
            for each in found
            if each.revision is not None and each.change is not None and not is_deletion(each.change)
        ]
        for begin in range(0, len(kept), _CHANGES):
            yield kept[begin : begin + _CHANGES]
        if len(found) < _NAMES:
            return
        last = found[-1].name


async def _revisions(reading: HistoryReading, after: int) -> AsyncIterator[history_pb2.StoredRevisions]:
    while (row := await reading.revisions(after, _ROWS, _BYTES)) is not None:
        yield history_pb2.StoredRevisions(
            numbers=row["numbers"],
            times_us=row["times_us"],
            hashes=row["hashes"],
            contents=row["contents"],
            content_lengths=row["content_lengths"],
            resources=row["resources"],
        )
        after = row["last"]
    if strays := await reading.stray_changes(after):
        # Of revisions that there are not: more names than changes say so.
        yield history_pb2.StoredRevisions(resources="\n".join(strays))


async def _entries(reading: HistoryReading) -> AsyncIterator[list[history_pb2.StoredEntry]]:
    last = ""
    while found := await reading.entries(last, _ROWS, _BYTES):
        yield [
            history_pb2.StoredEntry(name=each.name, kind=each.kind, revision=each.revision, state=each.state)
            for each in found
        ]
        last = found[-1].name
