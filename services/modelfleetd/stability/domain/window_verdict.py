"""The verdict of a window, and of a model over its predictions.

Rules are written once, over arrays of windows, whatever they are: all lags of one minute, or all minutes of a month.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain import words as say
from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.estimates import RARE, Estimate, State
from modelfleetd.stability.domain.exact import Floats
from modelfleetd.stability.domain.fleet import Metric
from modelfleetd.stability.domain.intervals import two_sided_z

# Of the interval that says whether a window holds enough to be judged by.
CONFIDENCE: Final = 0.99
# Too few positives to judge a value by are evidence all the same where chance would bring no more (or no fewer) of them
# than this often, were calibration at the end of its range.
ALPHA: Final = 1.7e-4
# Of a sum of hundreds of minutes that is moved along by adding and taking away.
_ROUNDING: Final = 1e-9

Flags = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]


class Stability(enum.Enum):
    """Whether predictions are within their healthy range."""

    STABLE = 1
    UNSTABLE = 2
    UNKNOWN = 3


class Reason(enum.Enum):
    """What a verdict rests on, or what is missing for one."""

    VALUE = 1  # the value, within its range or outside
    EVIDENCE = 2  # the number of positives, which chance does not explain
    NO_DATA = 3  # no example
    COVERAGE = 4  # too few of the labels have come
    FEW = 5  # too few positives
    WIDE = 6  # the interval is wider than the range, and reaches into it
    UNDEFINED = 7  # all labels are equal


class Demand(NamedTuple):
    """How much evidence a verdict takes."""

    min_positives: int
    min_label_coverage: float


@dataclass(frozen=True, slots=True, eq=False)
class WindowSums:
    """Sums of windows: arrays of one shape. What is expected is what should have been observed by now."""

    examples: Floats
    weight: Floats  # Σw
    weight_squares: Floats  # Σw²
    expected: Floats  # Σ S·F(age)
    variance: Floats  # of the observed, by the predictions
    positives: Floats
    observed: Floats  # Σwy
    observed_squares: Floats  # Σw²y
    label_coverage: Floats
    # For NE alone; final, of mature windows.
    loss: Floats  # Σwl
    loss_by_squares: Floats  # Σw²l
    loss_squares: Floats  # Σw²l²
    positive_loss: Floats  # Σw²ly

    @property
    def effective_expected(self) -> Floats:
        """Expected positives in units of examples of the mean weight, so that no scale of weights changes it."""
        return self.expected * _ratio(self.weight, self.weight_squares)

    @property
    def effective_positives(self) -> Floats:
        """k_eff = (Σwy)² / Σw²y."""
        return self.observed * _ratio(self.observed, self.observed_squares)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What was found of windows."""

    state: Codes  # values of Stability
    reason: Codes  # values of Reason
    known: Codes  # values of State: whether there is a value
    value: Floats
    low: Floats
    high: Floats


def _reaches(found: Floats, least: float) -> Flags:
    """Says where there is enough: what rounding takes away while sums are moved along counts as there."""
    return found >= least * (1.0 - _ROUNDING)


def is_decidable(sums: WindowSums, low: Floats, demand: Demand) -> Flags:
    """Says which windows calibration can be judged on.

    Enough labels have come, and by the predictions there should be enough positives. Where fewer are predicted than are
    there, that is decidable once chance does not explain it.
    """
    covered = (sums.examples > 0) & _reaches(sums.label_coverage, demand.min_label_coverage)
    enough = covered & _reaches(sums.effective_expected, demand.min_positives)
    rest = covered & ~enough & _reaches(sums.effective_positives, demand.min_positives)
    if rest.any():
        enough[rest] = _too_many(sums, low)[rest]
    return enough


def is_decidable_by_entropy(sums: WindowSums, demand: Demand) -> Flags:
    """Says which windows NE can be judged on."""
    found: Flags = _reaches(sums.label_coverage, demand.min_label_coverage) & (sums.observed < sums.weight)
    found &= (sums.observed > 0) & _reaches(sums.effective_positives, demand.min_positives)
    return found


