"""Changing a frozen dataclass: what `dataclasses.replace` does, at a small part of what it costs.

A launch has some seventy fields, and a round changes it some twenty times: that is most of a round's time otherwise.

A copy is made as an object of a twin, a class of the same slots that is not frozen, so that the interpreter writes them
as fast as it can; and then it is told its class.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")
_Copy = Callable[[Any], Any]

if TYPE_CHECKING:
    # The type checker knows what this one may be given.
    from dataclasses import replace
else:

    def replace(value: T, /, **changes: Any) -> T:
        """Returns a copy of a dataclass in which some fields are others. Raises TypeError for one that it has not."""
        kind = type(value)
        copy = _copy_of(kind)
        if copy is None:
            return dataclasses.replace(value, **changes)
        made = copy(value)
        for name, content in changes.items():
            try:
                setattr(made, name, content)
            except AttributeError:
                raise TypeError(f"{kind.__name__} has no field {name!r}") from None
        made.__class__ = kind
        return made


@functools.cache
def _copy_of(kind: Any) -> _Copy | None:
    """What copies an object of a class into one of its twin; None where its `__init__` does more than take fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    slots = kind.__dict__.get("__slots__", ())
    plain = sorted(names) == sorted(slots) and all(field.init for field in dataclasses.fields(kind))
    if len(names) < 2 or kind.__bases__ != (object,) or hasattr(kind, "__post_init__") or not plain:
        return None
    twin = type(f"{kind.__name__}Twin", (), {"__slots__": tuple(slots)})
    # As one would write it: the names are those of fields, so identifiers.
    lines = ["def copy(value):", "    made = new(twin)", *(f"    made.{name} = value.{name}" for name in names)]
    scope: dict[str, Any] = {"new": object.__new__, "twin": twin}
    exec("\n".join([*lines, "    return made"]), scope)  # noqa: S102
    made: _Copy = scope["copy"]
    return made


__all__ = ["replace"]
