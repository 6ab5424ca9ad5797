"""Sums that producers make themselves, and requests that they choose: the same tables, and nothing that cannot be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from modelfleet import columns
from modelfleet.errors import AlreadyExists, InvalidArgument
from modelfleet.stability.v1 import stability_pb2 as pb
from tests.support.stability import BUY, CLICK, LIKE, NEW, OLD, StabilityFleet, at, rejected, stability_fleet


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_fleet:
        yield running_fleet


def some_rows(size: int, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "event_time": np.datetime64("2025-03-01T11:00:00") + rng.integers(0, 3600, size).astype("timedelta64[s]"),
        "score": rng.beta(0.3, 9, size),
        "label": (rng.random(size) < 0.2).astype(np.uint8),
        "weight": rng.lognormal(0, 4, size).clip(0, 1e6),
        "prediction": np.array([CLICK, BUY, LIKE])[rng.integers(0, 3, size)],
    }


async def everything(fleet: StabilityFleet, model: str) -> list[tuple[Any, ...]]:
    """What the tables hold of a model, to the last bit."""
    found: list[tuple[Any, ...]] = []
    for table in ("exposure", "positives", "bins", "totals_5min", "totals_hour", "positives_hour"):
        rows = await fleet.fetch(f"SELECT * FROM {table} JOIN series ON series.id = series WHERE model = $1", model)
        left_out = {"series", "id", "model"}
        found += [tuple((key, str(value)) for key, value in row.items() if key not in left_out) for row in rows]
    return sorted(found)


def statistics(fleet: StabilityFleet, **rows: Any) -> pb.WriteStatisticsRequest:
    return columns.statistics(**(fleet._batch() | rows))


async def test_sums_of_a_producer_leave_the_bits_that_its_examples_would(fleet: StabilityFleet) -> None:
    rows = some_rows(5_000)
    size = len(rows["score"])
    await fleet.write(fleet.examples(**({"p": [], "y": []} | rows | {"model": OLD})))
    for part in np.array_split(np.random.default_rng(2).permutation(size), 3):
        answer = await fleet.write(statistics(fleet, **{name: column[part] for name, column in rows.items()}))
        assert not answer.rejected
    expected = await everything(fleet, OLD)
    assert len(expected) > 400
    assert await everything(fleet, NEW) == expected


async def test_sums_count_once_however_often_they_are_sent(fleet: StabilityFleet) -> None:
    request = statistics(fleet, **some_rows(100))
    first, before = await fleet.write(request), await fleet.sums()
    again = await fleet.write(request)
    assert (again.duplicate, again.accepted_rows) == (True, first.accepted_rows)
    assert await fleet.sums() == before
    request.exposure.examples = request.exposure.examples[::-1]
    with pytest.raises(AlreadyExists):
        await fleet.write(request)


async def test_sums_whose_labels_are_still_to_come_mature_with_their_window(fleet: StabilityFleet) -> None:
    rows = {"event_time": [at(minutes=-1)] * 2, "score": [0.25, 0.5], "label": [0, 1]}
    request = statistics(fleet, **rows)
    request.exposure.known = b"\0" * len(request.exposure.model_index)
    request.positives.known = b"\0"
    request.positives.age_minutes = (3).to_bytes(4, "little")
    # A row of exposure, a row of positives, two bins.
    assert (await fleet.write(request)).accepted_rows == 4
    total = await fleet.total()
    assert (total.examples, total.positives, total.matured_share) == (2, 1, 0.0)
    assert [record["age"] for record in await fleet.fetch("SELECT age FROM positives")] == [3]
    fleet.clock.set(3600)
    assert (await fleet.total()).matured_share == 1.0


async def test_impossible_sums_are_refused_alone_and_seen_in_the_series(fleet: StabilityFleet) -> None:
    times = [at(minutes=-1), at(minutes=-2), at(hours=2)]
    request = statistics(fleet, event_time=times, score=[0.5] * 3, label=[0] * 3)
    exposure = request.exposure
    # The older one comes first: of its sum the highest bit says that it is negative.
    exposure.weight = exposure.weight[:15] + b"\x80" + exposure.weight[16:]
    answer = await fleet.write(request)
    assert answer.accepted_rows == 2
    # The third minute's hour is one of the bins'.
    assert rejected(answer) == {"BAD_STATISTICS": 1, "BAD_TIME": 2}
    total = await fleet.total()
    assert (total.examples, total.rejected_rows) == (1, 3)


async def test_requests_that_were_not_to_be_sent_are_refused(fleet: StabilityFleet) -> None:
    ids: Any = np.random.default_rng(3).integers(0, 256, (1000, 16), dtype=np.uint8)
    chosen = columns.sampled(ids, 100)
    assert 50 < chosen.sum() < 150
    times: dict[str, Any] = {"event_time": [at(minutes=-1)] * len(ids), "sample_permille": 100}
    answer = await fleet.write(fleet.predictions(ids, [0.5] * len(ids), **times))
    assert (answer.accepted_rows, rejected(answer)) == (chosen.sum(), {"NOT_SAMPLED": (~chosen).sum()})
    labels = fleet.labels(ids[chosen], label_time=[at()] * int(chosen.sum()), sample_permille=100)
    answer = await fleet.write(labels)
    assert (answer.accepted_rows, rejected(answer)) == (chosen.sum(), {})
    total = await fleet.total()
    assert (total.examples, total.positives, total.rejected_rows) == (chosen.sum(), chosen.sum(), (~chosen).sum())


async def test_a_sample_is_of_requests_and_within_a_thousand(fleet: StabilityFleet) -> None:
    for permille, request in (
        (-1, fleet.predictions([], [], request_id=np.zeros((1, 16), np.uint8), event_time=[at()], score=[0.5])),
        (1001, fleet.labels([], request_id=np.zeros((1, 16), np.uint8), label_time=[at()])),
        (10, fleet.examples([0.5], [1])),
        (10, statistics(fleet, event_time=[at()], score=[0.5], label=[1])),
    ):
        request.batch.sample_permille = permille
        with pytest.raises(InvalidArgument) as caught:
            await fleet.write(request)
        assert [violation.field for violation in caught.value.violations] == ["batch.sample_permille"]
    assert await fleet.sums() == {}
