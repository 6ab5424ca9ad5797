"""Objectives as ListSlos answers them, without a service."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleetd.stability.domain.slo import PAIRS


def an_slo(type_id: str = "ctr", model_id: str = "v7", *, target: float = 0.99, **fields: Any) -> pb.Slo:
    """The objectives of a baseline of TIER1, unless told otherwise."""
    pairs = [
        pb.BurnRate(
            response=pb.BurnRate.Response.Value(pair.response.name),
            long_window=Duration(seconds=int(pair.long_window.total_seconds())),
            short_window=Duration(seconds=int(pair.short_window.total_seconds())),
            factor=pair.factor,
        )
        for pair in PAIRS
    ]
    given: dict[str, Any] = {
        "name": f"slos/{type_id}",
        "model_type": f"modelTypes/{type_id}",
        "model": f"modelTypes/{type_id}/models/{model_id}",
        "role": registry_pb2.Model.BASELINE,
        "tier": serving_pb2.TIER1,
        "team": "teams/feed",
        "on_call": "feed-pager",
        "period": Duration(seconds=30 * 86400),
        "objectives": [
            pb.Objective(kind=pb.Objective.STABILITY, target=target, burn_rates=pairs),
            pb.Objective(kind=pb.Objective.COVERAGE, target=0.9),
            pb.Objective(kind=pb.Objective.AVAILABILITY, target=target, burn_rates=pairs),
        ],
    }
    return pb.Slo(**(given | fields))
