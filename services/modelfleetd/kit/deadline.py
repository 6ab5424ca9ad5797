"""How long the work at hand may still take: set by the server for each call, by workers for each round.

Statement timeouts and the deadlines of onward calls come from it, so that nobody works for a caller that has gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# The moment, on the monotonic clock, after which the result is of no use.
_end: ContextVar[float | None] = ContextVar("modelfleet_deadline", default=None)


def remaining() -> float | None:
    """Returns the seconds that are left, at least 0; None where nothing limits."""
    end = _end.get()
    return None if end is None else max(0.0, end - time.monotonic())


def start(seconds: float) -> None:
    """Sets the limit of the current task: for a server, whose every call is a task of its own."""
    _end.set(time.monotonic() + seconds)


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Limits what is done inside; an earlier limit from outside stays."""
    end = time.monotonic() + seconds
    outer = _end.get()
    token = _end.set(end if outer is None else min(outer, end))
    try:
        yield
    finally:
        _end.reset(token)
