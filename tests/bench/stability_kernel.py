"""From rows to statistics: exposure, positives and bins of a million examples, on one core.

Beside it the plainest numpy that yields calibration and NE of the same rows and nothing else: no sums by minute, no
variances, no bins, and other bits for another order. Where torcheval is installed its metrics stand beside it, too.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from modelfleetd.stability.domain.columns import Examples
from modelfleetd.stability.domain.estimates import calibration, normalized_entropy
from modelfleetd.stability.domain.maturity import MINUTE_MICROS
from modelfleetd.stability.domain.summary import Statistics, summarise_examples
from modelfleetd.stability.domain.sums import Exposure, Positives, Sums
from tests.bench.figures import Figure

NAMES = ("stability.kernel_examples_per_second",)

_ROWS = 1_000_000
_MINUTES = 10
_ROUNDS = 15


async def run() -> list[Figure]:
    """Measures the time of the core, in turn, so that whatever else the machine does meets all of them."""
    rows = _examples()
    others: dict[str, Callable[[Examples], tuple[float, float]]] = {"plain numpy": _plain}
    if importlib.util.find_spec("torcheval") is not None:
        others["torcheval"] = _torcheval
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(_ROUNDS):
        ours.append(_seconds(lambda: summarise_examples(rows)))
        for name, other in others.items():
            theirs[name].append(_seconds(functools.partial(other, rows)))
    found = _metrics(summarise_examples(rows))
    for name, other in others.items():
        np.testing.assert_allclose(found, other(rows), rtol=1e-6, err_msg=name)
    rate = _ROWS / statistics.median(ours)
    beside = ", ".join(
        f"{name} {_ROWS / statistics.median(times):,.0f} examples/s "
        f"(ratio {statistics.median(other / our for our, other in zip(ours, times, strict=True)):.2f})"
        for name, times in theirs.items()
    )
    return [
        Figure(
            name="stability.kernel_examples_per_second",
            value=rate,
            unit="examples/s",
            yardstick=f"with bins, one core, {_ROWS:,} scores over {_MINUTES} min; calibration and NE alone: {beside}",
            target=20e6,
            better="higher",
        )
    ]


def _examples() -> Examples:
    rng = np.random.default_rng(1)
    score = rng.beta(0.5, 20, _ROWS)
    nothing = np.zeros(_ROWS, dtype=np.uint8)
    return Examples(
        row=np.arange(_ROWS),
        model=nothing,
        prediction=nothing,
        event=np.sort(rng.integers(0, _MINUTES * MINUTE_MICROS, _ROWS)) + 29_000_000 * MINUTE_MICROS,
        value=score,
        is_logit=False,
        weight=None,
        label=(rng.random(_ROWS) < score).astype(np.uint8),
    )


def _metrics(found: Statistics) -> tuple[float, float]:
    exposures = zip(found.exposure.counts.tolist(), *found.exposure.columns, strict=True)
    positives = zip(found.positives.counts.tolist(), *found.positives.columns, strict=True)
    sums = Sums(
        sum((Exposure(*row) for row in exposures), Exposure()), sum((Positives(*row) for row in positives), Positives())
    )
    return calibration(sums, 0.99).value, normalized_entropy(sums, 0.99).value


def _plain(rows: Examples) -> tuple[float, float]:
    p, y = rows.value, rows.label.astype(np.float64)
    clipped = np.clip(p, 1e-12, 1 - 1e-12)
    loss = -(y * np.log(clipped) + (1 - y) * np.log1p(-clipped)).mean()
    rate = y.mean()
    return float(p.sum() / y.sum()), float(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def _torcheval(rows: Examples) -> tuple[float, float]:
    torch: Any = importlib.import_module("torch")
    metrics: Any = importlib.import_module("torcheval.metrics.functional")
    torch.set_num_threads(1)
    score, label = torch.from_numpy(rows.value), torch.from_numpy(rows.label.astype(np.float64))
    # torcheval's calibration is predicted over observed as well.
    entropy = metrics.binary_normalized_entropy(score, label)
    return float(score.sum() / label.sum()), float(entropy)


def _seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start
