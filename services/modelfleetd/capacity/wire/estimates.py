"""Estimates."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.estimate import Estimate, Wanted
from modelfleetd.capacity.domain.exact import BASIS_POINTS
from modelfleetd.capacity.domain.replicas import Headroom
from modelfleetd.capacity.domain.swap import DEFAULT_STEP_BASIS_POINTS
from modelfleetd.kit.codec import from_proto, to_proto


def wanted_from_proto(message: pb.Estimate) -> Wanted:
    """Returns what is asked for, with the defaults where nothing is."""
    return Wanted(
        model=message.model,
        headroom=from_proto(message.headroom, Headroom),
        share_basis_points=message.share_basis_points or BASIS_POINTS,
        replaces=message.replaces,
        max_step_basis_points=message.max_step_basis_points or DEFAULT_STEP_BASIS_POINTS,
        allow_expired_certificate=message.allow_expired_certificate,
    )


def estimate_to_proto(estimate: Estimate) -> pb.Estimate:
    return to_proto(estimate, pb.Estimate)
