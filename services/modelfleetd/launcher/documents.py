"""Dataclasses ↔ JSON documents, as a launch's row keeps them. Driven by annotations; compiled once for each type."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

T = TypeVar("T")

_MICROSECOND: Final = timedelta(microseconds=1)
# Types of fields that need nothing done, as annotations name them.
_PLAIN: Final = frozenset({"str", "int", "float", "bool", str, int, float, bool})


def to_document(value: Any) -> Any:
    """Returns what JSON can hold of a value: enums by name, times as ISO 8601, spans in microseconds."""
    kind: Any = type(value)
    return _writer(kind)(value)


def from_document(kind: type[T], document: Any) -> T:
    """Returns the value again. Fields that the document lacks have their defaults: older rows stay readable."""
    made: T = _reader(typing.cast("Any", kind))(document)
    return made


@functools.cache
def _writer(kind: Any) -> Callable[[Any], Any]:
    if dataclasses.is_dataclass(kind):
        return _dataclass_writer(kind)
    if issubclass(kind, enum.Enum):
        return lambda value: value.name
    if issubclass(kind, datetime):
        return datetime.isoformat
    if issubclass(kind, timedelta):
        return lambda value: value // _MICROSECOND
    if issubclass(kind, tuple | list):
        return lambda value: [to_document(item) for item in value]
    if issubclass(kind, Mapping):
        return lambda value: {str(key): to_document(item) for key, item in value.items()}
    return _as_it_is


def _dataclass_writer(kind: Any) -> Callable[[Any], Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    # Most fields of a launch are as JSON has them.
    others = [field.name for field in dataclasses.fields(kind) if field.type not in _PLAIN]

    def write(value: Any) -> Any:
        document = {name: getattr(value, name) for name in names}
        for name in others:
            document[name] = to_document(document[name])
        return document

    return write


def _as_it_is(value: Any) -> Any:
    return value


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
    return _as_it_is


def _dataclass_reader(kind: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    others = [(name, take) for name, take in readers.items() if take is not _as_it_is]

    def read(document: Any) -> Any:
        given = {name: document[name] for name in readers if name in document}
        for name, take in others:
            if name in given:
                given[name] = take(given[name])
        return kind(**given)

    return read
