"""Carries launches on: claims what is due, and runs a bounded number of rounds at a time.

Nothing depends on being told: due launches are looked for every second at least. Whoever changes a launch in this
process wakes the reconciler, and it knows when what it has just put down is due again.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from typing import Final

from modelfleetd.clock import Clock
from modelfleetd.errors import FleetError
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.judges import Judges
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.renewal import Renewer
from modelfleetd.launcher.round import Round
from modelfleetd.launcher.store import Claim, Store
from modelfleetd.launcher.watch import Notifier
from modelfleetd.launcher.windows import Windows

_log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 10.0
# Rounds at a time, and claims of one statement.
ROUNDS: Final = 32
_POLL_SECONDS: Final = 1.0
_SHORTEST: Final = 0.02
# No launch sleeps longer than this without the sweeper looking at it.
LONGEST_SLEEP: Final = 600.0


class Reconciler:
    """A worker; several may run on one database."""

    name = "reconciler"

    def __init__(
        self,
        store: Store,
        world: World,
        clock: Clock,
        notifier: Notifier,
        *,
        holder: str,
        lease: float = LEASE_SECONDS,
        traced: bool = False,
    ) -> None:
        self._store = store
        self._world = world
        self._judges = Judges(world)
        self._executor = Executor(world, clock)
        self._renewer = Renewer(world)
        self._windows = Windows(store, clock)
        self._clock = clock
        self._notifier = notifier
        self._holder = holder
        self._lease = lease
        self._traced = traced
        # Set to look for due launches now; `_put_down` only to find out anew when that will be.
        self._woken = asyncio.Event()
        self._put_down = asyncio.Event()
        self._running = 0
        # When launches that this process has put down are due again, by the monotonic clock.
        self._due: list[float] = []

    def wake(self) -> None:
        """Looks for due launches now."""
        self._woken.set()

    async def sweep(self) -> None:
        """Looks at every launch that has not ended, whoever held it."""
        found = await self._store.sweep(LONGEST_SLEEP)
        if found:
            _log.warning("%d launches had not been looked at for too long", found)
            self.wake()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as rounds:
            while True:
                self._woken.clear()
                # Before the database is asked: the lease may have begun long before its answer is heard.
                asked = self._clock.monotonic()
                claims = await self._claim()
                for claim in claims:
                    self._running += 1
                    rounds.create_task(self._round(claim, asked), name=claim.launch.name)
                await self._pause()

    async def _claim(self) -> list[Claim]:
        room = ROUNDS - self._running
        if room <= 0:
            return []
        started = self._clock.monotonic()
        try:
            claims = await self._store.claim(self._holder, self._lease, room)
        except FleetError as error:
            _log.warning("cannot look for due launches: %s", error.message)
            return []
        while self._due and self._due[0] <= started:
            heapq.heappop(self._due)
        return claims

    async def _pause(self) -> None:
        """Sleeps until something is due here, somebody wakes it, or it is time to look anyway."""
        end = self._clock.monotonic() + _POLL_SECONDS
        while not self._woken.is_set():
            self._put_down.clear()
            now = self._clock.monotonic()
            soonest = min(end, max(self._due[0], now + _SHORTEST)) if self._due else end
            if soonest <= now:
                return
            waits = [asyncio.ensure_future(event.wait()) for event in (self._woken, self._put_down)]
            try:
                done, _ = await asyncio.wait(waits, timeout=soonest - now, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if not done:
                return

    async def _round(self, claim: Claim, asked: float) -> None:
        at_hand = Round(
            claim,
            store=self._store,
            executor=self._executor,
            judges=self._judges,
            clock=self._clock,
            traced=self._traced,
            started=asked,
            windows=self._windows,
        )
        try:
            await at_hand.run()
        except FleetError as error:
            # The lease ends by itself; whoever claims the launch then settles what this round has left.
            _log.warning("%s: this round failed: %s", claim.launch.name, error.message)
        except asyncio.CancelledError:
            await self._let_go(at_hand)
            raise
        except Exception:  # noqa: BLE001 - one launch's defect must not stop the others
            _log.exception("%s: this round failed; the launch is looked at again", claim.launch.name)
        finally:
            self._running -= 1
        self._notifier.changed(claim.launch.name)
        if at_hand.due is not None:
            heapq.heappush(self._due, self._clock.monotonic() + at_hand.due)
        if self._running == ROUNDS - 1 or at_hand.due == 0:
            self.wake()
        self._put_down.set()
        await self._renew(at_hand)

    async def _renew(self, at_hand: Round) -> None:
        """Its round is over, and its slot is somebody else's: this costs no launch any time."""
        if at_hand.due is None and not at_hand.launch.ended:
            return
        try:
            await self._renewer.renew(at_hand.launch, at_hand.now)
        except Exception:  # noqa: BLE001 - one launch's defect must not stop the others
            _log.exception("%s: its reservation is not renewed", at_hand.launch.name)

    async def _let_go(self, at_hand: Round) -> None:
        """This process stops: another one may go on at once."""
        try:
            async with asyncio.timeout(1.0):
                await asyncio.shield(asyncio.ensure_future(self._store.yield_lease(at_hand.launch)))
        except (FleetError, TimeoutError):
            _log.info("%s: its lease ends by itself", at_hand.launch.name)
