"""Batches as they arrive, columns of packed bytes, and what is left of them once every row is checked.

No Python loop runs over rows. A column of a wrong length refuses the batch, since its rows cannot be told apart any
more; a bad value refuses its row, which is counted with the first reason that applies.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.maturity import FUTURE, MINUTE_MICROS, PAST, micros, patience
from modelfleetd.stability.domain.sampling import ALL_SAMPLED, sampled

Bytes: TypeAlias = npt.NDArray[np.uint8]

# Of more weight than this a row is refused: the exact sums would run out of range.
MAX_WEIGHT: Final = 1e6

T = TypeVar("T")


class Reason(enum.Enum):
    """Why a row was not taken. The numbers are stored and stay."""

    BAD_SCORE = 1
    BAD_WEIGHT = 2
    BAD_LABEL = 3
    BAD_TIME = 4
    DUPLICATE = 5
    TOO_LATE = 6
    BAD_INDEX = 7
    BAD_STATISTICS = 8
    NOT_SAMPLED = 9


@dataclass(frozen=True, slots=True)
class RejectedRows:
    """Rows of a batch that were not taken, and why."""

    reason: Reason
    rows: int
    first_row: int


@dataclass(frozen=True, slots=True)
class RawBatch:
    """A batch as it arrived. Columns that were not sent, or that this kind of batch does not have, are empty."""

    models: int
    windows: tuple[timedelta, ...]  # the attribution window of each prediction of the dictionary
    model_index: bytes
    prediction_index: bytes = b""
    event_time_micros: bytes = b""
    score: bytes = b""
    logit: bytes = b""
    label: bytes = b""
    weight: bytes = b""
    request_id: bytes = b""
    label_time_micros: bytes = b""
    sample_permille: int = ALL_SAMPLED


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a batch by column; arrays of one length."""

    row: Integers  # the row's number in the batch
    model: Bytes
    prediction: Bytes

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class Keys(Rows):
    """Rows that name their example by a request id, cut into two integers as the database compares them fast."""

    high: Integers
    low: Integers


@dataclass(frozen=True, slots=True)
class Examples(Rows):
    """Scored and labelled rows."""

    event: Integers  # microseconds since 1970
    value: Floats  # score, or logit
    is_logit: bool
    weight: Floats | None  # None: 1 for every row
    label: Bytes


@dataclass(frozen=True, slots=True)
class Predictions(Keys):
    """Scored rows whose label comes later."""

    event: Integers
    value: Floats
    is_logit: bool
    weight: Floats | None


@dataclass(frozen=True, slots=True)
class Labels(Keys):
    """Labels of rows that were, or will be, scored."""

    time: Integers  # microseconds since 1970
    label: Bytes


@dataclass(frozen=True, slots=True)
class Refusals:
    """Rows that were refused: each with its reason's number, and where its model and prediction are known, these."""

    reason: Bytes
    row: Integers
    model: Bytes
    prediction: Bytes
    minute: Integers  # of the event where it is known and accepted, else of the arrival

    def __len__(self) -> int:
        return len(self.row)

    def summary(self) -> tuple[RejectedRows, ...]:
        """Returns how many rows each reason refused."""
        return tuple(
            RejectedRows(reason, len(found), int(found.min()))
            for reason in Reason
            if len(found := self.row[self.reason == reason.value])
        )

    def within(self, models: int, predictions: int) -> Refusals:
        """Returns those whose model and prediction are known."""
        return take(self, (self.model < models) & (self.prediction < predictions))

    def __add__(self, other: Refusals) -> Refusals:
        names = ("reason", "row", "model", "prediction", "minute")
        return Refusals(*(np.concatenate((getattr(self, name), getattr(other, name))) for name in names))


def take(rows: T, chosen: npt.NDArray[Any]) -> T:
    """Returns some of the rows: by a mask or by positions."""
    fields = (getattr(rows, name) for name in _names(type(rows)))
    return type(rows)(*(value[chosen] if isinstance(value, np.ndarray) else value for value in fields))


def refuse(rows: Rows, minute: Integers, chosen: npt.NDArray[Any], reason: Reason) -> Refusals:
    """Returns the refusal of some rows that had been decoded."""
    row = rows.row[chosen]
    why = np.full(len(row), reason.value, dtype=np.uint8)
    return Refusals(why, row, rows.model[chosen], rows.prediction[chosen], minute[chosen])


