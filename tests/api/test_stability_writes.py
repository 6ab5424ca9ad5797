"""Batches of examples: what they become, and that nothing counts twice."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest

from modelfleet import columns
from modelfleet.errors import AlreadyExists
from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.stability.app import build
from tests.support.servers import client_of, running
from tests.support.stability import BUY, CLICK, CTR, LIKE, NEW, OLD, StabilityFleet, at, rejected, stability_fleet


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_fleet:
        yield running_fleet


async def test_examples_become_calibration_and_entropy(fleet: StabilityFleet) -> None:
    answer = await fleet.write(fleet.examples([0.2, 0.3, 0.5, 0.1, 0.3, 0.5, 0.2, 0.4], [0, 0, 1, 0, 1, 0, 1, 1]))
    assert (answer.accepted_rows, answer.duplicate, list(answer.rejected)) == (8, False, [])
    total = await fleet.total()
    assert total.calibration.value == pytest.approx(0.625, rel=1e-9)
    assert total.ne.value == pytest.approx(1.0461657681378878, rel=1e-6)
    assert total.base_rate.value == 0.5
    assert total.mean_prediction == pytest.approx(0.3125)
    assert (total.examples, total.positives, total.matured_share) == (8, 4, 1.0)


async def test_a_repeated_batch_answers_the_same_and_changes_nothing(fleet: StabilityFleet) -> None:
    request = fleet.examples([0.2, math.nan, 0.4], [0, 1, 1])
    first, before = await fleet.write(request), await fleet.sums()
    again = await fleet.write(request)
    assert again.duplicate
    assert (again.accepted_rows, again.rejected) == (first.accepted_rows, first.rejected)
    assert await fleet.sums() == before
    assert (await fleet.total()).rejected_rows == 1


async def test_a_sequence_with_other_content_is_refused(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.2], [0], sequence=1))
    with pytest.raises(AlreadyExists) as caught:
        await fleet.write(fleet.examples([0.2], [1], sequence=1))
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.violations[0].field == "batch.sequence"
    other_kind = fleet.labels([], sequence=1, request_id=np.zeros((1, 16), np.uint8), label_time=[at()])
    with pytest.raises(AlreadyExists):
        await fleet.write(other_kind)
    assert (await fleet.total()).examples == 1


async def test_replicas_that_get_the_same_batches_at_once_count_each_one_once(fleet: StabilityFleet) -> None:
    requests = [fleet.examples([0.1, 0.2, 0.3], [0, 1, 0], model=[NEW, OLD, NEW]) for _ in range(12)]
    async with (
        running(
            "stability", build, fleet.database_url, clock=fleet.clock, registry_address=fleet.registry.address
        ) as other,
        client_of(other) as client,
    ):
        calls = [fleet.write(request) for request in requests]
        calls += [client.stability.write_examples(request) for request in requests]
        answers = await asyncio.gather(*calls)
    assert sum(answer.duplicate for answer in answers) == 12
    assert (await fleet.total(NEW)).examples == 24
    assert (await fleet.total(OLD)).examples == 12


async def test_bad_rows_are_counted_by_reason_and_poison_nothing(fleet: StabilityFleet) -> None:
    p = [0.5, math.nan, math.inf, -0.1, 1.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    y = [1, 1, 1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    w = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, math.nan, math.inf, -1.0, 2e6, 1.0, 1.0, 1.0]
    times = [at(minutes=-1)] * 10 + [at(hours=1), at(days=-365), at(minutes=-1)]
    request = fleet.examples(p, y, weight=w, event_time=times)
    request.model_index = request.model_index[:-1] + b"\x07"
    answer = await fleet.write(request)
    assert answer.accepted_rows == 1
    assert rejected(answer) == {"BAD_SCORE": 4, "BAD_LABEL": 1, "BAD_WEIGHT": 4, "BAD_TIME": 2, "BAD_INDEX": 1}
    assert {pb.RejectedRows.Reason.Name(e.reason): e.first_row for e in answer.rejected}["BAD_TIME"] == 10
    total = await fleet.total()
    assert (total.examples, total.rejected_rows) == (1, 11)
    assert total.calibration.value == 0.5


async def test_times_that_do_not_fit_a_calendar_are_only_bad_times(fleet: StabilityFleet) -> None:
    extremes = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0, -1])
    answer = await fleet.write(fleet.examples([0.5] * 4, [0] * 4, event_time=extremes))
    assert rejected(answer) == {"BAD_TIME": 4}
    assert (await fleet.total()).rejected_rows == 4


async def test_logits_and_weights_are_taken(fleet: StabilityFleet) -> None:
    p = np.array([0.2, 0.3])
    await fleet.write(fleet.examples([0, 0], [1, 0], score=None, logit=np.log(p / (1 - p)), weight=[5, 1]))
    total = await fleet.total()
    assert total.calibration.value == pytest.approx(0.26, rel=1e-9)
    assert total.ne.value == pytest.approx(3.108665497138155, rel=1e-6)


async def test_a_batch_may_mix_models_predictions_and_minutes(fleet: StabilityFleet) -> None:
    times = [at(minutes=-1), at(minutes=-2), at(minutes=-3), at(minutes=-3)]
    request = fleet.examples(
        [0.1, 0.2, 0.3, 0.4], [1, 0, 1, 1], model=[NEW, OLD, NEW, NEW], prediction=[CLICK, BUY, CLICK, LIKE],
        event_time=times,
    )  # fmt: skip
    await fleet.write(request)
    assert (await fleet.total(NEW)).calibration.value == pytest.approx(0.2)
    assert (await fleet.total(OLD, BUY)).examples == 1
    assert (await fleet.total(NEW, LIKE)).mean_prediction == pytest.approx(0.4)
    assert (await fleet.total(OLD)).calibration.state == pb.Estimate.NO_DATA


async def test_a_large_batch_of_a_few_bytes_a_row_fits_a_message(fleet: StabilityFleet) -> None:
    rows = 220_000
    rng = np.random.default_rng(1)
    p = rng.beta(1, 20, rows)
    y = rng.random(rows) < p
    times = np.full(rows, np.datetime64("2025-03-01T11:00:00")) + rng.integers(0, 3000, rows).astype("timedelta64[s]")
    answer = await fleet.write(fleet.examples(p.tolist(), y.tolist(), event_time=times))
    assert answer.accepted_rows == rows
    total = await fleet.total()
    assert total.calibration.value == pytest.approx(p.sum() / y.sum(), rel=1e-9)
    assert total.calibration.low < 1 < total.calibration.high


async def test_no_order_and_no_batching_changes_a_bit(fleet: StabilityFleet) -> None:
    rng = np.random.default_rng(5)
    size = 400
    p, w = rng.beta(0.3, 9, size), rng.lognormal(0, 4, size).clip(0, 1e6)
    y, minute = (rng.random(size) < 0.2).astype(np.uint8), rng.integers(-9, 0, size)
    times = np.array([np.datetime64("2025-03-01T12:00:00")] * size) + minute.astype("timedelta64[m]")

    async def write(model: str, parts: list[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> None:
        for part in parts:
            request = columns.examples(
                model_type=CTR, producer=model, sequence=int(part[0]) + 1, model=model, prediction=CLICK,
                event_time=times[part], score=p[part], label=y[part], weight=w[part],
            )  # fmt: skip
            await fleet.write(request)

    await write(OLD, [np.arange(size)])
    await write(NEW, np.array_split(rng.permutation(size), 7))
    sums = await fleet.sums()
    assert {key[2]: value for key, value in sums.items() if key[0] == OLD} == {
        key[2]: value for key, value in sums.items() if key[0] == NEW
    }
