"""What a model needs, and what changes when it takes over: the formulas of the README, with every input and the lines
that explain them.

Computed in exact fractions of the numbers as they were written, so that the result can be checked by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Final

from modelfleetd.capacity.domain.demand import Demand, Source
from modelfleetd.capacity.domain.exact import BASIS_POINTS, exact, refuse
from modelfleetd.capacity.domain.replicas import Headroom, Margins, filled, replicas_for_route, replicas_for_share
from modelfleetd.capacity.domain.swap import DEFAULT_STEP_BASIS_POINTS, Side
from modelfleetd.capacity.domain.takeover import Takeover, number
from modelfleetd.errors import FieldViolation

DEFAULT: Final = "default"
REQUEST: Final = "request"
# Where a number comes from that nobody has certified: what the pools have booked.
INFERRED: Final = "inferred"
# Where nobody says how a route is split, its baseline has it whole.
ASSUMED: Final = "assumed"
# Instead of the name of a model: nothing is replaced.
NOTHING: Final = "-"
_LEAST_STEP = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be estimated.

    Attributes:
        share_basis_points: of the route, which the model is to have.
        replaces: the model whose share it takes; empty: the baseline of its type; `-`: none.
        max_step_basis_points: the largest step in which the swap moves traffic.

    Raises:
        InvalidFields: a share is out of its range.
    """

    model: str
    headroom: Headroom = field(default_factory=Headroom)
    share_basis_points: int = BASIS_POINTS
    replaces: str = ""
    max_step_basis_points: int = DEFAULT_STEP_BASIS_POINTS
    allow_expired_certificate: bool = False

    def __post_init__(self) -> None:
        wrong = []
        if not 1 <= self.share_basis_points <= BASIS_POINTS:
            wrong.append(FieldViolation("estimate.share_basis_points", f"must be 1 to {BASIS_POINTS:,} basis points"))
        if not _LEAST_STEP <= self.max_step_basis_points <= BASIS_POINTS:
            accepted = f"must be {_LEAST_STEP} to {BASIS_POINTS:,} basis points"
            wrong.append(FieldViolation("estimate.max_step_basis_points", accepted))
        refuse(wrong)