def decode_examples(batch: RawBatch, now: datetime) -> tuple[Examples, Refusals]:
    """Decodes and checks scored and labelled rows.

    Raises:
        InvalidFields: columns are missing, doubled or of different lengths.
    """
    columns = _Columns(batch, now)
    event = columns.need("event_time_micros", _INT64)
    value, is_logit = columns.scores()
    label = columns.need("label", _UINT8)
    weight = columns.optional("weight", _FLOAT64)
    columns.finish()
    columns.check_indexes()
    columns.check_scores(value, is_logit)
    columns.check_weights(weight)
    columns.check_labels(label)
    columns.check_times(event, earliest=np.full(len(batch.windows), micros(now - PAST)))
    rows = Examples(columns.row, columns.model, columns.prediction, event, value, is_logit, weight, label)
    return columns.split(rows, event)


def decode_predictions(batch: RawBatch, now: datetime) -> tuple[Predictions, Refusals]:
    """Decodes and checks scored rows. A row whose labels can no longer be joined is BAD_TIME.

    Raises:
        InvalidFields: columns are missing, doubled or of different lengths.
    """
    columns = _Columns(batch, now)
    high, low = columns.request_ids()
    event = columns.need("event_time_micros", _INT64)
    value, is_logit = columns.scores()
    weight = columns.optional("weight", _FLOAT64)
    columns.finish()
    columns.check_indexes()
    columns.check_sampled(high, low)
    columns.check_scores(value, is_logit)
    columns.check_weights(weight)
    columns.check_times(event, earliest=columns.still_waiting())
    rows = Predictions(columns.row, columns.model, columns.prediction, high, low, event, value, is_logit, weight)
    return columns.split(rows, event)


def decode_labels(batch: RawBatch, now: datetime) -> tuple[Labels, Refusals]:
    """Decodes and checks labels. A label so old that its prediction must be gone is TOO_LATE.

    Raises:
        InvalidFields: columns are missing or of different lengths.
    """
    columns = _Columns(batch, now)
    high, low = columns.request_ids()
    time = columns.need("label_time_micros", _INT64)
    label = columns.optional("label", _UINT8)
    columns.finish()
    label = np.ones(len(columns.row), dtype=np.uint8) if label is None else label
    columns.check_indexes()
    columns.check_sampled(high, low)
    columns.check_labels(label)
    columns.check_times(time, earliest=np.full(len(batch.windows), micros(now - PAST)))
    columns.refuse(time <= columns.still_waiting()[columns.prediction], Reason.TOO_LATE)
    rows = Labels(columns.row, columns.model, columns.prediction, high, low, time, label)
    # Of what event it is nobody knows; the label's own minute stands in.
    return columns.split(rows, time)


_FLOAT64: Final = np.dtype("<f8")
_INT64: Final = np.dtype("<i8")
_UINT8: Final = np.dtype("u1")
_ID_BYTES: Final = 16


