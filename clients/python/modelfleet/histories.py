"""Parquet files of examples, predictions and labels, as batches for stability.

    history = History("history.parquet", "modelTypes/feed_ctr", model="v7", prediction="click")
    for piece in history.pieces():
        client.stability.write_examples(piece.request)

| column | is | needed for |
| --- | --- | --- |
| `event_time` | timestamp, or microseconds since 1970 (UTC) | examples, predictions |
| `score` or `logit` | probability, or log-odds | examples, predictions |
| `label` | 0 or 1; none: nothing is known | examples; labels, which are positive without it |
| `request_id` | 16 bytes, or a UUID as text | predictions, labels |
| `label_time` | as `event_time` | labels |
| `weight` | of each row | |
| `model`, `prediction` | names or ids, where the file is of several | |

The same file with the same options gives the same batches of the same producer whenever it is read: repeating one that
was written changes nothing. Files are read piece by piece, whatever their size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfleet import columns
from modelfleet.stability.v1 import stability_pb2 as pb

Request: TypeAlias = pb.WriteExamplesRequest | pb.WritePredictionsRequest | pb.WriteLabelsRequest

# With all columns that is 2.7 MB of the 4 MiB of a message. Part of the producer's id: other pieces are other batches.
PIECE_ROWS: Final = 65_536
_READ_BYTES: Final = 1 << 20
_MOST_NAMES: Final = 255
_NO_TIME: Final = int(np.iinfo(np.int64).min)
_NO_LABEL: Final = 255

EXAMPLES, PREDICTIONS, LABELS = "examples", "predictions", "labels"
_REQUESTS: Final[dict[str, Any]] = {
    EXAMPLES: pb.WriteExamplesRequest,
    PREDICTIONS: pb.WritePredictionsRequest,
    LABELS: pb.WriteLabelsRequest,
}
# What a file must have of each kind; of `score` its alternative does.
_NEEDED: Final = {
    EXAMPLES: ("event_time", "score", "label"),
    PREDICTIONS: ("event_time", "score", "request_id"),
    LABELS: ("request_id", "label_time"),
}
COLUMNS: Final = (
    "event_time",
    "score",
    "logit",
    "label",
    "weight",
    "request_id",
    "label_time",
    "model",
    "prediction",
)


class HistoryError(Exception):
    """A file that cannot be ingested; the message says why, and what would be accepted."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A batch: `rows` are the numbers, from 0, of its rows in the file."""

    kind: str
    request: Request
    rows: npt.NDArray[np.int64]
    # Microseconds since 1970; of the rows that state one.
    times: npt.NDArray[np.int64]


