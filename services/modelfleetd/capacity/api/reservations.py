"""Reservations: capacity held for launches."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity import holds, lines
from modelfleetd.capacity.admissions import Arrival
from modelfleetd.capacity.api.base import Base, Context, actor, before, new_name
from modelfleetd.capacity.domain.reservation import LIVE, Asked
from modelfleetd.capacity.domain.simulation import simulate
from modelfleetd.capacity.domain.waiting import NEWEST
from modelfleetd.capacity.store import reservations
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import reservations as wire
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection

_WATCH_SECONDS = 0.25


class _OnlyLooked(Exception):
    """Takes back what was done to see what would be there."""


class Reservations(Base):
    """Implements the methods of reservations."""

    async def CreateReservation(self, request: pb.CreateReservationRequest, context: Context) -> pb.Reservation:
        made = await self._admissions.reserve(
            Arrival(
                request=request,
                name=new_name(names.RESERVATION, "r"),
                asked=wire.asked_from_proto(request.reservation),
                time_to_live=wire.time_to_live_from_proto(request),
                may_wait=request.may_wait,
                actor=actor(),
            )
        )
        if made.state == pb.Reservation.PENDING or request.reservation.takes_over:
            self._freed()
        return made

    async def GetReservation(self, request: pb.GetReservationRequest, context: Context) -> pb.Reservation:
        return wire.reservation_to_proto(await reservations.get(self._database, request.name))

    async def ListReservations(
        self, request: pb.ListReservationsRequest, context: Context
    ) -> pb.ListReservationsResponse:
        page = paging.read(request, int)
        found = await reservations.page(
            self._database,
            request.pool,
            request.launch,
            before(page),
            page.size + 1,
            only_waiting=request.waiting,
        )
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: wire.reservation_to_proto(row.reservation)
        )
        return pb.ListReservationsResponse(reservations=shown, next_page_token=token)

    async def WatchReservation(
        self, request: pb.WatchReservationRequest, context: Context
    ) -> AsyncIterator[pb.Reservation]:
        seen = 0
        while True:
            if await reservations.version(self._database, request.name) != seen:
                found = await reservations.get(self._database, request.name)
                seen = found.version
                yield wire.reservation_to_proto(found)
                if found.state not in LIVE:
                    return
            await self._clock.sleep(_WATCH_SECONDS)

    async def RenewReservation(self, request: pb.RenewReservationRequest, context: Context) -> pb.Reservation:
        time_to_live, release = wire.time_to_live_from_proto(request), wire.release_time_from_proto(request)

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.renew(conn, request.name, time_to_live, release))

        return await self._freeing(request, act)

    async def ActivateReservation(self, request: pb.ActivateReservationRequest, context: Context) -> pb.Reservation:
        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.activate(conn, request.name))

        return await change(self._database, request, pb.Reservation, act)

    async def SettleReservation(self, request: pb.SettleReservationRequest, context: Context) -> pb.Reservation:
        settlement, by = wire.settlement_from_proto(request), actor()

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.end(conn, request.name, settlement, by))

        return await self._freeing(request, act)

    async def CancelReservation(self, request: pb.CancelReservationRequest, context: Context) -> pb.Reservation:
        by = actor()

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.cancel(conn, request.name, by))

        return await self._freeing(request, act)

    async def SimulateReservation(
        self, request: pb.SimulateReservationRequest, context: Context
    ) -> pb.SimulateReservationResponse:
        asked = wire.asked_from_proto(request.reservation)
        swaps = wire.swaps_from_proto(request)
        view, now = await self._view(asked)
        simulation = simulate(asked, swaps, lambda each: view.line.prospect_of(view.claim("", NEWEST, each)))
        return wire.simulation_to_proto(simulation, now)

    async def _view(self, asked: Asked) -> tuple[lines.View, datetime]:
        """What a reservation would find now; and what time it is."""
        if not asked.takes_over:
            async with self._database.transaction(readonly=True) as conn:
                return await lines.view(conn, asked.pool, [asked], lock=False, wait=True), await lines.now(conn)
        # As it would be handed over: done, looked at, and taken back.
        found: list[tuple[lines.View, datetime]] = []
        with contextlib.suppress(_OnlyLooked):
            async with self._database.transaction() as conn:
                await holds.hand_over(conn, asked, actor())
                view = await lines.view(conn, asked.pool, [asked], lock=False, wait=True)
                found.append((view, await lines.now(conn)))
                raise _OnlyLooked
        return found[0]

    async def _freeing(self, request: Any, act: Callable[[Connection], Awaitable[pb.Reservation]]) -> pb.Reservation:
        """Does what a request asks for; those who wait are looked at right after."""
        answer = await change(self._database, request, pb.Reservation, act)
        self._freed()
        return answer
