"""The verbs: each once for each request_id, in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import RoleMissing
from modelfleetd.kit.auth import Role, current_principal
from modelfleetd.kit.idempotency import once
from modelfleetd.launcher.api.base import Base, Context, caller
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.decision import Approver
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.wire import launches as wire

_log = logging.getLogger(__name__)

Verb: TypeAlias = Callable[[Launch, datetime], Launch]


_Steering: TypeAlias = (
    pb.PauseLaunchRequest
    | pb.ResumeLaunchRequest
    | pb.SkipLaunchStepRequest
    | pb.AbortLaunchRequest
    | pb.ApproveLaunchRequest
    | pb.RejectLaunchRequest
    | pb.PromoteLaunchRequest
    | pb.OverrideLaunchFreezeRequest
)


class Steering(Base):
    """What people do to a launch."""

    async def PauseLaunch(self, request: pb.PauseLaunchRequest, context: Context) -> pb.Launch:
        who, reason = caller(), verbs.check_reason(request.reason)
        return await self._steer(request, "Paused", reason, lambda launch, now: verbs.pause(launch, who, reason, now))

    async def ResumeLaunch(self, request: pb.ResumeLaunchRequest, context: Context) -> pb.Launch:
        who, everybody = caller(), request.any_author
        what = "removes every reason to pause" if everybody else "removes its reason to pause"
        return await self._steer(
            request, "Resumed", what, lambda launch, now: verbs.resume(launch, who, now, any_author=everybody)
        )

    async def SkipLaunchStep(self, request: pb.SkipLaunchStepRequest, context: Context) -> pb.Launch:
        who, reason = caller(), verbs.check_reason(request.reason)
        return await self._steer(
            request, "StepSkipped", reason, lambda launch, _: verbs.skip_step(launch, who, request.expected_step)
        )

    async def PromoteLaunch(self, request: pb.PromoteLaunchRequest, context: Context) -> pb.Launch:
        who, reason = caller(), verbs.check_reason(request.reason)
        return await self._steer(
            request, "Promoted", reason, lambda launch, now: verbs.promote(launch, who, reason, now)
        )

    async def AbortLaunch(self, request: pb.AbortLaunchRequest, context: Context) -> pb.Launch:
        who, reason = caller(), verbs.check_reason(request.reason)
        return await self._steer(
            request, "Aborted", reason, lambda launch, now: verbs.abort(launch, who, reason, now), fence=True
        )

    async def ApproveLaunch(self, request: pb.ApproveLaunchRequest, context: Context) -> pb.Launch:
        await self._expect_approver(request.name, "ApproveLaunch")
        who, digest = caller(), request.envelope_digest
        return await self._steer(
            request, "Approved", f"approves {digest}", lambda launch, now: verbs.approve(launch, who, digest, now)
        )

    async def RejectLaunch(self, request: pb.RejectLaunchRequest, context: Context) -> pb.Launch:
        await self._expect_approver(request.name, "RejectLaunch")
        who, reason = caller(), verbs.check_reason(request.reason)
        return await self._steer(
            request, "Rejected", reason, lambda launch, now: verbs.reject(launch, who, reason, now)
        )

    async def _expect_approver(self, name: str, method: str) -> None:
        """Expects that the caller may approve what the launch waits with: somebody of its team; where the team's launch
        policy has not accepted its capacity, somebody whom that names.

        Raises:
            RoleMissing: the caller has none of the roles.
        """
        launch = await self._store.get(name)
        team = (await self._world.registry.model_type(launch.model_type)).team
        approvers = [Approver(role.name, team) for role in (Role.APPROVER, Role.OWNER)]
        waits = launch.state is State.AWAITING_APPROVAL
        if waits and launch.decision is not None and launch.decision.needs_approval:
            approvers = list(launch.decision.approvers)
        principal = current_principal()
        everywhere = principal.roles_everywhere | await self._roles.roles(principal, None)
        for approver in approvers:
            bound = everywhere | await self._roles.roles(principal, approver.team)
            if not bound.isdisjoint({Role[approver.role], Role.ADMIN}):
                return
        first = approvers[0].team
        elsewhere = [str(approver) for approver in approvers if approver.team != first]
        needed = [*(approver.role for approver in approvers if approver.team == first), *elsewhere]
        raise RoleMissing(principal.name, method, needed, first)

    async def _steer(
        self, request: _Steering, event: str, message: str, verb: Verb, *, fence: bool = False
    ) -> pb.Launch:
        """Does a verb in one transaction, once for each request_id, and has the launch looked at.

        Args:
            request: of the verb.
            event: what it is called in the history.
            message: what the history says of it.
            verb: makes the launch after it.
            fence: whether whoever acts for the launch now is to do nothing more.
        """
        who, taken = caller(), None

        async def act() -> pb.Launch:
            nonlocal taken
            launch, now = await self._store.lock(conn, request.name)
            after = verb(launch, now)
            if after != launch:
                said = Event(event, message, now, step=launch.step.number, actor=who)
                await self._trace(conn, launch, said)
                after = await self._store.put(conn, after, said, fence=fence)
                taken = after if fence else None
            return wire.launch_to_proto(after, (), now)

        async with self._store.transaction() as conn:
            answer = await once(conn, request, pb.Launch, act)
        if taken is not None:
            await self._fence(taken)
        self._wake()
        self._notifier.changed(request.name)
        return answer
