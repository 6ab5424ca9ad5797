"""Sums that no order, batching or repetition can change: every addend becomes an integer before anything is added.

An addend x becomes round(x · 2^40), half to even. That is a function of the row alone, and integers add up exactly, so
the sum of a set of rows is one number whatever the way it was computed: the same bits in one batch or in a thousand, on
one replica or on three.

Range: up to 2^96 for one scaled addend (a weight of 10^6 squared, times a loss of 100 squared, is 2^93), and no limit
for sums. Resolution: 2^-40, about 9.1e-13; weights of 0.001 still leave Σw² six digits.
"""

from __future__ import annotations

from collections.abc import Sequence
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
# Adding this to a number rounds it to an integer, half to even, which the low bits of the sum then are.
_ROUNDER: Final = np.array(1.5 * (1 << 52))
_ROUNDER_BITS: Final = _ROUNDER.view(np.int64)
# Below this a block's scaled addends are rounded that way, and cannot overflow an int64 together.
NARROW: Final = float(1 << (50 - SCALE_BITS))
# Wider addends are cut in two here; both halves of a block's sum then fit.
_LIMB_BITS: Final = 48
_LIMB: Final = float(1 << _LIMB_BITS)
_HALF_BITS: Final = 31
_HALF_MASK: Final = (1 << _HALF_BITS) - 1
# Integers up to here add up exactly as floats.
_EXACT: Final = float(1 << 53)
_SCATTER_BITS: Final = 26
_SCATTER: Final = float(1 << _SCATTER_BITS)
# Addends up to here may be added up over so many blocks in 63 bits.
_SMALL: Final = 4.0
_MOST_BLOCKS: Final = 128


def columns(count: int) -> Floats:
    """Returns memory for columns of a block. Were they a power of two apart, the cache would hold few of them."""
    return np.empty((count, BLOCK + 72))[:, :BLOCK]


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Sums of columns by key: `counts[i]` rows have `keys[i]`, and column c of them sums to `columns[c][i]` · 2^-40."""

    keys: Integers
    counts: Integers
    columns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Runs:
    """Rows of a block that have the same key and stand together."""

    rows: int
    starts: npt.NDArray[np.intp]
    keys: Integers
    counts: Integers

    @classmethod
    def one(cls, rows: int, key: int) -> Runs:
        """Returns the run of rows that all have one key."""
        return cls(rows, _FIRST, np.array([key]), np.array([rows]))

    @classmethod
    def of(cls, keys: Integers) -> Runs:
        """Returns the runs of a block's keys, of which there is at least one."""
        changes = keys[1:] != keys[:-1]
        if not changes.any():
            return cls.one(len(keys), int(keys[0]))
        starts = np.concatenate((_FIRST, np.flatnonzero(changes) + 1))
        return cls(len(keys), starts, keys[starts], np.diff(starts, append=len(keys)))

    def merged(self, keys: Integers) -> Runs:
        """Returns the runs of wider keys, one for each of these."""
        first = np.concatenate((_FIRST, np.flatnonzero(keys[1:] != keys[:-1]) + 1))
        return Runs(self.rows, self.starts[first], keys[first], np.add.reduceat(self.counts, first))


_FIRST: Final = np.zeros(1, dtype=np.intp)


def in_runs(keys: Integers) -> npt.NDArray[np.intp] | None:
    """Returns an order that brings equal keys together; None where they are together well enough already."""
    changes = int(np.count_nonzero(keys[1:] != keys[:-1]))
    # Summing costs a little per run of equal keys; sorting costs as much as a run for about 16 rows.
    return None if changes * 16 <= len(keys) else np.argsort(keys)


class GroupSummer:
    """Adds up columns by key, block after block. The caller fills `scratch` and calls `add`."""

    def __init__(self, count: int) -> None:
        self.scratch: Floats = columns(count)
        self._scaled: Integers = np.empty((count, BLOCK), dtype=np.int64)
        self._sums = _Sums(count)

    def add(self, runs: Runs, bound: float) -> None:
        """Adds the first rows of `scratch`, which hold addends times 2^40 and are overwritten.

        Args:
            runs: of the rows.
            bound: none of the addends is larger than this, and none is negative.
        """
        values, scaled = self.scratch[:, : runs.rows], self._scaled[:, : runs.rows]
        if bound < NARROW:
            np.add(values, _ROUNDER, out=values)
            low = _run_sums(values.view(np.int64), runs.starts)
            # Wraps around and back.
            low -= runs.counts * _ROUNDER_BITS
            self._sums.append(runs.keys, runs.counts, low)
            return
        np.rint(values, out=values)
        # Exact in floating point: these are integers of at most 53 significant bits, cut at a power of two.
        upper = np.floor(values * (1.0 / _LIMB))
        np.subtract(values, upper * _LIMB, out=values)
        np.copyto(scaled, values, casting="unsafe")
        low = _run_sums(scaled, runs.starts)
        np.copyto(scaled, upper, casting="unsafe")
        self._sums.append(runs.keys, runs.counts, low, _run_sums(scaled, runs.starts))

    def result(self) -> GroupSums:
        """Returns the sums, in the order of the keys."""
        return self._sums.result()


