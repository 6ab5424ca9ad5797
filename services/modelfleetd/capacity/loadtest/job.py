"""The worker that runs load tests: claims one, keeps its lease, tests a clone, removes the clone, records the end.

Whatever happens in between, somebody finds the row again: one that has not ended, or that may have left a clone, is
taken over when its lease ends. The new holder has a newer epoch, removes what is left, and begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from modelfleetd import names
from modelfleetd.capacity.domain.certificate import VALIDITY, Certificate, Source
from modelfleetd.capacity.domain.loadtest import DEFAULT_CERTIFICATION_REQUESTS, ENDED, MAX_ATTEMPTS, Probe, State
from modelfleetd.capacity.loadtest.clone import Clone, CloneNotAvailable, CloneNotGone
from modelfleetd.capacity.loadtest.generator import Load
from modelfleetd.capacity.loadtest.search import Found, Plan, Result, Search
from modelfleetd.capacity.loadtest.verdicts import CONFIDENCE
from modelfleetd.capacity.registry import Registry
from modelfleetd.capacity.store import certificates, loadtests
from modelfleetd.capacity.store.loadtests import Claim
from modelfleetd.clock import Clock
from modelfleetd.errors import DeadlinePassed, FleetError, PartUnavailable, ReferenceNotFound, StaleEpoch
from modelfleetd.kit.db import Database
from modelfleetd.platform.base import Platform

_log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
# How soon a cancellation is noticed, too.
_RENEW_SECONDS = 1.0
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 5.0
_DRAIN_SECONDS = 600.0
_MOST_SECONDS = 2 * 3600.0

# Gives the load on a clone: from its traffic address, its target, and what is claimed.
OpenLoad: TypeAlias = Callable[[str, str, Claim], AbstractAsyncContextManager[Load]]


class _ClaimLost(Exception):
    """Somebody else holds the load test by now, or it has ended."""


@dataclass(frozen=True, slots=True)
class _End:
    """How a load test ends; `max_qps` where it succeeded."""

    state: State
    message: str
    max_qps: float | None = None


class LoadTests:
    """Runs one load test at a time. Several replicas of the service share them."""

    name = "load tests"

    def __init__(
        self,
        database: Database,
        registry: Registry,
        platform_at: Callable[[str], Platform],
        open_load: OpenLoad,
        clock: Clock,
        holder: str,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._database = database
        self._registry = registry
        self._platform_at = platform_at
        self._open_load = open_load
        self._clock = clock
        self._holder = holder
        self._lease_seconds = lease_seconds

    async def run(self) -> None:
        while True:
            if not await self.round():
                await self._clock.sleep(_POLL_SECONDS)

    async def round(self) -> bool:
        """Works on one load test; False where none needs work."""
        async with self._database.transaction() as conn:
            claim = await loadtests.claim(conn, self._holder, self._lease_seconds)
        if claim is None:
            return False
        async with self._kept(claim) as stopped:
            try:
                await self._work(claim, stopped)
            except (StaleEpoch, _ClaimLost):
                _log.warning("%s has ended, or was taken over by somebody else", claim.test.name)
            except (PartUnavailable, DeadlinePassed, CloneNotGone) as error:
                _log.warning("%s waits: %s", claim.test.name, error)
                await self._give_up(claim, _RETRY_SECONDS)
            except asyncio.CancelledError:
                # The service stops: the next one that looks may go on at once.
                await self._give_up(claim, 0.0)
                raise
        return True

    async def _work(self, claim: Claim, stopped: asyncio.Event) -> None:
        if claim.clone_present:
            await self._remove_clone(claim, "clear")
        if claim.test.state in ENDED:
            return
        try:
            end = await _unless(stopped, self._test(claim))
        except _ClaimLost:
            # Perhaps only cancelled. Where somebody else holds it, the epoch keeps us from touching his clone.
            end = None
        await self._remove_clone(claim, "remove")
        if end is not None:
            await self._record(claim, end)

    @asynccontextmanager
    async def _kept(self, claim: Claim) -> AsyncIterator[asyncio.Event]:
        """Keeps the lease; the event says that the load test was cancelled, or is somebody else's."""
        stopped = asyncio.Event()
        keeping = asyncio.create_task(self._keep(claim, stopped))
        try:
            yield stopped
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self, claim: Claim, stopped: asyncio.Event) -> None:
        renewed = self._clock.monotonic()
        while True:
            await self._clock.sleep(_RENEW_SECONDS)
            try:
                async with self._database.transaction() as conn:
                    state = await loadtests.renew(conn, claim.test.name, claim.epoch, self._lease_seconds)
            except FleetError:
                # Whoever cannot say that he is alive stops himself before others take over.
                if self._clock.monotonic() - renewed > self._lease_seconds / 2:
                    stopped.set()
                continue
            renewed = self._clock.monotonic()
            if state is None or state in ENDED:
                stopped.set()

    async def _test(self, claim: Claim) -> _End:
        if claim.attempt > MAX_ATTEMPTS:
            return _End(State.FAILED, f"It was begun {MAX_ATTEMPTS} times and interrupted each time.")
        try:
            model = await self._registry.model(claim.test.model, "load_test.model")
            clone = await self._clone(claim)
            await self._progress(claim, State.STARTING, f"Starting a clone of {model.name} in {claim.test.region}.", [])
            await self._set_clone_present(claim, True)
            await clone.start(model)
            async with (
                asyncio.timeout(_MOST_SECONDS),
                self._open_load(await clone.traffic_address(), clone.target, claim) as load,
            ):
                return _end_of(await self._search(claim, load))
        except TimeoutError:
            return _End(State.FAILED, f"It did not converge within {_MOST_SECONDS / 3600:g} h.")
        except CloneNotAvailable as error:
            return _End(State.FAILED, f"The clone did not become available: {error}.")
        except (PartUnavailable, DeadlinePassed, StaleEpoch):
            raise
        except FleetError as error:
            return _End(State.FAILED, error.message)

    async def _search(self, claim: Claim, load: Load) -> Result:
        probes: list[Probe] = []
        search = Search(claim.test.start_qps, claim.test.stoppers, claim.test.certification_requests)
        while (plan := search.plan) is not None:
            await self._progress(claim, *_doing(claim, plan), probes)
            probe = await load.probe(plan)
            probes.append(probe)
            await self._progress(claim, *_doing(claim, plan), probes)
            search.add(probe)
        assert search.result is not None
        return search.result

    async def _progress(self, claim: Claim, state: State, message: str, probes: list[Probe]) -> None:
        async with self._database.transaction() as conn:
            if not await loadtests.progress(conn, claim.test.name, claim.epoch, state, message, probes):
                raise _ClaimLost

    async def _clone(self, claim: Claim) -> Clone:
        address = await self._registry.agent_address(claim.test.region, "load_test.region")
        return Clone(self._platform_at(address), claim.test.name, claim.epoch, self._clock)

    async def _remove_clone(self, claim: Claim, act: str) -> None:
        try:
            clone = await self._clone(claim)
        except ReferenceNotFound:
            _log.warning("%s: %s is gone, and the clone with it", claim.test.name, claim.test.region)
        else:
            await clone.remove(act, _DRAIN_SECONDS)
        await self._set_clone_present(claim, False)

    async def _set_clone_present(self, claim: Claim, present: bool) -> None:
        async with self._database.transaction() as conn:
            if not await loadtests.set_clone_present(conn, claim.test.name, claim.epoch, present):
                raise _ClaimLost

    async def _record(self, claim: Claim, end: _End) -> None:
        async with self._database.transaction() as conn:
            certificate = None if end.max_qps is None else self._certificate(claim, end.max_qps)
            if certificate is not None:
                await certificates.insert(conn, certificate)
            name = None if certificate is None else certificate.name
            if not await loadtests.finish(conn, claim.test.name, claim.epoch, end.state, end.message, name):
                # Cancelled in the last moment, or somebody else's by now: the certificate goes with the transaction.
                raise _ClaimLost

    def _certificate(self, claim: Claim, max_qps: float) -> Certificate:
        test, now = claim.test, self._clock.now()
        return Certificate(
            name=names.CERTIFICATE.format(f"c{secrets.token_hex(8)}"),
            model=test.model,
            flavor=test.flavor,
            max_qps=max_qps,
            # In a shorter run the answers hang together too much for their interval to be believed.
            confidence=CONFIDENCE if test.certification_requests >= DEFAULT_CERTIFICATION_REQUESTS else 0.0,
            source=Source.LOAD_TEST,
            note=f"Confirmed with {test.certification_requests:,} requests in {test.region}.",
            actor=test.actor,
            create_time=now,
            expire_time=now + VALIDITY,
            load_test=test.name,
        )

    async def _give_up(self, claim: Claim, retry_seconds: float) -> None:
        try:
            async with self._database.transaction() as conn:
                await loadtests.give_up_lease(conn, claim.test.name, claim.epoch, retry_seconds)
        except FleetError:
            _log.debug("%s: the lease ends by itself", claim.test.name)


def _doing(claim: Claim, plan: Plan) -> tuple[State, str]:
    if plan.certification:
        requests = claim.test.certification_requests
        return State.CERTIFYING, f"Confirming {plan.qps:.4g} requests/s with {requests:,} requests."
    return State.SEARCHING, f"Trying {plan.qps:.4g} requests/s."


def _end_of(result: Result) -> _End:
    if isinstance(result, Found):
        return _End(State.SUCCEEDED, f"One replica carries {result.max_qps:.4g} requests/s.", result.max_qps)
    return _End(State.FAILED, str(result))


async def _unless(stopped: asyncio.Event, work: Coroutine[Any, Any, _End]) -> _End | None:
    """Returns what the work ends with; None where it was stopped before."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
