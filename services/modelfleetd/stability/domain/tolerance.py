"""How far values stray from their centre while all is well, with confidence: tails of noise and wander, few samples.

A window's value varies by sampling, which its sums tell, times a dispersion, and by a wander that no window averages
out: Var = φ·V + τ². Noise of few positives is skewed, so it is reckoned by the deviance of a Poisson, whose signed root
is normal far into the tails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleetd.stability.domain.exact import Floats
from modelfleetd.stability.domain.history import Values

CONFIDENCE: Final = 0.95
# Of absolute normal deviates this share is below 1.
_ONE_SIGMA: Final = 0.6826895
_FAR: Final = 0.99
_FAR_SIGMAS: Final = 2.5758293
# With fewer, one incident would be a tail.
_FEWEST_FOR_TAILS: Final = 200.0
# A scale by a quantile knows as much as one by squares of this share of the values.
_EFFICIENCY: Final = 0.55
# Values beyond are incidents, or nothing that a range could hold.
_WIDEST: Final = 4.0
_NODE_STEP: Final = 0.2
_NODES: Final = np.linspace(-6.0, 6.0, 61)
_MASS: Final = np.exp(-0.5 * _NODES**2) / np.exp(-0.5 * _NODES**2).sum()
_LEVELS: Final = 24


@dataclass(frozen=True, slots=True)
class Spread:
    """How values vary around their centre."""

    dispersion: float  # φ, at least 1
    wander: float  # τ²
    windows: float  # independent ones that the centre rests on
    noise_samples: float  # independent values that φ rests on
    wander_samples: float  # … and τ²
    freedom: float  # of Student's t with such tails; infinite: normal
    share: float  # of the variance, by wander

    @property
    def tails(self) -> bool:
        """Whether tails are heavier than normal ones."""
        return math.isfinite(self.freedom)

    def variance(self, values: Values) -> float:
        """Returns the variance of a usual window."""
        return self.dispersion * float(np.median(values.variance[values.usable])) + self.wander


@dataclass(frozen=True, slots=True)
class Reach:
    """How far below and above the centre values stray, in logarithms; both above 0."""

    below: float
    above: float


# What is taken to be where too little is known: noise and wander that a wide, safe default is to hold.
ASSUMED: Final = Spread(1.5, 0.1**2, math.inf, math.inf, math.inf, math.inf, 1.0)


def signed_root(residual: Floats, count: Floats, variance: Floats) -> Floats:
    """Returns residuals in standard deviations, with the skewness of few events taken out.

    Of a count that is e^−r times what was expected: the signed root of its deviance. Normal where `count` is infinite.
    """
    r = np.clip(residual, -50.0, 50.0)
    ratio = np.exp(-r)
    rare = np.isfinite(count)
    deviance = 2.0 * np.where(rare, count, 0.0) * np.maximum(0.0, 1.0 - ratio * (1.0 + r))
    deviate = np.divide(np.abs(residual), np.sqrt(variance), out=np.zeros(np.shape(residual)), where=variance > 0)
    found: Floats = np.sign(residual) * np.where(rare, np.sqrt(deviance), deviate)
    return found


def spread(values: Values, base: Values, residuals: Floats, base_residuals: Floats) -> Spread:
    """Returns how usable windows of a width vary, going by them and by the shortest ones that hold enough.

    Args:
        values: the windows.
        base: the shortest windows that hold enough, which tell the noise.
        residuals: of the usable ones among `values`.
        base_residuals: of the usable ones among `base`.
    """
    dispersion, noise = _dispersion(base, base_residuals)
    variance = values.variance[values.usable] * dispersion
    plain = residuals / np.sqrt(variance + 1e-300)
    wander = _wander(residuals, variance, _independent(values, plain)[1])
    deviates = residuals / np.sqrt(variance + wander + 1e-300)
    mean_samples, scale_samples = _independent(values, deviates)
    share = wander / max(1e-300, wander + float(np.mean(variance)))
    return Spread(
        dispersion,
        wander,
        mean_samples,
        noise,
        scale_samples,
        _tail_freedom(_standard(values, residuals, dispersion, wander), scale_samples),
        share,
    )


def reach(spread: Spread, variance: Floats, count: Floats, alpha: float, *, coverage: float = 1.0) -> Reach:
    """Returns how far values stray but for a share `alpha` of them, by either side alike, with CONFIDENCE.

    Args:
        spread: how they vary.
        variance: by sampling, of the windows that the range is for: busy ones and quiet ones.
        count: events of a Poisson that vary as much; infinite where that is no count.
        alpha: share of the windows that may lie outside.
        coverage: share of the labels that have come when windows are judged.
    """
    from scipy.special import ndtr, ndtri, stdtrit

    noise = _tolerance(spread.noise_samples)
    wander = math.sqrt(spread.wander) * _tolerance(spread.wander_samples)
    rare = bool(np.isfinite(count).all())
    levels = _levels(variance)
    # What has not come yet adds the noise of its coming.
    levels = levels * spread.dispersion * noise**2 + ((1.0 / coverage - 1.0) * levels if rare else 0.0)
    uncertain = math.sqrt(1.0 + 1.0 / max(1.0, spread.windows))
    tails = 1.0
    if spread.tails:
        scale = float(stdtrit(spread.freedom, (1.0 + _ONE_SIGMA) / 2.0))
        tails = max(1.0, float(stdtrit(spread.freedom, alpha / 2.0)) / scale / float(ndtri(alpha / 2.0)))

    # Nodes stand for all between them, as if noise were so much wider.
    counts = 1.0 / (levels + (wander * _NODE_STEP) ** 2 / 12.0)

    def outside(distance: float, side: float) -> float:
        if not rare:
            return float(ndtr(-distance / np.sqrt(levels + wander**2)).mean())
        left = side * distance - wander * _NODES[:, np.newaxis] + np.zeros(len(levels))
        deviates = side * signed_root(left, counts, 1.0 / counts)
        return float(_MASS @ ndtr(-deviates).mean(axis=1))

    ends = []
    for side in (-1.0, 1.0):
        low, high = 0.0, _WIDEST
        for _ in range(40):
            middle = (low + high) / 2.0
            low, high = (middle, high) if outside(middle, side) > alpha / 2.0 else (low, middle)
        ends.append(min(_WIDEST, high * tails * uncertain))
    return Reach(*ends)


def _tolerance(samples: float) -> float:
    """Returns by how much a deviation that was estimated may be too small: Howe's factor, without that of the mean."""
    from scipy.special import chdtri

    freedom = max(1.0, _EFFICIENCY * samples)
    if math.isinf(freedom):
        return 1.0
    return math.sqrt(freedom / float(chdtri(freedom, CONFIDENCE)))


