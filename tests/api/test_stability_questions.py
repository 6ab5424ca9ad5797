"""Series and judgements over what was written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.common.v1.serving_pb2 import FAIL, INCONCLUSIVE, PASS
from modelfleet.registry.v1 import registry_pb2 as registry_pb
from modelfleet.stability.v1 import stability_pb2 as pb
from tests.support.stability import CLICK, CTR, NEW, OLD, StabilityFleet, at, some_ids, stability_fleet

# With 1,000 examples a batch.
EVEN = [1 if index % 50 == 0 else 0 for index in range(1000)]


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_fleet:
        yield running_fleet


async def series(fleet: StabilityFleet, **fields: Any) -> pb.QuerySeriesResponse:
    answer: pb.QuerySeriesResponse = await fleet.client.stability.query_series(model=NEW, **fields)
    return answer


def starts(answer: pb.QuerySeriesResponse) -> list[str]:
    return [f"{point.start_time.ToDatetime(UTC):%H:%M}" for point in answer.points]


async def test_points_are_minutes_or_sums_of_them(fleet: StabilityFleet) -> None:
    times = [at(minutes=-64), at(minutes=-3), at(minutes=-2), at(minutes=-2)]
    await fleet.write(fleet.examples([0.1, 0.2, 0.3, 0.5], [1, 1, 0, 1], event_time=times))
    whole: dict[str, Any] = {"start_time": at(hours=-2), "end_time": at()}
    by_minute = await series(fleet, **whole)
    assert starts(by_minute) == ["10:56", "11:57", "11:58"]
    assert [point.examples for point in by_minute.points] == [1, 1, 2]
    assert by_minute.points[2].calibration.value == pytest.approx(0.8)
    assert starts(await series(fleet, **whole, resolution=Duration(seconds=300))) == ["10:55", "11:55"]
    by_hour = await series(fleet, **whole, resolution=Duration(seconds=3600))
    assert starts(by_hour) == ["10:00", "11:00"]
    assert [point.examples for point in by_hour.points] == [1, 3]
    for answer in (by_minute, by_hour):
        assert (answer.total.examples, answer.total.positives) == (4, 3)
        assert answer.total.calibration.value == pytest.approx(1.1 / 3)


async def test_the_hour_before_now_is_the_default(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.1] * 3, [1] * 3, event_time=[at(minutes=-61), at(minutes=-59), at(minutes=-1)]))
    answer = await series(fleet)
    assert starts(answer) == ["11:01", "11:59"]
    assert answer.total.start_time.ToDatetime(UTC) == at(hours=-1, seconds=-30)
    assert answer.total.end_time.ToDatetime(UTC) == at(seconds=30)


async def test_points_at_the_ends_of_a_span_are_cut_to_it(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.1, 0.1], [1, 1], event_time=[at(minutes=-40), at(minutes=-20)]))
    span: dict[str, Any] = {
        "start_time": at(minutes=-30),
        "end_time": at(minutes=-10),
        "resolution": Duration(seconds=3600),
    }
    (point,) = (await series(fleet, **span)).points
    assert (point.start_time.ToDatetime(UTC), point.examples) == (at(minutes=-30, seconds=-30), 1)


async def test_a_model_without_examples_has_no_points_and_a_total_without_data(fleet: StabilityFleet) -> None:
    answer = await series(fleet)
    assert not answer.points
    states = {answer.total.calibration.state, answer.total.ne.state, answer.total.base_rate.state}
    assert states == {pb.Estimate.NO_DATA}


async def test_a_wider_confidence_widens_the_intervals(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.02] * 1000, EVEN))
    narrow, wide = (await series(fleet, confidence=0.9)).total, (await series(fleet, confidence=0.999)).total
    assert wide.calibration.low < narrow.calibration.low < 1 < narrow.calibration.high < wide.calibration.high


async def judge(fleet: StabilityFleet, **fields: Any) -> pb.Judgement:
    given: dict[str, Any] = {"model": NEW, "start_time": at(hours=-1)} | fields
    answer: pb.Judgement = await fleet.client.stability.judge_model(**given)
    return answer


def criterion(**fields: Any) -> pb.Criterion:
    return pb.Criterion(**(dict[str, Any](prediction=CLICK, calibration=pb.Limits(low=0.5, high=2)) | fields))


async def test_a_good_candidate_passes(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.02] * 1000, EVEN))
    found = await judge(fleet, criteria=[criterion()])
    assert found.verdict == PASS
    assert "within 0.5 to 2" in found.explanation
    assert found.start_time.ToDatetime(UTC) == at(hours=-1, seconds=-30)
    (finding,) = found.findings
    assert (finding.metric, finding.candidate.positives) == (pb.Finding.CALIBRATION, 20)
    assert not finding.HasField("baseline")
    assert await judge(fleet, criteria=[criterion()]) == found


async def test_a_candidate_that_predicts_four_times_too_much_fails(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.08] * 1000, EVEN))
    found = await judge(fleet, criteria=[criterion()])
    assert found.verdict == FAIL
    assert "calibration of click is 4 (99 % interval 2.31 to 7.73) by 20 positives" in found.explanation


async def test_what_the_registry_declares_is_demanded_of_every_prediction(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.02] * 1000, EVEN))
    found = await judge(fleet)
    assert found.verdict == INCONCLUSIVE
    assert [(finding.prediction, finding.verdict) for finding in found.findings] == [
        (CLICK, PASS),
        ("buy", INCONCLUSIVE),
        ("like", INCONCLUSIVE),
    ]
    mask = FieldMask(paths=["predictions"])
    strict = registry_pb.Prediction(id=CLICK, min_positives=21, calibration_range=registry_pb.Range(low=0.9, high=1.1))
    changed = registry_pb.ModelType(name=CTR, predictions=[strict])
    await fleet.client.registry.update_model_type(model_type=changed, update_mask=mask)
    fleet.clock.set(6)
    found = await judge(fleet)
    assert [(finding.prediction, finding.missing_positives) for finding in found.findings] == [(CLICK, 1)]
    assert "within 0.9 to 1.1; it needs about 1 more positive, expected at 12:03 UTC" in found.explanation


async def test_candidate_and_baseline_are_judged_on_the_same_minutes(fleet: StabilityFleet) -> None:
    good = [0.9 if positive else 0.01 for positive in EVEN]
    await fleet.write(fleet.examples(good, EVEN, model=OLD))
    await fleet.write(fleet.examples([0.02] * 1000, EVEN, model=OLD, event_time=[at(hours=-2)] * 1000))
    await fleet.write(fleet.examples([0.02] * 1000, EVEN))
    demanded = [criterion(max_ne_regression=0.02)]
    found = await judge(fleet, baseline=OLD, criteria=demanded)
    assert found.verdict == FAIL
    calibration, regression = found.findings
    assert (calibration.verdict, regression.verdict) == (PASS, FAIL)
    assert regression.baseline.examples == 1000
    assert "where at most +2 % is allowed" in regression.explanation
    swapped = await judge(fleet, model=OLD, baseline=NEW, criteria=demanded)
    assert swapped.findings[1].verdict == PASS


async def test_late_labels_are_waited_for_unless_immature_events_are_asked_for(fleet: StabilityFleet) -> None:
    ids = some_ids(1000)
    await fleet.write(fleet.predictions(ids, [0.02] * 1000, event_time=[at(minutes=-5)] * 1000))
    await fleet.write(fleet.labels([name for name, positive in zip(ids, EVEN, strict=True) if positive]))
    waiting = await judge(fleet, criteria=[criterion()])
    assert waiting.verdict == INCONCLUSIVE
    # Events of 11:55 mature at 11:56 + 10 min + 1 min.
    assert waiting.findings[0].expected_time.ToDatetime(UTC) == at(minutes=6, seconds=30)
    assert "1,000 examples more wait for their labels" in waiting.explanation
    assert (await judge(fleet, criteria=[criterion(include_immature=True)])).verdict == PASS
    fleet.clock.set(6 * 60 + 30)
    assert (await judge(fleet, criteria=[criterion()])).verdict == PASS


async def test_no_positive_at_all_is_told_from_no_example_at_all(fleet: StabilityFleet) -> None:
    nothing = await judge(fleet, criteria=[criterion()])
    assert (nothing.verdict, nothing.findings[0].candidate.examples) == (INCONCLUSIVE, 0)
    await fleet.write(fleet.examples([0.02] * 1000, [0] * 1000))
    found = await judge(fleet, criteria=[criterion()])
    assert found.verdict == FAIL
    assert "no positive among 1,000 examples, where 20 were predicted" in found.explanation


async def test_the_expected_time_follows_the_rate_of_positives(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.02] * 200, EVEN[:200], event_time=[at(minutes=-15)] * 200))
    (finding,) = (await judge(fleet, start_time=at(minutes=-30, seconds=-30), criteria=[criterion()])).findings
    # Four positives in the 30.5 minutes since 11:30; six more take 45 min 45 s.
    assert finding.missing_positives == 6
    assert finding.expected_time.ToDatetime(UTC) == at() + timedelta(minutes=45.75)
