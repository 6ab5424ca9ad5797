"""Criteria, judgements and their replay."""

from __future__ import annotations

from datetime import timedelta

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.codec import duration_from_proto, from_proto, to_proto
from modelfleetd.stability.domain.criteria import Criterion
from modelfleetd.stability.domain.judge import Judgement
from modelfleetd.stability.domain.replay import Course


def criteria(request: pb.JudgeModelRequest | pb.ReplayJudgementsRequest) -> tuple[Criterion, ...]:
    return tuple(from_proto(criterion, Criterion) for criterion in request.criteria)


def step(request: pb.ReplayJudgementsRequest) -> timedelta | None:
    """Returns the time between two moments where it is given."""
    return duration_from_proto(request.step) if request.HasField("step") else None


def judgement(found: Judgement) -> pb.Judgement:
    return to_proto(found, pb.Judgement)


def course(found: Course) -> pb.ReplayJudgementsResponse:
    return to_proto(found, pb.ReplayJudgementsResponse)
