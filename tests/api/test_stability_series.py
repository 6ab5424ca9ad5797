"""Series: labels that are late, bins, what is kept how long, and the same sums at every width of time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.fleet import HealthyRange, Metric, hour_of_week
from modelfleetd.stability.learner import DelayLearner
from modelfleetd.stability.registry import Registry
from modelfleetd.stability.store import Store
from modelfleetd.stability.wire import series as wire
from tests.support.stability import BUY, CLICK, NEW, OLD, StabilityFleet, at, rejected, some_ids, stability_fleet
from tests.support.wait import until

HOUR, FIVE, MINUTE = (Duration(seconds=seconds) for seconds in (3600, 300, 60))
WHOLE: dict[str, Any] = {"start_time": at(minutes=-61, seconds=-30), "end_time": at(minutes=-1, seconds=-30)}


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_fleet:
        yield running_fleet


async def query(fleet: StabilityFleet, model: str = NEW, **fields: Any) -> pb.QuerySeriesResponse:
    answer: pb.QuerySeriesResponse = await fleet.client.stability.query_series(model=model, **fields)
    return answer


async def learn(fleet: StabilityFleet) -> None:
    """Learns what has matured by now, after the fleet's own learner where that is at it."""
    database = await Database.open(fleet.database_url, "stability", max_size=2)
    try:
        registry = Registry(fleet.client.registry, fleet.clock)
        await until(DelayLearner(Store(database), registry, fleet.clock).learn)
    finally:
        await database.close()


async def label(fleet: StabilityFleet, ids: Sequence[Any], event: datetime, age: timedelta) -> None:
    await fleet.write(fleet.labels(ids, label_time=[event + age] * len(ids)))


async def test_calibration_is_known_within_minutes_once_the_delay_of_labels_is(fleet: StabilityFleet) -> None:
    ids = some_ids(200)
    await fleet.write(fleet.predictions(ids, [0.5] * 200))
    await label(fleet, ids[:50], at(minutes=-1), timedelta(seconds=30))
    await label(fleet, ids[50:100], at(minutes=-1), timedelta(minutes=5))
    before = await query(fleet)
    # Nothing has matured: labels are taken to come evenly over 10 minutes. Events of 11:59 are half of a minute old
    # when it ends, and one minute old at 12:00:30.
    assert before.delay_positives == 0
    assert before.total.label_coverage == pytest.approx(0.1)

    fleet.clock.set(2 * 3600)
    await learn(fleet)
    now = at(hours=2)
    late = some_ids(100)
    await fleet.write(fleet.predictions(late, [0.5] * 100, event_time=[now - timedelta(minutes=3)] * 100))
    await label(fleet, late[:25], now - timedelta(minutes=3), timedelta(seconds=10))
    answer = await query(fleet)
    fading = 0.5 ** (1 / 84)
    assert answer.delay_positives == pytest.approx(100 * fading)
    (point,) = answer.points
    assert (point.calibration.value, point.mature, point.matured_share) == (2.0, False, 0.0)
    assert point.label_coverage == pytest.approx(0.5, abs=0.01)
    assert point.corrected_calibration.value == pytest.approx(1.0, abs=0.02)
    assert point.corrected_calibration.low < 1.0 < point.corrected_calibration.high

    # A new model of the type leans on what is known of the others.
    other = some_ids(10)
    event = now - timedelta(minutes=3)
    await fleet.write(fleet.predictions(other, [0.5] * 10, event_time=[event] * 10, model=OLD))
    leaning = await query(fleet, OLD)
    assert leaning.delay_positives == answer.delay_positives
    assert leaning.total.label_coverage == pytest.approx(0.5, abs=0.01)

    # What has matured needs no correction, and learning again changes nothing.
    fleet.clock.set(2 * 3600 + 1200)
    await learn(fleet)
    (point,) = (await query(fleet)).points
    assert (point.mature, point.label_coverage) == (True, 1.0)
    assert point.corrected_calibration == point.calibration
    fleet.clock.set(4 * 3600)
    await learn(fleet)
    fleet.clock.set(4 * 3600 + 60)
    await learn(fleet)
    # Whenever they were learned, the hours before 12:00 and 14:00 have faded since their ends, until 15:00.
    learned = (await query(fleet)).delay_positives
    assert learned == pytest.approx(100 * fading**3 + 25 * fading)


async def test_coverage_of_labels_that_may_be_missing_is_those_that_came(fleet: StabilityFleet) -> None:
    ids = some_ids(8)
    await fleet.write(fleet.predictions(ids, [0.5] * 8, prediction=BUY))
    await fleet.write(fleet.labels(ids[:2], prediction=BUY, label=[1, 0]))
    total = (await query(fleet, prediction=BUY)).total
    assert (total.examples, total.positives, total.label_coverage) == (2, 1, 0.25)
    assert total.corrected_calibration.value == total.calibration.value == 1.0
    # The same for a label that was there first.
    more = some_ids(2)
    await fleet.write(fleet.labels(more[:1], prediction=BUY, label=[0]))
    await fleet.write(fleet.predictions(more, [0.5] * 2, prediction=BUY))
    total = (await query(fleet, prediction=BUY)).total
    assert (total.examples, total.label_coverage) == pytest.approx((3, 0.3))


