"""Reads files of the fleet: YAML becomes entries, and whatever is wrong is told with its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from modelfleet.code.documents import Document, document_of
from modelfleet.code.kinds import (
    FILED,
    ID,
    MODEL,
    MODEL_TYPE,
    Descriptor,
    Kind,
    is_map,
    is_plain_message,
    kind_of,
    short,
    stamps_of,
)

# Ten times what one set may hold.
MAX_FILE_BYTES: Final = 32 << 20
# A value takes a character at least; so many for each that aliases may repeat.
_VALUES_PER_CHARACTER: Final = 4
_MAX_DEPTH: Final = 100
# Indented that far, or that many lists opened on one line.
_DEEP_LINE: Final = re.compile(rf"^(?:[ \t]{{{_MAX_DEPTH}}}|[ \t]*(?:[-?:][ \t]+){{{_MAX_DEPTH // 2}}})", re.MULTILINE)
_BRACKET: Final = re.compile(r"[\[\]{}]")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL: Final = "tag:yaml.org,2002:null"
_WORDS: Final = {"TYPE_STRING": "a text", "TYPE_BOOL": "true or false", "TYPE_DOUBLE": "a number"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a file."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as a file has it.

    Attributes:
        kind: of the entry.
        name: of the entry.
        message: what the file says, launch-owned fields included.
        document: the same as plain data, with defaults written out.
        file: where it stands.
        lines: line of each field that is stated, by its top-level name; of "" the entry itself.
    """

    kind: Kind
    name: str
    message: Message
    document: Document
    file: str
    lines: Mapping[str, int]

    def line(self, path: Sequence[str] = ()) -> int:
        """Returns the line of a field, or of the entry where the file leaves the field out."""
        return self.lines.get(path[0], self.lines[""]) if path else self.lines[""]


@dataclass(frozen=True, slots=True)
class Block:
    """One entry with what stands below it: a document of a file."""

    file: str
    entries: Sequence[Entry]
    revision: int
    """The revision of the ledger that it was in step with; 0 where it does not say."""
    revision_line: int
    """Line of `revision:`; 0 where there is none."""
    name_line: int
    node: Any = field(repr=False)
    """The YAML node, for whoever edits the text."""

    @property
    def entry(self) -> Entry:
        """The entry that the document is about."""
        return self.entries[0]


