"""Numbers as people say them: shares in percent, counted things, spans of time."""

from __future__ import annotations

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