async def test_bins_show_where_calibration_is_off(fleet: StabilityFleet) -> None:
    # 0.2 as often as it says, 0.8 only half of the time; between the hours nothing is off.
    p, y = [0.2] * 10 + [0.8] * 10, [1, 1] + [0] * 8 + [1] * 5 + [0] * 5
    times = [at(hours=-1, minutes=-30)] * 20
    await fleet.write(fleet.examples(p, y, event_time=times))
    await fleet.write(fleet.examples([0.5] * 2, [0, 1], event_time=[at(hours=-2, minutes=-30)] * 2))
    span: dict[str, Any] = {"start_time": at(hours=-3, seconds=-30), "end_time": at(seconds=-30)}
    answer = await query(fleet, **span, resolution=HOUR)
    assert [point.binned_calibration_error for point in answer.points] == [0.0, pytest.approx(0.15)]
    assert answer.total.binned_calibration_error == pytest.approx(0.3 * 10 / 22)
    assert [each.bin for each in answer.bins] == [13, 16, 18]
    low, middle, high = answer.bins
    assert (low.weight, low.mean_prediction, low.mean_label) == pytest.approx((10, 0.2, 0.2))
    assert (middle.weight, middle.mean_label) == (2, 0.5)
    assert (high.mean_prediction, high.mean_label) == pytest.approx((0.8, 0.5))
    by_minute = await query(fleet, **span, resolution=MINUTE)
    assert not any(point.HasField("binned_calibration_error") for point in by_minute.points)
    # Of parts of hours bins say nothing.
    assert not (await query(fleet, start_time=at(hours=-2, minutes=-10), end_time=at(hours=-1, minutes=-20))).bins


async def test_bins_of_an_hour_are_shown_when_its_labels_are_there(fleet: StabilityFleet) -> None:
    ids = some_ids(4)
    await fleet.write(fleet.predictions(ids, [0.5] * 4))
    hour: dict[str, Any] = {"start_time": at(hours=-1, seconds=-30), "end_time": at(seconds=-30), "resolution": HOUR}
    assert not (await query(fleet, **hour)).bins
    fleet.clock.set(1200)
    await fleet.write(fleet.labels(ids[:2], label_time=[at()] * 2))
    answer = await query(fleet, **hour)
    assert [(each.bin, each.weight, each.mean_label) for each in answer.bins] == [(16, 4.0, 0.5)]
    assert answer.points[0].binned_calibration_error == 0.0


async def test_rejected_rows_are_a_share_of_all_rows(fleet: StabilityFleet) -> None:
    written = await fleet.write(fleet.examples([0.5, float("nan"), 0.5, 0.5], [0, 1, 1, 1]))
    assert rejected(written) == {"BAD_SCORE": 1}
    for resolution in (MINUTE, FIVE, HOUR):
        (point,) = (await query(fleet, resolution=resolution)).points
        assert (point.rejected_rows, point.rejected_share) == (1, 0.25)


async def test_a_model_that_does_not_serve_has_the_declared_ranges(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.5], [1]))
    (point,) = (await query(fleet)).points
    assert point.calibration_range == pb.Limits(low=0.5, high=2.0)
    assert not point.HasField("ne_range")


