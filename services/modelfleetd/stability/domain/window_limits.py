"""The ends of healthy ranges for windows, where they follow the hours of a week too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HealthyRange, hour_of_week
from modelfleetd.stability.domain.maturity import moment_of


def all_limits(ranges: Sequence[HealthyRange], ends: Integers) -> tuple[Floats, Floats]:
    """Returns the ends of one range for each row of windows."""
    low, high = (
        np.repeat(np.array(limits)[:, np.newaxis], ends.shape[1], axis=1)
        for limits in ([healthy.low for healthy in ranges], [healthy.high for healthy in ranges])
    )
    for row, healthy in enumerate(ranges):
        if healthy.hour_of_week_factors:
            low[row], high[row] = limits_at(healthy, ends[row])
    return low, high


def limits_at(healthy: HealthyRange, ends: Integers) -> tuple[Floats, Floats]:
    """Returns the range's ends for windows that end before these minutes: `HealthyRange.at` of many."""
    if not healthy.hour_of_week_factors:
        return np.full(ends.shape, healthy.low), np.full(ends.shape, healthy.high)
    hours = (ends - 1) // 60 + _FIRST_HOUR
    factors = np.array(healthy.hour_of_week_factors)[hours % len(healthy.hour_of_week_factors)]
    return healthy.low * factors, healthy.high * factors


_FIRST_HOUR: Final = hour_of_week(moment_of(0))
