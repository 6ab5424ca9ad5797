"""Models that stability watches, and what it says of them, without a registry or a round."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from modelfleetd.stability.domain.availability import Availability, AvailabilityState
from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits
from modelfleetd.stability.domain.estimates import Estimate, State
from modelfleetd.stability.domain.fleet import (
    FunnelStage,
    Metric,
    Role,
    ServiceLevel,
    Tier,
    WatchedFleet,
    WatchedModel,
    completed,
)
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.standing import ModelState, Standing
from modelfleetd.stability.domain.window_verdict import Demand, Reason, Stability
from tests.support.stability import NOW

LEVEL = completed(ServiceLevel(0.0, 0.0, 0.0, 0.0, 0.0), Tier.TIER2)
CLICK = DeclaredPrediction("click", timedelta(hours=1), False, Limits(0.5, 2.0), None, 10)


def watched(type_id: str = "ctr", model_id: str = "v7", **fields: Any) -> WatchedModel:
    """A baseline of TIER2 with one prediction, unless told otherwise."""
    given: dict[str, Any] = {
        "name": f"modelTypes/{type_id}/models/{model_id}",
        "model_type": f"modelTypes/{type_id}",
        "role": Role.BASELINE,
        "tier": Tier.TIER2,
        "team": "teams/feed",
        "on_call": "feed-pager",
        "surface": "home",
        "product": "app",
        "funnel_stage": FunnelStage.LATE_STAGE_RANKING,
        "share_basis_points": 9000,
        "predictions": {"click": CLICK},
        "ranges": {},
        "service_level": LEVEL,
    }
    return WatchedModel(**(given | fields))


def watched_fleet(models: Iterable[WatchedModel], revision: int = 1) -> WatchedFleet:
    """A fleet of these."""
    return WatchedFleet(revision, {model.name: model for model in models})


def verdict(metric: Metric, value: float | None = 1.05, **fields: Any) -> WindowVerdict:
    """A metric of `click` that is stable, unless told otherwise; without a value it is not known."""
    given: dict[str, Any] = {
        "prediction": "click",
        "metric": metric,
        "state": Stability.UNKNOWN if value is None else Stability.STABLE,
        "reason": Reason.VALUE,
        "estimate": Estimate(State.NO_DATA) if value is None else Estimate(State.VALUE, value, 0.9, 1.2),
        "limits": Limits(0.8, 1.25),
        "start": NOW - timedelta(hours=1),
        "end": NOW,
        "immature": False,
        "label_coverage": 0.97,
        "positives": 120,
        "examples": 4000,
        "demand": Demand(10, 0.5),
    }
    return WindowVerdict(**(given | fields))


def standing(model: WatchedModel, *metrics: WindowVerdict, **fields: Any) -> Standing:
    """What is said of a model: stable and available, unless told otherwise."""
    given: dict[str, Any] = {
        "model": model.name,
        "state": ModelState.STABLE,
        "since": NOW,
        "metrics": metrics,
        "availability": Availability(AvailabilityState.AVAILABLE, 0.999, 1000, 16.7, observe_time=NOW),
    }
    return Standing(**(given | fields))
