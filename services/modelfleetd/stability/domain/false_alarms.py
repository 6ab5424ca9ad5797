"""How far out a range must be for noise to page no more often than was declared.

A page takes several bad minutes (see `slo.PAIRS`), and windows that slide by the minute share most of what they hold,
so the share of windows outside says little about the number of pages. It was found by simulation instead: 1,200 weeks
of normal values for each width and target, minute by minute, through slices and burn rates, at distances from 2 to 4.75
standard deviations. `_NOISE` is for values that vary by sampling alone; `_WANDER` is the worst of that and two mixtures
with a wander (half of the variance with a memory of 6 h; nine tenths with one of a day), as wander goes out seldom but
stays out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

TARGETS: Final = (0.999, 0.995, 0.99, 0.98, 0.95)
# Distances at which 0.1 and 0.01 pages a week were seen, by width of the window and by target.
_Distances = Mapping[int, tuple[tuple[float, float], ...]]
_NOISE: Final[_Distances] = {
    5: ((3.71, 4.09), (3.13, 3.42), (2.6, 2.82), (2.0, 2.0), (2.0, 2.0)),
    15: ((3.95, 4.44), (3.71, 4.23), (3.29, 3.7), (2.56, 2.86), (2.0, 2.0)),
    30: ((3.96, 4.5), (3.81, 4.33), (3.56, 4.04), (3.11, 3.56), (2.07, 2.38)),
    60: ((3.95, 4.52), (3.88, 4.44), (3.73, 4.29), (3.44, 3.97), (2.76, 3.22)),
    360: ((3.56, 4.14), (3.56, 4.12), (3.52, 4.09), (3.44, 4.0), (3.2, 3.72)),
    1440: ((3.31, 3.94), (3.32, 3.96), (3.32, 3.97), (3.27, 3.91), (3.16, 3.78)),
}
_WANDER: Final[_Distances] = {
    5: ((3.99, 4.44), (3.75, 4.31), (3.68, 4.25), (3.52, 4.09), (3.19, 3.73)),
    15: ((3.96, 4.47), (3.83, 4.35), (3.62, 4.15), (3.49, 3.98), (3.18, 3.68)),
    30: ((3.96, 4.5), (3.83, 4.34), (3.67, 4.19), (3.49, 4.06), (3.22, 3.78)),
    60: ((3.95, 4.52), (3.88, 4.44), (3.73, 4.29), (3.52, 4.03), (3.23, 3.81)),
    360: ((3.59, 4.18), (3.59, 4.2), (3.55, 4.16), (3.46, 4.03), (3.24, 3.82)),
    1440: ((3.52, 4.15), (3.52, 4.16), (3.5, 4.13), (3.43, 4.04), (3.26, 3.89)),
}
_RATES: Final = (0.1, 0.01)
_LEAST: Final = 2.5
# Noise is to spend no more than this share of the error budget, however seldom it would page.
_MOST_SPENT: Final = 0.1
# Below this share of the variance a wander is not told from noise.
_NOISY_SHARE: Final = 0.1


def tail(width: int, target: float, pages_per_week: float, *, wander: float, metrics: int = 1) -> float:
    """Returns the share of windows that may lie outside a range for it to page no more often than declared.

    Args:
        width: of the windows, in minutes.
        target: of the stability objective.
        pages_per_week: that this range may send while all is well.
        wander: share of the variance that no window averages out.
        metrics: ranges of the model, which spend its error budget together.
    """
    distance = _distance(_NOISE, width, target, pages_per_week)
    if wander > _NOISY_SHARE:
        distance = max(distance, _distance(_WANDER, width, target, pages_per_week))
    share = math.erfc(max(_LEAST, distance) / math.sqrt(2.0))
    return min(share, _MOST_SPENT * (1.0 - target) / metrics)


def _distance(distances: _Distances, width: int, target: float, pages_per_week: float) -> float:
    """Interpolates: by Rice's formula the square of the distance is linear in the logarithm of the rate."""
    frequent, rare = zip(*distances[width], strict=True)
    # Rising, as interpolation wants it.
    place = [math.log(1.0 - known) for known in TARGETS]
    ends = [float(np.interp(math.log(1.0 - target), place, np.square(column))) for column in (frequent, rare)]
    part = math.log(pages_per_week / _RATES[0]) / math.log(_RATES[1] / _RATES[0])
    return math.sqrt(max(0.0, ends[0] + part * (ends[1] - ends[0])))
