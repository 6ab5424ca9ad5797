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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.history_pb2 import (
    Checkpoint,
    KeptChange,
    ReadHistoryResponse,
    StoredEntry,
    StoredRevisions,
)

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
        except DecodeError:
            raise Damage(0, f"content after revision {verifier.number}", "serialised messages", "other bytes") from None
        if progress is not None:
            progress(verifier.number - verifier.base.revision, verifier.head.revision - verifier.base.revision)
    if verifier is None:
        raise Damage(0, "the stream", "a message with base and head", "nothing")
    return verifier.end()


def chain(previous_hash: bytes, content: bytes) -> bytes:
    """Returns the hash of a revision: SHA-256 over the hash before it, preceded by its length, and its content.

    Args:
        previous_hash: of the revision before; empty for the first.
        content: header and changes, each preceded by its length in 8 bytes, the most significant one first.
    """
    return hashlib.sha256(len(previous_hash).to_bytes(8, "big") + previous_hash + content).digest()


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
        # By name: revision of the newest change, and where it is: content, begin, end.
        self._newest: dict[str, tuple[int, bytes, int, int]] = {}
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
                self._kept.update(len(part).to_bytes(8, "big"))
                self._kept.update(part)
            self._take_change(each.revision, each.resource, each.change, 0, len(each.change))

    def _take_revisions(self, batch: StoredRevisions) -> None:
        """Verifies revisions: first the chain, column by column, then that what is indexed is what was hashed."""
        self._close_kept()
        numbers, contents, stored = list(batch.numbers), list(batch.contents), list(batch.hashes)
        first = self.number + 1
        hashes, before = [], self._hash
        for content in contents:
            before = chain(before, content)
            hashes.append(before)
        self._compare("number", first, range(first, first + len(numbers)), numbers)
        self._compare("hash", first, hashes, stored)
        self._compare("previous_hash", first, [self._hash, *hashes[:-1]] if hashes else [], list(batch.previous_hashes))
        if self._checkpoint is not None and first <= self._checkpoint.revision < first + len(hashes):
            self._compare_with_checkpoint(hashes[self._checkpoint.revision - first])
        self._take_contents(numbers, list(batch.times_us), contents, list(batch.resources))
        if hashes:
            self.number, self._hash, self._time_us = numbers[-1], hashes[-1], batch.times_us[-1]

    def _compare(self, what: str, first: int, expected: Sequence[object], found: Sequence[object]) -> None:
        if found == expected or list(expected) == found:
            return
        for offset, (one, other) in enumerate(zip(expected, found, strict=False)):
            if one != other:
                raise Damage(first + offset, what, _shown(one), _shown(other))
        raise Damage(first, what, f"{len(expected)} of them", len(found))

    def _take_contents(
        self, numbers: Sequence[int], times_us: Sequence[int], contents: Sequence[bytes], resources: Sequence[str]
    ) -> None:
        names = iter(resources)
        parse, take = pb.Revision.FromString, self._take_change
        for number, time_us, content in zip(numbers, times_us, contents, strict=True):
            at = 8 + int.from_bytes(content[:8], "big")
            header = parse(content[8:at])
            if header.number != number or header.name != f"revisions/{number}":
                raise Damage(number, "the number that it is stored under", header.name or "one that it states", number)
            time = header.time
            if time.seconds * 1_000_000 + time.nanos // 1000 != time_us:
                raise Damage(number, "the time that it is indexed under", time.ToJsonString(), f"{time_us} us")
            end = len(content)
            while at < end:
                begin = at + 8
                at = begin + int.from_bytes(content[at:begin], "big")
                name = next(names, None)
                if name is None:
                    raise Damage(number, "names that its changes are indexed under", "one each", "fewer")
                take(number, name, content, begin, at)
        for name in names:
            raise Damage(
                0, f"change of {name}", f"in a revision up to {self.head.revision}", "in one that is not there"
            )

    def _take_change(self, number: int, name: str, content: bytes, begin: int, end: int) -> None:
        known = self._begins.get(name)
        if known is None:
            known = self._begins[name] = _field(1, name.encode())
        if not content.startswith(known, begin):
            says = pb.ResourceChange.FromString(content[begin:end]).resource
            if says != name:
                raise Damage(number, "name that a change is indexed under", says, name)
        self._newest[name] = (number, content, begin, end)
        self._changes += 1

    def _take_entries(self, entries: Sequence[StoredEntry]) -> None:
        for entry in entries:
            number, content, begin, end = self._newest.pop(entry.name, (0, b"", 0, 0))
            if not number:
                raise Damage(entry.revision, f"state of {entry.name}", "none: no revision leaves one", "one")
            if entry.revision != number:
                raise Damage(number, f"revision of the state of {entry.name}", number, entry.revision)
            kind = pb.ResourceChange.DESCRIPTOR.fields_by_name.get(entry.kind)
            if kind is None or not content.endswith(_field(kind.number, entry.state), begin, end):
                self._compare_state(entry, pb.ResourceChange.FromString(content[begin:end]))
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
        for name, (number, content, begin, end) in self._newest.items():
            is_deletion = content.startswith(self._begins[name] + _DELETED, begin)
            if not is_deletion and pb.ResourceChange.FromString(content[begin:end]).WhichOneof("after") is not None:
                raise Damage(number, f"state of {name}", "what the revision left", "none")
        return Verified(self.base, self.head, self.number - self.base.revision, self._changes, self._entries)

    def _close_kept(self) -> None:
        if self._kept_is_open:
            self._kept_is_open = False
            if self._kept.hexdigest() != self.base.kept_hash:
                what = "hash of what is kept of before the base"
                raise Damage(0, what, self.base.kept_hash, self._kept.hexdigest())


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
