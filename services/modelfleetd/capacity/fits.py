"""Whether a launch would fit its pool: the decision behind reservations, asked for the peaks of a swap."""

from __future__ import annotations

from modelfleetd.capacity import holds
from modelfleetd.capacity.domain.estimate import NOTHING, Estimate
from modelfleetd.capacity.domain.policy import Fit
from modelfleetd.capacity.domain.reservation import Asked, HoldItem
from modelfleetd.capacity.domain.swap import STEPS
from modelfleetd.capacity.store.rows import Reads


def asked(estimate: Estimate, pool: str, launch: str, step: int) -> Asked:
    """Returns what a launch would ask of its pool if its traffic moved in steps of a size, in basis points."""
    items = tuple(
        HoldItem(flavor, region.region, units)
        for region in estimate.regions
        for flavor, units in sorted(region.takeover.peaks_in_steps_of(step).items())
    )
    # What both serve with already moves into the hold: an experiment that grows has something too.
    models = (estimate.model, *(() if estimate.replaces == NOTHING else (estimate.replaces,)))
    return Asked(pool, launch, items, models)


async def fit(reads: Reads, estimate: Estimate, pool: str, launch: str) -> Fit:
    """Says whether a launch would fit its pool, in the steps of the estimate or in smaller ones."""
    wanted = estimate.max_step_basis_points
    first = await holds.decide(reads, asked(estimate, pool, launch, wanted), lock=False)
    if first.admitted:
        return Fit(True, first.explain(pool))
    for step in (each for each in STEPS if each < wanted):
        smaller = await holds.decide(reads, asked(estimate, pool, launch, step), lock=False)
        if smaller.admitted:
            return Fit(True, f"In steps of {step / 100:g} %: {smaller.explain(pool)}")
    return Fit(False, first.explain(pool))
