"""Packed columns: decoded, checked, and taken apart into rows that count and rows that do not."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet import columns
from modelfleetd.errors import InvalidFields
from modelfleetd.stability.domain.columns import (
    Keys,
    RawBatch,
    Reason,
    decode_examples,
    decode_labels,
    decode_predictions,
)
from modelfleetd.stability.domain.duplicates import repeated
from modelfleetd.stability.domain.maturity import (
    FUTURE,
    Shelving,
    live_shelves,
    mature_before,
    matures_at,
    micros,
    minute_after,
    minute_of,
    moment_of,
    patience,
    shelf_end,
    shelf_of,
)

NOW = datetime(2025, 3, 1, 12, 0, 30, tzinfo=UTC)
WINDOW = timedelta(minutes=10)

windows = st.timedeltas(timedelta(seconds=1), timedelta(days=30))
moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def raw(**fields: Any) -> RawBatch:
    given: dict[str, Any] = {
        "models": 2,
        "windows": (WINDOW, timedelta(days=3)),
        "model_index": bytes([0, 1]),
        "event_time_micros": columns.pack_times([NOW, NOW]),
        "score": columns.pack_float64([0.25, 0.75]),
        "label": bytes([0, 1]),
    }
    return RawBatch(**(given | fields))


def test_columns_become_arrays() -> None:
    rows, refusals = decode_examples(raw(weight=columns.pack_float64([2, 3])), NOW)
    assert (rows.value.tolist(), rows.label.tolist(), rows.model.tolist()) == ([0.25, 0.75], [0, 1], [0, 1])
    assert rows.weight is not None and rows.weight.tolist() == [2, 3]
    assert rows.event.tolist() == [micros(NOW)] * 2
    assert len(refusals) == 0


def test_the_first_reason_that_applies_is_the_one_that_counts() -> None:
    bad = raw(model_index=bytes([9, 0]), score=columns.pack_float64([np.nan, np.nan]), label=bytes([7, 7]))
    rows, refusals = decode_examples(bad, NOW)
    assert len(rows) == 0
    assert {entry.reason: (entry.rows, entry.first_row) for entry in refusals.summary()} == {
        Reason.BAD_INDEX: (1, 0),
        Reason.BAD_SCORE: (1, 1),
    }
    assert len(refusals.within(2, 2)) == 1


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=6))
def test_any_bytes_are_rows_or_an_error_that_names_its_columns(
    times: bytes, scores: bytes, weights: bytes, index: bytes
) -> None:
    batch = raw(model_index=index, event_time_micros=times, score=scores, weight=weights, label=index)
    try:
        rows, refusals = decode_examples(batch, NOW)
    except InvalidFields as error:
        wrong = {violation.path for violation in error.violations}
    else:
        wrong = set()
        assert len(rows) + len(refusals) == len(index)
        assert np.isfinite(rows.value).all()
    assert wrong <= {"model_index", "event_time_micros", "score", "weight", "label"}


@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2, st.integers(0, 2), st.integers(0, 1)), max_size=30))
def test_repeated_examples_leave_the_preferred_one(drawn: list[tuple[int, int, int, int]]) -> None:
    doubled = drawn + drawn[::3]
    high, low, series, label = np.array(doubled, dtype=np.int64).reshape(-1, 4).T.copy()
    nothing = np.zeros(len(doubled), dtype=np.uint8)
    keys = Keys(np.arange(len(doubled)), nothing, nothing, high, low)
    again = repeated(series, keys, label)
    best: dict[tuple[int, int, int], int] = {}
    for row, (a, b, c, preference) in enumerate(doubled):
        kept = best.get((a, b, c))
        if kept is None or preference > doubled[kept][3]:
            best[a, b, c] = row
    assert np.flatnonzero(~again).tolist() == sorted(best.values())


def test_request_ids_are_cut_in_two_and_stay_themselves() -> None:
    ids = [uuid.UUID(int=1), uuid.UUID(int=2**128 - 1)]
    rows, _ = decode_predictions(raw(label=b"", request_id=columns.pack_request_ids(ids)), NOW)
    assert (rows.high.tolist(), rows.low.tolist()) == ([0, -1], [1, -1])


@pytest.mark.parametrize(("prediction", "oldest"), [(0, timedelta(minutes=21)), (1, timedelta(days=3, minutes=20))])
def test_a_prediction_is_taken_as_long_as_its_labels_may_come(prediction: int, oldest: timedelta) -> None:
    index = bytes([prediction, prediction])
    times = columns.pack_times([NOW - oldest + timedelta(microseconds=1), NOW - oldest])
    given = raw(label=b"", prediction_index=index, event_time_micros=times, request_id=bytes(32))
    rows, refusals = decode_predictions(given, NOW)
    assert (len(rows), [entry.reason for entry in refusals.summary()]) == (1, [Reason.BAD_TIME])
    labels = RawBatch(2, given.windows, given.model_index, index, label_time_micros=times, request_id=bytes(32))
    taken, refused = decode_labels(labels, NOW)
    assert (len(taken), [entry.reason for entry in refused.summary()]) == (1, [Reason.TOO_LATE])


def test_times_may_run_five_minutes_ahead() -> None:
    times = columns.pack_times([NOW + FUTURE, NOW + FUTURE + timedelta(microseconds=1)])
    rows, refusals = decode_examples(raw(event_time_micros=times), NOW)
    assert rows.row.tolist() == [0]
    # What is wrong with the time cannot say when it was: it is counted where it arrived.
    assert refusals.minute.tolist() == [minute_of(NOW)]


@given(windows, moments)
def test_minutes_mature_when_their_last_event_has_waited_long_enough(window: timedelta, now: datetime) -> None:
    first = mature_before(now, window)
    assert matures_at(first - 1, window) <= now < matures_at(first, window)
    assert moment_of(minute_of(now)) <= now <= moment_of(minute_after(now))


@given(windows, moments, st.floats(0, 1))
def test_what_waits_lies_on_a_shelf_that_is_looked_at_and_is_not_dropped_too_soon(
    window: timedelta, now: datetime, age: float
) -> None:
    event = now + FUTURE - (FUTURE + patience(window)) * age * 0.999999
    number = int(Shelving([window]).shelves(np.array([micros(event)]), np.zeros(1, np.uint8))[0])
    live = live_shelves(window, now)
    assert number in live
    assert len(live) <= 13
    assert number < 2**31
    assert shelf_end(number) >= event + patience(window)
    assert shelf_end(number) <= event + patience(window) + timedelta(hours=shelf_of(window).hours)


def test_packing_takes_what_people_have() -> None:
    moments = [NOW, NOW + timedelta(microseconds=1)]
    packed = columns.pack_times(moments)
    assert packed == columns.pack_times(np.array([m.replace(tzinfo=None) for m in moments], "datetime64[us]"))
    assert packed == columns.pack_times([micros(m) for m in moments])
    assert columns.pack_times([]) == b""
    with pytest.raises(TypeError, match="aware datetimes"):
        columns.pack_times([1.5])
    with pytest.raises(TypeError):
        columns.pack_times([datetime(2025, 1, 1)])  # noqa: DTZ001
    ids = [uuid.UUID(int=1), uuid.UUID(int=2)]
    as_bytes = b"".join(name.bytes for name in ids)
    for values in (ids, [str(name) for name in ids], [name.bytes for name in ids]):
        assert columns.pack_request_ids(values) == as_bytes
    array = np.frombuffer(as_bytes, np.uint8).reshape(2, 16)
    assert columns.pack_request_ids(array) == columns.pack_request_ids(array.view("V16")) == as_bytes
    for wrong in ([b"short"], np.zeros((2, 15), np.uint8)):
        with pytest.raises(ValueError, match="16 bytes"):
            columns.pack_request_ids(wrong)
    assert columns.pack_uint8([True, False]) == b"\1\0"
    for numbers in ([0.5], [-1], [256], [np.nan]):
        with pytest.raises(ValueError, match="0 to 255"):
            columns.pack_uint8(numbers)


def test_names_become_a_dictionary_and_an_index() -> None:
    assert columns.index("a", 3) == (["a"], bytes(3))
    assert columns.index(["b", "a", "b"], 3) == (["a", "b"], bytes([1, 0, 1]))
    with pytest.raises(ValueError, match="255 different names"):
        columns.index([str(number) for number in range(256)], 256)
