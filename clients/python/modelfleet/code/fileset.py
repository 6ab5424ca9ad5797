"""A set of files as one: every entry once, what refers to what, and what is wrong between them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelfleet.code.kinds import MODEL_TYPE, kind_of, references_of
from modelfleet.code.reading import Block, Entry, Problem, read_file

_SUFFIXES: Final = (".yaml", ".yml")
MAX_FILES: Final = 100_000
# Looking for similar names costs their number, for each name that is not there.
_MOST_COMPARED: Final = 2000


@dataclass
class FileSet:
    """What the files say, and what is wrong with them."""

    blocks: dict[str, Block] = field(default_factory=dict)
    """Documents by the name of what they are about."""
    entries: dict[str, Entry] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    """Paths of the files by what they are called in problems."""
    problems: list[Problem] = field(default_factory=list)

    def block_of(self, name: str) -> Block | None:
        """Returns the document that an entry stands in, or would stand in; None where there is none."""
        return self.blocks.get("/".join(name.split("/")[:2]))

    def revision_of(self, entry: Entry) -> int:
        """Returns the revision that an entry's file was in step with; 0 where it does not say."""
        block = self.block_of(entry.name)
        return 0 if block is None else block.revision


def find_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yields files, and the YAML files below folders, each once and in the order of their names; not hidden ones.

    Raises:
        OSError: a path does not exist.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            below = (each for suffix in _SUFFIXES for each in path.rglob(f"*{suffix}"))
            found = [each for each in sorted(below) if not _is_hidden(each.relative_to(path))]
        else:
            path.stat()
            found = [path]
        for each in found:
            if each not in seen:
                seen.add(each)
                yield each


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_files(paths: Sequence[Path]) -> FileSet:
    """Reads files and folders. Raises OSError where one cannot be read."""
    found = FileSet()
    for count, path in enumerate(find_files(paths)):
        if count == MAX_FILES:
            found.problems.append(Problem(str(path), 0, f"is one of more than {MAX_FILES:,} files"))
            break
        shown = str(path)
        found.paths[shown] = path
        blocks, problems = read_file(path, shown)
        found.problems += problems
        for block in blocks:
            _add(found, block)
    _check_references(found)
    return found


def _add(found: FileSet, block: Block) -> None:
    for entry in block.entries:
        other = found.entries.get(entry.name)
        if other is not None:
            where = f"{other.file}:{other.line()}"
            found.problems.append(Problem(entry.file, entry.line(), f"{entry.name} stands in {where} already"))
        else:
            found.entries[entry.name] = entry
    found.blocks.setdefault(block.entry.name, block)


def _check_references(found: FileSet) -> None:
    """Notes names that cannot be names, and circles: what does not exist at all only the registry knows."""
    for entry in found.entries.values():
        for path, kind, name in references_of(entry.message):
            wanted = _COLLECTIONS.get(kind)
            if wanted is not None and ((known := kind_of(name)) is None or known.field != wanted[0]):
                found.problems.append(Problem(entry.file, _line(entry, path), f"{path}: '{name}' must be {wanted[1]}"))
    circle = _circle({name: entry for name, entry in found.entries.items() if entry.kind is MODEL_TYPE})
    if circle:
        entry = found.entries[circle[0]]
        text = f"upstream_types make a circle: {' -> '.join(circle)}"
        found.problems.append(Problem(entry.file, entry.line(("upstream_types",)), text))


_COLLECTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "modelfleet.dev/Team": ("team", "teams/ID"),
    "modelfleet.dev/Region": ("region", "regions/ID"),
    "modelfleet.dev/ModelType": ("model_type", "modelTypes/ID"),
    "modelfleet.dev/Model": ("model", "modelTypes/ID/models/ID"),
}


def _line(entry: Entry, path: str) -> int:
    return entry.line((path.partition(".")[0].partition("[")[0],))


def unknown_references(found: FileSet) -> Iterator[Problem]:
    """Yields references to names that the files lack although they have one that is nearly the same."""
    names = list(found.entries)
    if len(names) > _MOST_COMPARED:
        return
    for entry in found.entries.values():
        for path, _, name in references_of(entry.message):
            if kind_of(name) is not None and name not in found.entries:
                close = difflib.get_close_matches(name, names, n=1, cutoff=0.9)
                if close:
                    text = f"{path}: {name} is not in these files; is {close[0]} meant?"
                    yield Problem(entry.file, _line(entry, path), text)


def upstream_of(entry: Entry) -> Sequence[str]:
    """Returns the types whose output a type consumes, as its file says."""
    return [str(name) for name in entry.document.get("upstream_types", ())]


def _circle(types: Mapping[str, Entry]) -> list[str] | None:
    """Returns a path from a type back to itself, or None."""
    done: set[str] = set()
    for start in types:
        path: list[str] = []
        waiting = [(start, iter(upstream_of(types[start])))] if start not in done else []
        path = [start] if waiting else []
        while waiting:
            name, following = waiting[-1]
            upstream = next(following, None)
            if upstream is None:
                done.add(name)
                waiting.pop()
                path.pop()
            elif upstream in path:
                return [*path[path.index(upstream) :], upstream]
            elif upstream in types and upstream not in done:
                waiting.append((upstream, iter(upstream_of(types[upstream]))))
                path.append(upstream)
    return None
