"""Everything outside of the launcher, in memory: what `ports.py` wants, with calls and answers that may be lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, cast

from modelfleet.registry.v1.evidence_pb2 import EvaluateEvidenceResponse
from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.codec import to_proto
from modelfleetd.launcher.clients import evidence_judgement
from modelfleetd.launcher.domain.decision import Decision
from modelfleetd.launcher.domain.hold import Hold
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.domain.policy import StabilityGate
from modelfleetd.launcher.domain.record import ModelFacts, Share, Verdict
from modelfleetd.launcher.ports import (
    Estimate,
    HeldUnits,
    HoldRequest,
    Judgement,
    PoolFacts,
    SizedModel,
    TypeFacts,
    UsedUnits,
)
from modelfleetd.platform.base import Platform
from modelfleetd.platform.model import Applied, DesiredServing, Fence, ServingObservation, TargetKind
from modelfleetd.platform.simulator import Simulator
from modelfleetd.rehearsal.answers import Answers
from modelfleetd.rehearsal.capacity import MemoryCapacity
from modelfleetd.rehearsal.chance import Chance
from modelfleetd.rehearsal.registry import MemoryRegistry
from modelfleetd.rehearsal.stability import MemoryStability
from modelfleetd.rehearsal.trained import MARGINS, PEAK_QPS, UNIT_COST, Trained

_DRAIN: Final = timedelta(seconds=10)


@dataclass
class Agent:
    """The agent of a region, with a launcher that may die before and after each call, or hang until others have gone
    on; and which may be away.

    Attributes:
        simulators: by target.
        away_until: by target: until when it does not answer, in monotonic seconds.
        meanwhile: what happens while a call hangs.
    """

    chance: Chance
    now: Callable[[], float]
    simulators: dict[str, Simulator] = field(default_factory=dict)
    away_until: dict[str, float] = field(default_factory=dict)
    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        self._expect_there(target)
        self.chance.crash()
        if self.meanwhile is not None and self.chance.stalls():
            trouble = self.chance.trouble
            await self.meanwhile()
            self.chance.trouble = trouble
        applied = await self.simulators[target].apply(target, kind, fence, desired)
        self.chance.crash()
        return applied

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        self._expect_there(target)
        return await self.simulators[target].observe(target, epoch)

    def _expect_there(self, target: str) -> None:
        if self.now() < self.away_until.get(target, 0.0):
            raise PartUnavailable("agent")


class MemoryWorld:
    """Implements `Registry`, `Capacity`, `Stability` and `Platforms`."""

    def __init__(
        self,
        registry: MemoryRegistry,
        capacity: MemoryCapacity,
        stability: MemoryStability,
        chance: Chance,
        team: str,
    ) -> None:
        self.models: dict[str, Trained] = {}
        self.agents: dict[str, Agent] = {}
        self._registry = registry
        self._capacity = capacity
        self._stability = stability
        self._chance = chance
        self._team = team
        self._facts: dict[str, tuple[str, SizedModel]] = {}
        # What gates say that are asked elsewhere: nothing asks for evidence, and nobody is there to be asked.
        self.answers = Answers()

    # Registry

    async def model_type(self, name: str) -> TypeFacts:
        self._chance.call("registry")
        found = self._registry.type_of(name)
        shares: dict[str, set[str]] = {}
        for split in found.splits:
            for share in split.shares:
                if share.share_basis_points > 0:
                    shares.setdefault(share.model, set()).add(split.region)
        return TypeFacts(
            name=name,
            team=found.team,
            tier=found.tier.name if found.tier is not None else "TIER_UNSPECIFIED",
            baseline=found.baseline,
            revision=found.revision,
            regions=found.regions,
            predicts=True,
            predictions=self._stability.declared,
            shares={model: frozenset(regions) for model, regions in shares.items()},
            evidence_rules=len(found.evidence_rules) or self.answers.evidence_rules,
        )

    async def model(self, name: str, path: str) -> SizedModel:
        self._chance.call("registry")
        found = self._registry.model_of(name, path)
        role = found.role.name if found.role is not None else ""
        known = self._facts.get(name)
        if known is None or known[0] != role:
            trained = self.models[name]
            spec = trained.spec
            document = {"command": list(spec.command), "flavor": spec.flavor, "unitsPerReplica": spec.units}
            facts = ModelFacts(name, f"sha256:{name}", document)
            known = role, SizedModel(facts, spec.flavor, spec.units, trained.startup, _DRAIN, role)
            self._facts[name] = known
        return known[1]

    def measure(self, model: str, max_qps: Mapping[str, float]) -> None:
        """Has it that a replica of a model carries so many requests a second from now on, by region."""
        self.models[model] = replace(self.models[model], max_qps=max_qps)

    async def agent_address(self, region: str) -> str:
        return region

    async def finalize(
        self,
        model_type: str,
        launch: str,
        key: str,
        *,
        succeeded: bool,
        expected_revision: int = 0,
        roles: Mapping[str, str] | None = None,
        splits: Mapping[str, Sequence[Share]] | None = None,
        reason: str = "",
        attempt: int = 1,
    ) -> int:
        self._chance.call("registry")
        revision = self._registry.finalize(
            model_type,
            launch,
            succeeded=succeeded,
            expected_revision=expected_revision,
            roles=roles or {},
            splits=splits or {},
            attempt=attempt,
        )
        self._chance.call("registry")
        return revision

    async def check_team(self, team: str, field: str) -> None: ...

    async def regions(self) -> Mapping[str, str]:
        return {region: region for region in self.agents}

    async def report(self, observations: Sequence[ServingObservation]) -> None: ...

    async def evaluate_evidence(self, model: str, baseline: str) -> Judgement:
        found = self._registry.evaluate(model, baseline)
        if found is None:
            return self.answers.of("evidence")
        return evidence_judgement(to_proto(found, EvaluateEvidenceResponse))

    # Capacity

    async def estimate(self, model: str, key: str, *, keep: bool) -> Estimate:
        self._chance.call("capacity")
        trained = self.models[model]
        least = MARGINS.min_replicas
        needs = {region: (trained.needs(region), least) for region in trained.max_qps}
        return Estimate("estimates/e" if keep else "", needs, dict.fromkeys(trained.max_qps, PEAK_QPS))

    async def unit_cost(self, flavor: str) -> float:
        return UNIT_COST

    async def decide(self, launch: str, candidate: str, pool: str, share: int, key: str, *, keep: bool) -> Decision:
        found, model_type = self.models[candidate], candidate.rsplit("/", 2)[0]
        route = self._registry.type_of(model_type)
        baseline = self.models.get(route.baseline) if route.baseline != candidate else None
        made = self._capacity.decide(launch, found, baseline, route, share)
        return replace(made, name="launchDecisions/d") if keep else made

    async def pool(self, name: str) -> PoolFacts:
        return PoolFacts(self._team)

    async def booked_elsewhere(self, model: str, pool: str, flavor: str, regions: Sequence[str]) -> str:
        return ""

    async def room(
        self, pool: str, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str], *, takes_over: str = ""
    ) -> Mapping[tuple[str, str], Room]:
        self._chance.call("capacity")
        return self._capacity.room(launch, wanted, replaced, takes_over)

    async def foresee(self, request: HoldRequest) -> Hold | None:
        self._chance.call("capacity")
        return self._capacity.foresee(request)

    async def hold(self, reservation: str) -> Hold:
        self._chance.call("capacity")
        return self._capacity.hold(reservation)

    async def reserve(self, request: HoldRequest, key: str) -> Hold:
        self._chance.call("capacity")
        made = self._capacity.reserve(request, key)
        self._chance.call("capacity")
        return made

    async def renew(self, reservation: str, release: datetime | None, key: str) -> None:
        self._chance.call("capacity")
        self._capacity.renew(reservation, release)

    async def activate(self, reservation: str, key: str) -> None:
        self._chance.call("capacity")
        self._capacity.activate(reservation)
        self._chance.call("capacity")

    async def cancel(self, reservation: str, key: str) -> None:
        self._chance.call("capacity")
        self._capacity.cancel(reservation)
        self._chance.call("capacity")

    async def settle(
        self,
        reservation: str,
        usages: Iterable[UsedUnits],
        kept: Iterable[HeldUnits],
        retain: timedelta,
        key: str,
    ) -> None:
        self._chance.call("capacity")
        self._capacity.settle(reservation, usages, kept, retain)
        self._chance.call("capacity")

    async def release(self, reservation: str, key: str) -> None:
        self._chance.call("capacity")
        self._capacity.release(reservation)
        self._chance.call("capacity")

    # Stability, platforms

    async def judge(self, model: str, baseline: str, since: datetime, gate: StabilityGate) -> Judgement:
        if self._chance.is_judge_away():
            return Judgement(Verdict.ERROR, "the judge could not be asked: stability does not answer now; try again.")
        return await self._judged(model, baseline, since, gate)

    async def _judged(self, model: str, baseline: str, since: datetime, gate: StabilityGate) -> Judgement:
        return self._stability.judge(model, since, baseline, gate.criteria)

    def at(self, address: str) -> Platform:
        return cast("Platform", self.agents[address])
