"""Service level objectives."""

from __future__ import annotations

from typing import Any

from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleetd.kit.codec import duration_to_proto, timestamp_to_proto, to_proto
from modelfleetd.stability.domain.budget import Budgets
from modelfleetd.stability.domain.fleet import WatchedModel
from modelfleetd.stability.domain.slo import PERIOD


def head(model: WatchedModel) -> pb.Slo:
    """Returns whose objectives they are, without the objectives: what lists are filtered by."""
    # The numbers of both are those of the protos.
    numbers: dict[str, Any] = {"role": model.role.value, "tier": model.tier.value}
    return pb.Slo(
        name=model.slo,
        model_type=model.model_type,
        model=model.name,
        team=model.team,
        on_call=model.on_call,
        period=duration_to_proto(PERIOD),
        **numbers,
    )


def slo(model: WatchedModel, budgets: Budgets) -> pb.Slo:
    """Returns the objectives of a model."""
    found = head(model)
    found.objectives.extend(to_proto(objective, pb.Objective) for objective in budgets.objectives(model))
    if budgets.evaluate_time is not None:
        found.evaluate_time.CopyFrom(timestamp_to_proto(budgets.evaluate_time))
    return found
