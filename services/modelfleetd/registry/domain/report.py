"""The fleet in figures: a row for each part of it, added up from rows of model types."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from modelfleetd.registry.domain.lint import Finding, Severity
from modelfleetd.registry.domain.lint_rules import demand_known
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import FunnelStage, ModelType


@dataclass(slots=True, kw_only=True)
class FleetRow:
    """Figures of a part of the fleet. Field for field what the proto says; mutable, since it is a sum in the making."""

    group: str = ""
    model_types: int = 0
    models: int = 0
    serving_models: int = 0
    model_types_by_tier: list[int] = field(default_factory=lambda: [0] * (len(Tier) + 1))
    with_baseline: int = 0
    with_stability: int = 0
    with_demand_source: int = 0
    with_on_call: int = 0
    observed: int = 0
    expected_to_serve: int = 0
    errors: int = 0
    warnings: int = 0
    waived: int = 0
    conforming: int = 0
    stability_not_applicable: int = 0

    def add(self, other: FleetRow) -> None:
        """Adds the figures of another part."""
        # Written out: a report adds thousands of rows.
        self.model_types += other.model_types
        self.models += other.models
        self.serving_models += other.serving_models
        for index, count in enumerate(other.model_types_by_tier):
            self.model_types_by_tier[index] += count
        self.with_baseline += other.with_baseline
        self.with_stability += other.with_stability
        self.with_demand_source += other.with_demand_source
        self.with_on_call += other.with_on_call
        self.observed += other.observed
        self.expected_to_serve += other.expected_to_serve
        self.errors += other.errors
        self.warnings += other.warnings
        self.waived += other.waived
        self.conforming += other.conforming
        self.stability_not_applicable += other.stability_not_applicable

    def count(self, findings: Iterable[Finding]) -> None:
        """Adds findings; of INFO there is no figure."""
        for finding in findings:
            if not finding.counts:
                self.waived += 1
            elif finding.rule.severity is Severity.ERROR:
                self.errors += 1
            elif finding.rule.severity is Severity.WARNING:
                self.warnings += 1


def row_of(entry: ModelType) -> FleetRow:
    """Returns the row of a single model type, without what its models, its team, agents and findings say."""
    row = FleetRow(model_types=1)
    row.model_types_by_tier[len(Tier) if entry.tier is None else entry.tier] = 1
    row.with_baseline = int(bool(entry.baseline))
    row.with_stability = int(bool(entry.predictions))
    row.stability_not_applicable = int(not entry.predictions and entry.funnel_stage is FunnelStage.SOURCING)
    row.with_demand_source = int(bool(entry.regions) and len(demand_known(entry)) == len(entry.regions))
    row.expected_to_serve = int(any(split.shares for split in entry.splits))
    return row
