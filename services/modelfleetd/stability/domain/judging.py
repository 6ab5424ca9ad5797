"""The verdicts of windows that were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final

import numpy as np

from modelfleetd.stability.domain.choosing import Chosen, coverage
from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.cumulated import Cumulated
from modelfleetd.stability.domain.estimates import Estimate, State
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.window_kinds import WindowKind
from modelfleetd.stability.domain.window_limits import all_limits
from modelfleetd.stability.domain.window_verdict import (
    Codes,
    Demand,
    Flags,
    Judged,
    Reason,
    Stability,
    WindowSums,
    explain,
    judge_calibration,
    judge_entropy,
    judge_volume,
)


@dataclass(frozen=True, slots=True)
class WindowVerdict:
    """The verdict of a metric's newest decidable window; where there is none, of the newest that might have been."""

    prediction: str
    metric: Metric
    state: Stability
    reason: Reason
    estimate: Estimate
    limits: Limits
    start: datetime
    end: datetime
    immature: bool  # labels of the window are still to come; the value is corrected for their delay
    label_coverage: float
    positives: int
    examples: int
    demand: Demand

    @property
    def explanation(self) -> str:
        """Returns in words what was found, over which time, and what it is held against."""
        return explain(
            self.prediction,
            self.metric,
            self.reason,
            self.estimate,
            self.limits,
            self.demand,
            (self.start, self.end),
            self.positives,
            self.examples,
            self.label_coverage,
            immature=self.immature,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """Verdicts of windows of one width, as arrays."""

    metric: Metric
    width: int  # minutes
    demand: Demand
    judged: Judged
    limit_low: Floats
    limit_high: Floats
    end: Integers  # the minute after the window's last
    immature: Flags
    label_coverage: Floats
    positives: Floats
    examples: Floats

    @property
    def state(self) -> Codes:
        """Values of Stability."""
        return self.judged.state

    @property
    def value(self) -> Floats:
        """0 where there is none."""
        return self.judged.value

    def all(self, predictions: Sequence[str]) -> list[WindowVerdict]:
        """Returns them one by one; of the prediction of each."""
        judged, ends = self.judged, self.end.tolist()
        # Most of them end together.
        times = {end: (moment_of(end - self.width), moment_of(end)) for end in set(ends)}
        estimates = zip(
            judged.known.tolist(), judged.value.tolist(), judged.low.tolist(), judged.high.tolist(), strict=True
        )
        limits = zip(self.limit_low.tolist(), self.limit_high.tolist(), strict=True)
        columns = zip(
            predictions,
            judged.state.tolist(),
            judged.reason.tolist(),
            estimates,
            limits,
            ends,
            self.immature.tolist(),
            self.label_coverage.tolist(),
            self.positives.tolist(),
            self.examples.tolist(),
            strict=True,
        )
        return [
            WindowVerdict(
                prediction,
                self.metric,
                _STABILITIES[state],
                _REASONS[reason],
                Estimate(_STATES[known], *numbers),
                Limits(*range_),
                *times[end],
                immature,
                coverage,
                round(positives),
                round(examples),
                self.demand,
            )
            for (
                prediction, state, reason, (known, *numbers), range_, end, immature, coverage, positives, examples,
            ) in columns
        ]  # fmt: skip


# By value: calling the class is several times slower.
_STABILITIES: Final = {each.value: each for each in Stability}
_REASONS: Final = {each.value: each for each in Reason}
_STATES: Final = {each.value: each for each in State}


def _immature(kind: WindowKind, cumulated: Cumulated, ends: Integers, moments: Integers) -> Flags:
    first = np.maximum(ends - kind.width, moments - kind.maturity)
    found: Flags = (first < ends) & (cumulated.between("waiting", np.minimum(first, ends), ends) > 0)
    return found


def judge_windows(
    kind: WindowKind, cumulated: Cumulated, chosen: Chosen, moments: Integers, ranges: Sequence[HealthyRange]
) -> Verdicts:
    """Returns the verdicts of the windows that were chosen: one range for each series."""
    ends, by_entropy = chosen.ends, kind.metric is Metric.NE
    total, everything = cumulated.window("observed", ends), cumulated.window("expected", ends)
    weight, squares = cumulated.window("weight", ends), cumulated.window("weight_squares", ends)
    visible = np.divide(chosen.observed, total, out=np.zeros(total.shape), where=total > 0)
    due = np.divide(chosen.expected, everything, out=np.ones(total.shape), where=everything > 0)
    one_weighs = np.divide(squares, weight, out=np.zeros(total.shape), where=weight > 0)
    sums = WindowSums(
        examples=cumulated.window("examples", ends),
        weight=weight,
        weight_squares=squares,
        expected=chosen.expected,
        # Each positive that is due has come or not, which adds to the variance of there being one.
        variance=due * (1.0 - due) * everything * one_weighs + due**2 * cumulated.window("expected_variance", ends),
        positives=cumulated.window("positives", ends) * visible,
        observed=chosen.observed,
        observed_squares=cumulated.window("observed_squares", ends) * visible,
        label_coverage=coverage(kind, cumulated, ends, chosen.expected),
        **{name: cumulated.window(name, ends) if by_entropy else total for name in _LOSSES},
    )
    low, high = all_limits(ranges, ends)
    judged = (judge_entropy if by_entropy else judge_calibration)(sums, low, high, kind.demand)
    immature = _immature(kind, cumulated, ends, moments)
    return _flat(kind, judged, low, high, ends, immature, sums.label_coverage, sums.positives, sums.examples)


_LOSSES: Final = ("loss", "loss_by_squares", "loss_squares", "positive_loss")


def judge_volume_windows(
    kind: WindowKind, cumulated: Cumulated, ends: Integers, ranges: Sequence[HealthyRange]
) -> Verdicts:
    low, high = all_limits(ranges, ends)
    seen = cumulated.window("seen", ends)
    positives = cumulated.window("positives", ends)
    judged = judge_volume(seen, low, high)
    return _flat(kind, judged, low, high, ends, np.zeros(ends.shape, bool), np.ones(ends.shape), positives, seen)


def _flat(
    kind: WindowKind,
    judged: Judged,
    low: Floats,
    high: Floats,
    ends: Integers,
    immature: Flags,
    coverage: Floats,
    positives: Floats,
    examples: Floats,
) -> Verdicts:
    flat = Judged(*(getattr(judged, field.name).ravel() for field in fields(Judged)))
    arrays = (array.ravel() for array in (low, high, ends, immature, coverage, positives, examples))
    return Verdicts(kind.metric, kind.width, kind.demand, flat, *arrays)  # type: ignore[arg-type]
