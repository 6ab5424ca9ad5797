"""Background work of a service: one contract for starting and stopping it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self

from modelfleetd.clock import Clock

_log = logging.getLogger(__name__)
_RESTART_SECONDS = 1.0
_current: ContextVar[str] = ContextVar("modelfleet_worker", default="")


def current_worker() -> str:
    """Returns the name of the worker that this is done for; empty where it is done for none."""
    return _current.get()


class Worker(Protocol):
    """Something that runs as long as its service does. It is stopped by cancellation."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None: ...


class Workers:
    """Runs workers in the background: `async with Workers([...]):`. A worker that fails is logged and begun again."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers = tuple(workers)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(_keep_running(worker), name=worker.name) for worker in self._workers]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _keep_running(worker: Worker) -> None:
    _current.set(worker.name)
    while True:
        try:
            await worker.run()
            return
        except Exception:  # noqa: BLE001
            _log.exception("worker %s failed; it begins again", worker.name)
        await asyncio.sleep(_RESTART_SECONDS)


class Periodic:
    """Calls a function again and again. A round that fails is logged; the next one comes all the same."""

    def __init__(
        self,
        name: str,
        interval: float,
        act: Callable[[], Awaitable[object]],
        clock: Clock,
        *,
        jitter: float = 0.1,
    ) -> None:
        """Makes the worker.

        Args:
            name: in logs.
            interval: seconds from the end of one round to the begin of the next.
            act: one round.
            clock: that the interval is measured by.
            jitter: share of the interval by which it varies, so that replicas do not act at the same moment.
        """
        self.name = name
        self._interval = interval
        self._act = act
        self._clock = clock
        self._jitter = jitter
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Begins the next round now."""
        self._woken.set()

    async def run(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._act()
            except Exception as error:  # noqa: BLE001
                _log.warning("%s: this round failed: %s: %s", self.name, type(error).__name__, error)
                _log.debug("%s: this round failed", self.name, exc_info=error)
            await self._pause()

    async def _pause(self) -> None:
        pause = self._interval * (1 + self._jitter * random.uniform(-1, 1))
        waits = [
            asyncio.ensure_future(self._clock.sleep(pause)),
            asyncio.ensure_future(self._woken.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
