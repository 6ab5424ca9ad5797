"""Healthy ranges that are proposed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.codec import duration_from_proto, timestamp_from_proto, to_proto
from modelfleetd.stability.domain.ranges import Proposal
from modelfleetd.stability.domain.wishes import Wish


def wish(request: pb.ProposeRangesRequest) -> Wish:
    """Returns what is asked for."""
    return Wish(
        tuple(request.predictions),
        timestamp_from_proto(request.start_time) if request.HasField("start_time") else None,
        timestamp_from_proto(request.end_time) if request.HasField("end_time") else None,
        request.pages_per_week,
        duration_from_proto(request.window) if request.HasField("window") else None,
    )


def proposals(found: Iterable[Proposal], *, with_history: bool) -> pb.ProposeRangesResponse:
    """Returns the answer; histories are long, so they are sent only on demand."""
    kept = found if with_history else [replace(proposal, history=()) for proposal in found]
    return pb.ProposeRangesResponse(proposals=[to_proto(proposal, pb.RangeProposal) for proposal in kept])