def judge_calibration(sums: WindowSums, low: Floats, high: Floats, demand: Demand) -> Judged:
    """Returns the verdicts of windows by calibration. `low` and `high` are the ends of the range in force."""
    k, there = sums.effective_positives, sums.observed > 0
    value = _ratio(sums.expected, sums.observed)
    fewest, most = _garwood(k)
    # Without a positive the lower end remains, in units of examples.
    rare_low = np.where(there, value * _ratio(k, most), _ratio(sums.effective_expected, most))
    rare_high = np.where(fewest > 0, value * _ratio(k, fewest), np.inf)
    reach = two_sided_z(CONFIDENCE) * _ratio(np.sqrt(sums.variance), sums.observed)
    rare, any_ = sums.observed <= RARE * sums.weight, sums.examples > 0
    low_end = np.where(any_, np.where(rare, rare_low, np.maximum(0.0, value - reach)), 0.0)
    high_end = np.where(any_, np.where(rare, rare_high, value + reach), 0.0)
    known = np.where(there, State.VALUE.value, State.UNDEFINED.value)
    known = np.where(any_, known, State.NO_DATA.value)
    state, reason = _by_value(value, low_end, high_end, low, high)
    few = ~_reaches(k, demand.min_positives)
    _set(state, reason, few, Stability.UNKNOWN, Reason.FEW)
    _set(state, reason, few & _too_few(sums, high), Stability.UNSTABLE, Reason.EVIDENCE)
    short = ~few & ~_reaches(sums.effective_expected, demand.min_positives)
    _set(state, reason, short, Stability.UNKNOWN, Reason.FEW)
    if short.any():
        _set(state, reason, short & _too_many(sums, low), Stability.UNSTABLE, Reason.EVIDENCE)
    return _with_gaps(Judged(state, reason, known.astype(np.uint8), value, low_end, high_end), sums, demand)


def judge_entropy(sums: WindowSums, low: Floats, high: Floats, demand: Demand) -> Judged:
    """Returns the verdicts of windows by NE. Formulas: `estimates.normalized_entropy`."""
    defined = (sums.observed > 0) & (sums.observed < sums.weight)
    rate = np.where(defined, _ratio(sums.observed, sums.weight), 0.5)
    entropy = -rate * np.log(rate) - (1.0 - rate) * np.log1p(-rate)
    value = np.where(defined, _ratio(sums.loss, sums.weight) / entropy, 0.0)
    c = value * np.log((1.0 - rate) / rate)
    mean = _ratio(sums.loss, sums.weight) - c * rate
    squares = sums.loss_squares - 2.0 * c * sums.positive_loss + c * c * sums.observed_squares
    crossed = sums.loss_by_squares - c * sums.observed_squares
    variance = np.maximum(0.0, squares - 2.0 * mean * crossed + mean * mean * sums.weight_squares)
    reach = two_sided_z(CONFIDENCE) * _ratio(np.sqrt(variance), sums.weight * entropy)
    ends = np.where(defined, np.maximum(0.0, value - reach), 0.0), np.where(defined, value + reach, 0.0)
    known = np.where(defined, State.VALUE.value, State.UNDEFINED.value)
    known = np.where(sums.examples > 0, known, State.NO_DATA.value)
    state, reason = _by_value(value, *ends, low, high)
    _set(state, reason, ~_reaches(sums.effective_positives, demand.min_positives), Stability.UNKNOWN, Reason.FEW)
    _set(state, reason, ~defined, Stability.UNKNOWN, Reason.UNDEFINED)
    return _with_gaps(Judged(state, reason, known.astype(np.uint8), value, *ends), sums, demand)


def judge_volume(examples: Floats, low: Floats, high: Floats) -> Judged:
    """Returns the verdicts of windows by the number of examples: it is no sample of anything, and never unknown."""
    inside = (examples >= low) & (examples <= high)
    state = np.where(inside, Stability.STABLE.value, Stability.UNSTABLE.value).astype(np.uint8)
    reason = np.full(examples.shape, Reason.VALUE.value, dtype=np.uint8)
    known = np.full(examples.shape, State.VALUE.value, dtype=np.uint8)
    return Judged(state, reason, known, examples, examples, examples)


def verdict_of_model(windows: Iterable[Stability]) -> Stability:
    """Returns the model's: unstable by any prediction, else unknown by any, else stable. UNKNOWN without any."""
    found = set(windows) or {Stability.UNKNOWN}
    for verdict in (Stability.UNSTABLE, Stability.UNKNOWN):
        if verdict in found:
            return verdict
    return Stability.STABLE


