"""Metrics of many windows at once are those of each window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.stability.domain.arrays import Estimates, Metrics, Windows
from modelfleetd.stability.domain.estimates import Estimate, base_rate, calibration, normalized_entropy
from modelfleetd.stability.domain.sums import Sums
from tests.domain.stability_rows import Row, total

row = st.builds(
    Row,
    p=st.floats(0, 1),
    y=st.sampled_from([0, 0, 0, 1]),
    w=st.one_of(st.just(1.0), st.just(0.0), st.floats(0.01, 100)),
)
window = st.one_of(
    st.lists(row, max_size=30).map(total),
    # Rare positives.
    st.integers(0, 3).map(lambda count: total([Row(0.02, 1)] * count + [Row(0.01, 0)] * 60)),
)


def windows_of(sums: Sequence[Sums]) -> Windows:
    columns = {name: np.array([float(getattr(each, name)) for each in sums]) for name in _PROPERTIES}
    return Windows(positives=np.array([float(each.positives.n) for each in sums]), **columns)


_PROPERTIES = (
    "examples", "weight", "weight_squares", "expected", "expected_variance", "loss", "loss_by_squares",
    "loss_squares", "observed", "observed_squares", "positive_loss",
)  # fmt: skip


@given(st.lists(window, min_size=1, max_size=6), st.sampled_from([0.9, 0.99]))
@settings(max_examples=60)
def test_columns_hold_what_each_window_has_alone(sums: list[Sums], confidence: float) -> None:
    metrics = Metrics(windows_of(sums), confidence)
    pairs: tuple[tuple[Estimates, Callable[[Sums, float], Estimate]], ...] = (
        (metrics.calibrations(), calibration),
        (metrics.base_rates(), base_rate),
        (metrics.entropies(), normalized_entropy),
    )
    for found, alone in pairs:
        for place, each in enumerate(sums):
            expected = alone(each, confidence)
            got = found.at(place)
            assert got.state is expected.state
            for one, other in zip(
                (got.value, got.low, got.high), (expected.value, expected.low, expected.high), strict=True
            ):
                assert one == pytest.approx(other, rel=1e-9, abs=1e-9) or (math.isinf(one) and math.isinf(other))
