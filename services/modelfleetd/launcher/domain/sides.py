"""The two models of a swap in one region, and what replicas of them take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from modelfleetd.launcher.domain.replicas import replicas_for
from modelfleetd.launcher.domain.shares import FULL


@dataclass(frozen=True, slots=True)
class Lent:
    """What the hold of another launch lends the side that grows, while that launch holds for this one.

    Attributes:
        units: that the side may use: what it runs on is in that hold, and what the other launch does not use.
        share: that the other launch gives it back if it goes back.
        running: replicas that it has then.
    """

    units: int
    share: int
    running: int


@dataclass(frozen=True, slots=True)
class Side:
    """One model of a swap, in one region.

    Attributes:
        full: N, replicas for the whole route.
        least: R_min.
        units: units of the flavor that a replica takes.
        running: replicas that are asked for when the plan is made.
        share: its share then, in basis points.
        inferred: nobody measured N; it was divided out of what serves.
        unit_cost: cost of one unit for one hour.
        called: what people call it: the candidate, the baseline, the experiment.
    """

    model: str
    flavor: str
    full: int
    least: int = 2
    units: int = 1
    running: int = 0
    share: int = 0
    inferred: bool = False
    unit_cost: float = 0.0
    startup: timedelta = timedelta(seconds=60)
    drain: timedelta = timedelta(seconds=10)
    called: str = "candidate"
    lent: Lent | None = None

    def needs(self, share: int) -> int:
        """R(x): replicas for a share."""
        return replicas_for(self.full, share, self.least)

    def grows(self, replicas: int, share: int) -> int:
        """Units that it takes of its own in the end, where another launch lends what it runs on: for what it grows by,
        and at least for what it would need more than now if the other launch went all the way back.
        """
        if self.lent is None:
            return self.units * replicas
        back = self.needs(min(FULL, self.lent.share + share - self.share)) - self.lent.running
        return self.units * max(replicas - self.running, back, 0)


def both_of(new: Side, old: Side | None) -> int:
    """What two sides have together: all of it where nothing serves yet, and its own share where a model is resized."""
    if old is not None:
        return new.share + old.share
    return new.share or FULL


def cost_of(side: Side | None, replicas: int) -> float:
    return 0.0 if side is None else side.unit_cost * side.units * replicas


def units_of(new: Side, new_replicas: int, old: Side | None, old_replicas: int) -> dict[str, int]:
    """Units by flavor of so many replicas of both sides."""
    units = {new.flavor: new.units * new_replicas}
    if old is not None:
        units[old.flavor] = units.get(old.flavor, 0) + old.units * old_replicas
    return units