class History:
    """One file.

    Args:
        path: of the Parquet file.
        model_type: its name.
        model: name or id of the model of all rows; not needed where the file has a column `model`.
        prediction: of all rows, likewise.
        names: what the file calls our columns, by our names; an empty name leaves a column out.
        kinds: what is made of it: examples, predictions, labels. By default what its columns say: with `request_id` and
            `label_time` predictions and their labels, else with `label` examples.

    Raises:
        HistoryError: it cannot be read, or lacks columns.
    """

    def __init__(
        self,
        path: str,
        model_type: str,
        *,
        model: str = "",
        prediction: str = "",
        names: Mapping[str, str] | None = None,
        kinds: Sequence[str] = (),
    ) -> None:
        self._path, self._model_type = path, model_type
        self._file: Any = _opened(path)
        self.rows: int = self._file.metadata.num_rows
        self._constants = {"model": model, "prediction": prediction}
        self._names = self._found(dict(names or {}))
        self.kinds = tuple(kinds) or self._kinds()
        self._check()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return Path(self._path).stat().st_size

    @cached_property
    def producer(self) -> str:
        """Digest of the file and of what is made of it. Reads all of it, the first time."""
        return self.read_producer(lambda _: None)

    def read_producer(self, progress: Callable[[int], None]) -> str:
        """Returns `producer`, and tells meanwhile how many bytes more were read."""
        given = (self._model_type, self._constants, sorted(self._names.items()), self.kinds, PIECE_ROWS)
        digest = hashlib.blake2b(repr(given).encode(), digest_size=16)
        with Path(self._path).open("rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
                progress(len(data))
        self.__dict__["producer"] = f"ingest-{digest.hexdigest()}"
        return self.producer

    def pieces(self) -> Iterator[Piece]:
        """Returns the batches in the order of the file, each with the number that it always has.

        Raises:
            HistoryError: a row has no model, prediction or request id, or one that cannot be.
        """
        for number, (first, table) in enumerate(self._tables()):
            for place, kind in enumerate(self.kinds):
                if (made := self._piece(kind, first, table, number * len(_REQUESTS) + place + 1)) is not None:
                    yield made

    # What the file has

    def _found(self, names: dict[str, str]) -> dict[str, str]:
        """Returns what the file calls each of our columns that it has."""
        there = self._file.schema_arrow.names
        if unknown := sorted(names.keys() - set(COLUMNS)):
            raise HistoryError(f"there is no column {', '.join(unknown)}; there are: {', '.join(COLUMNS)}")
        if missing := sorted(theirs for theirs in names.values() if theirs and theirs not in there):
            raise HistoryError(f"{self._path} has no column {', '.join(missing)}; it has: {', '.join(there)}")
        found = {ours: names.get(ours, ours) for ours in COLUMNS}
        return {ours: theirs for ours, theirs in found.items() if theirs in there and not self._constants.get(ours)}

    def _kinds(self) -> tuple[str, ...]:
        has = self._names.keys()
        if "request_id" in has and not {"score", "logit"} & has:
            return (LABELS,)
        if {"request_id", "label_time"} <= has:
            return (PREDICTIONS, LABELS)
        return (PREDICTIONS,) if "request_id" in has and "label" not in has else (EXAMPLES,)

    def _check(self) -> None:
        has = self._names.keys()
        if {"score", "logit"} <= has:
            raise HistoryError(f"{self._path} has both score and logit; leave one out, such as: --column logit=")
        lacks = [
            "score or logit" if column == "score" else column
            for column in COLUMNS
            if any(column in _NEEDED[kind] for kind in self.kinds)
            and column not in has
            and not (column == "score" and "logit" in has)
        ]
        lacks += [name for name, given in self._constants.items() if not given and name not in has]
        if lacks:
            raise HistoryError(
                f"{self._path} lacks {', '.join(lacks)} for {' and '.join(self.kinds)}; "
                f"it has: {', '.join(self._file.schema_arrow.names)}; say what it calls them: --column OURS=THEIRS"
            )

    # Its rows

    def _tables(self) -> Iterator[tuple[int, Any]]:
        """Returns pieces of so many rows exactly, whatever the file's own are, with the number of their first row."""
        import pyarrow as pa

        first, waiting = 0, []
        for batch in self._file.iter_batches(batch_size=PIECE_ROWS, columns=sorted(set(self._names.values()))):
            waiting.append(batch)
            while sum(map(len, waiting)) >= PIECE_ROWS:
                table = pa.Table.from_batches(waiting)
                yield first, table.slice(0, PIECE_ROWS)
                first, waiting = first + PIECE_ROWS, table.slice(PIECE_ROWS).to_batches()
        if sum(map(len, waiting)):
            yield first, pa.Table.from_batches(waiting)

    def _piece(self, kind: str, first: int, table: Any, sequence: int) -> Piece | None:
        import pyarrow as pa

        rows = np.arange(first, first + len(table))
        if kind == LABELS and "label" in self._names:
            known = ~_column(table, self._names["label"]).is_null().to_numpy(zero_copy_only=False)
            rows, table = rows[known], table.filter(pa.array(known))
            if not len(rows):
                return None
        wanted = (*_NEEDED[kind], *(("label",) if kind == LABELS else ("logit", "weight")))
        packed = {_FIELDS.get(ours, ours): self.packed(ours, table, rows) for ours in wanted if ours in self._names}
        models, model_index = self._index("model", table, rows)
        predictions, prediction_index = self._index("prediction", table, rows)
        request: Request = _REQUESTS[kind](
            batch=pb.Batch(
                model_type=self._model_type,
                producer=self.producer,
                sequence=sequence,
                models=[name if "/" in name else f"{self._model_type}/models/{name}" for name in models],
                predictions=predictions,
            ),
            model_index=model_index,
            prediction_index=prediction_index,
            **{name: column.tobytes() for name, column in packed.items()},
        )
        times = packed["label_time_micros" if kind == LABELS else "event_time_micros"]
        return Piece(kind, request, rows, times[times != _NO_TIME])

    def _index(self, ours: str, table: Any, rows: npt.NDArray[np.int64]) -> tuple[list[str], bytes]:
        """Returns the names of models or predictions, and for each row the place of its own."""
        if ours not in self._names:
            return [self._constants[ours]], bytes(len(rows))
        encoded = self.column(ours, table, rows).cast("string").dictionary_encode()
        if len(encoded.dictionary) > _MOST_NAMES:
            many = f"{len(encoded.dictionary)} names of a {ours} among {PIECE_ROWS:,} rows"
            raise HistoryError(f"{self._path} has {many}; {_MOST_NAMES} at most: sort it by {ours}, or split it")
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.uint8).tobytes()

    def column(self, ours: str, table: Any, rows: npt.NDArray[np.int64]) -> Any:
        """Returns a column in which each row must have something."""
        column = _column(table, self._names[ours])
        if column.null_count:
            row = rows[np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]]
            raise HistoryError(f"{self._path}: row {row} (the first is 0) has no {ours}")
        return column

    def packed(self, ours: str, table: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Returns a column as it is sent. Values that are missing become some that the service refuses, row by row."""
        import pyarrow as pa

        kind = _column(table, self._names[ours]).type
        convert, accepted = _CONVERSIONS[ours]
        try:
            column = self.column(ours, table, rows) if ours == "request_id" else _column(table, self._names[ours])
            return convert(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, TypeError, AttributeError):
            raise HistoryError(f"{self._path}: {self._names[ours]} is {kind}; it must hold {accepted}") from None


def _times(column: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)
    elif not pa.types.is_integer(column.type):
        raise TypeError
    times: npt.NDArray[Any] = column.cast(pa.int64()).fill_null(_NO_TIME).to_numpy(zero_copy_only=False).astype("<i8")
    return times


def _floats(column: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    numbers: npt.NDArray[Any] = column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype("<f8")
    return numbers


def _labels(column: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    found = _floats(column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column)
    return np.where((found == 0) | (found == 1), found, _NO_LABEL).astype(np.uint8)


def _request_ids(column: Any) -> npt.NDArray[Any]:
    return np.frombuffer(columns.pack_request_ids(column.to_pylist()), "V16")


_FIELDS: Final = {"event_time": "event_time_micros", "label_time": "label_time_micros"}
_CONVERSIONS: Final[dict[str, tuple[Callable[[Any], npt.NDArray[Any]], str]]] = {
    **dict.fromkeys(_FIELDS, (_times, "timestamps, or integers: microseconds since 1970")),
    **dict.fromkeys(("score", "logit", "weight"), (_floats, "numbers")),
    "label": (_labels, "booleans, or numbers that are 0 or 1"),
    "request_id": (_request_ids, "16 bytes each, or UUIDs as text"),
}


def _opened(path: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise HistoryError("reading Parquet needs pyarrow: pip install modelfleet[recordings]") from None
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise HistoryError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None


def _column(table: Any, name: str) -> Any:
    import pyarrow as pa

    column = table.column(name).combine_chunks()
    return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
