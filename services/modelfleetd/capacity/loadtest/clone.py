"""The clone under test: one replica of the model as a target of its own, so that no serving replica is ever touched."""

from __future__ import annotations

from modelfleetd import names
from modelfleetd.capacity.registry import Model
from modelfleetd.clock import Clock
from modelfleetd.kit.failpoint import failpoint
from modelfleetd.platform.base import Platform
from modelfleetd.platform.model import DesiredModel, DesiredServing, Fence, TargetKind

_POLL_SECONDS = 0.2
# Beyond what the spec grants for starting and draining.
_GRACE_SECONDS = 30.0


class CloneNotAvailable(Exception):
    """The clone did not become available in time; the message says why."""


class CloneNotGone(Exception):
    """The clone's replicas have not ended in time."""


class Clone:
    """The clone of one claim. Every act carries the claim's epoch: a claim that was lost cannot act any more."""

    def __init__(self, platform: Platform, load_test: str, epoch: int, clock: Clock) -> None:
        self._platform = platform
        self._load_test = load_test
        self._epoch = epoch
        self._clock = clock
        self.target = target_of(load_test)

    async def start(self, model: Model) -> None:
        """Starts one replica and returns when it is available.

        Raises:
            StaleEpoch: the claim was lost.
            ReplicaCannotStart: the agent cannot run it.
            CloneNotAvailable: it was not available in time.
        """
        await self._platform.observe(self.target, self._epoch)
        desired = DesiredServing((DesiredModel(model.name, model.spec, 1),))
        failpoint("capacity.before_act.start_clone")
        await self._platform.apply(self.target, TargetKind.LOAD_TEST, self._fence("start"), desired)
        failpoint("capacity.after_act.start_clone")
        end = self._clock.monotonic() + model.spec.startup_limit.total_seconds() + _GRACE_SECONDS
        while True:
            seen = (await self._platform.observe(self.target)).model(model.name)
            if seen.available_replicas:
                return
            if self._clock.monotonic() >= end:
                raise CloneNotAvailable(seen.message or "it was not ready in time")
            await self._clock.sleep(_POLL_SECONDS)

    async def trouble(self, model: str) -> str:
        """Returns why the clone does not serve; empty while it does."""
        seen = (await self._platform.observe(self.target)).model(model)
        return "" if seen.available_replicas else seen.message or "its replica is not available any more"

    async def remove(self, act: str, drain_seconds: float) -> None:
        """Stops whatever runs for this load test and returns when it is gone.

        Args:
            act: names this removal within the claim: the agent does an act once, however often it is asked for.
            drain_seconds: that draining may take.

        Raises:
            StaleEpoch: the claim was lost.
            CloneNotGone: it is still there after that time.
        """
        seen = await self._platform.observe(self.target, self._epoch)
        if seen.kind is None:
            return
        failpoint("capacity.before_act.remove_clone")
        await self._platform.apply(self.target, TargetKind.LOAD_TEST, self._fence(act), DesiredServing())
        failpoint("capacity.after_act.remove_clone")
        end = self._clock.monotonic() + drain_seconds + _GRACE_SECONDS
        while any(model.existing_replicas for model in (await self._platform.observe(self.target)).models):
            if self._clock.monotonic() >= end:
                raise CloneNotGone
            await self._clock.sleep(_POLL_SECONDS)

    async def traffic_address(self) -> str:
        """Returns where its requests go."""
        return (await self._platform.agent()).traffic_address

    def _fence(self, act: str) -> Fence:
        return Fence(self._epoch, f"{self._load_test}/{self._epoch}/{act}")


def target_of(load_test: str) -> str:
    """Returns the target of a load test."""
    return names.TARGET.format(f"loadtest-{names.LOAD_TEST.parse(load_test)[0]}"[:63])
