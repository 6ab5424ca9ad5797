"""Demand."""

from __future__ import annotations

from modelfleet.capacity.v1 import demand_pb2
from modelfleetd.capacity.domain.demand import Demand
from modelfleetd.kit.codec import to_proto


def demand_to_proto(demand: Demand) -> demand_pb2.Demand:
    """Returns the demand with what it makes of each peak."""
    made = to_proto(demand, demand_pb2.Demand)
    for measured in demand.measured:
        shown = to_proto(measured, demand_pb2.MeasuredDemand)
        shown.demand_qps = float(demand.in_region(measured.region))
        shown.failover_demand_qps = float(demand.on_failover(measured.region))
        shown.worst_failed_region = demand.worst_failed(measured.region)
        made.regions.append(shown)
    return made
