"""Would it fit, and if not now, when: what reserving would do, said without doing it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from modelfleetd.capacity.domain.exact import BASIS_POINTS, refuse
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.replicas import DEFAULTS
from modelfleetd.capacity.domain.reservation import Asked, HoldItem
from modelfleetd.capacity.domain.swap import STEPS, Side, Swap, full_route
from modelfleetd.capacity.domain.waiting import Prospect
from modelfleetd.errors import FieldViolation

MAX_SWAPS = 100
_MAX_REPLICAS = 10**6
_MAX_UNITS_PER_REPLICA = 10**6


class When(enum.Enum):
    """When something would fit."""

    NOW = "NOW"
    IN_STEPS = "IN_STEPS"
    LATER = "LATER"
    NEVER = "NEVER"


@dataclass(frozen=True, slots=True)
class RegionSwap:
    """One model taking over from another in one region. What is 0 where that makes no sense has its default."""

    region: str
    new_flavor: str
    new_replicas: int
    new_units_per_replica: int = 0
    old_flavor: str = ""
    old_replicas: int = 0
    old_units_per_replica: int = 0
    min_replicas: int = 0

    @property
    def swap(self) -> Swap:
        """The swap of the whole route."""
        new = Side(self.new_flavor, self.new_replicas, self.new_units_per_replica or 1)
        old = full_route(self.old_replicas, self.old_flavor, self.old_units_per_replica or 1)
        least = self.min_replicas or DEFAULTS.min_replicas or 1
        return Swap(new, old if self.old_flavor else None, BASIS_POINTS, least)


def check_swaps(swaps: Sequence[RegionSwap]) -> None:
    """Raises InvalidFields for too many swaps, or replicas and units out of range."""
    wrong = []
    if len(swaps) > MAX_SWAPS:
        wrong.append(FieldViolation("swaps", f"must be at most {MAX_SWAPS:,}"))
    for index, swap in enumerate(swaps):
        for field, most in (
            ("new_replicas", _MAX_REPLICAS),
            ("old_replicas", _MAX_REPLICAS),
            ("min_replicas", _MAX_REPLICAS),
            ("new_units_per_replica", _MAX_UNITS_PER_REPLICA),
            ("old_units_per_replica", _MAX_UNITS_PER_REPLICA),
        ):
            if not 0 <= getattr(swap, field) <= most:
                wrong.append(FieldViolation(f"swaps[{index}].{field}", f"must be 0 to {most:,}"))
    refuse(wrong)


@dataclass(frozen=True, slots=True)
class Simulation:
    """When it would fit.

    Attributes:
        prospect: of what was asked, as it was asked.
        step: IN_STEPS: the largest step of the traffic, in basis points, with which it fits now.
    """

    prospect: Prospect
    answer: When
    step: int = 0

    def explain(self, now: datetime) -> str:
        """Returns the answer in a sentence."""
        admission = self.prospect.admission
        if self.answer is When.NOW:
            return admission.explain()
        if self.answer is When.IN_STEPS:
            missing = "; ".join(map(str, admission.shortages()))
            return f"Fits now in steps of {self.step / 100:g}%; as asked: {missing}."
        if self.answer is When.LATER:
            return f"{admission.explain()} {self.prospect.explain(now)}"
        if not admission.ends_within_quota:
            return admission.explain()
        return f"{admission.explain()} Nothing that is held would ever free enough."


def simulate(asked: Asked, swaps: Sequence[RegionSwap], prospect_of: Callable[[Asked], Prospect]) -> Simulation:
    """Says when a reservation would fit: as it is asked, in smaller steps, after launches that are held, or never.

    Args:
        asked: what is asked for.
        swaps: behind its items; none: it is taken as it is.
        prospect_of: the decision on a reservation: the one that reserving takes.
    """
    prospect = prospect_of(asked)
    if prospect.fits:
        return Simulation(prospect, When.NOW)
    if swaps and prospect.admission.ends_within_quota:
        for step in STEPS:
            if prospect_of(in_steps(asked, swaps, step)).fits:
                return Simulation(prospect, When.IN_STEPS, step)
    return Simulation(prospect, When.LATER if prospect.can_wait else When.NEVER)


def in_steps(asked: Asked, swaps: Sequence[RegionSwap], step: int) -> Asked:
    """Returns what is asked for if its swaps go in steps of a size; items without a swap stay as they are."""
    peaks: dict[Place, int] = {}
    for swap in swaps:
        for flavor, units in swap.swap.peaks(step).items():
            place = Place(flavor, swap.region)
            peaks[place] = peaks.get(place, 0) + units
    return replace(asked, items=tuple(_with_peak(item, peaks.get(item.place)) for item in asked.items))


def _with_peak(item: HoldItem, peak: int | None) -> HoldItem:
    if peak is None:
        return item
    # The end is within every peak of the swap; what else the item ends with is not the swap's to lower.
    return replace(item, hold_units=max(peak, item.end_units or 0))
