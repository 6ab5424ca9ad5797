"""Watchers of load tests: however many look at the same one, it is read once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from modelfleetd.capacity.domain.loadtest import ENDED, LoadTest
from modelfleetd.capacity.store import loadtests
from modelfleetd.clock import Clock
from modelfleetd.kit.db import Database

_LOOK_SECONDS = 0.25


@dataclass
class _Watched:
    """One load test that is watched: as it was when somebody last looked, and when one looks again."""

    watchers: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    found: LoadTest | None = None
    due: float = 0.0


class Watching:
    """Reads the version of each watched load test four times a second, and the rest of it where that has changed."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._watched: dict[str, _Watched] = {}

    async def changes(self, name: str) -> AsyncIterator[LoadTest]:
        """Gives a load test as it is, and again whenever it has changed, until it has ended.

        Raises:
            ResourceNotFound: there is no such load test.
        """
        watched = self._watched.setdefault(name, _Watched())
        watched.watchers += 1
        try:
            seen = None
            while True:
                found = await self._newest(name, watched)
                # Where it stands in the line changes with the others, not with itself.
                if (found.version, found.message) != seen:
                    seen = found.version, found.message
                    yield found
                if found.state in ENDED:
                    return
                await self._clock.sleep(max(0.0, watched.due - self._clock.monotonic()))
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[name]

    async def _newest(self, name: str, watched: _Watched) -> LoadTest:
        # Whoever comes first looks; the others wait for what it finds.
        async with watched.turn:
            if watched.found is None or self._clock.monotonic() >= watched.due:
                version = await loadtests.version(self._database, name)
                if watched.found is None or version != watched.found.version:
                    watched.found = await loadtests.get(self._database, name)
                (watched.found,) = await loadtests.with_turns(self._database, [watched.found])
                watched.due = self._clock.monotonic() + _LOOK_SECONDS
            return watched.found
