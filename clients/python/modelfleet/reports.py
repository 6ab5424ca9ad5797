"""What a reporter is handed, and the batches that it becomes. No time, no threads, no network.

Work is cut into parts of a few thousand rows: whoever holds Python's lock for long keeps others from serving.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from modelfleet import columns, exact
from modelfleet.stability.v1 import stability_pb2 as pb

Request: TypeAlias = (
    pb.WriteExamplesRequest | pb.WritePredictionsRequest | pb.WriteLabelsRequest | pb.WriteStatisticsRequest
)

# Half a megabyte: serialized in well under a millisecond.
MAX_BATCH_ROWS: Final = 16_384
_PART_ROWS: Final = 2_048
_MOST_NAMES: Final = 255
# Rows of statistics in a message: of 126 bytes at most, and 4 MiB hold a few more.
_MOST_SUMS: Final = 30_000
# Events that the service takes, with a margin for clocks that differ.
_PAST_MICROS: Final = (90 * 24 - 1) * 3_600_000_000
_FUTURE_MICROS: Final = 4 * 60_000_000


class Kind(enum.Enum):
    """What rows are."""

    EXAMPLES = pb.WriteExamplesRequest
    PREDICTIONS = pb.WritePredictionsRequest
    LABELS = pb.WriteLabelsRequest


@dataclass(frozen=True, slots=True)
class Report:
    """One call: columns as they were handed over, copied. A single time stands for all rows."""

    kind: Kind
    rows: int
    model: columns.Names
    prediction: columns.Names
    given: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a report, packed; names apart, with an index into them."""

    kind: Kind
    rows: int
    models: Sequence[str]
    model_index: bytes
    predictions: Sequence[str]
    prediction_index: bytes
    packed: dict[str, bytes]

    @property
    def shape(self) -> tuple[Any, ...]:
        """Rows of one shape fit into one batch."""
        return (self.kind, *self.packed)

    def chosen(self, mask: exact.Mask) -> Part:
        """Returns some of the rows."""
        rows = int(mask.sum())

        def cut(data: bytes) -> bytes:
            return np.frombuffer(data, np.uint8).reshape(self.rows, -1)[mask].tobytes()

        packed = {name: cut(data) for name, data in self.packed.items()}
        return Part(
            self.kind, rows, self.models, cut(self.model_index), self.predictions, cut(self.prediction_index), packed
        )


_PACKERS: Final[dict[str, Any]] = {
    "event_time": ("event_time_micros", columns.pack_times),
    "label_time": ("label_time_micros", columns.pack_times),
    "score": ("score", columns.pack_float64),
    "logit": ("logit", columns.pack_float64),
    "weight": ("weight", columns.pack_float64),
    "label": ("label", columns.pack_uint8),
    "request_id": ("request_id", columns.pack_request_ids),
}
_WIDTHS: Final = {"label": 1, "request_id": 16}


def parts(report: Report, model_type: str, permille: int = 0) -> Iterator[Part]:
    """Packs a report, a part at a time; of requests those that are sampled.

    Raises:
        ValueError: columns have different lengths, or hold what cannot be packed.
        TypeError: likewise.
    """
    for start in range(0, report.rows, _PART_ROWS):
        rows = min(_PART_ROWS, report.rows - start)
        cut = slice(start, start + rows)
        packed: dict[str, bytes] = {}
        for name, values in report.given.items():
            column, pack = _PACKERS[name]
            data = pack(values[cut] if hasattr(values, "__len__") else np.full(rows, values))
            if len(data) != rows * _WIDTHS.get(column, 8) or (
                hasattr(values, "__len__") and len(values) != report.rows
            ):
                raise ValueError(f"{name} has not {report.rows} rows, as the others have")
            packed[column] = data
        models, model_index = _index(report, report.model, cut, rows)
        predictions, prediction_index = _index(report, report.prediction, cut, rows)
        names = [name if "/" in name else f"{model_type}/models/{name}" for name in models]
        made = Part(report.kind, rows, names, model_index, predictions, prediction_index, packed)
        if permille and "request_id" in packed:
            made = made.chosen(columns.sampled(np.frombuffer(packed["request_id"], "V16"), permille))
        if made.rows:
            yield made


def _index(report: Report, names: columns.Names, cut: slice, rows: int) -> tuple[list[str], bytes]:
    if isinstance(names, str):
        return columns.index(names, rows)
    if len(names) != report.rows:
        raise ValueError("model and prediction must be one name, or one for each row")
    return columns.index(names[cut], rows)


@dataclass(slots=True)
class _Dictionary:
    """Names of a batch, numbered as they come."""

    names: dict[str, int] = field(default_factory=dict)

    def has_room_for(self, names: Sequence[str]) -> bool:
        return len(self.names.keys() | names) <= _MOST_NAMES

    def numbered(self, names: Sequence[str], index: bytes) -> bytes:
        """Returns an index into these names in place of one into others."""
        numbers = bytes(self.names.setdefault(name, len(self.names)) for name in names)
        return index.translate(numbers.ljust(256, b"\0"))


