"""JSON Schema (2020-12) as an organisation writes it: checked, bounded, in words that say what would be accepted.

The library `jsonschema` holds it together and checks schemas themselves; the keywords are written anew with our words,
patterns in linear time, and a budget. Nothing is ever fetched: references lead inside the schema, and not in circles.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias

import jsonschema
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry

from modelfleetd.registry.domain.paths import join
from modelfleetd.registry.domain.patterns import expression, what_is_wrong_with
from modelfleetd.registry.domain.resource import Json

MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 40
# Subschemas, each counted as often as references lead to it.
MAX_EXPANSION: Final = 10_000
# Keywords looked at for one document. Most take some ten microseconds, alternatives that all fail some sixty.
MAX_STEPS: Final = 20_000
_MOST_FINDINGS: Final = 50

_META: Final = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA, registry=Registry())
# Those with one subschema, with a list of them, and with subschemas by key.
_ONE = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("$defs", "dependentSchemas", "patternProperties", "properties")
# What cannot be bounded, or leads elsewhere.
_REFUSED = (
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_DIALECT = "https://json-schema.org/draft/2020-12/schema"

Errors: TypeAlias = Iterator[ValidationError]
Keyword: TypeAlias = Callable[[Any, Any, Any, Any], Errors]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong at one place of a document, what would be accepted, and what the schema says of the place."""

    path: str
    description: str
    reason: str = ""


class _Spent(Exception):
    """The budget of a check is used up."""


class JsonSchema:
    """A schema, ready to check documents. It has to be one: see `what_is_wrong`."""

    def __init__(self, schema: Mapping[str, Json]) -> None:
        # Where it says that it comes from would change what references lead to.
        self._schema = {key: value for key, value in schema.items() if key not in ("$id", "$schema")}
        self._validator = _Validator(self._schema, registry=Registry())
        self._places = {_pointer(path): each for path, each in _walk(self._schema)}
        # Validators of subschemas, by identity: the library makes a new one each time that it comes to one.
        self._inner: dict[int, Any] = {}

    def findings(self, document: Json) -> list[Finding]:
        """Returns what is wrong with a document, by path; at most 50."""
        token = _check.set(_Check(self))
        try:
            errors = list(islice(self._validator.iter_errors(document), _MOST_FINDINGS))
        except _Spent:
            words = f"take more than {MAX_STEPS:,} steps to check; make them smaller, or the schema simpler"
            return [Finding("", words)]
        finally:
            _check.reset(token)
        return _sorted(Finding(_path(error.absolute_path), error.message, _reason(error)) for error in errors)

    def inner(self, validator: Any, below: Json) -> Any:
        """Returns the validator of a subschema."""
        found = self._inner.get(id(below))
        if found is None:
            found = self._inner[id(below)] = validator.evolve(schema=below)
        return found

    def place(self, reference: str) -> Json:
        """Returns the subschema that a reference leads to."""
        return self._places[reference]


class _Check:
    """One check of a document: by which schema, and what is left to spend on it."""

    def __init__(self, schema: JsonSchema) -> None:
        self.schema = schema
        self._left = MAX_STEPS

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Spent


# Keywords are functions of the library's kind, which get nothing of ours.
_check: ContextVar[_Check] = ContextVar("check")


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(set(findings), key=lambda finding: (finding.path, finding.description))


def _path(segments: Sequence[str | int]) -> str:
    path = ""
    for segment in segments:
        path += f"[{segment}]" if isinstance(segment, int) else ("." if path else "") + join([segment])
    return path


def _reason(error: ValidationError) -> str:
    """Returns what the schema itself says of the place."""
    described: Any = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator == "required":
        described = described.get("properties", {}).get(error.path[-1], {})
    text = described.get("description") if isinstance(described, Mapping) else None
    return text[:200] if isinstance(text, str) else ""


# --- the schema itself ------------------------------------------------------------------------------------------------


