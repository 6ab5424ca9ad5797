"""Work that comes while other work is being done is done together, next: one commit for all that waited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclass(eq=False, slots=True)
class _Waiting(Generic[W]):
    work: W
    # Set when it is done, or when it is this one's turn to do it.
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    done: bool = False
    # Nobody waits for it any more.
    gone: bool = False


class Turns(Generic[W]):
    """Does work one batch after the other. Whoever finds nobody at work does the first; of those who wait, the first in
    line does the next batch, with its own deadline and in its own task: there is nothing in the background.

    Args:
        act: does several pieces of work, and keeps what became of each. Raises where none of them was done.
        most: what the pieces of a batch may weigh together; one that weighs more is done alone.
        weight: of a piece.
    """

    def __init__(
        self, act: Callable[[Sequence[W]], Awaitable[None]], most: int, weight: Callable[[W], int] = lambda _: 1
    ) -> None:
        self._act = act
        self._most = most
        self._weight = weight
        self._waiting: deque[_Waiting[W]] = deque()
        self._at_work: _Waiting[W] | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody is at work, or waits to be."""
        return self._at_work is None

    async def do(self, work: W) -> None:
        """Returns once the work was done, alone or among others.

        Raises:
            Exception: what `act` raised when this one did the batch. It says nothing about the others: they do theirs.
        """
        own = _Waiting(work)
        self._waiting.append(own)
        if self._at_work is None:
            self._at_work = own
        else:
            await self._turn(own)
        if not own.done:
            try:
                await self._batch()
            finally:
                self._pass_on()

    async def _turn(self, own: _Waiting[W]) -> None:
        try:
            await own.woken.wait()
        except asyncio.CancelledError:
            own.gone = True
            if own in self._waiting:
                self._waiting.remove(own)
            if self._at_work is own:
                self._pass_on()
            raise

    async def _batch(self) -> None:
        batch = [self._waiting.popleft()]
        left = self._most - self._weight(batch[0].work)
        while self._waiting and (left := left - self._weight(self._waiting[0].work)) >= 0:
            batch.append(self._waiting.popleft())
        try:
            await self._act([each.work for each in batch])
        except BaseException:
            # The one at work is told; nobody else's work was done, so it comes first again.
            self._waiting.extendleft(each for each in reversed(batch[1:]) if not each.gone)
            raise
        for each in batch:
            each.done = True
            each.woken.set()

    def _pass_on(self) -> None:
        self._at_work = self._waiting[0] if self._waiting else None
        if self._at_work is not None:
            self._at_work.woken.set()
