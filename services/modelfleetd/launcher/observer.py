"""Watches the fleet: reads every agent each minute and writes what it sees beside the ledger. One replica does it."""

from __future__ import annotations

import asyncio
import logging

from modelfleetd.errors import FleetError
from modelfleetd.kit import deadline
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.store import Store

_log = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
_DUTY = "observe the fleet"
_AGENT_SECONDS = 10.0


class Observer:
    """The duty, round by round."""

    def __init__(self, store: Store, world: World, holder: str, interval: float = INTERVAL_SECONDS) -> None:
        self._store = store
        self._world = world
        self._holder = holder
        self._interval = interval

    async def observe(self) -> None:
        """Reports what every agent sees, where this replica has the duty."""
        if await self._store.take_duty(_DUTY, self._holder, 1.5 * self._interval):
            await self.report_all()

    async def report_all(self) -> None:
        """Reports every region; an agent that does not answer keeps nobody else from being reported."""
        regions = await self._world.registry.regions()
        await asyncio.gather(*(self._report(region, address) for region, address in regions.items()))

    async def _report(self, region: str, address: str) -> None:
        try:
            with deadline.limit(_AGENT_SECONDS):
                observations = await self._world.platforms.at(address).list()
                if observations:
                    await self._world.registry.report(observations)
        except FleetError as error:
            _log.warning("%s is not reported: %s", region, error.message)