def what_is_wrong(schema: Mapping[str, Json]) -> list[Finding]:
    """Returns what keeps a schema from being used, by path; nothing where it is fine."""
    try:
        size = len(json.dumps(schema, allow_nan=False).encode())
    except ValueError:
        return [Finding("", "must hold finite numbers only")]
    if size > MAX_BYTES:
        return [Finding("", f"must have at most {MAX_BYTES // 1024} KiB as JSON, it has {size:,} bytes")]
    if _depth(schema) > MAX_DEPTH:
        return [Finding("", f"must nest at most {MAX_DEPTH} deep")]
    if schema.get("type") != "object":
        return [Finding("type", "must be 'object': attributes have keys")]
    if schema.get("$schema", _DIALECT) != _DIALECT:
        return [Finding("$schema", f"must be {_DIALECT}, or left out")]
    errors = islice(_META.iter_errors(schema), _MOST_FINDINGS)
    found = _sorted(Finding(_path(error.absolute_path), _said(error)) for error in errors)
    # Only what has the right shape can be walked through.
    return found or _sorted([*_refused(schema), *_wrong_references(schema)])[:_MOST_FINDINGS]


def _said(error: ValidationError) -> str:
    """Returns what the metaschema would accept: it is the library's own, and so are the words of its errors."""
    if error.context:
        return "; or ".join(dict.fromkeys(map(_said, error.context)))
    wanted: Any = error.validator_value
    if error.validator == "type":
        return _type_words(wanted)
    if error.validator == "enum":
        return _enum_words(wanted, error.instance)
    leaf = _LEAVES.get(str(error.validator))
    return error.message if leaf is None else leaf.words(wanted)


def _depth(value: Json) -> int:
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else None
    return 0 if children is None else 1 + max(map(_depth, children), default=0)


def _below(schema: Json) -> Iterator[tuple[tuple[str | int, ...], Json]]:
    """Yields the subschemas directly below one, each with its path."""
    if not isinstance(schema, Mapping):
        return
    for key in _ONE:
        if key in schema:
            yield (key,), schema[key]
    for key in _LISTS:
        for index, each in enumerate(schema.get(key, ())):
            yield (key, index), each
    for key in _MAPS:
        for name, each in schema.get(key, {}).items():
            yield (key, name), each


def _walk(schema: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Json]]:
    yield path, schema
    for step, each in _below(schema):
        yield from _walk(each, (*path, *step))


def _refused(schema: Mapping[str, Json]) -> Iterator[Finding]:
    for path, each in _walk(schema):
        if not isinstance(each, Mapping):
            continue
        for key in each:
            where = _path([*path, key])
            if key in _REFUSED or (key in ("$id", "$schema") and path):
                yield Finding(where, "is not supported: what a schema costs to check must be plain to see")
            elif key not in _KNOWN and (near := difflib.get_close_matches(key, _KNOWN, 1, 0.8)):
                # Any keyword is allowed, and means nothing: a slip would leave out what was meant to be checked.
                yield Finding(where, f"is no keyword of JSON Schema; did you mean {near[0]!r}?")
        patterns: list[tuple[tuple[str, ...], str]] = [(("pattern",), each["pattern"])] if "pattern" in each else []
        patterns += [(("patternProperties", pattern), pattern) for pattern in each.get("patternProperties", ())]
        for step, pattern in patterns:
            if (problem := what_is_wrong_with(pattern)) is not None:
                yield Finding(_path([*path, *step]), problem)


def _wrong_references(schema: Mapping[str, Json]) -> list[Finding]:
    """Returns what is wrong with references: where they lead, and how much they make of a schema."""
    places = {_pointer(path): each for path, each in _walk(schema)}
    found = [
        Finding(_path([*path, "$ref"]), "must lead to a schema inside this one, such as '#/$defs/money'")
        for path, each in _walk(schema)
        if isinstance(each, Mapping) and "$ref" in each and each["$ref"] not in places
    ]
    if found:
        return found
    sizes: dict[str, int] = {}
    open_: list[str] = []

    def size(each: Json, pointer: str) -> int:
        """Returns how many subschemas there are once references are written out."""
        if pointer in open_:
            circle = " -> ".join([*open_[open_.index(pointer) :], pointer])
            raise ValueError(f"must not lead back to where it came from: {circle}")
        if pointer not in sizes:
            open_.append(pointer)
            total = 1
            for step, below in _below(each):
                if step[0] != "$defs":
                    total += size(below, pointer + _pointer(step)[1:])
            if isinstance(each, Mapping) and "$ref" in each:
                total += size(places[each["$ref"]], each["$ref"])
            open_.pop()
            sizes[pointer] = total
        return sizes[pointer]

    try:
        expanded = size(schema, "#")
    except ValueError as error:
        return [Finding("$ref", str(error))]
    if expanded > MAX_EXPANSION:
        words = f"must make at most {MAX_EXPANSION:,} schemas of this one when written out, they make {expanded:,}"
        return [Finding("$ref", words)]
    return []


