"""What a model needs for its whole route: the formulas of the README, with every input and the line that explains them.

Computed in exact fractions of the numbers as they were written, so that the result can be checked by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

from modelfleetd.capacity.domain.exact import BASIS_POINTS, ceil_share, exact, in_range, refuse
from modelfleetd.errors import FieldViolation

DEFAULT = "default"
REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Headroom:
    """Margins of an estimate; None stands for the default, which `filled` puts in.

    Raises:
        InvalidFields: a margin is out of its range.
    """

    normal_utilization: float | None = None
    failover_utilization: float | None = None
    machine_loss: float | None = None
    min_replicas: int | None = None

    def __post_init__(self) -> None:
        wrong = []
        for field in ("normal_utilization", "failover_utilization"):
            value = getattr(self, field)
            if value is not None and not in_range(value, 0, 1, low_open=True):
                wrong.append(FieldViolation(f"estimate.headroom.{field}", "must be above 0 and at most 1"))
        if self.machine_loss is not None and not in_range(self.machine_loss, 0, 1, high_open=True):
            wrong.append(FieldViolation("estimate.headroom.machine_loss", "must be 0 or more and below 1"))
        if self.min_replicas is not None and not 1 <= self.min_replicas <= MAX_MIN_REPLICAS:
            wrong.append(FieldViolation("estimate.headroom.min_replicas", f"must be 1 to {MAX_MIN_REPLICAS:,}"))
        refuse(wrong)


MAX_MIN_REPLICAS = 10_000
DEFAULTS = Headroom(normal_utilization=0.70, failover_utilization=0.90, machine_loss=0.02, min_replicas=2)


@dataclass(frozen=True, slots=True)
class Margins:
    """A headroom in which every margin has a value."""

    normal_utilization: float
    failover_utilization: float
    machine_loss: float
    min_replicas: int


def filled(headroom: Headroom) -> Margins:
    """Returns the margins with the defaults where none was asked for."""

    def of(field: str) -> float:
        asked = getattr(headroom, field)
        value: float = getattr(DEFAULTS, field) if asked is None else asked
        return value

    return Margins(
        normal_utilization=of("normal_utilization"),
        failover_utilization=of("failover_utilization"),
        machine_loss=of("machine_loss"),
        min_replicas=int(of("min_replicas")),
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """How much traffic a route must carry.

    Attributes:
        peaks: peak by region, in requests a second.
        growth_basis_points: expected growth of the peaks.
        fanout_basis_points: requests to the model for each request of the peak; 10,000 is one.
        failover: basis points of a region's demand that go to another when it fails, by (failed, taking) region.
        source: the resource that states it.
    """

    peaks: Mapping[str, float]
    growth_basis_points: int = 0
    fanout_basis_points: int = BASIS_POINTS
    failover: Mapping[tuple[str, str], int] | None = None
    source: str = ""

    def in_region(self, region: str) -> Fraction:
        """Returns D = peak × (1 + growth) × fanout, in requests a second."""
        growth = Fraction(BASIS_POINTS + self.growth_basis_points, BASIS_POINTS)
        return exact(self.peaks[region]) * growth * Fraction(self.fanout_basis_points, BASIS_POINTS)

    def on_failover(self, region: str) -> Fraction:
        """Returns F = D + the most that comes over from any one failed region, in requests a second."""
        return self.in_region(region) + max((self._coming_from(other, region) for other in self.peaks), default=0)

    def _coming_from(self, failed: str, region: str) -> Fraction:
        if failed == region:
            return Fraction(0)
        return self.in_region(failed) * Fraction((self.failover or {}).get((failed, region), 0), BASIS_POINTS)


@dataclass(frozen=True, slots=True)
class Replica:
    """What one replica of the model carries and takes.

    Attributes:
        max_qps: lower bound of its maximum load, in requests a second.
        certificate: where that bound comes from.
        flavor: the kind of machine.
        unit_cost: cost of one unit of the flavor for one hour.
        units: units of the flavor that it takes.
    """

    max_qps: float
    certificate: str
    flavor: str
    unit_cost: float
    units: int


@dataclass(frozen=True, slots=True)
class RegionEstimate:
    """What the model needs in one region at share 1."""

    region: str
    demand_qps: float
    failover_demand_qps: float
    replicas: int
    units: int
    cost_per_hour: float
    min_replicas: int
    explanation: str


@dataclass(frozen=True, slots=True)
class Input:
    """One number that went into an estimate, and where it comes from."""

    id: str
    region: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model needs for its whole route, and why. Times and names are given by the service that keeps it."""

    name: str
    model: str
    headroom: Margins
    certificate: str
    flavor: str
    units_per_replica: int
    regions: tuple[RegionEstimate, ...]
    cost_per_hour: float
    inputs: tuple[Input, ...]
    create_time: datetime