class Batch:
    """Rows of one shape, until there are enough of them."""

    def __init__(self) -> None:
        self.rows = 0
        self._parts: list[Part] = []
        self._models, self._predictions = _Dictionary(), _Dictionary()
        self._model_index: list[bytes] = []
        self._prediction_index: list[bytes] = []

    @property
    def has_request_ids(self) -> bool:
        """Whether its rows may be sampled."""
        return "request_id" in self._parts[0].packed

    def add(self, part: Part) -> bool:
        """Adds rows; False where they do not fit any more."""
        if self.rows and self.rows + part.rows > MAX_BATCH_ROWS:
            return False
        if not (self._models.has_room_for(part.models) and self._predictions.has_room_for(part.predictions)):
            return False
        self._parts.append(part)
        self._model_index.append(self._models.numbered(part.models, part.model_index))
        self._prediction_index.append(self._predictions.numbered(part.predictions, part.prediction_index))
        self.rows += part.rows
        return True

    def split(self) -> list[Batch]:
        """Returns its rows by model and prediction, where there are several."""
        found: dict[tuple[tuple[str, ...], ...], Batch] = {}
        for part in self._parts:
            found.setdefault((tuple(part.models), tuple(part.predictions)), Batch()).add(part)
        return list(found.values())

    def request(self, batch: pb.Batch) -> Request:
        """Returns the request with all rows, beside the producer and sequence that are given."""
        first = self._parts[0]
        batch.models.extend(self._models.names)
        batch.predictions.extend(self._predictions.names)
        joined = {name: b"".join(part.packed[name] for part in self._parts) for name in first.packed}
        request: Request = first.kind.value(
            batch=batch,
            model_index=b"".join(self._model_index),
            prediction_index=b"".join(self._prediction_index),
            **joined,
        )
        return request


class Aggregate:
    """Examples added up, until they are sent: a few sums for each model, prediction and minute."""

    has_request_ids = False

    def __init__(self) -> None:
        self._models, self._predictions = _Dictionary(), _Dictionary()
        self._statistics = exact.Statistics()

    @property
    def rows(self) -> int:
        """How many examples."""
        return self._statistics.examples

    def has_room_for(self, part: Part) -> bool:
        """Says whether rows still fit; each may need an exposure, a positive and a bin of its own."""
        names = self._models.has_room_for(part.models) and self._predictions.has_room_for(part.predictions)
        return names and self._statistics.size + 3 * part.rows <= _MOST_SUMS

    def add(self, part: Part, now_micros: int) -> Part | None:
        """Adds examples; returns those that the service would refuse, for it to count them."""
        is_logit = "logit" in part.packed
        value = np.frombuffer(part.packed["logit" if is_logit else "score"], "<f8")
        label = np.frombuffer(part.packed["label"], np.uint8)
        weight = np.frombuffer(part.packed["weight"], "<f8") if "weight" in part.packed else None
        event = np.frombuffer(part.packed["event_time_micros"], "<i8")
        good = exact.countable(value, is_logit=is_logit, label=label, weight=weight)
        good = good & (event > now_micros - _PAST_MICROS) & (event < now_micros + _FUTURE_MICROS)
        if not good.all():
            refused = part.chosen(~good)
            if good.any():
                self.add(part.chosen(good), now_micros)
            return refused
        model = self._models.numbered(part.models, part.model_index)
        prediction = self._predictions.numbered(part.predictions, part.prediction_index)
        self._statistics.add(
            np.frombuffer(model, np.uint8),
            np.frombuffer(prediction, np.uint8),
            event,
            value,
            is_logit=is_logit,
            label=label,
            weight=weight,
        )
        return None

    def split(self) -> list[Aggregate]:
        """Returns its sums by model and prediction, where there are several."""
        found = []
        for model, number in self._models.names.items():
            for prediction, place in self._predictions.names.items():
                statistics = self._statistics.only(number, place)
                if statistics.examples:
                    made = Aggregate()
                    made._models, made._predictions = _Dictionary({model: 0}), _Dictionary({prediction: 0})
                    made._statistics = statistics
                    found.append(made)
        return found

    def request(self, batch: pb.Batch) -> Request:
        """Returns the request with all sums, beside the producer and sequence that are given."""
        batch.models.extend(self._models.names)
        batch.predictions.extend(self._predictions.names)
        return columns.statistics_request(batch, self._statistics)


class Batches:
    """Batches that are being filled, one for each shape of rows, and those that are full."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], Batch] = {}
        self._full: list[Batch | Aggregate] = []
        self._aggregate = Aggregate()

    @property
    def has_full(self) -> bool:
        """Whether a batch is full."""
        return bool(self._full)

    def add(self, part: Part) -> None:
        """Adds rows to the batch of their shape."""
        batch = self._open.setdefault(part.shape, Batch())
        if not batch.add(part):
            self._full.append(batch)
            batch = self._open[part.shape] = Batch()
            batch.add(part)

    def aggregate(self, part: Part, now_micros: int) -> None:
        """Adds examples to the sums; rows that the service would refuse go as they are."""
        if not self._aggregate.has_room_for(part):
            self._full.append(self._aggregate)
            self._aggregate = Aggregate()
        if (refused := self._aggregate.add(part, now_micros)) is not None:
            self.add(refused)

    def take_full(self) -> list[Batch | Aggregate]:
        """Takes those that are full."""
        full, self._full = self._full, []
        return full

    def take_all(self) -> list[Batch | Aggregate]:
        """Takes all that have rows."""
        found = self.take_full() + list(self._open.values())
        self._open = {}
        if self._aggregate.rows:
            found.append(self._aggregate)
            self._aggregate = Aggregate()
        return found
