"""Which requests are sampled: a function of their ids alone, so that predictions and labels agree without a word.

The id's two halves are mixed (as SplitMix64 does) into 64 bits, of which the upper 32 place it in one of a thousand
buckets of equal width; of `permille` the first so many are chosen. A smaller sample lies within a larger one, and ids
need not be random: counters are spread as well. `modelfleet.columns.sampled` is the same for producers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.exact import Integers

ALL_SAMPLED: Final = 1000

_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_FACTORS: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS: Final = (np.uint64(30), np.uint64(27), np.uint64(31))
_HALF: Final = np.uint64(32)


def sampled(high: Integers, low: Integers, permille: int) -> npt.NDArray[np.bool_]:
    """Marks the request ids, given by their halves, that are among `permille` of 1,000."""
    mixed = _mix(_mix(low.view(np.uint64)) ^ high.view(np.uint64))
    buckets = (mixed >> _HALF) * np.uint64(ALL_SAMPLED) >> _HALF
    return buckets < np.uint64(permille)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + _STEP
    values = (values ^ (values >> _SHIFTS[0])) * _FACTORS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _FACTORS[1]
    return values ^ (values >> _SHIFTS[2])
