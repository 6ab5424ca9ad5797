"""Simulated histories of one series: sums by five minutes, drawn from what they are distributed like."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from modelfleetd.stability.domain.exact import Floats
from modelfleetd.stability.domain.history import COLUMNS, STEP, History

# A Monday at midnight.
START = 29_000_160 - 29_000_160 % 10_080 + 4 * 1440


def simulated(
    *,
    seed: int,
    positives: float = 20.0,
    days: int = 28,
    base_rate: float = 0.05,
    daily: float = 0.6,
    wander: float = 0.0,
    memory: float = 360.0,
    season: float = 0.0,
    level: float = 1.0,
    fault: Floats | float = 1.0,
) -> History:
    """Returns a history of which all labels have come.

    Args:
        seed: of what is drawn.
        positives: expected a minute, on average over the day as logarithms go.
        days: how long.
        base_rate: positives an example.
        daily: amplitude of the volume over the day, as a logarithm.
        wander: standard deviation of the logarithm of calibration, beyond sampling.
        memory: minutes after which a wander has forgotten all but 1/e.
        season: amplitude of the logarithm of calibration over the day.
        level: calibration.
        fault: what calibration is multiplied with, by steps.
    """
    rng = np.random.default_rng(seed)
    steps = days * 1440 // STEP
    hour = np.arange(steps) * STEP / 60.0 % 24.0
    drawn = rng.poisson(positives / base_rate * STEP * np.exp(daily * np.sin((hour - 6.0) * np.pi / 12.0)))
    kept = np.exp(-STEP / memory)
    shocks = rng.standard_normal(steps) * np.sqrt(1.0 - kept**2) * wander
    walk = lfilter([1.0], [1.0, -kept], shocks)
    calibration = level * fault * np.exp(walk + season * np.sin(hour * np.pi / 12.0))
    examples: Floats = drawn.astype(np.float64)
    expected: Floats = examples * np.float64(base_rate)
    return of_sums(examples, expected, rng.poisson(expected / calibration).astype(np.float64))


def of_sums(examples: Floats, expected: Floats, observed: Floats) -> History:
    """Returns a history in which all examples have a weight of 1; without losses."""
    rates = np.divide(expected, examples, out=np.zeros(len(examples)), where=examples > 0)
    known = {
        "examples": examples,
        "weight": examples,
        "weight_squares": examples,
        "expected": expected,
        "expected_variance": expected * (1.0 - rates),
        "observed": observed,
        "observed_squares": observed,
        "seen": examples,
    }
    return History(START, STEP, np.stack([known.get(name, np.zeros(len(examples))) for name in COLUMNS]))
