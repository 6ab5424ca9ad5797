"""The plan of one region is made: a pure function of what both models need, what is free, and the pace.

Each step starts replicas of the candidate, shifts weight, bakes, and only then gives up old replicas. So the peak of
step i is R_new(x_i) + R_old(share before the step), and the hold is the largest peak. With room for the whole candidate
the steps are as large as the pace allows; with less, each step is as large as what the steps before have freed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from modelfleetd.errors import PlanInfeasible
from modelfleetd.launcher.domain.plan import FlavorHold, Plan, RegionPlan, Step
from modelfleetd.launcher.domain.sides import Side, both_of, units_of
from modelfleetd.launcher.domain.words import count, percent

# Where the room decides, shares lie on this grid of basis points: a step that moves less is not worth its bake.
GRID: Final = 25
# A guess of what a start really takes, of what it may take; for expectations only, nothing is decided by it.
_EXPECTED_PART_OF_STARTUP: Final = 6
_OBSERVING: Final = timedelta(seconds=2)
# More than any pool has: what a plan may take that waits for others to end.
_PLENTY: Final = 10**15


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a launch may go."""

    max_step: int = 2_000
    max_steps: int = 20
    bake: timedelta = timedelta(minutes=5)
    deadline: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Room:
    """Units of one flavor that the launch can have: booked for its models (they move into the hold), and free."""

    booked: int = 0
    free: int = 0
    # By how much what both models use in the end is more than the pool has of its own and on loan.
    end_excess: int = 0

    @property
    def units(self) -> int:
        return self.booked + self.free


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a plan of one region is made from.

    `candidate` is the side that grows and `baseline` the one that gives; None for the first model of a route. Where an
    experiment ends or is ramped down, these are the baseline and the experiment.

    Attributes:
        target: final share of the side that grows; None: everything that both have.
        resizes: only replicas change, of `candidate`: in the end it has exactly those that its share needs, fewer too.
    """

    region: str
    candidate: Side
    baseline: Side | None
    room: Mapping[str, Room] = field(default_factory=dict)
    target: int | None = None
    resizes: bool = False

    @property
    def both(self) -> int:
        """The share of both sides together; what other models have stays theirs."""
        return both_of(self.candidate, self.baseline)

    @property
    def goal(self) -> int:
        """The final share of the side that grows."""
        return self.both if self.target is None else self.target


def make(inputs: Inputs, pace: Pace, *, patient: bool = False) -> RegionPlan:
    """Makes the plan of a region.

    Args:
        inputs: what both models need, and what the launch can have now.
        pace: how fast it may go.
        patient: whether it waits for whatever its steps take; they are as large as the pace allows then.

    Raises:
        PlanInfeasible: no plan fits; says how many units are missing, or which limit is too tight.
    """
    shares = _shares(_roomy(inputs) if patient else inputs, pace, extra=0)
    if not shares:
        raise _infeasible(inputs, pace)
    steps = _steps(inputs, pace, shares)
    if steps[-1].expected_end > pace.deadline:
        why = f"{len(steps)} steps take {steps[-1].expected_end}, longer than the launch's deadline of {pace.deadline}"
        raise PlanInfeasible(why, missing_units=0, flavor=inputs.candidate.flavor, region=inputs.region)
    return RegionPlan(inputs.region, inputs.candidate, inputs.baseline, _holds(inputs, shares), steps)


def together(
    regions: tuple[RegionPlan, ...], pace: Pace, *, candidate_estimate: str = "", baseline_estimate: str = ""
) -> Plan:
    """Makes the whole plan of those of its regions, in the order in which they are launched.

    Raises:
        PlanInfeasible: together they take longer than the launch may.
    """
    plan = Plan(regions, candidate_estimate, baseline_estimate)
    if plan.expected_duration > pace.deadline:
        steps = sum(len(region.steps) for region in regions)
        why = (
            f"{steps} steps in {len(regions)} regions take {plan.expected_duration}, "
            f"longer than the launch's deadline of {pace.deadline}"
        )
        last = regions[-1]
        raise PlanInfeasible(why, missing_units=0, flavor=last.candidate.flavor, region=last.region)
    return plan


def units_at_end(inputs: Inputs) -> Mapping[str, int]:
    """Units by flavor that both sides use in the end, whatever the steps."""
    old = inputs.baseline.needs(inputs.both - inputs.goal) if inputs.baseline else 0
    new = inputs.candidate
    units = units_of(new, 0, inputs.baseline, old)
    return {**units, new.flavor: units[new.flavor] + new.grows(_new_at(inputs, inputs.goal), inputs.goal)}


def _roomy(inputs: Inputs) -> Inputs:
    """The same where everything that a launch may ask for is free."""
    flavors = {side.flavor for side in (inputs.candidate, inputs.baseline) if side is not None}
    booked = {flavor: inputs.room.get(flavor, Room()).booked for flavor in flavors}
    return replace(inputs, room={flavor: Room(units, _PLENTY) for flavor, units in booked.items()})


def _old_before(inputs: Inputs, share: int) -> int:
    """Replicas of the baseline while the candidate goes on from a share."""
    if inputs.baseline is None:
        return 0
    needed = inputs.baseline.needs(inputs.both - share)
    return max(needed, inputs.baseline.running) if share == inputs.candidate.share else needed


def _new_at(inputs: Inputs, share: int) -> int:
    needed = inputs.candidate.needs(share)
    return needed if inputs.resizes else max(needed, inputs.candidate.running)


def _peak(inputs: Inputs, before: int, after: int) -> dict[str, int]:
    """Units by flavor at the peak of a step: the candidate's for its new share, the old side's for the share before."""
    new = max(_new_at(inputs, after), inputs.candidate.running)
    return units_of(inputs.candidate, new, inputs.baseline, _old_before(inputs, before))


def _fits(inputs: Inputs, before: int, after: int, extra: int) -> bool:
    """Whether a step fits what the launch can have, were `extra` more units of the candidate's flavor free."""
    return all(
        units <= inputs.room.get(flavor, Room()).units + (extra if flavor == inputs.candidate.flavor else 0)
        for flavor, units in _peak(inputs, before, after).items()
    )


