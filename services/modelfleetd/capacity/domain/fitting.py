"""Whether a launch would fit its pool: the decision behind reservations, asked for the peaks of a swap. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from modelfleetd.capacity.domain.estimate import NOTHING, Estimate
from modelfleetd.capacity.domain.policy import Fit
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Tier
from modelfleetd.capacity.domain.simulation import When, simulate
from modelfleetd.capacity.domain.swap import STEPS
from modelfleetd.capacity.domain.waiting import Prospect


def asked(estimate: Estimate, pool: str, launch: str, tier: str, step: int) -> Asked:
    """Returns what a launch would ask of its pool if its traffic moved in steps of a size, in basis points."""
    items = tuple(
        HoldItem(flavor, region.region, units, end_units=region.takeover.after[flavor])
        for region in estimate.regions
        for flavor, units in sorted(region.takeover.peaks_in_steps_of(step).items())
    )
    # What both serve with already moves into the hold: an experiment that grows has something too.
    models = (estimate.model, *(() if estimate.replaces == NOTHING else (estimate.replaces,)))
    return Asked(pool, launch, items, models, Tier[tier] if tier else None)


def fit(estimate: Estimate, first: Asked, prospect_of: Callable[[Asked], Prospect], now: datetime, tier: str) -> Fit:
    """Says whether a launch would fit its pool: now, in smaller steps, or once what others hold is free.

    Args:
        estimate: of the launch.
        first: what it would ask of its pool, in the estimate's own steps.
        prospect_of: the decision on a reservation: the one that reserving takes.
        now: when it is asked.
        tier: of the model type; empty where it has none.
    """
    found = simulate(first, (), prospect_of)
    for step in STEPS if found.answer is not When.NOW else ():
        if step < estimate.max_step_basis_points:
            smaller = prospect_of(asked(estimate, first.pool, first.launch, tier, step))
            if smaller.fits:
                return Fit(True, f"In steps of {step / 100:g} %: {smaller.admission.explain()}")
    return Fit(found.answer in (When.NOW, When.LATER), found.explain(now))
