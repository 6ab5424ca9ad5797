"""Dataclasses ↔ JSON documents, as a launch's row keeps them. Driven by annotations; compiled once for each type."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")


def to_document(value: Any) -> Any:
    """Returns what JSON can hold of a value: enums by name, times as ISO 8601, spans in microseconds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_document(getattr(value, name)) for name in _fields(type(value))}
    match value:
        case enum.Enum():
            return value.name
        case datetime():
            return value.isoformat()
        case timedelta():
            return value // timedelta(microseconds=1)
        case tuple() | list():
            return [to_document(item) for item in value]
        case Mapping():
            return {str(key): to_document(item) for key, item in value.items()}
        case _:
            return value


def from_document(kind: type[T], document: Any) -> T:
    """Returns the value again. Fields that the document lacks have their defaults: older rows stay readable."""
    made: T = _reader(typing.cast("Any", kind))(document)
    return made


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        read = _reader(next(argument for argument in arguments if argument is not type(None)))
        return lambda document: None if document is None else read(document)
    if origin is tuple:
        item = _reader(arguments[0])
        return lambda document: tuple(item(part) for part in document)
    if origin is not None and issubclass(origin, Mapping):
        value = _reader(arguments[1])
        return lambda document: {key: value(part) for key, part in document.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind.__getitem__
    if kind is datetime:
        return datetime.fromisoformat
    if kind is timedelta:
        return lambda document: timedelta(microseconds=document)
    if kind is float:
        return float
    return lambda document: document


def _dataclass_reader(kind: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}

    def read(document: Any) -> Any:
        return kind(**{name: take(document[name]) for name, take in readers.items() if name in document})

    return read
