"""Estimates."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.estimate import Estimate, Headroom
from modelfleetd.kit.codec import from_proto, to_proto


def headroom_from_proto(message: pb.Estimate) -> Headroom:
    return from_proto(message.headroom, Headroom)


def estimate_to_proto(estimate: Estimate) -> pb.Estimate:
    return to_proto(estimate, pb.Estimate)
