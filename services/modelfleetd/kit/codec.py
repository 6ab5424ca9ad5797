"""Maps dataclasses to protobuf messages and back by field name, so that a service's wire.py holds only what differs.

| protobuf | Python |
| --- | --- |
| scalar, string, bytes | the same; with presence (`optional`, oneof), or annotated `X | None`: None where unset |
| enum | `enum.Enum` whose members are named like the values; `…_UNSPECIFIED` is None, or a member of that name |
| Timestamp, Duration | aware datetime in UTC, timedelta |
| message | a dataclass, or None where unset |
| repeated, map | tuple (or list, frozenset), dict |
| Struct, Value, FieldMask | dict, plain values, tuple of paths |

A plan is compiled once for each pair of types. Fields that only one side has are skipped; dataclass fields without a
default that the message lacks are given to `from_proto` by keyword.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar

from google.protobuf import duration_pb2, field_mask_pb2, json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
T = TypeVar("T")

Convert: TypeAlias = Callable[[Any], Any]
# Its runtime class is the implementation's (upb, Python), which the published types state as a union.
FieldDescriptor: TypeAlias = Any
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_proto(obj: Any, message_class: type[M]) -> M:
    """Returns the message made from a dataclass."""
    made = message_class()
    pair: Any = (type(obj), message_class)
    for put in _writers(*pair):
        put(obj, made)
    return made


def from_proto(message: Message, dataclass_type: type[T], **given: Any) -> T:
    """Returns the dataclass made from a message. `given` are fields that do not come from the message."""
    pair: Any = (type(message), dataclass_type)
    values = {name: take(message) for name, take in _readers(*pair) if name not in given}
    return dataclass_type(**values, **given)


def timestamp_to_proto(moment: datetime) -> timestamp_pb2.Timestamp:
    """Returns a Timestamp with the microseconds of an aware datetime."""
    return _timestamp(moment)


def timestamp_from_proto(stamp: timestamp_pb2.Timestamp) -> datetime:
    """Returns an aware datetime in UTC, to the microsecond."""
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)


def duration_to_proto(span: timedelta) -> duration_pb2.Duration:
    """Returns a Duration with the microseconds of a timedelta."""
    microseconds = span // timedelta(microseconds=1)
    sign = -1 if microseconds < 0 else 1
    seconds, rest = divmod(abs(microseconds), 1_000_000)
    return duration_pb2.Duration(seconds=sign * seconds, nanos=sign * rest * 1000)


def duration_from_proto(span: duration_pb2.Duration) -> timedelta:
    """Returns a timedelta, to the microsecond."""
    microseconds = abs(span.nanos) // 1000
    return timedelta(seconds=span.seconds, microseconds=microseconds if span.nanos >= 0 else -microseconds)


def _timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    if moment.tzinfo is None:
        raise ValueError("a datetime without a time zone names no moment")
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    seconds, rest = divmod(microseconds, 1_000_000)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=rest * 1000)


def _struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(_plain(values))
    return made


def _plain(value: Any) -> Any:
    """Returns a value as Struct takes it: tuples as lists, mappings as dicts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _value(value: Any) -> struct_pb2.Value:
    made: struct_pb2.Value = json_format.ParseDict(_plain(value), struct_pb2.Value())
    return made


