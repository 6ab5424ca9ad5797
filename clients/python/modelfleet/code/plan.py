"""What has to change in the ledger so that it says what the files say, and what must not be changed that way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from modelfleet.code.documents import Difference, Side, differences, document_of, kind_of_message, mask_of
from modelfleet.code.fileset import FileSet, upstream_of
from modelfleet.code.kinds import ASSET, KINDS, MODEL, MODEL_TYPE, REGION, parent_of
from modelfleet.code.reading import Entry
from modelfleet.registry.v1 import registry_pb2 as pb

AsOf = Callable[[str, int], Message | None]
"""Gives an entry as of a revision; None where it did not exist. Raises `Unknown` where that is not kept any more."""

_FAILOVER: Final = "failover_shares"


class Unknown(Exception):
    """How an entry was at a revision is not known any more: history was compacted."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """What file and ledger both changed, to different values, since they were in step."""

    entry: Entry
    revision: int
    """At which they were in step."""
    difference: Difference | None
    """None where the entry itself is gone from the ledger."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A field that launches own and in which file and ledger differ."""

    entry: Entry
    difference: Difference

    @property
    def command(self) -> str:
        """What to run so that the ledger says what the file says; empty where a launch has moved the ledger on."""
        if self.difference.side is Side.LEDGER:
            return ""
        asked, name = self.difference.file, self.entry.name
        if self.difference.path == ("baseline",) and asked:
            return f"modelfleet launch create {asked}"
        return f"modelfleet launch create {name if self.entry.kind is MODEL else f'{name}/models/MODEL'}"


@dataclass(frozen=True, slots=True)
class Behind:
    """A field that changed in the ledger since the file was in step with it, and not in the file."""

    entry: Entry
    difference: Difference


@dataclass
class Plan:
    """What would be done, and what stands against it."""

    changes: list[pb.EntryChange] = field(default_factory=list)
    """In an order in which references hold."""
    conflicts: list[Conflict] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    behind: list[Behind] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    """Entries of the ledger that the files lack: deleted with `prune`."""
    edits: dict[str, Sequence[Difference]] = field(default_factory=dict)
    """What changes of each entry that exists."""
    in_step: list[str] = field(default_factory=list)
    """Documents that say what the ledger says once the changes are made, by the name that they are about."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many entries are created, changed and deleted."""
        deleted = sum(change.WhichOneof("entry") == "delete" for change in self.changes)
        names = {name_of(change) for change in self.changes if change.WhichOneof("entry") != "delete"}
        changed = len(names & self.edits.keys())
        return len(names) - changed, changed, deleted


def name_of(change: pb.EntryChange) -> str:
    """Returns the name of the entry that a change is about."""
    which = change.WhichOneof("entry")
    if which is None:
        return ""
    return change.delete if which == "delete" else str(getattr(change, which).name)


def make_plan(
    files: FileSet, ledger: Mapping[str, Message], as_of: AsOf, *, prune: bool = False, adopt: bool = False
) -> Plan:
    """Returns what has to change in the ledger.

    Args:
        files: without problems.
        ledger: the entries that the files are about as they are now, by name, and what belongs to the same types and
            teams.
        as_of: gives entries as they were.
        prune: whether entries that the files lack are deleted: models of the types in the files, and types and assets
            of the teams in the files.
        adopt: whether roles and splits are stated of types that have no baseline: what serves already.
    """
    return _Planner(files, ledger, as_of, prune=prune, adopt=adopt).plan()


