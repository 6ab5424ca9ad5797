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


# Arrays, since numbers of Python have to be made into such at every use.
_PER_UNIT: Final = np.array(PER_UNIT)
_OFFSET: Final = np.array(-LOWEST * PER_UNIT)
_FIRST: Final = np.array(0, dtype=np.int16)
_LAST: Final = np.array(BINS - 1, dtype=np.int16)


def bins_of(log_odds: Floats) -> Integers:
    """Returns the bin of each value; log-odds beyond ±10,000 are not expected. They are overwritten."""
    np.multiply(log_odds, _PER_UNIT, out=log_odds)
    np.add(log_odds, _OFFSET, out=log_odds)
    # A bin begins at its lower edge. Truncation does the same as rounding down, since nothing is left below 0. Narrow
    # integers are compared many at a time.
    narrow = log_odds.astype(np.int16)
    np.minimum(np.maximum(narrow, _FIRST, out=narrow), _LAST, out=narrow)
    return narrow.astype(np.int64)


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