_WELL_KNOWN: dict[str, tuple[Convert, Convert]] = {
    "google.protobuf.Timestamp": (_timestamp, timestamp_from_proto),
    "google.protobuf.Duration": (duration_to_proto, duration_from_proto),
    "google.protobuf.Struct": (_struct, json_format.MessageToDict),
    "google.protobuf.Value": (_value, json_format.MessageToDict),
    "google.protobuf.FieldMask": (
        lambda paths: field_mask_pb2.FieldMask(paths=paths),
        lambda mask: tuple(mask.paths),
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """What an annotation says: the type of one value, the container around it, and whether None is allowed."""

    item: Any
    container: Callable[[Any], Any]
    optional: bool


def _shape(annotation: Any) -> _Shape:
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        optional = len(members) < len(typing.get_args(annotation))
        annotation = members[0]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return _Shape(annotation, tuple, optional)
    if issubclass(origin, Mapping):
        return _Shape(arguments[1], dict, optional)
    container = origin if origin in (list, tuple, set, frozenset) else tuple
    return _Shape(arguments[0], container, optional)


@functools.cache
def _common(
    message_class: Any, dataclass_type: Any
) -> tuple[tuple[FieldDescriptor, _Shape, type[Message] | None], ...]:
    """Returns the fields that both sides have, with the class of their messages."""
    hints = typing.get_type_hints(dataclass_type)
    fields = message_class.DESCRIPTOR.fields_by_name
    return tuple(
        (descriptor, _shape(hints[field.name]), _message_class(descriptor))
        for field in dataclasses.fields(dataclass_type)
        if (descriptor := fields.get(field.name)) is not None
    )


def _message_class(field: FieldDescriptor) -> type[Message] | None:
    from google.protobuf.message_factory import GetMessageClass

    if _is_map(field):
        field = field.message_type.fields_by_name["value"]
    return None if field.message_type is None else GetMessageClass(field.message_type)


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


@functools.cache
def _writers(dataclass_type: Any, message_class: Any) -> tuple[Callable[[Any, Message], None], ...]:
    return tuple(_writer(field, nested) for field, _, nested in _common(message_class, dataclass_type))


@functools.cache
def _readers(message_class: Any, dataclass_type: Any) -> tuple[tuple[str, Callable[[Message], Any]], ...]:
    return tuple((field.name, _reader(field, shape)) for field, shape, _ in _common(message_class, dataclass_type))


def _writer(field: FieldDescriptor, nested: type[Message] | None) -> Callable[[Any, Message], None]:
    name = field.name
    if _is_map(field):
        convert = _item_writer(field.message_type.fields_by_name["value"], nested)

        def put_map(obj: Any, made: Message) -> None:
            target = getattr(made, name)
            for key, value in (getattr(obj, name) or {}).items():
                if nested is None:
                    target[key] = convert(value)
                else:
                    target[key].CopyFrom(convert(value))

        return put_map
    convert = _item_writer(field, nested)
    if field.is_repeated:

        def put_repeated(obj: Any, made: Message) -> None:
            if values := getattr(obj, name):
                getattr(made, name).extend([convert(value) for value in values])

        return put_repeated

    if nested is not None:

        def put_message(obj: Any, made: Message) -> None:
            value = getattr(obj, name)
            if value is not None:
                getattr(made, name).CopyFrom(convert(value))

        return put_message

    def put(obj: Any, made: Message) -> None:
        value = getattr(obj, name)
        if value is not None:
            setattr(made, name, convert(value))

    return put


def _item_writer(field: FieldDescriptor, nested: type[Message] | None) -> Convert:
    if nested is not None:
        well_known = _WELL_KNOWN.get(nested.DESCRIPTOR.full_name)
        return well_known[0] if well_known else lambda value: to_proto(value, nested)
    if field.enum_type is not None:
        numbers = {value.name: value.number for value in field.enum_type.values}
        return lambda member: 0 if member is None else numbers[member.name]
    return _same


def _reader(field: FieldDescriptor, shape: _Shape) -> Callable[[Message], Any]:
    name, container = field.name, shape.container
    if _is_map(field):
        convert = _item_reader(field.message_type.fields_by_name["value"], shape)
        return lambda message: {key: convert(value) for key, value in getattr(message, name).items()}
    convert = _item_reader(field, shape)
    if field.is_repeated:
        return lambda message: container([convert(value) for value in getattr(message, name)])
    if field.message_type is not None and not shape.optional and not dataclasses.is_dataclass(shape.item):
        # A dict, a tuple of paths, a datetime …: where unset, whatever the empty message means.
        return lambda message: convert(getattr(message, name))
    if field.has_presence:
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    if shape.optional and field.enum_type is None:
        return lambda message: convert(getattr(message, name)) or None
    return lambda message: convert(getattr(message, name))


def _item_reader(field: FieldDescriptor, shape: _Shape) -> Convert:
    if field.message_type is not None:
        well_known = _WELL_KNOWN.get(field.message_type.full_name)
        return well_known[1] if well_known else lambda value: from_proto(value, shape.item)
    if field.enum_type is not None:
        return _members(field.enum_type, shape.item).__getitem__
    return _same


def _members(values: EnumDescriptor, python: type[enum.Enum]) -> dict[int, enum.Enum | None]:
    """Returns the member of each value; None for an unspecified one that has no member."""
    members: dict[int, enum.Enum | None] = {}
    for value in values.values:
        member = python.__members__.get(value.name)
        if member is None and value.number != 0:
            raise TypeError(f"{python.__name__} lacks {value.name} of {values.full_name}")
        members[value.number] = member
    return members


def _same(value: Any) -> Any:
    return value
