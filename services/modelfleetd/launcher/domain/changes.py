"""Changing a frozen dataclass: what `dataclasses.replace` does, at a quarter of what it costs.

A launch has some seventy fields, and a round changes it some twenty times: that is most of a round's time otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")
_Write = Callable[[Any, Any], None]
_Fields = tuple[Callable[[Any], tuple[Any, ...]], Sequence[_Write], dict[str, _Write]]

if TYPE_CHECKING:
    # The type checker knows what this one may be given.
    from dataclasses import replace
else:

    def replace(value: T, /, **changes: Any) -> T:
        """Returns a copy of a dataclass in which some fields are others. Raises TypeError for one that it has not."""
        kind = type(value)
        fields = _fields_of(kind)
        if fields is None:
            return dataclasses.replace(value, **changes)
        read, writers, by_name = fields
        made = object.__new__(kind)
        for write, content in zip(writers, read(value), strict=True):
            write(made, content)
        for name, content in changes.items():
            if name not in by_name:
                raise TypeError(f"{kind.__name__} has no field {name!r}")
            by_name[name](made, content)
        return made


@functools.cache
def _fields_of(kind: Any) -> _Fields | None:
    """What reads all fields of a class at once, and what writes each; None where its `__init__` does more than that."""
    fields = dataclasses.fields(kind)
    if len(fields) < 2 or hasattr(kind, "__post_init__") or not all(field.init for field in fields):
        return None
    members = {field.name: getattr(kind, field.name, None) for field in fields}
    if not all(hasattr(member, "__set__") for member in members.values()):
        return None
    by_name: dict[str, _Write] = {name: member.__set__ for name, member in members.items() if member is not None}
    return attrgetter(*members), tuple(by_name.values()), by_name


__all__ = ["replace"]
