"""What is known of each model now: written by the evaluation, read by whoever answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from modelfleetd.stability.domain.fleet import WatchedFleet
from modelfleetd.stability.domain.rollup import Row
from modelfleetd.stability.domain.standing import Standing
from modelfleetd.stability.fleet import Fleet


class Board:
    """The newest evaluation, whichever replica made it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rows: tuple[WatchedFleet | None, int | None, list[Row]] = (None, None, [])
        # The minute that was evaluated, the registry's revision that it went by, and what it said.
        self.minute: int | None = None
        self.revision = 0
        self.standings: Mapping[str, Standing] = {}
        # Set, and another one put in its place, with each evaluation.
        self.moved = asyncio.Event()

    def rows(self) -> list[Row]:
        """Returns all models that serve with their standings, the worst first.

        Raises:
            PartUnavailable: it is not known yet who serves.
        """
        view = self._fleet.view()
        if self._rows[0] is not view or self._rows[1] != self.minute:
            rows = [Row(model, self.standings.get(name)) for name, model in view.models.items()]
            self._rows = (view, self.minute, sorted(rows, key=lambda row: row.rank))
        return self._rows[2]

    def accept(self, minute: int | None, revision: int, found: Mapping[str, Standing]) -> None:
        """Takes what an evaluation said."""
        self.minute, self.revision, self.standings = minute, revision, found
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()
