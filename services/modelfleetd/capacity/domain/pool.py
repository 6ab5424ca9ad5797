"""Flavors and pools: what an installation runs on, and whose it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.capacity.domain.exact import in_range, refuse
from modelfleetd.capacity.domain.quota import Usage
from modelfleetd.errors import FieldViolation

MAX_UNITS = 10**12
MAX_QUOTAS = 1000
MAX_DESCRIPTION = 1000


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where units are counted: one flavor in one region. Their order is the order in which balances are locked."""

    flavor: str
    region: str


@dataclass(frozen=True, slots=True)
class Flavor:
    """A kind of machine that replicas run on, with what one unit of it costs for one hour.

    Raises:
        InvalidFields: the cost is not a number of 0 or more, or the description is too long.
    """

    name: str
    description: str
    unit_cost: float
    uid: str = ""
    etag: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None

    def __post_init__(self) -> None:
        wrong = []
        if not in_range(self.unit_cost, 0, 1e12):
            wrong.append(FieldViolation("flavor.unit_cost", "must be 0 to 1e12"))
        if len(self.description) > MAX_DESCRIPTION:
            wrong.append(FieldViolation("flavor.description", f"must have at most {MAX_DESCRIPTION:,} characters"))
        refuse(wrong)


@dataclass(frozen=True, slots=True)
class Quota:
    """How much of one flavor in one region a pool owns, and how it shares it with the others of its organisation.

    Attributes:
        borrowing_limit_units: the most that it may borrow beyond what it owns; None: whatever there is.
        lending_limit_units: the most of it that the others may borrow; None: all of it.
    """

    flavor: str
    region: str
    nominal_units: int
    borrowing_limit_units: int | None = None
    lending_limit_units: int | None = None

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)

    def violations(self, path: str) -> list[FieldViolation]:
        """Returns which of its numbers are out of range."""
        numbers = {
            "nominal_units": self.nominal_units,
            "borrowing_limit_units": self.borrowing_limit_units,
            "lending_limit_units": self.lending_limit_units,
        }
        return [
            FieldViolation(f"{path}.{field}", f"must be 0 to {MAX_UNITS:,}")
            for field, units in numbers.items()
            if units is not None and not 0 <= units <= MAX_UNITS
        ]


@dataclass(frozen=True, slots=True)
class Pool:
    """A team's virtual pool of serving capacity.

    Raises:
        InvalidFields: quotas are out of range or name a place twice, or the pool is its own parent.
    """

    name: str
    team: str
    parent: str | None
    quotas: tuple[Quota, ...]
    usages: tuple[Usage, ...] = ()
    uid: str = ""
    etag: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None

    def __post_init__(self) -> None:
        wrong = []
        if len(self.quotas) > MAX_QUOTAS:
            wrong.append(FieldViolation("pool.quotas", f"must be at most {MAX_QUOTAS:,}"))
        for index, quota in enumerate(self.quotas):
            wrong += quota.violations(f"pool.quotas[{index}]")
        wrong += [
            FieldViolation(f"pool.quotas[{index}]", "names a flavor and region a second time")
            for index in _repeated([quota.place for quota in self.quotas])
        ]
        if self.parent == self.name:
            wrong.append(FieldViolation("pool.parent", "must be another pool"))
        refuse(wrong)


def _repeated(places: list[Place]) -> list[int]:
    """Returns the positions of places that were there before."""
    seen: Counter[Place] = Counter()
    positions = []
    for index, place in enumerate(places):
        if seen[place]:
            positions.append(index)
        seen[place] += 1
    return positions
