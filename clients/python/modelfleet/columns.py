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

With `statistics` a producer adds its examples up itself, exactly as the service would, and sends a few sums.

Not imported by `import modelfleet`: it needs numpy.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfleet import exact
from modelfleet.stability.v1 import stability_pb2

Values: TypeAlias = "npt.ArrayLike"
Names: TypeAlias = "str | Sequence[str] | npt.NDArray[Any]"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ID_BYTES = 16
_ALL_SAMPLED = 1000


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
    sample_permille: int = 0,
) -> stability_pb2.WritePredictionsRequest:
    """Returns the request of WritePredictions: rows whose labels come later, all or those that `sampled` marks."""
    times = pack_times(event_time)
    rows = len(times) // 8
    batch, models, predicted = _batch(model_type, producer, sequence, model, prediction, rows, sample_permille)
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
    sample_permille: int = 0,
) -> stability_pb2.WriteLabelsRequest:
    """Returns the request of WriteLabels; without `label` all are positive. `sample_permille` as in `predictions`."""
    times = pack_times(label_time)
    rows = len(times) // 8
    batch, models, predicted = _batch(model_type, producer, sequence, model, prediction, rows, sample_permille)
    return stability_pb2.WriteLabelsRequest(
        batch=batch,
        model_index=models,
        prediction_index=predicted,
        request_id=pack_request_ids(request_id),
        label_time_micros=times,
        label=b"" if label is None else pack_uint8(label),
    )


def statistics(
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
) -> stability_pb2.WriteStatisticsRequest:
    """Returns the request of WriteStatistics: the sums of rows whose labels are known, to the bit as the service's.

    A few hundred bytes for each model, prediction and minute, however many rows.

    Raises:
        ValueError: a row cannot be counted (score, weight or label), or not exactly one of score and logit is given.
    """
    times = np.frombuffer(pack_times(event_time), dtype="<i8")
    models, model_index = index(model, len(times))
    names, prediction_index = index(prediction, len(times))
    if (score is None) == (logit is None):
        raise ValueError("give score or logit, one of them")
    value = np.ascontiguousarray(logit if score is None else score, dtype=np.float64)
    weights = None if weight is None else np.ascontiguousarray(weight, dtype=np.float64)
    labels_given = np.asarray(label)
    for column, of in ((value, "score or logit"), (labels_given, "label"), (weights, "weight")):
        if column is not None and len(column) != len(times):
            raise ValueError(f"{of} has {len(column)} rows, event_time {len(times)}")
    bad = np.flatnonzero(~exact.countable(value, is_logit=score is None, label=labels_given, weight=weights))
    if len(bad):
        raise ValueError(
            f"{len(bad)} rows cannot be counted, the first is row {bad[0]}: scores are 0 to 1, logits finite, weights "
            "0 to 1,000,000, labels 0 or 1; send these as examples, and the service counts why it refuses them"
        )
    made = exact.Statistics()
    made.add(
        np.frombuffer(model_index, np.uint8),
        np.frombuffer(prediction_index, np.uint8),
        times.astype(np.int64),
        value,
        is_logit=score is None,
        label=labels_given.astype(np.uint8),
        weight=weights,
    )
    batch = stability_pb2.Batch(
        model_type=model_type, producer=producer, sequence=sequence, models=models, predictions=names
    )
    return statistics_request(batch, made)


def statistics_request(batch: stability_pb2.Batch, made: exact.Statistics) -> stability_pb2.WriteStatisticsRequest:
    """Returns the request of WriteStatistics for what was added up; numbers of models are places in the batch."""
    exposure, positives, bins = made.rows()
    request = stability_pb2.WriteStatisticsRequest(batch=batch, exposure=exposure, bins=bins)
    # What has no rows is left out: its columns would be missing.
    if positives.model_index:
        request.positives.CopyFrom(positives)
    return request


def sampled(request_id: Iterable[uuid.UUID | bytes | str] | npt.NDArray[Any], permille: int) -> npt.NDArray[np.bool_]:
    """Marks the requests to send where `permille` of 1,000 are: the same ones wherever it is asked.

    A request is chosen by its id alone, so that whoever reports predictions and whoever reports labels agree. Say
    `sample_permille` in the batches too: the service refuses other requests as NOT_SAMPLED. The ids that a smaller
    number chooses are among those of a larger one.

    Raises:
        ValueError: permille is not within 1 to 1,000, or an id does not have 16 bytes.
    """
    if not 1 <= permille <= _ALL_SAMPLED:
        raise ValueError("permille must be 1 to 1,000")
    high, low = np.frombuffer(pack_request_ids(request_id), dtype=">u8").reshape(-1, 2).T.astype(np.uint64)
    mixed = _mix(_mix(low) ^ high)
    half = np.uint64(32)
    return (mixed >> half) * np.uint64(_ALL_SAMPLED) >> half < np.uint64(permille)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _batch(
    model_type: str,
    producer: str,
    sequence: int,
    model: Names,
    prediction: Names,
    rows: int,
    sample_permille: int = 0,
) -> tuple[stability_pb2.Batch, bytes, bytes]:
    models, model_index = index(model, rows)
    names, prediction_index = index(prediction, rows)
    batch = stability_pb2.Batch(
        model_type=model_type,
        producer=producer,
        sequence=sequence,
        models=models,
        predictions=names,
        sample_permille=sample_permille,
    )
    # Without an index all rows are of the first prediction.
    return batch, model_index, b"" if len(names) == 1 else prediction_index


def _floats(values: Values | None) -> bytes:
    return b"" if values is None else pack_float64(values)


def _id_bytes(value: uuid.UUID | bytes | str) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.bytes if isinstance(value, uuid.UUID) else uuid.UUID(value).bytes
