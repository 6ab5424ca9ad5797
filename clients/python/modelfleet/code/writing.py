"""Writes files of the fleet: in one order, and what a person has written around what stays is kept."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import yaml

from modelfleet.code.documents import Document, launch_owned, own
from modelfleet.code.kinds import MODEL, Kind, short
from modelfleet.code.reading import Block

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_OWNED: Final = "# Owned by launches: shown here, never applied."


def file_text(kind: Kind, name: str, document: Document, models: Mapping[str, Document], revision: int) -> str:
    """Returns the text of a new file.

    Args:
        kind: of the entry.
        name: of the entry.
        document: of the entry.
        models: documents of its models by name, of a model type.
        revision: of the ledger that it is in step with.
    """
    parts = [f"name: {name}\nrevision: {revision}\n"]
    parts += [_dump({key: value}) for key, value in own(kind, document).items()]
    served = launch_owned(kind, document)
    parts += [f"{_OWNED}\n"] if served else []
    parts += [_dump({key: value}) for key, value in served.items()]
    if models:
        parts.append(_models(models))
    return "".join(parts)


def updated_text(text: str, block: Block, document: Document, models: Mapping[str, Document], revision: int) -> str:
    """Returns the text of a file after its entry has changed: fields that stay keep their lines, comments and all.

    Args:
        text: of the file.
        block: as it was read from the text.
        document: of the entry from now on.
        models: documents of its models by name.
        revision: of the ledger that it is in step with from now on.
    """
    kind, lines = block.entry.kind, text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if block.node.flow_style:
        made = file_text(kind, block.entry.name, document, models, revision)
        return "".join([*lines[: block.node.start_mark.line], made, *lines[block.node.end_mark.line + 1 :]])
    served = launch_owned(kind, document)
    fresh = {"revision": revision, **own(kind, document), **served, **({"models": models} if models else {})}
    known: dict[str, Any] = {"revision": block.revision, **block.entry.document}
    known["models"] = {entry.name: entry.document for entry in block.entries[1:]} or None
    # Above the first of the fields of launches, where there was none.
    heading = next(iter(served), "") if served and not launch_owned(kind, block.entry.document) else ""

    def written(key: str, value: Any, body: Sequence[str]) -> str:
        if key == "revision" and body:
            return _revision_line(body[0], value)
        if key == "models":
            return _updated_models(lines, block, value) if body else _models(value)
        return (f"{_OWNED}\n" if key == heading and not body else "") + _dump({key: value})

    start, end = block.node.value[0][0].start_mark.line, _end(block.node, lines)
    return "".join([*lines[:start], _updated_mapping(lines, block.node, end, known, fresh, written), *lines[end:]])


def _updated_mapping(
    lines: Sequence[str],
    node: Any,
    end: int,
    known: Mapping[str, Any],
    fresh: Mapping[str, Any],
    written: Callable[[str, Any, Sequence[str]], str],
) -> str:
    """Returns the text of a mapping: fields that stay keep their lines, comments and all.

    Args:
        lines: of the file.
        node: of the mapping.
        end: line after its last.
        known: its fields as they were read; keys that neither this nor `fresh` has stay.
        fresh: its fields from now on, in their order.
        written: the text of a field, given its key, its value, and its lines so far (none where it is new).
    """
    column = node.start_mark.column
    starts = [(key.value, key.start_mark.line) for key, _ in node.value]
    ends = [start for _, start in starts[1:]] + [end]
    pieces: dict[str, str] = {}
    for (key, start), stop in zip(starts, ends, strict=True):
        body, after = _split_trailing(lines[start:stop])
        if fresh.get(key) == known.get(key):
            pieces[key] = "".join(body)
        elif key in fresh:
            # What stands before the first key of a list's item is its dash.
            pieces[key] = lines[start][:column] + _indented(written(key, fresh[key], body), column)[column:]
        # What stands above the next field belongs to that one.
        pieces[f"\0{key}"] = "".join(after)
    for key, value in fresh.items():
        if key not in pieces:
            _insert(pieces, key, _indented(written(key, value, ()), column), [*fresh])
    return "".join(pieces.values())


def _indented(text: str, column: int) -> str:
    return textwrap.indent(text, " " * column) if column else text


def with_revision(text: str, block: Block, revision: int) -> str:
    """Returns the text of a file with another `revision:`, and not a byte changed beside it."""
    lines = text.splitlines(keepends=True)
    if block.revision_line:
        at = block.revision_line - 1
        lines[at] = _revision_line(lines[at], revision)
    else:
        indent = " " * block.node.start_mark.column
        if not lines[block.name_line - 1].endswith("\n"):
            lines[block.name_line - 1] += "\n"
        lines.insert(block.name_line, f"{indent}revision: {revision}\n")
    return "".join(lines)


def _revision_line(line: str, revision: int) -> str:
    before, _, after = line.partition("revision:")
    value = after.strip().split("#")[0].strip()
    return f"{before}revision:{after.replace(value, str(revision), 1)}" if value else f"{before}revision: {revision}\n"


def _dump(data: Any) -> str:
    text: str = yaml.dump(
        data, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110
    )
    return text


def _models(models: Mapping[str, Document]) -> str:
    return "models:\n" + "".join(_model(name, models[name]) for name in models)


def _model(name: str, document: Document) -> str:
    text = _dump({"id": short(name)}) + "".join(_model_field(key, value, ()) for key, value in _of_model(document))
    return "- " + _indented(text, 2)[2:]


def _of_model(document: Document) -> Sequence[tuple[str, Any]]:
    return [*own(MODEL, document).items(), *launch_owned(MODEL, document).items()]


def _model_field(key: str, value: Any, _body: Sequence[str]) -> str:
    return _dump({key: value}).rstrip("\n") + ("  # owned by launches\n" if key in MODEL.launch_owned else "\n")


def _updated_models(lines: Sequence[str], block: Block, models: Mapping[str, Document]) -> str:
    """Returns the list of models: those that stay as they are written, and of the others the fields that changed."""
    key, node = next((key, node) for key, node in block.node.value if key.value == "models")
    if not node.value or node.flow_style or any(item.flow_style for item in node.value):
        return _models(models)
    starts = [_dash(item, lines) for item in node.value]
    later = [each.start_mark.line for each, _ in block.node.value if each.start_mark.line > key.start_mark.line]
    ends = [*starts[1:], min(later, default=_end(block.node, lines))]
    pieces = ["".join(lines[key.start_mark.line : starts[0]])]
    for entry, item, start, stop in zip(block.entries[1:], node.value, starts, ends, strict=True):
        body, after = _split_trailing(lines[start:stop])
        document = models.get(entry.name)
        if document is not None and item.value[0][0].value not in ("id", "name"):
            # Its dash would go with its first field.
            pieces.append(_indented(_model(entry.name, document), node.start_mark.column))
        elif document is not None:
            dash = "".join(lines[start : item.start_mark.line])
            fresh, end = dict(_of_model(document)), start + len(body)
            pieces.append(dash + _updated_mapping(lines, item, end, entry.document, fresh, _model_field))
        # What follows the last one belongs to the next field.
        pieces.append("" if stop == ends[-1] else "".join(after))
    known = {entry.name for entry in block.entries}
    column = node.start_mark.column
    pieces += [_indented(_model(name, models[name]), column) for name in models if name not in known]
    return "".join(pieces)


def _dash(item: Any, lines: Sequence[str]) -> int:
    """Returns the line of an item's dash, which may stand above it."""
    line: int = item.start_mark.line
    return line - 1 if line and lines[line - 1].strip() == "-" else line


def _split_trailing(lines: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Splits what stands between two keys: the first one's lines, and blank lines and comments above the second."""
    count = len(lines)
    while count > 1 and (not lines[count - 1].strip() or lines[count - 1].lstrip().startswith("#")):
        count -= 1
    return lines[:count], lines[count:]


def _end(node: Any, lines: Sequence[str]) -> int:
    """Returns the line after a block's last."""
    line: int = node.end_mark.line + (1 if node.end_mark.column else 0)
    return min(line, len(lines))


def _insert(pieces: dict[str, str], key: str, piece: str, order: Sequence[str]) -> None:
    """Puts a new field after the ones that stand before it in the order, and never before the first, with its dash."""
    before = set(order[: order.index(key)])
    items = list(pieces.items())
    at = max((index + 1 for index, (known, _) in enumerate(items) if known in before), default=1)
    pieces.clear()
    pieces.update([*items[:at], (key, piece), *items[at:]])