@dataclass(frozen=True, slots=True)
class Replica:
    """What one replica of the model carries and takes.

    Attributes:
        max_qps: lower bound of its maximum load, in requests a second.
        certificate: where that bound comes from.
        flavor: the kind of machine.
        unit_cost: cost of one unit of the flavor for one hour.
        units: units of the flavor that it takes.
        certify_time: when the bound was found.
        expire_time: of the certificate, where it has expired.
    """

    max_qps: float
    certificate: str
    flavor: str
    unit_cost: float
    units: int
    certify_time: datetime | None = None
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Replaced:
    """The model whose share is taken, and how many replicas it has.

    Attributes:
        flavor: the kind of machine that it runs on.
        unit_cost: cost of one unit of the flavor for one hour.
        units: units of the flavor that a replica takes.
        replica: what one of its replicas carries; None where no certificate says so.
        booked_units: what pools have booked for it, by region: what counts where there is no certificate.
        assumed_shares: whether its shares are assumed, since nobody says how the route is split; by region.
        shares: basis points of the route that it has now, by region.
    """

    model: str
    flavor: str
    unit_cost: float
    units: int
    replica: Replica | None = None
    booked_units: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, int] = field(default_factory=dict)
    assumed_shares: frozenset[str] = frozenset()

    @property
    def source(self) -> str:
        """Where the number of its replicas comes from; empty where it is not known."""
        if self.replica is not None:
            return self.replica.certificate
        return INFERRED if any(self.booked_units.values()) else ""

    def replicas(self, region: str, demand: Demand, margins: Margins) -> int | None:
        """Returns N, for the whole route: by its certificate, else what is booked over the share that it carries.

        None where neither is known.
        """
        if self.replica is not None:
            in_region, on_failover = demand.in_region(region), demand.on_failover(region)
            return replicas_for_route(in_region, on_failover, self.replica.max_qps, margins)
        running = -(-self.booked_units.get(region, 0) // self.units)
        if not running:
            return None
        share = self.shares.get(region, 0)
        return -(-running * BASIS_POINTS // share) if share else running


@dataclass(frozen=True, slots=True)
class PeakUnits:
    """Units of one flavor; may be below 0 where it is a change."""

    flavor: str
    units: int


@dataclass(frozen=True, slots=True)
class RegionEstimate:
    """What the model needs in one region: for the whole route, at its share, and while it takes over.

    Attributes:
        share_replicas: at the share that it is to have.
        replaced_replicas: of the model that it replaces, at the share that this has now; units and cost likewise.
        swap_peaks: the most units in use at any moment of the swap, by flavor.
        unit_changes: units after less units before, by flavor.
        takeover: how both models go from what they have to what they are to have.
        costs: of both models an hour, exactly.
    """

    region: str
    demand_qps: float
    failover_demand_qps: float
    replicas: int
    units: int
    cost_per_hour: float
    min_replicas: int
    explanation: str
    share_replicas: int
    replaced_replicas: int
    replaced_flavor: str
    replaced_units: int
    replaced_cost_per_hour: float
    swap_peaks: tuple[PeakUnits, ...]
    unit_changes: tuple[PeakUnits, ...]
    swap_explanation: str
    takeover: Takeover
    costs: Costs


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs an hour, exactly.

    Attributes:
        before: of both models as they are now.
        after: of both models after the swap.
        whole: of the model with the whole route.
        replaced_whole: of the replaced model with the whole route; 0 where nothing is replaced.
    """

    before: Fraction = Fraction(0)
    after: Fraction = Fraction(0)
    whole: Fraction = Fraction(0)
    replaced_whole: Fraction = Fraction(0)

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            self.before + other.before,
            self.after + other.after,
            self.whole + other.whole,
            self.replaced_whole + other.replaced_whole,
        )

    @property
    def ratio(self) -> Fraction | None:
        """Cost after over cost before; None where there is nothing before, or it costs nothing."""
        return self.after / self.before if self.before else None

    @property
    def ratio_for_same_traffic(self) -> Fraction | None:
        """Cost of the model over that of the replaced one, both with the whole route; None as above."""
        return self.whole / self.replaced_whole if self.replaced_whole else None


@dataclass(frozen=True, slots=True)
class Input:
    """One number that went into an estimate, where it comes from, and when it was measured or stated."""

    id: str
    region: str
    value: float
    unit: str
    source: str
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model needs, what changes when it takes over, and why. Its name is given by the service that keeps it."""

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
    share_basis_points: int
    replaces: str
    max_step_basis_points: int
    allow_expired_certificate: bool
    certificate_expired: bool
    replaced_cost_per_hour: float
    cost_change_per_hour: float
    cost_ratio: float
    replaced_certificate: str
    warnings: tuple[str, ...]
    costs: Costs


def estimate(
    name: str,
    wanted: Wanted,
    demand: Demand,
    replica: Replica,
    replaced: Replaced | None,
    shares: Mapping[str, int],
    now: datetime,
) -> Estimate:
    """Returns what a model needs in every region of its route, in their order.

    Args:
        name: of the estimate.
        wanted: what is asked for.
        demand: what the route must carry.
        replica: what a replica of the model carries and takes.
        replaced: the model whose share it takes; None where there is none.
        shares: basis points of the route that the model has already, by region.
        now: when it is made.
    """
    margins = filled(wanted.headroom)
    found = tuple(
        in_region(region, wanted, demand, replica, replaced, shares.get(region, 0)) for region in demand.regions
    )
    costs = sum((region.costs for region in found), Costs())
    ratio = costs.ratio if replaced is not None and replaced.source else None
    return Estimate(
        name=name,
        model=wanted.model,
        headroom=margins,
        certificate=replica.certificate,
        flavor=replica.flavor,
        units_per_replica=replica.units,
        regions=found,
        cost_per_hour=float(sum(exact(region.cost_per_hour) for region in found)),
        inputs=(*_shared_inputs(wanted, demand, replica), *_region_inputs(demand), *_inputs_of(replaced, demand)),
        create_time=now,
        share_basis_points=wanted.share_basis_points,
        replaces=NOTHING if replaced is None else replaced.model,
        max_step_basis_points=wanted.max_step_basis_points,
        allow_expired_certificate=wanted.allow_expired_certificate,
        certificate_expired=replica.expire_time is not None,
        replaced_cost_per_hour=float(sum(exact(region.replaced_cost_per_hour) for region in found)),
        cost_change_per_hour=float(costs.after - costs.before),
        cost_ratio=0.0 if ratio is None else float(ratio),
        replaced_certificate="" if replaced is None else replaced.source,
        warnings=tuple(_warnings(replica, replaced, demand)),
        costs=costs,
    )


def in_region(
    region: str, wanted: Wanted, demand: Demand, replica: Replica, replaced: Replaced | None, share: int
) -> RegionEstimate:
    """Returns what the model needs in one region, with the formulas and their numbers.

    Args:
        region: which.
        wanted: what is asked for.
        demand: what the route must carry.
        replica: of the model.
        replaced: the model whose share it takes; None where there is none.
        share: what the model has of the route already, in basis points.
    """
    margins = filled(wanted.headroom)
    normal, failed = demand.in_region(region), demand.on_failover(region)
    replicas = replicas_for_route(normal, failed, replica.max_qps, margins)
    serving = replicas_for_share(replicas, BASIS_POINTS, margins.min_replicas)
    new = Side(replica.flavor, replicas, replica.units, share)
    old = None
    if replaced is not None and (old_replicas := replaced.replicas(region, demand, margins)) is not None:
        old = Side(replaced.flavor, old_replicas, replaced.units, replaced.shares.get(region, 0))
    swap = Takeover(new, old, wanted.share_basis_points, wanted.max_step_basis_points, margins.min_replicas)
    unit_costs = {replica.flavor: exact(replica.unit_cost)}
    if replaced is not None:
        unit_costs[replaced.flavor] = exact(replaced.unit_cost)
    costs = Costs(
        before=_cost(swap.before, unit_costs),
        after=_cost(swap.after, unit_costs),
        whole=_cost(Takeover.alone(new, margins.min_replicas), unit_costs),
        replaced_whole=Fraction(0) if old is None else _cost(Takeover.alone(old, margins.min_replicas), unit_costs),
    )
    old_units = swap.old_now * (old.units if old else 0)
    changes = {flavor: swap.after[flavor] - swap.before[flavor] for flavor in swap.before}
    return RegionEstimate(
        region=region,
        demand_qps=float(normal),
        failover_demand_qps=float(failed),
        replicas=replicas,
        units=serving * replica.units,
        cost_per_hour=float(costs.whole),
        min_replicas=margins.min_replicas,
        explanation="\n".join(_explain(region, demand, replica, margins, replicas, serving)),
        share_replicas=swap.new_then,
        replaced_replicas=swap.old_now,
        replaced_flavor=old.flavor if old else "",
        replaced_units=old_units,
        replaced_cost_per_hour=float(old_units * unit_costs[old.flavor]) if old else 0.0,
        swap_peaks=_units(swap.peaks),
        unit_changes=_units(changes),
        swap_explanation="\n".join(swap.explain(unit_costs)),
        takeover=swap,
        costs=costs,
    )


def _cost(units: Mapping[str, int], unit_costs: Mapping[str, Fraction]) -> Fraction:
    return sum((count * unit_costs[flavor] for flavor, count in units.items()), Fraction(0))


def _units(by_flavor: Mapping[str, int]) -> tuple[PeakUnits, ...]:
    return tuple(PeakUnits(flavor, units) for flavor, units in sorted(by_flavor.items()))


def _explain(
    region: str, demand: Demand, replica: Replica, margins: Margins, replicas: int, serving: int
) -> Iterator[str]:
    normal, failed, worst = demand.in_region(region), demand.on_failover(region), demand.worst_failed(region)
    growth, fanout = (demand.growth_basis_points / BASIS_POINTS, demand.fanout_basis_points / BASIS_POINTS)
    factors = f"{number(demand.peaks[region])} × (1 + {number(growth)}) × {number(fanout)}"
    yield f"D = peak × (1 + growth) × fanout = {factors} = {number(normal)} requests/s"
    if worst:
        shift = demand.failover[worst, region] / BASIS_POINTS
        taken = f"{number(demand.in_region(worst))} × {number(shift)}"
        yield f"F = D + what comes over from {worst} = {number(normal)} + {taken} = {number(failed)} requests/s"
    else:
        yield f"F = D = {number(failed)} requests/s: no other region's failure sends anything"
    mu, u, v, b = replica.max_qps, margins.normal_utilization, margins.failover_utilization, margins.machine_loss
    terms = (float(normal / (exact(mu) * exact(u))), float(failed / (exact(mu) * exact(v))))
    line = (
        f"N = ceil(max(D/(μ·u), F/(μ·v)) / (1−b)) = ceil(max({number(normal)}/({number(mu)}×{number(u)}), "
        f"{number(failed)}/({number(mu)}×{number(v)})) / {number(1 - exact(b))}) = "
        f"ceil(max({terms[0]:.2f}, {terms[1]:.2f}) / {number(1 - exact(b))}) = {replicas} replicas"
    )
    if serving != replicas:
        line += f"; at least {margins.min_replicas}, so {serving}"
    yield line
    cost = serving * replica.units * exact(replica.unit_cost)
    yield f"cost = {serving} × {replica.units} units × {number(replica.unit_cost)} = {number(cost)} an hour"


def _warnings(replica: Replica, replaced: Replaced | None, demand: Demand) -> Iterator[str]:
    if replica.expire_time is not None:
        expired = f"{replica.expire_time:%Y-%m-%d %H:%M} UTC"
        yield f"{replica.certificate} expired at {expired} and was used all the same: measure again."
    if replaced is not None:
        own = replaced.replica
        if own is not None and own.expire_time is not None:
            expired = f"{own.expire_time:%Y-%m-%d %H:%M} UTC"
            yield f"{own.certificate} of {replaced.model}, which is replaced, expired at {expired}."
        elif replaced.source == INFERRED:
            yield f"{replaced.model} has no certificate: its replicas are inferred from what pools have booked for it."
            if without := [region for region in demand.regions if not replaced.booked_units.get(region)]:
                yield f"Nothing is booked for {replaced.model} in {', '.join(without)}: it counts for nothing there."
        elif not replaced.source:
            yield (
                f"{replaced.model} has neither a certificate nor bookings: what it uses now is not known, and counts"
                " for nothing here."
            )
    yield from demand.warnings()


def _shared_inputs(wanted: Wanted, demand: Demand, replica: Replica) -> Iterator[Input]:
    headroom, margins = wanted.headroom, filled(wanted.headroom)

    def margin(id_: str, unit: str) -> Input:
        source = DEFAULT if getattr(headroom, id_) is None else REQUEST
        return Input(id_, "", float(getattr(margins, id_)), unit, source)

    yield Input("max_qps", "", replica.max_qps, "requests/s", replica.certificate, replica.certify_time)
    yield Input("growth", "", demand.growth_basis_points / BASIS_POINTS, "1", demand.model_type)
    yield Input("fanout", "", demand.fanout_basis_points / BASIS_POINTS, "1", demand.model_type)
    for id_ in ("normal_utilization", "failover_utilization", "machine_loss"):
        yield margin(id_, "1")
    yield margin("min_replicas", "replicas")
    yield Input("units_per_replica", "", float(replica.units), "units", wanted.model)
    yield Input("unit_cost", "", replica.unit_cost, "cost/(unit h)", replica.flavor)
    for id_, value, usual in (
        ("share", wanted.share_basis_points, BASIS_POINTS),
        ("max_step", wanted.max_step_basis_points, DEFAULT_STEP_BASIS_POINTS),
    ):
        yield Input(id_, "", value / BASIS_POINTS, "1", DEFAULT if value == usual else REQUEST)


def _region_inputs(demand: Demand) -> Iterator[Input]:
    for each in demand.measured:
        source = demand.model_type if each.source is Source.STATED else "Prometheus"
        yield Input("peak_qps", each.region, each.peak_qps, "requests/s", source, each.time)
    for (failed, taking), share in sorted(demand.failover.items()):
        if failed in demand.peaks and taking in demand.peaks:
            yield Input(f"failover_share_to:{taking}", failed, share / BASIS_POINTS, "1", failed)


def _inputs_of(replaced: Replaced | None, demand: Demand) -> Iterator[Input]:
    if replaced is None:
        return
    if replaced.replica is not None:
        own = replaced.replica
        yield Input("replaced_max_qps", "", own.max_qps, "requests/s", own.certificate, own.certify_time)
    yield Input("replaced_units_per_replica", "", float(replaced.units), "units", replaced.model)
    yield Input("replaced_unit_cost", "", replaced.unit_cost, "cost/(unit h)", replaced.flavor)
    for region in demand.regions:
        if replaced.replica is None and replaced.source:
            yield Input("replaced_booked_units", region, float(replaced.booked_units.get(region, 0)), "units", "pools")
        source = ASSUMED if region in replaced.assumed_shares else demand.model_type
        yield Input("replaced_share", region, replaced.shares.get(region, 0) / BASIS_POINTS, "1", source)
