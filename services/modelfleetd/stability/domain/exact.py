"""Sums that no order, batching or repetition can change: every addend becomes an integer before anything is added.

An addend x becomes round(x · 2^40), half to even. That is a function of the row alone, and integers add up exactly, so
the sum of a set of rows is one number whatever the way it was computed: the same bits in one batch or in a thousand, on
one replica or on three.

Range: up to 2^96 for one scaled addend (a weight of 10^6 squared, times a loss of 100 squared, is 2^93), and no limit
for sums. Resolution: 2^-40, about 9.1e-13; weights of 0.001 still leave Σw² six digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

SCALE_BITS: Final = 40
SCALE: Final = 1 << SCALE_BITS

# Rows that are worked on at once: their columns stay in the cache, and their sums in 63 bits.
BLOCK: Final = 8192
# Below this a sum of a block of scaled addends cannot overflow an int64.
_NARROW: Final = float(1 << 49)
# Wider addends are cut in two here; both halves of a block's sum then fit.
_LIMB_BITS: Final = 48
_LIMB: Final = float(1 << _LIMB_BITS)
_HALF_BITS: Final = 31
_HALF_MASK: Final = (1 << _HALF_BITS) - 1


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Sums of columns by key: `counts[i]` rows have `keys[i]`, and column c of them sums to `columns[c][i]` · 2^-40."""

    keys: Integers
    counts: Integers
    columns: tuple[tuple[int, ...], ...]


def in_runs(keys: Integers) -> npt.NDArray[np.intp] | None:
    """Returns an order that brings equal keys together; None where they are together well enough already."""
    changes = int(np.count_nonzero(keys[1:] != keys[:-1]))
    # Summing costs a little per run of equal keys; sorting costs as much as a run for about 16 rows.
    return None if changes * 16 <= len(keys) else np.argsort(keys)


class GroupSummer:
    """Adds up columns by key, block after block. The caller fills `scratch` and calls `add`."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self.scratch: Floats = np.empty((columns, BLOCK))
        self._scaled: Integers = np.empty((columns, BLOCK), dtype=np.int64)
        self._keys: list[Integers] = []
        self._counts: list[Integers] = []
        self._high: list[Integers] = []
        self._low: list[Integers] = []

    def add(self, keys: Integers) -> None:
        """Adds the first `len(keys)` columns of `scratch`, which is overwritten. None of them is negative."""
        rows = len(keys)
        if rows == 0:
            return
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        values, scaled = self.scratch[:, :rows], self._scaled[:, :rows]
        np.multiply(values, float(SCALE), out=values)
        np.rint(values, out=values)
        self._keys.append(keys[starts])
        self._counts.append(np.diff(starts, append=rows))
        if values.max() < _NARROW:
            np.copyto(scaled, values, casting="unsafe")
            low = _run_sums(scaled, starts)
            self._low.append(low)
            self._high.append(np.zeros_like(low))
            return
        # Exact in floating point: these are integers of at most 53 significant bits, cut at a power of two.
        upper = np.floor(values * (1.0 / _LIMB))
        np.subtract(values, upper * _LIMB, out=values)
        np.copyto(scaled, values, casting="unsafe")
        self._low.append(_run_sums(scaled, starts))
        np.copyto(scaled, upper, casting="unsafe")
        self._high.append(_run_sums(scaled, starts))

    def result(self) -> GroupSums:
        """Returns the sums, in the order of the keys."""
        if not self._keys:
            none = np.empty(0, dtype=np.int64)
            return GroupSums(none, none, tuple(() for _ in range(self._columns)))
        keys = np.concatenate(self._keys)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        counts = np.add.reduceat(np.concatenate(self._counts)[order], starts)
        low = np.concatenate(self._low, axis=1)[:, order]
        high = np.add.reduceat(np.concatenate(self._high, axis=1)[:, order], starts, axis=1)
        middle = np.add.reduceat(low >> _HALF_BITS, starts, axis=1)
        low = np.add.reduceat(low & _HALF_MASK, starts, axis=1)
        columns = tuple(
            tuple((h << _LIMB_BITS) + (m << _HALF_BITS) + rest for h, m, rest in zip(*column, strict=True))
            for column in zip(high.tolist(), middle.tolist(), low.tolist(), strict=True)
        )
        return GroupSums(keys[starts], counts, columns)


def _run_sums(scaled: Integers, starts: npt.NDArray[np.intp]) -> Integers:
    if len(starts) == 1:
        # Several times as fast as reduceat over a single run.
        total: Integers = scaled.sum(axis=1, keepdims=True)
        return total
    sums: Integers = np.add.reduceat(scaled, starts, axis=1)
    return sums