class _Columns:
    """The columns of one batch while they are checked."""

    def __init__(self, batch: RawBatch, now: datetime) -> None:
        self._batch, self._now = batch, now
        self._violations: list[FieldViolation] = []
        self.model: Bytes = np.frombuffer(batch.model_index, dtype=_UINT8)
        self.rows = len(self.model)
        if not self.rows:
            self._violations.append(FieldViolation("model_index", "must have at least 1 row"))
        sent = self.optional("prediction_index", _UINT8)
        self.prediction: Bytes = np.zeros(self.rows, dtype=np.uint8) if sent is None else sent
        self.row: Integers = np.arange(self.rows, dtype=np.int64)
        self._reason: Bytes = np.zeros(self.rows, dtype=np.uint8)

    def optional(self, name: str, dtype: np.dtype[Any]) -> Any:
        """Returns a column; None where it was not sent."""
        data: bytes = getattr(self._batch, name)
        if not data:
            return None
        if not self._fits(name, len(data), dtype.itemsize):
            return np.zeros(self.rows, dtype=dtype)
        return np.frombuffer(data, dtype=dtype)

    def need(self, name: str, dtype: np.dtype[Any]) -> Any:
        """Returns a column that must be there."""
        column = self.optional(name, dtype)
        if column is not None:
            return column
        if self.rows:
            self._violations.append(FieldViolation(name, f"must have {self._length(dtype.itemsize)}"))
        return np.zeros(self.rows, dtype=dtype)

    def scores(self) -> tuple[Floats, bool]:
        """Returns the scores or the logits, and which of them."""
        if self._batch.score and self._batch.logit:
            self._violations.append(FieldViolation("logit", "must be empty where score is given"))
        is_logit = bool(self._batch.logit) and not self._batch.score
        return self.need("logit" if is_logit else "score", _FLOAT64), is_logit

    def request_ids(self) -> tuple[Integers, Integers]:
        """Returns the two halves of each request id."""
        data = self._batch.request_id
        if not self._fits("request_id", len(data), _ID_BYTES):
            nothing = np.zeros(self.rows, dtype=np.int64)
            return nothing, nothing
        halves = np.frombuffer(data, dtype=">i8").astype(np.int64).reshape(-1, 2)
        return np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])

    def finish(self) -> None:
        """Refuses the batch where its columns do not make rows."""
        if self._violations:
            raise InvalidFields(self._violations)

    def check_indexes(self) -> None:
        predictions = len(self._batch.windows)
        bad = (self.model >= self._batch.models) | (self.prediction >= predictions)
        if bad.any():
            self.refuse(bad, Reason.BAD_INDEX)
            # Whatever looks a prediction's window up by these rows has to find one.
            self.prediction = np.where(self.prediction < predictions, self.prediction, np.uint8(0))

    def check_sampled(self, high: Integers, low: Integers) -> None:
        if self._batch.sample_permille != ALL_SAMPLED:
            self.refuse(~sampled(high, low, self._batch.sample_permille), Reason.NOT_SAMPLED)

    def check_scores(self, value: Floats, is_logit: bool) -> None:
        self.refuse(~np.isfinite(value) if is_logit else ~((value >= 0.0) & (value <= 1.0)), Reason.BAD_SCORE)

    def check_weights(self, weight: Floats | None) -> None:
        if weight is not None:
            self.refuse(~((weight >= 0.0) & (weight <= MAX_WEIGHT)), Reason.BAD_WEIGHT)

    def check_labels(self, label: Bytes) -> None:
        self.refuse(label > 1, Reason.BAD_LABEL)

    def check_times(self, time: Integers, earliest: Integers) -> None:
        """Refuses times in the future, and before the earliest one that their prediction allows."""
        early = time <= (earliest[0] if len(earliest) == 1 else earliest[self.prediction])
        self.refuse(early | (time > micros(self._now + FUTURE)), Reason.BAD_TIME)

    def still_waiting(self) -> Integers:
        """Returns for each prediction of the dictionary the time whose events are just given up now."""
        return np.array([micros(self._now - patience(window)) for window in self._batch.windows], dtype=np.int64)

    def refuse(self, bad: npt.NDArray[np.bool_], reason: Reason) -> None:
        """Refuses rows that no earlier check has refused."""
        if bad.any():
            self._reason[bad & (self._reason == 0)] = reason.value

    def split(self, rows: T, time: Integers) -> tuple[T, Refusals]:
        """Returns the rows that are left, and the refused ones."""
        bad = self._reason != 0
        if not bad.any():
            empty, none = np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64)
            return rows, Refusals(empty, none, empty, empty, none)
        reason = self._reason[bad]
        # The minute of a time that is not accepted would make a row in another century.
        minute = np.where(reason == Reason.BAD_TIME.value, micros(self._now), time[bad]) // MINUTE_MICROS
        outside = (time[bad] > micros(self._now + FUTURE)) | (time[bad] < micros(self._now - PAST))
        minute = np.where(outside, micros(self._now) // MINUTE_MICROS, minute)
        refused = Refusals(reason, self.row[bad], self.model[bad], self.prediction[bad], minute)
        return take(rows, ~bad), refused

    def _fits(self, name: str, length: int, width: int) -> bool:
        if length == self.rows * width:
            return True
        if self.rows:
            self._violations.append(FieldViolation(name, f"has {length} bytes, must have {self._length(width)}"))
        return False

    def _length(self, width: int) -> str:
        return f"{self.rows * width} bytes: {width} for each of the {self.rows} rows of model_index"


def _names(rows: type) -> Sequence[str]:
    return rows.__match_args__  # type: ignore[attr-defined,no-any-return]
