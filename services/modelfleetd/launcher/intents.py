"""What is recorded before an act is done: everything that it takes to do it again, exactly so."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from modelfleetd.launcher.domain import preemption
from modelfleetd.launcher.domain.actions import Apply, Call
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.plan import Plan, RegionPlan
from modelfleetd.launcher.domain.record import Act, Intent
from modelfleetd.launcher.serving import desired_of, desired_to_document
from modelfleetd.names import LAUNCH
from modelfleetd.platform.model import ServingObservation


def intent_of(action: Apply | Call, launch: Launch, observation: ServingObservation | None, now: datetime) -> Intent:
    """Makes the intent of an act. Its key is `launch/attempt/step/action`, the action with the intent's number."""
    number = launch.intents + 1
    (launch_id,) = LAUNCH.parse(launch.name)
    region, raises = "", False
    content: Mapping[str, Any]
    if isinstance(action, Apply):
        assert observation is not None
        region, raises = action.region, action.raises
        content = {"desired": desired_to_document(desired_of(action, launch, observation))}
    else:
        content = _content(action.act, launch, now)
    return Intent(
        number=number,
        act=action.act,
        key=f"{launch_id}/{launch.attempt}/{launch.step.number}/{action.act.value}.{number}",
        step=launch.step.number,
        region=region,
        raises=raises,
        content=content,
        create_time=now,
    )


def _content(act: Act, launch: Launch, now: datetime) -> Mapping[str, Any]:
    match act:
        case Act.ESTIMATE | Act.FORGO:
            return {}
        case Act.RESERVE:
            assert launch.plan is not None
            return {
                "items": items_of(launch.plan),
                "replaced": _replaced(launch),
                "tier": launch.tier,
                "release_time": (now + launch.plan.expected_duration).isoformat(),
                "retain_seconds": launch.keeps_for_rollback.total_seconds(),
            }
        case Act.SETTLE:
            assert launch.plan is not None
            usages = [usage for region in launch.plan.regions for usage in _usages(region)]
            kept = [
                {"flavor": flavor, "region": region.region, "units": units}
                for region in launch.plan.regions
                for flavor, units in region.for_rollback.items()
            ]
            # Nothing named would mean all of it.
            seconds = launch.keeps_for_rollback.total_seconds() if kept else 0.0
            content = {"reservation": launch.reservation, "usages": usages, "retain_seconds": seconds}
            return {**content, "retain": kept if seconds else []}
        case Act.FINALIZE:
            return {
                "expected_revision": launch.expected_revision,
                "roles": dict(launch.final_roles),
                "splits": {
                    region: [
                        {"model": share.model, "share": share.share}
                        for share in preemption.ledger_split(launch, region, shares)
                    ]
                    for region, shares in launch.splits.items()
                },
            }
        case _:
            return {"reservation": launch.reservation}


def items_of(plan: Plan) -> list[Mapping[str, Any]]:
    """What a plan holds, place by place, and what of it is used in the end."""
    return [
        {
            "flavor": hold.flavor,
            "region": region.region,
            "units": units,
            "end": end,
        }
        for region in plan.regions
        for hold in region.holds
        for units, end in (region.own(hold),)
    ]


def _replaced(launch: Launch) -> list[str]:
    """The models whose bookings move into the hold, but for what another launch's hold carries."""
    assert launch.plan is not None
    stays = all(region.candidate.lent is not None for region in launch.plan.regions)
    moved = (launch.rising, launch.falling)
    return [model for model in moved if model and not (stays and model == launch.rising)]


def _usages(region: RegionPlan) -> list[Mapping[str, Any]]:
    """What both models use once the region is done."""
    last = region.steps[-1]
    new, old = region.candidate, region.baseline
    used = [(new, new.grows(last.new_replicas, last.share))]
    used += [(old, old.units * last.old_after)] if old is not None else []
    return [
        {"model": side.model, "flavor": side.flavor, "region": region.region, "units": units}
        for side, units in used
        if units > 0
    ]
