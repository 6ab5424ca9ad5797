"""Resources as JSON documents, and the difference of two of them field by field."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from modelfleetd.registry.domain.evidence import EvaluationReport, RiskAssessment
from modelfleetd.registry.domain.paths import join
from modelfleetd.registry.domain.resource import Json, Owner
from modelfleetd.registry.domain.resources import AnyResource


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field before and after; None where it was or is unset."""

    path: str
    before: Json
    after: Json


def document(value: Any) -> Json:
    """Returns a resource, or a part of one, as JSON: unset fields and what the registry stamps are left out."""
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, timedelta):
        # As protobuf's JSON has it: seconds, with as many digits as needed.
        return f"{value.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"
    if isinstance(value, datetime):
        # As protobuf's JSON has it: UTC, with as many digits as needed.
        text = value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
        return text.rstrip("0").rstrip(".") + "Z"
    if isinstance(value, Mapping):
        return {key: document(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [document(item) for item in value]
    return value


def _fields(value: Any) -> Json:
    kind: Any = type(value)
    return {
        name: document(item)
        for name, has_presence in _compared(kind)
        if (item := getattr(value, name)) is not None and (has_presence or not is_unset(item))
    }


def is_unset(value: Any) -> bool:
    """Says whether a field holds what it holds when nobody sets it."""
    if isinstance(value, enum.Enum):
        return False  # the first member of an IntEnum is 0
    return value is None or value in ("", 0, ()) or value == {}


def owner_of(field: dataclasses.Field[Any]) -> Owner | None:
    """Returns who sets a field; None for the caller."""
    owner: Owner | None = field.metadata.get("owner")
    return owner


def diff(before: AnyResource | None, after: AnyResource | None) -> tuple[FieldChange, ...]:
    """Returns what differs, in the order of the paths. Lists are compared as a whole, messages and maps by field.

    Nothing for evidence: it is only ever created and deleted, so its fields would repeat all that it says.
    """
    if isinstance(before or after, (EvaluationReport, RiskAssessment)):
        return ()
    return tuple(
        FieldChange(join(path), old, new)
        for path, old, new in sorted(
            _differences((), {} if before is None else document(before), {} if after is None else document(after)),
            key=lambda found: found[0],
        )
    )


def _differences(path: tuple[str, ...], before: Json, after: Json) -> Iterator[tuple[tuple[str, ...], Json, Json]]:
    if _has_fields(before, after):
        old, new = before or {}, after or {}
        for key in old.keys() | new.keys():
            yield from _differences((*path, key), old.get(key), new.get(key))
    elif not _same(before, after):
        yield path, before, after


def _has_fields(before: Json, after: Json) -> bool:
    """Says whether a difference can be told field by field: what is not there counts as having none."""
    return all(value is None or isinstance(value, dict) for value in (before, after)) and bool(before or after)


def _same(before: Json, after: Json) -> bool:
    # True == 1 in Python, and not in JSON.
    return bool(type(before) is type(after) and before == after)


@functools.cache
def _compared(dataclass_type: Any) -> tuple[tuple[str, bool], ...]:
    """Returns the fields that are compared, and whether 0 is a value of theirs: where None says that there is none."""
    return tuple(
        (field.name, field.default is None)
        for field in dataclasses.fields(dataclass_type)
        if owner_of(field) is not Owner.STAMP
    )
