"""Statistics that producers have made: decoded, checked, merged by the place that they belong to.

A sum is an integer of 128 bits. What no examples can have, such as (Σw)² above n · Σw², is refused row by row: whoever
computes sums wrongly shall learn it before they are in the tables, from which nothing is ever taken away again. No
Python loop runs over rows but the last step, from 32-bit limbs to Python's integers, one for each sum that is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.stability.domain.bins import BINS
from modelfleetd.stability.domain.columns import MAX_WEIGHT, Reason, Refusals
from modelfleetd.stability.domain.exact import SCALE, Floats, Integers
from modelfleetd.stability.domain.losses import MAX_LOGIT
from modelfleetd.stability.domain.maturity import FUTURE, MINUTE_MICROS, PAST, age_buckets, micros
from modelfleetd.stability.domain.summary import BinRows, ExposureRows, Places, PositiveRows, Statistics

Mask: TypeAlias = npt.NDArray[np.bool_]
# Places, numbers of examples, and sums column by column.
Merged: TypeAlias = tuple[Places, Integers, tuple[tuple[int, ...], ...]]

_SUM_BYTES: Final = 16
_MINUTES_OF_HOUR: Final = 60
# More examples in one minute than anybody has; beyond it floats could not tell what is possible.
_MOST_EXAMPLES: Final = 1 << 40
# What rounding in float64 may have done to an addend, by far.
_ROUNDING: Final = 1e-9

EXPOSURE: Final = (
    "weight",
    "weight_squares",
    "expected",
    "expected_variance",
    "loss",
    "loss_by_squares",
    "loss_squares",
)
POSITIVES: Final = (
    "weight",
    "weight_squares",
    "positive_loss",
    "loss_change",
    "loss_by_squares_change",
    "loss_squares_change",
)
OF_BINS: Final = ("weight", "expected", "observed")


@dataclass(frozen=True, slots=True)
class RawStatistics:
    """A batch as it arrived: of each kind the columns by name, none where it was not sent."""

    models: int
    windows: tuple[timedelta, ...]  # the attribution window of each prediction of the dictionary
    exposure: Mapping[str, bytes]
    positives: Mapping[str, bytes]
    bins: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class GivenStatistics:
    """What is added to the tables, by whether the labels were known; and of each row that is taken where it belongs."""

    counted: Mapping[bool, Statistics]
    model: Integers
    prediction: Integers
    minute: Integers


def decode_statistics(batch: RawStatistics, now: datetime) -> tuple[GivenStatistics, Refusals]:
    """Decodes and checks statistics. Rows are numbered through: exposure, then positives, then bins.

    Raises:
        InvalidFields: columns are missing, of different lengths, or there is no row at all.
    """
    violations: list[FieldViolation] = []
    exposure = _Table(batch, "exposure", EXPOSURE, 0, violations)
    positives = _Table(batch, "positives", POSITIVES, exposure.rows, violations)
    bins = _Table(batch, "bins", OF_BINS, exposure.rows + positives.rows, violations)
    _read_exposure(exposure, now)
    _read_positives(positives, now)
    _read_bins(bins, now)
    tables = (exposure, positives, bins)
    if not any(table.sent for table in tables):
        violations.append(FieldViolation("exposure", "must have rows, or positives or bins must"))
    if violations:
        raise InvalidFields(violations)
    _check_exposure(exposure)
    _check_positives(positives)
    _check_bins(bins)
    refusals = exposure.refusals(now) + positives.refusals(now) + bins.refusals(now)
    counted = {
        known: Statistics(
            ExposureRows(*exposure.merged(exposure.known == known)),
            PositiveRows(*positives.merged(positives.known == known)),
            BinRows.none(),
        )
        for known in (False, True)
    }
    places, _, sums = bins.merged(bins.known)
    counted[True] += Statistics(ExposureRows.none(), PositiveRows.none(), BinRows(places, sums))
    model, prediction, minute = (
        np.concatenate([getattr(table, name)[table.good] for table in tables])
        for name in ("model", "prediction", "minute")
    )
    made = GivenStatistics(counted, model, prediction, minute)
    return made, refusals


class _Table:
    """The rows of one kind while they are checked."""

    def __init__(
        self,
        batch: RawStatistics,
        kind: str,
        sums: tuple[str, ...],
        first_row: int,
        violations: list[FieldViolation],
    ) -> None:
        self._columns: Mapping[str, bytes] = getattr(batch, kind)
        self._kind, self._first_row, self._violations = kind, first_row, violations
        self.sent = bool(self._columns)
        self._windows = batch.windows
        index = self._columns.get("model_index", b"")
        self.rows = len(index)
        if self.sent and not self.rows:
            violations.append(FieldViolation(f"{kind}.model_index", "must have at least 1 row"))
        self.model: Integers = np.frombuffer(index, dtype=np.uint8).astype(np.int64)
        self._reason = np.zeros(self.rows, dtype=np.uint8)
        self.prediction = self.integers("prediction_index", "u1", default=0)
        self.minute: Integers = np.zeros(self.rows, dtype=np.int64)
        self.known: Mask = np.ones(self.rows, dtype=np.bool_)
        # The age's bucket of positives, or the number of a bin.
        self.age: Integers = np.zeros(self.rows, dtype=np.int64)
        self.counts: Integers = np.ones(self.rows, dtype=np.int64)
        self._sums = [self._wide(name) for name in sums]
        bad = (self.model >= batch.models) | (self.prediction >= len(batch.windows))
        self.refuse(bad, Reason.BAD_INDEX)

    def integers(self, name: str, dtype: str, default: int | None = None) -> Integers:
        """Returns a column of integers; the default where one is allowed and nothing was sent."""
        data = self._columns.get(name, b"")
        width = np.dtype(dtype).itemsize
        if (not data and default is not None) or not self._fits(name, data, width):
            return np.full(self.rows, default or 0, dtype=np.int64)
        return np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<")).astype(np.int64)

    def natural(self, place: int) -> Floats:
        """Returns a column of sums in natural units, rounded to a float."""
        low, high = self._sums[place]
        # The lower half with its sign: of a small negative sum it is nearly 2^64, which a float holds to 2,048 only.
        carried = high + (low >> np.uint64(63)).astype(np.int64)
        return (carried.astype(np.float64) * 2.0**64 + low.view(np.int64).astype(np.float64)) / SCALE

    @property
    def good(self) -> Mask:
        """The rows that were not refused."""
        good: Mask = self._reason == 0
        return good

    def refuse(self, bad: Mask, reason: Reason) -> None:
        """Refuses rows that no earlier check has refused."""
        self._reason[bad & (self._reason == 0)] = reason.value

    def read_minutes(self, name: str, minutes: int, now: datetime) -> None:
        """Reads the spans, so many minutes wide, that the rows are of; refuses those of another time than now."""
        spans = self.integers(name, "i4")
        self.minute = spans * minutes
        ends = (self.minute + minutes) * MINUTE_MICROS
        outside = (self.minute * MINUTE_MICROS > micros(now + FUTURE)) | (ends <= micros(now - PAST))
        self.refuse(outside, Reason.BAD_TIME)

    def read_ages(self) -> None:
        """Reads the ages of labels; refuses those older than their attribution window."""
        minutes = self.integers("age_minutes", "i4", default=0)
        self.refuse(minutes < 0, Reason.BAD_STATISTICS)
        windows = np.array([window // timedelta(microseconds=1) for window in self._windows], dtype=np.int64)
        age = minutes * MINUTE_MICROS
        self.refuse(age > windows[np.where(self.good, self.prediction, 0)], Reason.TOO_LATE)
        self.age = age_buckets(np.zeros_like(age), age)

    def read_known(self) -> None:
        """Reads which rows' labels were known."""
        known = self.integers("known", "u1", default=1)
        self.refuse(known > 1, Reason.BAD_STATISTICS)
        self.known = known == 1

    def merged(self, chosen: Mask) -> Merged:
        """Returns the sums of rows that were not refused, by their place: each place once, and in order."""
        chosen = chosen & self.good
        keys = np.stack([column[chosen] for column in (self.minute, self.model, self.prediction, self.age)])
        order = np.lexsort(keys[::-1])
        keys = keys[:, order]
        if not len(order):
            nothing = np.empty(0, dtype=np.int64)
            return Places(nothing, nothing, nothing, nothing), nothing, tuple(() for _ in self._sums)
        starts = np.flatnonzero(np.concatenate(([True], (keys[:, 1:] != keys[:, :-1]).any(axis=0))))
        minute, model, prediction, age = keys[:, starts]
        columns = tuple(_total(low[chosen][order], high[chosen][order], starts) for low, high in self._sums)
        counts = np.add.reduceat(self.counts[chosen][order], starts)
        return Places(model, prediction, minute, age), counts, columns

    def refusals(self, now: datetime) -> Refusals:
        """Returns the rows that were refused."""
        bad = ~self.good
        reason = self._reason[bad]
        # The minute of a time that is not accepted would make a row in another century.
        arrival = micros(now) // MINUTE_MICROS
        outside = (self.minute > arrival + FUTURE // timedelta(minutes=1)) | (
            self.minute < arrival - PAST // timedelta(minutes=1)
        )
        minute = np.where(outside[bad], arrival, self.minute[bad])
        row = np.flatnonzero(bad) + self._first_row
        return Refusals(reason, row, self.model[bad].astype(np.uint8), self.prediction[bad].astype(np.uint8), minute)

    def _wide(self, name: str) -> tuple[npt.NDArray[np.uint64], Integers]:
        """Returns the lower and the upper half of a column of sums."""
        data = self._columns.get(name, b"")
        if not self._fits(name, data, _SUM_BYTES):
            return np.zeros(self.rows, dtype=np.uint64), np.zeros(self.rows, dtype=np.int64)
        halves = np.frombuffer(data, dtype=np.dtype([("low", "<u8"), ("high", "<i8")]))
        return halves["low"].astype(np.uint64), halves["high"].astype(np.int64)

    def _fits(self, name: str, data: bytes, width: int) -> bool:
        if len(data) == self.rows * width:
            return True
        if self.rows:
            wanted = f"{self.rows * width} bytes: {width} for each of the {self.rows} rows of model_index"
            had = f"has {len(data)} bytes, " if data else ""
            self._violations.append(FieldViolation(f"{self._kind}.{name}", f"{had}must have {wanted}"))
        return False


