"""Verifies a registry's history without believing the registry: every hash is computed here, from what is stored.

    with Client(…) as client:
        stream = client.registry.read_history(with_state=True)
        verified = verify(stream, checkpoint=kept_elsewhere)

Without a checkpoint this finds whatever does not fit together. Somebody with full access to the database could also
write everything anew from some revision on, so that it fits: a checkpoint from before, kept where they cannot change
it, finds that too.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from modelfleet import ledger_columns as columns
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.history_pb2 import (
    Checkpoint,
    KeptChange,
    ReadHistoryResponse,
    StoredEntry,
    StoredRevisions,
)

_sha256 = hashlib.sha256
_BEFORE_HASH = (32).to_bytes(8, "big")
_LENGTH = struct.Struct(">Q")
_DELETED = b"\x10\x03"  # ResourceChange.action, where it follows the name.


class Damage(Exception):
    """The first thing in a history that is not as it must be.

    Attributes:
        revision: where it is; 0 where it is in no revision.
        what: the part that is wrong.
        expected: what it should be.
        found: what it is.
    """

    def __init__(self, revision: int, what: str, expected: object, found: object) -> None:
        where = f"revision {revision}: " if revision else ""
        super().__init__(f"{where}{what}: expected {expected}, found {found}")
        self.revision, self.what, self.expected, self.found = revision, what, str(expected), str(found)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was verified: every revision after the base up to the head, and the state that they leave."""

    base: Checkpoint
    head: Checkpoint
    revisions: int
    changes: int
    entries: int


