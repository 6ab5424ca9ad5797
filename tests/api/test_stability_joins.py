"""Predictions and labels that find each other, in whatever order they come."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from modelfleet import columns
from modelfleetd.kit.db import Database
from modelfleetd.stability.app import build
from modelfleetd.stability.store import Store
from tests.support.servers import client_of, running
from tests.support.stability import (
    BUY,
    CLICK,
    CTR,
    LIKE,
    NEW,
    OLD,
    WINDOW,
    StabilityFleet,
    at,
    rejected,
    some_ids,
    stability_fleet,
)

IDS = some_ids(4)


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_fleet:
        yield running_fleet


async def test_a_label_finds_its_prediction(fleet: StabilityFleet) -> None:
    assert (await fleet.write(fleet.predictions(IDS, [0.2, 0.3, 0.5, 0.1]))).accepted_rows == 4
    before = await fleet.total()
    assert (before.examples, before.positives, before.matured_share) == (4, 0, 0.0)
    assert (await fleet.write(fleet.labels([IDS[2]]))).accepted_rows == 1
    after = await fleet.total()
    assert (after.examples, after.positives) == (4, 1)
    assert after.calibration.value == pytest.approx(1.1)


async def test_labels_that_come_first_wait_for_their_prediction(fleet: StabilityFleet) -> None:
    assert (await fleet.write(fleet.labels([IDS[2]]))).accepted_rows == 1
    assert (await fleet.total()).examples == 0
    await fleet.write(fleet.predictions(IDS, [0.2, 0.3, 0.5, 0.1]))
    assert (await fleet.total()).calibration.value == pytest.approx(1.1)


async def test_late_labels_end_in_the_bits_of_labels_known_at_once(fleet: StabilityFleet) -> None:
    p, y, w = [0.2, 0.3, 0.5, 0.1], [0, 0, 1, 0], [5, 1, 2, 3]
    await fleet.write(fleet.predictions(IDS, p, weight=w))
    await fleet.write(fleet.labels([IDS[2]]))
    await fleet.write(fleet.examples(p, y, weight=w, model=OLD))
    (one, other) = (await fleet.sums()).values()
    assert one == other
    fleet.clock.set(3600)
    assert (await fleet.total()).ne.value == pytest.approx(0.6087141903367658, rel=1e-6)


async def test_what_is_written_twice_counts_once(fleet: StabilityFleet) -> None:
    again = fleet.predictions([*IDS, IDS[0]], [0.5] * 5)
    assert rejected(await fleet.write(again)) == {"DUPLICATE": 1}
    assert rejected(await fleet.write(fleet.predictions(IDS, [0.5] * 4))) == {"DUPLICATE": 4}
    assert rejected(await fleet.write(fleet.labels([IDS[1], IDS[1]]))) == {"DUPLICATE": 1}
    assert rejected(await fleet.write(fleet.labels([IDS[1]]))) == {"DUPLICATE": 1}
    stranger = some_ids(1)
    assert rejected(await fleet.write(fleet.labels(stranger))) == {}
    assert rejected(await fleet.write(fleet.labels(stranger))) == {"DUPLICATE": 1}
    total = await fleet.total()
    assert (total.examples, total.positives, total.rejected_rows) == (4, 1, 8)


async def test_the_same_request_id_of_another_model_or_prediction_is_another_example(fleet: StabilityFleet) -> None:
    names: dict[str, Any] = {"model": [NEW, OLD, NEW], "prediction": [CLICK, CLICK, LIKE]}
    await fleet.write(fleet.predictions([IDS[0]] * 3, [0.5] * 3, **names))
    await fleet.write(fleet.labels([IDS[0]]))
    assert [(await fleet.total(*key)).positives for key in ((NEW, CLICK), (OLD, CLICK), (NEW, LIKE))] == [1, 0, 0]


async def test_labels_after_the_attribution_window_do_not_count(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.predictions(IDS[:2], [0.5, 0.5], event_time=[at(minutes=-9)] * 2))
    times = [at(minutes=-9) + WINDOW, at(minutes=-9) + WINDOW + timedelta(microseconds=1)]
    answer = await fleet.write(fleet.labels(IDS[:2], label_time=times))
    assert (answer.accepted_rows, rejected(answer)) == (1, {"TOO_LATE": 1})
    assert (await fleet.total()).positives == 1


async def test_an_early_label_that_turns_out_to_be_too_late_is_counted_as_such(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.labels([IDS[0]], label_time=[at(minutes=2)]))
    answer = await fleet.write(fleet.predictions([IDS[0]], [0.5], event_time=[at(minutes=-9)]))
    assert (answer.accepted_rows, rejected(answer)) == (1, {})
    total = await fleet.total()
    assert (total.examples, total.positives, total.rejected_rows) == (1, 0, 1)


async def test_what_can_no_longer_be_joined_is_refused(fleet: StabilityFleet) -> None:
    old = [at(minutes=-21, seconds=-1)]
    assert rejected(await fleet.write(fleet.predictions(IDS[:1], [0.5], event_time=old))) == {"BAD_TIME": 1}
    assert rejected(await fleet.write(fleet.labels(IDS[:1], label_time=old))) == {"TOO_LATE": 1}
    assert rejected(await fleet.write(fleet.predictions(IDS[:1], [0.5], event_time=old, prediction=LIKE))) == {}


async def test_minutes_mature_when_window_and_slack_have_passed(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.predictions(IDS, [0.2, 0.3, 0.5, 0.1], event_time=[at(minutes=-1)] * 2 + [at()] * 2))
    await fleet.write(fleet.labels([IDS[0], IDS[2]]))
    assert (await fleet.total()).ne.state == 2  # NO_DATA: nothing is mature
    # NOW is 12:00:30; events of 11:59 mature at 12:00 + 10 min + 1 min slack, those of 12:00 a minute later.
    fleet.clock.set(10 * 60 + 29)
    assert (await fleet.total()).matured_share == 0.0
    fleet.clock.set(10 * 60 + 30)
    total = await fleet.total(matured_only=True)
    assert (total.matured_share, total.examples, total.positives) == (0.5, 2, 1)
    fleet.clock.set(11 * 60 + 30)
    total = await fleet.total(end_time=at(seconds=30))
    assert (total.matured_share, total.examples, total.mature) == (1.0, 4, True)
    assert total.ne.state == 1


async def test_where_a_missing_label_is_ignored_only_labelled_examples_count(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.predictions(IDS, [0.2, 0.3, 0.5, 0.1], prediction=BUY))
    assert (await fleet.total(NEW, BUY)).examples == 0
    await fleet.write(fleet.labels(IDS[:3], label=[0, 0, 1], prediction=BUY))
    total = await fleet.total(NEW, BUY)
    assert (total.examples, total.positives) == (3, 1)
    assert total.mean_prediction == pytest.approx(1 / 3)


@pytest.mark.parametrize("prediction", [CLICK, BUY])
@pytest.mark.parametrize("order", ["pnl", "pln", "npl", "nlp", "lpn", "lnp"])
async def test_a_positive_outranks_a_negative_in_every_order(
    fleet: StabilityFleet, prediction: str, order: str
) -> None:
    batches = {
        "p": fleet.predictions(IDS[:1], [0.3], prediction=prediction),
        "n": fleet.labels(IDS[:1], label=[0], prediction=prediction),
        "l": fleet.labels(IDS[:1], label=[1], prediction=prediction),
    }
    for kind in order:
        await fleet.write(batches[kind])
    total = await fleet.total(NEW, prediction)
    assert (total.examples, total.positives) == (1, 1)


async def test_no_order_batching_delay_or_repetition_changes_a_bit(fleet: StabilityFleet) -> None:
    rng = np.random.default_rng(11)
    size = 300
    ids = np.frombuffer(rng.bytes(16 * size), dtype=np.uint8).reshape(size, 16)
    p, w = rng.beta(0.3, 3, size), rng.lognormal(0, 2, size)
    y = rng.random(size) < 0.4
    now = np.datetime64(at().replace(tzinfo=None), "us")
    event = now - rng.integers(0, 8 * 60, size).astype("timedelta64[s]")
    labelled = event + rng.integers(0, 120, size).astype("timedelta64[s]")

    def requests(model: str, parts: int) -> list[Any]:
        made: list[Any] = []
        common: dict[str, Any] = {"model_type": CTR, "producer": model, "model": model, "prediction": CLICK}
        for part in np.array_split(rng.permutation(size), parts):
            # Every fifth row is sent again with the next batch.
            part = np.concatenate((part, rng.permutation(size)[: size // 5]))
            scores: dict[str, Any] = {
                "score": p[part],
                "weight": w[part],
                "request_id": ids[part],
                "event_time": event[part],
            }
            made.append(columns.predictions(**common, sequence=len(made) + 1, **scores))
            chosen = part[y[part]]
            labels: dict[str, Any] = {"request_id": ids[chosen], "label_time": labelled[chosen]}
            made.append(columns.labels(**common, sequence=len(made) + 1, **labels))
        return [made[index] for index in rng.permutation(len(made))]

    for model, parts in ((OLD, 1), (NEW, 6)):
        for request in requests(model, parts):
            await fleet.write(request)
    at_once = fleet.examples(p.tolist(), y.tolist(), weight=w, event_time=event, model=OLD, prediction=LIKE)
    await fleet.write(at_once)
    by_series: dict[tuple[str, str], dict[int, tuple[int, ...]]] = {}
    for (model, prediction, minute), sums in (await fleet.sums()).items():
        by_series.setdefault((model, prediction), {})[minute] = sums
    assert by_series[OLD, CLICK] == by_series[NEW, CLICK] == by_series[OLD, LIKE]


async def test_predictions_and_labels_written_at_the_same_moment_find_each_other(fleet: StabilityFleet) -> None:
    ids = some_ids(400)
    async with (
        running(
            "stability", build, fleet.database_url, clock=fleet.clock, registry_address=fleet.registry.address
        ) as other,
        client_of(other) as client,
    ):
        calls: list[Any] = []
        for start in range(0, 400, 20):
            part = ids[start : start + 20]
            calls.append(fleet.write(fleet.predictions(part, [0.5] * 20)))
            calls.append(client.stability.write_labels(fleet.labels(part)))
        await asyncio.gather(*calls)
    total = await fleet.total()
    assert (total.examples, total.positives) == (400, 400)


async def test_labels_are_counted_by_their_age(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.predictions(IDS, [0.5] * 4, event_time=[at(minutes=-9)] * 4))
    ages = [-1, 59, 60, 500]
    await fleet.write(fleet.labels(IDS, label_time=[at(minutes=-9, seconds=age) for age in ages]))
    rows = await fleet.fetch("SELECT age, n FROM positives ORDER BY age")
    assert [(row["age"], row["n"]) for row in rows] == [(0, 2), (1, 1), (6, 1)]


async def test_what_nothing_waits_for_any_more_is_dropped(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.predictions(IDS, [0.5] * 4))
    await fleet.write(fleet.predictions(IDS, [0.5] * 4, prediction=LIKE))
    await fleet.write(fleet.labels([uuid.uuid4()]))
    database = await Database.open(fleet.database_url, "stability")
    try:
        store = Store(database)
        for hours, left in ((0, 4), (1, 4), (2, 2), (24 * 8, 0)):
            await store.sweep(at(hours=hours))
            count = await database.fetchval(
                "SELECT count(*) FROM pg_inherits WHERE inhparent IN ('waiting_predictions'::regclass, "
                "'waiting_labels'::regclass)"
            )
            assert (hours, count) == (hours, left)
        assert (await fleet.total()).examples == 4
        # A repetition of long-gone predictions is refused by its time, not joined again.
        fleet.clock.set(3 * 3600)
        assert rejected(await fleet.write(fleet.predictions(IDS, [0.5] * 4))) == {"BAD_TIME": 4}
    finally:
        await database.close()
