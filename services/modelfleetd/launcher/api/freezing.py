"""Freeze windows: who may make them, and launches that go on in spite of them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from modelfleet.launcher.v1 import freeze_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import EtagMismatch, ReferenceNotFound, ResourceExists
from modelfleetd.kit import paging
from modelfleetd.kit.auth import Role
from modelfleetd.kit.db import Connection
from modelfleetd.kit.idempotency import answered, once
from modelfleetd.kit.updates import updated
from modelfleetd.launcher.api.base import Context, caller
from modelfleetd.launcher.api.steering import Steering
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.freeze import FreezeWindow, next_occurrence
from modelfleetd.launcher.domain.record import FreezeOverride
from modelfleetd.launcher.wire import freeze as wire
from modelfleetd.names import FREEZE_WINDOW

_Answer = TypeVar("_Answer", bound=Message)


class Freezing(Steering):
    """Freeze windows, and their overrides."""

    async def GetFreezeWindow(
        self, request: freeze_pb2.GetFreezeWindowRequest, context: Context
    ) -> freeze_pb2.FreezeWindow:
        return wire.window_to_proto(await self._store.get_freeze_window(request.name), await self._store.now())

    async def ListFreezeWindows(
        self, request: freeze_pb2.ListFreezeWindowsRequest, context: Context
    ) -> freeze_pb2.ListFreezeWindowsResponse:
        page = paging.read(request, str)
        after = str(page.position[0]) if page.position else ""
        found: Sequence[FreezeWindow] = await self._store.freeze_windows(after=after)
        now = await self._store.now()
        if request.active_only:
            found = [window for window in found if next_occurrence(window.schedule, now) is not None]
        shown, token = page.answer(
            found[: page.size + 1], lambda window: (window.name,), lambda window: wire.window_to_proto(window, now)
        )
        return freeze_pb2.ListFreezeWindowsResponse(freeze_windows=shown, next_page_token=token)

    async def CreateFreezeWindow(
        self, request: freeze_pb2.CreateFreezeWindowRequest, context: Context
    ) -> freeze_pb2.FreezeWindow:
        if (before := await self._before(request, freeze_pb2.FreezeWindow)) is not None:
            return before
        name = FREEZE_WINDOW.format(request.freeze_window_id)
        wanted = wire.window_from_proto(request.freeze_window, name, str(uuid.uuid4()), caller())
        await self._expect_keeper(wanted, "CreateFreezeWindow")
        await self._check_teams(wanted)
        now = await self._store.now()
        if request.validate_only:
            if await self._store.find_freeze_window(name) is not None:
                raise ResourceExists(name)
            return wire.window_to_proto(wanted, now)

        async def act() -> freeze_pb2.FreezeWindow:
            return wire.window_to_proto(await self._store.insert_freeze_window(conn, wanted), now)

        async with self._store.transaction() as conn:
            return await once(conn, request, freeze_pb2.FreezeWindow, act)

    async def UpdateFreezeWindow(
        self, request: freeze_pb2.UpdateFreezeWindowRequest, context: Context
    ) -> freeze_pb2.FreezeWindow:
        if (before := await self._before(request, freeze_pb2.FreezeWindow)) is not None:
            return before
        given, now = request.freeze_window, await self._store.now()
        current = await self._store.get_freeze_window(given.name)
        await self._expect_keeper(current, "UpdateFreezeWindow")
        wanted = _changed(current, request, now)
        await self._expect_keeper(wanted, "UpdateFreezeWindow")
        await self._check_teams(wanted)
        if request.validate_only:
            if given.etag and given.etag != current.etag:
                raise EtagMismatch(current.name, given.etag, current.etag)
            return wire.window_to_proto(wanted, now)

        async def act() -> freeze_pb2.FreezeWindow:
            locked = await self._locked(conn, current, given.etag)
            written = await self._store.update_freeze_window(conn, _changed(locked, request, now))
            await self._store.look_at_frozen(conn, written)
            return wire.window_to_proto(written, now)

        async with self._store.transaction() as conn:
            answer = await once(conn, request, freeze_pb2.FreezeWindow, act)
        self._wake()
        return answer

    async def DeleteFreezeWindow(self, request: freeze_pb2.DeleteFreezeWindowRequest, context: Context) -> Empty:
        if (before := await self._before(request, Empty)) is not None:
            return before
        current = await self._store.get_freeze_window(request.name)
        await self._expect_keeper(current, "DeleteFreezeWindow")

        async def act() -> Empty:
            await self._store.delete_freeze_window(conn, await self._locked(conn, current, request.etag))
            await self._store.look_at_frozen(conn, current)
            return Empty()

        async with self._store.transaction() as conn:
            answer = await once(conn, request, Empty, act)
        self._wake()
        return answer

    async def OverrideLaunchFreeze(self, request: pb.OverrideLaunchFreezeRequest, context: Context) -> pb.Launch:
        who, reason = caller(), verbs.check_reason(request.reason)
        # First of all there has to be such a launch.
        await self._store.get(request.name)
        window = await self._store.find_freeze_window(request.freeze_window)
        if window is None:
            raise ReferenceNotFound("freeze_window", request.freeze_window)
        return await self._steer(
            request,
            "FreezeOverridden",
            f"{window.name}: {reason}",
            lambda launch, now: verbs.override_freeze(
                launch, FreezeOverride(window.name, reason, who, now, window.uid)
            ),
        )

    async def _before(self, request: Any, answer: type[_Answer]) -> _Answer | None:
        """What was answered to the same request before; None where it is new."""
        async with self._store.transaction(readonly=True) as conn:
            return await answered(conn, request, answer)

    async def _locked(self, conn: Connection, seen: FreezeWindow, etag: str) -> FreezeWindow:
        """The window, locked, in the scope for which the caller's roles were looked at.

        Raises:
            EtagMismatch: it is another one by now.
        """
        locked = await self._store.lock_freeze_window(conn, seen.name, etag)
        if locked.teams != seen.teams:
            raise EtagMismatch(seen.name, seen.etag, locked.etag)
        return locked

    async def _expect_keeper(self, window: FreezeWindow, method: str) -> None:
        """Expects an OWNER of every team of its scope; of a window for all teams, an ADMIN."""
        if not window.teams:
            await self._expect_role((), None, method)
        for team in window.teams:
            await self._expect_role((Role.OWNER,), team, method)

    async def _check_teams(self, window: FreezeWindow) -> None:
        for index, team in enumerate(window.teams):
            await self._world.registry.check_team(team, f"freeze_window.teams[{index}]")


def _changed(current: FreezeWindow, request: freeze_pb2.UpdateFreezeWindowRequest, now: datetime) -> FreezeWindow:
    wanted = updated(wire.window_to_proto(current, now), request.freeze_window, request.update_mask, wire.FIELDS)
    return wire.window_from_proto(wanted, current.name, current.uid, current.actor)
