"""The resources of the ledger, as plain immutable data. Field for field what the protos say, with the same names.

Who may set a field is written beside it (`Owner`); everything else that is true of a resource is in `rules.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from modelfleetd.registry.domain.assets import Asset
from modelfleetd.registry.domain.criticality import CriticalityRequest, TierGrant
from modelfleetd.registry.domain.evidence import EvaluationReport, EvidenceRule, RiskAssessment
from modelfleetd.registry.domain.naming import NamingScheme
from modelfleetd.registry.domain.resource import (
    CREATION,
    DERIVED,
    LAUNCHES,
    STAMP,
    Json,
    Resource,
    Tier,
    parent_of,
)
from modelfleetd.registry.domain.schemas import ExtensionSchema
from modelfleetd.registry.domain.serving import RegionSplit, ServingSpec
from modelfleetd.registry.domain.waivers import LintWaiver


class FunnelStage(enum.Enum):
    """Where in the ranking funnel a model stands."""

    SOURCING = "SOURCING"
    EARLY_STAGE_RANKING = "EARLY_STAGE_RANKING"
    LATE_STAGE_RANKING = "LATE_STAGE_RANKING"


class ModelRole(enum.Enum):
    """What a model does for its type."""

    CANDIDATE = "CANDIDATE"
    BASELINE = "BASELINE"
    HOLDOUT = "HOLDOUT"
    EXPERIMENT = "EXPERIMENT"
    RETIRED = "RETIRED"

    @property
    def serves(self) -> bool:
        """Whether a model of this role may take a share of traffic."""
        return self in (ModelRole.BASELINE, ModelRole.HOLDOUT, ModelRole.EXPERIMENT)


class MissingLabel(enum.Enum):
    """What an impression without a label means once the attribution window has ended."""

    NEGATIVE = "NEGATIVE"
    IGNORED = "IGNORED"


class Role(enum.Enum):
    """What a principal may do."""

    VIEWER = "VIEWER"
    ENGINEER = "ENGINEER"
    OWNER = "OWNER"
    ONCALL = "ONCALL"
    APPROVER = "APPROVER"
    CAPACITY_OWNER = "CAPACITY_OWNER"
    ADMIN = "ADMIN"
    SERVICE = "SERVICE"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBinding:
    """One role of several principals and groups."""

    role: Role | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Team(Resource):
    """People who own model types and answer for them."""

    display_name: str = ""
    on_call: str = ""
    contacts: tuple[str, ...] = ()
    role_bindings: tuple[RoleBinding, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverShare:
    """Where a failed region's traffic goes."""

    region: str
    share_basis_points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Region(Resource):
    """A place with its own platform agent, demand and capacity."""

    agent_address: str = ""
    failover_shares: tuple[FailoverShare, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A closed range."""

    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One task output of the models of a type."""

    id: str
    attribution_window: timedelta | None = None
    missing_label: MissingLabel | None = None
    calibration_range: Range | None = None
    ne_range: Range | None = None
    min_positives: int = 0
    min_label_coverage: float = 0.0


class Metric(enum.Enum):
    """What is measured of a prediction."""

    CALIBRATION = 1
    NE = 2
    VOLUME = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthyRange:
    """The range that one metric of one prediction stays in while all is well."""

    prediction: str
    metric: Metric | None = None
    low: float = 0.0
    high: float = 0.0
    hour_of_week_factors: tuple[float, ...] = ()
    window: timedelta | None = None
    history_start_time: datetime | None = None
    history_end_time: datetime | None = None
    residuals: int = 0
    pages_per_week: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel:
    """What a model's users may expect of it; zeros: as its tier has it."""

    stability: float = 0.0
    coverage: float = 0.0
    availability: float = 0.0
    min_success_share: float = 0.0
    max_latency_p99_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionDemand:
    """The stated peak of one region."""

    region: str
    peak_qps: float = 0.0
    source: str = ""
    measure_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusDemand:
    """How peak demand is read from Prometheus."""

    query: str = ""
    window: timedelta | None = None
    quantile: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandSource:
    """How much traffic a model type must be able to carry."""

    stated: tuple[RegionDemand, ...] = ()
    growth_basis_points: int = 0
    fanout_basis_points: int = 0
    prometheus: PrometheusDemand | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelType(Resource):
    """A class of models with one purpose; also the route that its traffic takes."""

    purpose: str = ""
    team: str = ""
    funnel_stage: FunnelStage | None = None
    tier: Tier | None = None
    required_tier: Tier | None = field(default=None, metadata=DERIVED)
    regions: tuple[str, ...] = ()
    upstream_types: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    demand_source: DemandSource | None = None
    baseline: str = field(default="", metadata=LAUNCHES)
    holdouts: tuple[str, ...] = field(default=(), metadata=LAUNCHES)
    splits: tuple[RegionSplit, ...] = field(default=(), metadata=LAUNCHES)
    serving_revision: int = field(default=0, metadata=STAMP)
    naming: Mapping[str, str] = field(default_factory=dict, metadata=DERIVED)
    labels: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Json] = field(default_factory=dict)
    tier_grant: TierGrant | None = field(default=None, metadata=DERIVED)
    required_tier_path: tuple[str, ...] = field(default=(), metadata=DERIVED)
    evidence_rules: tuple[EvidenceRule, ...] = ()
    lint_waivers: tuple[LintWaiver, ...] = ()
    launch_policy: str = ""
    service_level: ServiceLevel | None = None
    healthy_ranges: tuple[HealthyRange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Resource):
    """One trained instance of a model type."""

    description: str = ""
    role: ModelRole | None = field(default=None, metadata=LAUNCHES)
    serving_spec: ServingSpec | None = field(default=None, metadata=CREATION)
    training_flow: str = ""
    checkpoint: str = ""
    tier_override: Tier | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Json] = field(default_factory=dict)
    tier_grant: TierGrant | None = field(default=None, metadata=DERIVED)
    lint_waivers: tuple[LintWaiver, ...] = ()
    healthy_ranges: tuple[HealthyRange, ...] = ()

    @property
    def model_type(self) -> str:
        """The name of its type."""
        return parent_of(self.name)


AnyResource: TypeAlias = (
    Team
    | Region
    | ModelType
    | Model
    | Asset
    | ExtensionSchema
    | NamingScheme
    | CriticalityRequest
    | EvaluationReport
    | RiskAssessment
)
