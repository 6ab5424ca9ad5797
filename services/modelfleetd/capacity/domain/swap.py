"""What a swap needs at its peak: one model takes over from another step by step, and both run in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from modelfleetd.capacity.domain.exact import BASIS_POINTS
from modelfleetd.capacity.domain.replicas import replicas_for_share

DEFAULT_STEP_BASIS_POINTS = 2_000
# Steps that a person would choose, the largest first.
STEPS = (10_000, 5_000, 3_334, 2_500, 2_000, 1_000, 500, 250, 100)


@dataclass(frozen=True, slots=True)
class Side:
    """One model of a swap.

    Attributes:
        flavor: the kind of machine that it runs on.
        replicas: N, for the whole route.
        units: of the flavor that a replica takes.
        share: its share of the route before the swap, in basis points; of the new model what it has already.
    """

    flavor: str
    replicas: int
    units: int
    share: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a swap: the new model's share after it, and what runs before the old model gives up its part."""

    share: int
    new_replicas: int
    old_replicas: int


@dataclass(frozen=True, slots=True)
class Swap:
    """A model that is to have `target` basis points of a route, most of them from an old one.

    Attributes:
        old: None where nothing is replaced.
        min_replicas: fewest replicas of a model that has a share.
    """

    new: Side
    old: Side | None
    target: int
    min_replicas: int

    def steps(self, step: int) -> Iterator[Step]:
        """Gives the steps of a size, in basis points, up to the target; the last one may be smaller."""
        before = self.new.share
        while before < self.target:
            after = min(self.target, before + step)
            kept = 0 if self.old is None else max(0, self.old.share - (before - self.new.share))
            old = 0 if self.old is None else replicas_for_share(self.old.replicas, kept, self.min_replicas)
            yield Step(after, replicas_for_share(self.new.replicas, after, self.min_replicas), old)
            before = after

    def peaks(self, step: int) -> Mapping[str, int]:
        """Returns the most units in use at any moment, by flavor: max over steps of R_new(x_i) + R_old(share before i).

        Example: 500 replicas → 420 in steps of 20 % need 584, 568, 552, 536, 520; the peak is 584.
        """
        peaks: dict[str, int] = {}
        for each in self.steps(step):
            used = {self.new.flavor: each.new_replicas * self.new.units}
            if self.old is not None:
                used[self.old.flavor] = used.get(self.old.flavor, 0) + each.old_replicas * self.old.units
            for flavor, units in used.items():
                peaks[flavor] = max(peaks.get(flavor, 0), units)
        return peaks


def full_route(replicas: int, flavor: str, units: int = 1) -> Side:
    """Returns a model that has the whole route."""
    return Side(flavor, replicas, units, BASIS_POINTS)
