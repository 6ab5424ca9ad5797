"""Long work in slices: others go on between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
Pause = Callable[[], Awaitable[object]]

# How long one call may keep all others of this process from going on.
_SLICE_SECONDS = 0.005


async def give_way() -> None:
    """Lets others go on."""
    await asyncio.sleep(0)


async def in_slices(items: Iterable[T], pause: Pause = give_way) -> AsyncIterator[T]:
    """Yields items that take a while to make, and lets others go on between."""
    end = time.monotonic() + _SLICE_SECONDS
    for item in items:
        yield item
        if time.monotonic() > end:
            await pause()
            end = time.monotonic() + _SLICE_SECONDS
