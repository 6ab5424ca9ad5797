"""What must not be at any moment of a launch, beside the promises that a fleet's own oracle judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelfleetd.capacity.domain.reservation import State as Held
from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.platform.model import EffectKind
from tests.support.steps.cases import OTHER, TYPE

if TYPE_CHECKING:
    from tests.support.steps.course import Course


def bakes_too_soon(course: Course, launch: Launch) -> list[str]:
    """A bake begins only when the proxy gives what the step wants."""
    assert launch.plan is not None
    wrong = []
    for at in waves.shifted(launch):
        here = waves.at_region(launch, at)
        simulator = course.fleet.simulator(TYPE, launch.plan.regions[at].region)
        simulator.catch_up()
        given = next((e for e in reversed(simulator.ledger) if e.kind is EffectKind.SHARES_ACKNOWLEDGED), None)
        shares = {share.model: share.share_basis_points for share in given.shares} if given else {}
        has, wants = shares.get(launch.rising, 0), here.step_plan.share
        if launch.rule.swaps and has < wants and OTHER not in shares:
            wrong.append(f"step {launch.step.number} bakes with {has} of {wants} basis points")
    return wrong


def freed_too_soon(course: Course) -> list[str]:
    """Capacity says that what is neither booked nor held is free: then nothing of it may exist any more."""
    wrong = []
    for region in course.case.regions:
        booked, living = course.booked(region), course.living(region)
        held = sum(
            item.hold_units
            for name in course.fleet.launches.rows
            for item in _held_items(course, name)
            if item.region == region
        )
        if sum(living.values()) > sum(booked.values()) + held:
            wrong.append(f"{living} exist in {region} when all but {booked} and {held} held units are freed")
        if not held:
            wrong += [
                f"{exist} of {model} exist when all but {booked.get(model, 0)} are freed"
                for model, exist in living.items()
                if exist > booked.get(model, 0)
            ]
    return wrong


def _held_items(course: Course, name: str) -> Sequence[Any]:
    found = course.fleet.capacity.found(name, course.launch_of(name).attempt)
    return found.items if found is not None and found.state is Held.HELD else ()
