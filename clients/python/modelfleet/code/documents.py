"""Entries as documents that can be compared: what people and launches set, with defaults written out."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from modelfleet.code.kinds import BY_FIELD, Descriptor, Kind, defaults_of, is_map, is_plain_message, stamps_of

Document: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str, ...]

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def document_of(message: Message) -> Document:
    """Returns an entry as plain data, in the order of the proto: without what the registry sets."""
    data = MessageToDict(message, preserving_proto_field_name=True)
    return _cleaned(data, message.DESCRIPTOR)


def _cleaned(data: Document, descriptor: Descriptor) -> Document:
    stamps, defaults = stamps_of(descriptor), defaults_of(descriptor)
    cleaned: Document = {}
    for field in descriptor.fields:
        name = field.name
        if name in stamps:
            continue
        value = data.get(name)
        if value is None:
            if name in defaults:
                cleaned[name] = defaults[name]
        elif is_plain_message(field):
            message = field.message_type
            cleaned[name] = (
                [_cleaned(item, message) for item in value] if field.is_repeated else _cleaned(value, message)
            )
        else:
            cleaned[name] = value
    return cleaned


def leaves(document: Mapping[str, Any], descriptor: Descriptor, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields the fields of a document that an update may name one by one: keys of maps, fields of messages."""
    for name, value in document.items():
        field = descriptor.fields_by_name[name]
        here = (*path, name)
        if is_map(field) or (field.message_type is not None and field.message_type.full_name == _STRUCT):
            yield from (((*here, key), item) for key, item in value.items())
        elif is_plain_message(field) and not field.is_repeated:
            yield from leaves(value, field.message_type, here)
        else:
            yield here, value


_STRUCT = "google.protobuf.Struct"


def join(path: Iterable[str]) -> str:
    """Returns a path as the protos write it: `labels.site`; keys that are no plain words stand in backticks."""
    return ".".join(part if _PLAIN.fullmatch(part) else "`" + part.replace("`", "``") + "`" for part in path)


class Side(enum.Enum):
    """Who changed a field since the file was in step with the ledger."""

    FILE = "the file"
    LEDGER = "the ledger"
    BOTH = "both, to different values"


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which file and ledger differ; None where it is unset. `base` is what both had once, if known."""

    path: Path
    base: Any
    ledger: Any
    file: Any
    side: Side


def differences(
    kind: Kind, base: Mapping[str, Any] | None, ledger: Mapping[str, Any], file: Mapping[str, Any]
) -> Sequence[Difference]:
    """Returns in which fields a file and the ledger differ, and who changed each.

    Args:
        kind: of the entry.
        base: what both were once; None where nobody knows, and then the file counts.
        ledger: as it is now.
        file: as the file has it.
    """
    descriptor = kind.message.DESCRIPTOR
    was, now, says = (dict(leaves(each or {}, descriptor)) for each in (base, ledger, file))
    found = []
    for path in dict.fromkeys((*now, *says)):
        old, current, asked = was.get(path), now.get(path), says.get(path)
        if current == asked:
            continue
        if base is None or current == old:
            side = Side.FILE
        elif asked == old:
            side = Side.LEDGER
        else:
            side = Side.BOTH
        found.append(Difference(path, old, current, asked, side))
    return found


def mask_of(kind: Kind, edits: Sequence[Difference], file: Mapping[str, Any]) -> list[str]:
    """Returns the paths of an update that makes edits: a message that the file leaves out goes as a whole."""
    paths: dict[str, None] = {}
    for edit in edits:
        field = kind.message.DESCRIPTOR.fields_by_name[edit.path[0]]
        gone = is_plain_message(field) and edit.path[0] not in file
        paths[join(edit.path[:1] if gone else edit.path)] = None
    return list(paths)


def own(kind: Kind, document: Mapping[str, Any]) -> Document:
    """Returns the part of a document that its owner sets."""
    return {name: value for name, value in document.items() if name not in kind.launch_owned}


def launch_owned(kind: Kind, document: Mapping[str, Any]) -> Document:
    """Returns the part of a document that launches set."""
    return {name: document[name] for name in kind.launch_owned if name in document}


def kind_of_message(message: Message) -> Kind:
    """Returns the kind of an entry."""
    return next(kind for kind in BY_FIELD.values() if isinstance(message, kind.message))
