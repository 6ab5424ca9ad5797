"""Evidence: what evaluations and risk assessments have found about a model. Field for field what the protos say."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from modelfleetd.registry.domain.resource import DERIVED, Resource


class EvaluatorKind(enum.Enum):
    """What kind of evaluator."""

    INTERNAL = "INTERNAL"
    PUBLIC = "PUBLIC"
    THIRD_PARTY = "THIRD_PARTY"
    HUMAN = "HUMAN"


class Direction(enum.Enum):
    """Which values are good."""

    HIGHER_IS_BETTER = "HIGHER_IS_BETTER"
    LOWER_IS_BETTER = "LOWER_IS_BETTER"
    CLOSE_TO_TARGET = "CLOSE_TO_TARGET"


class Form(enum.Enum):
    """What a value is."""

    ABSOLUTE = "ABSOLUTE"
    DIFFERENCE = "DIFFERENCE"
    RATIO = "RATIO"


class Method(enum.Enum):
    """How a result was come to."""

    EVALUATION = "EVALUATION"
    OFFLINE_ESTIMATE = "OFFLINE_ESTIMATE"
    ONLINE_EXPERIMENT = "ONLINE_EXPERIMENT"
    HUMAN_RATING = "HUMAN_RATING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Who evaluated a model."""

    kind: EvaluatorKind | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationDataset:
    """What a model was evaluated on."""

    name: str = ""
    uri: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceInterval:
    """An interval that holds the true value with some confidence."""

    low: float
    high: float
    confidence_basis_points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparator:
    """The same figure of something else."""

    name: str
    model: str = ""
    value: float
    interval: ConfidenceInterval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """How many answers got one grade."""

    label: str
    rank: float = 0.0
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineEstimate:
    """How a value was estimated from logs of another policy."""

    estimator: str
    logging_policy: str = ""
    effective_sample_size: float = 0.0
    weight_clip: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineExperiment:
    """A controlled experiment on live traffic."""

    experiment: str
    control: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    exposed_units: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanRating:
    """How people rated."""

    raters: int = 0
    ratings_per_item: float = 0.0
    scale_low: float = 0.0
    scale_high: float = 0.0
    agreement: float | None = None
    agreement_metric: str = ""
    rubric: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """One figure of an evaluation."""

    metric: str
    slice: Mapping[str, str] = field(default_factory=dict)
    value: float
    unit: str = ""
    lowest: float | None = None
    highest: float | None = None
    direction: Direction | None = None
    target: float | None = None
    sample_size: int = 0
    interval: ConfidenceInterval | None = None
    comparators: tuple[Comparator, ...] = ()
    form: Form | None = None
    relative_to: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)
    at: Mapping[str, float] = field(default_factory=dict)
    grades: tuple[Grade, ...] = ()
    dataset: EvaluationDataset | None = None
    offline_estimate: OfflineEstimate | None = None
    online_experiment: OnlineExperiment | None = None
    human_rating: HumanRating | None = None

    @property
    def method(self) -> Method:
        """How it was come to."""
        if self.offline_estimate is not None:
            return Method.OFFLINE_ESTIMATE
        if self.online_experiment is not None:
            return Method.ONLINE_EXPERIMENT
        return Method.EVALUATION if self.human_rating is None else Method.HUMAN_RATING


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport(Resource):
    """What an evaluation has found about a model."""

    suite: str = ""
    suite_version: str = ""
    description: str = ""
    evaluator: Evaluator | None = None
    dataset: EvaluationDataset | None = None
    baseline: str = ""
    results: tuple[EvaluationResult, ...] = ()
    evaluate_time: datetime | None = None
    expire_time: datetime | None = None
    links: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """Something that could go wrong."""

    event: str
    stakeholder: str = ""
    dimension: str = ""
    likelihood: int = 0
    severity: int = 0
    inherent: int = field(default=0, metadata=DERIVED)
    mitigations: tuple[str, ...] = ()
    residual_likelihood: int = 0
    residual_severity: int = 0
    residual: int = field(default=0, metadata=DERIVED)
    assessor: str = ""
    assess_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskAssessment(Resource):
    """What could go wrong with a model, for whom, how bad, and what was done about it."""

    description: str = ""
    assessor: str = ""
    assess_time: datetime | None = None
    expire_time: datetime | None = None
    levels: int = 0
    risks: tuple[Risk, ...] = ()
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRule:
    """A rule that a model's evidence has to keep to. At most one expectation is set."""

    id: str
    suite: str = ""
    metric: str = ""
    slice: Mapping[str, str] = field(default_factory=dict)
    worst_slice_by: str = ""
    expected_slices: tuple[str, ...] = ()
    evaluators: tuple[EvaluatorKind, ...] = ()
    method: Method | None = None
    max_age: timedelta | None = None
    min_sample_size: int = 0
    conservative: bool = False
    minimum: float | None = None
    maximum: float | None = None
    max_distance_to_target: float | None = None
    max_loss_to_baseline: float | None = None
    max_relative_loss_to_baseline: float | None = None
    max_residual_risk: int | None = None
    dimension: str = ""
    form: Form | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)
    at: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvidenceHead:
    """What a decision needs to know of a piece of evidence that is there: not what it says."""

    name: str
    revision: int
    size: int
    """Bytes of its message."""

    @property
    def etag(self) -> str:
        """Its etag: it has never changed."""
        return f"r{self.revision}"
