"""Who watches launches is told when they change: by this process at once, by others within a second.

One query looks for changes of all launches that anybody watches, and none is made while nobody does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelfleetd.launcher.store import Store


class Notifier:
    """Tells watchers of changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._versions: dict[str, tuple[int, int]] = {}

    def changed(self, name: str) -> None:
        """A launch may have changed."""
        for watcher in self._watchers.get(name, ()):
            watcher.set()

    async def poll(self) -> None:
        """Looks for what other processes have changed."""
        if not self._watchers:
            self._versions.clear()
            return
        versions = await self._store.versions(list(self._watchers))
        for name, version in versions.items():
            if self._versions.get(name) != version:
                self.changed(name)
        self._versions = versions

    @asynccontextmanager
    async def watching(self, name: str) -> AsyncIterator[asyncio.Event]:
        """Gives an event that is set whenever the launch may have changed; whoever waits for it clears it."""
        event = asyncio.Event()
        self._watchers.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            self._watchers[name].discard(event)
            if not self._watchers[name]:
                del self._watchers[name]
