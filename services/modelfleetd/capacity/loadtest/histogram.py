"""Latencies as an HDR histogram: a relative error of at most 0.1 %, merged by addition, the same size for ever.

It counts like Gil Tene's HdrHistogram (https://hdrhistogram.org) with three significant digits from 1 µs to two hours,
and is stored in its second format, compressed: every HDR tool reads it. Counting works on arrays.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

LOWEST_US = 1
HIGHEST_US = 7_200_000_000
DIGITS = 3
# Latencies share a bucket of 2,048 equal steps with others of their magnitude; the next bucket's steps are twice as
# wide, and its lower half is the bucket before.
_STEP_BITS = 11
_HALF_BITS = _STEP_BITS - 1
_HALF = 1 << _HALF_BITS

_COOKIE = 0x1C849303 | 0x10
_COMPRESSED_COOKIE = 0x1C849304 | 0x10
_HEADER = struct.Struct(">iiiiqqd")
_COMPRESSED_HEADER = struct.Struct(">ii")


class Histogram:
    """Counts of latencies."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_SIZE, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def record(self, latencies_ms: NDArray[np.float64]) -> None:
        """Counts latencies in milliseconds; what lies outside the range counts as its nearest end."""
        self.counts += np.bincount(_places(latencies_ms), minlength=_SIZE)

    def merge(self, other: Histogram) -> None:
        """Adds what another one has counted."""
        self.counts += other.counts

    def percentile_ms(self, percentile: float) -> float:
        """Returns the smallest latency that so many percent do not exceed, in milliseconds; 0 of none."""
        total = len(self)
        if not total:
            return 0.0
        rank = min(total, max(1, int(np.ceil(total * percentile / 100 - 1e-9))))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return _highest_us(place) / 1000

    def share_above(self, latency_ms: float) -> float:
        """Returns the share of latencies that are longer, to the precision of the histogram; 0 of none."""
        place = int(_places(np.array([latency_ms]))[0])
        return float(self.counts[place + 1 :].sum()) / max(1, len(self))

    def encode(self) -> bytes:
        """Returns it in HdrHistogram's format V2, compressed."""
        used = np.flatnonzero(self.counts)
        counts = self.counts[: used[-1] + 1] if used.size else self.counts[:0]
        payload = b"".join(_words(counts))
        plain = _HEADER.pack(_COOKIE, len(payload), 0, DIGITS, LOWEST_US, HIGHEST_US, 1.0) + payload
        packed = zlib.compress(plain)
        return _COMPRESSED_HEADER.pack(_COMPRESSED_COOKIE, len(packed)) + packed

    @classmethod
    def decode(cls, encoded: bytes) -> Histogram:
        """Reads what `encode` returned.

        Raises:
            ValueError: it is none of ours.
        """
        try:
            cookie, length = _COMPRESSED_HEADER.unpack_from(encoded)
            if cookie != _COMPRESSED_COOKIE:
                raise ValueError("not a compressed HDR histogram, V2")
            plain = zlib.decompress(encoded[_COMPRESSED_HEADER.size :][:length])
            _, length, _, digits, lowest, highest, _ = _HEADER.unpack_from(plain)
        except (struct.error, zlib.error) as error:
            raise ValueError(f"not an HDR histogram: {error}") from error
        if (digits, lowest, highest) != (DIGITS, LOWEST_US, HIGHEST_US):
            raise ValueError(f"an HDR histogram of another kind: {digits} digits, {lowest} to {highest}")
        made, place = cls(), 0
        for word in _read_words(plain[_HEADER.size :][:length]):
            if word < 0:
                place -= word
            elif place < _SIZE:
                made.counts[place] = word
                place += 1
            else:
                raise ValueError("an HDR histogram that is too long")
        return made


def _places(latencies_ms: NDArray[np.float64]) -> NDArray[np.int64]:
    us = np.clip(np.rint(latencies_ms * 1000), LOWEST_US, HIGHEST_US)
    # The exponent of a float is the number of bits of the integer.
    bucket = np.maximum(np.frexp(us)[1].astype(np.int64) - _STEP_BITS, 0)
    step = us.astype(np.int64) >> bucket
    places: NDArray[np.int64] = (bucket << _HALF_BITS) + step
    return places


def _highest_us(place: int) -> int:
    """Returns the highest latency that is counted in a place, in µs."""
    bucket = max(0, (place >> _HALF_BITS) - 1)
    step = place - (bucket << _HALF_BITS)
    return ((step + 1) << bucket) - 1


def _words(counts: NDArray[np.int64]) -> Iterator[bytes]:
    """Returns counts as zig-zag LEB128, and a run of zeros as one negative number."""
    before = -1
    for place in np.flatnonzero(counts).tolist():
        if zeros := place - before - 1:
            yield _leb128(2 * zeros - 1)
        yield _leb128(2 * int(counts[place]))
        before = place


def _leb128(value: int) -> bytes:
    # Eight bits of the ninth byte count: V2 never takes more than nine.
    made = bytearray()
    while value > 0x7F and len(made) < 8:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value & 0xFF)
    return bytes(made)


def _read_words(payload: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in payload:
        if shift == 56:
            value |= byte << shift
        else:
            value |= (byte & 0x7F) << shift
            if byte & 0x80:
                shift += 7
                continue
        yield (value >> 1) ^ -(value & 1)
        value = shift = 0
    if shift:
        raise ValueError("an HDR histogram that ends in the middle of a number")


_SIZE = int(_places(np.array([HIGHEST_US / 1000]))[0]) + 1
