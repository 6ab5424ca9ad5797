"""Files that people write are read field by field; whatever is wrong is said at once, each with its line. Pure."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import yaml

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a file."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class ScenarioInvalid(Exception):
    """A file says nothing that can be rehearsed; every problem of it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        super().__init__("\n".join(map(str, self.problems)))


class Reader:
    """A mapping of the file: takes fields one by one, and collects what is wrong."""

    def __init__(self, node: yaml.MappingNode, problems: list[Problem] | None = None, path: str = "") -> None:
        self.problems: list[Problem] = [] if problems is None else problems
        self.line = node.start_mark.line + 1
        self._path = path
        self._fields: dict[str, yaml.Node] = {}
        self._known: list[str] = []
        for key, value in node.value:
            name = str(key.value)
            if name in self._fields:
                self.problems.append(Problem(key.start_mark.line + 1, f"{path}{name} is there twice"))
            self._fields[name] = value

    def complain(self, message: str, name: str = "") -> None:
        """Something is wrong with a field, or with the whole."""
        node = self._fields.get(name)
        self.problems.append(Problem(node.start_mark.line + 1 if node else self.line, message))

    def take(
        self, name: str, read: Callable[[str], Any], accepted: str, default: Any = None, *, must: bool = False
    ) -> Any:
        """A scalar; `read` raises ValueError where it is none that is accepted."""
        self._known.append(name)
        node = self._fields.get(name)
        if node is None:
            if must:
                self.complain(f"{self._path}{name} is missing; it is {accepted}")
            return default
        if isinstance(node, yaml.ScalarNode):
            try:
                return read(str(node.value).strip())
            except ValueError:
                pass
        said = f"'{node.value}'" if isinstance(node, yaml.ScalarNode) else "this"
        self.complain(f"{self._path}{name}: {said} is not accepted; it is {accepted}", name)
        return default

    def section(self, name: str) -> Reader:
        """A mapping within; empty where it is not there."""
        self._known.append(name)
        node = self._fields.get(name)
        if isinstance(node, yaml.MappingNode):
            return Reader(node, self.problems, f"{self._path}{name}.")
        if node is not None:
            self.complain(f"{self._path}{name} must be a mapping", name)
        mark = yaml.Mark("", 0, self.line - 1, 0, None, 0)
        return Reader(yaml.MappingNode("tag:yaml.org,2002:map", [], mark, mark), self.problems, f"{self._path}{name}.")

    def each(self, name: str) -> list[Reader]:
        """The mappings of a list; none where it is not there."""
        self._known.append(name)
        node = self._fields.get(name)
        if node is None:
            return []
        items = node.value if isinstance(node, yaml.SequenceNode) else [node.value]
        if len(items) <= 1_000 and all(isinstance(item, yaml.MappingNode) for item in items):
            return [Reader(item, self.problems, f"{self._path}{name}[{number}].") for number, item in enumerate(items)]
        self.complain(f"{self._path}{name} must be a list of at most 1,000 mappings", name)
        return []

    @property
    def is_empty(self) -> bool:
        """Whether it has no field."""
        return not self._fields

    def has(self, name: str) -> bool:
        """Whether a field is there."""
        return name in self._fields

    def knows(self, name: str) -> None:
        """A field may be there although nobody takes it."""
        if name not in self._known:
            self._known.append(name)

    def end(self) -> None:
        """What nobody asked for is not known."""
        for name in self._fields:
            if name not in self._known:
                near = difflib.get_close_matches(str(name), self._known, n=1)
                meant = f" (is it {near[0]}?)" if near else ""
                self.complain(f"{self._path}{name} is not known{meant}; there are: {', '.join(self._known)}", name)


def seconds_of(text: str) -> float:
    """Seconds of a time such as 90s, 5m, 1h 30m or 2d."""
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError(text)
    found = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if found > 365 * 86_400:
        raise ValueError(text)
    return found


def share_of(text: str) -> int:
    """Basis points of a share such as 20% or 0.5%."""
    found = _percent(text) * 100
    if found != round(found):
        raise ValueError(text)
    return round(found)


def _percent(text: str) -> float:
    if not text.endswith("%"):
        raise ValueError(text)
    found = float(text[:-1])
    if not 0 <= found <= 100:
        raise ValueError(text)
    return round(found, 6)


def rate_of(text: str) -> float:
    """A share such as 2%, as a number from 0 to 1."""
    return _percent(text) / 100


def range_of(text: str) -> tuple[float, float]:
    """Seconds of a range such as 30s-90s, or of one time."""
    least, _, most = text.partition("-")
    found = seconds_of(least), seconds_of(most or least)
    if found[0] > found[1]:
        raise ValueError(text)
    return found


def flag_of(text: str) -> bool:
    """True or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number within limits."""

    def read(text: str) -> int:
        found = int(text.replace(",", "").replace("_", ""))
        if not least <= found <= most:
            raise ValueError(text)
        return found

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Reads a number within limits."""

    def read(text: str) -> float:
        found = float(text)
        if not math.isfinite(found) or not least <= found <= most:
            raise ValueError(text)
        return found

    return read


def one_of(words: Iterable[str]) -> Callable[[str], str]:
    """Reads one of some words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return read
