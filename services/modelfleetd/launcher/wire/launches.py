"""The domain → launches, plans and events as they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.kit.codec import duration_to_proto, timestamp_to_proto, to_proto
from modelfleetd.launcher.domain import gates, summary, verbs
from modelfleetd.launcher.domain.envelope import Envelope
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.frozen import Conflict
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.plan import Plan, RegionPlan, Step
from modelfleetd.launcher.domain.policy import Approval
from modelfleetd.launcher.domain.record import GateVerdict
from modelfleetd.launcher.domain.release import times_of
from modelfleetd.names import ATTEMPT, LAUNCH


def launch_to_proto(launch: Launch, verdicts: Sequence[GateVerdict], now: datetime) -> pb.Launch:
    """A launch as it is shown."""
    made = pb.Launch(
        name=launch.name,
        uid=launch.uid,
        model_type=launch.model_type,
        candidate=launch.candidate,
        strategy=pb.Launch.Strategy.Value(launch.strategy.name),
        pool=launch.pool,
        regions=launch.regions,
        policy=_policy(launch),
        reason=launch.reason,
        state=pb.Launch.State.Value(launch.state.name),
        baseline=launch.baseline,
        current_step=launch.step.number,
        conditions=[to_proto(condition, serving_pb2.Condition) for condition in launch.conditions],
        progress=[to_proto(progress, pb.RegionProgress) for progress in launch.progress],
        gate_verdicts=[to_proto(verdict, pb.GateVerdict) for verdict in verdicts],
        pause_reasons=[to_proto(pause, pb.PauseReason) for pause in launch.pause_reasons],
        reservation=launch.reservation,
        revision=launch.revision,
        phase_times=[to_proto(phase, pb.PhaseTime) for phase in launch.phase_times],
        trace_id=launch.trace_id,
        actor=launch.actor,
        create_time=timestamp_to_proto(launch.create_time),
        update_time=timestamp_to_proto(launch.update_time),
        etag=f"{launch.version:x}",
        attempt=launch.attempt,
        target_share_basis_points=launch.target_share,
        holdout_share_basis_points=launch.holdout_share,
        summary=summary.sentence(launch, now),
        rolls_back=launch.rolls_back,
        allowed_verbs=verbs.allowed(launch),
        freeze_overrides=[to_proto(override, gates_pb2.FreezeOverride) for override in launch.freeze_overrides],
        preempted_by="" if launch.ended else launch.preempted_by,
        team=launch.team,
        surface=launch.surface,
        tier=_tier(launch.tier),
    )
    if launch.end_time is not None:
        made.end_time.CopyFrom(timestamp_to_proto(launch.end_time))
    for field, moment in times_of(launch, now).items():
        if moment is not None:
            getattr(made, field).CopyFrom(timestamp_to_proto(moment))
    if launch.abort is not None:
        made.abort.CopyFrom(to_proto(launch.abort, pb.Abort))
    if launch.plan is not None:
        made.plan.CopyFrom(plan_to_proto(launch.plan))
        if launch.plan_time is not None:
            made.plan.create_time.CopyFrom(timestamp_to_proto(launch.plan_time))
        made.plan.needs_approval = launch.policy.approval is Approval.REQUIRED
    if launch.decision is not None:
        made.launch_decision = launch.decision.name
        made.plan.policy_decision = launch.decision.said
        made.plan.needs_approval |= launch.decision.needs_approval
        made.plan.gates.extend(gates.words(launch))
    if launch.envelope is not None:
        made.envelope.CopyFrom(_envelope(launch.envelope))
    return made


def _tier(name: str) -> serving_pb2.Tier.ValueType:
    """Of a launch that is older than this field, none."""
    return dict(serving_pb2.Tier.items()).get(name, serving_pb2.TIER_UNSPECIFIED)


def _policy(launch: Launch) -> pb.LaunchPolicy:
    """The policy in force, with who has passed its people's gates."""
    made = to_proto(launch.policy, pb.LaunchPolicy)
    for passed in launch.people_approvals:
        gate = made.people_gates[passed.gate]
        gate.approved_by = passed.approved_by
        gate.approve_time.CopyFrom(timestamp_to_proto(passed.approve_time))
    return made


def attempt_to_proto(launch: Launch, verdicts: Sequence[GateVerdict], now: datetime, *, is_present: bool) -> pb.Attempt:
    """An attempt as it is shown: nobody steers one that is over any more."""
    shown = launch_to_proto(launch, verdicts, now)
    if not is_present:
        del shown.allowed_verbs[:]
    (launch_id,) = LAUNCH.parse(launch.name)
    return pb.Attempt(name=ATTEMPT.format(launch_id, launch.attempt), launch=shown)


