"""Time, passed in wherever it matters, so that tests and the simulator own it. Standard library only."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What code that depends on time is given."""

    def now(self) -> datetime:
        """Returns the time of day, aware, in UTC."""

    def monotonic(self) -> float:
        """Returns seconds from some fixed moment; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Returns after that many seconds of this clock."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, start: datetime = datetime(2025, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), wake))
        await wake

    @property
    def next_wake(self) -> float | None:
        """When the next sleeper is due, in seconds of `monotonic`; None while nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def set(self, seconds: float) -> None:
        """Moves to that many seconds after the start and wakes whoever is due. Never moves back."""
        if seconds < self._elapsed:
            raise ValueError(f"the clock stands at {self._elapsed} s and cannot go back to {seconds} s")
        self._elapsed = seconds
        while (due := self.next_wake) is not None and due <= self._elapsed:
            _, _, wake = heapq.heappop(self._sleepers)
            wake.set_result(None)

    async def advance(self, seconds: float) -> None:
        """Lets that many seconds pass, sleeper by sleeper in the order in which they are due."""
        end = self._elapsed + seconds
        await _settle()
        while (due := self.next_wake) is not None and due <= end:
            self.set(due)
            await _settle()
        self.set(end)
        await _settle()


async def _settle() -> None:
    """Lets woken tasks run until they sleep again: a few turns of the loop, since a task may wake another."""
    for _ in range(10):
        await asyncio.sleep(0)
