"""Filters of lists (AIP-160): from text to an expression over the fields that a list can be filtered by.

    role = EXPERIMENT AND NOT labels.owner:*
    team = feed AND (tier <= TIER1 OR funnel_stage = SOURCING)

| written | holds where |
| --- | --- |
| `field = value`, `field != value` | it is, or is not, the value; `*` in a text stands for anything |
| `field < value`, `<=`, `>`, `>=` | it has a value on that side: numbers, times, enums in the order of the API |
| `field:value` | the text contains it, upper and lower case alike; one of several values is it; a map has the key |
| `field:*` | it is set |
| `NOT a`, `-a` | `a` does not hold; so `!=` and NOT also find entries that lack the field |
| `a AND b`, `a b` | both hold |
| `a OR b` | one of them holds; OR binds more tightly than AND, as the AIP has it |

`parse` knows the grammar, `bind` the fields. What a bound expression says of an entry is up to whoever holds the
entries: an index, SQL, or `matches`, which looks at the values one by one. Everything is bounded: length, depth, number
of terms, and of those among them that search texts.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from modelfleetd.errors import FieldViolation, InvalidFields, invalid

MAX_LENGTH: Final = 10_000
MAX_DEPTH: Final = 20
MAX_TERMS: Final = 100
MAX_SEARCHES: Final = 10

# Times are microseconds since 1970, values of enums their numbers.
Scalar: TypeAlias = str | float | bool


# --- grammar ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison as it was written."""

    path: tuple[str, ...]
    operator: str
    value: str
    quoted: bool
    # Of the first character of the path and of the value, counted from 1.
    at: int = field(default=1, compare=False)
    value_at: int = field(default=1, compare=False)

    def __str__(self) -> str:
        path = ".".join(name if _NAME.fullmatch(name) else _quote(name) for name in self.path)
        return f"{path} {self.operator} {_quote(self.value) if self.quoted else self.value}"


@dataclass(frozen=True, slots=True)
class Not:
    """What holds where its part does not."""

    part: Node

    def __str__(self) -> str:
        return f"NOT ({self.part})" if isinstance(self.part, Not) else f"NOT {_in_parentheses(self.part)}"


@dataclass(frozen=True, slots=True)
class And:
    """What holds where all of its parts do: two or more, none of them an And."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " AND ".join(map(_in_parentheses, self.parts))


@dataclass(frozen=True, slots=True)
class Or:
    """What holds where one of its parts does: two or more, none of them an Or."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " OR ".join(map(_in_parentheses, self.parts))


def both(parts: Sequence[Node]) -> Node:
    """Returns what holds where all of the parts do."""
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, And) else (part,))]
    return flat[0] if len(flat) == 1 else And(tuple(flat))


def either(parts: Sequence[Node]) -> Node:
    """Returns what holds where one of the parts does."""
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, Or) else (part,))]
    return flat[0] if len(flat) == 1 else Or(tuple(flat))


