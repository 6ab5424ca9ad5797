"""Updates with a mask (AIP-134): which fields of what was asked replace which of what is."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from modelfleetd.errors import FieldImmutable, FieldOwnedByLaunches, FieldViolation, InvalidFields
from modelfleetd.registry.domain.documents import is_unset, owner_of
from modelfleetd.registry.domain.paths import split
from modelfleetd.registry.domain.resource import Owner
from modelfleetd.registry.domain.resources import AnyResource

R = TypeVar("R", bound=AnyResource)

EVERYTHING = "*"


def merge(current: R, asked: R, mask: Sequence[str], *, field: str, command: str = "", instead: str = "") -> R:
    """Returns the resource with the fields of the mask taken from `asked`.

    An empty mask stands for all fields that are set in `asked`, `*` for all fields. With these two, what the registry
    sets itself is passed over, so that a resource can be read, changed and sent back as it is; what launches own, or
    what cannot change, is passed over as long as it is the same.

    Args:
        current: the resource as it is.
        asked: the resource as the request has it.
        mask: paths of fields.
        field: name of the resource's field in the request, for error messages.
        command: what to run to change a field that launches own.
        instead: what to do instead of changing a field that cannot change.

    Raises:
        InvalidFields: a path that names no field, or one that the registry sets.
        FieldOwnedByLaunches: a field that only a launch may set.
        FieldImmutable: a field that cannot change is asked to.
    """
    fields = {each.name: each for each in dataclasses.fields(current)}
    explicit = bool(mask) and EVERYTHING not in mask
    if explicit:
        paths = _checked(type(current), mask)
    else:
        paths = [(name,) for name in fields if mask or not is_unset(getattr(asked, name))]
    merged = current
    for path in paths:
        name = path[0]
        owner = owner_of(fields[name])
        if owner in (Owner.STAMP, Owner.DERIVED):
            continue
        changed = _put(merged, asked, path)
        if owner is None:
            merged = changed
            continue
        # `*` clears the caller's own fields where the request leaves them out, but no others.
        touched = explicit or not is_unset(getattr(asked, name))
        if owner is Owner.LAUNCHES and touched and (explicit or changed != merged):
            raise FieldOwnedByLaunches(f"{field}.{name}", command)
        if owner is Owner.CREATION and touched and changed != merged:
            raise FieldImmutable(f"{field}.{name}", instead)
    return merged


def _checked(resource_type: type, mask: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the mask's paths, taken apart. Raises InvalidFields for what names no field that may be set."""
    paths: list[tuple[str, ...]] = []
    violations: list[FieldViolation] = []
    fields = {each.name: each for each in dataclasses.fields(resource_type)}
    settable = [name for name, each in fields.items() if owner_of(each) is None]
    for text in mask:
        path = split(text)
        if path is None or not _exists(resource_type, path):
            description = f"{text!r} names no field; accepted are {', '.join(settable)}, and * for all of them"
        elif owner_of(fields[path[0]]) in (Owner.STAMP, Owner.DERIVED):
            description = f"{text!r} is set by the registry; accepted are {', '.join(settable)}"
        else:
            paths.append(path)
            continue
        violations.append(FieldViolation("update_mask", description))
    if violations:
        raise InvalidFields(violations)
    return paths


def _exists(dataclass_type: Any, path: Sequence[str]) -> bool:
    kind: Any = dataclass_type
    for segment in path:
        if kind is Mapping:
            # Any key of a map; what is below a key of attributes is replaced as a whole.
            return segment == path[-1]
        if kind is None or segment not in (kinds := _kinds(kind)):
            return False
        kind = kinds[segment]
    return True


def _put(current: Any, asked: Any, path: Sequence[str]) -> Any:
    """Returns `current` with the value at a path taken from `asked`."""
    name, rest = path[0], path[1:]
    if isinstance(current, Mapping):
        kept = {key: value for key, value in current.items() if key != name}
        return kept | {name: asked[name]} if name in asked else kept
    value = getattr(asked, name)
    if rest:
        before = getattr(current, name)
        if before is None and value is None:
            return current
        value = _put(type(value)() if before is None else before, type(before)() if value is None else value, rest)
    return dataclasses.replace(current, **{name: value})


@functools.cache
def _kinds(dataclass_type: Any) -> dict[str, Any]:
    """Returns what a path may go on into below each field: a dataclass, a mapping, or nothing."""
    kinds: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(dataclass_type).items():
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(member for member in typing.get_args(hint) if member is not type(None))
        if typing.get_origin(hint) is not None:
            kinds[name] = Mapping if issubclass(typing.get_origin(hint), Mapping) else None
        else:
            kinds[name] = hint if dataclasses.is_dataclass(hint) else None
    return kinds
