"""What is decided of windows, and for how long they wait for labels: cases, and what those of one kind share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Final

import numpy as np

from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.exact import Floats
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.maturity import DELIVERY, completion
from modelfleetd.stability.domain.window_verdict import Demand

MINUTE: Final = timedelta(minutes=1)
# Wide windows are looked for in steps of a sixtieth of their width.
_STEPS: Final = 60


@dataclass(frozen=True, slots=True)
class Case:
    """A metric of a series, and what it is held against."""

    row: int  # of the series
    healthy: HealthyRange
    prediction: DeclaredPrediction
    delays: Delays


@dataclass(frozen=True, slots=True)
class WindowKind:
    """What cases have in common that are decided together."""

    metric: Metric
    width: int  # minutes
    maturity: int  # minutes after which labels are complete
    ignores_missing: bool
    demand: Demand

    @staticmethod
    def of(healthy: HealthyRange, prediction: DeclaredPrediction) -> WindowKind:
        return _kind(
            healthy.metric,
            healthy.window,
            prediction.attribution_window,
            prediction.ignores_missing,
            prediction.min_positives,
            prediction.min_label_coverage,
        )

    @property
    def step(self) -> int:
        return max(1, self.width // _STEPS)

    @property
    def needed(self) -> int:
        """Minutes before now that a verdict may look at."""
        return 2 * self.width + self.maturity + self.tolerance

    @property
    def tolerance(self) -> int:
        """Minutes that data may be late by, beyond the wait for labels of examples that are sent with them."""
        return DELIVERY // MINUTE


@lru_cache(maxsize=1024)
def _kind(
    metric: Metric,
    window: timedelta,
    attribution_window: timedelta,
    ignores_missing: bool,
    min_positives: int,
    min_label_coverage: float,
) -> WindowKind:
    """A fleet's thousands of metrics are of a few kinds."""
    maturity = -(-completion(attribution_window) // MINUTE)
    return WindowKind(metric, window // MINUTE, maturity, ignores_missing, Demand(min_positives, min_label_coverage))


# Delays are learned by the hour, and asked for by the minute.
@lru_cache(maxsize=1 << 14)
def label_lag(kind: WindowKind, delays: Delays) -> int:
    """Returns how long before now a window of even traffic has to end for enough of its labels to have come."""
    if not corrects(kind, delays):
        return kind.maturity
    return int(np.argmax(_coverage_by_lag(kind, delays) >= kind.demand.min_label_coverage))


def corrects(kind: WindowKind, delays: Delays) -> bool:
    """Says whether windows are judged while labels are to come: where their delay is known, or none count."""
    return kind.ignores_missing or delays.trusted


def _coverage_by_lag(kind: WindowKind, delays: Delays) -> Floats:
    """Returns the share of labels that has come, by how long before now a window ended, until all have."""
    ages = np.arange(kind.maturity + kind.width + 1, dtype=np.float64) + 0.5
    cumulated = np.concatenate(([0.0], np.cumsum(delays.shares(ages))))
    found: Floats = (cumulated[kind.width :] - cumulated[: -kind.width]) / kind.width
    return found


def shares_at(kind: WindowKind, delays: Delays, ages: Floats) -> Floats:
    """Returns which share of the labels has come at each age. Of examples that count with their label alone, all."""
    return np.ones(len(ages)) if kind.ignores_missing else delays.shares(ages)
