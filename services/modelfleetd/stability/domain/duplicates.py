"""Which rows of a batch name the same example."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.columns import Keys
from modelfleetd.stability.domain.exact import Integers

# Odd 64-bit numbers without a pattern: any will do.
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


def repeated(series: Integers, keys: Keys, preference: Integers) -> npt.NDArray[np.bool_]:
    """Marks rows whose example another row of the batch stands for: the one of highest preference, then the first."""
    rows = len(keys)
    none = np.zeros(rows, dtype=np.bool_)
    if rows < 2:
        return none
    parts = (keys.high.view(np.uint64), keys.low.view(np.uint64), series.view(np.uint64))
    mixed = parts[0] * _MIX[0] ^ parts[1] * _MIX[1] ^ parts[2] * _MIX[2]
    ordered = np.sort(mixed)
    if not (ordered[1:] == ordered[:-1]).any():
        # Sorting one column is all that a batch without duplicates costs.
        return none
    order = np.lexsort((keys.row, -preference, series, keys.low, keys.high))
    same = np.ones(rows - 1, dtype=np.bool_)
    for column in (series, keys.low, keys.high):
        same &= column[order[1:]] == column[order[:-1]]
    none[order[1:][same]] = True
    return none
