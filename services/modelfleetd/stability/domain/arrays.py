"""The metrics of many windows at once: the formulas of `estimates`, column by column in float64.

Held against those, window by window, by a test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.estimates import RARE, Estimate, State
from modelfleetd.stability.domain.exact import Floats
from modelfleetd.stability.domain.intervals import two_sided_z

Codes = npt.NDArray[np.uint8]  # of State
Mask = npt.NDArray[np.bool_]

_VALUE, _NO_DATA, _UNDEFINED = (np.uint8(state.value) for state in (State.VALUE, State.NO_DATA, State.UNDEFINED))


@dataclass(frozen=True, slots=True)
class Windows:
    """Sums of windows in natural units; arrays of one length. What each is, `sums.Sums` says."""

    examples: Floats
    weight: Floats
    weight_squares: Floats
    expected: Floats
    expected_variance: Floats
    loss: Floats
    loss_by_squares: Floats
    loss_squares: Floats
    positives: Floats
    observed: Floats
    observed_squares: Floats
    positive_loss: Floats

    def __add__(self, other: Windows) -> Windows:
        return Windows(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def effective_positives(self) -> Floats:
        return _ratio(self.observed**2, self.observed_squares)


@dataclass(frozen=True, slots=True)
class Estimates:
    """Numbers with their intervals; arrays of one length."""

    state: Codes
    value: Floats
    low: Floats
    high: Floats

    def at(self, place: int) -> Estimate:
        """Returns one of them."""
        columns = (self.value, self.low, self.high)
        return Estimate(State(int(self.state[place])), *(float(column[place]) for column in columns))


def garwoods(counts: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Returns the exact interval of each Poisson mean: see `intervals.garwood`."""
    from scipy.special import gammaincinv

    alpha = 1.0 - confidence
    some = counts > 0.0
    low, high = np.zeros_like(counts), np.full_like(counts, -math.log(alpha))
    low[some] = gammaincinv(counts[some], alpha / 2.0)
    high[some] = gammaincinv(counts[some] + 1.0, 1.0 - alpha / 2.0)
    return low, high


class Metrics:
    """Metrics of windows at one confidence. The exact intervals of their positives are computed once."""

    def __init__(self, windows: Windows, confidence: float) -> None:
        self._windows = windows
        self._confidence = confidence
        self._z = two_sided_z(confidence)
        self._garwoods = garwoods(windows.effective_positives, confidence)

    def calibrations(self) -> Estimates:
        """Returns predicted over observed positives: see `estimates.calibration`."""
        return self.calibrations_of(self._windows.expected, self._windows.expected_variance)

    def calibrations_of(self, expected: Floats, variance: Floats) -> Estimates:
        """Returns the same for other expectations of the positives: those that should have come by now."""
        of = self._windows
        value = _ratio(expected, of.observed)
        fewest, most = self._garwoods
        k = of.effective_positives
        reach = self._z * _ratio(np.sqrt(variance), of.observed)
        rare = of.observed <= RARE * of.weight
        low = np.where(rare, _ratio(value * k, most), np.maximum(0.0, value - reach))
        high = np.where(rare, _ratio(value * k, fewest, math.inf), value + reach)
        # Without positives a lower bound is left.
        none = (of.weight > 0.0) & (of.observed == 0.0)
        count = _ratio(expected * of.weight, of.weight_squares)
        low, high = np.where(none, count / most, low), np.where(none, math.inf, high)
        return self._estimates(value, low, high, (of.weight > 0.0) & (of.observed > 0.0), bounded=none)

    def base_rates(self) -> Estimates:
        """Returns observed positives over examples: see `estimates.base_rate`."""
        of = self._windows
        rate = _ratio(of.observed, of.weight)
        fewest, most = self._garwoods
        k = of.effective_positives
        share = np.where(k > 0.0, _ratio(rate, k), _ratio(of.weight_squares, of.weight**2))
        variance = of.observed_squares * (1.0 - 2.0 * rate) + rate**2 * of.weight_squares
        reach = self._z * _ratio(np.sqrt(np.maximum(0.0, variance)), of.weight)
        rare = rate <= RARE
        low = np.where(rare, share * fewest, np.maximum(0.0, rate - reach))
        high = np.minimum(1.0, np.where(rare, share * most, rate + reach))
        return self._estimates(rate, low, high, of.weight > 0.0)

    def entropies(self) -> Estimates:
        """Returns mean log loss over the entropy of the base rate: see `estimates.normalized_entropy`."""
        of = self._windows
        rate = _ratio(of.observed, of.weight)
        defined = (of.weight > 0.0) & (of.observed > 0.0) & (of.observed != of.weight)
        safe = np.where(defined, rate, 0.5)
        entropy = -safe * np.log(safe) - (1.0 - safe) * np.log1p(-safe)
        value = _ratio(of.loss, of.weight) / entropy
        c = value * np.log((1.0 - safe) / safe)
        mean = _ratio(of.loss, of.weight) - c * rate
        squares = of.loss_squares - 2.0 * c * of.positive_loss + c * c * of.observed_squares
        crossed = of.loss_by_squares - c * of.observed_squares
        variance = squares - 2.0 * mean * crossed + mean * mean * of.weight_squares
        reach = self._z * _ratio(np.sqrt(np.maximum(0.0, variance)), of.weight * entropy)
        return self._estimates(value, np.maximum(0.0, value - reach), value + reach, defined)

    def _estimates(
        self, value: Floats, low: Floats, high: Floats, defined: Mask, bounded: Mask | None = None
    ) -> Estimates:
        state = np.where(self._windows.examples == 0.0, _NO_DATA, np.where(defined, _VALUE, _UNDEFINED))
        there = defined if bounded is None else defined | bounded
        there = there & (self._windows.examples > 0.0)
        return Estimates(state, np.where(defined, value, 0.0), np.where(there, low, 0.0), np.where(there, high, 0.0))


def _ratio(one: Floats, other: Floats, otherwise: float = 0.0) -> Floats:
    return np.divide(one, other, out=np.full_like(one, otherwise), where=other != 0.0)
