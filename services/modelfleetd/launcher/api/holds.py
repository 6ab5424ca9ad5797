"""Holds on models."""

from __future__ import annotations

import uuid
from datetime import datetime

from modelfleet.launcher.v1 import holds_pb2 as pb
from modelfleetd.errors import ResourceExists
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection
from modelfleetd.kit.idempotency import once
from modelfleetd.launcher.api.base import Base, Context, caller
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.holds_on_models import ModelHold, lift, stopped
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.wire.holds import hold_to_proto
from modelfleetd.names import HOLD, MODEL, check_id


def _new_hold(model: str, reason: str, actor: str, now: datetime, *, hold_id: str = "", launch: str = "") -> ModelHold:
    name = HOLD.format(hold_id or f"h-{uuid.uuid4().hex[:12]}")
    return ModelHold(name, str(uuid.uuid4()), model, reason, actor, now, launch)


class Holding(Base):
    """Putting models on hold."""

    async def _put_on_hold(self, conn: Connection, hold: ModelHold) -> None:
        """Stores a hold on a model that is locked; launches of it that have not begun never do."""
        await self._store.insert_hold(conn, hold)
        for launch in await self._store.lock_launches_of(conn, hold.model):
            after = stopped(launch, hold, hold.create_time)
            if after != launch:
                said = Event("Aborted", f"{hold.name}: {hold.reason}", hold.create_time, actor=hold.actor)
                await self._store.put(conn, after, said)

    async def _hold_what_was_rolled_back(self, conn: Connection, launch: Launch, model: str) -> None:
        """Puts the model on hold that a rollback takes away. Where somebody has done that already it stays theirs."""
        if await self._store.lock_hold_on(conn, model) is None:
            hold = _new_hold(model, launch.reason, launch.actor, launch.create_time, launch=launch.name)
            await self._put_on_hold(conn, hold)


class HoldsOnModels(Holding):
    """Reading holds, making them, lifting them."""

    async def GetHold(self, request: pb.GetHoldRequest, context: Context) -> pb.Hold:
        return hold_to_proto(await self._store.hold(request.name))

    async def ListHolds(self, request: pb.ListHoldsRequest, context: Context) -> pb.ListHoldsResponse:
        page = paging.read(request, int)
        before = int(page.position[0]) if page.position else None
        rows = await self._store.holds(
            before=before, limit=page.size + 1, model=request.model, include_lifted=request.include_lifted
        )
        shown, token = page.answer(rows, lambda row: (row[0],), lambda row: hold_to_proto(row[1]))
        return pb.ListHoldsResponse(holds=shown, next_page_token=token)

    async def CreateHold(self, request: pb.CreateHoldRequest, context: Context) -> pb.Hold:
        hold_id = check_id(request.hold_id, "hold_id") if request.hold_id else ""
        MODEL.parse(request.hold.model, "hold.model")
        reason = verbs.check_reason(request.hold.reason, "hold.reason")
        await self._world.registry.model(request.hold.model, "hold.model")
        model, who = request.hold.model, caller()

        async def act() -> pb.Hold:
            before = await self._store.lock_hold_on(conn, model)
            if before is not None:
                raise ResourceExists(before.name)
            hold = _new_hold(model, reason, who, await self._store.now(conn), hold_id=hold_id)
            await self._put_on_hold(conn, hold)
            return hold_to_proto(hold)

        async with self._store.transaction() as conn:
            answer = await once(conn, request, pb.Hold, act)
        self._wake()
        return answer

    async def LiftHold(self, request: pb.LiftHoldRequest, context: Context) -> pb.Hold:
        who, reason = caller(), verbs.check_reason(request.reason)

        async def act() -> pb.Hold:
            hold, now = await self._store.lock_hold(conn, request.name)
            lifted = lift(hold, who, reason, now)
            if lifted != hold:
                await self._store.put_lifted(conn, lifted)
            return hold_to_proto(lifted)

        async with self._store.transaction() as conn:
            return await once(conn, request, pb.Hold, act)
