"""Reservations."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Reservation, check_release_time, time_to_live
from modelfleetd.capacity.domain.settlement import Settlement
from modelfleetd.capacity.domain.simulation import RegionSwap, Simulation, When, check_swaps
from modelfleetd.kit.codec import duration_from_proto, from_proto, timestamp_from_proto, timestamp_to_proto, to_proto


def asked_from_proto(message: pb.Reservation) -> Asked:
    return from_proto(message, Asked)


def reservation_to_proto(reservation: Reservation) -> pb.Reservation:
    made = to_proto(reservation, pb.Reservation)
    _complete(reservation.items, made.items)
    return made


def _complete(items: Collection[HoldItem], shown: Collection[pb.HoldItem]) -> None:
    for item, message in zip(items, shown, strict=True):
        message.extra_units = item.extra_units


def swaps_from_proto(request: pb.SimulateReservationRequest) -> tuple[RegionSwap, ...]:
    swaps = tuple(from_proto(swap, RegionSwap) for swap in request.swaps)
    check_swaps(swaps)
    return swaps


def simulation_to_proto(simulation: Simulation, now: datetime) -> pb.SimulateReservationResponse:
    prospect = simulation.prospect
    made = pb.SimulateReservationResponse(
        fits=prospect.fits,
        explanation=simulation.explain(now),
        answer=pb.SimulateReservationResponse.Answer.Value(simulation.answer.name),
        step_basis_points=simulation.step,
    )
    for fit in prospect.admission.fits:
        item = to_proto(fit.item, pb.HoldItem)
        item.extra_units = fit.item.extra_units
        made.items.add(
            item=item,
            available_units=fit.available_units,
            missing_units=fit.missing_units,
            end_excess_units=fit.end_excess_units,
        )
    if simulation.answer is When.LATER:
        made.promises.extend(to_proto(promise, pb.Promise) for promise in prospect.promises)
        if (time := prospect.expected_time(now)) is not None:
            made.expected_hold_time.CopyFrom(timestamp_to_proto(time))
    return made


def settlement_from_proto(request: pb.SettleReservationRequest) -> Settlement:
    return from_proto(request, Settlement)


def release_time_from_proto(request: pb.RenewReservationRequest) -> datetime | None:
    is_set = request.HasField("expected_release_time")
    return check_release_time(timestamp_from_proto(request.expected_release_time) if is_set else None)


def time_to_live_from_proto(request: pb.CreateReservationRequest | pb.RenewReservationRequest) -> timedelta:
    return time_to_live(duration_from_proto(request.time_to_live) if request.HasField("time_to_live") else None)
