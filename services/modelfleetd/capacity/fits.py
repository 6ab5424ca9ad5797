"""Whether a launch would fit its pool, by what the database says of it."""

from __future__ import annotations

from modelfleetd.capacity import lines
from modelfleetd.capacity.domain import fitting
from modelfleetd.capacity.domain.estimate import Estimate
from modelfleetd.capacity.domain.policy import Fit
from modelfleetd.capacity.domain.reservation import Asked
from modelfleetd.capacity.domain.waiting import NEWEST, Prospect
from modelfleetd.capacity.store.rows import Reads


async def fit(reads: Reads, estimate: Estimate, pool: str, launch: str, tier: str) -> Fit:
    """Says whether a launch would fit its pool: now, in smaller steps, or once what others hold is free."""
    first = fitting.asked(estimate, pool, launch, tier, estimate.max_step_basis_points)
    view = await lines.view(reads, pool, [first], lock=False, wait=True)

    def prospect_of(each: Asked) -> Prospect:
        return view.line.prospect_of(view.claim("", NEWEST, each))

    return fitting.fit(estimate, first, prospect_of, await lines.now(reads), tier)
