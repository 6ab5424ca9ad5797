"""Flavors, pools and bookings."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Flavor, Pool
from modelfleetd.kit.codec import from_proto, to_proto

FLAVOR_FIELDS = frozenset({"description", "unit_cost"})
POOL_FIELDS = frozenset({"team", "parent", "quotas"})


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
        shown.borrowed_units = usage.borrowed_units
        shown.overdue_units = usage.overdue_units
        if not usage.is_stated:
            # Nobody said so: it is how a pool without a quota is kept from borrowing.
            shown.ClearField("borrowing_limit_units")
    return made


def bookings_from_proto(request: pb.BookUsageRequest) -> tuple[ModelUnits, ...]:
    return tuple(from_proto(usage, ModelUnits) for usage in request.usages)


def bookings_to_proto(units: ModelUnits) -> pb.ModelUnits:
    return to_proto(units, pb.ModelUnits)
