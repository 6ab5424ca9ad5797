"""Reservations."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.admission import Admission
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Reservation, time_to_live
from modelfleetd.capacity.domain.settlement import Settlement
from modelfleetd.kit.codec import duration_from_proto, from_proto, to_proto


def asked_from_proto(message: pb.Reservation) -> Asked:
    return from_proto(message, Asked)


def reservation_to_proto(reservation: Reservation) -> pb.Reservation:
    made = to_proto(reservation, pb.Reservation)
    _complete(reservation.items, made.items)
    return made


def _complete(items: Collection[HoldItem], shown: Collection[pb.HoldItem]) -> None:
    for item, message in zip(items, shown, strict=True):
        message.extra_units = item.extra_units


def simulation_to_proto(admission: Admission, pool: str) -> pb.SimulateReservationResponse:
    made = pb.SimulateReservationResponse(fits=admission.admitted, explanation=admission.explain(pool))
    for fit in admission.fits:
        item = to_proto(fit.item, pb.HoldItem)
        item.extra_units = fit.item.extra_units
        made.items.add(item=item, available_units=fit.available_units, missing_units=fit.missing_units)
    return made


def settlement_from_proto(request: pb.SettleReservationRequest) -> Settlement:
    return from_proto(request, Settlement)


def time_to_live_from_proto(request: pb.CreateReservationRequest) -> timedelta:
    return time_to_live(duration_from_proto(request.time_to_live) if request.HasField("time_to_live") else None)
