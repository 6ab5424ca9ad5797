"""Revisions: edits become changes with their diff and stamp, and each revision is chained to the one before it."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias, TypeVar

from modelfleetd.errors import invalid
from modelfleetd.registry.domain.documents import FieldChange, diff
from modelfleetd.registry.domain.resources import AnyResource, ModelType

R = TypeVar("R", bound=AnyResource)

MAX_REASON: Final = 1000
# Callers take messages of 4 MiB at least, and a revision is more than its changes.
MAX_REVISION_BYTES: Final = 7 << 19


class Action(enum.Enum):
    """What was done to a resource."""

    CREATED = "CREATED"
    UPDATED = "UPDATED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class Edit:
    """One resource before and after; None where it does not exist. At most one of the two is None."""

    before: AnyResource | None
    after: AnyResource | None

    @property
    def name(self) -> str:
        """The name of the resource."""
        resource = self.after or self.before
        if resource is None:
            raise ValueError("an edit of nothing")
        return resource.name


Edits: TypeAlias = tuple[Edit, ...]
"""What one call changes. The resource that the call is about comes first; empty where everything is so already."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes the ledger, for whom, and why."""

    actor: str
    actor_asserted: bool = False
    on_behalf_of: str = ""
    reason: str = ""
    launch: str = ""

    def __post_init__(self) -> None:
        if len(self.reason) > MAX_REASON:
            raise invalid("reason", f"must have at most {MAX_REASON} characters")


@dataclass(frozen=True, slots=True)
class Stamp:
    """The number and time of a revision."""

    revision: int
    time: datetime


@dataclass(frozen=True, slots=True)
class ResourceChange:
    """The change of one resource in one revision."""

    resource: str
    action: Action
    fields: tuple[FieldChange, ...]
    after: AnyResource | None
    previous_revision: int
    """Revision of the resource before; 0 for one that is new."""


def revise(edits: Sequence[Edit], stamp: Stamp | None) -> tuple[ResourceChange, ...]:
    """Returns the changes of a revision: what differs, and the resources as they are from then on.

    Without a stamp the revision is only thought of, and what it would give to the resources is as it was.
    """
    return tuple(_change(edit, stamp) for edit in edits)


def check_size(sizes: Iterable[int]) -> None:
    """Expects that the stored changes of one revision, of so many bytes each, fit into one message to watchers.

    Raises:
        InvalidFields: they do not. Only a call that writes many entries comes that far, so it names that one's field.
    """
    total = sum(sizes)
    if total > MAX_REVISION_BYTES:
        most, size = (f"{count / (1 << 20):.1f} MiB" for count in (MAX_REVISION_BYTES, total))
        what = "must make a revision that reaches every watcher in one message"
        raise invalid("changes", f"{what}, of at most {most}; they make one of {size}: send them in parts")


def _change(edit: Edit, stamp: Stamp | None) -> ResourceChange:
    before, after = edit.before, edit.after
    return ResourceChange(
        resource=edit.name,
        action=_action(edit),
        fields=diff(before, after),
        after=after if after is None or stamp is None else _stamped(before, after, stamp),
        previous_revision=0 if before is None else before.revision,
    )


def changed(before: AnyResource | None, after: AnyResource | None) -> ResourceChange | None:
    """Returns the change that leads from one stored state of a resource to another, whatever was between them.

    None where nothing differs, however often it changed.
    """
    if before is None and after is None:
        return None
    edit, fields = Edit(before, after), diff(before, after)
    if not fields and before is not None and after is not None:
        return None
    return ResourceChange(edit.name, _action(edit), fields, after, 0 if before is None else before.revision)


def _action(edit: Edit) -> Action:
    return Action.CREATED if edit.before is None else Action.DELETED if edit.after is None else Action.UPDATED


def _stamped(before: AnyResource | None, after: R, stamp: Stamp) -> R:
    # Revisions are never used twice, so the number alone tells any two states of a resource apart.
    stamped = replace(
        after,
        revision=stamp.revision,
        etag=f"r{stamp.revision}",
        update_time=stamp.time,
        create_time=stamp.time if before is None else before.create_time,
    )
    if isinstance(stamped, ModelType) and (before is None or _serving(before) != _serving(stamped)):
        return replace(stamped, serving_revision=stamp.revision)
    return stamped


def _serving(resource: AnyResource) -> object:
    return isinstance(resource, ModelType) and (resource.baseline, resource.holdouts, resource.splits)


@dataclass(frozen=True, slots=True)
class StoredChange:
    """One change as it is stored, and the state that it leaves: no kind and no state after a deletion."""

    resource: str
    revision: int
    change: bytes
    previous_revision: int
    """Of the resource before; 0 for one that is new."""
    kind: str
    state: bytes | None


def state_left(changes: Iterable[StoredChange]) -> list[StoredChange]:
    """Returns what changes of several revisions, in order, leave behind: one a resource, the newest state on what was
    before them all. What came and went is left out.
    """
    left: dict[str, StoredChange] = {}
    for change in changes:
        first = left.get(change.resource, change).previous_revision
        left[change.resource] = replace(change, previous_revision=first)
    return [change for change in left.values() if change.state is not None or change.previous_revision]


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """One revision as it is stored: header and changes are hashed byte for byte as they are here."""

    number: int
    header: bytes
    changes: Sequence[bytes]
    previous_hash: bytes
    hash: bytes

    @classmethod
    def following(cls, previous_hash: bytes, number: int, header: bytes, changes: Sequence[bytes]) -> StoredRevision:
        """Returns the revision that follows one with that hash."""
        return cls(number, header, changes, previous_hash, chain(previous_hash, header, changes))


def chain(previous_hash: bytes, header: bytes, changes: Sequence[bytes]) -> bytes:
    """Returns the hash of a revision: SHA-256 over the hash before it, its header and its changes.

    Each part is preceded by its length, so that no byte can move from one part to another unseen. The parts are hashed
    as they are stored: nothing has to be brought into a canonical form again to verify them.
    """
    digest = hashlib.sha256()
    for part in (previous_hash, header, *changes):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
