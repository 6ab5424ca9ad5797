"""Numbers as people say them: shares in percent, counted things, spans of time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta


def percent(basis_points: int) -> str:
    """A share: 2,050 → `20.5 %`."""
    return f"{basis_points / 100:g} %"


def count(number: int, thing: str) -> str:
    """A counted thing: `1 replica`, `3 replicas`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def span(time: timedelta) -> str:
    """A span of time: `8 s`, `0.5 s`, `90 s`, `15 min`, `2 h 5 min`."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 120:
        return f"{round(seconds, 1):g} s" if seconds < 10 else f"{round(seconds)} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def listed(names: Sequence[str]) -> str:
    """Names in a row: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def be(number: int) -> str:
    """`is` or `are`, by how many there are."""
    return "is" if number == 1 else "are"
