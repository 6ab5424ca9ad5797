"""Judgements of the past are those that were given: recorded live with a clock that moves, and asked for again."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.common.v1.serving_pb2 import ERROR, FAIL, INCONCLUSIVE, PASS
from modelfleet.errors import InvalidArgument
from modelfleet.stability.v1 import stability_pb2 as pb
from tests.support.stability import BUY, CLICK, NEW, OLD, StabilityFleet, at, some_ids, stability_fleet

# A whole minute.
START = at(seconds=-30)
MINUTES = 30
MICROSECOND = timedelta(microseconds=1)
RATE, PER_MINUTE = 0.04, 100
# From this minute on the new model predicts too much.
FAULT = 9


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running:
        yield running


@dataclass(frozen=True)
class Event:
    """A prediction and, where it is a positive, when its label comes to be."""

    model: str
    request_id: uuid.UUID
    time: datetime
    p: float
    label_time: datetime | None


def history(ages: list[timedelta], *, of_bounds: bool, seed: int = 7) -> list[Event]:
    """Predictions of both models, minute by minute; after a while the new one predicts four times too much.

    With `of_bounds` events lie at the very end of their minute, so that a label is just younger than its age says.
    """
    rng = np.random.default_rng(seed)
    events = []
    for minute in range(MINUTES):
        for model in (NEW, OLD):
            for _ in range(PER_MINUTE):
                within = timedelta(minutes=1) - MICROSECOND if of_bounds else timedelta(seconds=rng.uniform(0, 60))
                time = START + timedelta(minutes=minute) + within
                odds = RATE * rng.uniform(0.5, 1.5)
                label = time + ages[rng.integers(len(ages))] if rng.random() < odds else None
                p = odds * (4.0 if model == NEW and minute >= FAULT else 1.0)
                events.append(Event(model, uuid.UUID(bytes=rng.bytes(16), version=4), time, p, label))
    return events


async def write(fleet: StabilityFleet, events: list[Event], since: datetime, until: datetime) -> None:
    """Writes what happened between two moments: predictions and labels."""
    made = [event for event in events if since <= event.time < until]
    if made:
        ids, models = [event.request_id for event in made], [event.model for event in made]
        times = [event.time for event in made]
        await fleet.write(fleet.predictions(ids, [event.p for event in made], event_time=times, model=models))
    labelled = [event for event in events if event.label_time and since <= event.label_time < until]
    if labelled:
        ids, models = [event.request_id for event in labelled], [event.model for event in labelled]
        stamps = [event.label_time for event in labelled]
        await fleet.write(fleet.labels(ids, label_time=stamps, model=models))


async def live(fleet: StabilityFleet, events: list[Event], asked: dict[str, Any]) -> list[tuple[datetime, int, str]]:
    """What the judge says from minute to minute, while everything comes in."""
    said = []
    for minute in range(1, MINUTES + 1):
        now = START + timedelta(minutes=minute)
        fleet.clock.set((now - at()).total_seconds())
        await write(fleet, events, now - timedelta(minutes=1), now)
        found = await fleet.client.stability.judge_model(model=NEW, start_time=START, **asked)
        said.append((now, int(found.verdict), found.explanation))
    return said


def replayed(answer: pb.ReplayJudgementsResponse) -> list[tuple[datetime, int, str]]:
    return [(moment.time.ToDatetime(UTC), moment.verdict, moment.explanation) for moment in answer.moments]


def criteria(*, include_immature: bool) -> list[pb.Criterion]:
    return [
        pb.Criterion(
            prediction=CLICK,
            calibration=pb.Limits(low=0.7, high=1.4),
            max_ne_regression=0.05,
            max_calibration_difference=0.25,
            include_immature=include_immature,
        )
    ]


async def replay(fleet: StabilityFleet, **fields: Any) -> pb.ReplayJudgementsResponse:
    given: dict[str, Any] = {"model": NEW, "start_time": START, "step": Duration(seconds=60)} | fields
    answer: pb.ReplayJudgementsResponse = await fleet.client.stability.replay_judgements(**given)
    return answer


def first(said: list[tuple[datetime, int, str]], verdict: int) -> datetime | None:
    return next((time for time, found, _ in said if found == verdict), None)


async def test_the_replay_of_mature_events_says_what_was_said_whatever_the_ages_of_labels(
    fleet: StabilityFleet,
) -> None:
    events = history([timedelta(seconds=s) for s in (1, 50, 95, 200, 301, 599)], of_bounds=False)
    asked: dict[str, Any] = {"baseline": OLD, "criteria": criteria(include_immature=False)}
    said = await live(fleet, events, asked)
    answer = await replay(fleet, **asked)
    assert replayed(answer) == said
    # It is the course of a bake that goes wrong: nothing is known at first, then it is good, then it fails.
    assert {verdict for _, verdict, _ in said} == {INCONCLUSIVE, PASS, FAIL}
    failed = first(said, FAIL)
    assert failed is not None
    assert answer.first_fail_time.ToDatetime(UTC) == failed
    assert answer.first_pass_time.ToDatetime(UTC) == first(said, PASS)
    after = round((failed - START) / timedelta(minutes=1))
    assert answer.explanation.startswith(f"Would have failed at {failed:%Y-%m-%d %H:%M} UTC, {after} min after")
    # Of a coarser step the moments are the same.
    coarse = await replay(fleet, **asked, step=Duration(seconds=420))
    assert replayed(coarse) == [*said[6::7], said[-1]]


async def test_with_immature_events_it_says_the_same_where_labels_come_at_the_ends_of_their_buckets(
    fleet: StabilityFleet,
) -> None:
    events = history([timedelta(minutes=m) - MICROSECOND for m in (1, 2, 3, 6, 8, 10)], of_bounds=True)
    asked: dict[str, Any] = {"baseline": OLD, "criteria": criteria(include_immature=True)}
    said = await live(fleet, events, asked)
    assert replayed(await replay(fleet, **asked)) == said
    assert first(said, FAIL) is not None


async def test_with_immature_events_it_knows_no_label_before_it_came_and_none_later_than_its_bucket_ends(
    fleet: StabilityFleet,
) -> None:
    events = history([timedelta(seconds=s) for s in (5, 70, 130, 260, 400, 590)], of_bounds=False)
    of_calibration = pb.Criterion(prediction=CLICK, calibration=pb.Limits(low=0.7, high=1.4), include_immature=True)
    asked: dict[str, Any] = {"criteria": [of_calibration]}
    known = list(map(positives, await live(fleet, events, asked)))
    again = list(map(positives, replayed(await replay(fleet, **asked))))
    assert all(later <= sooner for later, sooner in zip(again, known, strict=True))
    # Buckets of labels up to 10 min old are 2 min wide at most, and a minute passes until a minute's events are over.
    assert all(later >= sooner for later, sooner in zip(again[3:], known, strict=False))
    assert again != known


def positives(said: tuple[datetime, int, str]) -> int:
    found = re.search(r" by ([\d,]+) positive", said[2])
    return int(found[1].replace(",", "")) if found else 0


async def test_examples_that_came_with_their_labels_count_at_once_on_both_sides(fleet: StabilityFleet) -> None:
    """The candidate's labels come with its examples, the baseline's come later: both go by the minutes of both."""
    predicted = history([timedelta(minutes=1)], of_bounds=False)
    baselines = [event for event in predicted if event.model == OLD]
    times = [START + timedelta(minutes=minute, seconds=30) for minute in range(MINUTES)]
    for minute in range(10, MINUTES + 1, 10):
        now = START + timedelta(minutes=minute)
        fleet.clock.set((now - at()).total_seconds())
        await write(fleet, baselines, now - timedelta(minutes=10), now)
    for time in times:
        labels = [1] * 4 + [0] * 96
        await fleet.write(fleet.examples([0.04] * 100, labels, event_time=[time] * 100, model=NEW))
    asked: dict[str, Any] = {"baseline": OLD, "criteria": criteria(include_immature=False)}
    judged = await fleet.client.stability.judge_model(model=NEW, start_time=START, **asked)
    by_metric = {finding.metric: finding for finding in judged.findings}
    # Labels of the last 11 min may still come on the one side; on the other all are there.
    assert by_metric[pb.Finding.CALIBRATION].candidate.examples == MINUTES * 100
    for metric in (pb.Finding.NE_REGRESSION, pb.Finding.CALIBRATION_DIFFERENCE):
        finding = by_metric[metric]
        assert (finding.candidate.examples, finding.baseline.examples) == ((MINUTES - 11) * 100,) * 2
        assert finding.candidate.end_time.ToDatetime(UTC) == START + timedelta(minutes=MINUTES - 11)
    assert replayed(await replay(fleet, **asked))[-1][1:] == (judged.verdict, judged.explanation)


async def test_without_criteria_what_the_registry_demands_is_replayed(fleet: StabilityFleet) -> None:
    labels = [int(index % 50 == 0) for index in range(1000)]
    await fleet.write(fleet.examples([0.2] * 1000, labels, event_time=[at(minutes=-20)] * 1000))
    judged = await fleet.client.stability.judge_model(model=NEW, start_time=at(hours=-1))
    answer = await replay(fleet, start_time=at(hours=-1), step=Duration(seconds=600))
    assert replayed(answer)[-1] == (START, judged.verdict, judged.explanation)
    assert [moment.verdict for moment in answer.moments] == [INCONCLUSIVE] * 4 + [FAIL] * 2
    assert answer.explanation == (
        "Would have failed at 2025-03-01 11:50 UTC, 50 min after the start: calibration of click is 10 (99 % interval "
        "5.77 to 19.3) by 20 positives among 1,000 examples, wholly above 0.5 to 2."
    )


async def test_a_replay_that_makes_no_sense_is_refused_by_name(fleet: StabilityFleet) -> None:
    of_nothing = pb.Criterion(prediction="nope", ne=pb.Limits(high=1))
    ignored = pb.Criterion(prediction=BUY, calibration=pb.Limits(high=1), include_immature=True)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"step": Duration(seconds=90)}, "step"),
        ({"step": Duration()}, "step"),
        ({"start_time": at(days=-2)}, "step"),
        ({"start_time": at(days=-100), "step": Duration(seconds=86400)}, "start_time"),
        ({"start_time": at(minutes=5)}, "start_time"),
        ({"end_time": at(hours=-2)}, "start_time"),
        ({"baseline": NEW}, "baseline"),
        ({"criteria": [of_nothing]}, "criteria[0].prediction"),
        ({"criteria": [ignored]}, "criteria[0].include_immature"),
    ]
    for fields, path in wrong:
        with pytest.raises(InvalidArgument) as caught:
            await replay(fleet, **({"start_time": at(hours=-1)} | fields))
        assert [violation.field for violation in caught.value.violations] == [path]


async def test_bakes_of_long_ago_are_replayed_by_wider_rows_and_by_mature_events(fleet: StabilityFleet) -> None:
    """Statistics by the minute are kept for 8 days: before that a replay begins at a multiple of 5 min."""
    labels = [int(index % 50 == 0) for index in range(1000)]
    start = at(days=-12, minutes=-57, seconds=-30)  # 11:03
    for minutes in (-57, -40, -20):
        when = at(days=-12, minutes=minutes)
        await fleet.write(fleet.examples([0.02 if minutes < -50 else 0.2] * 1000, labels, event_time=[when] * 1000))
    asked: dict[str, Any] = {"start_time": start, "end_time": at(days=-12), "step": Duration(seconds=600)}
    demanded = pb.Criterion(prediction=CLICK, calibration=pb.Limits(low=0.5, high=2.0))
    answer = await replay(fleet, **asked, criteria=[demanded])
    # What began at 11:03 is of a row that began at 11:00, and not counted. The next is of 11:20 to 11:25.
    assert [moment.verdict for moment in answer.moments] == [INCONCLUSIVE] * 2 + [FAIL] * 4
    assert answer.first_fail_time.ToDatetime(UTC) == start + timedelta(minutes=30)
    demanded.include_immature = True
    with pytest.raises(InvalidArgument, match="ages of labels are kept for 8 d only"):
        await replay(fleet, **asked, criteria=[demanded])


async def test_a_candidate_whose_rows_are_impossible_is_an_error_live_and_replayed(fleet: StabilityFleet) -> None:
    await fleet.write(fleet.examples([0.02] * 100 + [math.nan] * 101, [1] * 201))
    asked: dict[str, Any] = {"start_time": at(hours=-1), "criteria": criteria(include_immature=False), "baseline": OLD}
    judged = await fleet.client.stability.judge_model(model=NEW, **asked)
    assert judged.verdict == ERROR
    assert "click cannot be judged: of the candidate 101 rows were refused as impossible and only 100 examples" in (
        judged.explanation
    )
    assert replayed(await replay(fleet, **asked))[-1][1:] == (ERROR, judged.explanation)
    # Duplicates and what comes too late are no sign of that.
    ids = some_ids(10)
    await fleet.write(fleet.predictions(ids, [0.02] * 10, model=OLD))
    for _ in range(3):
        await fleet.write(fleet.predictions(ids, [0.02] * 10, model=OLD))
    assert (await fleet.client.stability.judge_model(model=OLD, start_time=at(hours=-1))).verdict == INCONCLUSIVE
