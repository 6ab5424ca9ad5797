"""What the launcher gets: the answers of the services."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from modelfleetd.launcher.domain.decision import Decision
from modelfleetd.launcher.domain.hold import Hold
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.domain.policy import StabilityGate
from modelfleetd.launcher.domain.record import Share
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
from modelfleetd.rehearsal.chance import Chance
from modelfleetd.rehearsal.stability import MemoryStability
from modelfleetd.rehearsal.world import MemoryWorld
from tests.support.stored.capacity import StoredCapacity
from tests.support.stored.parts import StoredParts
from tests.support.stored.registry import StoredRegistry


class StoredWorld(MemoryWorld):
    """Gives the launcher what the services answer."""

    def __init__(
        self,
        parts: StoredParts,
        registry: StoredRegistry,
        capacity: StoredCapacity,
        stability: MemoryStability,
        chance: Chance,
        team: str,
    ) -> None:
        super().__init__(registry, capacity, stability, chance, team)
        parts.models = self.models
        self._parts = parts
        self._ledger = registry

    def measure(self, model: str, max_qps: Mapping[str, float]) -> None:
        super().measure(model, max_qps)
        measured = self.models[model]
        self._parts.note(f"measure {model}", None, lambda: self._parts.certify(measured))

    # Registry

    async def model_type(self, name: str) -> TypeFacts:
        ours = await super().model_type(name)
        return await self._parts.ask(
            f"type {name}",
            ours,
            lambda: self._parts.registry.model_type(name),
            lambda theirs: replace(theirs, revision=self._ledger.alike(ours.revision, theirs.revision)),
        )

    async def model(self, name: str, path: str) -> SizedModel:
        ours = await super().model(name, path)
        # The machines run what they are told to by the document; that of the registry says more, and the same.
        return await self._parts.ask(
            f"model {name}",
            ours,
            lambda: self._parts.registry.model(name, path),
            lambda theirs: replace(theirs, facts=ours.facts) if theirs.facts.name == name else theirs,
        )

    async def evaluate_evidence(self, model: str, baseline: str) -> Judgement:
        ours = await super().evaluate_evidence(model, baseline)
        return await self._parts.ask(
            f"evidence of {model}",
            ours,
            lambda: self._parts.registry.evaluate_evidence(model, baseline),
            lambda theirs: theirs,
        )

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
        ours = super().finalize(
            model_type,
            launch,
            key,
            succeeded=succeeded,
            expected_revision=expected_revision,
            roles=roles,
            splits=splits,
            reason=reason,
            attempt=attempt,
        )
        return await self._parts.answer(ours, key)

    # Capacity

    async def estimate(self, model: str, key: str, *, keep: bool) -> Estimate:
        ours = await super().estimate(model, key, keep=keep)
        return await self._parts.ask(
            f"estimate of {model}",
            ours,
            lambda: self._parts.capacity.estimate(model, key, keep=keep),
            lambda theirs: replace(theirs, name=ours.name),
        )

    async def decide(self, launch: str, candidate: str, pool: str, share: int, key: str, *, keep: bool) -> Decision:
        ours = await super().decide(launch, candidate, pool, share, key, keep=keep)
        return await self._parts.ask(
            f"decision on {launch}",
            ours,
            lambda: self._parts.capacity.decide(launch, candidate, pool, share, key, keep=keep),
            lambda theirs: replace(theirs, name=ours.name) if bool(theirs.name) is keep else theirs,
        )

    async def unit_cost(self, flavor: str) -> float:
        ours = await super().unit_cost(flavor)
        return await self._parts.ask(
            f"cost of {flavor}", ours, lambda: self._parts.capacity.unit_cost(flavor), lambda theirs: theirs
        )

    async def pool(self, name: str) -> PoolFacts:
        ours = await super().pool(name)
        return await self._parts.ask(name, ours, lambda: self._parts.capacity.pool(name), lambda theirs: theirs)

    async def booked_elsewhere(self, model: str, pool: str, flavor: str, regions: Sequence[str]) -> str:
        ours = await super().booked_elsewhere(model, pool, flavor, regions)
        return await self._parts.ask(
            f"what {model} has elsewhere",
            ours,
            lambda: self._parts.capacity.booked_elsewhere(model, pool, flavor, regions),
            lambda theirs: theirs,
        )

    async def room(
        self, pool: str, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str], *, takes_over: str = ""
    ) -> Mapping[tuple[str, str], Room]:
        return await self._parts.answer(super().room(pool, launch, wanted, replaced, takes_over=takes_over))

    async def foresee(self, request: HoldRequest) -> Hold | None:
        return await self._parts.answer(super().foresee(request))

    async def hold(self, reservation: str) -> Hold:
        return await self._parts.answer(super().hold(reservation))

    async def reserve(self, request: HoldRequest, key: str) -> Hold:
        return await self._parts.answer(super().reserve(request, key), key)

    async def renew(self, reservation: str, release: datetime | None, key: str) -> None:
        await self._parts.answer(super().renew(reservation, release, key), key)

    async def activate(self, reservation: str, key: str) -> None:
        await self._parts.answer(super().activate(reservation, key), key)

    async def cancel(self, reservation: str, key: str) -> None:
        await self._parts.answer(super().cancel(reservation, key), key)

    async def settle(
        self,
        reservation: str,
        usages: Iterable[UsedUnits],
        kept: Iterable[HeldUnits],
        retain: timedelta,
        key: str,
    ) -> None:
        await self._parts.answer(super().settle(reservation, usages, kept, retain, key), key)

    async def release(self, reservation: str, key: str) -> None:
        await self._parts.answer(super().release(reservation, key), key)

    # Stability

    async def _judged(self, model: str, baseline: str, since: datetime, gate: StabilityGate) -> Judgement:
        return await self._parts.answer(super()._judged(model, baseline, since, gate))
