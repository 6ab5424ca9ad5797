"""Builders of rows, and the plainest way to sum them: an oracle that adds Python integers one row after the other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from modelfleetd.stability.domain import losses
from modelfleetd.stability.domain.columns import Examples
from modelfleetd.stability.domain.exact import SCALE, Floats, Integers
from modelfleetd.stability.domain.maturity import MINUTE_MICROS, micros
from modelfleetd.stability.domain.summary import Places, Statistics, summarise_examples
from modelfleetd.stability.domain.sums import Exposure, Positives, Sums

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """One example."""

    p: float
    y: int
    w: float = 1.0
    model: int = 0
    prediction: int = 0
    minute: int = 0


def examples(rows: Sequence[Row], *, weighted: bool = True) -> Examples:
    """Returns rows as columns; events lie in the hours before NOW."""
    start = micros(NOW) // MINUTE_MICROS - 120
    return Examples(
        row=np.arange(len(rows), dtype=np.int64),
        model=np.array([row.model for row in rows], dtype=np.uint8),
        prediction=np.array([row.prediction for row in rows], dtype=np.uint8),
        event=np.array([(start + row.minute) * MINUTE_MICROS for row in rows], dtype=np.int64),
        value=np.array([row.p for row in rows], dtype=np.float64),
        is_logit=False,
        weight=np.array([row.w for row in rows], dtype=np.float64) if weighted else None,
        label=np.array([row.y for row in rows], dtype=np.uint8),
    )


def totals(statistics: Statistics) -> dict[tuple[int, int, int], Sums]:
    """Returns the sums by model, prediction and minute."""
    exposures, positives = statistics.exposure, statistics.positives
    found: dict[tuple[int, int, int], Sums] = defaultdict(Sums)
    for index, key in enumerate(_keys(exposures)):
        found[key] += Sums(Exposure(int(exposures.counts[index]), *(c[index] for c in exposures.columns)))
    for index, key in enumerate(_keys(positives)):
        found[key] += Sums(positives=Positives(int(positives.counts[index]), *(c[index] for c in positives.columns)))
    return dict(found)


def bin_totals(statistics: Statistics) -> dict[tuple[int, int, int, int], tuple[int, ...]]:
    """Returns Σw, Σwp and Σwy by model, prediction, hour (of its first minute) and bin."""
    found: dict[tuple[int, int, int, int], tuple[int, ...]] = {}
    rows = statistics.bins
    keys = zip(*(column.tolist() for column in _columns(rows.places)), strict=True)
    for key, sums in zip(keys, zip(*rows.columns, strict=True), strict=True):
        found[key] = tuple(one + more for one, more in zip(found.get(key, (0, 0, 0)), sums, strict=True))
    return found


def total(rows: Sequence[Row], *, weighted: bool = True) -> Sums:
    """Returns the sums of all rows."""
    return _summed(examples(rows, weighted=weighted))


def total_of(p: Floats, y: Integers) -> Sums:
    """Returns the sums of examples of one minute without weights, of which there are too many for rows."""
    same = examples([Row(0.5, 0)], weighted=False)
    return _summed(
        replace(
            same,
            row=np.arange(len(p), dtype=np.int64),
            model=np.repeat(same.model, len(p)),
            prediction=np.repeat(same.prediction, len(p)),
            event=np.repeat(same.event, len(p)),
            value=p,
            label=y.astype(np.uint8),
        )
    )


def _summed(given: Examples) -> Sums:
    everything = Sums()
    for sums in totals(summarise_examples(given)).values():
        everything += sums
    return everything


def oracle(rows: Sequence[Row]) -> Sums:
    """Returns the same sums, row by row in Python integers."""
    exposure = dict.fromkeys((field.name for field in fields(Exposure)), 0)
    positives = dict.fromkeys((field.name for field in fields(Positives)), 0)
    for row in rows:
        value, w = np.array([row.p]), row.w
        l0 = float(losses.negative_losses(value, is_logit=False)[0])
        l1 = float(losses.positive_losses(value, is_logit=False)[0])
        w2 = w * w
        for name, addend in (
            ("w", w),
            ("w2", w2),
            ("wp", w * row.p),
            ("w2pq", w2 * (row.p * (1 - row.p))),
            ("wl", w * l0),
            ("w2l", w2 * l0),
            ("w2l2", w2 * (l0 * l0)),
        ):
            exposure[name] += scaled(addend)
        exposure["n"] += 1
        if row.y:
            positives["n"] += 1
            for name, more in (
                ("w", scaled(w)),
                ("w2", scaled(w2)),
                ("w2l1", scaled(w2 * l1)),
                ("wl", scaled(w * l1) - scaled(w * l0)),
                ("w2l", scaled(w2 * l1) - scaled(w2 * l0)),
                ("w2l2", scaled(w2 * (l1 * l1)) - scaled(w2 * (l0 * l0))),
            ):
                positives[name] += more
    return Sums(Exposure(**exposure), Positives(**positives))


def bin_oracle(rows: Sequence[Row]) -> dict[tuple[int, int, int, int], tuple[int, ...]]:
    """Returns the sums by hour and bin, likewise."""
    found: dict[tuple[int, int, int, int], tuple[int, ...]] = {}
    start = micros(NOW) // MINUTE_MICROS - 120
    for row in rows:
        p = min(max(row.p, losses.CLIP), 1 - losses.CLIP)
        log_odds = float((np.log(np.array([p])) - np.log1p(np.array([-p])))[0])
        number = min(31, max(0, math.floor((log_odds + 8) * 2)))
        key = (row.model, row.prediction, (start + row.minute) // 60 * 60, number)
        addends = (scaled(row.w), scaled(row.w * row.p), scaled(row.w) * row.y)
        found[key] = tuple(one + more for one, more in zip(found.get(key, (0, 0, 0)), addends, strict=True))
    return found


def scaled(value: float) -> int:
    """Returns the nearest multiple of 2^-40, halves to even, in units of it."""
    return round(math.ldexp(value, SCALE.bit_length() - 1))


def _columns(places: Places) -> tuple[Integers, ...]:
    return places.model, places.prediction, places.minute, places.age


def _keys(rows: Any) -> list[tuple[int, int, int]]:
    places = rows.places
    return list(zip(places.model.tolist(), places.prediction.tolist(), places.minute.tolist(), strict=True))
