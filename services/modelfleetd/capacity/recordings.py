"""The worker that looks after recordings: has agents begin and end them, reads what they recorded, deletes what is old.

Everything it does may be done twice: agents know a recording by its name, datasets are read, and deleting again finds
nothing. So a holder that dies is simply followed by another one, and one that was stalled may write nothing any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from modelfleet.recordings import RecordingError
from modelfleet.recordings.layout import moment
from modelfleetd.capacity.datasets import Datasets
from modelfleetd.capacity.domain.recording import Progress, Source, State
from modelfleetd.capacity.registry import Registry
from modelfleetd.capacity.store import recordings
from modelfleetd.capacity.store.recordings import Claim
from modelfleetd.clock import Clock
from modelfleetd.errors import DeadlinePassed, FleetError, MethodUnknown, PartUnavailable, ResourceNotFound
from modelfleetd.kit.db import Database
from modelfleetd.platform.base import Platform
from modelfleetd.platform.model import RecordingStatus

_log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
_RENEW_SECONDS = 15.0
_POLL_SECONDS = 0.5
# How soon it is looked at again: while it records, and after something did not answer.
_OBSERVE_SECONDS = 2.0
_RETRY_SECONDS = 5.0
# An agent that was away may come back with what it has.
_PATIENCE = timedelta(hours=1)
_NOTHING = Progress()


class Recordings:
    """Looks after one recording at a time. Several workers, and several replicas of the service, share them."""

    name = "recordings"

    def __init__(
        self,
        database: Database,
        registry: Registry,
        platform_at: Callable[[str], Platform],
        datasets: Datasets,
        clock: Clock,
    ) -> None:
        self._database = database
        self._registry = registry
        self._platform_at = platform_at
        self._datasets = datasets
        self._clock = clock

    async def run(self) -> None:
        while True:
            if not await self.round():
                await self._clock.sleep(_POLL_SECONDS)

    async def expire(self) -> None:
        """Deletes what is older than it was to become."""
        while expired := await self._expire_one():
            _log.info("%s has expired", expired)

    async def _expire_one(self) -> str | None:
        async with self._database.transaction() as conn:
            return await recordings.expire_one(conn)

    async def round(self) -> bool:
        """Looks after one recording; False where none needs it."""
        async with self._database.transaction() as conn:
            claim = await recordings.claim(conn, LEASE_SECONDS)
        if claim is None:
            return False
        pause = 0.0
        try:
            pause = await self._look_after(claim)
        except (PartUnavailable, DeadlinePassed) as error:
            _log.warning("%s waits: %s", claim.recording.name, error)
            pause = _RETRY_SECONDS
            await self._wait_for(claim, str(error))
        finally:
            # Also where the service stops: the next one that looks may go on.
            await self._look_again(claim, pause)
        return True

    async def _look_after(self, claim: Claim) -> float:
        """Does what there is to do; returns in how many seconds to look again."""
        if claim.deleted:
            return await self._delete(claim)
        if claim.recording.source is Source.CLIENT:
            await self._read(claim, _NOTHING)
            return 0.0
        try:
            status = await self._ask(claim)
        except (PartUnavailable, DeadlinePassed):
            raise
        except FleetError as error:
            await self._fail(claim, _refused(claim, error))
            return 0.0
        progress = _progress(status)
        if status.active:
            await self._advance(claim, State.RECORDING, progress)
        elif status.failed:
            await self._fail(claim, status.message, progress)
        elif not status.requests:
            await self._fail(claim, f"No request was recorded. {status.message}", progress)
        else:
            await self._read(claim, progress)
        return _OBSERVE_SECONDS

    async def _ask(self, claim: Claim) -> RecordingStatus:
        """Has the agent begin or end it, or asks how far it is."""
        recording = claim.recording
        assert recording.region is not None
        platform = self._platform_at(await self._registry.agent_address(recording.region, "recording.region"))
        if claim.stopped_by:
            return await platform.stop_recording(recording.name)
        if recording.state is State.PENDING:
            return await platform.start_recording(recording.plan)
        return await platform.observe_recording(recording.name)

    async def _wait_for(self, claim: Claim, why: str) -> None:
        """Says what it waits for; gives up where that lasts too long."""
        recording = claim.recording
        if claim.deleted:
            return
        begun = recording.state is State.RECORDING
        if self._clock.now() >= recording.until + (_PATIENCE if begun else timedelta()):
            await self._fail(claim, f"It was never begun: {why}" if not begun else f"Its agent is gone: {why}")
            return
        await self._advance(claim, recording.state, replace(recording.progress, message=why))

    async def _read(self, claim: Claim, progress: Progress) -> None:
        """Reads all of a dataset: what cannot be read here cannot be replayed here either."""

        async def alive() -> bool:
            async with self._database.transaction() as conn:
                return await recordings.renew(conn, claim, LEASE_SECONDS)

        try:
            summary = await self._datasets.summarize(claim.recording.uri, alive, _RENEW_SECONDS)
        except RecordingError as error:
            await self._fail(claim, f"It cannot be read: {error}.", progress)
            return
        if summary is None:
            return
        read = Progress(
            progress.message,
            summary.requests,
            summary.bytes,
            progress.dropped_requests,
            None if summary.first_us is None else moment(summary.first_us),
            None if summary.last_us is None else moment(summary.last_us),
        )
        if summary.requests:
            await self._advance(claim, State.READY, read, summary.digest)
        else:
            await self._fail(claim, "It has no requests.", read)

    async def _delete(self, claim: Claim) -> float:
        try:
            await self._datasets.delete(claim.recording.uri)
        except RecordingError as error:
            _log.warning("%s is not gone yet: %s", claim.recording.name, error)
            return _RETRY_SECONDS
        async with self._database.transaction() as conn:
            await recordings.forget(conn, claim)
        _log.info("%s and its dataset are deleted", claim.recording.name)
        return 0.0

    async def _fail(self, claim: Claim, message: str, progress: Progress = _NOTHING) -> None:
        await self._advance(claim, State.FAILED, replace(progress, message=message))

    async def _advance(self, claim: Claim, state: State, progress: Progress, digest: str = "") -> None:
        async with self._database.transaction() as conn:
            if not await recordings.advance(conn, claim, state, progress, digest):
                _log.warning("%s was taken over by somebody else, or has ended", claim.recording.name)

    async def _look_again(self, claim: Claim, seconds: float) -> None:
        try:
            async with self._database.transaction() as conn:
                await recordings.look_again(conn, claim, seconds)
        except FleetError:
            _log.debug("%s: the lease ends by itself", claim.recording.name)


def _progress(status: RecordingStatus) -> Progress:
    return Progress(
        status.message,
        status.requests,
        status.bytes,
        status.dropped_requests,
        status.first_request_time,
        status.last_request_time,
    )


def _refused(claim: Claim, error: FleetError) -> str:
    """What an agent's refusal means to whoever wanted the recording."""
    recording = claim.recording
    if isinstance(error, ResourceNotFound):
        if recording.state is State.RECORDING:
            return f"The agent of {recording.region} does not know it any more."
        if claim.stopped_by:
            return f"{claim.stopped_by} stopped it before it began."
        return f"{recording.model_type} is not served in {recording.region}: there is nothing to record."
    if isinstance(error, MethodUnknown):
        return f"The agent of {recording.region} cannot record; let a client do it (modelfleet.TrafficRecorder)."
    return error.message
