"""Protobuf ↔ domain, where field names alone do not say it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.admission import Admission
from modelfleetd.capacity.domain.certificate import VALIDITY, Certificate, Source
from modelfleetd.capacity.domain.estimate import Estimate, Headroom
from modelfleetd.capacity.domain.ledger import LedgerEntry, ModelUnits
from modelfleetd.capacity.domain.loadtest import (
    DEFAULT_CERTIFICATION_REQUESTS,
    DEFAULT_ERROR_RATE,
    LoadTest,
    Stoppers,
    Wanted,
)
from modelfleetd.capacity.domain.pool import Flavor, Pool
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Reservation, time_to_live
from modelfleetd.capacity.domain.settlement import Settlement
from modelfleetd.kit.codec import duration_from_proto, from_proto, timestamp_from_proto, to_proto

M = TypeVar("M", bound=Message)

FLAVOR_FIELDS = frozenset({"description", "unit_cost"})
POOL_FIELDS = frozenset({"team", "parent", "quotas"})


def updated(current: M, given: M, mask: FieldMask, editable: Collection[str]) -> M:
    """Returns a resource with the fields that an update names: those of the mask, else all that are set.

    Args:
        current: the resource as it is.
        given: the resource of the request.
        mask: of the request; `*` names every editable field.
        editable: fields that a caller may change; others are passed over.
    """
    named = {path.partition(".")[0] for path in mask.paths} or {field.name for field, _ in given.ListFields()}
    paths = [field for field in sorted(editable) if field in named or "*" in named]
    made = type(current)()
    made.CopyFrom(current)
    FieldMask(paths=paths).MergeMessage(given, made, replace_message_field=True, replace_repeated_field=True)
    return made


def flavor_from_proto(message: pb.Flavor, name: str) -> Flavor:
    return from_proto(message, Flavor, name=name)


def flavor_to_proto(flavor: Flavor) -> pb.Flavor:
    return to_proto(flavor, pb.Flavor)


def pool_from_proto(message: pb.Pool, name: str) -> Pool:
    return from_proto(message, Pool, name=name, usages=())


def pool_to_proto(pool: Pool) -> pb.Pool:
    made = to_proto(pool, pb.Pool)
    for usage, shown in zip(pool.usages, made.usages, strict=True):
        shown.available_units = usage.available_units
    return made


def bookings_from_proto(request: pb.BookUsageRequest) -> tuple[ModelUnits, ...]:
    return tuple(from_proto(usage, ModelUnits) for usage in request.usages)


def bookings_to_proto(units: ModelUnits) -> pb.ModelUnits:
    return to_proto(units, pb.ModelUnits)


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


def ledger_entry_to_proto(entry: LedgerEntry) -> pb.LedgerEntry:
    return to_proto(entry, pb.LedgerEntry)


def certificate_from_proto(message: pb.Certificate, name: str, actor: str, now: datetime) -> Certificate:
    """Returns the certificate that somebody states."""
    return from_proto(
        message,
        Certificate,
        name=name,
        source=Source.STATED,
        load_test=None,
        actor=actor,
        create_time=now,
        expire_time=timestamp_from_proto(message.expire_time) if message.HasField("expire_time") else now + VALIDITY,
    )


def certificate_to_proto(certificate: Certificate) -> pb.Certificate:
    return to_proto(certificate, pb.Certificate)


def headroom_from_proto(message: pb.Estimate) -> Headroom:
    return from_proto(message.headroom, Headroom)


def estimate_to_proto(estimate: Estimate) -> pb.Estimate:
    return to_proto(estimate, pb.Estimate)


def wanted_from_proto(message: pb.LoadTest, flavor: str, default_start_qps: float) -> Wanted:
    """Returns what a load test is to find out, with the defaults where nothing is asked for."""
    stoppers = Stoppers(message.stoppers.latency_p99_ms, message.stoppers.error_rate or DEFAULT_ERROR_RATE)
    return Wanted(
        model=message.model,
        region=message.region,
        flavor=flavor,
        sample_requests=tuple(message.sample_requests),
        stoppers=stoppers,
        start_qps=message.start_qps or default_start_qps,
        certification_requests=message.certification_requests
        or max(DEFAULT_CERTIFICATION_REQUESTS, stoppers.needed_requests),
    )


def load_test_to_proto(test: LoadTest) -> pb.LoadTest:
    made = to_proto(test, pb.LoadTest)
    made.highest_within_qps = test.highest_within_qps
    made.lowest_beyond_qps = test.lowest_beyond_qps
    return made