def plan_to_proto(plan: Plan) -> pb.Plan:
    """A whole plan."""
    return pb.Plan(
        regions=[_region(plan, at, region) for at, wave in enumerate(plan.waves) for region in wave],
        cost_before=plan.cost_before,
        cost_after=plan.cost_after,
        cost_peak=plan.cost_peak,
        expected_duration=duration_to_proto(plan.expected_duration),
        candidate_estimate=plan.candidate_estimate,
        baseline_estimate=plan.baseline_estimate,
        wait=plan.wait,
        predictions=[
            pb.PlannedPrediction(
                prediction=one.id,
                calibration_low=one.calibration_low,
                calibration_high=one.calibration_high,
                min_positives=one.min_positives,
                attribution_window=duration_to_proto(one.attribution_window),
            )
            for one in plan.predictions
        ],
    )


def _region(plan: Plan, wave: int, region: RegionPlan) -> pb.RegionPlan:
    old = region.baseline
    return pb.RegionPlan(
        region=region.region,
        new_model=region.candidate.model,
        old_model=old.model if old else "",
        new_flavor=region.candidate.flavor,
        old_flavor=old.flavor if old else "",
        new_replicas_full=region.candidate.full,
        old_replicas_full=old.full if old else 0,
        old_inferred=old.inferred if old else False,
        free_units=sum(hold.free_units for hold in region.holds),
        hold_units=sum(hold.hold_units for hold in region.holds),
        moved_units=sum(hold.moved_units for hold in region.holds),
        extra_units=sum(hold.extra_units for hold in region.holds),
        steps=[_step(region, step, plan.ends(wave, step.number)) for step in region.steps],
        holds=[
            pb.FlavorHold(
                flavor=hold.flavor,
                free_units=hold.free_units,
                hold_units=hold.hold_units,
                moved_units=hold.moved_units,
                extra_units=hold.extra_units,
            )
            for hold in region.holds
        ],
        wave=region.wave,
        new_units_per_replica=region.candidate.units,
        old_units_per_replica=old.units if old else 0,
        new_share_before_basis_points=region.candidate.share,
        old_share_before_basis_points=old.share if old else 0,
        demand_qps=region.demand,
        new_called=region.candidate.called,
        old_called=old.called if old else "",
    )


def _step(region: RegionPlan, step: Step, ends: timedelta) -> pb.Step:
    before = region.steps[step.number - 2].new_replicas if step.number > 1 else region.candidate.running
    return pb.Step(
        number=step.number,
        share_basis_points=step.share,
        old_share_basis_points=step.old_share,
        new_replicas=step.new_replicas,
        old_replicas_before=step.old_before,
        old_replicas_after=step.old_after,
        peak_units=step.peak_units,
        taken_units=step.taken_units,
        freed_units=step.freed_units,
        expected_end=duration_to_proto(ends),
        worst_undo=duration_to_proto(step.worst_undo),
        new_replicas_before=before,
        cost=region.cost_at(step.number),
    )


def _envelope(envelope: Envelope) -> pb.Envelope:
    made = pb.Envelope(
        digest=envelope.digest,
        candidate=envelope.candidate,
        serving_spec_digest=envelope.serving_spec_digest,
        baseline=envelope.baseline,
        strategy=pb.Launch.Strategy.Value(envelope.strategy),
        regions=envelope.regions,
        max_units=[to_proto(units, pb.EnvelopeUnits) for units in envelope.max_units],
        max_cost=envelope.max_cost,
        max_duration=duration_to_proto(envelope.max_duration),
        approved_by=envelope.approved_by,
        target_share_basis_points=envelope.target_share_basis_points,
        holdout_share_basis_points=envelope.holdout_share_basis_points,
        policy_digest=envelope.policy_digest,
    )
    if envelope.approve_time is not None:
        made.approve_time.CopyFrom(timestamp_to_proto(envelope.approve_time))
    return made


def conflict_to_proto(conflict: Conflict) -> gates_pb2.FreezeConflict:
    """A freeze window in the way of a plan."""
    return to_proto(conflict, gates_pb2.FreezeConflict)


def event_to_proto(event: Event) -> pb.LaunchEvent:
    """Something that happened to a launch."""
    return to_proto(event, pb.LaunchEvent)
