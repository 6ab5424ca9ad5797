"""What agents report to be serving: status beside the ledger, of routes that need not be registered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.registry.domain.serving import WHOLE
from modelfleetd.registry.domain.violations import Violations

MAX_STATUSES: Final = 1000
MAX_MODELS: Final = 100
# A report from a clock that is further ahead than this could not be replaced until the others have come there.
MAX_AHEAD: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServing:
    """What really serves of one model in one region."""

    model: str
    available_replicas: int = 0
    total_replicas: int = 0
    share_basis_points: int = 0
    requests: int = 0
    errors: int = 0
    latency_p99_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStatus:
    """What really serves one route, as its agent reported it."""

    model_type: str
    region: str
    models: tuple[ModelServing, ...] = ()
    observe_time: datetime | None = None


def check_statuses(statuses: Sequence[ServingStatus], now: datetime) -> Sequence[ServingStatus]:
    """Returns the statuses if their fields are right. Raises InvalidFields."""
    wrong = Violations("")
    wrong.count(statuses, "statuses", MAX_STATUSES)
    for index, status in enumerate(statuses[:MAX_STATUSES]):
        path = f"statuses[{index}]"
        moment = status.observe_time
        wrong.expect(moment is not None, f"{path}.observe_time", "is required")
        in_time = moment is None or moment <= now + MAX_AHEAD
        wrong.expect(in_time, f"{path}.observe_time", "must not be more than 5 min in the future; set the clock right")
        wrong.count(status.models, f"{path}.models", MAX_MODELS)
        for number, model in enumerate(status.models[:MAX_MODELS]):
            _check_model(wrong, model, f"{path}.models[{number}]")
        wrong.unique([model.model for model in status.models], f"{path}.models", ".model")
    wrong.raise_if_any()
    return statuses


def _check_model(wrong: Violations, model: ModelServing, path: str) -> None:
    for name in ("available_replicas", "total_replicas", "requests", "errors"):
        wrong.expect(getattr(model, name) >= 0, f"{path}.{name}", "must be 0 or more")
    available = model.available_replicas <= model.total_replicas
    wrong.expect(available, f"{path}.available_replicas", "must be at most total_replicas")
    wrong.expect(model.errors <= model.requests, f"{path}.errors", "must be at most requests")
    is_share = 0 <= model.share_basis_points <= WHOLE
    wrong.expect(is_share, f"{path}.share_basis_points", f"must be 0 to {WHOLE} basis points")
    latency = model.latency_p99_ms
    is_latency = latency is None or (math.isfinite(latency) and latency >= 0)
    wrong.expect(is_latency, f"{path}.latency_p99_ms", "must be 0 or more milliseconds")


def newest(statuses: Iterable[ServingStatus]) -> list[ServingStatus]:
    """Returns one status a route: the one that was observed last."""
    by_route: dict[tuple[str, str], ServingStatus] = {}
    for status in statuses:
        known = by_route.get((status.model_type, status.region))
        if known is None or _moment(known) < _moment(status):
            by_route[status.model_type, status.region] = status
    return list(by_route.values())


def _moment(status: ServingStatus) -> datetime:
    if status.observe_time is None:
        raise ValueError("a status without observe_time was not checked")
    return status.observe_time