def explain(
    prediction: str,
    metric: Metric,
    reason: Reason,
    estimate: Estimate,
    limits: Limits,
    demand: Demand,
    span: tuple[datetime, datetime],
    positives: int,
    examples: int,
    label_coverage: float,
    *,
    immature: bool,
) -> str:
    """Returns a verdict in words."""
    when, range_ = say.over(*span), f"{say.number(limits.low)} to {say.number(limits.high)}"
    what = say.subject(prediction, {Metric.CALIBRATION: "calibration", Metric.NE: "NE"}.get(metric, "volume"))
    if metric is Metric.VOLUME:
        return f"{what} is {say.count(examples, 'example')} {when}, {_side(estimate, limits)} {range_}."
    late = (
        f"; {say.share(label_coverage)} of the labels have come, and the value allows for the rest" if immature else ""
    )
    seen = f"{say.count(positives, 'positive')} among {say.count(examples, 'example')} {when}"
    if reason is Reason.NO_DATA:
        return f"{what} is not known: there was no example {when}."
    if reason is Reason.COVERAGE:
        came, needed = say.share(label_coverage), say.share(demand.min_label_coverage)
        return f"{what} is not known: {came} of the labels have come {when}, at least {needed} are needed."
    if reason is Reason.UNDEFINED:
        return f"{what} is not defined: all labels are equal, {seen}."
    if reason is Reason.FEW:
        return f"{what} is not known: {seen}, at least {demand.min_positives} positives are needed{late}."
    if reason is Reason.EVIDENCE:
        if estimate.known and estimate.value < limits.low:
            return f"{what} is far below {range_}: {seen}, more than predictions allow for{late}."
        return f"{what} is far above {range_}, or its labels are lost: {seen}, fewer than predictions allow for{late}."
    value = say.with_interval(estimate, CONFIDENCE)
    if reason is Reason.WIDE:
        return f"{what} is not known well enough: {value} by {seen} is wider than {range_}{late}."
    return f"{what} is {value} by {seen}, {_side(estimate, limits)} {range_}{late}."


def _side(estimate: Estimate, limits: Limits) -> str:
    if estimate.value > limits.high:
        return "above"
    return "below" if estimate.value < limits.low else "within"


def _by_value(value: Floats, low_end: Floats, high_end: Floats, low: Floats, high: Floats) -> tuple[Codes, Codes]:
    """A value outside its range is unstable, unless its interval is wider than the range and reaches into it."""
    outside = (value < low) | (value > high)
    wide = (high_end - low_end > high - low) & (low_end <= high) & (high_end >= low)
    state = np.where(outside, Stability.UNSTABLE.value, Stability.STABLE.value).astype(np.uint8)
    reason = np.full(value.shape, Reason.VALUE.value, dtype=np.uint8)
    _set(state, reason, wide, Stability.UNKNOWN, Reason.WIDE)
    return state, reason


def _with_gaps(judged: Judged, sums: WindowSums, demand: Demand) -> Judged:
    state, reason = judged.state, judged.reason
    _set(state, reason, ~_reaches(sums.label_coverage, demand.min_label_coverage), Stability.UNKNOWN, Reason.COVERAGE)
    _set(state, reason, sums.examples <= 0, Stability.UNKNOWN, Reason.NO_DATA)
    return judged


def _set(state: Codes, reason: Codes, chosen: Flags, stability: Stability, why: Reason) -> None:
    state[chosen], reason[chosen] = stability.value, why.value


def _too_few(sums: WindowSums, high: Floats) -> Flags:
    """Says where so few positives are no chance even at the upper end of the range: exact Poisson, e^−S for none."""
    from scipy.special import gammaincc

    k = sums.effective_positives
    units = np.where(
        sums.observed > 0, _ratio(sums.observed, sums.observed_squares), _ratio(sums.weight, sums.weight_squares)
    )
    found: Flags = gammaincc(k + 1.0, sums.expected * units / np.maximum(high, _TINY)) <= ALPHA
    return found


def _too_many(sums: WindowSums, low: Floats) -> Flags:
    """Says where so many positives are no chance even at the lower end of the range."""
    from scipy.special import gammainc

    expected = sums.expected * _ratio(sums.observed, sums.observed_squares) / np.maximum(low, _TINY)
    found: Flags = gammainc(np.maximum(sums.effective_positives, 1.0), expected) <= ALPHA
    return found


def _garwood(count: Floats) -> tuple[Floats, Floats]:
    """As `intervals.garwood`, of many counts."""
    # Imported late: half of a service's start, and of no use to whoever only writes.
    from scipy.special import gammaincinv

    tail = (1.0 - CONFIDENCE) / 2.0
    none = count <= 0.0
    low = np.where(none, 0.0, gammaincinv(np.where(none, 1.0, count), tail))
    high = np.where(none, -np.log(1.0 - CONFIDENCE), gammaincinv(count + 1.0, 1.0 - tail))
    return low, high


_TINY: Final = 1e-12


def _ratio(one: Floats, other: Floats) -> Floats:
    """Returns one over the other; 0 where that is nothing."""
    return np.divide(one, other, out=np.zeros(np.broadcast(one, other).shape), where=other > 0)
