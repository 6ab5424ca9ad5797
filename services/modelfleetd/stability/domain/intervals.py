"""Intervals for counts and quantiles of the normal distribution."""

from __future__ import annotations

import math
from statistics import NormalDist


def two_sided_z(confidence: float) -> float:
    """Returns how many standard deviations reach to either end of the interval."""
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def garwood(count: float, confidence: float) -> tuple[float, float]:
    """Returns the exact interval of a Poisson mean after `count` events, which may be effective ones and fractional.

    Without any event there is no lower end to be wrong about, so the whole error is on the upper one: −ln α.

    Source: F. Garwood, "Fiducial Limits for the Poisson Distribution", Biometrika 28 (1936).
    """
    if count <= 0.0:
        return 0.0, -math.log(1.0 - confidence)
    # Imported late: half of a service's start, and of no use to whoever only writes.
    from scipy.special import gammaincinv

    alpha = 1.0 - confidence
    return float(gammaincinv(count, alpha / 2.0)), float(gammaincinv(count + 1.0, 1.0 - alpha / 2.0))


def count_ratio(count: float, other: float, confidence: float) -> tuple[float, float]:
    """Returns the exact interval of one Poisson mean over another after so many events of each, one of them at least.

    Given their sum, the first count is binomial: the interval is Clopper and Pearson's for its share. Where one count
    is 0, the whole error is on the one end that there is.
    """
    from scipy.special import betaincinv

    alpha = 1.0 - confidence
    if count <= 0.0:
        share = float(betaincinv(1.0, other, confidence))
        return 0.0, share / (1.0 - share)
    if other <= 0.0:
        _, most = count_ratio(other, count, confidence)
        return 1.0 / most, math.inf
    low = float(betaincinv(count, other + 1.0, alpha / 2.0))
    # The other way round, so that a share near 1 loses no digits.
    high = float(betaincinv(other, count + 1.0, alpha / 2.0))
    return low / (1.0 - low), (1.0 - high) / high if high else math.inf