def _pointer(path: Sequence[str | int]) -> str:
    """Returns the path as a JSON pointer in a fragment (RFC 6901)."""
    return "#" + "".join("/" + str(step).replace("~", "~0").replace("/", "~1").replace("%", "%25") for step in path)


def scalar_properties(schema: Mapping[str, Json]) -> list[str]:
    """Returns the schema's own properties that hold text, or numbers, or booleans, and nothing else, sorted."""
    return sorted(key for key, each in schema.get("properties", {}).items() if _is_scalar(each))


def _is_scalar(each: Json) -> bool:
    if not isinstance(each, Mapping):
        return False
    if "type" in each:
        return each["type"] in ("string", "number", "integer", "boolean")
    values = each.get("enum", ())
    return bool(values) and all(isinstance(value, str) for value in values)


# --- keywords ---------------------------------------------------------------------------------------------------------


def _shown(value: Json) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return repr(value[:100])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def _count(number: float, singular: str, plural: str = "") -> str:
    return f"{_shown(number)} {singular if number == 1 else plural or singular + 's'}"


def _canonical(value: Json) -> str:
    """Returns a text that is the same for values that JSON Schema holds to be equal, and for no others."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(key)}:{_canonical(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_canonical, value)) + "]"
    return json.dumps(value)


def _is_multiple(number: float, of: float) -> bool:
    # A tenth is not a tenth in binary: what is as near as its digits can be is taken for a multiple.
    quotient = number / of
    return abs(quotient) < 2**53 and abs(quotient - round(quotient)) <= 1e-9 * max(1.0, abs(quotient))


_ARTICLES = {"array": "a list", "boolean": "true or false", "integer": "a whole number", "null": "null",
             "number": "a number", "object": "fields", "string": "a text"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A keyword without subschemas: of which values, when it holds (value, wanted), and what it says otherwise."""

    kind: str | None
    holds: Callable[[Any, Any], bool]
    words: Callable[[Any], str]

    def __call__(self, validator: Any, wanted: Any, value: Any, schema: Any) -> Errors:
        _check.get().spend()
        if (self.kind is None or validator.is_type(value, self.kind)) and not self.holds(value, wanted):
            yield ValidationError(self.words(wanted))


