"""The ledger of a fleet, in memory and in the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import criticality_pb2, evidence_pb2, registry_pb2
from modelfleetd.clock import Clock
from modelfleetd.kit.codec import duration_to_proto, to_proto
from modelfleetd.launcher.domain.record import Share
from modelfleetd.registry.domain.evidence import EvaluationReport, EvidenceRule
from modelfleetd.registry.domain.resource import parent_of
from modelfleetd.rehearsal.registry import MemoryRegistry
from modelfleetd.rehearsal.stability import USUAL
from modelfleetd.rehearsal.trained import PEAK_QPS
from tests.support.stored.parts import PATIENCE, StoredParts

_BY_REQUEST = ("TIER0", "TIER1")
_EVIDENCE = criticality_pb2.CriticalityEvidence(
    on_call_24x7="rotation", business_metric="clicks", contribution="it is rehearsed"
)
_PREDICTION = registry_pb2.Prediction(
    id=USUAL[0].id,
    attribution_window=duration_to_proto(USUAL[0].window),
    calibration_range=registry_pb2.Range(low=USUAL[0].calibration.low, high=USUAL[0].calibration.high),
    min_positives=USUAL[0].min_positives,
)


class StoredRegistry(MemoryRegistry):
    """The ledger of a fleet, in memory and in the registry."""

    def __init__(self, parts: StoredParts, clock: Clock) -> None:
        super().__init__(clock)
        self._parts = parts
        # Revisions of model types in the registry, by those in memory.
        self.theirs: dict[int, int] = {0: 0}

    def create_type(self, name: str, team: str, tier: str, regions: Sequence[str]) -> None:
        super().create_type(name, team, tier, regions)
        revision = self.revision

        async def create() -> None:
            await self._parts.prepare(team, regions)
            by_request = tier in _BY_REQUEST
            made = await self._parts.client.registry.create_model_type(
                model_type_id=name.partition("/")[2],
                model_type=registry_pb2.ModelType(
                    team=team,
                    tier=serving_pb2.Tier.Value("TIER2" if by_request else tier),
                    regions=list(regions),
                    predictions=[_PREDICTION],
                    demand_source=registry_pb2.DemandSource(
                        stated=[registry_pb2.RegionDemand(region=region, peak_qps=PEAK_QPS) for region in regions]
                    ),
                ),
                timeout=PATIENCE,
            )
            if by_request:
                made = await self._raise_tier(name, tier)
            self.theirs[revision] = made.revision

        self._parts.note(f"create {name}", None, create)

    async def _raise_tier(self, name: str, tier: str) -> registry_pb2.ModelType:
        """Two people agree that a type is that critical."""
        asked = await self._parts.requester.registry.request_criticality(
            resource=name, tier=serving_pb2.Tier.Value(tier), evidence=_EVIDENCE, timeout=PATIENCE
        )
        await self._parts.client.registry.approve_criticality(name=asked.name, timeout=PATIENCE)
        return await self._parts.client.registry.get_model_type(name=name, timeout=PATIENCE)

    def create_model(self, model_type: str, name: str) -> None:
        super().create_model(model_type, name)

        async def create() -> None:
            model = self._parts.models[name]
            spec = serving_pb2.ServingSpec(
                command=model.spec.command, flavor=model.spec.flavor, units_per_replica=model.spec.units
            )
            spec.startup_timeout.FromTimedelta(model.startup)
            await self._parts.client.registry.create_model(
                parent=model_type,
                model_id=name.rpartition("/")[2],
                model=registry_pb2.Model(serving_spec=spec),
                timeout=PATIENCE,
            )
            await self._parts.certify(model)

        self._parts.note(f"create {name}", None, create)

    def adopt(self, model_type: str, roles: Mapping[str, str], splits: Mapping[str, Sequence[Share]]) -> None:
        super().adopt(model_type, roles, splits)
        revision = self.revision

        async def adopt() -> None:
            made = await self._parts.client.registry.adopt_serving(
                model_type=model_type,
                role_changes=[
                    registry_pb2.RoleChange(model=model, role=registry_pb2.Model.Role.Value(role))
                    for model, role in roles.items()
                ],
                splits=[
                    serving_pb2.RegionSplit(
                        region=region,
                        shares=[serving_pb2.ModelShare(model=s.model, share_basis_points=s.share) for s in shares],
                    )
                    for region, shares in splits.items()
                ],
                timeout=PATIENCE,
            )
            self.theirs[revision] = made.revision

        self._parts.note(f"adopt {model_type}", None, adopt)

    def set_evidence_rules(self, model_type: str, rules: Sequence[EvidenceRule]) -> None:
        super().set_evidence_rules(model_type, rules)
        revision = self.revision

        async def update() -> None:
            made = await self._parts.client.registry.update_model_type(
                model_type=registry_pb2.ModelType(
                    name=model_type, evidence_rules=[to_proto(rule, evidence_pb2.EvidenceRule) for rule in rules]
                ),
                update_mask=FieldMask(paths=["evidence_rules"]),
                timeout=PATIENCE,
            )
            self.theirs[revision] = made.revision

        self._parts.note(f"evidence rules of {model_type}", None, update)

    def report(self, report: EvaluationReport) -> None:
        super().report(report)

        async def create() -> None:
            await self._parts.client.registry.create_evaluation_report(
                parent=parent_of(report.name),
                report_id=report.name.rpartition("/")[2],
                evaluation_report=to_proto(replace(report, name=""), evidence_pb2.EvaluationReport),
                timeout=PATIENCE,
            )

        self._parts.note(f"create {report.name}", None, create)

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
        key = self._parts.key

        async def theirs(ours: int | None) -> int:
            revision = await self._parts.registry.finalize(
                model_type,
                launch,
                key,
                succeeded=succeeded,
                expected_revision=self.theirs[expected_revision],
                roles=roles,
                splits=splits,
                attempt=attempt,
            )
            return revision if ours is None else self.alike(ours, revision)

        return self._parts.both(
            f"finalize {launch}",
            lambda: super(StoredRegistry, self).finalize(
                model_type,
                launch,
                succeeded=succeeded,
                expected_revision=expected_revision,
                roles=roles,
                splits=splits,
                attempt=attempt,
            ),
            theirs,
        )

    def alike(self, ours: int, theirs: int) -> int:
        """The revision in memory that one of the registry is."""
        return ours if self.theirs.setdefault(ours, theirs) == theirs else theirs

    async def compare(self) -> None:
        """Looks for differences in what there is: baselines, splits and roles."""
        client = self._parts.client.registry
        for name, ours in self._types.items():
            found = await client.get_model_type(name=name, timeout=PATIENCE)
            baseline, splits = (
                self.type_of(name).baseline,
                {split.region: self.split(name, split.region) for split in ours.splits},
            )
            self._parts.same(f"baseline of {name}", baseline, found.baseline)
            self._parts.same(
                f"splits of {name}",
                splits,
                {each.region: {one.model: one.share_basis_points for one in each.shares} for each in found.splits},
            )
            roles = {model.name: model.role.name for model in self.models_of(name) if model.role is not None}
            models = [model async for model in client.list_models_all(parent=name, page_size=1000)]
            self._parts.same(
                f"roles of {name}", roles, {each.name: registry_pb2.Model.Role.Name(each.role) for each in models}
            )
