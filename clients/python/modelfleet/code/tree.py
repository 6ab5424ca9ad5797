"""A folder of files that is kept as the ledger is: where each entry stands, and what changes with a revision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import Message

from modelfleet.code.documents import Document, Side, differences, document_of
from modelfleet.code.fileset import find_files
from modelfleet.code.kinds import FILED, MODEL, kind_of, parent_of, short
from modelfleet.code.plan import AsOf, Unknown
from modelfleet.code.reading import Block, read_text
from modelfleet.code.writing import file_text, updated_text, with_revision
from modelfleet.registry.v1 import registry_pb2 as pb

_NAME: Final = re.compile(r"^name:[ \t]*['\"]?([A-Za-z]+/[a-z0-9_-]+)['\"]?[ \t]*(?:#.*)?$", re.MULTILINE)


class DamagedFile(Exception):
    """A file of the tree cannot be read as entries."""


def text_of(path: Path) -> str:
    """Returns the text of a file, its line ends as they are."""
    return path.read_bytes().decode("utf-8")


def replace_text(path: Path, text: str) -> bool:
    """Writes a file in one go: whatever dies meanwhile, it is the old one or the new one. Says whether it differs."""
    data = text.encode()
    if path.exists() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.new")
    made.write_bytes(data)
    if path.exists():
        made.chmod(path.stat().st_mode & 0o777)
    made.replace(path)
    return True


@dataclass
class State:
    """One entry that has a file, and its models, as they are at a revision."""

    document: Document
    revision: int
    """Of the newest change of any of them."""
    models: dict[str, Document] = field(default_factory=dict)


class Tree:
    """A folder of files, in whatever layout: an entry stays in the file in which it stands; new ones get their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, Path] = {}
        for path in find_files([root]) if root.is_dir() else ():
            for found in _NAME.finditer(text_of(path)):
                self._paths.setdefault(found[1], path)

    @property
    def names(self) -> Sequence[str]:
        """The names of the entries that have a file."""
        return list(self._paths)

    def path_of(self, name: str) -> Path:
        """Returns where an entry stands, or would stand."""
        kind = kind_of(name)
        folder = next(each.folder for each in FILED if each is kind)
        return self._paths.get(name, self.root / folder / f"{short(name)}.yaml")

    def block(self, name: str) -> Block | None:
        """Returns the document of an entry; None where it has none. Raises DamagedFile."""
        path = self._paths.get(name)
        return None if path is None else self._read(path, name)[1]

    def _read(self, path: Path, name: str) -> tuple[str, Block | None]:
        text = text_of(path)
        blocks, problems = read_text(text, str(path))
        if problems:
            raise DamagedFile(str(problems[0]))
        return text, next((block for block in blocks if block.entry.name == name), None)

    @staticmethod
    def says(block: Block, state: State) -> bool:
        """Says whether a document holds a state; which revision it names does not matter."""
        models = {entry.name: entry.document for entry in block.entries[1:]}
        return block.entry.document == state.document and models == state.models

    def write(self, name: str, state: State, *, always: bool = False) -> Path | None:
        """Writes an entry as it is; returns the path of the file where that changes it.

        Args:
            name: of the entry.
            state: of the entry and its models.
            always: whether the revision is written also where nothing else differs.
        """
        path, kind = self.path_of(name), kind_of(name)
        assert kind is not None
        text, block = self._read(path, name) if name in self._paths else ("", None)
        if block is None:
            made = file_text(kind, name, state.document, state.models, state.revision)
            text = f"{text}---\n{made}" if text else made
        elif self.says(block, state):
            text = with_revision(text, block, state.revision) if always else text
        else:
            text = updated_text(text, block, state.document, state.models, state.revision)
        self._paths[name] = path
        return path if replace_text(path, text) else None

    def remove(self, name: str) -> Path | None:
        """Removes an entry that is gone; returns the path of its file, None where it had none."""
        path = self._paths.pop(name, None)
        if path is None:
            return None
        text, block = self._read(path, name)
        if path in self._paths.values() and block is not None:
            lines = text.splitlines(keepends=True)
            end = block.node.end_mark.line + (1 if block.node.end_mark.column else 0)
            replace_text(path, "".join([*lines[: block.node.start_mark.line], *lines[end:]]))
        else:
            path.unlink(missing_ok=True)
        return path

    def take(self, revision: pb.Revision) -> list[Path]:
        """Goes on to a revision; returns the paths of the files that changed."""
        touched: dict[str, list[pb.ResourceChange]] = {}
        for change in revision.changes:
            kind = kind_of(change.resource)
            if kind is not None:
                name = parent_of(change.resource) if kind is MODEL else change.resource
                touched.setdefault(name, []).append(change)
        paths = (self._take(name, changes, revision.number) for name, changes in touched.items())
        return [path for path in paths if path is not None]

    def _take(self, name: str, changes: Iterable[pb.ResourceChange], revision: int) -> Path | None:
        block = self.block(name)
        document: Document | None = None if block is None else block.entry.document
        models = {} if block is None else {entry.name: entry.document for entry in block.entries[1:]}
        for change in changes:
            which = change.WhichOneof("after")
            after = None if which is None else document_of(getattr(change, which))
            if change.resource == name:
                document = after
            elif after is None:
                models.pop(change.resource, None)
            else:
                models[change.resource] = after
        if document is None:
            return self.remove(name)
        return self.write(name, State(document, revision, models), always=True)


def states_of(entries: Iterable[Message], keep: Callable[[Any], bool] = lambda _: True) -> dict[str, State]:
    """Returns what files hold, by the name of what each is about: entries, with the models of a type in its own.

    Args:
        entries: in any order in which types stand before their models.
        keep: whether an entry that is not a model gets a file.
    """
    states: dict[str, State] = {}
    for entry in entries:
        message: Any = entry
        if kind_of(message.name) is not MODEL:
            if keep(message):
                states[message.name] = State(document_of(message), message.revision)
        elif (state := states.get(parent_of(message.name))) is not None:
            state.models[message.name] = document_of(message)
            state.revision = max(state.revision, message.revision)
    return states


def edited(block: Block, state: State | None, revisions: Mapping[str, int], as_of: AsOf) -> bool:
    """Says whether a file has changes of its own, which nobody has applied: writing over it would lose them.

    Args:
        block: as the file has it.
        state: as the ledger has it; None where it has no such entry.
        revisions: of the ledger's entries, by name.
        as_of: gives entries as they were.
    """
    listed = {entry.name: entry for entry in block.entries}
    now = {} if state is None else {block.entry.name: state.document, **state.models}

    def was(name: str) -> Document | None:
        if name in now and revisions.get(name, 0) <= block.revision:
            return now[name]
        found = as_of(name, block.revision) if block.revision else None
        return None if found is None else document_of(found)

    try:
        for name, entry in listed.items():
            base = was(name) if block.revision else None
            if name not in now:
                if base != entry.document:
                    return True  # new, or changed after it was deleted in the ledger
            elif any(each.side is not Side.LEDGER for each in differences(entry.kind, base, now[name], entry.document)):
                return True
        return any(was(name) is not None for name in now.keys() - listed.keys())
    except Unknown:
        return True
