"""Whatever is sent among good rows, the tables hold the good rows and nothing else, to the last bit."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from modelfleet import columns
from modelfleet.errors import InvalidArgument, ModelfleetError
from modelfleet.stability.v1 import stability_pb2 as pb
from tests.support.stability import NEW, OLD, StabilityFleet, at, rejected, some_ids, stability_fleet

pytestmark = pytest.mark.faults

# Of rows: what is wrong with each, and the reason that it is refused for.
BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"score": math.nan}, "BAD_SCORE"),
    ({"score": math.inf}, "BAD_SCORE"),
    ({"score": -math.inf}, "BAD_SCORE"),
    ({"score": np.nextafter(1.0, 2.0)}, "BAD_SCORE"),
    ({"weight": math.nan}, "BAD_WEIGHT"),
    ({"weight": math.inf}, "BAD_WEIGHT"),
    ({"weight": -5e-324}, "BAD_WEIGHT"),
    ({"label": 2}, "BAD_LABEL"),
    ({"label": 255}, "BAD_LABEL"),
    ({"event_time": at(hours=1)}, "BAD_TIME"),
    ({"event_time": at(days=-365)}, "BAD_TIME"),
]


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_fleet:
        yield running_fleet


def good_rows(size: int) -> dict[str, list[Any]]:
    rng = np.random.default_rng(size)
    return {
        "score": rng.beta(0.5, 5, size).tolist(),
        "label": (rng.random(size) < 0.3).astype(int).tolist(),
        "weight": rng.lognormal(0, 3, size).clip(0, 1e6).tolist(),
        "event_time": [at(minutes=-1)] * size,
    }


def with_bad_ones(good: dict[str, list[Any]], bad: list[tuple[dict[str, Any], str]]) -> dict[str, list[Any]]:
    """Bad rows between good ones."""
    mixed = {name: list(values) for name, values in good.items()}
    for place, (wrong, _) in enumerate(bad):
        for name, values in mixed.items():
            values.insert(3 * place, wrong.get(name, good[name][0]))
    return mixed


async def tables(fleet: StabilityFleet, model: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for table in ("exposure", "positives", "bins", "totals_5min", "totals_hour", "positives_hour"):
        rows = await fleet.fetch(f"SELECT * FROM {table} JOIN series ON series.id = series WHERE model = $1", model)
        # Refused rows are counted in the same tables: in columns, and rows, of their own.
        left_out = {"series", "id", "model", "rejected"}
        found += [
            tuple((k, str(v)) for k, v in row.items() if k not in left_out) for row in rows if row.get("seen") != 0
        ]
    return sorted(found)


async def test_bad_rows_among_good_ones_leave_no_trace_but_their_count(fleet: StabilityFleet) -> None:
    good = good_rows(50)
    answer = await fleet.write(fleet.examples([], [], **with_bad_ones(good, BAD_ROWS)))
    assert answer.accepted_rows == 50
    reasons = [reason for _, reason in BAD_ROWS]
    assert rejected(answer) == {reason: reasons.count(reason) for reason in set(reasons)}
    await fleet.write(fleet.examples([], [], **good, model=OLD))
    assert await tables(fleet, NEW) == await tables(fleet, OLD) != []
    assert (await fleet.total()).rejected_rows == len(BAD_ROWS)

    # As predictions with labels that come later, the same.
    ids = some_ids(len(with_bad_ones(good, BAD_ROWS)["score"]))
    for prediction, rows in (("buy", with_bad_ones(good, BAD_ROWS)), ("like", good)):
        common: dict[str, Any] = {"prediction": prediction}
        scored = {name: rows[name] for name in ("score", "weight", "event_time")}
        named = ids[: len(rows["score"])]
        await fleet.write(fleet.predictions(named, [], **common, **scored))
        given = [value if value in (0, 1) else 2 for value in rows["label"]]
        answer = await fleet.write(fleet.labels(named, **common, label=given))
        assert rejected(answer).get("BAD_LABEL", 0) == given.count(2)
    totals = [await fleet.total(NEW, prediction) for prediction in ("buy", "like")]
    # A bad label leaves its prediction waiting, which of `buy` does not count.
    assert [total.examples for total in totals] == [50, 50]
    assert len({(total.positives, total.mean_prediction, total.calibration.value) for total in totals}) == 1


async def test_what_is_refused_as_a_whole_changes_nothing_and_says_why(fleet: StabilityFleet) -> None:
    good = fleet.examples([], [], **good_rows(50))
    ragged = pb.WriteExamplesRequest()
    ragged.CopyFrom(good)
    ragged.label += b"\0"
    ragged.weight = ragged.weight[:-1]
    with pytest.raises(InvalidArgument) as caught:
        await fleet.write(ragged)
    assert [violation.field for violation in caught.value.violations] == ["label", "weight"]
    assert "50 bytes: 1 for each of the 50 rows" in caught.value.violations[0].description

    rows = 1_000_000
    million = columns.examples(
        model_type="modelTypes/ctr", producer="p", sequence=1, model=NEW, prediction="click",
        event_time=np.full(rows, np.datetime64("2025-03-01T11:59:00")), score=np.full(rows, 0.5), label=np.ones(rows),
    )  # fmt: skip
    # Too large for the service, and even for the client.
    for request in (million, pb.WriteExamplesRequest(batch=million.batch, model_index=bytes(5 << 20))):
        with pytest.raises(ModelfleetError) as refused:
            await fleet.write(request)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refused.value.message
    assert await fleet.sums() == {}
    assert await fleet.fetch("SELECT 1 FROM batches") == []
    # What was wrong with one says nothing about the next: the same sequence is still free.
    assert (await fleet.write(good)).accepted_rows == 50
