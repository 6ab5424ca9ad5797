"""What `modelfleet launch plan -o json` prints, as a scenario: it begins where the plan does. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from google.protobuf import json_format

from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import FleetError
from modelfleetd.kit.codec import duration_from_proto, timestamp_from_proto
from modelfleetd.launcher.domain.launch import Strategy
from modelfleetd.launcher.domain.policy import Approval, Policy, StabilityGate, check
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.wire.policy import policy_from_proto, strategy_from_proto
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.reading import Problem, ScenarioInvalid
from modelfleetd.rehearsal.scenario import USUAL_REPLY, USUAL_TIER, Freeze, Note, Place, Replicas, Scenario
from modelfleetd.rehearsal.stability import HEALTHY, USUAL, WINDOW, Predicted
from modelfleetd.rehearsal.standing import Standing, lost_of, standing_of
from modelfleetd.stability.domain.criteria import DEFAULT_MIN_POSITIVES, Limits

_START, _DRAIN = (20.0, 60.0), (5.0, 30.0)


def of_plan(found: Mapping[str, Any]) -> Scenario:
    """What a plan knows; of machines, labels and people it knows nothing, so those are as usual.

    Raises:
        ScenarioInvalid: it cannot be read, or there is nothing in it to rehearse.
    """
    try:
        launch = json_format.ParseDict(dict(found), pb.Launch())
        strategy = strategy_from_proto(launch.strategy)
        policy = policy_from_proto(launch.policy, _tier(launch), strategy)
        check(policy)
    except (json_format.ParseError, FleetError, ValueError) as error:
        said = f"the plan cannot be read ({error}); give what `modelfleet launch plan … -o json` prints"
        raise ScenarioInvalid([Problem(1, said)]) from None
    regions = launch.plan.regions
    if not regions or any(not region.steps for region in regions):
        raise ScenarioInvalid([Problem(1, "the plan has no steps: there is nothing to rehearse")])
    standing = standing_of(launch)
    begins = _begins(launch) if standing is None else _last_seen(launch)
    needs_approval = launch.plan.needs_approval or policy.approval is Approval.REQUIRED
    policy = replace(
        policy,
        approval=Approval.REQUIRED if needs_approval else Approval.AUTOMATIC,
        # Where a type predicts nothing there is nothing to judge.
        stability_gate=replace(policy.stability_gate, disabled=not _has_gate(launch, "stability")),
    )
    new, old = _sides(regions[0], launch.candidate)
    return Scenario(
        places=tuple(_place(region, launch) for region in regions),
        old_model=old,
        new_model=new,
        strategy=strategy,
        share=launch.target_share_basis_points,
        holdout=launch.holdout_share_basis_points,
        policy=policy,
        evidence_rules=1 if _has_gate(launch, "evidence") else 0,
        machines=Behaviour(start_seconds=_START, terminate_seconds=_DRAIN),
        tier=_tier(launch),
        predictions=_predictions(launch),
        freezes=tuple(
            Freeze(
                name=conflict.freeze_window,
                seconds=(timestamp_from_proto(conflict.start_time) - begins).total_seconds(),
                lasts=(conflict.end_time.ToDatetime() - conflict.start_time.ToDatetime()).total_seconds(),
                reason=conflict.reason,
            )
            for conflict in launch.plan.freeze_conflicts
            if begins is not None and not conflict.overridden
        ),
        standing=standing,
        begins=begins,
        notes=tuple(_notes(launch, strategy, policy, standing)),
    )


def _begins(launch: pb.Launch) -> datetime | None:
    if launch.plan.HasField("create_time"):
        return timestamp_from_proto(launch.plan.create_time)
    return timestamp_from_proto(launch.create_time) if launch.HasField("create_time") else None


def _last_seen(launch: pb.Launch) -> datetime:
    """Until when is known where a launch in flight stands."""
    seen = (one.observe_time for one in launch.progress if one.HasField("observe_time"))
    return max(map(timestamp_from_proto, (launch.update_time, *seen)))


def _has_gate(launch: pb.Launch, name: str) -> bool:
    return any(line.startswith(f"{name}:") for line in launch.plan.gates)


def _grows(region: pb.RegionPlan, candidate: str) -> bool:
    """Whether the candidate is the side that grows; where an experiment ends or is ramped down, its baseline does."""
    return region.new_model in ("", candidate)


def _sides(region: pb.RegionPlan, candidate: str) -> tuple[Replicas, Replicas]:
    """How the candidate is run, and the baseline."""
    growing = Replicas(region.new_flavor or Replicas().flavor, max(1, region.new_units_per_replica))
    giving = Replicas(region.old_flavor or growing.flavor, max(1, region.old_units_per_replica))
    return (growing, giving) if _grows(region, candidate) else (giving, growing)


def _place(region: pb.RegionPlan, launch: pb.Launch) -> Place:
    first = region.steps[0]
    growing = (region.new_replicas_full, region.new_share_before_basis_points, first.new_replicas_before)
    giving = (region.old_replicas_full, region.old_share_before_basis_points, first.old_replicas_before)
    if region.old_model and not any((growing[1], giving[1])):
        # Whoever made the plan does not say it yet: what the one has in the end, the other has at first.
        giving = (giving[0], first.share_basis_points + first.old_share_basis_points, giving[2])
    new, old = (growing, giving) if _grows(region, launch.candidate) else (giving, growing)
    return Place(
        region=region.region,
        old=old[0],
        new=max(1, new[0]),
        spare=_spare(region, launch),
        old_share=old[1],
        new_share=new[1],
        old_running=old[2],
        new_running=new[2],
        demand=region.demand_qps,
    )


def _spare(region: pb.RegionPlan, launch: pb.Launch) -> dict[str, int]:
    """What is free by flavor, and what is booked beyond what runs; where the plan waits, what it waits for."""
    first = region.steps[0]
    runs = {region.new_flavor: max(1, region.new_units_per_replica) * first.new_replicas_before}
    if region.old_flavor:
        units = max(1, region.old_units_per_replica) * first.old_replicas_before
        runs[region.old_flavor] = runs.get(region.old_flavor, 0) + units
    return {
        hold.flavor: max(
            hold.free_units + max(0, hold.moved_units - runs.get(hold.flavor, 0)),
            hold.extra_units if launch.plan.wait else 0,
        )
        for hold in region.holds
    }


def _tier(launch: pb.Launch) -> str:
    return serving_pb2.Tier.Name(launch.tier) if launch.tier else USUAL_TIER


def _predictions(launch: pb.Launch) -> tuple[Predicted, ...]:
    """What the models predict, as the registry has declared it; in plans of old, as far as criteria name it."""
    declared = tuple(
        Predicted(
            one.prediction,
            window=duration_from_proto(one.attribution_window),
            calibration=Limits(one.calibration_low, one.calibration_high),
            min_positives=one.min_positives,
        )
        for one in launch.plan.predictions
    )
    return declared or tuple(_predicted(one) for one in launch.policy.stability_gate.criteria) or USUAL


def _predicted(criterion: pb.StabilityCriterion) -> Predicted:
    low = criterion.calibration_low if criterion.HasField("calibration_low") else HEALTHY.low
    high = criterion.calibration_high if criterion.HasField("calibration_high") else HEALTHY.high
    return Predicted(
        criterion.prediction,
        calibration=Limits(low, high),
        min_positives=criterion.min_positives or DEFAULT_MIN_POSITIVES,
    )


def _notes(launch: pb.Launch, strategy: Strategy, policy: Policy, standing: Standing | None) -> Iterator[Note]:
    """What a plan does not know, or a rehearsal does not have, and what it does instead."""
    yield Note("machines", "machines are as usual: a plan does not know them", "machines: {start: 2m-4m}")
    demand = sum(region.demand_qps for region in launch.plan.regions)
    traffic = f"traffic is at the peak of {demand:,.6g} requests a second that it is planned for"
    if not all(region.demand_qps for region in launch.plan.regions):
        traffic = f"{Behaviour().requests_per_second:g} requests a second come: the plan knows no demand"
    yield Note("machines", traffic, "machines: {requests_per_second: 300}")
    if strategy.rule.swaps and not any(region.old_model for region in launch.plan.regions):
        yield Note("first", "nothing serves the route yet: its traffic is there once the first model takes it")
    if standing is not None:
        for about, said in lost_of(launch):
            yield Note(about, said)
    elif launch.HasField("end_time"):
        yield Note("standing", "the launch has ended; its plan is rehearsed from the beginning")
    elif launch.progress:
        yield Note("standing", "the launch has done nothing yet; its plan is rehearsed from the beginning")
    if not policy.stability_gate.disabled:
        yield from _notes_on_labels(launch, policy.stability_gate)
    minutes = round(USUAL_REPLY / 60)
    if policy.approval is Approval.REQUIRED and (standing is None or standing.state is State.AWAITING_APPROVAL):
        yield Note(
            "approval", f"whoever has to approve it does so after {minutes} min", _answer("approval", "after: 2h")
        )
    if any(not gate.approved_by for gate in launch.policy.people_gates):
        yield Note("people", f"people who are to look let it on after {minutes} min", _answer("people", "after: 2h"))
    for webhook in policy.webhook_gates:
        when = webhook.when.name.lower().replace("_", " ")
        gate = f"webhook/{webhook.webhook}"
        yield Note(gate, f"the webhook {webhook.webhook} says PASS ({when})", _answer(gate, "says: error"))
    if _has_gate(launch, "evidence"):
        yield Note("evidence", "the evidence suffices", _answer("evidence", "says: fail"))
    if launch.plan.wait:
        yield Note("capacity", f"what it waits for is there at once ({launch.plan.wait})")
    if strategy is Strategy.ROLL_BACK:
        yield Note("capacity", "what was kept for the rollback is part of what is free")
    for conflict in launch.plan.freeze_conflicts:
        if conflict.overridden:
            yield Note("freezes", f"{conflict.freeze_window} holds nothing back: the launch overrides it")


def _answer(gate: str, says: str) -> str:
    return f"answers: [{{gate: {gate}, {says}}}]"


def _notes_on_labels(launch: pb.Launch, gate: StabilityGate) -> Iterator[Note]:
    id_ = _predictions(launch)[0].id
    if launch.plan.predictions:
        known = "a plan does not know how many"
        yield Note(
            "predictions",
            f"of each prediction 5 % are positive: {known}",
            f"predictions: [{{id: {id_}, positives: 2%}}]",
        )
    else:
        minutes = int(WINDOW.total_seconds() // 60)
        labels = f"of each prediction 5 % are positive, and labels have {minutes} min to come"
        says = f"predictions: [{{id: {id_}, window: 30m, positives: 2%}}]"
        yield Note("predictions", f"{labels}: the plan does not know it", says)
    if not gate.criteria and not launch.plan.predictions:
        least = USUAL[0].min_positives
        yield Note("ranges", f"calibration is to be {HEALTHY}, by {least} positives: the ranges of then are not known")
    yield Note(
        "candidate", "labels come when their window ends, and all of them", "candidate: {labels: 95%, labels_late: 10m}"
    )
    if any(one.include_immature for one in gate.criteria):
        yield Note("immature", "examples that wait for their labels are not judged")
    if any(one.max_ne_regression for one in gate.criteria):
        yield Note("ne", "all predictions of a model are alike: NE differs from the baseline's by calibration only")