def read_file(path: Path, shown: str = "") -> tuple[list[Block], list[Problem]]:
    """Reads a file. Raises OSError where it cannot be read."""
    file = shown or str(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        return [], [Problem(file, 0, f"is larger than {MAX_FILE_BYTES >> 20} MiB")]
    try:
        return read_text(path.read_text(encoding="utf-8"), file)
    except UnicodeDecodeError as error:
        return [], [Problem(file, 0, f"is not UTF-8 text: {error.reason} at byte {error.start}")]


def read_text(text: str, file: str) -> tuple[list[Block], list[Problem]]:
    """Reads the documents in a text."""
    reader = _Reader(file, _VALUES_PER_CHARACTER * len(text))
    blocks = []
    try:
        if _may_be_deep(text) and _is_deep(text):
            return [], [Problem(file, 0, f"is nested deeper than {_MAX_DEPTH} levels")]
        for node in yaml.compose_all(text, Loader=_LOADER):
            # An empty document between two `---` is no entry.
            if not (isinstance(node, yaml.ScalarNode) and node.tag == _NULL):
                block = reader.block(node)
                if block is not None:
                    blocks.append(block)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        reader.problems.append(Problem(file, mark.line + 1 if mark else 0, f"is not YAML: {error.problem}"))
    except yaml.YAMLError as error:
        reader.problems.append(Problem(file, 0, f"is not YAML: {error}"))
    except _TooMuch:
        reader.problems.append(Problem(file, 0, "unfolds to too much; write aliases (*name) out"))
    if not blocks and not reader.problems:
        reader.problems.append(Problem(file, 0, "holds no entry; expected fields such as 'name: modelTypes/feed_ctr'"))
    return blocks, reader.problems


class _TooMuch(Exception):
    pass


def _may_be_deep(text: str) -> bool:
    """Says whether a text might be nested deep: quickly, and yes too often rather than not."""
    if _DEEP_LINE.search(text) is not None:
        return True
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest > _MAX_DEPTH


def _is_deep(text: str) -> bool:
    """Says whether a text is nested deeper than YAML's parser can build: it would take the process with it."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            return True
    return False


class _Reader:
    """Turns YAML nodes into entries."""

    def __init__(self, file: str, most_values: int) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._left = most_values

    def block(self, node: Any) -> Block | None:
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, "must be an entry: fields such as 'name: modelTypes/feed_ctr'")
            return None
        top = dict(self._pairs(node))
        name_node = top.pop("name", None)
        revision_node = top.pop("revision", None)
        if name_node is None:
            accepted = ", ".join(f"{kind.collection}/ID" for kind in FILED)
            self._wrong(node, f"has no 'name'; write one such as {accepted}")
            return None
        name = self._text(name_node)
        kind = kind_of(name)
        if kind is None or kind not in FILED:
            accepted = ", ".join(f"{each.collection}/ID" for each in FILED)
            self._wrong(name_node, f"'{name}' is not the name of an entry; accepted are {accepted}")
            return None
        # Some entries have a field of that name, of their own.
        kind_node = None if "kind" in kind.message.DESCRIPTOR.fields_by_name else top.pop("kind", None)
        if kind_node is not None and self._text(kind_node) != kind.field:
            self._wrong(kind_node, f"kind '{self._text(kind_node)}' does not fit the name {name}: it is a {kind.field}")
        revision = self._revision(revision_node)
        models_node = top.pop("models", None) if kind is MODEL_TYPE else None
        entry = self._entry(kind, name, node, top, extra="models" if kind is MODEL_TYPE else "")
        entries = [entry, *self._models(name, models_node)]
        line = 0 if revision_node is None else revision_node.start_mark.line + 1
        return Block(self.file, entries, revision, line, name_node.start_mark.line + 1, node)

    def _revision(self, node: Any) -> int:
        if node is None or node.tag == _NULL:
            return 0
        text = self._text(node)
        if text.isascii() and text.isdigit() and len(text) < 19:
            return int(text)
        self._wrong(node, f"revision '{text}' is not a number; export writes it, and without it the file counts")
        return 0

    def _models(self, model_type: str, node: Any) -> Iterator[Entry]:
        if node is None or node.tag == _NULL:
            return
        if not isinstance(node, yaml.SequenceNode):
            self._wrong(node, "'models' must be a list: '- id: v1' and its fields")
            return
        for item in node.value:
            if not isinstance(item, yaml.MappingNode):
                self._wrong(item, "must be a model: '- id: v1' and its fields")
                continue
            fields = dict(self._pairs(item))
            id_node, name_node = fields.pop("id", None), fields.pop("name", None)
            named = id_node if id_node is not None else name_node
            if named is None:
                self._wrong(item, "is a model without 'id'")
                continue
            given = self._text(named)
            name = f"{model_type}/models/{short(given)}"
            if given not in (name, short(given)) or ID.fullmatch(short(given)) is None:
                self._wrong(named, f"'{given}' is no id of a model; it must match ^{ID.pattern}$, for example 'v7'")
                continue
            yield self._entry(MODEL, name, item, fields, extra="id")

    def _entry(self, kind: Kind, name: str, node: Any, pairs: Mapping[str, Any], extra: str) -> Entry:
        before = len(self.problems)
        data = self._fields(pairs, kind.message.DESCRIPTOR, "", extra)
        message = kind.message()
        try:
            ParseDict(data, message)
        except ParseError as error:
            if len(self.problems) == before:
                self._wrong(node, str(error).removeprefix("Failed to parse "))
        message.name = name  # type: ignore[attr-defined]
        lines = {key: value.start_mark.line + 1 for key, value in pairs.items()}
        # A value that is a block begins below its key; the key is what people look for.
        lines |= {key.value: key.start_mark.line + 1 for key, _ in node.value if key.value in lines}
        return Entry(kind, name, message, document_of(message), self.file, {"": node.start_mark.line + 1, **lines})

    def _pairs(self, node: Any) -> Iterator[tuple[str, Any]]:
        """Yields the keys and values of a mapping; one that stands twice is a problem."""
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._wrong(key, "the name of a field must be a word")
                continue
            if key.value in seen:
                self._wrong(key, f"'{key.value}' is there twice")
                continue
            seen.add(key.value)
            yield key.value, value

    def _fields(self, pairs: Mapping[str, Any], descriptor: Descriptor, path: str, extra: str = "") -> Document:
        data: Document = {}
        stamps = stamps_of(descriptor)
        for name, node in pairs.items():
            field = descriptor.fields_by_name.get(name)
            if field is None:
                known = [each.name for each in descriptor.fields if each.name not in stamps] + (
                    [extra] if extra else []
                )
                self._wrong(node, f"{descriptor.name} has no field '{path}{name}'{_meant(name, known)}", above=True)
            elif name in stamps:
                self._wrong(node, f"'{path}{name}' is set by the registry; leave it out", above=True)
            elif not (isinstance(node, yaml.ScalarNode) and node.tag == _NULL):
                value = self._value(field, node, f"{path}{name}")
                if value is not None:
                    data[name] = value
        return data

    def _value(self, field: Descriptor, node: Any, path: str) -> Any:
        if is_map(field):
            if not isinstance(node, yaml.MappingNode):
                return self._wrong(node, f"'{path}' must be a mapping such as 'owner: alice'")
            inner = field.message_type.fields_by_name["value"]
            return {key: self._one(inner, value, f"{path}.{key}") for key, value in self._pairs(node)}
        if field.is_repeated:
            if not isinstance(node, yaml.SequenceNode):
                return self._wrong(node, f"'{path}' must be a list: a line '- …' for each")
            items = [self._one(field, item, f"{path}[{index}]") for index, item in enumerate(node.value)]
            return [item for item in items if item is not None]
        return self._one(field, node, path)

    def _one(self, field: Descriptor, node: Any, path: str) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _TooMuch
        if is_plain_message(field):
            if not isinstance(node, yaml.MappingNode):
                return self._wrong(node, f"'{path}' must have fields: {', '.join(_names(field.message_type))}")
            return self._fields(dict(self._pairs(node)), field.message_type, f"{path}.")
        if field.message_type is not None and field.message_type.full_name in _JSON:
            return self._json(node)
        if not isinstance(node, yaml.ScalarNode):
            return self._wrong(node, f"'{path}' must be a single value")
        return self._scalar(field, node, path)

    def _scalar(self, field: Descriptor, node: Any, path: str) -> Any:
        text: str = node.value
        if field.enum_type is not None:
            names = [value.name for value in field.enum_type.values if value.number]
            if text in names:
                return text
            return self._wrong(node, f"'{path}: {text}' is none of {', '.join(names)}{_meant(text, names, end='')}")
        if field.message_type is not None or field.type == field.TYPE_STRING:
            return text  # `no`, `1.10` and `2026-01-01` are texts where a text belongs
        if field.type == field.TYPE_BOOL:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            return self._wrong(node, f"'{path}: {text}' is not true or false")
        is_float = field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT)
        try:
            return float(text) if is_float else int(text.replace("_", ""))
        except ValueError:
            return self._wrong(node, f"'{path}: {text}' is not a {'number' if is_float else 'whole number'}")

    def _json(self, node: Any) -> Any:
        """Returns free JSON: of attributes."""
        self._left -= 1
        if self._left < 0:
            raise _TooMuch
        if isinstance(node, yaml.MappingNode):
            return {key: self._json(value) for key, value in self._pairs(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self._json(item) for item in node.value]
        tag, text = node.tag.rpartition(":")[2], node.value
        try:
            if tag == "null":
                return None
            if tag == "bool":
                return text.lower() in ("true", "yes", "on")
            if tag == "int":
                return int(text.replace("_", ""), 0)
            if tag == "float":
                return float(text.replace("_", ""))
        except ValueError:
            return text
        return text

    def _text(self, node: Any) -> str:
        return str(node.value) if isinstance(node, yaml.ScalarNode) else ""

    def _wrong(self, node: Any, text: str, *, above: bool = False) -> None:
        # The value of a key that holds a block begins on the line after it.
        line = node.start_mark.line + 1
        if above and not isinstance(node, yaml.ScalarNode) and not node.flow_style:
            line -= 1
        self.problems.append(Problem(self.file, line, text))


_JSON: Final = ("google.protobuf.Struct", "google.protobuf.Value")


def _names(descriptor: Descriptor) -> list[str]:
    return [field.name for field in descriptor.fields]


def _meant(word: str, known: Sequence[str], end: str = "; there are: ") -> str:
    """Returns what was probably meant, or what there is."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"{end}{', '.join(known)}" if end else ""