def _enum(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:  # noqa: ARG001
    _check.get().spend()
    if _canonical(value) not in set(map(_canonical, wanted)):
        yield ValidationError(_enum_words(wanted, value))


def _enum_words(wanted: Sequence[Json], value: Json) -> str:
    shown = ", ".join(map(_shown, wanted[:10])) + (f" or {len(wanted) - 10} others" if len(wanted) > 10 else "")
    texts = [each for each in wanted[:1000] if isinstance(each, str)]
    near = difflib.get_close_matches(value, texts, 1) if isinstance(value, str) and len(value) <= 200 else []
    return f"must be one of {shown}" + (f"; did you mean {near[0]!r}?" if near else "")


def _type(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    _check.get().spend()
    if not any(validator.is_type(value, kind) for kind in ([wanted] if isinstance(wanted, str) else wanted)):
        yield ValidationError(_type_words(wanted))


def _type_words(wanted: str | Sequence[str]) -> str:
    return "must be " + " or ".join(_ARTICLES[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted))


def _required(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    _check.get().spend()
    if validator.is_type(value, "object"):
        for key in wanted:
            if key not in value:
                yield ValidationError("is required", path=(key,))


def _dependent_required(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    _check.get().spend()
    if validator.is_type(value, "object"):
        for key, others in wanted.items():
            for other in others:
                if key in value and other not in value:
                    yield ValidationError(f"is required where there is {key!r}", path=(other,))


def _pattern_properties(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    if validator.is_type(value, "object"):
        for pattern, below in wanted.items():
            for key, item in value.items():
                _check.get().spend()
                if expression(pattern).search(key):
                    yield from _descend(validator, item, below, key)


def _additional_properties(validator: Any, wanted: Any, value: Any, schema: Any) -> Errors:
    if not validator.is_type(value, "object"):
        return
    known = schema.get("properties", {})
    patterns = [expression(pattern) for pattern in schema.get("patternProperties", ())]
    for key, item in value.items():
        _check.get().spend()
        if key in known or any(pattern.search(key) for pattern in patterns):
            continue
        if wanted is False:
            near = difflib.get_close_matches(key[:200], known, 1)
            accepted = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known)[:20])}"
            yield ValidationError(f"is none of the fields; {accepted}", path=(key,))
        else:
            yield from _descend(validator, item, wanted, key)


def _contains(validator: Any, wanted: Any, value: Any, schema: Any) -> Errors:
    if not validator.is_type(value, "array"):
        return
    least, most = schema.get("minContains", 1), schema.get("maxContains")
    count = sum(_holds(validator, item, wanted) for item in value)
    if count < least:
        yield ValidationError(f"must hold at least {_count(least, 'fitting entry', 'fitting entries')}")
    if most is not None and count > most:
        yield ValidationError(f"must hold at most {_count(most, 'fitting entry', 'fitting entries')}")


def _alternatives(validator: Any, wanted: Any, value: Any) -> tuple[int, list[list[ValidationError]]]:
    """Returns how many of the alternatives hold, and the errors of those that do not."""
    _check.get().spend()
    found = [list(_descend(validator, value, each)) for each in wanted]
    return sum(not errors for errors in found), [errors for errors in found if errors]


def _either(errors: list[list[ValidationError]]) -> str:
    """Says what would be accepted by one or another alternative."""
    words = []
    for alternative in errors[:4]:
        where = _path(alternative[0].path)
        words.append(f"{where + ' ' if where else ''}{alternative[0].message}"[:200])
    return "; or ".join(dict.fromkeys(words)) + ("; or others" if len(errors) > 4 else "")


def _any_of(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    held, errors = _alternatives(validator, wanted, value)
    if not held:
        yield ValidationError(_either(errors))


def _one_of(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    held, errors = _alternatives(validator, wanted, value)
    if not held:
        yield ValidationError(_either(errors))
    elif held > 1:
        yield ValidationError(f"must fulfil exactly one of {len(wanted)} alternatives, it fulfils {held}")


def _not(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    _check.get().spend()
    if _holds(validator, value, wanted):
        yield ValidationError(f"must not fulfil {_shown(wanted)}")


def _properties(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    _check.get().spend()
    if validator.is_type(value, "object"):
        for key, below in wanted.items():
            if key in value:
                yield from _descend(validator, value[key], below, key)


def _property_names(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    if validator.is_type(value, "object"):
        for key in value:
            for error in _descend(validator, key, wanted):
                yield ValidationError(f"the key {error.message}", path=(key,))


def _items(validator: Any, wanted: Any, value: Any, schema: Any) -> Errors:
    if validator.is_type(value, "array"):
        for index in range(len(schema.get("prefixItems", ())), len(value)):
            yield from _descend(validator, value[index], wanted, index)


def _prefix_items(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    if validator.is_type(value, "array"):
        for index, (item, below) in enumerate(zip(value, wanted, strict=False)):
            yield from _descend(validator, item, below, index)


def _all_of(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    for below in wanted:
        yield from _descend(validator, value, below)


def _if(validator: Any, wanted: Any, value: Any, schema: Any) -> Errors:
    branch = "then" if _holds(validator, value, wanted) else "else"
    if branch in schema:
        yield from _descend(validator, value, schema[branch])


def _dependent_schemas(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    if validator.is_type(value, "object"):
        for key, below in wanted.items():
            if key in value:
                yield from _descend(validator, value, below)


def _reference(validator: Any, wanted: Any, value: Any, _schema: Any) -> Errors:
    yield from _descend(validator, value, _check.get().schema.place(wanted))


def _descend(validator: Any, value: Any, below: Json, step: str | int | None = None) -> Errors:
    """Yields what a subschema finds wrong with a value, or with a part of one."""
    check = _check.get()
    check.spend()
    if below is True:
        return
    if below is False:
        yield ValidationError("must be left out", path=() if step is None else (step,))
        return
    for error in check.schema.inner(validator, below).iter_errors(value):
        if step is not None:
            error.path.appendleft(step)
        yield error


def _holds(validator: Any, value: Any, below: Json) -> bool:
    """Says whether a value fulfils a subschema."""
    return next(_descend(validator, value, below), None) is None


_LEAVES: Final[Mapping[str, _Leaf]] = {
    "const": _Leaf(None, lambda v, w: _canonical(v) == _canonical(w), lambda w: f"must be {_shown(w)}"),
    "exclusiveMaximum": _Leaf("number", lambda v, w: v < w, lambda w: f"must be less than {_shown(w)}"),
    "exclusiveMinimum": _Leaf("number", lambda v, w: v > w, lambda w: f"must be more than {_shown(w)}"),
    "maxItems": _Leaf(
        "array", lambda v, w: len(v) <= w, lambda w: f"must have at most {_count(w, 'entry', 'entries')}"
    ),
    "maxLength": _Leaf("string", lambda v, w: len(v) <= w, lambda w: f"must have at most {_count(w, 'character')}"),
    "maxProperties": _Leaf("object", lambda v, w: len(v) <= w, lambda w: f"must have at most {_count(w, 'field')}"),
    "maximum": _Leaf("number", lambda v, w: v <= w, lambda w: f"must be at most {_shown(w)}"),
    "minItems": _Leaf(
        "array", lambda v, w: len(v) >= w, lambda w: f"must have at least {_count(w, 'entry', 'entries')}"
    ),
    "minLength": _Leaf("string", lambda v, w: len(v) >= w, lambda w: f"must have at least {_count(w, 'character')}"),
    "minProperties": _Leaf("object", lambda v, w: len(v) >= w, lambda w: f"must have at least {_count(w, 'field')}"),
    "minimum": _Leaf("number", lambda v, w: v >= w, lambda w: f"must be at least {_shown(w)}"),
    "multipleOf": _Leaf("number", _is_multiple, lambda w: f"must be a multiple of {_shown(w)}"),
    "pattern": _Leaf("string", lambda v, w: bool(expression(w).search(v)), lambda w: f"must match {w}"),
    "uniqueItems": _Leaf(
        "array", lambda v, w: not w or len(set(map(_canonical, v))) == len(v), lambda _: "must name each entry once"
    ),
}

_Validator: Final[Any] = extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    {
        **_LEAVES,
        "$ref": _reference,
        "additionalProperties": _additional_properties,
        "allOf": _all_of,
        "anyOf": _any_of,
        "contains": _contains,
        "dependentRequired": _dependent_required,
        "dependentSchemas": _dependent_schemas,
        "enum": _enum,
        "if": _if,
        "items": _items,
        "not": _not,
        "oneOf": _one_of,
        "patternProperties": _pattern_properties,
        "prefixItems": _prefix_items,
        "properties": _properties,
        "propertyNames": _property_names,
        "required": _required,
        "type": _type,
    },
)
# What a schema may say: the keywords above, and those that only describe.
_KNOWN: Final = frozenset(_Validator.VALIDATORS) | frozenset(
    (
        "$anchor", "$comment", "$defs", "$id", "$schema", "$vocabulary", "contentEncoding", "contentMediaType",
        "contentSchema", "default", "definitions", "deprecated", "description", "else", "examples", "format",
        "maxContains", "minContains", "readOnly", "then", "title", "writeOnly",
    )
)  # fmt: skip
