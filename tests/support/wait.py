"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any


async def until(predicate: Callable[[], Any], timeout: float = 30.0, every: float = 0.02) -> Any:
    """Returns the first true value of a predicate, plain or async.

    Raises:
        AssertionError: it was never true before the timeout; shows the last value.
    """
    end = time.monotonic() + timeout
    while True:
        found = predicate()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if time.monotonic() >= end:
            asked = predicate.func if isinstance(predicate, partial) else predicate
            raise AssertionError(f"not true within {timeout} s: {inspect.getsource(asked).strip()}; last: {value!r}")
        await asyncio.sleep(every)
