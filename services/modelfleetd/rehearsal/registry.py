"""The ledger in memory: the registry's own decisions on model types and models that are kept here.

Of the entries only what launches own is kept; a launch ends once for ever, as with the registry's writer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from modelfleetd.clock import Clock
from modelfleetd.errors import LaunchEnded, ReferenceNotFound
from modelfleetd.launcher.domain.record import Share
from modelfleetd.registry.domain.criticality import CriticalityRequest
from modelfleetd.registry.domain.evidence import EvaluationReport, EvidenceHead, EvidenceRule
from modelfleetd.registry.domain.evidence_rules import compares, judge
from modelfleetd.registry.domain.evidence_verdicts import Evidence, Opinion
from modelfleetd.registry.domain.resource import Tier, parent_of
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelRole, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.roles import (
    Adoption,
    Finalization,
    Outcome,
    RoleChange,
    adopt_serving,
    finalize_launch,
)
from modelfleetd.registry.domain.serving import ModelShare, RegionSplit

R = TypeVar("R", bound=AnyResource)


class MemoryRegistry:
    """Implements the registry's `Ledger`, and what its writer does with decisions."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.revision = 0
        self._types: dict[str, ModelType] = {}
        self._models: dict[str, dict[str, Model]] = {}
        self._reports: dict[str, list[EvaluationReport]] = {}
        # By launch and attempt: the outcome, the digest of its content, and the revision that was answered.
        self._ended: dict[str, dict[int, tuple[Outcome, bytes, int]]] = {}

    # What people do

    def create_type(self, name: str, team: str, tier: str, regions: Sequence[str]) -> None:
        """Registers a model type."""
        self.revision += 1
        of_tier = Tier[tier] if tier in Tier.__members__ else None
        self._types[name] = ModelType(
            name=name, team=team, tier=of_tier, regions=tuple(sorted(regions)), revision=self.revision
        )
        self._models[name] = {}

    def create_model(self, model_type: str, name: str) -> None:
        """Registers a model, a candidate."""
        self.revision += 1
        self._models[model_type][name] = Model(name=name, role=ModelRole.CANDIDATE, revision=self.revision)

    def adopt(self, model_type: str, roles: Mapping[str, str], splits: Mapping[str, Sequence[Share]]) -> None:
        """Takes note of what serves before the first launch."""
        self._write(
            adopt_serving(self, Adoption(model_type=model_type, role_changes=_roles(roles), splits=_of(splits)))
        )

    def set_evidence_rules(self, model_type: str, rules: Sequence[EvidenceRule]) -> None:
        """Says what the evidence of a model type's models has to keep to."""
        self.revision += 1
        self._types[model_type] = replace(self._types[model_type], evidence_rules=tuple(rules), revision=self.revision)

    def report(self, report: EvaluationReport) -> None:
        """Somebody has evaluated a model; the report is named within it."""
        self.revision += 1
        self._reports.setdefault(parent_of(report.name), []).append(report)

    # What the launcher asks

    def evaluate(self, model: str, baseline: str) -> Opinion | None:
        """What the evidence says of a model; None where its type has no rules."""
        found = self.type_of(parent_of(model))
        rules, against = found.evidence_rules, baseline or found.baseline
        if not rules:
            return None
        compared = against if any(map(compares, rules)) else ""
        known = [Evidence.of(*self._reports.get(name, ())) for name in (model, compared)]
        return judge(rules, known[0], compared, known[1], self._clock.now())

    def type_of(self, name: str) -> ModelType:
        """Raises ReferenceNotFound."""
        if name not in self._types:
            raise ReferenceNotFound("launch.model_type", name)
        return self._types[name]

    def model_of(self, name: str, path: str) -> Model:
        """Raises ReferenceNotFound, naming the field of the request."""
        found = self.model(name)
        if found is None:
            raise ReferenceNotFound(path, name)
        return found

    def finalize(
        self,
        model_type: str,
        launch: str,
        *,
        succeeded: bool,
        expected_revision: int,
        roles: Mapping[str, str],
        splits: Mapping[str, Sequence[Share]],
        attempt: int,
    ) -> int:
        """Ends an attempt of a launch, once for ever. Returns the revision; 0 where it took none.

        Raises:
            LaunchEnded: it ended with another outcome or content, the launch has succeeded, or a later one has ended.
            RevisionMismatch, InvalidFields: as the registry decides.
        """
        asked = Finalization(
            model_type=model_type,
            launch=launch,
            outcome=Outcome.SUCCEEDED if succeeded else Outcome.ROLLED_BACK,
            expected_revision=expected_revision,
            role_changes=_roles(roles),
            splits=_of(splits),
            attempt=attempt,
        )
        assert asked.outcome is not None
        attempts = self._ended.get(launch, {})
        known = attempts.get(asked.counted)
        if known is not None:
            if known[1] != asked.digest():
                raise LaunchEnded(launch, known[0].name)
            return known[2]
        for other, (outcome, _, _) in attempts.items():
            if other > asked.counted or outcome is Outcome.SUCCEEDED:
                raise LaunchEnded(launch, f"{outcome.name} in attempt {other}")
        revision = self._write(finalize_launch(self, asked))
        self._ended.setdefault(launch, {})[asked.counted] = (asked.outcome, asked.digest(), revision)
        return revision

    def outcome(self, launch: str, attempt: int = 1) -> Outcome | None:
        """How an attempt of a launch has ended; None where it has not."""
        ended = self._ended.get(launch, {}).get(attempt)
        return None if ended is None else ended[0]

    def split(self, model_type: str, region: str) -> dict[str, int]:
        """Basis points of a route's models by the ledger."""
        found = next((split for split in self._types[model_type].splits if split.region == region), None)
        return {} if found is None else {one.model: one.share_basis_points for one in found.shares}

    def _write(self, edits: Edits) -> int:
        """Writes edits as one revision; none, and 0, where there are none."""
        if not edits:
            return 0
        self.revision += 1
        for edit in edits:
            after = edit.after
            if isinstance(after, ModelType):
                self._types[after.name] = replace(after, revision=self.revision, serving_revision=self.revision)
            elif isinstance(after, Model):
                self._models[after.model_type][after.name] = replace(after, revision=self.revision)
        return self.revision

    # Ledger

    @property
    def follows_up_later(self) -> bool:
        return False

    def team(self, name: str) -> Team | None:
        return None

    def region(self, name: str) -> Region | None:
        return None

    def model_type(self, name: str) -> ModelType | None:
        return self._types.get(name)

    def model(self, name: str) -> Model | None:
        return self._models.get(name.rsplit("/", 2)[0], {}).get(name)

    def models_of(self, model_type: str) -> Sequence[Model]:
        return [model for _, model in sorted(self._models.get(model_type, {}).items())]

    def referrers(self, name: str) -> Sequence[str]:
        return ()

    def open_requests(self, name: str) -> Sequence[CriticalityRequest]:
        return ()

    def find(self, name: str) -> AnyResource | None:
        return self._types.get(name) or self.model(name)

    def every(self, kind: type[R]) -> Sequence[R]:
        return ()

    def asset_at(self, uri: str) -> str | None:
        return None

    def evidence_of(self, model: str) -> Sequence[EvidenceHead]:
        return ()

    def pending(self) -> Edits:
        return ()


def _roles(roles: Mapping[str, str]) -> tuple[RoleChange, ...]:
    return tuple(RoleChange(model=model, role=ModelRole[role]) for model, role in roles.items())


def _of(splits: Mapping[str, Sequence[Share]]) -> tuple[RegionSplit, ...]:
    return tuple(
        RegionSplit(
            region=region,
            shares=tuple(ModelShare(model=one.model, share_basis_points=one.share) for one in shares),
        )
        for region, shares in splits.items()
    )
