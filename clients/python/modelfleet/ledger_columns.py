"""Looks at many revisions at once, for modelfleet.ledger: whether their headers say what they are indexed under.

Columns of numpy instead of a million parsed messages. What is not written as the registry writes it is told apart from
what fits, not judged: the caller looks at it one by one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_NAME = b"revisions/"
_TENS = 10 ** np.arange(18, dtype=np.int64)
# Tags and lengths, name with up to 18 digits, number, time.
_WIDTH = 2 + len(_NAME) + 18 + 1 + 10 + 2 + 1 + 10 + 1 + 5


def big_endian(data: bytes, size: int) -> Ints:
    """Returns the numbers in a column, `size` bytes each."""
    return np.frombuffer(data, dtype=f">i{size}").astype(np.int64)


def lengths_at(data: bytes, offsets: Ints) -> Ints:
    """Returns the lengths that stand in 8 bytes at some offsets; -1 where there are none, or ones that nothing has."""
    fits = offsets <= len(data) - 8
    if not len(data) >= 8:
        return np.full(len(offsets), -1, dtype=np.int64)
    found = _cut(data, np.where(fits, offsets, 0), 8).view(">i8")[:, 0].astype(np.int64)
    return np.where(fits & (found >= 0) & (found <= len(data)), found, -1)


def _cut(data: bytes, offsets: Ints, width: int) -> npt.NDArray[np.uint8]:
    """Returns as many bytes from each offset on, a row each."""
    return np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, dtype=np.uint8), width)[offsets]


def headers_fit(data: bytes, offsets: Ints, numbers: Ints, times_us: Ints) -> bool:
    """Says whether serialised Revisions begin at some offsets, and state these numbers and times."""
    if (numbers <= 0).any() or (times_us < 0).any():
        return False
    expected = _Rows(len(numbers))
    widths = np.searchsorted(_TENS, numbers, side="right")
    begin = 2 + len(_NAME)
    expected.bytes[:, :begin] = np.frombuffer(b"\x0a\x00" + _NAME, dtype=np.uint8)
    expected.bytes[:, 1] = len(_NAME) + widths
    expected.ends += begin
    expected.put_digits(numbers, widths)
    expected.put(0x10)
    expected.put_varint(numbers)
    seconds, microseconds = np.divmod(times_us, 1_000_000)
    time = _Rows(len(numbers))
    time.put(0x08)
    time.put_varint(seconds)
    time.put(0x10, microseconds > 0)
    time.put_varint(microseconds * 1000, microseconds > 0)
    expected.put(0x1A)
    expected.put(time.ends)
    expected.put_rows(time)
    return expected.stand_at(data, offsets)


class _Rows:
    """Bytes that are written into many rows at once, each as long as it becomes."""

    def __init__(self, count: int) -> None:
        self.bytes = np.zeros((count, _WIDTH), dtype=np.uint8)
        self.ends = np.zeros(count, dtype=np.int64)
        self._rows = np.arange(count)

    def put(self, value: int | Ints, where: npt.NDArray[np.bool_] | None = None) -> None:
        """Writes a byte into all rows, or into some."""
        rows = self._rows if where is None else self._rows[where]
        self.bytes[rows, self.ends[rows]] = value
        self.ends[rows] += 1

    def put_varint(self, values: Ints, where: npt.NDArray[np.bool_] | None = None) -> None:
        """Writes numbers as protobuf does: seven bits a byte, the least significant ones first."""
        open_ = np.ones(len(values), dtype=bool) if where is None else where.copy()
        rest = values.copy()
        while open_.any():
            follows = rest > 0x7F
            self.put((rest & 0x7F | follows.astype(np.int64) << 7)[open_], open_)
            open_ &= follows
            rest >>= 7

    def put_digits(self, values: Ints, widths: Ints) -> None:
        """Writes numbers in decimal digits."""
        for place in range(int(widths.max(initial=0)) - 1, -1, -1):
            where = widths > place
            self.put((values // _TENS[place] % 10 + ord("0"))[where], where)

    def put_rows(self, other: _Rows) -> None:
        """Appends other rows, which have no bytes beyond their ends."""
        width = int(other.ends.max(initial=0))
        self.bytes[self._rows[:, None], self.ends[:, None] + np.arange(width)] |= other.bytes[:, :width]
        self.ends += other.ends

    def stand_at(self, data: bytes, offsets: Ints) -> bool:
        """Says whether each row is what the data has at its offset."""
        width = int(self.ends.max(initial=0))
        if (offsets + self.ends > len(data)).any():
            return False
        # The last rows may be cut off by the end of the data.
        padded = data if (offsets + width <= len(data)).all() else data + bytes(width)
        is_beyond = np.arange(width) >= self.ends[:, None]
        return bool(((_cut(padded, offsets, width) == self.bytes[:, :width]) | is_beyond).all())
