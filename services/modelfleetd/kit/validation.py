"""Compiles what the protos declare of a request into a check: once a message type, at its first use.

Enforced everywhere in a request: `REQUIRED`, resource names (`resource_reference`, `child_type`, `IDENTIFIER`), UUIDs,
known enum values, finite numbers, times that exist, text that PostgreSQL can store. `OUTPUT_ONLY` fields are cleared,
as AIP-203 has it. In Create requests, `*_id` fields are ids and the resource's own name is cleared; in Update requests
only the fields of the mask are required, and the mask may only name fields that exist. Ranges and rules over several
fields belong to the domain.
"""

from __future__ import annotations

import enum
import functools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from google.api import field_behavior_pb2, field_info_pb2, resource_pb2
from google.protobuf.descriptor import FieldDescriptor

from modelfleetd.errors import FieldViolation
from modelfleetd.names import BY_TYPE, ID_EXPECTATION, Pattern, is_id

Violations: TypeAlias = list[FieldViolation]
# Looks at a message, adds what is wrong; the path of the message ends with a dot, or is empty.
Rule: TypeAlias = Callable[[Any, str, Violations], None]
# Says what is wrong with a single value, or None.
Test: TypeAlias = Callable[[Any], str | None]

_REQUIRED = field_behavior_pb2.REQUIRED
_OUTPUT_ONLY = field_behavior_pb2.OUTPUT_ONLY
_IDENTIFIER = field_behavior_pb2.IDENTIFIER
# Any version: those that a program derives from a key (5) name an intent as well as random ones (4).
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NUL = "must not contain the character NUL"
_COUNTS = frozenset({"page_size", "min_revision"})
_TIMES = range(-62_135_596_800, 253_402_300_800)


class Use(enum.Enum):
    """What the request does with the resource in it."""

    CREATE = "Create"
    UPDATE = "Update"
    LIST = "List"
    OTHER = ""


@functools.cache
def plan_of(descriptor: Any) -> Callable[[Any], Violations] | None:
    """Returns the check of a request type: gives every violation at once. None where there is nothing to check."""
    use = next(use for use in Use if descriptor.name.startswith(use.value))
    rules = _Compiler(use).rules(descriptor, required=True)
    if use is Use.UPDATE and "update_mask" in descriptor.fields_by_name:
        rules.append(_mask_rule(descriptor))
    if not rules:
        return None

    def check(request: Any) -> Violations:
        found: Violations = []
        for rule in rules:
            rule(request, "", found)
        return found

    return check


class _Compiler:
    """Makes the rules of messages, each type once, so that types may contain themselves."""

    def __init__(self, use: Use) -> None:
        self._use = use
        self._known: dict[tuple[str, bool], list[Rule]] = {}

    def rules(self, descriptor: Any, *, required: bool) -> list[Rule]:
        """Returns the rules of a message type.

        Args:
            descriptor: of the type.
            required: whether REQUIRED fields must be set; not so within the resource of an Update.
        """
        key = (descriptor.full_name, required)
        if key not in self._known:
            made = self._known[key] = []
            for field in descriptor.fields:
                made.extend(self._field(field, required=required))
        return self._known[key]

    def _field(self, field: Any, *, required: bool) -> Iterable[Rule]:
        behavior = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        if _OUTPUT_ONLY in behavior or (_IDENTIFIER in behavior and self._use is Use.CREATE):
            yield _clear(field)
            return
        if (_REQUIRED in behavior and required) or (_IDENTIFIER in behavior and self._use is Use.UPDATE):
            yield _require(field)
        if _is_map(field):
            yield from self._map(field)
        elif field.message_type is not None:
            yield from self._message(field, required=required)
        elif (test := self._scalar(field)) is not None:
            yield _each(field.name, test) if field.is_repeated else _one(field, test)
        elif field.is_repeated and field.type == FieldDescriptor.TYPE_STRING:
            yield _bulk_text(field.name)

    def _message(self, field: Any, *, required: bool) -> Iterable[Rule]:
        name = field.message_type.full_name
        if (test := _WELL_KNOWN.get(name)) is not None:
            yield _each(field.name, test) if field.is_repeated else _one(field, test)
        if name.startswith("google.protobuf."):
            return
        # Beside a mask a resource need not be whole: whoever takes it apart checks what its own method requires.
        beside_mask = self._use is Use.UPDATE or "update_mask" in field.containing_type.fields_by_name
        is_updated = beside_mask and field.message_type.GetOptions().HasExtension(resource_pb2.resource)
        inner = self.rules(field.message_type, required=required and not is_updated)
        yield _nested_each(field.name, inner) if field.is_repeated else _nested(field.name, inner)

    def _map(self, field: Any) -> Iterable[Rule]:
        value = field.message_type.fields_by_name["value"]
        if value.message_type is None:
            yield _map_text(field.name, values=value.type == FieldDescriptor.TYPE_STRING)
        elif not value.message_type.full_name.startswith("google.protobuf."):
            yield _map_text(field.name, values=False)
            yield _nested_map(field.name, self.rules(value.message_type, required=True))

    def _scalar(self, field: Any) -> Test | None:
        """Returns the test of one value of a field; None where every value is as good."""
        options = field.GetOptions()
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._text(field, options)
        if field.enum_type is not None:
            return _known_value(field.enum_type)
        if field.is_repeated:
            return None
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return _finite
        return _count if field.name in _COUNTS else None

    def _text(self, field: Any, options: Any) -> Test | None:
        pattern = self._pattern(field, options)
        if pattern is not None:
            return _name(pattern, wildcard=self._use is Use.LIST)
        if options.Extensions[field_info_pb2.field_info].format == field_info_pb2.FieldInfo.UUID4:
            return _uuid
        if self._use is Use.CREATE and field.name.endswith("_id") and field.containing_type.name.startswith("Create"):
            return _id
        return None if field.is_repeated else _text

    def _pattern(self, field: Any, options: Any) -> Pattern | None:
        """Returns the shape of the names that a field takes; None where it takes other text."""
        reference = options.Extensions[resource_pb2.resource_reference]
        if reference.type and reference.type != "*":
            return BY_TYPE[reference.type]
        if reference.child_type:
            return BY_TYPE[reference.child_type].parent
        if _IDENTIFIER in options.Extensions[field_behavior_pb2.field_behavior]:
            return BY_TYPE[field.containing_type.GetOptions().Extensions[resource_pb2.resource].type]
        return None