class _Planner:
    def __init__(self, files: FileSet, ledger: Mapping[str, Message], as_of: AsOf, *, prune: bool, adopt: bool) -> None:
        self._files = files
        self._ledger = ledger
        self._as_of = as_of
        self._prune = prune
        self._adopt = adopt
        self._found = Plan()
        self._made: dict[str, pb.EntryChange] = {}
        # Documents of which something in the ledger is newer.
        self._stale: set[str] = set()

    def plan(self) -> Plan:
        for entry in self._files.entries.values():
            self._look_at(entry)
        self._look_for_unlisted()
        self._found.changes = list(self._in_order())
        self._found.in_step = [name for name in self._files.blocks if name not in self._stale]
        return self._found

    def _look_at(self, entry: Entry) -> None:
        current = self._ledger.get(entry.name)
        revision = self._files.revision_of(entry)
        if current is None:
            if revision and self._was(entry.name, revision):
                self._found.conflicts.append(Conflict(entry, revision, None))
                self._note_stale(entry.name)
            else:
                self._create(entry)
            return
        base = self._base(entry, current, revision)
        edits: list[Difference] = []
        for difference in differences(entry.kind, base, document_of(current), entry.document):
            if difference.path[0] in entry.kind.launch_owned:
                self._look_at_launch_owned(entry, difference, edits)
            elif difference.side is Side.FILE:
                edits.append(difference)
            else:
                self._note_stale(entry.name)
                if difference.side is Side.BOTH:
                    self._found.conflicts.append(Conflict(entry, revision, difference))
                else:
                    self._found.behind.append(Behind(entry, difference))
        if edits:
            self._update(entry, current, edits)

    def _look_at_launch_owned(self, entry: Entry, difference: Difference, edits: list[Difference]) -> None:
        if difference.file is None and difference.path[0] not in entry.lines:
            return  # A file need not speak of it.
        if self._adopts(entry):
            edits.append(difference)
            return
        self._found.drifts.append(Drift(entry, difference))
        if difference.side is not Side.FILE:
            self._note_stale(entry.name)

    def _adopts(self, entry: Entry) -> bool:
        """Whether an entry's roles and splits may be stated: no launch owns them yet."""
        if not self._adopt:
            return False
        model_type = self._ledger.get(parent_of(entry.name) if entry.kind is MODEL else entry.name)
        return model_type is None or (isinstance(model_type, pb.ModelType) and not model_type.baseline)

    def _base(self, entry: Entry, current: Any, revision: int) -> Mapping[str, Any] | None:
        """Returns what file and ledger had in common; None where the file does not say when that was."""
        if not revision:
            return None
        if current.revision <= revision:
            return document_of(current)
        try:
            was = self._as_of(entry.name, revision)
        except Unknown:
            was = None
        # Nothing in common: whatever both have and differs is a conflict.
        return {} if was is None else document_of(was)

    def _was(self, name: str, revision: int) -> bool:
        try:
            return self._as_of(name, revision) is not None
        except Unknown:
            return True

    def _create(self, entry: Entry) -> None:
        message: Any = type(entry.message)()
        message.CopyFrom(entry.message)
        if not self._adopts(entry):
            for name in entry.kind.launch_owned:
                if name in entry.document and (name, entry.document[name]) != ("role", "CANDIDATE"):
                    difference = Difference((name,), None, None, entry.document[name], Side.FILE)
                    self._found.drifts.append(Drift(entry, difference))
                message.ClearField(name)
        made: Any = {entry.kind.field: message}
        self._made[entry.name] = pb.EntryChange(**made)

    def _update(self, entry: Entry, current: Any, edits: Sequence[Difference]) -> None:
        self._found.edits[entry.name] = edits
        mask = FieldMask(paths=mask_of(entry.kind, edits, entry.document))
        change: Any = {entry.kind.field: entry.message}
        self._made[entry.name] = pb.EntryChange(etag=current.etag, update_mask=mask, **change)

    def _note_stale(self, name: str) -> None:
        block = self._files.block_of(name)
        if block is not None:
            self._stale.add(block.entry.name)

    # Deletions.

    def _look_for_unlisted(self) -> None:
        teams = {name for name in self._files.entries if name.startswith("teams/")}
        for name, current in self._ledger.items():
            if name in self._files.entries:
                continue
            kind = kind_of_message(current)
            if kind is MODEL:
                block = self._files.blocks.get(parent_of(name))
                if block is None:
                    # With its type, which is looked at as well.
                    unlisted = getattr(self._ledger.get(parent_of(name)), "team", "") in teams
                elif block.revision and not self._knew(name, current, block.revision):
                    self._stale.add(block.entry.name)
                    unlisted = False
                else:
                    unlisted = True
            else:
                unlisted = kind in (MODEL_TYPE, ASSET) and getattr(current, "team", "") in teams
            if unlisted:
                self._found.unlisted.append(name)
                if self._prune:
                    self._made[name] = pb.EntryChange(delete=name, etag=getattr(current, "etag", ""))
                elif (block := self._files.block_of(name)) is not None:
                    self._stale.add(block.entry.name)

    def _knew(self, name: str, current: Any, revision: int) -> bool:
        """Whether an entry existed when the file was in step: else nobody took it out of the file."""
        return current.revision <= revision or self._was(name, revision)

    # The order.

    def _in_order(self) -> Iterator[pb.EntryChange]:
        deletions = {name for name, change in self._made.items() if change.WhichOneof("entry") == "delete"}
        by_kind: dict[str, list[str]] = {kind.field: [] for kind in KINDS}
        for name in self._made:
            entry = self._files.entries.get(name)
            kind = entry.kind if entry is not None else kind_of_message(self._ledger[name])
            by_kind[kind.field].append(name)
        written = {key: [name for name in names if name not in deletions] for key, names in by_kind.items()}
        gone = {key: sorted(deletions.intersection(names)) for key, names in by_kind.items()}
        # First: an asset's URI may be needed by another one.
        yield from self._all(gone[ASSET.field])
        yield from self._all(written["team"])
        yield from self._regions(written[REGION.field])
        upstream = {name: upstream_of(self._files.entries[name]) for name in written[MODEL_TYPE.field]}
        yield from self._all(consumed_first(upstream))
        yield from self._all(written[MODEL.field])
        yield from self._all(written[ASSET.field])
        yield from self._all(gone[MODEL.field])
        consumers = {name: list(getattr(self._ledger[name], "upstream_types", ())) for name in gone[MODEL_TYPE.field]}
        yield from self._all(reversed(consumed_first(consumers)))

    def _all(self, names: Iterable[str]) -> Iterator[pb.EntryChange]:
        return (self._made[name] for name in names)

    def _regions(self, names: Sequence[str]) -> Iterator[pb.EntryChange]:
        """Yields changes of regions; new ones that fail over to each other first without, and then with that."""
        new = [name for name in names if name not in self._ledger]
        there = set(self._ledger)
        completed = []
        for name in new:
            change = self._made[name]
            if any(share.region not in there for share in change.region.failover_shares):
                completed.append(pb.EntryChange(region=change.region, update_mask=FieldMask(paths=[_FAILOVER])))
                change.region.ClearField(_FAILOVER)
            there.add(name)
            yield change
        yield from self._all(name for name in names if name in self._ledger)
        yield from completed


def consumed_first(upstream: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns types so that each stands behind the ones that it consumes. They make no circle."""
    order: dict[str, None] = {}
    for start in upstream:
        waiting = [start]
        while waiting:
            name = waiting[-1]
            missing = [
                each for each in upstream[name] if each in upstream and each not in order and each not in waiting
            ]
            if missing and name not in order:
                waiting.extend(missing[:1])
            else:
                order.setdefault(name, None)
                waiting.pop()
    return list(order)
