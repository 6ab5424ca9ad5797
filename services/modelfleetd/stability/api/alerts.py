"""Alerts, and the silences that keep them quiet."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from modelfleet.stability.v1 import alerts_pb2 as pb
from modelfleetd.kit import filter as filters
from modelfleetd.kit import paging
from modelfleetd.kit.auth import current_principal
from modelfleetd.kit.db import Connection
from modelfleetd.kit.idempotency import answered, once
from modelfleetd.names import MODEL, MODEL_TYPE, SILENCE
from modelfleetd.stability.api.base import Base, Context
from modelfleetd.stability.store import alerts, silences
from modelfleetd.stability.wire import alerts as wire

_NEWEST = 2**62


class Alerts(Base):
    """Implements the methods of alerts and silences."""

    async def GetAlert(self, request: pb.GetAlertRequest, context: Context) -> pb.Alert:
        return wire.alert_to_proto(await alerts.get(self._database, request.name, self._clock.now()))

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Context) -> pb.ListAlertsResponse:
        page = paging.read(request, int, int)
        fits = filters.read(request.filter, wire.FIELDS)
        after = None if page.position is None else (int(page.position[0]), int(page.position[1]))
        found = await alerts.page(self._database, fits, after, page.size + 1, self._clock.now())
        shown, token = page.answer(
            found, lambda row: (row.alert.state.value, row.sequence), lambda row: wire.alert_to_proto(row.alert)
        )
        return pb.ListAlertsResponse(alerts=shown, next_page_token=token)

    async def CreateSilence(self, request: pb.CreateSilenceRequest, context: Context) -> pb.Silence:
        # Before it is checked: a repeated call is answered also when the silence is over.
        async with self._database.connection() as conn:
            given = await answered(conn, request, pb.Silence)
        if given is not None:
            return given
        name = SILENCE.format(f"s{secrets.token_hex(8)}")
        silence = wire.silence_from_proto(request.silence, name, _actor(), self._clock.now())
        await self._registry.check_exists("silence.resource", silence.resource)
        if request.validate_only:
            return wire.silence_to_proto(silence)

        async def act(conn: Connection) -> pb.Silence:
            return wire.silence_to_proto(await silences.insert(conn, silence))

        return await self._changed(request, act)

    async def GetSilence(self, request: pb.GetSilenceRequest, context: Context) -> pb.Silence:
        return wire.silence_to_proto(await silences.get(self._database, request.name))

    async def ListSilences(self, request: pb.ListSilencesRequest, context: Context) -> pb.ListSilencesResponse:
        page = paging.read(request, int)
        if request.resource and not MODEL.match(request.resource):
            MODEL_TYPE.parse(request.resource, "resource")
        before = _NEWEST if page.position is None else int(page.position[0])
        active_at = self._clock.now() if request.active else None
        found = await silences.page(self._database, request.resource, before, page.size + 1, active_at)
        shown, token = page.answer(found, lambda row: (row.sequence,), lambda row: wire.silence_to_proto(row.silence))
        return pb.ListSilencesResponse(silences=shown, next_page_token=token)

    async def EndSilence(self, request: pb.EndSilenceRequest, context: Context) -> pb.Silence:
        async def act(conn: Connection) -> pb.Silence:
            return wire.silence_to_proto(await silences.end(conn, request.name, _actor(), self._clock.now()))

        return await self._changed(request, act)

    async def _changed(
        self,
        request: pb.CreateSilenceRequest | pb.EndSilenceRequest,
        act: Callable[[Connection], Awaitable[pb.Silence]],
    ) -> pb.Silence:
        """Changes a silence once by the id of the request, and has alerts follow at once."""
        answer = await self._database.run(lambda conn: once(conn, request, pb.Silence, lambda: act(conn)))
        self._silences_changed()
        return answer


def _actor() -> str:
    principal = current_principal()
    return f"{principal.name} for {principal.on_behalf_of}" if principal.on_behalf_of else principal.name
