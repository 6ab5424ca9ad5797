"""What stability watches: the models that serve and what is expected of them, as one revision of the registry says."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits

HOURS_OF_WEEK: Final = 168


class Metric(enum.Enum):
    """What is measured of a prediction. The numbers are those of the protos, and stored."""

    CALIBRATION = 1
    NE = 2
    VOLUME = 3


class Role(enum.Enum):
    """What a model does for its type."""

    CANDIDATE = 1
    BASELINE = 2
    HOLDOUT = 3
    EXPERIMENT = 4
    RETIRED = 5

    @property
    def serves(self) -> bool:
        return self in {Role.BASELINE, Role.HOLDOUT, Role.EXPERIMENT}


class Tier(enum.Enum):
    """How critical a model is: by the number of the worst incident that it can cause, one more."""

    UNSTATED = 0
    TIER0 = 1
    TIER1 = 2
    TIER2 = 3
    TIER3 = 4
    TIER4 = 5


class FunnelStage(enum.Enum):
    """Where in the ranking funnel a model stands."""

    UNSTATED = 0
    SOURCING = 1
    EARLY_STAGE_RANKING = 2
    LATE_STAGE_RANKING = 3


def hour_of_week(moment: datetime) -> int:
    """Returns the hour of the week in UTC, Monday 00:00 first."""
    return moment.weekday() * 24 + moment.hour


@dataclass(frozen=True, slots=True)
class HealthyRange:
    """The range that one metric of one prediction stays in while all is well."""

    prediction: str
    metric: Metric
    low: float
    high: float
    hour_of_week_factors: tuple[float, ...] = ()
    window: timedelta = timedelta(hours=1)
    history_start_time: datetime | None = None
    history_end_time: datetime | None = None
    residuals: int = 0
    pages_per_week: float = 0.0

    def at(self, moment: datetime) -> Limits:
        """Returns the ends that hold for a window that ends at this moment."""
        if not self.hour_of_week_factors:
            return Limits(self.low, self.high)
        # The window's last minute lies in the hour that its value is mostly of, whatever the window's width.
        factor = self.hour_of_week_factors[hour_of_week(moment - timedelta(minutes=1))]
        return Limits(self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """What a model's users may expect of it, with the defaults of its tier filled in."""

    stability: float
    coverage: float
    availability: float
    min_success_share: float
    max_latency_p99_ms: float  # 0: whatever it is


_BY_TIER: Final = {
    Tier.TIER0: 0.999,
    Tier.TIER1: 0.995,
    Tier.TIER2: 0.99,
    Tier.TIER3: 0.98,
    Tier.TIER4: 0.95,
    Tier.UNSTATED: 0.95,
}
_COVERAGE: Final = 0.9
_MIN_SUCCESS_SHARE: Final = 0.99


def completed(level: ServiceLevel, tier: Tier) -> ServiceLevel:
    """Returns a service level with what its tier gives in the place of zeros."""
    return ServiceLevel(
        stability=level.stability or _BY_TIER[tier],
        coverage=level.coverage or _COVERAGE,
        availability=level.availability or _BY_TIER[tier],
        min_success_share=level.min_success_share or _MIN_SUCCESS_SHARE,
        max_latency_p99_ms=level.max_latency_p99_ms,
    )


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """A model that serves."""

    name: str
    model_type: str
    role: Role
    tier: Tier
    team: str
    on_call: str
    surface: str
    product: str
    funnel_stage: FunnelStage
    share_basis_points: int  # mean over the regions of the route
    predictions: Mapping[str, DeclaredPrediction]  # empty: stability does not apply
    ranges: Mapping[tuple[str, Metric], HealthyRange]  # those in force: its own, else its type's, else the prediction's
    service_level: ServiceLevel

    @property
    def slo(self) -> str:
        """Name of its objectives: those of a baseline belong to its model type."""
        type_id = self.model_type.rsplit("/", 1)[1]
        model_id = self.name.rsplit("/", 1)[1]
        return f"slos/{type_id}" if self.role is Role.BASELINE else f"slos/{type_id}.{model_id}"


@dataclass(frozen=True, slots=True)
class WatchedFleet:
    """All models that serve."""

    revision: int
    models: Mapping[str, WatchedModel]
