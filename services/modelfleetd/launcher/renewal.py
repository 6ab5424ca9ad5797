"""Tells capacity that holders are there and when they expect to end: beside the rounds, and never in their way.

A renewal changes nothing of a launch, and repeated it does no harm: so it is no intent, and what was told is remembered
by this process alone. One that starts anew tells everything once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from datetime import datetime
from typing import Final

from modelfleetd.errors import FleetError
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.release import RENEW, RETRY, Told, expected_release, is_due, is_holding, told_at_first
from modelfleetd.launcher.ports import World

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 16
# Holders that are remembered; one that is forgotten is told once more.
_MOST: Final = 50_000


class Renewer:
    """Renews the reservations of the launches that this process has looked at."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: OrderedDict[str, Told] = OrderedDict()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def renew(self, launch: Launch, now: datetime) -> None:
        """Tells capacity of a launch that was just looked at, where that is due. Never raises a FleetError."""
        name = launch.reservation
        if not is_holding(launch):
            self._told.pop(name, None)
            return
        release = expected_release(launch, now)
        told = self._told.get(name) or told_at_first(launch, now)
        if not is_due(told, release, now):
            return
        # Before it is asked: the launch's next round may end before this does.
        self._remember(name, Told(release or told.release, now + RENEW))
        try:
            async with self._slots:
                await self._world.capacity.renew(name, release, f"{launch.name}/renew/{now.isoformat()}")
        except FleetError as error:
            _log.warning("%s: %s is not renewed, tries again soon: %s", launch.name, name, error.message)
            self._remember(name, Told(told.release, now + RETRY))

    def _remember(self, name: str, told: Told) -> None:
        self._told[name] = told
        self._told.move_to_end(name)
        if len(self._told) > _MOST:
            self._told.popitem(last=False)