def verify(
    messages: Iterable[ReadHistoryResponse],
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Verifies history and state.

    Args:
        messages: the stream of ReadHistory from the first revision on, with state.
        checkpoint: a revision and its hash that the history must contain.
        progress: is told how many revisions were verified, and of how many, after each message.

    Raises:
        Damage: something is wrong. Nothing after it was looked at.
    """
    verifier: _Verifier | None = None
    for message in messages:
        if verifier is None:
            verifier = _Verifier(message.base, message.head, checkpoint)
        try:
            verifier.take(message)
        except (DecodeError, struct.error, ValueError):
            raise Damage(0, f"content after revision {verifier.number}", "serialised messages", "other bytes") from None
        if progress is not None:
            progress(verifier.number - verifier.base.revision, verifier.head.revision - verifier.base.revision)
    if verifier is None:
        raise Damage(0, "the stream", "a message with base and head", "nothing")
    return verifier.end()


class _Verifier:
    """Takes the messages of a stream in their order."""

    def __init__(self, base: Checkpoint, head: Checkpoint, checkpoint: Checkpoint | None) -> None:
        self.base, self.head = base, head
        self.number = base.revision
        self._hash = bytes.fromhex(base.hash)
        self._time_us = _microseconds(base)
        self._checkpoint = checkpoint
        self._changes = self._entries = 0
        self._kept = hashlib.sha256()
        self._kept_is_open = bool(base.kept_hash)
        # By name the newest change: with its revision, or, where it is alone in one, the content of that.
        self._newest: dict[str, tuple[int, bytes] | bytes] = {}
        # How the change of a name begins.
        self._begins: dict[str, bytes] = {}
        if checkpoint is not None:
            self._expect_reachable(checkpoint)

    def _expect_reachable(self, checkpoint: Checkpoint) -> None:
        base, head = self.base, self.head
        if checkpoint.revision < base.revision:
            at_least = f"revision {base.revision} or later; what came before it was forgotten by compaction"
            raise Damage(0, "the checkpoint", at_least, f"revision {checkpoint.revision}")
        if checkpoint.revision > head.revision:
            raise Damage(0, "the newest revision", f"{checkpoint.revision} or later, by the checkpoint", head.revision)
        if checkpoint.revision == base.revision:
            self._compare_with_checkpoint(self._hash)
            if checkpoint.kept_hash and checkpoint.kept_hash != base.kept_hash:
                raise Damage(
                    0, "hash of what is kept of before the base", checkpoint.kept_hash, base.kept_hash or "none"
                )

    def _compare_with_checkpoint(self, found: bytes) -> None:
        assert self._checkpoint is not None
        if self._checkpoint.hash != found.hex():
            number = self._checkpoint.revision
            raise Damage(number, "hash, by the checkpoint", self._checkpoint.hash or "none", found.hex() or "none")

    def take(self, message: ReadHistoryResponse) -> None:
        self._take_kept(message.kept_changes)
        if message.HasField("revisions"):
            self._take_revisions(message.revisions)
        self._take_entries(message.entries)

    def _take_kept(self, kept: Sequence[KeptChange]) -> None:
        for each in kept:
            if each.revision > self.base.revision:
                raise Damage(each.revision, f"kept change of {each.resource}", "one up to the base", "a later one")
            for part in (each.resource.encode(), str(each.revision).encode(), each.change):
                self._kept.update(_framed(part))
            self._take_change(each.revision, each.resource, each.change)

    def _take_revisions(self, batch: StoredRevisions) -> None:
        """Verifies revisions: first the chain, column by column, then that what is indexed is what was hashed."""
        self._close_kept()
        numbers = columns.big_endian(batch.numbers, 8)
        times_us = columns.big_endian(batch.times_us, 8)
        ends = columns.big_endian(batch.content_lengths, 4).cumsum()
        count, first, packed = len(numbers), self.number + 1, batch.contents
        contents = [packed[begin:end] for begin, end in itertools.pairwise([0, *ends.tolist()])]
        hashes = [_sha256(content).digest() for content in contents]
        if not np.array_equal(numbers, np.arange(first, first + count)):
            self._compare("number", first, range(first, first + count), numbers.tolist())
        befores = [_framed(self._hash), *[_BEFORE_HASH + each for each in hashes[:-1]]][:count]
        if b"".join(hashes) != batch.hashes or not all(map(bytes.startswith, contents, befores)):
            stored = [batch.hashes[32 * index : 32 * index + 32] for index in range(count)]
            self._compare_hashes(first, contents, befores, hashes, stored)
        if self._checkpoint is not None and first <= self._checkpoint.revision < first + count:
            self._compare_with_checkpoint(hashes[self._checkpoint.revision - first])
        names = batch.resources.split("\n") if batch.resources else []
        if not self._take_all_at_once(
            packed, ends, numbers, times_us, contents, names, len(befores[0]) if befores else 0
        ):
            self._take_contents(numbers.tolist(), times_us.tolist(), contents, befores, names)
        if count:
            self.number, self._hash, self._time_us = int(numbers[-1]), hashes[-1], int(times_us[-1])

    def _compare(self, what: str, first: int, expected: Sequence[object], found: Sequence[object]) -> None:
        for offset, (one, other) in enumerate(zip(expected, found, strict=True)):
            if one != other:
                raise Damage(first + offset, what, _shown(one), _shown(other))

    def _compare_hashes(
        self,
        first: int,
        contents: Sequence[bytes],
        befores: Sequence[bytes],
        hashes: Sequence[bytes],
        stored: Sequence[bytes],
    ) -> None:
        for offset, (content, before) in enumerate(zip(contents, befores, strict=True)):
            self._compare("previous_hash", first + offset, [before], [content[: len(before)]])
            self._compare("hash", first + offset, hashes[offset : offset + 1], stored[offset : offset + 1])

    def _take_all_at_once(
        self,
        packed: bytes,
        ends: columns.Ints,
        numbers: columns.Ints,
        times_us: columns.Ints,
        contents: Sequence[bytes],
        names: Sequence[str],
        first_before: int,
    ) -> bool:
        """Takes contents as the registry mostly writes them: of one change each. Says whether all of them are so."""
        if not len(names) == len(numbers) == len(times_us) == len(contents):
            return False
        begins = np.concatenate(([0], ends[:-1])).astype(np.int64)
        headers = np.full(len(numbers), len(_BEFORE_HASH) + 32 + 8, dtype=np.int64)
        headers[:1] = first_before + 8
        changes = headers + columns.lengths_at(packed, begins + headers - 8) + 8
        sizes = ends - begins
        is_plain = changes + columns.lengths_at(packed, begins + changes - 8) == sizes
        if not is_plain.all() or not columns.headers_fit(packed, begins + headers, numbers, times_us):
            return False
        self._begins |= {name: _field(1, name.encode()) for name in set(names) - self._begins.keys()}
        if not all(map(bytes.startswith, contents, map(self._begins.__getitem__, names), changes.tolist())):
            return False
        self._newest.update(zip(names, contents, strict=True))
        self._changes += len(names)
        return True

    def _take_contents(
        self,
        numbers: Sequence[int],
        times_us: Sequence[int],
        contents: Sequence[bytes],
        begins: Sequence[bytes],
        resources: Sequence[str],
    ) -> None:
        """Looks at contents one by one."""
        names = iter(resources)
        parse, take, length = pb.Revision.FromString, self._take_change, _LENGTH.unpack_from
        for number, time_us, content, begun in zip(numbers, times_us, contents, begins, strict=False):
            begin = len(begun) + 8
            at = begin + length(content, begin - 8)[0]
            header = parse(content[begin:at])
            if header.number != number or header.name != f"revisions/{number}":
                raise Damage(number, "the number that it is stored under", header.name or "one that it states", number)
            time = header.time
            if time.seconds * 1_000_000 + time.nanos // 1000 != time_us:
                raise Damage(number, "the time that it is indexed under", time.ToJsonString(), f"{time_us} us")
            end = len(content)
            while at < end:
                begin = at + 8
                at = begin + length(content, begin - 8)[0]
                name = next(names, None)
                if name is None:
                    raise Damage(number, "names that its changes are indexed under", "one each", "fewer")
                take(number, name, content[begin:at])
        for name in names:
            raise Damage(
                0, f"change of {name}", f"in a revision up to {self.head.revision}", "in one that is not there"
            )

    def _take_change(self, number: int, name: str, change: bytes) -> None:
        if not change.startswith(self._begin_of(name)):
            says = pb.ResourceChange.FromString(change).resource
            if says != name:
                raise Damage(number, "name that a change is indexed under", says, name)
        self._newest[name] = (number, change)
        self._changes += 1

    def _begin_of(self, name: str) -> bytes:
        begin = self._begins.get(name)
        if begin is None:
            begin = self._begins[name] = _field(1, name.encode())
        return begin

    def _take_entries(self, entries: Sequence[StoredEntry]) -> None:
        for entry in entries:
            number, change = _change_in(self._newest.pop(entry.name, (0, b"")))
            if not number:
                raise Damage(entry.revision, f"state of {entry.name}", "none: no revision leaves one", "one")
            if entry.revision != number:
                raise Damage(number, f"revision of the state of {entry.name}", number, entry.revision)
            kind = pb.ResourceChange.DESCRIPTOR.fields_by_name.get(entry.kind)
            if kind is None or not change.endswith(_field(kind.number, entry.state)):
                self._compare_state(entry, pb.ResourceChange.FromString(change))
            self._entries += 1

    def _compare_state(self, entry: StoredEntry, change: pb.ResourceChange) -> None:
        kind = change.WhichOneof("after")
        if kind is None:
            raise Damage(entry.revision, f"state of {entry.name}", "none: it was deleted", "one")
        if kind != entry.kind:
            raise Damage(entry.revision, f"kind of {entry.name}", kind, entry.kind)
        after = getattr(change, kind)
        if after.SerializeToString(deterministic=True) != entry.state:
            found = type(after).FromString(entry.state)
            fields = [
                field.name
                for field in after.DESCRIPTOR.fields
                if getattr(after, field.name) != getattr(found, field.name)
            ]
            what = ", ".join(fields) or "bytes"
            raise Damage(entry.revision, f"state of {entry.name}", f"what the revision left ({what})", "something else")

    def end(self) -> Verified:
        self._close_kept()
        if (self.number, self._hash.hex()) != (self.head.revision, self.head.hash):
            last = f"revision {self.number} with hash {self._hash.hex() or 'none'}, the last one that is there"
            raise Damage(0, "head", last, f"revision {self.head.revision} with hash {self.head.hash or 'none'}")
        if self.number and self._time_us != _microseconds(self.head):
            raise Damage(0, "time of the head", f"that of revision {self.number}", self.head.time.ToJsonString())
        for name, newest in self._newest.items():
            number, change = _change_in(newest)
            is_deletion = change.startswith(self._begins[name] + _DELETED)
            if not is_deletion and pb.ResourceChange.FromString(change).WhichOneof("after") is not None:
                raise Damage(number, f"state of {name}", "what the revision left", "none")
        return Verified(self.base, self.head, self.number - self.base.revision, self._changes, self._entries)

    def _close_kept(self) -> None:
        if self._kept_is_open:
            self._kept_is_open = False
            if self._kept.hexdigest() != self.base.kept_hash:
                what = "hash of what is kept of before the base"
                raise Damage(0, what, self.base.kept_hash, self._kept.hexdigest())


def _change_in(newest: tuple[int, bytes] | bytes) -> tuple[int, bytes]:
    """Returns a change and its revision, also where it is given as the content of a revision of its own."""
    if not isinstance(newest, bytes):
        return newest
    at, parts = 0, []
    while at < len(newest):
        begin = at + 8
        at = begin + _LENGTH.unpack_from(newest, begin - 8)[0]
        parts.append(newest[begin:at])
    _, header, change = parts
    return pb.Revision.FromString(header).number, change


def _framed(part: bytes) -> bytes:
    """Returns a part as it is hashed."""
    return len(part).to_bytes(8, "big") + part


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of bytes, text or a message as protobuf writes it."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _microseconds(point: Checkpoint) -> int:
    return point.time.seconds * 1_000_000 + point.time.nanos // 1000


def _shown(value: object) -> object:
    return (value.hex() or "none") if isinstance(value, bytes) else value
