"""Every platform that has to pass the conformance suite: the simulator, and a real node agent."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from modelfleetd.clock import Clock, ManualClock, SystemClock
from modelfleetd.platform.base import Platform
from modelfleetd.platform.model import (
    Applied,
    DesiredServing,
    Effect,
    Fence,
    RecordingPlan,
    ServingObservation,
    ServingSpec,
    TargetKind,
)
from modelfleetd.platform.simulator import Behaviour, Simulator
from tests.support.node import Node, node, replica_spec, test_run
from tests.support.serving import SPEC, TARGET
from tests.support.wait import until

__all__ = ["node", "test_run"]


@dataclass
class Subject:
    """A platform under test, how replicas run on it, and how its time passes."""

    platform: Platform
    spec: ServingSpec
    pass_time: Callable[[], Awaitable[None]]
    clock: Clock
    recordings: Path
    acts: int = 0

    def plan(self, *, seconds: float = 600) -> RecordingPlan:
        """What to record of the route, for so long."""
        uri, end = str(self.recordings / "r1"), self.clock.now() + timedelta(seconds=seconds)
        return RecordingPlan("recordings/r1", TARGET, uri, 10, 1 << 20, 0, end)

    async def apply(self, desired: DesiredServing, *, epoch: int = 1, key: str = "", target: str = TARGET) -> Applied:
        """Makes it the desired state of a route, under a key of its own where none is given."""
        self.acts += 1
        fence = Fence(epoch, key or f"launch/1/{self.acts}/act")
        return await self.platform.apply(target, TargetKind.ROUTE, fence, desired)

    async def reach(self, desired: DesiredServing, *, epoch: int = 1, target: str = TARGET) -> ServingObservation:
        """Makes it the desired state and waits until all of it is so."""
        await self.apply(desired, epoch=epoch, target=target)

        async def reached() -> ServingObservation | None:
            await self.pass_time()
            seen = await self.platform.observe(target)
            settled = all(m.available_replicas == m.desired_replicas == m.existing_replicas for m in seen.models)
            return seen if settled and seen.acknowledged_generation == seen.generation else None

        found: ServingObservation | None = await until(reached, timeout=30)
        assert found is not None
        return found

    async def ledger(self) -> list[Effect]:
        """Every effect from the beginning."""
        found: list[Effect] = []
        while True:
            page = await self.platform.effects(after=len(found))
            found += page.effects
            if not page.more:
                return found


async def _now() -> None:
    """Real time passes by itself."""


@pytest.fixture(params=["simulator", "node"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path, test_run: str) -> AsyncIterator[Subject]:
    """Each platform in turn."""
    if request.param == "simulator":
        clock = ManualClock()

        async def pass_time() -> None:
            await clock.advance(0.2)

        simulator = Simulator(clock, seed=1, behaviour=Behaviour(start_seconds=(0.2, 1.0)))
        yield Subject(simulator, SPEC, pass_time, clock, tmp_path)
        return
    async with Node(tmp_path / "node", f"{test_run}-{uuid.uuid4().hex[:8]}") as running:
        yield Subject(running.platform, replica_spec(), _now, SystemClock(), running.folder / "recordings")