def _levels(variance: Floats) -> Floats:
    """Returns a few variances that stand for all of them."""
    found: Floats = np.quantile(variance, (np.arange(_LEVELS) + 0.5) / _LEVELS)
    return np.maximum(found, 1e-18)


def _dispersion(base: Values, residuals: Floats) -> tuple[float, float]:
    """Returns φ by neighbours, between which nothing wanders, and how many values it rests on."""
    places = np.full(len(base), -1)
    places[base.usable] = np.arange(len(residuals))
    one, other = places[: -base.times or None], places[base.times :]
    both = (one >= 0) & (other >= 0)
    if not both.any():
        return 1.0, float(len(residuals))
    deviates = signed_root(residuals, base.count[base.usable], base.variance[base.usable])
    steps = np.abs(deviates[other[both]] - deviates[one[both]]) / math.sqrt(2.0)
    return max(1.0, float(np.quantile(steps, _ONE_SIGMA)) ** 2), len(residuals) / base.times


def _wander(residuals: Floats, variance: Floats, samples: float) -> float:
    """Returns τ² for which two thirds of the residuals are within one sigma; 0 where chance explains as much."""
    low, high = 0.0, float(np.quantile(np.abs(residuals), _ONE_SIGMA)) ** 2
    excess = float(np.quantile(np.abs(residuals) / np.sqrt(variance + 1e-300), _ONE_SIGMA)) - 1.0
    if excess <= 1.0 / math.sqrt(2.0 * _EFFICIENCY * samples):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2.0
        within = np.mean(np.square(residuals) <= variance + middle)
        low, high = (middle, high) if within < _ONE_SIGMA else (low, middle)
    return high


def _standard(values: Values, residuals: Floats, dispersion: float, wander: float) -> Floats:
    """Returns residuals in standard deviations of noise and wander together."""
    variance = values.variance[values.usable] * dispersion
    if not wander:
        return signed_root(residuals, values.count[values.usable] / dispersion, variance)
    return residuals / np.sqrt(variance + wander)


def _independent(values: Values, deviates: Floats) -> tuple[float, float]:
    """Returns how many independent windows the mean, and the scale, rest on: fewer where neighbours are alike."""
    line = np.zeros(len(values))
    there = values.usable.astype(np.float64)
    line[values.usable] = np.clip(deviates, -3.0, 3.0)
    windows = max(1.0, (float(there.sum()) + values.times - 1.0) / values.times)
    size = float(np.sum(np.square(line)))
    if not size or windows < 3.0:
        return windows, windows
    # All lags at once, by the Fourier transform; lags are whole windows, which do not overlap.
    length = 1 << (2 * len(line) - 1).bit_length()
    products = np.fft.irfft(np.abs(np.fft.rfft(line, length)) ** 2, length)
    pairs = np.fft.irfft(np.abs(np.fft.rfft(there, length)) ** 2, length)
    lags = np.arange(values.times, max(values.times + 1, len(line) // 3), values.times)
    alike = products[lags] / np.maximum(pairs[lags], 1.0) / (size / float(there.sum()))
    noise = 2.0 / math.sqrt(windows)
    last = int(np.argmax(alike < noise)) if (alike < noise).any() else len(alike)
    alike = np.clip(alike[:last], 0.0, 1.0)
    return windows / (1.0 + 2.0 * float(alike.sum())), windows / (1.0 + 2.0 * float(np.square(alike).sum()))


def _tail_freedom(deviates: Floats, samples: float) -> float:
    """Returns the degrees of freedom of a t with such tails; infinite where chance explains them."""
    from scipy.special import stdtrit

    size = np.abs(deviates)
    middle, far = np.quantile(size, [_ONE_SIGMA, _FAR])
    if not middle or samples < _FEWEST_FOR_TAILS:
        return math.inf
    # Less one standard error of the ratio of these two quantiles.
    ratio = float(far / middle) / _FAR_SIGMAS - 1.65 / math.sqrt(samples)
    if ratio <= 1.0:
        return math.inf
    low, high = 2.5, 200.0
    for _ in range(30):
        freedom = math.sqrt(low * high)
        ends = stdtrit(freedom, np.array([(1.0 + _ONE_SIGMA) / 2.0, (1.0 + _FAR) / 2.0]))
        low, high = (freedom, high) if ends[1] / ends[0] / _FAR_SIGMAS > ratio else (low, freedom)
    return high
