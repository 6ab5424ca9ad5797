"""Usage over time: which rows answer a window, and the steps of a series."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import usage_pb2
from modelfleet.cli.capacity.usage import bar, chart
from modelfleetd.capacity.domain.history import DAY, FIVE_MINUTES, HOUR, KEPT, MINUTE, Change, Level, series, window
from modelfleetd.capacity.domain.ledger import Account
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.remedy import User, remedy
from modelfleetd.errors import InvalidFields

NOW = datetime(2026, 3, 1, 12, 34, 56, tzinfo=UTC)
EU = Place("flavors/cpu", "regions/eu")
spans = st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=500))


@given(ago=spans, length=spans, step=st.none() | st.timedeltas(min_value=MINUTE, max_value=timedelta(days=31)))
def test_whatever_is_asked_for_is_read_from_at_most_two_thousand_rows_that_are_still_kept(
    ago: timedelta, length: timedelta, step: timedelta | None
) -> None:
    start = NOW - ago
    try:
        asked = window(start, start + length, step, NOW)
    except InvalidFields:
        assert length <= timedelta() or step is not None or ago >= KEPT[DAY]
        return
    assert (asked.end - asked.start) / asked.resolution <= 2000 + asked.step / asked.resolution
    assert asked.step % asked.resolution == timedelta()
    assert NOW - max(start, NOW - KEPT[DAY]) <= KEPT[asked.resolution]
    assert step is None or asked.step >= step
    assert len(list(asked.times)) <= 2001
    assert asked.start <= max(start, NOW - KEPT[DAY]) < asked.end <= NOW
    # Steps begin where rows begin.
    assert (asked.start - datetime(1970, 1, 1, tzinfo=UTC)) % asked.resolution == timedelta()


@pytest.mark.parametrize(
    ("start", "step", "resolution", "answered"),
    [
        (timedelta(hours=3), None, MINUTE, MINUTE),
        (timedelta(days=1), timedelta(minutes=10), MINUTE, timedelta(minutes=10)),
        (timedelta(days=5), None, FIVE_MINUTES, timedelta(minutes=40)),
        (timedelta(days=7), None, HOUR, HOUR),
        (timedelta(days=30), timedelta(minutes=30), HOUR, HOUR),
        (timedelta(days=300), None, DAY, timedelta(days=2)),
    ],
)
def test_the_finest_rows_are_used_that_are_kept_so_long(
    start: timedelta, step: timedelta | None, resolution: timedelta, answered: timedelta
) -> None:
    asked = window(NOW - start, None, step, NOW)
    assert (asked.resolution, asked.step) == (resolution, answered)


def test_a_window_that_cannot_be_is_refused_with_every_reason() -> None:
    with pytest.raises(InvalidFields) as refused:
        window(NOW, NOW - HOUR, timedelta(seconds=1), NOW)
    assert [one.path for one in refused.value.violations] == ["start_time", "step"]
    with pytest.raises(InvalidFields, match=r"must be at least 0:05:02"):
        window(NOW - timedelta(days=7), None, timedelta(minutes=4), NOW)
    with pytest.raises(InvalidFields, match="ask for one flavor or region"):
        window(NOW - timedelta(hours=10), None, MINUTE, NOW).check_points(100)


def test_a_series_has_no_gaps_and_begins_where_something_is_known() -> None:
    asked = window(NOW - 5 * MINUTE, NOW, MINUTE, NOW)
    times = list(asked.times)
    changes = {times[1]: Change(9, 0, 0, 9, Level(20, 4, 0, 0)), times[3]: Change(4, 8, 0, 8, Level(20, 0, 8, 0))}
    points = series("pools/a", EU, asked, Level(10, 1, 0, 0), changes).points
    assert [(one.nominal_units, one.serving_units, one.held_units, one.used_units) for one in points] == [
        (10, 1, 0, 1), (20, 9, 0, 9), (20, 4, 0, 4), (20, 4, 8, 8), (20, 0, 8, 8), (20, 0, 8, 8),
    ]  # fmt: skip
    assert [one.time for one in points] == times
    unknown = series("pools/a", EU, asked, None, changes).points
    assert [one.time for one in unknown] == times[1:]
    assert series("pools/a", EU, asked, None, {}).points == ()


def test_what_would_free_capacity_says_who_uses_it_and_until_when() -> None:
    users = [
        User(Account.HELD, "launches/l1", "pools/a", 50, NOW),
        User(Account.HELD, "launches/l2", "pools/b", 40),
        User(Account.RETAINED, "launches/l3", "pools/a", 30, NOW),
        User(Account.SERVING, "modelTypes/ctr/models/m", "pools/b", 20),
    ]
    assert remedy("pools/a", 7, users) == (
        "free 7 or raise the quota by as much: launches/l1 holds 50 until about 2026-03-01 12:34 UTC, "
        "launches/l2 of pools/b holds 40 and does not say until when, "
        "launches/l3 keeps 30 for a rollback until 2026-03-01 12:34 UTC, "
        "modelTypes/ctr/models/m of pools/b serves with 20"
    )
    assert remedy("pools/a", 7, []) == "free 7 or raise the quota by as much"


@pytest.mark.parametrize(
    ("usage", "drawn"),
    [
        (pb.Usage(nominal_units=100, serving_units=50, held_units=25, retained_units=5), "██████████▓▓▓▓▓░····│"),
        (pb.Usage(nominal_units=100), "····················│"),
        (pb.Usage(nominal_units=50, serving_units=50, held_units=50), "██████████│▓▓▓▓▓▓▓▓▓▓"),
        (pb.Usage(serving_units=3), "│████████████████████"),
        (pb.Usage(), ""),
    ],
)
def test_a_bar_shows_what_is_used_of_what_is_owned(usage: pb.Usage, drawn: str) -> None:
    assert bar(usage) == drawn


@pytest.mark.parametrize("points", [1, 3])
def test_a_chart_of_usage_lasts_as_long_as_its_steps_and_begins_at_0(points: int) -> None:
    begins = [Timestamp(seconds=1_740_000_000 + 600 * step) for step in range(points)]
    series = usage_pb2.UsageSeries(
        points=[usage_pb2.UsagePoint(time=begin, nominal_units=100, used_units=110) for begin in begins]
    )
    drawn = chart(series, Duration(seconds=600), ("used", "quota"), NOW)
    assert [(one.label, one.x[0], one.x[-1]) for one in drawn.series] == [
        (label, 1_740_000_000, 1_740_000_000 + 600 * points) for label in ("used", "quota")
    ]
    assert drawn.zero_y and drawn.title.endswith("the most in each step of 10m")
    # The step that goes on ends now.
    going_on = begins[-1].ToDatetime(tzinfo=UTC) + timedelta(seconds=90)
    assert chart(series, Duration(seconds=600), ("used",), going_on).series[0].x[-1] == begins[-1].seconds + 90
