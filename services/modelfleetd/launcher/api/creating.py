"""Creating launches, and planning them without creating anything."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import (
    FieldViolation,
    InvalidFields,
    ReferenceNotFound,
    RoleMissing,
    RouteBusy,
    WrongState,
    invalid,
)
from modelfleetd.kit.auth import Role, current_principal
from modelfleetd.kit.db import Connection
from modelfleetd.kit.idempotency import answered, once
from modelfleetd.launcher.api.base import Context, caller
from modelfleetd.launcher.api.holds import Holding
from modelfleetd.launcher.domain import envelope, outcomes, policy, preemption, strategies, verbs
from modelfleetd.launcher.domain.criteria import resolved
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.record import FreezeOverride, PhaseTime
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.estimation import decide, estimate
from modelfleetd.launcher.wire import launches as wire
from modelfleetd.launcher.wire.policy import policy_from_proto, strategy_from_proto
from modelfleetd.names import LAUNCH, MODEL, MODEL_TYPE, POOL, REGION, check_id

# Who may launch; others who may create a launch may only mitigate.
_LAUNCHERS: Final = frozenset({Role.ENGINEER, Role.OWNER, Role.ADMIN})
# Who may take capacity of a team's pool for another team's launch.
_SPENDERS: Final = frozenset({Role.ENGINEER, Role.OWNER, Role.CAPACITY_OWNER, Role.ADMIN})


# Roles with a share, and so with something booked.
_SERVING: Final = frozenset({"BASELINE", "EXPERIMENT", "HOLDOUT"})


class Creating(Holding):
    """Creating launches."""

    async def CreateLaunch(self, request: pb.CreateLaunchRequest, context: Context) -> pb.Launch:
        async with self._store.transaction(readonly=True) as conn:
            if (before := await answered(conn, request, pb.Launch)) is not None:
                return before
        return await self._start(request, await self._new_launch(request))

    async def _start(self, request: pb.CreateLaunchRequest, launch: Launch) -> pb.Launch:
        """Plans a launch and stores it, so that it goes on by itself; once for each request_id."""
        await self._expect_no_hold(launch)
        busy = await self._store.first_on(launch.model_type, only_mitigations=launch.mitigates)
        if busy and not request.queue and not request.validate_only:
            raise RouteBusy(launch.model_type, busy)
        follows = bool(busy) and request.queue and not request.validate_only
        if not follows and launch.mitigates:
            launch, follows = await self._beside(launch)
        if follows and not request.validate_only:
            # It is planned when its turn comes: what is free now says little about then. There has to be such a model.
            await self._world.registry.model(launch.candidate, "launch.candidate")
        else:
            await self._expect_bookings(launch)
            launch = await self._planned(launch, keep_plan=request.validate_only)
        if request.validate_only:
            now = await self._store.now()
            return await self._with_conflicts(wire.launch_to_proto(launch, (), now), launch, now)
        async with self._store.transaction() as conn:
            answer = await once(conn, request, pb.Launch, lambda: self._create(conn, launch, queue=request.queue))
        await self._fence_whoever_goes_back(launch)
        self._wake()
        return answer

    async def _new_launch(self, request: pb.CreateLaunchRequest, *, may_use_pool: bool = False) -> Launch:
        """A launch as it is asked for, with the baseline of now pinned.

        Args:
            request: what is asked for.
            may_use_pool: the pool is what a launch that is taken back was given, so nobody has to be asked again.
        """
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
        wrong = strategies.check_asked(
            strategy,
            target=asked.target_share_basis_points,
            holdout=asked.holdout_share_basis_points,
            regions=len(asked.regions),
        )
        if wrong:
            raise InvalidFields(wrong)
        type_ = await self._world.registry.model_type(asked.model_type)
        if not may_use_pool:
            await self._expect_pool(asked.pool, type_.team)
        if not strategy.rule.mitigation:
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
        self._expect_webhooks(in_force)
        if asked.candidate == type_.baseline and strategy.rule.swaps:
            raise invalid("launch.candidate", "must not be the baseline already")
        replaced = await self._replaced(asked) if strategy is Strategy.ROLL_BACK else None
        serves = type_.shares.get(asked.candidate, frozenset()) if strategy.rule.where_it_serves else frozenset[str]()
        now = await self._store.now()
        overrides = await self._overrides(asked, type_.team, now)
        return Launch(
            name=LAUNCH.format(launch_id),
            uid=str(uuid.uuid4()),
            model_type=asked.model_type,
            candidate=asked.candidate,
            strategy=strategy,
            pool=asked.pool,
            regions=tuple(asked.regions) or tuple(r for r in type_.regions if r in serves) or type_.regions,
            policy=in_force,
            actor=caller(),
            trace_id=uuid.uuid4().hex,
            create_time=now,
            update_time=now,
            reason=asked.reason,
            target_share=asked.target_share_basis_points,
            holdout_share=asked.holdout_share_basis_points,
            known_full=_full_before(replaced) if replaced else {},
            takes_over=replaced.reservation if replaced and replaced.pool == asked.pool else "",
            baseline=type_.baseline,
            names_rollback_window=asked.policy.HasField("rollback_window"),
            tier=type_.tier,
            team=type_.team,
            surface=type_.surface,
            freeze_overrides=overrides,
            phase_times=(PhaseTime(State.PENDING, now),),
        )

    async def _overrides(self, asked: pb.Launch, team: str, now: datetime) -> tuple[FreezeOverride, ...]:
        """The freeze windows that are not to hold for it, by whoever may override them.

        Raises:
            ReferenceNotFound: there is no such window.
            RoleMissing: the caller may not override it.
        """
        given = asked.freeze_overrides
        if len(given) > verbs.MAX_OVERRIDES:
            raise invalid("launch.freeze_overrides", f"must be at most {verbs.MAX_OVERRIDES}")
        if len({each.freeze_window for each in given}) != len(given):
            raise invalid("launch.freeze_overrides", "must name each window once")
        if given:
            await self._expect_role((Role.OWNER, Role.APPROVER), team, "OverrideLaunchFreeze")
        made: list[FreezeOverride] = []
        for index, each in enumerate(given):
            path = f"launch.freeze_overrides[{index}]"
            reason = verbs.check_reason(each.reason, f"{path}.reason")
            window = await self._store.find_freeze_window(each.freeze_window)
            if window is None:
                raise ReferenceNotFound(f"{path}.freeze_window", each.freeze_window)
            made.append(FreezeOverride(window.name, reason, caller(), now, window.uid))
        return tuple(made)

    async def _replaced(self, asked: pb.Launch) -> Launch:
        """The launch that has replaced a former baseline: it knows what that needs, and keeps capacity for its return.

        Raises:
            InvalidFields: no launch has replaced it, so nobody has verified that it can be the baseline.
        """
        replaced = await self._store.replaced(asked.model_type, asked.candidate)
        if replaced is None or replaced.plan is None:
            was = "must have been the baseline before: no launch has replaced it, so nothing says that it is good"
            raise invalid("launch.candidate", was)
        return replaced

    def _expect_webhooks(self, wanted: policy.Policy) -> None:
        """Expects that every webhook of a policy is one that this launcher may ask.

        Raises:
            InvalidFields: names each that is not.
        """
        known = self._world.webhooks.gates if self._world.webhooks is not None else frozenset()
        among = ", ".join(sorted(known)) or "none is configured"
        found = [
            FieldViolation(f"launch.policy.webhook_gates[{index}].webhook", f"must be one of the launcher's: {among}")
            for index, gate in enumerate(wanted.webhook_gates)
            if gate.webhook not in known
        ]
        if found:
            raise InvalidFields(found)

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
        for name in sorted({launch.rising, launch.falling} - {""}):
            path = "launch.candidate" if name == launch.candidate else "launch.model_type"
            model = await self._world.registry.model(name, path)
            if model.role not in _SERVING:
                continue
            other = await self._world.capacity.booked_elsewhere(name, launch.pool, model.flavor, launch.regions)
            if other:
                raise WrongState(name, f"booked in {other}", [f"launches from {other}"])

    async def _beside(self, launch: Launch) -> tuple[Launch, bool]:
        """A mitigation, with what the launch that is active on the route will lend it; or whether that goes back, or
        ends, before it.

        Raises:
            WrongState: that launch takes its capacity of another pool.
        """
        active = await self._store.active_on(launch.model_type)
        if active is None:
            return launch, False
        if not preemption.can_hold(active) or preemption.takes_part(launch, active):
            return launch, True
        beside = preemption.beside_of(active)
        if beside is not None and active.pool != launch.pool:
            raise WrongState(
                launch.baseline, f"held in {active.pool} by {active.name}", [f"launches from {active.pool}"]
            )
        return replace(launch, beside=beside), False

    async def _planned(self, launch: Launch, *, keep_plan: bool) -> Launch:
        """Makes the plan as the launch itself will: whatever stands in its way is said to the caller at once."""
        found = await estimate(launch, self._world, f"{launch.uid}/plan", await self._store.now(), keep=False)
        strategies.check_change(launch.strategy, found.plan, launch.candidate)
        if not keep_plan:
            return launch
        decision = await decide(launch, found.plan, self._world, f"{launch.uid}/plan", keep=False)
        launch = outcomes.decided(launch, decision)
        made = envelope.of_plan(
            found.plan,
            launch.policy,
            candidate=launch.candidate,
            serving_spec_digest=found.candidate.digest,
            baseline=launch.baseline,
            strategy=launch.strategy.name,
            holdout=launch.holdout_share,
        )
        gate = launch.policy.stability_gate
        gated = (found.type.predicts or bool(gate.criteria)) and not gate.disabled
        return replace(
            launch,
            plan=found.plan,
            envelope=made,
            lowers=found.lowers,
            gated=gated,
            evidence_rules=found.type.evidence_rules,
        )

    async def _create(self, conn: Connection, launch: Launch, *, queue: bool) -> pb.Launch:
        taken_away = launch.baseline
        only = launch.mitigates
        ahead = await self._store.ahead_on(conn, launch.model_type, only_mitigations=only) if queue else None
        if ahead is not None:
            # Its baseline is pinned when it starts: the launch before it is about to put another one in place.
            launch = replace(launch, queued=True, behind=ahead, baseline="")
        await self._expect_no_hold(launch, conn)
        if launch.mitigates:
            launch = await self._store.with_precedence(conn, launch, await self._store.now(conn))
            if launch.queued:
                launch = replace(launch, baseline="", beside=None)
        await self._store.insert(conn, launch)
        if launch.rolls_back:
            await self._hold_what_was_rolled_back(conn, launch, taken_away)
        what = f"{launch.rule.does} {launch.candidate} on {launch.model_type}"
        created = Event("Created", what, launch.create_time, actor=launch.actor)
        await self._store.say(conn, launch, created)
        await self._trace(conn, launch, created)
        for override in launch.freeze_overrides:
            what = f"{override.freeze_window}: {override.reason}"
            await self._store.say(conn, launch, Event("FreezeOverridden", what, override.time, actor=override.author))
        return wire.launch_to_proto(launch, (), launch.create_time)


def _full_before(replaced: Launch) -> Mapping[str, int]:
    """What a former baseline needs by region, as the launch knew it that replaced it."""
    assert replaced.plan is not None
    return {region.region: region.baseline.full for region in replaced.plan.regions if region.baseline is not None}
