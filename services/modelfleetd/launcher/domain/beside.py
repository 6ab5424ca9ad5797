"""The launch that holds while a mitigation acts, as far as the mitigation has to know it, and what its hold lends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from modelfleetd.launcher.domain.observed import Observed
from modelfleetd.launcher.domain.plan import RegionPlan
from modelfleetd.launcher.domain.sides import Lent, Side


@dataclass(frozen=True, slots=True)
class Beside:
    """The launch that holds for a mitigation, as far as the mitigation has to know it: its name, and its plan."""

    launch: str
    regions: tuple[RegionPlan, ...]

    def region(self, name: str) -> RegionPlan | None:
        """Its plan of a region; None where it has none there."""
        return next((region for region in self.regions if region.region == name), None)


def lent_to(beside: Beside | None, region: str, ours: Side, seen: Mapping[str, Observed]) -> Side:
    """A side of a mitigation, with what the launch that holds lends it: all of its hold that its other model does not
    take, terminating replicas counted.

    Args:
        beside: the launch that holds; None where there is none.
        region: where.
        ours: the side that grows.
        seen: what is there of each model.
    """
    plan = beside.region(region) if beside is not None else None
    if plan is None:
        return ours
    pair = [side for side in (plan.candidate, plan.baseline) if side is not None]
    known = next((side for side in pair if side.model == ours.model), None)
    if known is None:
        return ours
    others = (side for side in pair if side.model != ours.model and side.flavor == ours.flavor)
    taken = sum(seen[side.model].slots * side.units for side in others if side.model in seen)
    return replace(ours, lent=Lent(max(0, plan.held(ours.flavor) - taken), known.share, known.running))
