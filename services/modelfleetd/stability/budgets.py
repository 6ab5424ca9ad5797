"""Keeps the budgets of the fleet in memory: what each minute adds is read once, whoever evaluated it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from modelfleetd.kit.db import Database
from modelfleetd.stability.domain import budget
from modelfleetd.stability.domain.budget import Budgets, History
from modelfleetd.stability.domain.fleet import WatchedFleet
from modelfleetd.stability.domain.slices import MINUTES_OF_HOUR, Objective, Slices
from modelfleetd.stability.fleet import Fleet
from modelfleetd.stability.store import slices

# How often is looked whether a minute has been evaluated: for metrics, and so that calls find little to do.
BUDGET_SECONDS: Final = 5.0
KEPT: Final = (Objective.STABILITY, Objective.AVAILABILITY)
# SLOs whose whole period is read at a time: 43 kB each.
_AT_ONCE: Final = 100
# How long the first call after a start waits for the registry.
_READY_SECONDS: Final = 2.0


class BudgetKeeper:
    """Follows the slices of all models that serve. Every replica has one."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._database = database
        self._fleet = fleet
        self._reading = asyncio.Lock()
        self._newest: Budgets | None = None
        # Has `refresh` called soon.
        self.wake: Callable[[], None] = lambda: None

    @property
    def newest(self) -> Budgets | None:
        """What was read last; for those who must not wait."""
        return self._newest

    async def current(self) -> Budgets:
        """Returns the budgets of the models that serve now.

        They may be as of the minute before for the moment that it takes to read what the newest one added.

        Raises:
            PartUnavailable: the registry, or the database, has not answered yet.
        """
        await self._fleet.wait_ready(_READY_SECONDS)
        known = self._newest
        if known is None or known.fleet is not self._fleet.view():
            return await self.refresh()
        if await slices.newest_minute(self._database) != known.minute:
            self.wake()
        return known

    async def refresh(self) -> Budgets:
        """Reads what has been evaluated since, and returns it. Raises as `current` does."""
        await self._fleet.wait_ready(_READY_SECONDS)
        fleet = self._fleet.view()
        async with self._reading:
            minute = await slices.newest_minute(self._database)
            before = self._newest
            if before is None or before.minute != minute or before.fleet is not fleet:
                histories = {kind: await self._history(fleet, kind, minute) for kind in KEPT}
                before = self._newest = await asyncio.to_thread(budget.budgets, fleet, histories)
            return before

    async def _history(self, fleet: WatchedFleet, kind: Objective, minute: int) -> History:
        slos = [model.slo for model in fleet.models.values()]
        if minute < 0:
            return budget.blank(slos)
        before = budget.blank(()) if self._newest is None else self._newest.histories[kind]
        start = before.tail_start(minute)
        kept = [] if start is None else [slo for slo in slos if slo in before.rows]
        found = budget.blank((), minute)
        if kept and start is not None:
            end = (minute // MINUTES_OF_HOUR + 1) * MINUTES_OF_HOUR
            tail = await slices.read(self._database, kept, kind, start, end)
            found = await asyncio.to_thread(budget.continued, before, kept, tail, minute)
        known = set(kept)
        new = [slo for slo in slos if slo not in known]
        for begin in range(0, len(new), _AT_ONCE):
            found = budget.joined(found, await self._begun(new[begin : begin + _AT_ONCE], kind, minute))
        return found

    async def _begun(self, names: Sequence[str], kind: Objective, minute: int) -> History:
        read: Mapping[str, Slices] = await slices.read(self._database, names, kind, *budget.whole_span(minute))
        return await asyncio.to_thread(budget.begun, names, read, minute)
