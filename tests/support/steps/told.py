"""Store, agents, registry and capacity of a rehearsed fleet that tell of each change and each act as it comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeAlias, cast

from modelfleetd.errors import PartUnavailable
from modelfleetd.launcher.domain.hold import Hold
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.ports import HeldUnits, HoldRequest, TypeFacts, UsedUnits
from modelfleetd.launcher.store import Change
from modelfleetd.platform.base import Platform
from modelfleetd.platform.model import Applied, DesiredServing, Fence, ServingObservation, TargetKind
from modelfleetd.rehearsal.launches import MemoryLaunches
from modelfleetd.rehearsal.world import MemoryWorld

Does: TypeAlias = Callable[[], Awaitable[None]]


class Launches(MemoryLaunches):
    """Tells of each change that a round writes as soon as it is written, before the round goes on."""

    recorded: Callable[[Launch], Awaitable[None]]

    async def record(self, change: Change) -> Launch | None:
        written = await super().record(change)
        if written is not None:
            await self.recorded(written)
        return written


@dataclass
class _Reached:
    """An agent; each act is told of before it arrives."""

    agent: Platform
    arrives: Does

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        await self.arrives()
        return await self.agent.apply(target, kind, fence, desired)

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        return await self.agent.observe(target, epoch)


class World(MemoryWorld):
    """Each act is told of before it arrives, and answers of registry and capacity may be lost.

    Attributes:
        arrives: what happens before an act upon anybody.
        loses: whether an answer of registry or capacity, by its number, is lost.
        answered: how many there were.
        baseline: of the model type, whatever the registry says; empty: what that says.
    """

    arrives: Does
    loses: Callable[[int], bool]
    answered = 0
    baseline = ""

    async def model_type(self, name: str) -> TypeFacts:
        found = await super().model_type(name)
        return replace(found, baseline=self.baseline) if self.baseline else found

    async def finalize(self, model_type: str, launch: str, key: str, **given: Any) -> int:
        await self.arrives()
        revision = await super().finalize(model_type, launch, key, **given)
        self._answer()
        return revision

    async def reserve(self, request: HoldRequest, key: str) -> Hold:
        await self.arrives()
        made = await super().reserve(request, key)
        self._answer()
        return made

    async def activate(self, reservation: str, key: str) -> None:
        await self.arrives()
        await super().activate(reservation, key)
        self._answer()

    async def cancel(self, reservation: str, key: str) -> None:
        await self.arrives()
        await super().cancel(reservation, key)
        self._answer()

    async def settle(
        self,
        reservation: str,
        usages: Iterable[UsedUnits],
        kept: Iterable[HeldUnits],
        retain: timedelta,
        key: str,
    ) -> None:
        await self.arrives()
        await super().settle(reservation, usages, kept, retain, key)
        self._answer()

    async def release(self, reservation: str, key: str) -> None:
        await self.arrives()
        await super().release(reservation, key)
        self._answer()

    def at(self, address: str) -> Platform:
        return cast("Platform", _Reached(super().at(address), self.arrives))

    def _answer(self) -> None:
        self.answered += 1
        if self.loses(self.answered):
            raise PartUnavailable("capacity")
