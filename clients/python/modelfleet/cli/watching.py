"""Following a resource until it has ended, also when the service is away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from modelfleet.errors import ModelfleetError

# How long a watch goes on without an answer, and how long it waits before it asks again.
_PATIENCE_SECONDS, _PAUSE_SECONDS = 120.0, 0.5

M = TypeVar("M")


def updates(watch: Callable[[], Iterable[M]], has_ended: Callable[[M], bool]) -> Iterator[M]:
    """Gives every change of a resource until it has ended; goes on when the service was away, as the work itself does.

    Args:
        watch: begins a watch; its first answer is the present state, so one that is begun again misses nothing.
        has_ended: whether a state is the last one.
    """
    heard = time.monotonic()
    last: M | None = None
    while last is None or not has_ended(last):
        try:
            for last in watch():
                heard = time.monotonic()
                yield last
        except ModelfleetError as error:
            # Without a reason it is no service's word: the connection was lost on the way.
            lost = error.reason in {"", "PART_UNAVAILABLE", "DEADLINE_PASSED", "OVERLOADED"}
            if not lost or last is None or time.monotonic() - heard > _PATIENCE_SECONDS:
                raise
        if last is None or not has_ended(last):
            time.sleep(_PAUSE_SECONDS)