def replicas_for_share(replicas: int, share_basis_points: int, min_replicas: int) -> int:
    """Returns R(x): 0 for share 0, else max(R_min, ceil(N × x)), in integers.

    Args:
        replicas: N, for the whole route.
        share_basis_points: x, 0 to 10,000.
        min_replicas: R_min.
    """
    return 0 if share_basis_points == 0 else max(min_replicas, ceil_share(replicas, share_basis_points))


def replicas_for_route(demand: Fraction, failover: Fraction, max_qps: float, margins: Margins) -> int:
    """Returns N = ceil(max(D / (μ u_normal), F / (μ u_failover)) / (1 − b)).

    The maximum and not the product of both terms: a product pays for headroom twice.
    """
    normal = demand / (exact(max_qps) * exact(margins.normal_utilization))
    failed = failover / (exact(max_qps) * exact(margins.failover_utilization))
    return math.ceil(max(normal, failed) / (1 - exact(margins.machine_loss)))


def in_region(region: str, demand: Demand, replica: Replica, margins: Margins) -> RegionEstimate:
    """Returns what the model needs in one region, with the formula and its numbers."""
    normal, failed = demand.in_region(region), demand.on_failover(region)
    replicas = replicas_for_route(normal, failed, replica.max_qps, margins)
    serving = replicas_for_share(replicas, BASIS_POINTS, margins.min_replicas)
    units = serving * replica.units
    return RegionEstimate(
        region=region,
        demand_qps=float(normal),
        failover_demand_qps=float(failed),
        replicas=replicas,
        units=units,
        cost_per_hour=float(units * exact(replica.unit_cost)),
        min_replicas=margins.min_replicas,
        explanation=_explain(normal, failed, replica, margins, replicas, serving),
    )


def _explain(
    normal: Fraction, failed: Fraction, replica: Replica, margins: Margins, replicas: int, serving: int
) -> str:
    mu, u, v, b = replica.max_qps, margins.normal_utilization, margins.failover_utilization, margins.machine_loss
    terms = (float(normal / (exact(mu) * exact(u))), float(failed / (exact(mu) * exact(v))))
    line = (
        f"N = ceil(max(D/(μ·u), F/(μ·v)) / (1−b)) = ceil(max({_n(normal)}/({_n(mu)}×{_n(u)}), "
        f"{_n(failed)}/({_n(mu)}×{_n(v)})) / {_n(1 - exact(b))}) = "
        f"ceil(max({terms[0]:.2f}, {terms[1]:.2f}) / {_n(1 - exact(b))}) = {replicas} replicas"
    )
    if serving != replicas:
        line += f"; at least {margins.min_replicas}, so {serving}"
    return line + f"; {serving} × {replica.units} units × {_n(replica.unit_cost)} an hour"


def _n(value: float | Fraction) -> str:
    return f"{float(value):.10g}"


def estimate(
    name: str, model: str, regions: Sequence[str], demand: Demand, replica: Replica, headroom: Headroom, now: datetime
) -> Estimate:
    """Returns what a model needs in every region of its route, in their given order."""
    margins = filled(headroom)
    found = tuple(in_region(region, demand, replica, margins) for region in regions)
    return Estimate(
        name=name,
        model=model,
        headroom=margins,
        certificate=replica.certificate,
        flavor=replica.flavor,
        units_per_replica=replica.units,
        regions=found,
        cost_per_hour=float(sum(exact(region.cost_per_hour) for region in found)),
        inputs=(*_shared_inputs(model, demand, replica, headroom), *_region_inputs(regions, demand)),
        create_time=now,
    )


def _shared_inputs(model: str, demand: Demand, replica: Replica, headroom: Headroom) -> list[Input]:
    margins = filled(headroom)

    def margin(field: str, unit: str) -> Input:
        source = DEFAULT if getattr(headroom, field) is None else REQUEST
        return Input(field, "", float(getattr(margins, field)), unit, source)

    return [
        Input("max_qps", "", replica.max_qps, "requests/s", replica.certificate),
        Input("growth", "", demand.growth_basis_points / BASIS_POINTS, "1", demand.source),
        Input("fanout", "", demand.fanout_basis_points / BASIS_POINTS, "1", demand.source),
        margin("normal_utilization", "1"),
        margin("failover_utilization", "1"),
        margin("machine_loss", "1"),
        margin("min_replicas", "replicas"),
        Input("units_per_replica", "", float(replica.units), "units", model),
        Input("unit_cost", "", replica.unit_cost, "cost/(unit h)", replica.flavor),
    ]


def _region_inputs(regions: Sequence[str], demand: Demand) -> list[Input]:
    peaks = [Input("peak_qps", region, demand.peaks[region], "requests/s", demand.source) for region in regions]
    shifts = [
        Input(f"failover_share_to:{taking}", failed, share / BASIS_POINTS, "1", failed)
        for (failed, taking), share in sorted((demand.failover or {}).items())
        if failed in demand.peaks and taking in demand.peaks
    ]
    return peaks + shifts
