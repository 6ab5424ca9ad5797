"""LauncherService: parse → decide → store → reply."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeAlias

import grpc

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.launcher.v1 import launcher_pb2_grpc
from modelfleetd.clock import Clock
from modelfleetd.errors import FleetError, RoleMissing, RouteBusy, WrongState, invalid
from modelfleetd.kit import deadline, paging
from modelfleetd.kit.auth import Principal, Role, RoleSource, current_principal
from modelfleetd.kit.db import Connection
from modelfleetd.kit.failpoint import failpoint
from modelfleetd.kit.idempotency import answered, once
from modelfleetd.launcher import wire
from modelfleetd.launcher.domain import envelope, policy, verbs
from modelfleetd.launcher.domain.criteria import resolved
from modelfleetd.launcher.domain.decide import region_to_observe
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch, PhaseTime, State, Strategy
from modelfleetd.launcher.estimation import estimate
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.store import Store
from modelfleetd.launcher.watch import Notifier
from modelfleetd.names import LAUNCH, MODEL, MODEL_TYPE, POOL, REGION, check_id

_log = logging.getLogger(__name__)

# A watcher gets the launch again when it has not changed for so long, so that it knows that it is still watching.
_HEARTBEAT_SECONDS: Final = 15.0
# How long an abort waits for its agent to refuse whoever acted until then.
_FENCE_SECONDS: Final = 1.0
# Who may launch; others who may create a launch may only mitigate.
_LAUNCHERS: Final = frozenset({Role.ENGINEER, Role.OWNER, Role.ADMIN})
# Who may take capacity of a team's pool for another team's launch.
_SPENDERS: Final = frozenset({Role.ENGINEER, Role.OWNER, Role.CAPACITY_OWNER, Role.ADMIN})

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"
Verb: TypeAlias = Callable[[Launch, datetime], Launch]


class LauncherServicer(launcher_pb2_grpc.LauncherServiceServicer):
    """Launches, and what people do to them."""

    def __init__(
        self,
        store: Store,
        world: World,
        wake: Callable[[], None],
        notifier: Notifier,
        clock: Clock,
        roles: RoleSource,
    ) -> None:
        self._store = store
        self._roles = roles
        self._world = world
        self._wake = wake
        self._notifier = notifier
        self._clock = clock
        self._executor = Executor(world, clock)

    async def CreateLaunch(self, request: pb.CreateLaunchRequest, context: Context) -> pb.Launch:
        async with self._store.transaction() as conn:
            if (before := await answered(conn, request, pb.Launch)) is not None:
                return before
        launch = await self._new_launch(request)
        busy = await self._store.first_on(launch.model_type)
        if busy and not request.queue and not request.validate_only:
            raise RouteBusy(launch.model_type, busy)
        # What waits for another launch is planned when its turn comes: what is free now says little about then.
        if not (request.queue and busy and not request.validate_only):
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

    async def GetLaunch(self, request: pb.GetLaunchRequest, context: Context) -> pb.Launch:
        return await self._shown(await self._store.get(request.name))

    async def ListLaunches(self, request: pb.ListLaunchesRequest, context: Context) -> pb.ListLaunchesResponse:
        page = paging.read(request, int)
        before = int(page.position[0]) if page.position else None
        rows = await self._store.page(
            before=before, limit=page.size + 1, model_type=request.model_type, active_only=request.active_only
        )
        verdicts = await self._store.verdicts([launch.name for _, launch in rows])
        now = self._clock.now()
        shown, token = page.answer(
            rows,
            lambda row: (row[0],),
            lambda row: wire.launch_to_proto(row[1], verdicts.get(row[1].name, ()), now),
        )
        return pb.ListLaunchesResponse(launches=shown, next_page_token=token)

    async def WatchLaunch(self, request: pb.WatchLaunchRequest, context: Context) -> AsyncIterator[pb.Launch]:
        async with self._notifier.watching(request.name) as changed:
            sent: tuple[int, object] | None = None
            while True:
                changed.clear()
                launch = await self._store.get(request.name)
                seen = (launch.version, launch.progress)
                if sent != seen:
                    yield await self._shown(launch)
                    sent = seen
                if launch.ended:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), _HEARTBEAT_SECONDS)
                except TimeoutError:
                    sent = None

    async def ListLaunchEvents(
        self, request: pb.ListLaunchEventsRequest, context: Context
    ) -> pb.ListLaunchEventsResponse:
        page = paging.read(request, int)
        after = int(page.position[0]) if page.position else 0
        rows = await self._store.events(request.name, after=after, limit=page.size + 1)
        shown, token = page.answer(rows, lambda event: (event.sequence,), wire.event_to_proto)
        return pb.ListLaunchEventsResponse(events=shown, next_page_token=token)

    async def PauseLaunch(self, request: pb.PauseLaunchRequest, context: Context) -> pb.Launch:
        who, reason = _caller(), verbs.check_reason(request.reason)
        return await self._steer(request, "Paused", reason, lambda launch, now: verbs.pause(launch, who, reason, now))

    async def ResumeLaunch(self, request: pb.ResumeLaunchRequest, context: Context) -> pb.Launch:
        who, everybody = _caller(), request.any_author
        what = "removes every reason to pause" if everybody else "removes its reason to pause"
        return await self._steer(
            request, "Resumed", what, lambda launch, now: verbs.resume(launch, who, now, any_author=everybody)
        )

    async def SkipLaunchStep(self, request: pb.SkipLaunchStepRequest, context: Context) -> pb.Launch:
        who, reason = _caller(), verbs.check_reason(request.reason)
        return await self._steer(
            request, "StepSkipped", reason, lambda launch, _: verbs.skip_step(launch, who, request.expected_step)
        )

    async def AbortLaunch(self, request: pb.AbortLaunchRequest, context: Context) -> pb.Launch:
        who, reason = _caller(), verbs.check_reason(request.reason)
        return await self._steer(
            request, "Aborted", reason, lambda launch, now: verbs.abort(launch, who, reason, now), fence=True
        )

    async def ApproveLaunch(self, request: pb.ApproveLaunchRequest, context: Context) -> pb.Launch:
        who, digest = _caller(), request.envelope_digest
        return await self._steer(
            request, "Approved", f"approves {digest}", lambda launch, now: verbs.approve(launch, who, digest, now)
        )

    async def RejectLaunch(self, request: pb.RejectLaunchRequest, context: Context) -> pb.Launch:
        who, reason = _caller(), verbs.check_reason(request.reason)
        return await self._steer(
            request, "Rejected", reason, lambda launch, now: verbs.reject(launch, who, reason, now)
        )

    # What they share

    async def _steer(
        self, request: _Steering, event: str, message: str, verb: Verb, *, fence: bool = False
    ) -> pb.Launch:
        """Does a verb in one transaction, once for each request_id, and has the launch looked at.

        Args:
            request: of the verb.
            event: what it is called in the history.
            message: what the history says of it.
            verb: makes the launch after it.
            fence: whether whoever acts for the launch now is to do nothing more.
        """
        who, taken = _caller(), None

        async def act() -> pb.Launch:
            nonlocal taken
            launch, now = await self._store.lock(conn, request.name)
            after = verb(launch, now)
            if after != launch:
                said = Event(event, message, now, step=launch.step.number, actor=who)
                after = await self._store.put(conn, after, said, fence=fence)
                taken = after if fence else None
            return wire.launch_to_proto(after, (), now)

        failpoint(f"launcher.before_verb.{event}")
        async with self._store.transaction() as conn:
            answer = await once(conn, request, pb.Launch, act)
        failpoint(f"launcher.after_verb.{event}")
        if taken is not None:
            await self._fence(taken)
        self._wake()
        self._notifier.changed(request.name)
        return answer

    async def _fence(self, launch: Launch) -> None:
        """Has the agent refuse the launch's former holder. Where it does not answer soon, the next round does that."""
        unsettled = launch.intent.region if launch.intent else ""
        region = unsettled or region_to_observe(launch)
        if not region:
            return
        try:
            with deadline.limit(_FENCE_SECONDS):
                async with asyncio.timeout(_FENCE_SECONDS):
                    await self._executor.observe(launch, region, launch.epoch)
        except (FleetError, TimeoutError) as error:
            _log.info("%s: its agent is not fenced yet: %s", launch.name, error)

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
        strategy = wire.strategy_from_proto(asked.strategy)
        type_ = await self._world.registry.model_type(asked.model_type)
        await self._expect_pool(asked.pool, type_.team)
        ends = strategy is Strategy.END_EXPERIMENT
        if ends and asked.regions:
            raise invalid("launch.regions", "must be empty: an experiment ends everywhere")
        if not ends:
            await self._expect_launcher(type_.team)
        in_force = wire.policy_from_proto(asked.policy, type_.tier, strategy)
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
            actor=_caller(),
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
        if queue and await self._store.ahead_on(conn, launch.model_type):
            # Its baseline is pinned when it starts: the launch before it is about to put another one in place.
            launch = replace(launch, queued=True, baseline="")
        await self._store.insert(conn, launch)
        does = "ends the experiment" if launch.strategy is Strategy.END_EXPERIMENT else "launches"
        what = f"{does} {launch.candidate} on {launch.model_type}"
        created = Event("Created", what, launch.create_time, actor=launch.actor)
        await self._store.say(conn, launch, created)
        return wire.launch_to_proto(launch, (), launch.create_time)

    async def _shown(self, launch: Launch) -> pb.Launch:
        verdicts = await self._store.verdicts([launch.name])
        return wire.launch_to_proto(launch, verdicts.get(launch.name, ()), self._clock.now())


_Steering: TypeAlias = (
    pb.PauseLaunchRequest
    | pb.ResumeLaunchRequest
    | pb.SkipLaunchStepRequest
    | pb.AbortLaunchRequest
    | pb.ApproveLaunchRequest
    | pb.RejectLaunchRequest
)


def _caller() -> str:
    """Who acts: the person for whom a service calls, else the caller."""
    principal: Principal = current_principal()
    return principal.on_behalf_of or principal.name
