"""Whether a launch would fit its pool: the decision behind reservations, asked for the peaks of a swap."""

from __future__ import annotations

from modelfleetd.capacity import lines
from modelfleetd.capacity.domain.estimate import NOTHING, Estimate
from modelfleetd.capacity.domain.policy import Fit
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Tier
from modelfleetd.capacity.domain.simulation import When, simulate
from modelfleetd.capacity.domain.swap import STEPS
from modelfleetd.capacity.domain.waiting import Prospect
from modelfleetd.capacity.store.rows import Reads

# Behind all who wait in its tier.
_LAST = 2**62


def asked(estimate: Estimate, pool: str, launch: str, tier: str, step: int) -> Asked:
    """Returns what a launch would ask of its pool if its traffic moved in steps of a size, in basis points."""
    items = []
    for region in estimate.regions:
        end = region.takeover.after
        for flavor, units in sorted(region.takeover.peaks_in_steps_of(step).items()):
            items.append(HoldItem(flavor, region.region, units, end_units=end[flavor]))
    # What both serve with already moves into the hold: an experiment that grows has something too.
    models = (estimate.model, *(() if estimate.replaces == NOTHING else (estimate.replaces,)))
    return Asked(pool, launch, tuple(items), models, Tier[tier] if tier else None)


async def fit(reads: Reads, estimate: Estimate, pool: str, launch: str, tier: str) -> Fit:
    """Says whether a launch would fit its pool: now, in the steps of the estimate or in smaller ones, or later."""
    wanted = estimate.max_step_basis_points
    steps = (wanted, *(step for step in STEPS if step < wanted))
    in_steps = {step: asked(estimate, pool, launch, tier, step) for step in steps}
    view = await lines.view(reads, pool, list(in_steps.values()), lock=False, wait=True)

    def prospect_of(each: Asked) -> Prospect:
        return view.line.prospect_of(view.claim("", _LAST, each))

    found = simulate(in_steps[wanted], (), prospect_of)
    if found.answer is not When.NOW:
        for step in steps[1:]:
            smaller = prospect_of(in_steps[step])
            if smaller.fits:
                return Fit(True, f"In steps of {step / 100:g} %: {smaller.admission.explain()}")
    return Fit(found.answer in (When.NOW, When.LATER), found.explain(await lines.now(reads)))
