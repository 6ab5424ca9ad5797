"""Creating launches, and planning them without creating anything."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Final

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import RoleMissing, RouteBusy, WrongState, invalid
from modelfleetd.kit.auth import Role, current_principal
from modelfleetd.kit.db import Connection
from modelfleetd.kit.failpoint import failpoint
from modelfleetd.kit.idempotency import answered, once
from modelfleetd.launcher.api.base import Base, Context, caller
from modelfleetd.launcher.domain import envelope, policy, preemption, verbs
from modelfleetd.launcher.domain.criteria import resolved
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch, PhaseTime, State, Strategy
from modelfleetd.launcher.estimation import estimate
from modelfleetd.launcher.wire import launches as wire
from modelfleetd.launcher.wire.policy import policy_from_proto, strategy_from_proto
from modelfleetd.names import LAUNCH, MODEL, MODEL_TYPE, POOL, REGION, check_id

# Who may launch; others who may create a launch may only mitigate.
_LAUNCHERS: Final = frozenset({Role.ENGINEER, Role.OWNER, Role.ADMIN})
# Who may take capacity of a team's pool for another team's launch.
_SPENDERS: Final = frozenset({Role.ENGINEER, Role.OWNER, Role.CAPACITY_OWNER, Role.ADMIN})


class Creating(Base):
    """Creating launches."""

    async def CreateLaunch(self, request: pb.CreateLaunchRequest, context: Context) -> pb.Launch:
        async with self._store.transaction() as conn:
            if (before := await answered(conn, request, pb.Launch)) is not None:
                return before
        launch = await self._new_launch(request)
        busy = await self._store.first_on(launch.model_type, only_mitigations=launch.mitigates)
        if busy and not request.queue and not request.validate_only:
            raise RouteBusy(launch.model_type, busy)
        # What waits for another launch is planned when its turn comes: what is free now says little about then.
        if not (request.queue and busy and not request.validate_only):
            if launch.mitigates:
                launch = await self._beside(launch)
            await self._expect_bookings(launch)
            launch = await self._planned(launch, keep_plan=request.validate_only)
        if request.validate_only:
            return wire.launch_to_proto(launch, (), self._clock.now())
        failpoint("launcher.before_verb.Created")
        async with self._store.transaction() as conn:
            answer = await once(conn, request, pb.Launch, lambda: self._create(conn, launch, queue=request.queue))
        failpoint("launcher.after_verb.Created")
        self._wake()
        return answer

    async def _new_launch(self, request: pb.CreateLaunchRequest) -> Launch:
        """A launch as it is asked for, with the baseline of now pinned."""
        asked = request.launch
        launch_id = check_id(request.launch_id, "launch_id") if request.launch_id else f"l-{uuid.uuid4().hex[:12]}"
        MODEL_TYPE.parse(asked.model_type, "launch.model_type")
        POOL.parse(asked.pool, "launch.pool")
        type_id, _ = MODEL.parse(asked.candidate, "launch.candidate")
        if MODEL_TYPE.format(type_id) != asked.model_type:
            raise invalid("launch.candidate", f"must be a model of {asked.model_type}")
        for index, region in enumerate(asked.regions):
            REGION.parse(region, f"launch.regions[{index}]")
        if len(set(asked.regions)) != len(asked.regions):
            raise invalid("launch.regions", "must name each region once")
        if len(asked.reason) > verbs.MAX_REASON:
            raise invalid("launch.reason", f"must have at most {verbs.MAX_REASON} characters")
        strategy = strategy_from_proto(asked.strategy)
        type_ = await self._world.registry.model_type(asked.model_type)
        await self._expect_pool(asked.pool, type_.team)
        ends = strategy is Strategy.END_EXPERIMENT
        if ends and asked.regions:
            raise invalid("launch.regions", "must be empty: an experiment ends everywhere")
        if not ends:
            await self._expect_launcher(type_.team)
        in_force = policy_from_proto(asked.policy, type_.tier, strategy)
        policy.check(in_force)
        # One that is queued is compared with whatever is the baseline by then.
        demanded = resolved(
            in_force.stability_gate.criteria,
            type_.predictions,
            has_baseline=bool(type_.baseline) or request.queue,
        )
        in_force = replace(in_force, stability_gate=replace(in_force.stability_gate, criteria=demanded))
        if asked.candidate == type_.baseline:
            raise invalid("launch.candidate", "must not be the baseline already")
        now = self._clock.now()
        return Launch(
            name=LAUNCH.format(launch_id),
            uid=str(uuid.uuid4()),
            model_type=asked.model_type,
            candidate=asked.candidate,
            strategy=strategy,
            pool=asked.pool,
            regions=tuple(asked.regions) or type_.regions,
            policy=in_force,
            actor=caller(),
            trace_id=uuid.uuid4().hex,
            create_time=now,
            update_time=now,
            reason=asked.reason,
            baseline=type_.baseline,
            phase_times=(PhaseTime(State.PENDING, now),),
        )

    async def _expect_pool(self, pool: str, team: str) -> None:
        """Expects that a launch may take capacity of a pool: a pool of its own team, or one that the caller may use.

        Raises:
            RoleMissing: it is another team's.
        """
        found = await self._world.capacity.pool(pool)
        if team in (found.team, found.parent_team):
            return
        principal = current_principal()
        bound = principal.roles_everywhere | await self._roles.roles(principal, found.team)
        bound |= await self._roles.roles(principal, None)
        if bound.isdisjoint(_SPENDERS):
            raise RoleMissing(principal.name, "CreateLaunch", sorted(role.name for role in _SPENDERS), found.team)

    async def _expect_launcher(self, team: str) -> None:
        """Expects that the caller may launch on a team's routes, not only mitigate.

        Raises:
            RoleMissing: it is on call only.
        """
        principal = current_principal()
        bound = principal.roles_everywhere | await self._roles.roles(principal, team)
        bound |= await self._roles.roles(principal, None)
        if bound.isdisjoint(_LAUNCHERS):
            raise RoleMissing(principal.name, "CreateLaunch", ["ENGINEER", "OWNER"], team)

    async def _expect_bookings(self, launch: Launch) -> None:
        """Expects that what the models that serve have booked can move into the launch's hold.

        Raises:
            WrongState: it is booked in another pool.
        """
        serving = {launch.baseline, launch.falling} - {""}
        for name in sorted(serving):
            model = await self._world.registry.model(name, "launch.model_type")
            other = await self._world.capacity.booked_elsewhere(name, launch.pool, model.flavor, launch.regions)
            if other:
                raise WrongState(name, f"booked in {other}", [f"launches from {other}"])

    async def _beside(self, launch: Launch) -> Launch:
        """A mitigation, with what the launch that is active on the route will lend it.

        Raises:
            WrongState: that launch takes its capacity of another pool.
        """
        active = await self._store.active_on(launch.model_type)
        if active is None or not preemption.can_hold(active) or preemption.takes_part(launch, active):
            return launch
        beside = preemption.beside_of(active)
        if beside is not None and active.pool != launch.pool:
            raise WrongState(
                launch.baseline, f"held in {active.pool} by {active.name}", [f"launches from {active.pool}"]
            )
        return replace(launch, beside=beside)

    async def _planned(self, launch: Launch, *, keep_plan: bool) -> Launch:
        """Makes the plan as the launch itself will: whatever stands in its way is said to the caller at once."""
        found = await estimate(launch, self._world, f"{launch.uid}/plan", self._clock.now(), keep=False)
        if not keep_plan:
            return launch
        made = envelope.of_plan(
            found.plan,
            launch.policy,
            candidate=launch.candidate,
            serving_spec_digest=found.candidate.digest,
            baseline=launch.baseline,
            strategy=launch.strategy.name,
        )
        return replace(launch, plan=found.plan, envelope=made)

    async def _create(self, conn: Connection, launch: Launch, *, queue: bool) -> pb.Launch:
        if queue and await self._store.ahead_on(conn, launch.model_type, only_mitigations=launch.mitigates):
            # Its baseline is pinned when it starts: the launch before it is about to put another one in place.
            launch = replace(launch, queued=True, baseline="")
        if launch.mitigates:
            launch = await self._store.with_precedence(conn, launch, launch.create_time)
            if launch.queued:
                launch = replace(launch, baseline="", beside=None)
        await self._store.insert(conn, launch)
        does = "ends the experiment" if launch.strategy is Strategy.END_EXPERIMENT else "launches"
        what = f"{does} {launch.candidate} on {launch.model_type}"
        created = Event("Created", what, launch.create_time, actor=launch.actor)
        await self._store.say(conn, launch, created)
        return wire.launch_to_proto(launch, (), launch.create_time)