class ScatterSummer:
    """Adds up columns by key and bin, block after block, where rows of one bin do not stand together."""

    def __init__(self, columns: int, bin_bits: int) -> None:
        self._columns = columns
        self._bin_bits = bin_bits
        self._scratch: Floats = np.empty(BLOCK)
        self._sums = _Sums(columns)
        # Most blocks have one key, that of the block before: its cells are added up in place, as often as they can be.
        self._key = -1
        self._cells: Integers = np.zeros((1 + columns, 1 << bin_bits), dtype=np.int64)
        self._blocks = 0

    def add(self, runs: Runs, bins: Integers, columns: Sequence[Floats], bound: float) -> None:
        """Adds rows.

        Args:
            runs: of the rows.
            bins: of each row, below 2^`bin_bits`; overwritten.
            columns: of the rows, times 2^40.
            bound: none of the addends is larger than this, and none is negative.
        """
        if len(runs.keys) == 1 and bound <= _SMALL:
            self._add_cells(int(runs.keys[0]), bins, columns, bound)
            return
        cells = len(runs.keys) << self._bin_bits
        bins += np.repeat(np.arange(0, cells, 1 << self._bin_bits), runs.counts)
        counts = np.bincount(bins, minlength=cells)
        found = np.flatnonzero(counts)
        low = np.empty((len(columns), len(found)), dtype=np.int64)
        high = np.zeros_like(low)
        values = self._scratch[: runs.rows]
        for place, column in enumerate(columns):
            np.rint(column, out=values)
            if bound >= NARROW:
                upper = np.floor(values * (1.0 / _LIMB))
                np.subtract(values, upper * _LIMB, out=values)
                high[place] = np.bincount(bins, upper, cells)[found]
            low[place] = _cell_sums(bins, values, cells, min(bound, _LIMB / SCALE))[found]
        keys = (runs.keys[found >> self._bin_bits] << self._bin_bits) | (found & ((1 << self._bin_bits) - 1))
        self._sums.append(keys, counts[found], low, high)

    def result(self) -> GroupSums:
        """Returns the sums, in the order of the keys."""
        self._flush()
        return self._sums.result()

    def _add_cells(self, key: int, bins: Integers, columns: Sequence[Floats], bound: float) -> None:
        if key != self._key or self._blocks == _MOST_BLOCKS:
            self._flush()
            self._key = key
        cells, values = 1 << self._bin_bits, self._scratch[: len(bins)]
        self._cells[0] += np.bincount(bins, minlength=cells)
        for place, column in enumerate(columns, start=1):
            np.rint(column, out=values)
            self._cells[place] += _cell_sums(bins, values, cells, bound)
        self._blocks += 1

    def _flush(self) -> None:
        if self._blocks:
            found = np.flatnonzero(self._cells[0])
            keys = (self._key << self._bin_bits) | found
            self._sums.append(keys, self._cells[0, found], self._cells[1:, found])
            self._cells[:] = 0
            self._blocks = 0


class _Sums:
    """Sums of blocks: high · 2^48 + low."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._keys: list[Integers] = []
        self._counts: list[Integers] = []
        self._high: list[Integers | None] = []
        self._low: list[Integers] = []

    def append(self, keys: Integers, counts: Integers, low: Integers, high: Integers | None = None) -> None:
        self._keys.append(keys)
        self._counts.append(counts)
        self._low.append(low)
        self._high.append(high)

    def result(self) -> GroupSums:
        if not self._keys:
            none = np.empty(0, dtype=np.int64)
            return GroupSums(none, none, tuple(() for _ in range(self._columns)))
        keys = np.concatenate(self._keys)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        counts = np.add.reduceat(np.concatenate(self._counts)[order], starts)
        low = np.concatenate(self._low, axis=1)[:, order]
        highs = [np.zeros_like(low) if high is None else high for low, high in zip(self._low, self._high, strict=True)]
        high = np.add.reduceat(np.concatenate(highs, axis=1)[:, order], starts, axis=1)
        middle = np.add.reduceat(low >> _HALF_BITS, starts, axis=1)
        low = np.add.reduceat(low & _HALF_MASK, starts, axis=1)
        columns = tuple(
            tuple((h << _LIMB_BITS) + (m << _HALF_BITS) + rest for h, m, rest in zip(*column, strict=True))
            for column in zip(high.tolist(), middle.tolist(), low.tolist(), strict=True)
        )
        return GroupSums(keys[starts], counts, columns)


def _cell_sums(bins: Integers, values: Floats, cells: int, bound: float) -> Integers:
    """Returns the sums by bin of integers below 2^48, and of at most `bound` · 2^40; floats add them up exactly."""
    if bound * SCALE * len(values) <= _EXACT:
        return np.bincount(bins, values, cells).astype(np.int64)
    upper = np.floor(values * (1.0 / _SCATTER))
    lower = np.bincount(bins, values - upper * _SCATTER, cells).astype(np.int64)
    sums: Integers = lower + (np.bincount(bins, upper, cells).astype(np.int64) << _SCATTER_BITS)
    return sums


def _run_sums(scaled: Integers, starts: npt.NDArray[np.intp]) -> Integers:
    if len(starts) == 1:
        # Several times as fast as reduceat over a single run.
        total: Integers = np.add.reduce(scaled, axis=1, keepdims=True)
        return total
    sums: Integers = np.add.reduceat(scaled, starts, axis=1)
    return sums
