"""Collects everything that is wrong with a resource, each with its path, before it is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.names import Pattern


class Violations:
    """Collects what is wrong, below one path."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: list[FieldViolation] = []

    def expect(self, holds: bool, path: str, description: str) -> None:
        """Notes a violation at a path below this one's unless something holds."""
        if not holds:
            self.found.append(FieldViolation(f"{self.path}.{path}" if self.path else path, description))

    def below(self, path: str) -> Violations:
        """Returns one for what is below a path of this one; what it collects is collected here."""
        made = Violations(f"{self.path}.{path}" if self.path else path)
        made.found = self.found
        return made

    def text(self, value: str, path: str, longest: int, *, least: int = 0) -> None:
        """Expects a text of some length."""
        if not least <= len(value) <= longest:
            wanted = f"at most {longest}" if least == 0 else f"{least} to {longest}"
            self.expect(False, path, f"must have {wanted} characters")

    def count(self, values: Sequence[object] | Mapping[str, object], path: str, most: int) -> None:
        """Expects no more than so many."""
        self.expect(len(values) <= most, path, f"must have at most {most} entries")

    def name(self, value: str, pattern: Pattern, path: str) -> None:
        """Expects a resource name."""
        self.expect(pattern.match(value) is not None, path, pattern.expectation)

    def unique(self, values: Sequence[str], path: str, item: str = "") -> None:
        """Expects that nothing is named twice."""
        seen: set[str] = set()
        for index, value in enumerate(values):
            if value in seen:
                self.expect(False, f"{path}[{index}]{item}", f"{value!r} is there twice; name each once")
            seen.add(value)

    def raise_if_any(self) -> None:
        """Raises InvalidFields with everything that was found."""
        if self.found:
            raise InvalidFields(self.found)