def _read_exposure(table: _Table, now: datetime) -> None:
    table.read_minutes("minute", 1, now)
    table.read_known()
    table.counts = table.integers("examples", "i8")


def _read_positives(table: _Table, now: datetime) -> None:
    table.read_minutes("minute", 1, now)
    table.read_known()
    table.read_ages()
    table.counts = table.integers("positives", "i8")


def _read_bins(table: _Table, now: datetime) -> None:
    table.read_minutes("hour", _MINUTES_OF_HOUR, now)
    table.age = table.integers("bin", "u1")
    table.refuse(table.age >= BINS, Reason.BAD_STATISTICS)


def _check_exposure(table: _Table) -> None:
    n = table.counts.astype(np.float64)
    w, w2, wp, w2pq, wl, w2l, w2l2 = (table.natural(place) for place in range(7))
    possible = _Possible(n)
    possible.weights(w, w2)
    possible.at_most(wp, w)
    possible.at_most(w2pq, w2, 0.25)
    # −ln(1 − p) is never below p.
    possible.at_most(wp, wl)
    possible.at_most(wl, w, MAX_LOGIT)
    possible.at_most(w2l, w2, MAX_LOGIT)
    possible.at_most(w2l2, w2l, MAX_LOGIT)
    possible.squares(wl, n, w2l2)
    possible.squares(w2l, w2, w2l2)
    possible.positive(w, w2, wp, w2pq, wl, w2l, w2l2)
    table.refuse(~possible.mask, Reason.BAD_STATISTICS)


