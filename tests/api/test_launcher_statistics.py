"""How launches went: the figures that real launches leave behind, as callers and the command line see them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.cli import main
from modelfleet.launcher.v1 import kpis_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.launcher.domain.record import Verdict
from tests.support.launcher import Fleet, launcher_fleet, refused


def _seconds(span: Duration) -> float:
    return span.ToTimedelta().total_seconds()


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


async def _statistics(fleet: Fleet, **asked: Any) -> list[kpis_pb2.LaunchStatistics]:
    return list((await fleet.client.launcher.get_launch_statistics(**asked)).statistics)


async def test_launches_that_ended_leave_their_figures(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with launcher_fleet(database_url, old=10, new=10, spare=10) as fleet:
        (nothing,) = await _statistics(fleet)
        assert nothing.launches == 0 and not nothing.HasField("median_duration")

        approval = pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED)
        await fleet.create("waits", policy=approval, bake=0.2)
        asking = await fleet.reaches(pb.Launch.AWAITING_APPROVAL, "launches/waits")
        fleet.judge.verdicts = [Verdict.FAIL]
        await fleet.client.launcher.abort_launch(name=asking.name, reason="never mind")
        cancelled = await fleet.reaches(pb.Launch.CANCELLED, "launches/waits")
        await fleet.create("fails", bake=0.5, gate=True)
        back = await fleet.reaches(pb.Launch.ROLLED_BACK, "launches/fails")
        fleet.judge.verdicts = [Verdict.PASS]
        await fleet.create("does", bake=0.5, gate=True)
        done = await fleet.reaches(pb.Launch.SUCCEEDED, "launches/does")

        (whole,) = await _statistics(fleet)
        assert (whole.launches, whole.succeeded, whole.rolled_back, whole.cancelled, whole.failed) == (3, 1, 1, 1, 0)
        took = done.end_time.ToDatetime() - done.create_time.ToDatetime()
        assert abs(_seconds(whole.median_duration) - took.total_seconds()) < 0.2
        assert whole.median_duration == whole.p90_duration
        assert whole.succeeded_per_week == pytest.approx(1 / 4)
        phases = {phase.phase: phase for phase in whole.phases}
        assert list(phases) == [
            "PENDING", "ESTIMATING", "AWAITING_APPROVAL", "PREPARING", "SHIFTING", "FINALIZING", "ROLLING_BACK",
        ]  # fmt: skip
        assert phases["SHIFTING"].launches == 2 and phases["ROLLING_BACK"].launches == 1
        waits = {wait.cause: wait for wait in whole.waits}
        # Both baked: the one that succeeded in each of its steps.
        steps = sum(len(region.steps) for region in done.plan.regions)
        assert waits["Baking"].launches == 2 and _seconds(waits["Baking"].total_duration) > 0.3 * steps
        assert _seconds(waits["AwaitingApproval"].total_duration) == _seconds(whole.people_wait) > 0
        total = sum(_seconds(phase.total_duration) for phase in whole.phases)
        assert sum(_seconds(wait.total_duration) for wait in whole.waits) < total
        assert {(count.cause, count.count) for count in whole.causes} == {("person", 1), ("gate/stability", 1)}
        assert [(count.cause, count.count) for count in whole.failed_gates] == [("stability", 1)]
        assert cancelled.HasField("end_time") and back.HasField("end_time")

        assert done.team == "teams/feed"

        (team,) = await _statistics(fleet, group_by=kpis_pb2.GetLaunchStatisticsRequest.TEAM)
        assert (team.group, team.launches) == ("teams/feed", 3)
        assert not await _statistics(
            fleet, group_by=kpis_pb2.GetLaunchStatisticsRequest.TEAM, end_time=back.create_time, team="teams/nobody"
        )
        await _is_shown(fleet, capsys)
        await _is_refused_with_all_that_is_wrong(fleet)


async def _is_shown(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    async def run(*arguments: str) -> str:
        capsys.readouterr()
        where = ["--address", fleet.launcher.address]
        assert await asyncio.to_thread(main, ["launch", "stats", *arguments, *where]) == 0
        return capsys.readouterr().out

    shown = await run()
    assert shown.startswith(
        "3 launches ended in the last 4 weeks: 1 succeeded (0.25 a week), 1 rolled back, 1 cancelled"
    )
    assert "gate/stability" in shown and "█" in shown and "Baking" in shown
    by_team = await run("--by", "team", "--since", "2d")
    assert "feed" in by_team and "LAUNCHES" in by_team
    assert "No launch of teams/nobody ended" in await run("--team", "nobody")
    (found,) = json.loads(await run("--by", "strategy", "-o", "json"))["statistics"]
    assert found["group"] == "REPLACE_BASELINE"


async def _is_refused_with_all_that_is_wrong(fleet: Fleet) -> None:
    now = datetime.now(UTC)
    with refused("INVALID_FIELDS") as raised:
        await _statistics(fleet, start_time=_stamp(now - timedelta(days=401)), surface="s" * 64)
    assert {violation.field for violation in raised.value.violations} == {"start_time", "surface"}
    with refused("INVALID_FIELDS") as raised:
        await _statistics(fleet, start_time=_stamp(now + timedelta(days=1)))
    assert "before end_time" in raised.value.message
