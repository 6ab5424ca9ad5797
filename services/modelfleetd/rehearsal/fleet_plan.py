"""A plan of a whole fleet: so many model types and launches, in so many days, with faults.

Teams have pools of their own and nothing else in common, so each is a world of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What is rehearsed.

    Attributes:
        types: model types, each with one route in one region.
        launches: that people create, evenly over the days.
        days: simulated.
        seed: of everything that is drawn.
        types_of_team: model types that share a pool.
        spare: units of a pool beyond what serves, as a share of that.
        least_spare: the least of these, in multiples of what the pool's largest route takes.
        faults: how often things go wrong, as a multiple of the default; 0: nothing does.
        recycling: whether a launch uses again what it frees; else it needs room for the whole candidate.
        future_reservations: whether what does not fit may wait for what others will free; else it is refused, and tried
            again.
    """

    types: int = 1_000
    launches: int = 10_000
    days: float = 7.0
    seed: int = 0
    types_of_team: int = 20
    spare: float = 0.12
    least_spare: float = 1.25
    faults: float = 1.0
    recycling: bool = True
    future_reservations: bool = True

    @property
    def teams(self) -> int:
        """How many pools there are."""
        return -(-self.types // self.types_of_team)

    def types_in(self, team: int) -> int:
        """How many model types a team has."""
        return min(self.types_of_team, self.types - team * self.types_of_team)

    def launches_in(self, team: int) -> int:
        """How many launches a team creates."""
        before, until = team * self.types_of_team, team * self.types_of_team + self.types_in(team)
        return self.launches * until // self.types - self.launches * before // self.types
