"""A changed copy of a frozen dataclass is what `dataclasses.replace` makes, whatever kind of class it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from modelfleetd.launcher.domain.changes import replace


@dataclass(frozen=True, slots=True)
class Slotted:
    one: int
    two: str = "b"


@dataclass(frozen=True)
class Plain:
    one: int
    two: str = "b"


@dataclass(frozen=True, slots=True)
class Checked:
    one: int
    two: str = "b"

    def __post_init__(self) -> None:
        if self.one < 0:
            raise ValueError(self.one)


@dataclass(frozen=True, slots=True)
class Derived(Slotted):
    three: int = 3


@pytest.mark.parametrize("kind", [Slotted, Plain, Checked, Derived])
def test_a_copy_has_the_class_the_changes_and_everything_else(kind: Any) -> None:
    value = kind(1, "x")
    made = replace(value, one=2)
    assert type(made) is kind and made == dataclasses.replace(value, one=2)
    assert value == kind(1, "x") and hash(made) == hash(kind(2, "x"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.one = 3
    with pytest.raises(TypeError):
        replace(value, four=4)


def test_what_a_class_checks_is_checked_in_a_copy() -> None:
    with pytest.raises(ValueError, match="-1"):
        replace(Checked(1), one=-1)
