"""The fields that lists are filtered and ordered by, as descriptors have them: their kinds, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, TypeAlias

from google.api import resource_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleetd import names
from modelfleetd.kit.filter import Field, Kind, Scalar

# What an entry has in a field; nothing where it is unset. Of a map, the values by key.
Values: TypeAlias = tuple[Scalar, ...]
Read: TypeAlias = Callable[[Any], Values]
ReadKeys: TypeAlias = Callable[[Any], Mapping[str, Scalar]]
# Its runtime class is the implementation's (upb, Python), which the published types state as a union.
_Descriptor: TypeAlias = Any

_TIMESTAMP = "google.protobuf.Timestamp"
_KINDS = {
    FieldDescriptor.CPPTYPE_STRING: Kind.TEXT,
    FieldDescriptor.CPPTYPE_ENUM: Kind.ENUM,
    FieldDescriptor.CPPTYPE_BOOL: Kind.BOOL,
    FieldDescriptor.CPPTYPE_INT32: Kind.NUMBER,
    FieldDescriptor.CPPTYPE_INT64: Kind.NUMBER,
    FieldDescriptor.CPPTYPE_UINT32: Kind.NUMBER,
    FieldDescriptor.CPPTYPE_UINT64: Kind.NUMBER,
    FieldDescriptor.CPPTYPE_FLOAT: Kind.NUMBER,
    FieldDescriptor.CPPTYPE_DOUBLE: Kind.NUMBER,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """A field, and how it is read: all values, or with a keyed one the values by key."""

    field: Field
    read: Read
    read_keys: ReadKeys | None = None

    def of(self, message: Message, key: str) -> Values:
        """Returns the values of a message; of a keyed field, the one of a key, or with an empty key all."""
        if self.read_keys is None:
            return self.read(message)
        found = self.read_keys(message)
        if key:
            return (found[key],) if key in found else ()
        return tuple(found.values())


def readings(message: type[Message], paths: Iterable[str], prose: Collection[str] = ()) -> dict[str, Reading]:
    """Returns the fields of a message class, by path.

    Args:
        message: the class.
        paths: of fields, through messages and repeated messages, to text, enums, numbers, booleans, times, and maps to
            text.
        prose: the paths of text that is searched rather than named.

    Raises:
        ValueError: a path leads to none of these.
    """
    return {path: _reading(message.DESCRIPTOR, path, prose=path in prose) for path in paths}


def attribute(path: str, key: str, kind: Kind) -> Reading:
    """Returns a key of a message's Struct as a field. Values that are not of the kind count as unset."""
    field = Field(f"{path}.{key}", kind)
    which, read_value = {
        Kind.TEXT: ("string_value", attrgetter("string_value")),
        Kind.NUMBER: ("number_value", attrgetter("number_value")),
        Kind.BOOL: ("bool_value", attrgetter("bool_value")),
    }[kind]
    read_fields = attrgetter(f"{path}.fields")

    def read(message: Message) -> Values:
        fields = read_fields(message)
        if key not in fields:
            return ()
        value = fields[key]
        return (read_value(value),) if value.WhichOneof("kind") == which else ()

    return Reading(field, read)


def _reading(message: _Descriptor, path: str, *, prose: bool) -> Reading:
    steps, many = _steps(message, path)
    last = steps[-1]
    if last.message_type is not None and last.message_type.GetOptions().map_entry:
        read_map = attrgetter(path)
        keys: ReadKeys = lambda message: dict(read_map(message))  # noqa: E731
        return Reading(Field(path, keyed=True), lambda message: tuple(read_map(message).values()), keys)
    kind = _kind(last)
    if kind is None:
        raise ValueError(f"{message.full_name}.{path} is nothing that lists can be filtered by")
    values = () if last.enum_type is None else last.enum_type.values
    numbers = {value.name: value.number for value in values if value.number}
    field = Field(path, kind, many=many, numbers=numbers, prefix=_prefix(last), prose=prose)
    return Reading(field, _read(steps, kind) if many else _read_one(path, kind, last))


def _steps(message: _Descriptor, path: str) -> tuple[list[_Descriptor], bool]:
    """Returns the fields along a path, and whether one of them is repeated."""
    steps: list[_Descriptor] = []
    for name in path.split("."):
        found = None if message is None else message.fields_by_name.get(name)
        if found is None:
            raise ValueError(f"{path} leads to no field")
        steps.append(found)
        message = found.message_type
    is_map = message is not None and message.GetOptions().map_entry
    return steps, any(step.is_repeated for step in (steps[:-1] if is_map else steps))


def _kind(last: _Descriptor) -> Kind | None:
    if last.message_type is not None and last.message_type.full_name == _TIMESTAMP:
        return Kind.TIME
    return _KINDS.get(last.cpp_type)


def _prefix(last: _Descriptor) -> str:
    """Returns what stands before the id in the names of a reference to resources without parents."""
    pattern = names.BY_TYPE.get(last.GetOptions().Extensions[resource_pb2.resource_reference].type)
    return "" if pattern is None or len(pattern.variables) != 1 else pattern.template.partition("{")[0]


def _read_one(path: str, kind: Kind, last: _Descriptor) -> Read:
    get = attrgetter(path)
    if kind is Kind.TIME:

        def read_time(message: Message) -> Values:
            stamp = get(message)
            return (microseconds(stamp),) if stamp.seconds or stamp.nanos else ()

        return read_time
    if kind in (Kind.TEXT, Kind.ENUM):
        # Empty text and the value 0 of an enum mean that nothing is stated; 0 and false are statements.
        return lambda message: (value,) if (value := get(message)) else ()
    if last.has_presence:
        parent, _, name = path.rpartition(".")
        owner: Callable[[Any], Any] = attrgetter(parent) if parent else lambda message: message
        return lambda message: (get(message),) if owner(message).HasField(name) else ()
    return lambda message: (get(message),)


def _read(steps: Sequence[_Descriptor], kind: Kind) -> Read:
    read_each = microseconds if kind is Kind.TIME else lambda value: value
    says_nothing = () if kind in (Kind.NUMBER, Kind.BOOL) else ("", 0)

    def read(message: Any) -> Values:
        found = [message]
        for step in steps:
            parts = [getattr(each, step.name) for each in found]
            found = list(chain.from_iterable(parts)) if step.is_repeated else parts
        return tuple(dict.fromkeys(read_each(value) for value in found if value not in says_nothing))

    return read


def microseconds(stamp: Timestamp) -> float:
    """Returns a time as filters and orders hold it."""
    return float(stamp.seconds * 1_000_000 + stamp.nanos // 1000)
