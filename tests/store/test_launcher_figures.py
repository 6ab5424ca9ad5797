"""Figures of many launches: what the database counts is what counting by hand gives."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from modelfleetd.kit.db import Database
from modelfleetd.launcher.domain.figures import Asked, GroupBy, LaunchStatistics, figures_of
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.record import Abort, PhaseTime
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.waits import Waits
from modelfleetd.launcher.store import Change, Store
from modelfleetd.launcher.store.figures import statistics_query
from tests.store.test_launcher_store import insert, launch

# A Monday.
NOW = datetime(2026, 3, 2, tzinfo=UTC)
CAUSES = ("gate/stability", "deadline", "alice", "")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    database = await Database.open(database_url, "launcher", max_size=1)
    try:
        yield Store(database)
    finally:
        await database.close()


def ended(number: int) -> Launch:
    """One of many launches that have ended, each a little different."""
    state = (State.SUCCEEDED, State.SUCCEEDED, State.ROLLED_BACK, State.CANCELLED, State.FAILED)[number % 5]
    end = NOW - timedelta(hours=7 * number)
    began = end - timedelta(minutes=11 * number % 97 + 20)
    moved = began + timedelta(minutes=number % 13)
    author = "" if state is State.SUCCEEDED else CAUSES[number % 3]
    return launch(
        f"l{number}",
        f"r{number}",
        state=state,
        end_time=end,
        team=f"teams/t{number % 3}",
        surface=f"s{number % 2}",
        strategy=Strategy.END_EXPERIMENT if number % 4 == 0 else Strategy.REPLACE_BASELINE,
        phase_times=(
            PhaseTime(State.PENDING, began, moved),
            PhaseTime(State.SHIFTING, moved, end),
            PhaseTime(state, end, end),
        ),
        waits=Waits(
            times={"Baking": timedelta(minutes=number % 11), "AwaitingApproval": timedelta(seconds=number)},
            failed={"stability": 1} if author == "gate/stability" else {},
        ),
        abort=Abort(author, "because", end) if author else None,
    )


async def record(store: Store, launches: Sequence[Launch]) -> None:
    """Ends launches as rounds do."""
    for done in launches:
        began = replace(done, state=State.PENDING, end_time=None, waits=Waits(), abort=None)
        await insert(store, began)
        (claim,) = await store.claim("a", 30, 1)
        after = replace(done, version=claim.launch.version, epoch=claim.launch.epoch)
        assert await store.record(Change(claim.launch, after, due=0.0)) is not None


def by_hand(launches: Sequence[Launch], group: str, weeks: float) -> LaunchStatistics:
    """The simple figures of a group, counted another way."""
    states = Counter(found.state for found in launches)
    times = sorted(figures_of(found).duration for found in launches if found.state is State.SUCCEEDED)
    seconds = [time.total_seconds() for time in times]
    return LaunchStatistics(
        group=group,
        launches=len(launches),
        succeeded=states[State.SUCCEEDED],
        rolled_back=states[State.ROLLED_BACK],
        cancelled=states[State.CANCELLED],
        failed=states[State.FAILED],
        succeeded_per_week=states[State.SUCCEEDED] / weeks,
        median_duration=timedelta(seconds=statistics.median(seconds)) if seconds else None,
        p90_duration=times[math.ceil(0.9 * len(times)) - 1] if times else None,
        people_wait=sum((figures_of(found).people_wait for found in launches), timedelta(0)),
    )


def without_lists(found: LaunchStatistics) -> LaunchStatistics:
    return replace(found, phases=(), waits=(), causes=(), failed_gates=())


def _week(found: Launch) -> str:
    assert found.end_time is not None
    return f"{found.end_time - timedelta(days=found.end_time.weekday()):%Y-%m-%d}"


GROUPS: dict[GroupBy, Callable[[Launch], str]] = {
    GroupBy.TEAM: lambda found: found.team,
    GroupBy.SURFACE: lambda found: found.surface,
    GroupBy.STRATEGY: lambda found: found.strategy.name,
    GroupBy.WEEK: _week,
}


async def test_the_figures_of_every_group_are_those_that_counting_gives(store: Store) -> None:
    launches = [ended(number) for number in range(60)]
    await record(store, launches)
    start, end = NOW - timedelta(days=14), NOW
    within = [found for found in launches if found.end_time and start <= found.end_time < end]
    assert 0 < len(within) < len(launches) - 1, "some are before, one is at the end, and neither counts"

    (whole,) = await store.statistics(Asked(start, end))
    assert without_lists(whole) == by_hand(within, "", 2.0)
    assert [phase.phase for phase in whole.phases] == ["PENDING", "SHIFTING"]
    (pending, shifting) = whole.phases
    assert pending.launches == shifting.launches == len(within)
    assert pending.total_duration + shifting.total_duration == sum(
        (figures_of(found).duration for found in within), timedelta(0)
    )
    waited = {wait.cause: wait.total_duration for wait in whole.waits}
    for cause, time in waited.items():
        assert time == sum((found.waits.times[cause] for found in within), timedelta(0))
    assert list(waited.values()) == sorted(waited.values(), reverse=True), "the most first"
    assert whole.people_wait == waited["AwaitingApproval"]
    causes = Counter(figures_of(found).cause for found in within if found.abort)
    assert {count.cause: count.count for count in whole.causes} == causes
    assert {count.cause: count.count for count in whole.failed_gates} == {"stability": causes["gate/stability"]}

    for group_by, key in GROUPS.items():
        weeks = 1.0 if group_by is GroupBy.WEEK else 2.0
        found = await store.statistics(Asked(start, end, group_by))
        expected = {group: [one for one in within if key(one) == group] for group in {key(one) for one in within}}
        assert {without_lists(one).group: without_lists(one) for one in found} == {
            group: by_hand(some, group, weeks) for group, some in expected.items()
        }
        assert [one.launches for one in found] == sorted((one.launches for one in found), reverse=True)

    (of_one,) = await store.statistics(Asked(start, end, GroupBy.TEAM, team="teams/t1", surface="s0"))
    assert of_one.launches == sum(found.team == "teams/t1" and found.surface == "s0" for found in within)
    assert await store.statistics(Asked(start, end, GroupBy.TEAM, team="teams/nobody")) == []
    assert await store.statistics(Asked(start, end, team="teams/nobody")) == [LaunchStatistics()]


async def test_a_change_that_is_not_written_leaves_no_figures(store: Store) -> None:
    done = ended(2)
    await insert(store, replace(done, state=State.PENDING, end_time=None, abort=None))
    (stalled,) = await store.claim("stalled", 0.0, 1)
    await store.claim("fresh", 30, 1)
    late = replace(done, version=stalled.launch.version, epoch=stalled.launch.epoch)
    assert await store.record(Change(stalled.launch, late, due=0.0)) is None
    (whole,) = await store.statistics(Asked(NOW - timedelta(days=14), NOW))
    assert whole == LaunchStatistics()


@pytest.mark.parametrize(
    ("asked", "days", "index"),
    [
        ({}, 2, "figures_by_end"),
        ({"group_by": GroupBy.WEEK}, 14, "figures_by_end"),
        ({"group_by": GroupBy.STRATEGY, "team": "teams/t7"}, 90, "figures_of_team"),
        ({"group_by": GroupBy.TEAM, "surface": "s7"}, 90, "figures_of_surface"),
    ],
)
async def test_only_what_ended_within_the_time_is_read_and_no_launch_is(
    database_url: str, asked: dict[str, object], days: int, index: str
) -> None:
    database = await Database.open(database_url, "launcher", max_size=1)
    try:
        await database.execute(
            """WITH made AS (
                   INSERT INTO launches (id, uid, model_type, actor, state, queued, version, epoch, body, create_time,
                                         update_time, end_time)
                   SELECT 'l' || n, gen_random_uuid(), 'modelTypes/t', 'a', 'CANCELLED', false, 1, 0, '{}', now(),
                          now(), $1::timestamptz - n * interval '30 min'
                   FROM generate_series(1, 10000) AS n RETURNING id, end_time, number
               )
               INSERT INTO figures SELECT id, 1, end_time, 'teams/t' || number % 50, 's' || number % 50,
                   'REPLACE_BASELINE', 'CANCELLED', 60, '{"PENDING": 60}', '{}', 0, '', '{}' FROM made""",
            NOW,
        )
        await database.execute("ANALYZE figures")
        statement, arguments = statistics_query(Asked(NOW - timedelta(days=days), NOW, **asked))  # type: ignore[arg-type]
        rows = await database.fetch(f"EXPLAIN {statement}", *arguments)
    finally:
        await database.close()
    plan = "\n".join(row["QUERY PLAN"] for row in rows)
    assert index in plan and "Seq Scan" not in plan and "launches" not in plan, plan
