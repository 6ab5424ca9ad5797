"""What is known of a model, and what rules say about it."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from modelfleetd.registry.domain.evidence import EvaluationReport, EvaluationResult, RiskAssessment


class Verdict(enum.Enum):
    """What evidence says."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class Lack(enum.Enum):
    """Why a rule is inconclusive."""

    MISSING = "MISSING"
    EXPIRED = "EXPIRED"
    TOO_FEW_SAMPLES = "TOO_FEW_SAMPLES"
    NO_INTERVAL = "NO_INTERVAL"
    NO_BASELINE = "NO_BASELINE"
    MISSING_SLICES = "MISSING_SLICES"
    NO_TARGET = "NO_TARGET"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result, its place, and the report that it is in, of which the other results do not matter here."""

    report: EvaluationReport
    index: int
    result: EvaluationResult


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one model."""

    findings: Sequence[Finding] = ()
    assessments: Sequence[RiskAssessment] = ()

    @classmethod
    def of(cls, *pieces: EvaluationReport | RiskAssessment) -> Evidence:
        """Returns the evidence in some reports and assessments."""
        reports = [piece for piece in pieces if isinstance(piece, EvaluationReport)]
        return cls(
            [Finding(report, index, result) for report in reports for index, result in enumerate(report.results)],
            [piece for piece in pieces if isinstance(piece, RiskAssessment)],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of evidence, and what it says by itself."""

    source: str
    index: int
    metric: str
    slice: Mapping[str, str] = field(default_factory=dict)
    judged: float = 0.0
    bound: float = 0.0
    baseline: float | None = None
    time: datetime | None = None
    expire_time: datetime | None = None
    value: float = 0.0
    unit: str = ""
    target: float | None = None
    sample_size: int = 0
    verdict: Verdict = Verdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one rule says."""

    rule: str
    verdict: Verdict
    explanation: str
    lack: Lack | None = None
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What all rules together say."""

    verdict: Verdict
    explanation: str
    judgements: tuple[Judgement, ...] = ()
