"""Whether a launch would fit its pool: the decision behind reservations, asked for the peaks of a swap."""

from __future__ import annotations

from modelfleetd.capacity import lines
from modelfleetd.capacity.domain.estimate import NOTHING, Estimate
from modelfleetd.capacity.domain.policy import Fit
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Tier
from modelfleetd.capacity.domain.simulation import When, simulate
from modelfleetd.capacity.domain.swap import STEPS
from modelfleetd.capacity.domain.waiting import NEWEST, Prospect
from modelfleetd.capacity.store.rows import Reads


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


async def fit(reads: Reads, estimate: Estimate, pool: str, launch: str, tier: str) -> Fit:
    """Says whether a launch would fit its pool: now, in smaller steps, or once what others hold is free."""
    wanted = estimate.max_step_basis_points
    first = asked(estimate, pool, launch, tier, wanted)
    view = await lines.view(reads, pool, [first], lock=False, wait=True)

    def prospect_of(each: Asked) -> Prospect:
        return view.line.prospect_of(view.claim("", NEWEST, each))

    found = simulate(first, (), prospect_of)
    for step in (each for each in STEPS if each < wanted and found.answer is not When.NOW):
        smaller = prospect_of(asked(estimate, pool, launch, tier, step))
        if smaller.fits:
            return Fit(True, f"In steps of {step / 100:g} %: {smaller.admission.explain()}")
    return Fit(found.answer in (When.NOW, When.LATER), found.explain(await lines.now(reads)))
