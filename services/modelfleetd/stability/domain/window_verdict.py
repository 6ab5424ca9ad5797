"""The verdict of a window, and of a model over its predictions."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.estimates import Estimate, is_overpredicting
from modelfleetd.stability.domain.sums import Sums


class Stability(enum.Enum):
    """Whether predictions are within their healthy range."""

    STABLE = 1
    UNSTABLE = 2
    UNKNOWN = 3


def verdict_of_window(
    estimate: Estimate,
    sums: Sums,
    limits: Limits,
    *,
    min_positives: int,
    alpha: float,
    coverage: float = 1.0,
    coverage_floor: float = 0.0,
) -> Stability:
    """Returns what a metric's value in a window says.

    Evidence comes first: a point that rests on too little is UNKNOWN wherever it lies, except that no positive where
    many were predicted is evidence by itself.
    """
    if coverage < coverage_floor:
        return Stability.UNKNOWN
    if is_overpredicting(sums, alpha):
        return Stability.UNSTABLE
    if not estimate.known or sums.effective_positives < min_positives:
        return Stability.UNKNOWN
    if not limits.low <= estimate.value <= limits.high:
        return Stability.UNSTABLE
    return Stability.UNKNOWN if estimate.high - estimate.low > limits.high - limits.low else Stability.STABLE


def verdict_of_model(windows: Iterable[Stability]) -> Stability:
    """Returns the model's: unstable by any prediction, else unknown by any, else stable. UNKNOWN without any."""
    found = set(windows) or {Stability.UNKNOWN}
    for verdict in (Stability.UNSTABLE, Stability.UNKNOWN):
        if verdict in found:
            return verdict
    return Stability.STABLE
