"""Taking back a launch that has succeeded."""

from __future__ import annotations

from dataclasses import replace

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.kit.idempotency import answered
from modelfleetd.launcher.api.base import Context
from modelfleetd.launcher.api.creating import Creating
from modelfleetd.launcher.domain import verbs


class RollingBack(Creating):
    """Taking back a launch that has succeeded."""

    async def RollBackLaunch(self, request: pb.RollBackLaunchRequest, context: Context) -> pb.Launch:
        reason = verbs.check_reason(request.reason)
        finished = await self._store.get(request.name)
        # What it asks for follows from a launch that never changes any more, so a repeated call asks for the same.
        asked = pb.CreateLaunchRequest(
            launch_id=request.launch_id,
            launch=pb.Launch(
                model_type=finished.model_type,
                candidate=finished.baseline,
                strategy=pb.Launch.ROLL_BACK,
                pool=finished.pool,
                reason=reason,
            ),
            validate_only=request.validate_only,
            request_id=request.request_id,
        )
        async with self._store.transaction(readonly=True) as conn:
            if (before := await answered(conn, asked, pb.Launch)) is not None:
                return before
        baseline = (await self._world.registry.model_type(finished.model_type)).baseline
        followed_by = await self._store.last_succeeded_on(finished.model_type)
        verbs.check_taken_back(finished, baseline, followed_by)
        launch = await self._new_launch(asked, may_use_pool=True)
        return await self._start(asked, replace(launch, rolls_back=finished.name))
