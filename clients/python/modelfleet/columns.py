"""Packs numpy arrays and lists into the columns of stability's bulk requests.

    from modelfleet import columns

    request = columns.examples(
        model_type="modelTypes/feed_ctr", producer="ranker-7", sequence=1,
        model="modelTypes/feed_ctr/models/v7", prediction="click",
        event_time=times, score=scores, label=clicks,
    )
    await client.stability.write_examples(request)

`model` and `prediction` are one name for all rows, or a name for each row. Times are numpy datetime64, aware datetimes,
or integers: microseconds since 1970-01-01 UTC. Request ids are UUIDs, 16-byte strings, or an array of 16 bytes a row.
Columns are not checked here beyond what packing needs: the service checks them, and says which column or row is wrong.

Not imported by `import modelfleet`: it needs numpy.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfleet.stability.v1 import stability_pb2

Values: TypeAlias = "npt.ArrayLike"
Names: TypeAlias = "str | Sequence[str] | npt.NDArray[Any]"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ID_BYTES = 16


def pack_float64(values: Values) -> bytes:
    """Returns numbers as little-endian doubles."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def pack_int64(values: Values) -> bytes:
    """Returns integers as little-endian 64-bit integers."""
    return np.ascontiguousarray(values, dtype="<i8").tobytes()


def pack_uint8(values: Values) -> bytes:
    """Returns small integers or booleans as bytes.

    Raises:
        ValueError: a value is not an integer of 0 to 255; it would be taken for another one.
    """
    given = np.asarray(values)
    with np.errstate(invalid="ignore"):
        packed = given.astype(np.uint8)
    if not np.array_equal(packed, given):
        raise ValueError("values must be integers from 0 to 255")
    return packed.tobytes()


def pack_times(values: Any) -> bytes:
    """Returns times as microseconds since 1970-01-01 UTC.

    Raises:
        TypeError: they are neither datetime64, nor aware datetimes, nor integers.
    """
    given = np.asarray(values)
    if given.dtype.kind == "M":
        return pack_int64(given.astype("datetime64[us]").astype(np.int64))
    if given.dtype.kind in "iu":
        return pack_int64(given)
    if given.dtype.kind == "O" and all(isinstance(value, datetime) and value.tzinfo for value in given.flat):
        return pack_int64([(value - _EPOCH) // _MICROSECOND for value in given.flat])
    if not given.size:
        return b""
    raise TypeError("times must be datetime64, aware datetimes, or integers: microseconds since 1970")


def pack_request_ids(values: Iterable[uuid.UUID | bytes | str] | npt.NDArray[Any]) -> bytes:
    """Returns request ids as 16 bytes each.

    Raises:
        ValueError: an id does not have 16 bytes.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind != "O" and values.dtype.kind != "U":
        if (values.dtype.itemsize * (values.shape[-1] if values.ndim > 1 else 1)) != _ID_BYTES:
            raise ValueError("request ids must have 16 bytes a row")
        return values.tobytes()
    packed = [_id_bytes(value) for value in values]
    if any(len(value) != _ID_BYTES for value in packed):
        raise ValueError("request ids must have 16 bytes each")
    return b"".join(packed)


def index(names: Names, rows: int) -> tuple[list[str], bytes]:
    """Returns the distinct names and, for each row, the place of its name among them.

    Raises:
        ValueError: there are more than 255 different names.
    """
    if isinstance(names, str):
        return [names], bytes(rows)
    distinct, places = np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)
    if len(distinct) > 255:
        raise ValueError(f"a batch can hold 255 different names, got {len(distinct)}")
    return [str(name) for name in distinct], pack_uint8(places)


def examples(
    *,
    model_type: str,
    producer: str,
    sequence: int,
    model: Names,
    prediction: Names,
    event_time: Any,
    label: Values,
    score: Values | None = None,
    logit: Values | None = None,
    weight: Values | None = None,
) -> stability_pb2.WriteExamplesRequest:
    """Returns the request of WriteExamples: rows whose labels are known for good."""
    times = pack_times(event_time)
    batch, models, predictions = _batch(model_type, producer, sequence, model, prediction, len(times) // 8)
    return stability_pb2.WriteExamplesRequest(
        batch=batch,
        model_index=models,
        prediction_index=predictions,
        event_time_micros=times,
        label=pack_uint8(label),
        score=_floats(score),
        logit=_floats(logit),
        weight=_floats(weight),
    )


def predictions(
    *,
    model_type: str,
    producer: str,
    sequence: int,
    model: Names,
    prediction: Names,
    request_id: Iterable[uuid.UUID | bytes | str] | npt.NDArray[Any],
    event_time: Any,
    score: Values | None = None,
    logit: Values | None = None,
    weight: Values | None = None,
) -> stability_pb2.WritePredictionsRequest:
    """Returns the request of WritePredictions: rows whose labels come later."""
    times = pack_times(event_time)
    batch, models, predicted = _batch(model_type, producer, sequence, model, prediction, len(times) // 8)
    return stability_pb2.WritePredictionsRequest(
        batch=batch,
        model_index=models,
        prediction_index=predicted,
        request_id=pack_request_ids(request_id),
        event_time_micros=times,
        score=_floats(score),
        logit=_floats(logit),
        weight=_floats(weight),
    )


def labels(
    *,
    model_type: str,
    producer: str,
    sequence: int,
    model: Names,
    prediction: Names,
    request_id: Iterable[uuid.UUID | bytes | str] | npt.NDArray[Any],
    label_time: Any,
    label: Values | None = None,
) -> stability_pb2.WriteLabelsRequest:
    """Returns the request of WriteLabels; without `label` all are positive."""
    times = pack_times(label_time)
    batch, models, predicted = _batch(model_type, producer, sequence, model, prediction, len(times) // 8)
    return stability_pb2.WriteLabelsRequest(
        batch=batch,
        model_index=models,
        prediction_index=predicted,
        request_id=pack_request_ids(request_id),
        label_time_micros=times,
        label=b"" if label is None else pack_uint8(label),
    )


def _batch(
    model_type: str, producer: str, sequence: int, model: Names, prediction: Names, rows: int
) -> tuple[stability_pb2.Batch, bytes, bytes]:
    models, model_index = index(model, rows)
    names, prediction_index = index(prediction, rows)
    batch = stability_pb2.Batch(
        model_type=model_type, producer=producer, sequence=sequence, models=models, predictions=names
    )
    # Without an index all rows are of the first prediction.
    return batch, model_index, b"" if len(names) == 1 else prediction_index


def _floats(values: Values | None) -> bytes:
    return b"" if values is None else pack_float64(values)


def _id_bytes(value: uuid.UUID | bytes | str) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.bytes if isinstance(value, uuid.UUID) else uuid.UUID(value).bytes