# Rules of a field.


def _clear(field: Any) -> Rule:
    name = field.name
    return lambda message, _path, _found: message.ClearField(name)


def _require(field: Any) -> Rule:
    name = field.name
    description = f"is required{_example(field)}"
    if field.has_presence:

        def present(message: Any, path: str, found: Violations) -> None:
            if not message.HasField(name):
                found.append(FieldViolation(path + name, description))

        return present

    def filled(message: Any, path: str, found: Violations) -> None:
        if not getattr(message, name):
            found.append(FieldViolation(path + name, description))

    return filled


def _example(field: Any) -> str:
    """Says what would be accepted, where the declaration tells."""
    if field.enum_type is not None:
        return f": one of {_value_names(field.enum_type)}"
    if field.is_repeated:
        return ": at least one"
    options = field.GetOptions()
    if options.Extensions[field_info_pb2.field_info].format == field_info_pb2.FieldInfo.UUID4:
        return ": a UUID, new for each intent"
    reference = options.Extensions[resource_pb2.resource_reference]
    if reference.type and reference.type != "*":
        return f": a name of the form {BY_TYPE[reference.type].template}"
    return ""


def _one(field: Any, test: Test) -> Rule:
    name = field.name
    if field.has_presence:

        def optional(message: Any, path: str, found: Violations) -> None:
            if message.HasField(name) and (wrong := test(getattr(message, name))):
                found.append(FieldViolation(path + name, wrong))

        return optional

    def plain(message: Any, path: str, found: Violations) -> None:
        value = getattr(message, name)
        if value and (wrong := test(value)):
            found.append(FieldViolation(path + name, wrong))

    return plain


def _each(name: str, test: Test) -> Rule:
    def each(message: Any, path: str, found: Violations) -> None:
        for index, value in enumerate(getattr(message, name)):
            if wrong := test(value):
                found.append(FieldViolation(f"{path}{name}[{index}]", wrong))

    return each


def _bulk_text(name: str) -> Rule:
    def bulk(message: Any, path: str, found: Violations) -> None:
        values = getattr(message, name)
        if values and "\0" in "".join(values):
            index = next(i for i, value in enumerate(values) if "\0" in value)
            found.append(FieldViolation(f"{path}{name}[{index}]", _NUL))

    return bulk


def _nested(name: str, rules: list[Rule]) -> Rule:
    def nested(message: Any, path: str, found: Violations) -> None:
        if message.HasField(name):
            inner, prefix = getattr(message, name), f"{path}{name}."
            for rule in rules:
                rule(inner, prefix, found)

    return nested


