"""How many more positives a verdict needs, if what was seen so far goes on."""

from __future__ import annotations

import math
from typing import Final

from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.estimates import RARE, Estimate
from modelfleetd.stability.domain.intervals import garwood
from modelfleetd.stability.domain.sums import Sums

# Beyond this nobody waits, and the answer would be a guess.
_MOST: Final = 1e7


def for_pass(sums: Sums, min_positives: int) -> int:
    """Returns how many more positives a PASS needs of a value that lies within its range."""
    return _in_positives(sums, min_positives)


def for_calibration(sums: Sums, estimate: Estimate, limits: Limits, confidence: float) -> int | None:
    """Returns how many more positives are needed until the interval of a value outside the range leaves it.

    None where it cannot be told: the value lies at the edge.
    """
    k = sums.effective_positives
    if sums.observed > RARE * sums.weight:
        return for_normal(sums, estimate, limits)

    def is_outside(count: float) -> bool:
        fewest, most = garwood(count, confidence)
        return estimate.value * count / most > limits.high or estimate.value * count < limits.low * fewest

    low = high = max(k, 1.0)
    while not is_outside(high):
        low, high = high, high * 2
        if high > _MOST:
            return None
    while high - low > 1.0:
        middle = (low + high) / 2
        low, high = (low, middle) if is_outside(middle) else (middle, high)
    return _in_positives(sums, high)


def for_normal(sums: Sums, estimate: Estimate, limits: Limits) -> int | None:
    """Likewise for a value whose interval shrinks with the square root of the evidence."""
    gap = max(estimate.value - limits.high, limits.low - estimate.value)
    k = sums.effective_positives
    if gap <= 0.0 or not k:
        return None
    needed = k * ((estimate.high - estimate.value) / gap) ** 2
    return _in_positives(sums, needed) if needed <= _MOST else None


def _in_positives(sums: Sums, effective: float) -> int:
    """Returns the missing positives as they are counted, of which an effective one takes n₁ / k_eff."""
    k = sums.effective_positives
    each = sums.positives.n / k if k else 1.0
    return max(1, math.ceil((effective - k) * each - 1e-9))
