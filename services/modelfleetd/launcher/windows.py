"""Freeze windows as launches meet them: read once in a while, however many launches ask.

Whom a window holds back looks at it seldom, and must not be held by one that is gone: it asks for what is true by now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from modelfleetd.clock import Clock
from modelfleetd.launcher.domain.freeze import FreezeWindow, of_hour
from modelfleetd.launcher.domain.frozen import Open
from modelfleetd.launcher.store import Store

# So long a change of a window may take to reach every launch.
_SECONDS: Final = 2.0


class Windows:
    """What the store says of freeze windows, a little ago at most."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._read: float | None = None
        self._all: Sequence[FreezeWindow] = ()
        self._near: Sequence[Open] = ()
        self._hour: datetime | None = None
        self._turn = asyncio.Lock()

    async def all(self, since: float | None = None) -> Sequence[FreezeWindow]:
        """Every window there is; raises FleetError where nobody can say.

        Args:
            since: by the monotonic clock: what was read before counts for nothing.
        """
        async with self._turn:
            asked = self._clock.monotonic()
            oldest = asked - _SECONDS if since is None else since
            if self._read is None or self._read < oldest:
                self._all, self._hour = await self._store.freeze_windows(), None
                self._read = asked
        return self._all

    async def near(self, now: datetime, since: float | None = None) -> Sequence[Open]:
        """The occurrences that are open in this hour, or a few minutes after it; `since` is that of `all`."""
        windows, hour = await self.all(since), now.replace(minute=0, second=0, microsecond=0)
        if self._hour != hour:
            self._near = [Open(window, each) for window in windows for each in of_hour(window.schedule, hour)]
            self._hour = hour
        return self._near
