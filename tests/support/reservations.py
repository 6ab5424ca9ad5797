"""Reservations without a server: asked for, looked at and simulated on a database."""

from __future__ import annotations

import uuid
from datetime import timedelta

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity import lines
from modelfleetd.capacity.admissions import Admissions, Arrival
from modelfleetd.capacity.domain.reservation import Asked, Reservation
from modelfleetd.capacity.domain.waiting import Prospect
from modelfleetd.capacity.store import reservations
from modelfleetd.kit.db import Database

HOUR = timedelta(hours=1)


def arrival(asked: Asked, *, time_to_live: timedelta = HOUR, may_wait: bool = False, key: str = "") -> Arrival:
    """A call that asks for a reservation."""
    request = pb.CreateReservationRequest(request_id=key or str(uuid.uuid4()), may_wait=may_wait)
    request.reservation.launch = asked.launch
    name = f"reservations/r{uuid.uuid4().hex}"
    return Arrival(request=request, name=name, asked=asked, time_to_live=time_to_live, may_wait=may_wait, actor="alice")


async def reserve(
    database: Database, asked: Asked, time_to_live: timedelta = HOUR, *, may_wait: bool = False
) -> Reservation:
    """Asks for a reservation, and reads what is stored of it."""
    made = await Admissions(database).reserve(arrival(asked, time_to_live=time_to_live, may_wait=may_wait))
    return await reservations.get(database, made.name)


async def prospect_of(database: Database, asked: Asked) -> Prospect:
    """Returns what would become of a reservation now."""
    async with database.transaction(readonly=True) as conn:
        view = await lines.view(conn, asked.pool, [asked], lock=False, wait=True)
    return view.line.prospect_of(view.claim("", 2**62, asked))
