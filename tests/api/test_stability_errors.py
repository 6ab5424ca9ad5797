"""Every way in which a method of stability can be refused, once, through real channels."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.errors import ModelfleetError, Unavailable
from modelfleet.services import AsyncStability
from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleet.stability.v1.statistics_pb2 import BinRows
from modelfleetd.stability.app import build
from tests.support.servers import client_of, running
from tests.support.stability import CLICK, CTR, NEW, OLD, RETRIEVAL, StabilityFleet, at, some_ids, stability_fleet
from tests.support.wait import until

Call = Callable[[AsyncStability], Awaitable[Any]]
NOWHERE = f"{CTR}/models/nowhere"
MICROS = int(at(minutes=-1).timestamp() * 1_000_000).to_bytes(8, "little")
HALF = b"\0\0\0\0\0\0\xe0?"


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_fleet:
        yield running_fleet


def batch(**fields: Any) -> pb.Batch:
    given: dict[str, Any] = {"model_type": CTR, "producer": "p", "sequence": 1, "models": [NEW], "predictions": [CLICK]}
    return pb.Batch(**(given | fields))


def examples(**fields: Any) -> Call:
    given: dict[str, Any] = {
        "batch": batch(),
        "model_index": b"\0",
        "event_time_micros": MICROS,
        "score": HALF,
        "label": b"\0",
    }
    return lambda client: client.write_examples(pb.WriteExamplesRequest(**(given | fields)))


def predictions(**fields: Any) -> Call:
    given: dict[str, Any] = {"batch": batch(), "model_index": b"\0", "event_time_micros": MICROS, "score": HALF}
    given["request_id"] = bytes(16)
    return lambda client: client.write_predictions(pb.WritePredictionsRequest(**(given | fields)))


def labels(**fields: Any) -> Call:
    given: dict[str, Any] = {
        "batch": batch(),
        "model_index": b"\0",
        "label_time_micros": MICROS,
        "request_id": bytes(16),
    }
    return lambda client: client.write_labels(pb.WriteLabelsRequest(**(given | fields)))


def query(**fields: Any) -> Call:
    return lambda client: client.query_series(**(dict[str, Any](model=NEW) | fields))


def judge(**fields: Any) -> Call:
    return lambda client: client.judge_model(**(dict[str, Any](model=NEW, start_time=at(hours=-1)) | fields))


def demand(**fields: Any) -> Call:
    return judge(
        criteria=[pb.Criterion(**(dict[str, Any](prediction=CLICK, calibration=pb.Limits(low=0.5, high=2)) | fields))]
    )


INVALID: dict[str, tuple[Call, str]] = {
    "statistics without rows": (lambda c: c.write_statistics(batch=batch()), "exposure"),
    "statistics of no bin": (lambda c: c.write_statistics(batch=batch(), bins=BinRows(model_index=b"\0")), "bins.bin"),
    "sampled examples": (examples(batch=batch(sample_permille=10)), "batch.sample_permille"),
    "sample": (predictions(batch=batch(sample_permille=1001)), "batch.sample_permille"),
    "no batch": (lambda c: c.write_examples(model_index=b"\0"), "batch"),
    "type name": (examples(batch=batch(model_type="ctr")), "batch.model_type"),
    "no producer": (examples(batch=batch(producer="")), "batch.producer"),
    "long producer": (examples(batch=batch(producer="p" * 201)), "batch.producer"),
    "no sequence": (examples(batch=batch(sequence=0)), "batch.sequence"),
    "negative sequence": (examples(batch=batch(sequence=-1)), "batch.sequence"),
    "no models": (examples(batch=batch(models=[])), "batch.models"),
    "too many models": (
        examples(batch=batch(models=[f"{CTR}/models/m{index}" for index in range(256)])), "batch.models"),
    "model twice": (examples(batch=batch(models=[NEW, NEW])), "batch.models"),
    "model name": (examples(batch=batch(models=["new"])), "batch.models[0]"),
    "model of another type": (
        examples(batch=batch(models=[NEW, f"{RETRIEVAL}/models/two_towers"])), "batch.models[1]"),
    "no predictions": (examples(batch=batch(predictions=[])), "batch.predictions"),
    "prediction twice": (examples(batch=batch(predictions=[CLICK, CLICK])), "batch.predictions"),
    "prediction not declared": (examples(batch=batch(predictions=[CLICK, "nope"])), "batch.predictions[1]"),
    "no rows": (examples(model_index=b""), "model_index"),
    "ragged index": (examples(prediction_index=b"\0\0"), "prediction_index"),
    "ragged times": (examples(event_time_micros=MICROS * 2), "event_time_micros"),
    "half a time": (examples(event_time_micros=MICROS[:4]), "event_time_micros"),
    "no times": (examples(event_time_micros=b""), "event_time_micros"),
    "ragged scores": (examples(score=HALF[:-1]), "score"),
    "no score and no logit": (examples(score=b""), "score"),
    "score and logit": (examples(logit=HALF), "logit"),
    "ragged logits": (examples(score=b"", logit=HALF * 2), "logit"),
    "ragged labels": (examples(label=b"\0\0"), "label"),
    "no labels": (examples(label=b""), "label"),
    "ragged weights": (examples(weight=HALF * 2), "weight"),
    "predictions: no ids": (predictions(request_id=b""), "request_id"),
    "predictions: short id": (predictions(request_id=bytes(15)), "request_id"),
    "predictions: ragged scores": (predictions(score=HALF * 2), "score"),
    "predictions: score and logit": (predictions(logit=HALF), "logit"),
    "predictions: ragged weights": (predictions(weight=HALF * 3), "weight"),
    "predictions: ragged times": (predictions(event_time_micros=MICROS * 2), "event_time_micros"),
    "predictions: no rows": (predictions(model_index=b""), "model_index"),
    "predictions: batch": (predictions(batch=batch(producer="")), "batch.producer"),
    "labels: short id": (labels(request_id=bytes(17)), "request_id"),
    "labels: ragged times": (labels(label_time_micros=MICROS * 2), "label_time_micros"),
    "labels: no times": (labels(label_time_micros=b""), "label_time_micros"),
    "labels: ragged labels": (labels(label=b"\0\0"), "label"),
    "labels: no rows": (labels(model_index=b""), "model_index"),
    "labels: batch": (labels(batch=batch(sequence=0)), "batch.sequence"),
    "series without a model": (query(model=""), "model"),
    "series of no model": (query(model=CTR), "model"),
    "series prediction": (query(prediction="nope"), "prediction"),
    "series backwards": (query(start_time=at(), end_time=at()), "start_time"),
    "series resolution": (query(resolution=Duration(seconds=61)), "resolution"),
    "series negative resolution": (query(resolution=Duration(seconds=-60)), "resolution"),
    "series of too many points": (query(start_time=at(days=-7.5), resolution=Duration(seconds=60)), "resolution"),
    "series of minutes that are gone": (
        query(start_time=at(days=-9), end_time=at(days=-8.9), resolution=Duration(seconds=60)), "resolution"),
    "series of more than a year": (query(start_time=at(days=-600)), "start_time"),
    "series confidence": (query(confidence=1.0), "confidence"),
    "series confidence not a number": (query(confidence=float("nan")), "confidence"),
    "judge no model": (judge(model="x"), "model"),
    "judge no start": (lambda c: c.judge_model(model=NEW), "start_time"),
    "judge backwards": (judge(end_time=at(hours=-2)), "start_time"),
    "judge in the future": (judge(start_time=at(hours=1)), "start_time"),
    "judge baseline name": (judge(baseline="old"), "baseline"),
    "judge baseline of another type": (judge(baseline=f"{RETRIEVAL}/models/two_towers"), "baseline"),
    "judge against itself": (judge(baseline=NEW), "baseline"),
    "judge prediction": (demand(prediction="nope"), "criteria[0].prediction"),
    "judge no prediction": (demand(prediction=""), "criteria[0].prediction"),
    "judge limits": (demand(calibration=pb.Limits(low=2, high=1)), "criteria[0].calibration.high"),
    "judge limits not a number": (demand(ne=pb.Limits(low=float("nan"))), "criteria[0].ne.low"),
    "judge regression without a baseline": (demand(max_ne_regression=0.1), "criteria[0].max_ne_regression"),
    "judge regression below 0": (demand(max_ne_regression=-0.1), "criteria[0].max_ne_regression"),
    "judge positives": (demand(min_positives=-1), "criteria[0].min_positives"),
    "judge confidence": (demand(confidence=2.0), "criteria[0].confidence"),
    "judge nothing": (judge(criteria=[pb.Criterion(prediction=CLICK)]), "criteria[0]"),
}  # fmt: skip

REFUSED: dict[str, tuple[Call, str, str]] = {
    "examples of no type": (
        examples(batch=batch(model_type="modelTypes/nope", models=["modelTypes/nope/models/a"])),
        "REFERENCE_NOT_FOUND", "batch.model_type"),
    "examples of no model": (examples(batch=batch(models=[NEW, NOWHERE])), "REFERENCE_NOT_FOUND", "batch.models[1]"),
    "examples of retrieval": (
        examples(batch=batch(model_type=RETRIEVAL, models=[f"{RETRIEVAL}/models/two_towers"])),
        "NOT_CONFIGURED", "predictions"),
    "predictions of no model": (predictions(batch=batch(models=[NOWHERE])), "REFERENCE_NOT_FOUND", "batch.models[0]"),
    "labels of no model": (labels(batch=batch(models=[NOWHERE])), "REFERENCE_NOT_FOUND", "batch.models[0]"),
    "series of no model": (query(model=NOWHERE), "RESOURCE_NOT_FOUND", ""),
    "series of retrieval": (query(model=f"{RETRIEVAL}/models/two_towers"), "NOT_CONFIGURED", "predictions"),
    "judge no model": (judge(model=NOWHERE), "RESOURCE_NOT_FOUND", ""),
    "judge retrieval": (judge(model=f"{RETRIEVAL}/models/two_towers"), "NOT_CONFIGURED", "predictions"),
    "judge against no model": (judge(baseline=NOWHERE), "REFERENCE_NOT_FOUND", "baseline"),
}  # fmt: skip


async def test_wrong_fields_are_named(fleet: StabilityFleet) -> None:
    for case, (call, path) in INVALID.items():
        with pytest.raises(ModelfleetError) as caught:
            await call(fleet.client.stability)
        assert caught.value.reason == "INVALID_FIELDS", case
        assert path in [violation.field for violation in caught.value.violations], (case, caught.value)
    assert await fleet.sums() == {}
    assert await fleet.fetch("SELECT 1 FROM batches") == []


async def test_what_does_not_exist_or_does_not_apply_is_named(fleet: StabilityFleet) -> None:
    for case, (call, reason, field) in REFUSED.items():
        with pytest.raises(ModelfleetError) as caught:
            await call(fleet.client.stability)
        assert caught.value.reason == reason, (case, caught.value)
        assert caught.value.metadata.get("field", "") == field, case
    assert await fleet.sums() == {}


async def test_all_wrong_columns_are_named_at_once(fleet: StabilityFleet) -> None:
    call = examples(event_time_micros=MICROS[:5], score=HALF * 2, label=b"\0" * 3, weight=b"x")
    with pytest.raises(ModelfleetError) as caught:
        await call(fleet.client.stability)
    assert [v.field for v in caught.value.violations] == ["event_time_micros", "score", "label", "weight"]
    assert "has 16 bytes, must have 8 bytes: 8 for each of the 1 rows of model_index" in caught.value.message


async def test_a_message_beyond_the_limit_is_refused_before_it_is_read(fleet: StabilityFleet) -> None:
    with pytest.raises(ModelfleetError) as caught:
        await examples(score=bytes(5 << 20))(fleet.client.stability)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await fleet.write(fleet.examples([0.5], [1]))).accepted_rows == 1


async def test_only_those_may_write_who_have_a_role_for_it(fleet: StabilityFleet) -> None:
    async with client_of(fleet.registry, fleet.stability, principal="mallory") as stranger:
        for call in (examples(), predictions(), labels(), lambda c: c.write_statistics(batch=batch())):
            with pytest.raises(ModelfleetError) as caught:
                await call(stranger.stability)
            assert caught.value.reason == "ROLE_MISSING"
        assert (await query()(stranger.stability)).total.examples == 0


async def test_without_the_registry_known_types_go_on_and_unknown_ones_wait(database_url: str) -> None:
    async with stability_fleet(database_url) as fleet:
        await fleet.write(fleet.examples([0.5], [1]))
        fleet.clock.set(3600)
        await fleet.registry.__aexit__(None, None, None)
        answer = await fleet.write(fleet.examples([0.5], [1], event_time=[at(minutes=59)]))
        assert answer.accepted_rows == 1
        with pytest.raises(Unavailable) as caught:
            await fleet.write(fleet.examples([0.5], [1], model=OLD, event_time=[at(minutes=59)]))
        assert caught.value.metadata["part"] == "registry"
        assert (await fleet.total()).examples == 2


async def test_a_service_without_a_registry_starts_and_says_what_is_missing(database_url: str) -> None:
    async with (
        running("stability", build, database_url, registry_address="127.0.0.1:1") as service,
        client_of(service) as client,
    ):
        for call in (query(), judge(), examples()):
            with pytest.raises(Unavailable) as caught:
                await call(client.stability)
            assert caught.value.metadata["part"] == "registry"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_lost_database_is_unavailable_and_nothing_is_half_written(postgres: Any, mode: str) -> None:
    url = postgres.create()
    async with stability_fleet(url) as fleet:
        batches = [fleet.examples([0.5], [1]), fleet.predictions(some_ids(3), [0.5] * 3)]
        for request in batches:
            await fleet.write(request)
        again = fleet.predictions(some_ids(4), [0.5] * 4)
        postgres.stop(mode)
        try:
            with pytest.raises(Unavailable) as caught:
                await fleet.client.stability.write_predictions(again, timeout=5)
            assert caught.value.metadata["part"] == "database"
        finally:
            postgres.start()

        async def is_written() -> bool:
            # The tests' server forgets its last commits in a crash, as a standby may that takes over: what this
            # replica remembers of the database is then wrong, and producers repeat.
            with contextlib.suppress(Unavailable):
                return all([await fleet.write(request) for request in (*batches, again)])
            return False

        assert await until(is_written)
        assert all([(await fleet.write(request)).duplicate for request in (*batches, again)])
        assert (await fleet.total()).examples == 8
    postgres.drop(url)
