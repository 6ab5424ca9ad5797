"""Reservations: capacity held for launches."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity import holds
from modelfleetd.capacity.api.base import Base, Context, actor, before, new_name
from modelfleetd.capacity.store import reservations
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import reservations as wire
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection


class Reservations(Base):
    """Implements the methods of reservations."""

    async def CreateReservation(self, request: pb.CreateReservationRequest, context: Context) -> pb.Reservation:
        asked = wire.asked_from_proto(request.reservation)
        time_to_live = wire.time_to_live_from_proto(request)
        name, by = new_name(names.RESERVATION, "r"), actor()

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.hold(conn, name, asked, time_to_live, by))

        async with self._turns.of(asked.pool):
            return await change(self._database, request, pb.Reservation, act)

    async def GetReservation(self, request: pb.GetReservationRequest, context: Context) -> pb.Reservation:
        return wire.reservation_to_proto(await reservations.get(self._database, request.name))

    async def ListReservations(
        self, request: pb.ListReservationsRequest, context: Context
    ) -> pb.ListReservationsResponse:
        page = paging.read(request, int)
        found = await reservations.page(self._database, request.pool, request.launch, before(page), page.size + 1)
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: wire.reservation_to_proto(row.reservation)
        )
        return pb.ListReservationsResponse(reservations=shown, next_page_token=token)

    async def ActivateReservation(self, request: pb.ActivateReservationRequest, context: Context) -> pb.Reservation:
        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.activate(conn, request.name))

        return await change(self._database, request, pb.Reservation, act)

    async def SettleReservation(self, request: pb.SettleReservationRequest, context: Context) -> pb.Reservation:
        settlement, by = wire.settlement_from_proto(request), actor()

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.end(conn, request.name, settlement, by))

        return await change(self._database, request, pb.Reservation, act)

    async def CancelReservation(self, request: pb.CancelReservationRequest, context: Context) -> pb.Reservation:
        by = actor()

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.cancel(conn, request.name, by))

        return await change(self._database, request, pb.Reservation, act)

    async def SimulateReservation(
        self, request: pb.SimulateReservationRequest, context: Context
    ) -> pb.SimulateReservationResponse:
        asked = wire.asked_from_proto(request.reservation)
        async with self._database.transaction(readonly=True) as conn:
            admission = await holds.decide(conn, asked, lock=False)
        return wire.simulation_to_proto(admission, asked.pool)
