"""What a rehearsal is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from modelfleetd.clock import ManualClock
from modelfleetd.rehearsal.capacity import MemoryCapacity
from modelfleetd.rehearsal.chance import Chance
from modelfleetd.rehearsal.launches import MemoryLaunches
from modelfleetd.rehearsal.registry import MemoryRegistry
from modelfleetd.rehearsal.stability import MemoryStability
from modelfleetd.rehearsal.world import MemoryWorld


@dataclass(frozen=True, slots=True)
class Parts:
    """What keeps a fleet's launches, models and units, and answers the launcher; by default all in memory."""

    clock: Callable[[], ManualClock] = ManualClock
    launches: Callable[[ManualClock, Chance, int | None], MemoryLaunches] = MemoryLaunches
    registry: Callable[[ManualClock], MemoryRegistry] = MemoryRegistry
    capacity: Callable[..., MemoryCapacity] = MemoryCapacity
    stability: Callable[[int | str, Callable[[], datetime], Callable[[str], int]], MemoryStability] = MemoryStability
    world: Callable[[MemoryRegistry, MemoryCapacity, MemoryStability, Chance, str], MemoryWorld] = MemoryWorld


IN_MEMORY: Final = Parts()
