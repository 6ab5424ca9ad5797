"""Sets of rows of an index: integers with a bit for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# A bit for each row.
Mask: TypeAlias = int
Rows: TypeAlias = NDArray[np.int32]
_FIRST_CHUNK = 1024


def mask_of(rows: Sequence[int] | Rows, size: int) -> Mask:
    """Returns the mask of some of `size` rows."""
    bits = np.zeros(size, np.bool_)
    bits[np.asarray(rows, np.int32)] = True
    return mask_of_bits(bits)


def mask_of_bits(bits: NDArray[np.bool_]) -> Mask:
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def bits_of(mask: Mask, size: int) -> NDArray[np.bool_]:
    if not mask:
        return np.zeros(size, np.bool_)
    packed = np.frombuffer(mask.to_bytes(-(-size // 8), "little"), np.uint8)
    return np.unpackbits(packed, count=size, bitorder="little").view(np.bool_)


def first_of(rows: Rows, mask: Mask, size: int, limit: int) -> list[int]:
    """Returns the first rows that are in a mask. Looks at no more of them than that takes."""
    found: list[int] = []
    if not mask:
        return found
    bits = bits_of(mask, size)
    begin, chunk = 0, _FIRST_CHUNK
    while begin < len(rows) and len(found) < limit:
        looked_at = rows[begin : begin + chunk]
        found.extend(looked_at[bits[looked_at]].tolist())
        begin, chunk = begin + chunk, 2 * chunk
    return found[:limit]


def rows_of(mask: Mask, size: int) -> list[int]:
    found: list[int] = np.flatnonzero(bits_of(mask, size)).tolist()
    return found