# The first name of a path; later ones may begin with a digit, and hold anything in quotes.
_FIRST_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_OPERATOR = re.compile(r"\s*(<=|>=|!=|=|<|>|:)\s*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_BARE = re.compile(r"[^\s()\"'=<>!,]+")
_WORDS = {word: re.compile(rf"{word}(?![^\s(])") for word in ("AND", "OR", "NOT")}
_SPACE = re.compile(r"\s*")
_SHOWN = 40


def parse(text: str, name: str = "filter") -> Node | None:
    """Returns the expression that a text is; None for one that is empty: everything fits.

    Args:
        text: of the filter.
        name: of its field in the request.

    Raises:
        InvalidFields: it is too long, or no filter; says where and what would be accepted.
    """
    if len(text) > MAX_LENGTH:
        raise invalid(name, f"must have at most {MAX_LENGTH} characters")
    parser = _Parser(text, name)
    return None if parser.at_end() else parser.whole()


class _Parser:
    """Goes through the text once, from left to right. Its errors say where it stands."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._at = 0
        self._terms = 0
        self._depth = 0

    def whole(self) -> Node:
        found = self._expression()
        if not self.at_end():
            raise self._wrong("')' closes nothing")
        return found

    def at_end(self) -> bool:
        self._skip(_SPACE)
        return self._at == len(self._text)

    def _expression(self) -> Node:
        parts = [self._alternatives()]
        # AND may be left out.
        while not self.at_end() and self._text[self._at] != ")":
            self._skip(_WORDS["AND"])
            parts.append(self._alternatives())
        return both(parts)

    def _alternatives(self) -> Node:
        parts = [self._term()]
        while not self.at_end() and self._skip(_WORDS["OR"]):
            parts.append(self._term())
        return either(parts)

    def _term(self) -> Node:
        self._skip(_SPACE)
        if self._skip(_WORDS["NOT"]) or self._take("-"):
            return Not(self._simple())
        return self._simple()

    def _simple(self) -> Node:
        self._skip(_SPACE)
        opened = self._at
        if not self._take("("):
            return self._comparison()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"parentheses are nested more than {MAX_DEPTH} deep", opened)
        found = self._expression()
        if not self._take(")"):
            raise self._wrong("this '(' is never closed", opened)
        self._depth -= 1
        return found

    def _comparison(self) -> Comparison:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise self._wrong(f"there are more than {MAX_TERMS} comparisons")
        at, path = self._at, self._path()
        operator = _OPERATOR.match(self._text, self._at)
        if operator is None:
            shown = ".".join(path)
            hint = f"; write {shown.upper()} in capitals" if shown.upper() in _WORDS else ""
            raise self._wrong(f"'{shown[:_SHOWN]}' needs one of = != < <= > >= : and a value{hint}", at)
        self._at = operator.end()
        value_at = self._at
        value, quoted = self._value()
        return Comparison(path, operator[1], value, quoted, at + 1, value_at + 1)

    def _path(self) -> tuple[str, ...]:
        first = _FIRST_NAME.match(self._text, self._at)
        if first is None or first[0] in _WORDS:
            raise self._wrong("expected a comparison such as role = BASELINE")
        self._at = first.end()
        path = [first[0]]
        while self._take("."):
            quoted = self._string()
            if quoted is not None:
                path.append(quoted)
                continue
            name = _NAME.match(self._text, self._at)
            if name is None:
                raise self._wrong("expected a name after the dot; put it in quotes if it holds other characters")
            self._at = name.end()
            path.append(name[0])
        return tuple(path)

    def _value(self) -> tuple[str, bool]:
        quoted = self._string()
        if quoted is not None:
            return quoted, True
        bare = _BARE.match(self._text, self._at)
        if bare is None:
            raise self._wrong('expected a value; text is best put in quotes, as in "teams/feed"')
        self._at = bare.end()
        if self._at < len(self._text) and not (self._text[self._at].isspace() or self._text[self._at] in "()"):
            raise self._wrong("a value that holds quotes, commas or any of = < > ! must be put in quotes", bare.start())
        return bare[0], False

    def _string(self) -> str | None:
        """Takes text in quotes; None where there is none."""
        if self._text[self._at : self._at + 1] not in ('"', "'"):
            return None
        found = _STRING.match(self._text, self._at)
        if found is None:
            raise self._wrong("these quotes are never closed")
        for escape in _ESCAPE.finditer(found[0]):
            if escape[1] not in "\\\"'":
                raise self._wrong("after a backslash only a backslash or quotes may stand", found.start())
        self._at = found.end()
        return _ESCAPE.sub(r"\1", found[0][1:-1])

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Goes on behind what fits the pattern here; says whether anything does."""
        found = pattern.match(self._text, self._at)
        if found is None:
            return False
        self._at = found.end()
        return True

    def _take(self, character: str) -> bool:
        taken = self._text.startswith(character, self._at)
        self._at += taken
        return taken

    def _wrong(self, what: str, at: int | None = None) -> InvalidFields:
        return invalid(self._name, _located(what, self._at + 1 if at is None else at + 1))


def _located(what: str, at: int) -> str:
    return f"at character {at}: {what}"


def _in_parentheses(node: Node) -> str:
    return f"({node})" if isinstance(node, (And, Or)) else str(node)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- fields -----------------------------------------------------------------------------------------------------------


class Kind(enum.Enum):
    """What the values of a field are."""

    TEXT = "text"
    ENUM = "enum"
    NUMBER = "number"
    BOOL = "bool"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Field:
    """A field that a list can be filtered by."""

    path: str
    kind: Kind = Kind.TEXT
    # It has several values, or one by key.
    many: bool = False
    keyed: bool = False
    # The numbers of an enum's values, by their names.
    numbers: Mapping[str, int] = field(default_factory=dict)
    # What stands before the id in the names that it holds, `teams/`: the id alone then suffices.
    prefix: str = ""
    # Text that differs from entry to entry and that people search rather than name: it is not indexed.
    prose: bool = False
    # The field that leads to the entry which has it, where that is another one.
    of: str = ""

    @property
    def shown(self) -> str:
        """The field as people write it; of another entry's, one for all."""
        return f"{self.of}.FIELD" if self.of else f"{self.path}.KEY" if self.keyed else self.path


class Operator(enum.Enum):
    """How a value is held against the one that is asked for."""

    PRESENT = ":*"
    EQUAL = "="
    LIKE = "like"
    CONTAINS = "contains"
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


_ORDER: Final = {
    "<": Operator.LESS,
    "<=": Operator.LESS_OR_EQUAL,
    ">": Operator.GREATER,
    ">=": Operator.GREATER_OR_EQUAL,
}


@dataclass(frozen=True, slots=True)
class Restriction:
    """What holds where one of a field's values passes the test. A field without values passes none."""

    field: Field
    # Of the value, in a field with values by key; empty: any.
    key: str
    operator: Operator
    value: Scalar = ""

    def test(self) -> Callable[[Scalar], bool]:
        """Returns the test of a value."""
        return _TESTS[self.operator](self.value)

    def passing(self, values: Iterable[Any]) -> list[Any]:
        """Returns the values that pass the test, as fast as so many texts can be looked at."""
        if self.operator is Operator.CONTAINS:
            wanted = str(self.value).casefold()
            return [value for value in values if wanted in value.casefold()]
        return list(filter(self.test(), values))

    @property
    def searches(self) -> bool:
        """Whether it has to look into texts one by one."""
        return self.field.prose or self.operator in (Operator.LIKE, Operator.CONTAINS)

    def __str__(self) -> str:
        where = f"{self.field.path}.{_quote(self.key)}" if self.key else self.field.path
        return where + (":*" if self.operator is Operator.PRESENT else f" {self.operator.value} {self.value!r}")


Node: TypeAlias = Comparison | Restriction | Not | And | Or


def bind(node: Node, fields: Mapping[str, Field], name: str = "filter") -> Node:
    """Returns the expression with each comparison as a restriction of a field.

    Args:
        node: as it was parsed.
        fields: by path.
        name: of the filter's field in the request.

    Raises:
        InvalidFields: comparisons with what is no field, or not as the field can be compared; all of them.
    """
    wrong: list[FieldViolation] = []
    searches = 0

    def bound(node: Node) -> Node:
        nonlocal searches
        match node:
            case And(parts):
                return both([bound(part) for part in parts])
            case Or(parts):
                return either([bound(part) for part in parts])
            case Not(part):
                return Not(bound(part))
            case Restriction():
                return node
        try:
            made = _restriction(node, fields)
        except _Refused as refused:
            wrong.append(FieldViolation(name, _located(refused.what, refused.at)))
            return node
        inner = made.part if isinstance(made, Not) else made
        searches += isinstance(inner, Restriction) and inner.searches
        return made

    made = bound(node)
    if searches > MAX_SEARCHES:
        wrong.append(
            FieldViolation(name, f"must search texts, by `:` or by `*` in a value, at most {MAX_SEARCHES} times")
        )
    if wrong:
        raise InvalidFields(wrong)
    return made


def read(text: str, fields: Mapping[str, Field], name: str = "filter") -> Node | None:
    """Returns the bound expression that a text is; None where everything fits. Raises as `parse` and `bind` do."""
    parsed = parse(text, name)
    return None if parsed is None else bind(parsed, fields, name)


def matches(node: Node, values_of: Callable[[Restriction], Iterable[Scalar]]) -> bool:
    """Says whether a bound expression holds.

    Args:
        node: the expression.
        values_of: gives the values that an entry has in a restriction's field.
    """
    match node:
        case And(parts):
            return all(matches(part, values_of) for part in parts)
        case Or(parts):
            return any(matches(part, values_of) for part in parts)
        case Not(part):
            return not matches(part, values_of)
        case Restriction():
            return any(map(node.test(), values_of(node)))
        case _:
            raise TypeError("the expression is not bound to fields")


class _Refused(Exception):
    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.what = what
        self.at = at


def _restriction(asked: Comparison, fields: Mapping[str, Field]) -> Node:
    found, key = _find(asked, fields)
    is_any = asked.operator == ":" and asked.value == "*" and not asked.quoted
    if is_any:
        return Restriction(found, key, Operator.PRESENT)
    if found.keyed and not key:
        # A map has a key.
        return Restriction(found, asked.value, Operator.PRESENT)
    if asked.operator in _ORDER:
        if found.kind not in (Kind.ENUM, Kind.NUMBER, Kind.TIME) or found.many:
            raise _Refused(f"{found.path} has no order; it takes {_operators(found)}", asked.at)
        return Restriction(found, key, _ORDER[asked.operator], _scalar(found, asked))
    made = _equality(found, key, asked)
    return Not(made) if asked.operator == "!=" else made


def _find(asked: Comparison, fields: Mapping[str, Field]) -> tuple[Field, str]:
    """Returns the field of a comparison, and the key in it."""
    found = fields.get(".".join(asked.path))
    if found is None and len(asked.path) > 1:
        keyed = fields.get(".".join(asked.path[:-1]))
        if keyed is not None and keyed.keyed:
            return keyed, asked.path[-1]
    if found is None:
        known = ", ".join(sorted({each.shown for each in fields.values()}))
        shown = ".".join(asked.path)[:_SHOWN]
        near = "".join(f" (do you mean '{path}'?)" for path in get_close_matches(shown, fields, 1))
        raise _Refused(f"this list cannot be filtered by '{shown}'{near}, but by {known}", asked.at)
    if found.keyed and asked.operator != ":":
        raise _Refused(f"{found.path} is a map; write {found.path}.KEY {asked.operator} VALUE", asked.at)
    if found.many and asked.operator != ":":
        ask = f"write {found.path}:VALUE, with NOT before it for the opposite"
        raise _Refused(f"{found.path} has several values; {ask}", asked.at)
    return found, ""


def _operators(found: Field) -> str:
    return ":" if found.many else "= and !=" if found.kind is Kind.BOOL else "=, != and :"


def _equality(found: Field, key: str, asked: Comparison) -> Node:
    """Returns the restriction of `=`, `!=` and `:`; that something is not so is up to the caller."""
    if found.kind is not Kind.TEXT:
        return Restriction(found, key, Operator.EQUAL, _scalar(found, asked))
    value = asked.value
    if asked.operator == ":" and not found.many:
        return Restriction(found, key, Operator.CONTAINS, value)
    if not value and not key:
        # Text that is empty is not set.
        return Not(Restriction(found, key, Operator.PRESENT))
    if "/" not in value:
        value = found.prefix + value
    return Restriction(found, key, Operator.LIKE if "*" in value else Operator.EQUAL, value)


def _scalar(found: Field, asked: Comparison) -> Scalar:
    value = asked.value
    if found.kind is Kind.ENUM:
        if value in found.numbers:
            return found.numbers[value]
        unset = f"; NOT {found.path}:* finds those without" if value.endswith("_UNSPECIFIED") else ""
        raise _Refused(f"{found.path} is one of {', '.join(found.numbers)}{unset}", asked.value_at)
    if found.kind is Kind.BOOL:
        if value in ("true", "false"):
            return value == "true"
        raise _Refused(f"{found.path} is true or false", asked.value_at)
    if found.kind is Kind.NUMBER:
        return _number(found, asked)
    return _time(found, asked)


def _number(found: Field, asked: Comparison) -> float:
    try:
        number = float(asked.value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _Refused(f"{found.path} is a number, such as 12 or 0.5", asked.value_at)
    return number


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _time(found: Field, asked: Comparison) -> float:
    wrong = f"{found.path} is a time, such as 2026-01-31 (UTC) or 2026-01-31T08:00:00Z"
    try:
        moment = datetime.fromisoformat(asked.value)
    except ValueError:
        raise _Refused(wrong, asked.value_at) from None
    if moment.tzinfo is None:
        if "T" in asked.value or " " in asked.value:
            raise _Refused(f"{wrong}; say in which zone", asked.value_at)
        moment = moment.replace(tzinfo=UTC)
    since = moment - _EPOCH
    return float((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


# --- tests of a value -------------------------------------------------------------------------------------------------


def _contains(text: Scalar) -> Callable[[Scalar], bool]:
    wanted = str(text).casefold()
    return lambda value: wanted in str(value).casefold()


def _like(pattern: Scalar) -> Callable[[Scalar], bool]:
    """Returns the test against a text in which `*` stands for anything. Linear, where a regular expression is not."""
    first, *middle, last = str(pattern).split("*")

    def like(value: Scalar) -> bool:
        text = str(value)
        end = len(text) - len(last)
        if not (text.startswith(first) and text.endswith(last)):
            return False
        at = len(first)
        for part in middle:
            at = text.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return at <= end

    return like


def _than(compare: Callable[[float, float], bool]) -> Callable[[Scalar], Callable[[Scalar], bool]]:
    def test(limit: Scalar) -> Callable[[Scalar], bool]:
        return lambda value: compare(float(value), float(limit))

    return test


_TESTS: Final[Mapping[Operator, Callable[[Scalar], Callable[[Scalar], bool]]]] = {
    Operator.PRESENT: lambda _: lambda _: True,
    Operator.EQUAL: lambda wanted: lambda value: value == wanted,
    Operator.LIKE: _like,
    Operator.CONTAINS: _contains,
    Operator.LESS: _than(float.__lt__),
    Operator.LESS_OR_EQUAL: _than(float.__le__),
    Operator.GREATER: _than(float.__gt__),
    Operator.GREATER_OR_EQUAL: _than(float.__ge__),
}
