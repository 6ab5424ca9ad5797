"""The worker that runs load tests: claims one, keeps its lease, tests a clone, removes the clone, records the end.

Whatever happens in between, somebody finds the row again: one that has not ended, or that may have left a clone, is
taken over when its lease ends. The new holder has a newer epoch, removes what is left, and begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeAlias

from modelfleet.recordings import RecordingError
from modelfleetd import names
from modelfleetd.capacity.domain.certificate import Certificate, GeneratorHealth, Source
from modelfleetd.capacity.domain.loadtest import (
    DEFAULT_CERTIFICATION_REQUESTS,
    ENDED,
    MAX_ATTEMPTS,
    Cause,
    Outcome,
    Probe,
    State,
)
from modelfleetd.capacity.loadtest.clone import Clone, CloneNotAvailable, CloneNotGone
from modelfleetd.capacity.loadtest.generator import Load
from modelfleetd.capacity.loadtest.search import NotFound, Plan, Search
from modelfleetd.capacity.loadtest.verdicts import CONFIDENCE
from modelfleetd.capacity.registry import Model, Registry
from modelfleetd.capacity.store import certificates, loadtests
from modelfleetd.capacity.store.loadtests import Claim, Progress
from modelfleetd.clock import Clock
from modelfleetd.errors import DeadlinePassed, FleetError, PartUnavailable, ReferenceNotFound, StaleEpoch
from modelfleetd.kit.db import Database
from modelfleetd.kit.failpoint import failpoint
from modelfleetd.platform.base import Platform

_log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
_RENEWALS_A_LEASE = 10
# How soon a cancellation is noticed.
_LOOK_SECONDS = 0.25
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
    """How a load test ends.

    Attributes:
        cause: of a failure.
        confirmed: the probe that has confirmed the result, and the digest of the spec that was measured.
    """

    message: str
    cause: Cause | None = None
    confirmed: tuple[Probe, str] | None = None

    @classmethod
    def failed(cls, cause: Cause, reason: str) -> _End:
        """Returns a failure that says what to do next."""
        return cls(f"{reason} {cause.advice}", cause)


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
        """Tests, and beside it removes clones that are left of tests that have ended: these do not wait for a test."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again_and_again(self.round))
            tasks.create_task(self._again_and_again(self.clean_up))

    async def _again_and_again(self, work: Callable[[], Awaitable[bool]]) -> None:
        while True:
            if not await work():
                await self._clock.sleep(_POLL_SECONDS)

    async def round(self) -> bool:
        """Works on one load test that has not ended; False where none needs work."""
        return await self._work_on_next(ended=False)

    async def clean_up(self) -> bool:
        """Removes the clone that is left of one that has ended; False where none is."""
        return await self._work_on_next(ended=True)

    async def _work_on_next(self, *, ended: bool) -> bool:
        async with self._database.transaction() as conn:
            claim = await loadtests.claim(conn, self._holder, self._lease_seconds, ended=ended)
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
        name, epoch = claim.test.name, claim.epoch
        renewed = self._clock.monotonic()
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            asked = self._clock.monotonic()
            due = asked - renewed >= self._lease_seconds / _RENEWALS_A_LEASE
            try:
                if due:
                    async with self._database.transaction() as conn:
                        state = await loadtests.renew(conn, name, epoch, self._lease_seconds)
                    renewed = asked
                else:
                    state = await loadtests.held(self._database, name, epoch)
            except FleetError:
                # Whoever cannot say that he is alive stops himself before others take over.
                if self._clock.monotonic() - renewed > self._lease_seconds / 2:
                    stopped.set()
                continue
            if state is None or state in ENDED:
                stopped.set()

    async def _test(self, claim: Claim) -> _End:
        test = claim.test
        if test.attempt > MAX_ATTEMPTS:
            reason = f"It was begun {MAX_ATTEMPTS} times and interrupted each time."
            return _End.failed(Cause.INTERRUPTED, reason)
        try:
            model = await self._registry.model(test.model, "load_test.model")
            clone = await self._clone(claim)
            starting = f"Starting a clone of {model.name} in {test.region}."
            bracket = test.highest_within_qps, test.lowest_beyond_qps
            await self._progress(claim, Progress(State.STARTING, starting, 0.0, *bracket))
            await self._set_clone_present(claim, True)
            await clone.start(model)
            async with (
                asyncio.timeout(_MOST_SECONDS),
                self._open_load(await clone.traffic_address(), clone.target, claim) as load,
            ):
                return await self._search(claim, model, clone, load)
        except TimeoutError:
            return _End.failed(Cause.OUT_OF_TIME, f"It did not converge within {_MOST_SECONDS / 3600:g} h.")
        except RecordingError as error:
            return _End.failed(Cause.RECORDING_UNREADABLE, f"{test.recording} cannot be replayed: {error}.")
        except CloneNotAvailable as error:
            return _End.failed(Cause.CLONE_UNAVAILABLE, f"The clone did not become available: {error}.")
        except (PartUnavailable, DeadlinePassed, StaleEpoch):
            raise
        except FleetError as error:
            return _End.failed(Cause.CLONE_UNAVAILABLE, error.message)

    async def _search(self, claim: Claim, model: Model, clone: Clone, load: Load) -> _End:
        test = claim.test
        # What an interrupted attempt has found is where this one begins.
        known = test.highest_within_qps, test.lowest_beyond_qps
        search = Search(test.start_qps, test.stoppers, test.certification_requests, known)
        end = self._clock.monotonic() + _MOST_SECONDS
        while (plan := search.plan) is not None:
            left = end - self._clock.monotonic()
            if plan.certification and (needed := search.remaining.seconds) > left:
                return _End.failed(Cause.OUT_OF_TIME, _too_long(claim, plan, needed, left))
            if plan.settle:
                await self._progress(claim, self._doing(claim, search, plan, warming_up=True))
                await load.warm_up(plan)
            await self._progress(claim, self._doing(claim, search, plan))
            probe = await _measured(load, replace(plan, settle=False))
            search.add(probe)
            # The bracket, with this probe in it; the rate that comes next follows at once.
            await self._progress(claim, self._doing(claim, search, plan), probe)
            if probe.outcome is Outcome.TRANSPORT_ERRORS and (trouble := await clone.trouble(model.name)):
                reason = f"The clone did not stay available: {trouble.rstrip('.')}."
                return _End.failed(Cause.CLONE_UNAVAILABLE, reason)
        if isinstance(search.result, NotFound):
            return _End(str(search.result), search.result.cause)
        return _End(f"One replica carries {probe.intended_qps:.4g} requests/s.", confirmed=(probe, model.spec.digest))

    def _doing(self, claim: Claim, search: Search, plan: Plan, *, warming_up: bool = False) -> Progress:
        state, message = State.SEARCHING, f"Trying {plan.qps:.4g} requests/s."
        if warming_up:
            duration = claim.test.warm_up_duration
            until = f"for {duration.total_seconds():g} s" if duration else "until its latency has settled"
            message = f"Warming up the clone below {plan.qps:.4g} requests/s, {until}."
        elif plan.certification:
            state = State.CERTIFYING
            message = f"Confirming {plan.qps:.4g} requests/s with {search.length(plan).planned:,} requests."
        return Progress(
            state=state,
            message=message,
            current_qps=plan.qps,
            highest_within_qps=search.highest_within_qps,
            lowest_beyond_qps=search.lowest_beyond_qps,
            expected_end_time=self._clock.now() + timedelta(seconds=search.remaining.seconds),
        )

    async def _progress(self, claim: Claim, progress: Progress, probe: Probe | None = None) -> None:
        async with self._database.transaction() as conn:
            if not await loadtests.progress(conn, claim.test.name, claim.epoch, progress, probe):
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
        failpoint("capacity.before_record.end")
        state = State.FAILED if end.confirmed is None else State.SUCCEEDED
        async with self._database.transaction() as conn:
            certificate = None
            if end.confirmed is not None:
                made = self._certificate(claim, *end.confirmed)
                await certificates.insert(conn, made)
                certificate = made.name
            name, epoch = claim.test.name, claim.epoch
            if not await loadtests.finish(conn, name, epoch, state, end.message, end.cause, certificate):
                # Cancelled in the last moment, or somebody else's by now: the certificate goes with the transaction.
                raise _ClaimLost
        failpoint("capacity.after_record.end")

    def _certificate(self, claim: Claim, probe: Probe, serving_spec_digest: str) -> Certificate:
        test, now = claim.test, self._clock.now()
        return Certificate(
            name=names.CERTIFICATE.format(f"c{secrets.token_hex(8)}"),
            model=test.model,
            flavor=test.flavor,
            max_qps=probe.intended_qps,
            # In a shorter run the answers hang together too much for their interval to be believed.
            confidence=CONFIDENCE if test.certification_requests >= DEFAULT_CERTIFICATION_REQUESTS else 0.0,
            source=Source.LOAD_TEST,
            note=f"Confirmed with {probe.requests:,} requests in {test.region}.",
            actor=test.actor,
            create_time=now,
            expire_time=now + test.validity_duration,
            load_test=test.name,
            region=test.region,
            stoppers=test.stoppers,
            recording=test.recording,
            recording_digest=test.recording_digest,
            generator_health=GeneratorHealth(probe.rate_ratio, probe.send_late_p99_ms, probe.generator_cpu_fraction),
            requests=probe.requests,
            serving_spec_digest=serving_spec_digest,
        )

    async def _give_up(self, claim: Claim, retry_seconds: float) -> None:
        try:
            async with self._database.transaction() as conn:
                await loadtests.give_up_lease(conn, claim.test.name, claim.epoch, retry_seconds)
        except FleetError:
            _log.debug("%s: the lease ends by itself", claim.test.name)


async def _measured(load: Load, plan: Plan) -> Probe:
    """Probes, and measures what it costs this process."""
    used, begun = time.process_time(), time.monotonic()
    probe = await load.probe(plan)
    fraction = (time.process_time() - used) / max(1e-9, time.monotonic() - begun)
    return replace(probe, generator_cpu_fraction=fraction)


def _too_long(claim: Claim, plan: Plan, needed: float, left: float) -> str:
    requests = claim.test.certification_requests
    return (
        f"To confirm {plan.qps:.4g} requests/s with {requests:,} requests would take {needed / 3600:.1f} h; "
        f"{max(0.0, left) / 3600:.1f} of {_MOST_SECONDS / 3600:g} h are left."
    )


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
