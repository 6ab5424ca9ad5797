"""Statistics that producers make: the same bits as the service's own, and what cannot be is refused row by row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelfleet import columns, exact
from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleet.stability.v1 import statistics_pb2
from modelfleetd.errors import InvalidFields
from modelfleetd.stability.domain import losses
from modelfleetd.stability.domain.columns import Examples, Reason
from modelfleetd.stability.domain.given_statistics import GivenStatistics, RawStatistics, decode_statistics
from modelfleetd.stability.domain.maturity import MINUTE_MICROS, micros, minute_of
from modelfleetd.stability.domain.sampling import sampled
from modelfleetd.stability.domain.summary import summarise_examples
from tests.domain.stability_rows import Row, bin_totals, examples, totals

NOW = datetime(2025, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTE = minute_of(NOW) - 30
WINDOW = timedelta(minutes=10)
KINDS = ("exposure", "positives", "bins")
UNIT = 1 << 40

rows = st.lists(
    st.builds(
        Row,
        p=st.floats(0, 1),
        y=st.integers(0, 1),
        w=st.one_of(st.just(1.0), st.floats(0, 1e6), st.floats(0, 1e-3)),
        model=st.integers(0, 2),
        prediction=st.integers(0, 1),
        minute=st.integers(0, 3),
    ),
    min_size=1,
    max_size=60,
)


def raw(request: pb.WriteStatisticsRequest, models: int = 3, predictions: int = 2) -> RawStatistics:
    sent: dict[str, Mapping[str, bytes]] = {
        kind: {f.name: getattr(part, f.name) for f in part.DESCRIPTOR.fields} if part.ByteSize() else {}
        for kind in KINDS
        for part in [getattr(request, kind)]
    }
    return RawStatistics(models, (WINDOW,) * predictions, **sent)


def made(batch: Examples) -> pb.WriteStatisticsRequest:
    """What a producer sends of these rows."""
    statistics = exact.Statistics()
    given: dict[str, Any] = {"is_logit": batch.is_logit, "label": batch.label, "weight": batch.weight}
    statistics.add(batch.model, batch.prediction, batch.event, batch.value, **given)
    return columns.statistics_request(pb.Batch(), statistics)


def sums_of(found: GivenStatistics) -> Any:
    return totals(found.counted[True]), bin_totals(found.counted[True])


@given(rows, st.booleans())
@settings(max_examples=50)
def test_a_producers_sums_are_the_services_to_the_last_bit(given_rows: list[Row], weighted: bool) -> None:
    batch = examples(given_rows, weighted=weighted)
    found, refusals = decode_statistics(raw(made(batch)), NOW)
    assert len(refusals) == 0, refusals.summary()
    expected = summarise_examples(batch)
    assert sums_of(found) == (totals(expected), bin_totals(expected))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.integers(0, 2**32))
@example([100.0, 0.0, 0.0], 1902072)  # a loss at its bound, of a small weight: the change is a small negative sum
@settings(max_examples=50)
def test_logits_too(logits: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = len(logits)
    batch = Examples(
        row=np.arange(size), model=np.zeros(size, np.uint8), prediction=np.zeros(size, np.uint8),
        event=np.full(size, MINUTE * MINUTE_MICROS), value=np.array(logits), is_logit=True,
        weight=rng.lognormal(0, 3, size).clip(0, 1e6), label=rng.integers(0, 2, size).astype(np.uint8),
    )  # fmt: skip
    found, refusals = decode_statistics(raw(made(batch)), NOW)
    assert len(refusals) == 0, refusals.summary()
    expected = summarise_examples(batch)
    assert sums_of(found) == (totals(expected), bin_totals(expected))


def test_the_producers_losses_are_the_services() -> None:
    rng = np.random.default_rng(2)
    for value, is_logit in ((rng.beta(0.2, 9, 50_000), False), (rng.normal(0, 60, 50_000), True)):
        for name in ("probabilities", "negative_losses", "positive_losses"):
            ours, theirs = (getattr(module, name)(value, is_logit=is_logit) for module in (losses, exact))
            assert ours.tobytes() == theirs.tobytes(), name


@given(rows, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_a_producers_sums_do_not_depend_on_how_it_added_them_up(given_rows: list[Row], parts: int, random: Any) -> None:
    shuffled = list(given_rows)
    random.shuffle(shuffled)
    together = exact.Statistics()
    for part in (shuffled[index::parts] for index in range(parts)):
        batch = examples(part)
        together.add(
            batch.model, batch.prediction, batch.event, batch.value, is_logit=False, label=batch.label,
            weight=batch.weight,
        )  # fmt: skip
    assert together.rows() == tuple(getattr(made(examples(given_rows)), kind) for kind in KINDS)


def exposure(**changes: Any) -> pb.WriteStatisticsRequest:
    """One possible row: 100 examples of weight 1 with p = 0.1, in natural units; or with changes."""
    loss = -np.log1p(-0.1)
    sums = {
        "weight": 100, "weight_squares": 100, "expected": 10, "expected_variance": 9, "loss": 100 * loss,
        "loss_by_squares": 100 * loss, "loss_squares": 100 * loss**2,
    }  # fmt: skip
    places = {"model_index": b"\0", "minute": int32(MINUTE), "examples": int64(100)}
    given = places | {name: wide(value) for name, value in sums.items()} | changes
    return pb.WriteStatisticsRequest(exposure=statistics_pb2.ExposureRows(**given))


def positives(**changes: Any) -> pb.WriteStatisticsRequest:
    """One possible row: 10 of these are positive."""
    l1, l0 = -np.log(0.1), -np.log1p(-0.1)
    sums = {
        "weight": 10, "weight_squares": 10, "positive_loss": 10 * l1, "loss_change": 10 * (l1 - l0),
        "loss_by_squares_change": 10 * (l1 - l0), "loss_squares_change": 10 * (l1**2 - l0**2),
    }  # fmt: skip
    places = {"model_index": b"\0", "minute": int32(MINUTE), "positives": int64(10)}
    given = places | {name: wide(value) for name, value in sums.items()} | changes
    return pb.WriteStatisticsRequest(positives=statistics_pb2.PositiveRows(**given))


def bins(**changes: Any) -> pb.WriteStatisticsRequest:
    sums = {name: wide(value) for name, value in {"weight": 100, "expected": 10, "observed": 9}.items()}
    given = {"model_index": b"\0", "hour": int32(MINUTE // 60), "bin": b"\x0b"} | sums | changes
    return pb.WriteStatisticsRequest(bins=statistics_pb2.BinRows(**given))


def wide(value: float) -> bytes:
    return round(value * UNIT).to_bytes(16, "little", signed=True)


def int32(value: int) -> bytes:
    return value.to_bytes(4, "little", signed=True)


def int64(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


@pytest.mark.parametrize("request_", [exposure(), positives(), bins(), exposure(known=b"\0")])
def test_what_can_be_is_taken(request_: pb.WriteStatisticsRequest) -> None:
    found, refusals = decode_statistics(raw(request_), NOW)
    assert (len(found.minute), len(refusals)) == (1, 0), refusals.summary()


IMPOSSIBLE = {
    "no example": exposure(examples=int64(0)),
    "a negative number of examples": exposure(examples=int64(-1)),
    "more examples than there can be": exposure(examples=int64(2**62)),
    "negative weight": exposure(weight=wide(-1)),
    "more weight than examples may have": exposure(weight=wide(1e9)),
    "squares that are too small for the weight": exposure(weight_squares=wide(99)),
    "squares beyond the largest weight": exposure(weight_squares=wide(1e12)),
    "more expected than weight": exposure(expected=wide(101)),
    "negative expectation": exposure(expected=wide(-0.001)),
    "more variance than a quarter": exposure(expected_variance=wide(26)),
    "losses below the expected positives": exposure(loss=wide(9)),
    "losses beyond the largest": exposure(loss=wide(1e5)),
    "squared losses too small for the losses": exposure(loss_squares=wide(1)),
    "a known that is neither": exposure(known=b"\2"),
    "no positive": positives(positives=int64(0)),
    "positives of negative weight": positives(weight=wide(-1)),
    "positives whose squares are too small": positives(weight_squares=wide(9)),
    "a negative loss of positives": positives(positive_loss=wide(-1)),
    "a change beyond the largest loss": positives(loss_change=wide(-1001)),
    "a change above the loss itself": positives(positive_loss=wide(1)),
    "a negative age": positives(age_minutes=int32(-1)),
    "a bin that there is not": bins(bin=b"\x20"),
    "more expected than weight in a bin": bins(expected=wide(101)),
    "negative weight in a bin": bins(weight=wide(-1)),
}


def test_what_no_examples_can_have_is_refused() -> None:
    for case, request in IMPOSSIBLE.items():
        found, refusals = decode_statistics(raw(request), NOW)
        assert (len(found.minute), [entry.reason for entry in refusals.summary()]) == (0, [Reason.BAD_STATISTICS]), case


def test_places_and_times_are_checked_first() -> None:
    day = 24 * 60
    for request, reason in (
        (exposure(model_index=b"\x07"), Reason.BAD_INDEX),
        (exposure(prediction_index=b"\x07", weight=wide(-1)), Reason.BAD_INDEX),
        (exposure(minute=int32(minute_of(NOW) + 6)), Reason.BAD_TIME),
        (exposure(minute=int32(minute_of(NOW) - 90 * day - 1)), Reason.BAD_TIME),
        (exposure(minute=int32(-(2**31))), Reason.BAD_TIME),
        (bins(hour=int32(2**31 - 1)), Reason.BAD_TIME),
        (positives(age_minutes=int32(11)), Reason.TOO_LATE),
    ):
        _, refusals = decode_statistics(raw(request), NOW)
        assert [entry.reason for entry in refusals.summary()] == [reason]
        assert minute_of(NOW) - 90 * day <= refusals.minute[0] <= minute_of(NOW) + 5
    found, _ = decode_statistics(raw(positives(age_minutes=int32(10))), NOW)
    assert found.counted[True].positives.places.age.tolist() == [6]


def test_rows_of_one_place_are_added_up_and_rows_are_numbered_through() -> None:
    one, two, three = exposure(), positives(), bins(bin=b"\x40")
    request = pb.WriteStatisticsRequest(positives=two.positives, bins=three.bins)
    for name in (field.name for field in one.exposure.DESCRIPTOR.fields):
        setattr(request.exposure, name, getattr(one.exposure, name) * 3)
    found, refusals = decode_statistics(raw(request), NOW)
    assert found.counted[True].exposure.counts.tolist() == [300]
    assert found.counted[True].exposure.columns[0] == (300 * UNIT,)
    assert len(found.minute) == 4
    assert [(entry.reason, entry.first_row) for entry in refusals.summary()] == [(Reason.BAD_STATISTICS, 4)]


@given(st.dictionaries(st.sampled_from([f.name for f in statistics_pb2.ExposureRows.DESCRIPTOR.fields]), st.binary()))
def test_any_bytes_are_rows_or_an_error_that_names_its_columns(sent: dict[str, bytes]) -> None:
    wrong: list[str] = []
    try:
        found, refusals = decode_statistics(RawStatistics(1, (WINDOW,), sent, {}, {}), NOW)
    except InvalidFields as error:
        wrong = [violation.path for violation in error.violations]
    else:
        assert len(found.minute) + len(refusals) == len(sent["model_index"])
    assert all(path.startswith("exposure") for path in wrong)


def test_a_batch_without_rows_and_columns_that_do_not_fit_are_named() -> None:
    with pytest.raises(InvalidFields) as caught:
        decode_statistics(raw(pb.WriteStatisticsRequest()), NOW)
    assert [violation.path for violation in caught.value.violations] == ["exposure"]
    request = exposure(weight=b"x", loss=b"")
    request.bins.hour = int32(1)
    with pytest.raises(InvalidFields) as caught:
        decode_statistics(raw(request), NOW)
    assert [violation.path for violation in caught.value.violations] == [
        "exposure.weight",
        "exposure.loss",
        "bins.model_index",
    ]


def test_columns_say_which_row_a_producer_cannot_add_up() -> None:
    given: dict[str, Any] = {
        "model_type": "modelTypes/ctr", "producer": "p", "sequence": 1, "model": "modelTypes/ctr/models/a",
        "prediction": "click", "event_time": [micros(NOW)] * 2, "label": [0, 1],
    }  # fmt: skip
    assert columns.statistics(**given, score=[0.1, 0.2]).exposure.examples == int64(2)
    assert not columns.statistics(**(given | {"label": [0, 0]}), score=[0.1, 0.2]).HasField("positives")
    for wrong, said in (
        ({"score": [0.1, np.nan]}, "1 rows cannot be counted, the first is row 1"),
        ({"score": [0.1, 0.2], "weight": [1, -1]}, "row 1"),
        ({"logit": [np.inf, 0]}, "row 0"),
        ({"score": [0.1]}, "has 1 rows, event_time 2"),
        ({}, "score or logit"),
        ({"score": [0, 0], "logit": [0, 0]}, "score or logit"),
    ):
        with pytest.raises(ValueError, match=said):
            columns.statistics(**given, **wrong)


def halves(ids: Any) -> tuple[Any, Any]:
    parts = np.frombuffer(ids.tobytes(), dtype=">i8").astype(np.int64).reshape(-1, 2)
    return np.ascontiguousarray(parts[:, 0]), np.ascontiguousarray(parts[:, 1])


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1), st.integers(1, 1000))
def test_producers_and_the_service_choose_the_same_requests(ids: list[bytes], permille: int) -> None:
    chosen = columns.sampled(ids, permille)
    assert chosen.tolist() == sampled(*halves(np.array(ids, dtype="V16")), permille).tolist()
    # A smaller sample lies within a larger one.
    assert not (columns.sampled(ids, max(1, permille - 1)) & ~chosen).any()
    assert columns.sampled(ids, 1000).all()


@pytest.mark.parametrize("kind", ["random", "counters", "high counters"])
@pytest.mark.parametrize("permille", [1, 37, 500])
def test_samples_are_as_large_as_they_should_be_whatever_ids_look_like(kind: str, permille: int) -> None:
    size = 400_000
    ids = np.zeros((size, 2), dtype=">u8")
    if kind == "random":
        ids[:] = np.random.default_rng(7).integers(0, 2**63, (size, 2))
    else:
        ids[:, int(kind == "counters")] = np.arange(size)
    share = permille / 1000
    chosen = columns.sampled(ids.view(np.uint8), permille)
    assert abs(chosen.mean() - share) < 5 * (share * (1 - share) / size) ** 0.5
    # No stretch of ids is chosen more than another.
    parts = chosen[: size // 20 * 20].reshape(20, -1).mean(axis=1)
    assert np.abs(parts - share).max() < 6 * (share * (1 - share) / (size / 20)) ** 0.5


def plainly_sampled(identifier: int, permille: int) -> bool:
    """The same choice in Python's integers, as another producer in another language would write it."""

    def mix(value: int) -> int:
        value = value + 0x9E3779B97F4A7C15 & 2**64 - 1
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        value = (value ^ value >> 27) * 0x94D049BB133111EB & 2**64 - 1
        return value ^ value >> 31

    return (mix(mix(identifier & 2**64 - 1) ^ identifier >> 64) >> 32) * 1000 >> 32 < permille


def test_the_choice_never_changes() -> None:
    ids = [number * 0x123456789ABCDEF0123456789 for number in range(64)]
    chosen = columns.sampled([identifier.to_bytes(16, "big") for identifier in ids], 400).tolist()
    assert chosen == [plainly_sampled(identifier, 400) for identifier in ids]
    assert "".join("-+"[mark] for mark in chosen[:16]) == "--+--+----------"
