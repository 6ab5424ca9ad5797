"""A measured number, beside what it is held against."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measurement."""

    name: str
    """What was measured, `part.what`: `registry.point_get`."""
    value: float
    unit: str
    yardstick: str = ""
    """What the ratio is to, in words: "empty grpc.aio method on the same machine, 41,000 calls/s"."""
    ratio: float | None = None
    """The value over the yardstick's."""
    target: float
    """For the ratio where there is one, else for the value."""
    better: Literal["lower", "higher"]
    """On which side of the target is good."""

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        judged = self.value if self.ratio is None else self.ratio
        return judged <= self.target if self.better == "lower" else judged >= self.target

    def as_dict(self) -> dict[str, object]:
        """Returns it as build/bench.json keeps it."""
        fields = dataclasses.asdict(self)
        del fields["better"]
        return {**fields, "met": self.met}


def write(figures: Sequence[Figure], path: Path) -> None:
    """Writes figures as a list; those that are not measured this time stay as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {str(figure["name"]): figure for figure in _read(path)}
    known |= {figure.name: figure.as_dict() for figure in figures}
    path.write_text(json.dumps([known[name] for name in sorted(known)], indent=2) + "\n")


def table(figures: Sequence[Figure]) -> Table:
    """Returns figures as a table for people."""
    made = Table(title="Measurements")
    for title in ("figure", "value", "ratio", "target", ""):
        made.add_column(title, justify="right" if title in {"value", "ratio", "target"} else "left", no_wrap=True)
    for figure in figures:
        sign = "≤" if figure.better == "lower" else "≥"
        made.add_row(
            figure.name,
            f"{figure.value:,.3g} {figure.unit}" if figure.value < 100 else f"{figure.value:,.0f} {figure.unit}",
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            f"{sign} {figure.target:g}",
            "met" if figure.met else "MISSED",
        )
    return made


def _read(path: Path) -> list[dict[str, object]]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) else []
