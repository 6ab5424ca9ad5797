"""The evaluation of the whole fleet each minute, by whichever replica holds the lease; the others follow the table.

A round: take the lease; read what has changed of the minutes that verdicts look at; decide; write the minute's slices
and the standings in one transaction that counts only while the lease does. A minute that nobody evaluated has no slice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Final

from modelfleet.errors import ModelfleetError
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncRegistry
from modelfleetd.clock import Clock
from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.db import Database
from modelfleetd.kit.failpoint import passing
from modelfleetd.stability.board import Board
from modelfleetd.stability.domain.availability import Interval, Report, judged, since
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.fleet import WatchedFleet, WatchedModel
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.looks import Looks, Pair, decide_looks, looks_at
from modelfleetd.stability.domain.maturity import minute_of, moment_of
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.domain.standing import Standing, stand
from modelfleetd.stability.fleet import Fleet
from modelfleetd.stability.recent import Recent
from modelfleetd.stability.store import slices, standings
from modelfleetd.stability.store.standings import Lease, Progress
from modelfleetd.stability.wire.standings import reports

_log = logging.getLogger(__name__)

# How often is looked whether a minute has begun, or another replica has evaluated one.
TICK_SECONDS: Final = 1.0
# Longer than a minute, so that it does not end between two rounds of a holder who is well.
LEASE_SECONDS: Final = 75.0
# Budgets are counted over 30 days.
_SLICES_KEPT: Final = timedelta(days=35)
_REGISTRY_SECONDS: Final = 3.0
# How labels are delayed is learned by the hour.
_DELAYS_MINUTES: Final = 10
# Replicas' clocks differ by less, unless one of them is wrong.
_MOST_AHEAD_MINUTES: Final = 2

AfterRound = Callable[[], Awaitable[object]]


class Evaluator:
    """What is known of each model now. `tick` is called every second."""

    def __init__(
        self,
        database: Database,
        learned: Callable[[Mapping[Pair, timedelta]], Awaitable[Mapping[Pair, Delays]]],
        fleet: Fleet,
        registry: AsyncRegistry,
        clock: Clock,
        holder: str,
    ) -> None:
        """Makes it.

        Args:
            database: of stability.
            learned: returns how labels are delayed, of series with their attribution windows.
            fleet: who serves.
            registry: which is told by the agents how requests fare.
            clock: says which minute it is.
            holder: tells this process from every other.
        """
        self._database = database
        self._learned = learned
        self._fleet = fleet
        self._registry = registry
        self._clock = clock
        self._holder = holder
        self._recent = Recent(database)
        self._looks: tuple[Mapping[str, WatchedModel] | None, Looks] = (None, Looks({}))
        self._delays: Mapping[Pair, Delays] = {}
        self._delays_read = 0
        # The newest evaluation, whichever replica made it.
        self.board = Board(fleet)
        # Of the last round here: how long it took.
        self.seconds: float | None = None
        # The minute at which was last said that no other can be evaluated.
        self._complained: int | None = None
        # Called after each round of this replica, while it holds the lease.
        self.after_round: list[AfterRound] = []

    async def tick(self) -> None:
        """Follows what others evaluated; evaluates where a minute has begun and nobody else holds the lease."""
        minute = minute_of(self._clock.now())
        if self.minute == minute:
            return
        progress = await standings.progress(self._database)
        if progress.minute != self.minute:
            await self._follow(progress)
        self._complain(minute, progress)
        is_due = progress.minute is None or progress.minute < minute
        if is_due and (progress.is_free or progress.holder == self._holder):
            await self._evaluate(minute)

    async def resign(self) -> None:
        """Lets another replica evaluate at once."""
        await standings.resign(self._database, self._holder)

    async def sweep(self) -> None:
        """Forgets slices that no budget counts any more."""
        await slices.forget(self._database, minute_of(self._clock.now() - _SLICES_KEPT) // 60)

    @property
    def minute(self) -> int | None:
        """The newest minute that was evaluated, by whichever replica."""
        return self.board.minute

    @property
    def standings(self) -> Mapping[str, Standing]:
        """What was said of each model then."""
        return self.board.standings

    async def _follow(self, progress: Progress) -> None:
        """Reads what another replica has evaluated."""
        # Back in time goes only a database that has lost its last commits.
        goes_on = self.minute is not None and progress.minute is not None and self.minute < progress.minute
        found = await standings.read(self._database, self.minute if goes_on else None)
        self.board.accept(progress.minute, progress.revision, {**self.standings, **found} if goes_on else found)

    def _complain(self, minute: int, progress: Progress) -> None:
        """Says once a minute that nothing can be evaluated, since a clock was or is wrong.

        No minute is evaluated twice, nor one before another: after a clock that was ahead has been put right, nobody
        evaluates until the time that it showed.
        """
        if progress.minute is None or progress.minute <= minute + _MOST_AHEAD_MINUTES or self._complained == minute:
            return
        self._complained = minute
        _log.warning(
            "nothing is evaluated until %s, which is said to be evaluated already, while it is %s here: either this "
            "clock is behind, or that of %s was ahead",
            *(moment_of(progress.minute), self._clock.now(), progress.holder),
        )

    async def _evaluate(self, minute: int) -> None:
        try:
            view = self._fleet.view()
        except PartUnavailable:
            # Nobody has said yet who serves.
            return
        began = time.monotonic()
        lease = await standings.claim(self._database, self._holder, LEASE_SECONDS, minute)
        if lease is None:
            return
        found = await self._found(view, minute)
        try:
            with passing("stability", "record", "evaluation"):
                await self._write(lease, minute, view, found)
        except standings.Superseded:
            _log.warning("the evaluation of %s came too late: nothing of it was written", moment_of(minute))
            return
        self.board.accept(minute, view.revision, found)
        self.seconds = time.monotonic() - began
        for act in self.after_round:
            await act()

    async def _found(self, view: WatchedFleet, minute: int) -> dict[str, Standing]:
        """Returns what is to be said of each model at a minute."""
        looks = await self._looks_at(view.models, minute)
        blocks = await self._recent.read(looks.wanted, minute)
        observed = await self._reports()
        now = moment_of(minute)

        def decide() -> dict[str, list[WindowVerdict]]:
            return decide_looks(looks, {reach: (block.pairs, block.series()) for reach, block in blocks.items()}, now)

        # Beside the calls of others, which wait for no round.
        verdicts = await asyncio.to_thread(decide)
        found: dict[str, Standing] = {}
        for name, model in view.models.items():
            before = self.standings.get(name)
            intervals = self._intervals(before, observed.get(name, {}))
            availability = judged(intervals.values(), model.service_level, self._clock.now())
            found[name] = stand(model, verdicts[name], availability, intervals, before, now)
        return found

    async def _looks_at(self, models: Mapping[str, WatchedModel], minute: int) -> Looks:
        """Returns what is to be looked at; that changes with the fleet, and with what is learned of its labels."""
        is_old = not 0 <= minute - self._delays_read < _DELAYS_MINUTES
        if self._looks[0] is models and not is_old:
            return self._looks[1]
        windows = {
            (name, prediction.id): prediction.attribution_window
            for name, model in models.items()
            for prediction in model.predictions.values()
        }
        known = {} if is_old else {pair: self._delays[pair] for pair in windows.keys() & self._delays.keys()}
        missing = {
            pair: window for pair, window in windows.items() if pair not in known or known[pair].window != window
        }
        self._delays = {**known, **(await self._learned(missing) if missing else {})}
        self._delays_read = minute if is_old else self._delays_read
        looks = await asyncio.to_thread(looks_at, models.values(), self._delays)
        self._looks = (models, looks)
        return looks

    async def _reports(self) -> Mapping[str, Mapping[str, Report]]:
        """Returns what agents last reported, by model and region; nothing where the registry does not answer."""
        found: list[registry_pb2.ServingStatus] = []
        try:
            async with asyncio.timeout(_REGISTRY_SECONDS):
                found = [status async for status in self._registry.list_serving_statuses_all(page_size=1000)]
        except (ModelfleetError, TimeoutError) as error:
            _log.warning("the registry does not answer (%s); availability goes by what is known", type(error).__name__)
        return reports(found)

    @staticmethod
    def _intervals(before: Standing | None, observed: Mapping[str, Report]) -> dict[str, Interval]:
        known = {} if before is None else before.intervals
        return {**known, **{region: since(known.get(region), report) for region, report in observed.items()}}

    async def _write(self, lease: Lease, minute: int, view: WatchedFleet, found: Mapping[str, Standing]) -> None:
        changed = [standing for name, standing in found.items() if standing != self.standings.get(name)]
        written: dict[tuple[str, Objective], Slice] = {}
        for name, standing in found.items():
            written |= standing.slices(view.models[name].slo)
        async with self._database.transaction() as conn:
            await standings.conclude(conn, lease, minute, view.revision)
            await slices.write(conn, minute, written)
            await standings.keep(conn, minute, changed, found)