def _nested_each(name: str, rules: list[Rule]) -> Rule:
    def nested(message: Any, path: str, found: Violations) -> None:
        if rules:
            for index, inner in enumerate(getattr(message, name)):
                for rule in rules:
                    rule(inner, f"{path}{name}[{index}].", found)

    return nested


def _nested_map(name: str, rules: list[Rule]) -> Rule:
    def nested(message: Any, path: str, found: Violations) -> None:
        if rules:
            for key, inner in getattr(message, name).items():
                for rule in rules:
                    rule(inner, f"{path}{name}[{key!r}].", found)

    return nested


def _map_text(name: str, *, values: bool) -> Rule:
    def text(message: Any, path: str, found: Violations) -> None:
        for key, value in getattr(message, name).items():
            if "\0" in str(key) or (values and "\0" in value):
                found.append(FieldViolation(f"{path}{name}[{key!r}]", _NUL))

    return text


def _mask_rule(descriptor: Any) -> Rule:
    """Returns the rule of an Update's mask: its fields exist, and the required ones among them are set."""
    resource = next(
        field for field in descriptor.fields if field.message_type.GetOptions().HasExtension(resource_pb2.resource)
    )
    fields = resource.message_type.fields_by_name
    required = {
        name: _require(field)
        for name, field in fields.items()
        if _REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    }
    accepted = f"must name fields of {resource.message_type.name}: {', '.join(fields)}"

    def masked(request: Any, _path: str, found: Violations) -> None:
        for mask_path in request.update_mask.paths:
            top, _, rest = mask_path.partition(".")
            if mask_path == "*":  # all fields (AIP-134)
                for require in required.values():
                    require(getattr(request, resource.name), f"{resource.name}.", found)
            elif top not in fields or (rest and not _exists(fields[top], rest)):
                found.append(FieldViolation("update_mask", f"'{mask_path[:100]}': {accepted}"))
            elif top in required and not rest:
                required[top](getattr(request, resource.name), f"{resource.name}.", found)

    return masked


def _exists(field: Any, rest: str) -> bool:
    """Says whether a path leads to something below a field; below maps and Structs every key is a path."""
    for name in rest.split("."):
        if field.message_type is None:
            return False
        if _is_map(field) or field.message_type.full_name == "google.protobuf.Struct":
            return bool(name)
        if field.is_repeated:
            return False
        field = field.message_type.fields_by_name.get(name)
        if field is None:
            return False
    return True


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


# Tests of a value.


def _name(pattern: Pattern, *, wildcard: bool) -> Test:
    matches, wrong = pattern.matcher(wildcard=wildcard), pattern.expectation
    return lambda value: None if matches(value) else wrong


def _uuid(value: str) -> str | None:
    return None if _UUID.fullmatch(value) else "must be a UUID, for example 0b6de3c4-0f1c-4f0e-9d1a-0f6f0e6f0a01"


def _id(value: str) -> str | None:
    return None if is_id(value) else ID_EXPECTATION


def _text(value: str) -> str | None:
    return _NUL if "\0" in value else None


def _finite(value: float) -> str | None:
    return None if math.isfinite(value) else "must be a finite number"


def _count(value: int) -> str | None:
    return None if value >= 0 else "must be 0 or more"


def _known_value(values: Any) -> Test:
    known = frozenset(values.values_by_number)
    wrong = f"must be one of {_value_names(values)}"
    return lambda value: None if value in known else wrong


def _value_names(values: Any) -> str:
    return ", ".join(value.name for value in values.values if value.number != 0)


def _timestamp(value: Any) -> str | None:
    if value.seconds in _TIMES and 0 <= value.nanos < 1_000_000_000:
        return None
    return "must be a time between 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999999Z"


def _duration(value: Any) -> str | None:
    fits = abs(value.seconds) <= 315_576_000_000 and abs(value.nanos) < 1_000_000_000
    return None if fits and value.seconds * value.nanos >= 0 else "must be a duration of at most 10,000 years"


def _struct(value: Any) -> str | None:
    for item in value.fields.items():
        if wrong := _text(item[0]) or _json(item[1]):
            return wrong
    return None


def _json(value: Any) -> str | None:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return _text(value.string_value)
    if kind == "number_value":
        return _finite(value.number_value)
    if kind == "struct_value":
        return _struct(value.struct_value)
    if kind == "list_value":
        return next((wrong for item in value.list_value.values if (wrong := _json(item))), None)
    return None


_WELL_KNOWN: dict[str, Test] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
    "google.protobuf.Struct": _struct,
    "google.protobuf.Value": _json,
}
