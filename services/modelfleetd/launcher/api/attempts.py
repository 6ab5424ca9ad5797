"""Attempts of launches: a new one, and those that are over."""

from __future__ import annotations

from dataclasses import replace

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import RouteBusy
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection
from modelfleetd.kit.idempotency import answered, once
from modelfleetd.launcher.api.base import Context, caller
from modelfleetd.launcher.api.creating import Creating
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.wire import launches as wire


class Attempts(Creating):
    """Trying again, and reading what was tried."""

    async def RetryLaunch(self, request: pb.RetryLaunchRequest, context: Context) -> pb.Launch:
        verbs.check_reason(request.reason)
        async with self._store.transaction(readonly=True) as conn:
            if (before := await answered(conn, request, pb.Launch)) is not None:
                return before
        planned = await self._can_be_retried(request)
        async with self._store.transaction() as conn:
            answer = await once(conn, request, pb.Launch, lambda: self._retry(conn, request, planned))
        await self._fence_whoever_goes_back(planned)
        self._wake()
        self._notifier.changed(request.name)
        return answer

    async def _can_be_retried(self, request: pb.RetryLaunchRequest) -> Launch:
        """Plans the next attempt, so that whatever stands in its way is said at once; the attempt as it would begin."""
        launch = await self._store.get(request.name)
        if not launch.ended:
            # Refused below, unless the same call has begun the attempt meanwhile.
            return launch
        again = verbs.retry(launch, caller(), await self._store.now())
        await self._expect_no_hold(again)
        type_ = await self._world.registry.model_type(again.model_type)
        await self._expect_pool(again.pool, type_.team)
        # Only planned: nothing is claimed yet, so that agents are asked without an epoch.
        again = replace(again, baseline=type_.baseline, epoch=0)
        busy = await self._store.first_on(again.model_type, only_mitigations=again.mitigates)
        if busy and not request.queue:
            raise RouteBusy(again.model_type, busy)
        follows = bool(busy)
        if not follows and again.mitigates:
            again, follows = await self._beside(again)
        # What waits for another launch is planned when its turn comes.
        if not follows:
            await self._expect_bookings(again)
            await self._planned(again, keep_plan=False)
        return again

    async def _retry(self, conn: Connection, request: pb.RetryLaunchRequest, planned: Launch) -> pb.Launch:
        launch, now = await self._store.lock(conn, request.name)
        again = replace(verbs.retry(launch, caller(), now), baseline=planned.baseline, beside=planned.beside)
        await self._expect_no_hold(again, conn)
        ahead = await self._store.ahead_on(conn, again.model_type, only_mitigations=again.mitigates)
        if ahead is not None and not request.queue:
            raise RouteBusy(again.model_type, ahead)
        if ahead is not None:
            again = replace(again, queued=True, behind=ahead)
        elif again.mitigates:
            again = await self._store.with_precedence(conn, again, now)
        if again.queued:
            # Its baseline is pinned when it starts: the launch before it is about to put another one in place.
            again = replace(again, baseline="", beside=None)
        again = await self._store.begin_attempt(conn, again)
        await self._store.tell(conn, launch, again, now)
        said = Event("Retried", f"attempt {again.attempt}: {request.reason}", now, actor=caller())
        await self._store.say(conn, again, said)
        await self._trace(conn, again, said)
        return wire.launch_to_proto(again, (), now)

    async def GetAttempt(self, request: pb.GetAttemptRequest, context: Context) -> pb.Attempt:
        launch, is_present = await self._store.attempt(request.name)
        verdicts = await self._store.verdicts_of_attempts(launch.name, [launch.attempt])
        now = await self._store.now()
        return wire.attempt_to_proto(launch, verdicts.get(launch.attempt, ()), now, is_present=is_present)

    async def ListAttempts(self, request: pb.ListAttemptsRequest, context: Context) -> pb.ListAttemptsResponse:
        page = paging.read(request, int)
        before = int(page.position[0]) if page.position else None
        found = await self._store.attempts(request.parent, before=before, limit=page.size + 1)
        verdicts = await self._store.verdicts_of_attempts(request.parent, [launch.attempt for launch, _ in found])
        now = await self._store.now()
        shown, token = page.answer(
            found,
            lambda row: (row[0].attempt,),
            lambda row: wire.attempt_to_proto(row[0], verdicts.get(row[0].attempt, ()), now, is_present=row[1]),
        )
        return pb.ListAttemptsResponse(attempts=shown, next_page_token=token)
