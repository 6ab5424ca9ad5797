"""How many replicas a model needs: margins, the formula for the whole route, and the one for a share of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from modelfleetd.capacity.domain.exact import ceil_share, exact, in_range, refuse
from modelfleetd.errors import FieldViolation


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
