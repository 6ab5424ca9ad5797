"""Calibration, normalized entropy and base rate with their intervals. Formulas: see the README of this service."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

from modelfleetd.stability.domain.intervals import count_ratio, garwood, two_sided_z
from modelfleetd.stability.domain.sums import Sums

# Up to this base rate positives are as good as Poisson (5 % too wide an interval at the limit); above, the normal
# interval with the predictions' own variance is used.
RARE: Final = 0.1


class State(enum.Enum):
    """Whether there is a number."""

    VALUE = 1
    NO_DATA = 2
    UNDEFINED = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval; the number only with VALUE."""

    state: State
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def known(self) -> bool:
        return self.state is State.VALUE


NO_DATA: Final = Estimate(State.NO_DATA)
UNDEFINED: Final = Estimate(State.UNDEFINED)


def calibration(sums: Sums, confidence: float) -> Estimate:
    """Predicted over observed positives, Σwp / Σwy.

    Without positives it is UNDEFINED, with the interval that remains: at least S / −ln α.
    """
    if not sums.examples:
        return NO_DATA
    if not sums.weight:
        return UNDEFINED
    predicted, observed = sums.expected, sums.observed
    if not observed:
        _, most = garwood(0.0, confidence)
        return Estimate(State.UNDEFINED, low=expected_count(sums) / most, high=math.inf)
    value = predicted / observed
    if observed <= RARE * sums.weight:
        k = sums.effective_positives
        fewest, most = garwood(k, confidence)
        return Estimate(State.VALUE, value, value * k / most, value * k / fewest if fewest else math.inf)
    reach = two_sided_z(confidence) * math.sqrt(sums.expected_variance) / observed
    return Estimate(State.VALUE, value, max(0.0, value - reach), value + reach)


def expected_count(sums: Sums) -> float:
    """S = Σwp in units of examples: divided by the mean weight Σw² / Σw, so that no scale of weights changes it."""
    return sums.expected * sums.weight / sums.weight_squares if sums.weight_squares else 0.0


def is_overpredicting(sums: Sums, alpha: float) -> bool:
    """Says whether not one positive is evidence of over-prediction or of lost labels: e^−S ≤ α."""
    return not sums.positives.w and expected_count(sums) >= -math.log(alpha)


def normalized_entropy(sums: Sums, confidence: float) -> Estimate:
    """Mean log loss over the entropy of the base rate. UNDEFINED where all labels are equal."""
    if not sums.examples:
        return NO_DATA
    moments = _entropy_moments(sums)
    if moments is None:
        return UNDEFINED
    value, deviation = moments
    reach = two_sided_z(confidence) * deviation
    return Estimate(State.VALUE, value, max(0.0, value - reach), value + reach)


def entropy_ratio(candidate: Sums, baseline: Sums, confidence: float) -> Estimate:
    """NE of the candidate over that of the baseline, for models that saw different examples of one span."""
    if not candidate.examples or not baseline.examples:
        return NO_DATA
    ours, theirs = _entropy_moments(candidate), _entropy_moments(baseline)
    if ours is None or theirs is None or not ours[0] or not theirs[0]:
        return UNDEFINED
    ratio = ours[0] / theirs[0]
    # In logarithms the two relative errors add up and no end becomes negative.
    reach = math.exp(two_sided_z(confidence) * math.hypot(ours[1] / ours[0], theirs[1] / theirs[0]))
    return Estimate(State.VALUE, ratio, ratio / reach, ratio * reach)


def calibration_ratio(candidate: Sums, baseline: Sums, confidence: float) -> Estimate:
    """Calibration of the candidate over that of the baseline, for models that saw different examples of one span.

    Rare events: the exact interval of the ratio of two Poisson means (Przyborowski and Wilenski, Biometrika 31, 1940).
    Else in logarithms, where the two relative variances add up. Where one side has no positive it is UNDEFINED, with
    the interval that remains. Exchanged, the two give the reciprocal.
    """
    if not candidate.examples or not baseline.examples:
        return NO_DATA
    sides = (candidate, baseline)
    if not all(sums.expected for sums in sides) or not any(sums.observed for sums in sides):
        return UNDEFINED
    known = all(sums.observed for sums in sides)
    if known and any(sums.observed > RARE * sums.weight for sums in sides):
        value = candidate.expected / candidate.observed / (baseline.expected / baseline.observed)
        reach = math.exp(two_sided_z(confidence) * math.sqrt(sum(map(_calibration_variance, sides))))
        return Estimate(State.VALUE, value, value / reach, value * reach)
    ours, theirs = candidate.effective_positives, baseline.effective_positives
    # Both in one unit: effective positives, and what was predicted as so many of them.
    predicted = _effective_expected(candidate) / _effective_expected(baseline)
    fewest, most = count_ratio(ours, theirs, confidence)
    low, high = predicted / most if math.isfinite(most) else 0.0, predicted / fewest if fewest else math.inf
    if not known:
        return Estimate(State.UNDEFINED, low=low, high=high)
    return Estimate(State.VALUE, predicted * theirs / ours, low, high)


def _effective_expected(sums: Sums) -> float:
    if not sums.observed:
        return expected_count(sums)
    return sums.expected / sums.observed * sums.effective_positives


def _calibration_variance(sums: Sums) -> float:
    """Relative variance of the observed positives."""
    if sums.observed <= RARE * sums.weight:
        return 1.0 / sums.effective_positives
    return sums.expected_variance / sums.observed**2


def base_rate(sums: Sums, confidence: float) -> Estimate:
    """Observed positives over examples, by weight."""
    if not sums.examples:
        return NO_DATA
    weight, observed = sums.weight, sums.observed
    if not weight:
        return UNDEFINED
    rate = observed / weight
    if rate <= RARE:
        k = sums.effective_positives
        fewest, most = garwood(k, confidence)
        # Of one effective positive this is the share: without any, that of one example of mean weight.
        share = rate / k if k else sums.weight_squares / weight**2
        return Estimate(State.VALUE, rate, share * fewest, min(1.0, share * most))
    variance = sums.observed_squares * (1.0 - 2.0 * rate) + rate**2 * sums.weight_squares
    reach = two_sided_z(confidence) * math.sqrt(max(0.0, variance)) / weight
    return Estimate(State.VALUE, rate, max(0.0, rate - reach), min(1.0, rate + reach))


def _entropy_moments(sums: Sums) -> tuple[float, float] | None:
    """Returns NE and its standard deviation by the delta method; None where it is undefined.

    NE is a function of the mean loss l̄ and the base rate b. With c = NE · H′(b), one example moves it by
    w (l − c·y − m) / (W·H), where m = l̄ − c·b is the mean of l − c·y. The variance is the sum of these squares:
    it holds Var(l), Var(y) and Cov(l, y).
    """
    weight, observed = sums.weight, sums.observed
    if not weight or not observed or sums.positives.w == sums.exposure.w:
        return None
    rate = observed / weight
    entropy = -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)
    value = sums.loss / weight / entropy
    c = value * math.log((1.0 - rate) / rate)
    mean = sums.loss / weight - c * rate
    squares = sums.loss_squares - 2.0 * c * sums.positive_loss + c * c * sums.observed_squares
    crossed = sums.loss_by_squares - c * sums.observed_squares
    variance = squares - 2.0 * mean * crossed + mean * mean * sums.weight_squares
    # Rounding may leave a little less than nothing where every example has the same influence.
    return value, math.sqrt(max(0.0, variance)) / (weight * entropy)