def _shares(inputs: Inputs, pace: Pace, extra: int) -> list[int]:
    """The candidate's share after each step, each as large as pace and room allow; empty where that leads nowhere.

    The greedy choice is the best one: a larger share frees more of the old side, so it never hurts a later step.
    """
    if inputs.baseline is None:
        # Nobody else can take the rest of the traffic, so there is nothing to shift in parts.
        return [inputs.goal] if _fits(inputs, 0, inputs.goal, extra) else []
    shares: list[int] = []
    share = inputs.candidate.share
    if share >= inputs.goal:
        # It has everything already; what is left is to give up the old side's replicas.
        return [inputs.goal] if _fits(inputs, share, inputs.goal, extra) else []
    while share < inputs.goal:
        after = _largest(inputs, share, min(share + pace.max_step, inputs.goal), extra)
        if after <= share or len(shares) == pace.max_steps:
            return []
        shares.append(after)
        share = after
    return shares


def _largest(inputs: Inputs, before: int, most: int, extra: int) -> int:
    """The largest share that fits: `most`, or else one of the grid below it; `before` where none does."""
    if _fits(inputs, before, most, extra):
        return most
    low, high = before // GRID, -(-most // GRID)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(inputs, before, middle * GRID, extra) else (low, middle)
    return max(before, low * GRID)


def _steps(inputs: Inputs, pace: Pace, shares: list[int]) -> tuple[Step, ...]:
    candidate, baseline = inputs.candidate, inputs.baseline
    drain = max(candidate.drain, baseline.drain if baseline else timedelta(0))
    start = candidate.startup / _EXPECTED_PART_OF_STARTUP
    undo = max(candidate.startup, baseline.startup if baseline else timedelta(0)) + drain + _OBSERVING
    steps: list[Step] = []
    before = candidate.share
    had = candidate.running
    for number, share in enumerate(shares, start=1):
        old_before = _old_before(inputs, before)
        old_after = baseline.needs(inputs.both - share) if baseline else 0
        new = _new_at(inputs, share)
        steps.append(
            Step(
                number=number,
                share=share,
                old_share=inputs.both - share if baseline else 0,
                new_replicas=new,
                old_before=old_before,
                old_after=old_after,
                peak_units=sum(_peak(inputs, before, share).values()),
                taken_units=max(0, new - had) * candidate.units,
                freed_units=max(0, had - new) * candidate.units
                + ((old_before - old_after) * baseline.units if baseline else 0),
                expected_end=number * (start + _OBSERVING + pace.bake) + (number - 1) * drain,
                worst_undo=number * undo,
            )
        )
        before, had = share, new
    return tuple(steps)


def _holds(inputs: Inputs, shares: list[int]) -> tuple[FlavorHold, ...]:
    most: dict[str, int] = {}
    before = inputs.candidate.share
    for share in shares:
        for flavor, units in _peak(inputs, before, share).items():
            most[flavor] = max(most.get(flavor, 0), units)
        before = share
    rooms = {flavor: inputs.room.get(flavor, Room()) for flavor in most}
    # What is booked moves into the hold as a whole, even where less of it is needed.
    return tuple(
        FlavorHold(flavor, rooms[flavor].free, max(units, rooms[flavor].booked), rooms[flavor].booked)
        for flavor, units in sorted(most.items())
    )


def _infeasible(inputs: Inputs, pace: Pace) -> PlanInfeasible:
    """Says what is missing: the fewest more free units with which a plan would fit."""
    candidate, baseline = inputs.candidate, inputs.baseline
    old = baseline.running if baseline else candidate.running
    flavor, region = candidate.flavor, inputs.region
    if baseline is not None and baseline.flavor != flavor:
        short = baseline.units * _old_before(inputs, candidate.share) - inputs.room.get(baseline.flavor, Room()).units
        if short > 0:
            why = f"what serves now takes {short} units more than is booked and free"
            return PlanInfeasible(why, missing_units=short, flavor=baseline.flavor, region=region)
    room = inputs.room.get(flavor, Room())
    enough = sum(_peak(inputs, candidate.share, inputs.goal).values()) - room.units
    if enough <= 0 or not (wide := _shares(inputs, pace, enough)):
        needed = -(-(inputs.goal - candidate.share) // pace.max_step)
        why = f"it takes {needed} steps of at most {percent(pace.max_step)}, and {pace.max_steps} are allowed"
        return PlanInfeasible(why, missing_units=0, flavor=flavor, region=region)
    low, high = 0, enough
    while high - low > 1:
        middle = (low + high) // 2
        found = _shares(inputs, pace, middle)
        if found:
            high, wide = middle, found
        else:
            low = middle
    fits_with = room.free + high
    why = (
        f"going from {old} replicas to {_new_at(inputs, inputs.goal)} does not end with {room.free} free units; "
        f"it needs {fits_with} free, and then takes {count(len(wide), 'step')}"
    )
    return PlanInfeasible(why, missing_units=high, flavor=flavor, region=region)
