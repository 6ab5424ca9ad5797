"""A model as the rehearsal knows it, and what all models and routes have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import Final

from modelfleetd.capacity.domain.replicas import DEFAULTS, filled, replicas_for_route
from modelfleetd.platform.model import ServingSpec

PEAK_QPS: Final = 1_000.0
# Of every flavor, an hour.
UNIT_COST: Final = 1.0
MARGINS: Final = filled(DEFAULTS)


def carries(replicas: int) -> float:
    """What one replica is certified to carry, so that the whole route needs so many of them."""
    return PEAK_QPS / (MARGINS.normal_utilization * (1 - MARGINS.machine_loss) * (replicas - 0.4))


@dataclass(frozen=True, slots=True)
class Trained:
    """A model: how it is run, and what one replica of it carries in each region, in requests a second."""

    name: str
    spec: ServingSpec
    max_qps: Mapping[str, float]
    startup: timedelta

    def needs(self, region: str) -> int:
        """N, for the whole route, by capacity's formula."""
        peak = Fraction(PEAK_QPS)
        return replicas_for_route(peak, peak, self.max_qps[region], MARGINS)
