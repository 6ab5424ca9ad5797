"""Turns at a pool: those who want the same rows queue here, and not at the rows, each with a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets a few at a time work on each key, in the order in which they came. Only spares connections: rows decide."""

    def __init__(self, at_a_time: int) -> None:
        self._at_a_time = at_a_time
        self._queues: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Waits for a turn at a key and holds it."""
        queue, users = self._queues.get(key) or (asyncio.Semaphore(self._at_a_time), 0)
        self._queues[key] = (queue, users + 1)
        try:
            async with queue:
                yield
        finally:
            users = self._queues[key][1] - 1
            if users:
                self._queues[key] = (queue, users)
            else:
                del self._queues[key]
