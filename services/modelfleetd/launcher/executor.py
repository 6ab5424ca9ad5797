"""Does what an intent says, with the intent's key, and says what the launch is after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from modelfleetd.clock import Clock
from modelfleetd.errors import FleetError, RevisionMismatch
from modelfleetd.kit.failpoint import passing
from modelfleetd.launcher.domain import outcomes
from modelfleetd.launcher.domain.hold import Hold
from modelfleetd.launcher.domain.launch import Launch, going_back
from modelfleetd.launcher.domain.record import ON_PLATFORM, Act, Intent, Share
from modelfleetd.launcher.estimation import decide, estimate, target_of
from modelfleetd.launcher.ports import HeldUnits, HoldRequest, UsedUnits, World
from modelfleetd.launcher.remote import is_undecided
from modelfleetd.launcher.serving import desired_from_document
from modelfleetd.platform.base import Platform
from modelfleetd.platform.model import Fence, ServingObservation, TargetKind

# How long an agent's address is believed without asking the registry again.
_ADDRESS_SECONDS = 15.0


class Executor:
    """Acts for launches."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._world = world
        self._clock = clock
        self._addresses: dict[str, tuple[float, str]] = {}

    async def platform(self, launch: Launch, region: str) -> Platform:
        """The agent of a region: where the registry says it is now, else where it was when the plan was made."""
        known = self._addresses.get(region)
        if known is None or self._clock.monotonic() - known[0] > _ADDRESS_SECONDS:
            try:
                address = await self._world.registry.agent_address(region)
            except FleetError:
                # A launch goes back also while the registry is away.
                if known is None and region not in launch.agents:
                    raise
                address = known[1] if known else launch.agents[region]
            known = self._addresses[region] = (self._clock.monotonic(), address)
        return self._world.platforms.at(known[1])

    async def observe(self, launch: Launch, region: str, epoch: int) -> ServingObservation:
        """Says what a region really looks like, once its agent refuses every older epoch.

        Raises:
            StaleEpoch: somebody else has claimed the launch since.
        """
        platform = await self.platform(launch, region)
        return await platform.observe(target_of(launch.model_type), epoch)

    async def perform(self, launch: Launch, intent: Intent, now: datetime) -> tuple[Launch, str]:
        """Does what an intent says. Returns the launch after it, and the outcome in a word or a sentence.

        Raises:
            FleetError: nobody knows whether it happened (`is_undecided`), or it is not ours to do (StaleEpoch).
        """
        act = intent.act
        try:
            after = await (self._apply if act in ON_PLATFORM else self._call)(launch, intent, now)
        except RevisionMismatch as error:
            return await self._read_again(launch, error, now), f"refused: {error.message}"
        except FleetError as error:
            if is_undecided(error) or error.reason == "STALE_EPOCH":
                raise
            return outcomes.refused(launch, act, error, now), f"refused: {outcomes.advice(error)}"
        return after, "done"

    async def _apply(self, launch: Launch, intent: Intent, now: datetime) -> Launch:
        platform = await self.platform(launch, intent.region)
        desired = desired_from_document(intent.content["desired"])
        fence = Fence(launch.epoch, intent.key)
        with passing("launcher", "act", intent.act.value):
            await platform.apply(target_of(launch.model_type), TargetKind.ROUTE, fence, desired)
        return outcomes.confirmed(launch)

    async def _call(self, launch: Launch, intent: Intent, now: datetime) -> Launch:
        world, key, content = self._world, intent.key, intent.content
        match intent.act:
            case Act.ESTIMATE:
                return await self._estimate(launch, key, now)
            case Act.RESERVE:
                request = _hold_request(launch, content)
                return outcomes.reserved(launch, await world.capacity.reserve(request, key), request.release, now)
            case Act.ACTIVATE:
                await world.capacity.activate(content["reservation"], key)
                return outcomes.activated(launch)
            case Act.CANCEL_RESERVATION:
                await world.capacity.cancel(content["reservation"], key)
                return outcomes.reservation_gone(launch)
            case Act.FINALIZE:
                return outcomes.finalized(launch, await self._finalize(launch, intent))
            case Act.FORGO:
                await world.registry.finalize(
                    launch.model_type, launch.name, key, succeeded=False, attempt=launch.attempt
                )
                return outcomes.forgone(launch)
            case Act.SETTLE:
                usages = [UsedUnits(**usage) for usage in content["usages"]]
                kept = [HeldUnits(**item) for item in content.get("retain", ())]
                retain = timedelta(seconds=content["retain_seconds"])
                await world.capacity.settle(content["reservation"], usages, kept, retain, key)
                return outcomes.settled(launch)
            case Act.RELEASE:
                await self._release(launch, content["reservation"], key)
                return outcomes.settled(launch)
            case _:
                raise AssertionError(intent.act)

    async def _release(self, launch: Launch, reservation: str, key: str) -> None:
        """Frees the hold. One that was never activated is given back instead."""
        if launch.activated:
            await self._world.capacity.release(reservation, key)
        else:
            await self._world.capacity.cancel(reservation, key)

    async def hold(self, launch: Launch) -> Hold:
        """Says what has become of the launch's reservation."""
        return await self._world.capacity.hold(launch.reservation)

    async def why_not(self, launch: Launch, now: datetime) -> tuple[Launch, str] | None:
        """Why there is still no plan for a launch, as `perform` says it; None where there is one. Nothing is stored.

        Raises:
            FleetError: it cannot be asked now.
        """
        try:
            await estimate(launch, self._world, f"{launch.uid}/plan", now, keep=False)
        except FleetError as error:
            if is_undecided(error):
                raise
            return outcomes.refused(launch, Act.ESTIMATE, error, now), f"refused: {outcomes.advice(error)}"
        return None

    async def _estimate(self, launch: Launch, key: str, now: datetime) -> Launch:
        found = await estimate(launch, self._world, key, now, keep=True)
        # What holds its capacity has been decided on before; a plan that is made again fits that.
        decision = None if launch.reservation else await decide(launch, found.plan, self._world, key, keep=True)
        launch = outcomes.decided(launch, decision)
        gate = replace(launch.policy.stability_gate, criteria=found.criteria)
        in_force = replace(launch.policy, stability_gate=gate)
        return outcomes.estimated(
            replace(launch, agents=found.agents, lowers=found.lowers, policy=in_force),
            plan=found.plan,
            candidate=found.candidate,
            baseline=found.baseline,
            revision=found.type.revision,
            gated=found.type.predicts or bool(launch.policy.stability_gate.criteria),
            tier=found.type.tier,
            team=found.type.team,
            surface=found.type.surface,
            now=now,
            evidence_rules=found.type.evidence_rules,
        )

    async def _finalize(self, launch: Launch, intent: Intent) -> int:
        content = intent.content
        splits = {region: [Share(**share) for share in shares] for region, shares in content["splits"].items()}
        return await self._world.registry.finalize(
            launch.model_type,
            launch.name,
            intent.key,
            succeeded=True,
            expected_revision=content["expected_revision"],
            roles=content["roles"],
            splits=splits,
            reason=launch.reason,
            attempt=launch.attempt,
        )

    async def _read_again(self, launch: Launch, error: RevisionMismatch, now: datetime) -> Launch:
        """The model type has changed. Where the pinned baseline still is the baseline, that does not matter."""
        after = outcomes.refused(launch, Act.FINALIZE, error, now)
        type_ = await self._world.registry.model_type(launch.model_type)
        if type_.baseline != launch.baseline:
            changed = f"the baseline is {type_.baseline or 'gone'}, no longer {launch.baseline or 'none'}"
            return going_back(after, "registry", changed, now)
        return replace(after, expected_revision=type_.revision)


def _hold_request(launch: Launch, content: Mapping[str, Any]) -> HoldRequest:
    release = content.get("release_time")
    return HoldRequest(
        pool=launch.pool,
        launch=launch.name,
        items=[HeldUnits(**item) for item in content["items"]],
        replaced=content["replaced"],
        tier=content.get("tier", ""),
        release=release and datetime.fromisoformat(release),
        retain=timedelta(seconds=content.get("retain_seconds", 0)),
        attempt=launch.attempt,
        takes_over=launch.takes_over,
    )