def _check_positives(table: _Table) -> None:
    n = table.counts.astype(np.float64)
    w, w2, w2l1, wl, w2l, w2l2 = (table.natural(place) for place in range(6))
    possible = _Possible(n)
    possible.weights(w, w2)
    possible.at_most(w2l1, w2, MAX_LOGIT)
    possible.at_most(np.abs(wl), w, MAX_LOGIT)
    possible.at_most(np.abs(w2l), w2, MAX_LOGIT)
    possible.at_most(w2l, w2l1)
    possible.at_most(np.abs(w2l2), w2, MAX_LOGIT**2)
    possible.positive(w, w2, w2l1)
    table.refuse(~possible.mask, Reason.BAD_STATISTICS)


def _check_bins(table: _Table) -> None:
    w, wp, wy = (table.natural(place) for place in range(3))
    most = _MOST_EXAMPLES * MAX_WEIGHT
    # A positive that comes late brings an observation alone, so Σwy may be above Σw.
    possible = (w >= 0) & (w <= most) & (wp >= 0) & (wp <= w) & (wy >= 0) & (wy <= most)
    table.refuse(~possible, Reason.BAD_STATISTICS)


class _Possible:
    """Which rows can be sums of n examples. Each addend is rounded by half a unit at most, hence `slack`."""

    def __init__(self, n: Floats) -> None:
        self._n = n
        self._slack = n / SCALE
        self.mask: Mask = (n >= 1) & (n <= _MOST_EXAMPLES)

    def weights(self, w: Floats, w2: Floats) -> None:
        self.at_most(w, self._n, MAX_WEIGHT)
        self.at_most(w2, w, MAX_WEIGHT)
        self.squares(w, self._n, w2)

    def positive(self, *sums: Floats) -> None:
        for total in sums:
            self.mask &= total >= 0

    def at_most(self, one: Floats, other: Floats, times: float = 1.0) -> None:
        """Demands one ≤ times · other."""
        self.mask &= one <= other * times * (1 + _ROUNDING) + (1 + times) * self._slack

    def squares(self, product: Floats, one: Floats, other: Floats) -> None:
        """Demands (Σab)² ≤ Σa² · Σb²."""
        product = np.maximum(product - self._slack, 0)
        self.mask &= product**2 <= (one + self._slack) * (other + self._slack) * (1 + _ROUNDING)


def _total(low: npt.NDArray[np.uint64], high: Integers, starts: npt.NDArray[np.intp]) -> tuple[int, ...]:
    """Returns the exact sums of runs of 128-bit integers, by way of limbs whose sums fit into 64 bits."""
    mask = 0xFFFFFFFF
    limbs = (low & np.uint64(mask), low >> np.uint64(32), high & mask, high >> 32)
    sums = (np.add.reduceat(limb.astype(np.int64), starts).tolist() for limb in limbs)
    return tuple(a + (b << 32) + (c << 64) + (d << 96) for a, b, c, d in zip(*sums, strict=True))