def test_ranges_follow_the_hour_of_the_week_of_a_windows_last_minute() -> None:
    factors = tuple(1.0 + hour / 1000 for hour in range(168))
    found = HealthyRange(CLICK, Metric.CALIBRATION, 0.9, 1.1, factors)
    ends = [
        datetime(2025, 3, 2, 23, 30, tzinfo=UTC),
        datetime(2025, 3, 3, tzinfo=UTC),
        datetime(2025, 3, 3, 0, 1, tzinfo=UTC),
    ]
    minutes = [int(end.timestamp()) // 60 for end in ends]
    limits = wire.limits(found, minutes)
    assert limits == [pb.Limits(low=found.at(end).low, high=found.at(end).high) for end in ends]
    assert [hour_of_week(end - timedelta(minutes=1)) for end in ends] == [167, 167, 0]


async def test_what_is_old_is_kept_by_the_hour_only(fleet: StabilityFleet) -> None:
    ages = [timedelta(minutes=5), timedelta(days=7), timedelta(days=20), timedelta(days=89)]
    await fleet.write(fleet.examples([0.5] * 4, [1, 0, 1, 0], event_time=[at() - age for age in ages]))
    answer = await query(fleet, start_time=at(days=-90), resolution=HOUR)
    assert ([point.examples for point in answer.points], answer.total.examples) == ([1] * 4, 4)
    assert answer.points[0].end_time.ToDatetime(UTC) - answer.points[0].start_time.ToDatetime(UTC) == timedelta(hours=1)
    assert (await query(fleet, start_time=at(days=-30), resolution=FIVE)).total.examples == 3
    assert (await query(fleet, start_time=at(days=-6.9), resolution=MINUTE)).total.examples == 1
    # Unless it is said how wide points shall be, they are as narrow as can be looked at.
    for days, width in ((1, 60), (6, 300), (8.5, 3600), (60, 3600)):
        points = (await query(fleet, start_time=at(days=-days))).points
        assert points[-1].end_time.seconds - points[-1].start_time.seconds == width
    rows = await fleet.fetch("SELECT count(*) AS rows FROM exposure UNION ALL SELECT count(*) FROM totals_5min")
    assert [row["rows"] for row in rows] == [2, 3]


_SUMS = """
    SELECT minute / $2 * $2 AS start, sum(n) AS n, sum(w) AS w, sum(w2) AS w2, sum(wp) AS wp, sum(w2pq) AS w2pq,
           sum(wl) AS wl, sum(w2l) AS w2l, sum(w2l2) AS w2l2{more}
    FROM {table} JOIN series ON id = series WHERE model = $1 GROUP BY 1 ORDER BY 1
"""
_OF_POSITIVES = ", sum(p_n) AS p_n, sum(p_w) AS p_w, sum(p_w2l1) AS p_w2l1, sum(p_wl) AS p_wl, sum(p_w2l2) AS p_w2l2"


async def everything(fleet: StabilityFleet, model: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every sum that is stored of a model, by table, whatever the labels' age."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    sums = "minute / $2 * $2, sum(n), sum(w), sum(w2l1), sum(wl), sum(w2l2)"
    for table, width in (("exposure", 1), ("totals_5min", 5), ("totals_hour", 60)):
        more = "" if table == "exposure" else _OF_POSITIVES
        rows = await fleet.fetch(_SUMS.format(table=table, more=more), model, width)
        found[table] = [tuple(row.values()) for row in rows]
    for table, width in (("positives", 1), ("positives_hour", 60)):
        statement = f"SELECT {sums} FROM {table} JOIN series ON id = series WHERE model = $1 GROUP BY 1 ORDER BY 1"
        rows = await fleet.fetch(statement, model, width)
        found[table] = [tuple(row.values()) for row in rows]
    bins = "SELECT minute, bin, w, wp, wy FROM bins JOIN series ON id = series WHERE model = $1 ORDER BY 1, 2"
    found["bins"] = [tuple(row.values()) for row in await fleet.fetch(bins, model)]
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_order_batching_repetition_or_delay_changes_a_bit_of_what_is_stored(
    fleet: StabilityFleet, seed: int
) -> None:
    rng, order = np.random.default_rng(seed), random.Random(seed)
    size = 300
    ids = some_ids(size)
    p, weight = rng.beta(0.5, 3, size), rng.lognormal(0, 2, size).clip(0, 1e6)
    y = (rng.random(size) < p).astype(int)
    # Over an hour's end.
    event = [at(minutes=float(minutes)) for minutes in rng.uniform(-9, 0.4, size)]
    at_once = fleet.examples(p.tolist(), y.tolist(), weight=weight.tolist(), event_time=event, model=OLD)
    await fleet.write(at_once)
    batches: list[Any] = []
    for chosen in np.array_split(rng.permutation(size), 5):
        part = {"weight": weight[chosen].tolist(), "event_time": [event[index] for index in chosen]}
        batches.append(fleet.predictions([ids[index] for index in chosen], p[chosen].tolist(), **part))
    for chosen in np.array_split(rng.permutation(np.flatnonzero(y)), 4):
        ages = rng.uniform(0, 500, len(chosen))
        times = [event[index] + timedelta(seconds=age) for index, age in zip(chosen, ages.tolist(), strict=True)]
        times = [min(time, at(minutes=4)) for time in times]
        batches.append(fleet.labels([ids[index] for index in chosen], label_time=times))
    # Twice each, in any order: labels before their predictions, repetitions before, between and after.
    sent = batches * 2
    order.shuffle(sent)
    for index, batch in enumerate(sent):
        if index == len(sent) // 2:
            fleet.clock.set(300)
        assert not rejected(await fleet.write(batch))
    found, expected = await everything(fleet, NEW), await everything(fleet, OLD)
    assert found == expected
    assert len(found["exposure"]) > len(found["totals_5min"]) > len(found["totals_hour"]) == 2
    hours: dict[int, list[Any]] = {}
    for minute, *sums in found["exposure"]:
        hour = hours.setdefault(minute // 60 * 60, [0] * len(sums))
        hours[minute // 60 * 60] = [one + more for one, more in zip(hour, sums, strict=True)]
    assert [(hour, *sums) for hour, sums in hours.items()] == [row[:9] for row in found["totals_hour"]]
