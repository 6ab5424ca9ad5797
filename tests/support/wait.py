"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any

# A look costs a call or more, and most of what is waited for takes seconds: the longer it takes, the less often it is
# looked for, so that whoever waits does not slow down whom it waits for.
_PART, _LONGEST = 20, 0.1


async def until(predicate: Callable[[], Any], timeout: float = 30.0, every: float = 0.02) -> Any:
    """Returns the first true value of a predicate, plain or async.

    Args:
        predicate: what is waited for.
        timeout: seconds.
        every: seconds from look to look at first; later a twentieth of what has passed, and at most a tenth of one.

    Raises:
        AssertionError: it was never true before the timeout; shows the last value.
    """
    begin = time.monotonic()
    end = begin + timeout
    while True:
        found = predicate()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if time.monotonic() >= end:
            asked = predicate.func if isinstance(predicate, partial) else predicate
            raise AssertionError(f"not true within {timeout} s: {inspect.getsource(asked).strip()}; last: {value!r}")
        await asyncio.sleep(max(every, min((time.monotonic() - begin) / _PART, _LONGEST)))
