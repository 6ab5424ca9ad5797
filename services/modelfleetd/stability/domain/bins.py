"""Bins of log-odds: where along the scale of predictions calibration is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleetd.stability.domain.exact import Floats, Integers

BINS: Final = 32
# Of equal width over these log-odds; the first and the last are open.
LOWEST: Final = -8.0
HIGHEST: Final = 8.0
PER_UNIT: Final = BINS / (HIGHEST - LOWEST)


def bins_of(log_odds: Floats) -> Integers:
    """Returns the bin of each value. The log-odds are overwritten."""
    np.subtract(log_odds, LOWEST, out=log_odds)
    np.multiply(log_odds, PER_UNIT, out=log_odds)
    # A bin begins at its lower edge. Truncation does the same as rounding down, since nothing is left below 0.
    np.clip(log_odds, 0.0, BINS - 1.0, out=log_odds)
    found: Integers = log_odds.astype(np.int64)
    return found


@dataclass(frozen=True, slots=True)
class Bin:
    """Sums of the examples in one bin, in natural units."""

    bin: int
    weight: float  # Σw
    expected: float  # Σwp
    observed: float  # Σwy

    @property
    def mean_prediction(self) -> float:
        return self.expected / self.weight

    @property
    def mean_label(self) -> float:
        return self.observed / self.weight


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Returns Σ over bins (W_bin / W) · |mean p − mean y|; None where there is no weight."""
    weight = sum(each.weight for each in bins)
    return sum(abs(each.expected - each.observed) for each in bins) / weight if weight else None
