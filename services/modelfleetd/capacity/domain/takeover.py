"""One model going from its share of a route to another, mostly at the cost of an old one: before, on the way, after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from modelfleetd.capacity.domain.exact import BASIS_POINTS
from modelfleetd.capacity.domain.replicas import replicas_for_share
from modelfleetd.capacity.domain.swap import Side, Swap

# Steps that an explanation shows.
_SHOWN_STEPS = 20


def number(value: float | Fraction) -> str:
    """Returns a number as explanations show it."""
    return f"{float(value):.10g}"


@dataclass(frozen=True, slots=True)
class Takeover:
    """A model that goes from the share that it has to `target` basis points of the route.

    Attributes:
        new: with its share as it is now.
        old: the model that gives the share, or gets it back; None where there is none, or nothing is known of it.
        step: the largest step in which traffic moves, in basis points.
        min_replicas: fewest replicas of a model that has a share.
    """

    new: Side
    old: Side | None
    target: int
    step: int
    min_replicas: int

    @staticmethod
    def alone(side: Side, min_replicas: int) -> dict[str, int]:
        """Returns the units of a model with the whole route, by flavor."""
        return {side.flavor: replicas_for_share(side.replicas, BASIS_POINTS, min_replicas) * side.units}

    @property
    def new_now(self) -> int:
        """Replicas of the new model as it is now."""
        return self._replicas(self.new, self.new.share)

    @property
    def new_then(self) -> int:
        """Replicas of the new model at the share that it is to have."""
        return self._replicas(self.new, self.target)

    @property
    def old_now(self) -> int:
        """Replicas of the old model as it is now."""
        return 0 if self.old is None else self._replicas(self.old, self.old.share)

    @property
    def old_then(self) -> int:
        """Replicas of the old model in the end."""
        return 0 if self.old is None else self._replicas(self.old, self._old_share_then(self.old))

    @property
    def before(self) -> dict[str, int]:
        """Units of both models as they are now, by flavor."""
        return self._together(self.new_now, self.old_now)

    @property
    def after(self) -> dict[str, int]:
        """Units of both models in the end, by flavor."""
        return self._together(self.new_then, self.old_then)

    @property
    def peaks(self) -> dict[str, int]:
        """The most units in use at any moment, by flavor, both ends included."""
        return self.peaks_in_steps_of(self.step)

    def peaks_in_steps_of(self, step: int) -> dict[str, int]:
        """Returns the peaks if traffic moved in steps of another size, in basis points."""
        on_the_way, before, after = self._swap().peaks(step), self.before, self.after
        return {flavor: max(on_the_way.get(flavor, 0), before[flavor], after[flavor]) for flavor in before}

    def _replicas(self, side: Side, share: int) -> int:
        return replicas_for_share(side.replicas, share, self.min_replicas)

    def _old_share_then(self, old: Side) -> int:
        return min(BASIS_POINTS, max(0, old.share - (self.target - self.new.share)))

    def _together(self, new: int, old: int) -> dict[str, int]:
        units = {self.new.flavor: new * self.new.units}
        if self.old is not None:
            units[self.old.flavor] = units.get(self.old.flavor, 0) + old * self.old.units
        return units

    def _swap(self) -> Swap:
        """The swap, of whichever model grows at the cost of the other."""
        if self.target >= self.new.share or self.old is None:
            return Swap(self.new, self.old, self.target, self.min_replicas)
        return Swap(self.old, self.new, self._old_share_then(self.old), self.min_replicas)

    def explain(self, unit_costs: Mapping[str, Fraction]) -> Iterator[str]:
        """Gives the peak step by step, and the cost before and after; costs are an hour, by flavor."""
        swap = self._swap()
        falling = "" if swap.old is None else " + R_old(share before it)"
        yield f"peak = max over steps of R_new(share after the step){falling}"
        steps = list(swap.steps(self.step))
        for step in steps[:_SHOWN_STEPS]:
            yield f"  to {step.share / 100:g}%: {_sum(swap, step.new_replicas, step.old_replicas)}"
        if len(steps) > _SHOWN_STEPS:
            yield f"  and {len(steps) - _SHOWN_STEPS} more steps"
        peaks = ", ".join(f"{units:,} units of {flavor}" for flavor, units in sorted(self.peaks.items()))
        yield f"peak = {peaks}"
        if self.old is not None:
            yield f"cost before = {self._costed(self.new_now, self.old_now, unit_costs)}"
            yield f"cost after = {self._costed(self.new_then, self.old_then, unit_costs)}"

    def _costed(self, new: int, old: int, unit_costs: Mapping[str, Fraction]) -> str:
        sides = [(count, side) for count, side in ((new, self.new), (old, self.old)) if side is not None and count]
        sum_ = " + ".join(f"{count} × {side.units} × {number(unit_costs[side.flavor])}" for count, side in sides)
        total = sum((count * side.units * unit_costs[side.flavor] for count, side in sides), Fraction(0))
        return f"{sum_ or 'nothing'} = {number(total)} an hour"


def _sum(swap: Swap, rising: int, falling: int) -> str:
    new, old = swap.new, swap.old
    if old is None:
        return f"{rising} × {new.units} = {rising * new.units:,}"
    if old.flavor != new.flavor:
        return f"{rising} × {new.units} of {new.flavor}, {falling} × {old.units} of {old.flavor}"
    return f"{rising} × {new.units} + {falling} × {old.units} = {rising * new.units + falling * old.units:,}"
