"""Two launchers whose clocks are an hour apart, and that stall past their leases: the database's clock counts."""

from __future__ import annotations

import asyncio
import itertools
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet import AsyncClient
from modelfleet.launcher.v1 import freeze_pb2, holds_pb2, kpis_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import StaleEpoch
from modelfleetd.kit.db import Database
from modelfleetd.platform.model import Applied, DesiredServing, EffectKind, Fence, ServingObservation, TargetKind
from modelfleetd.platform.simulator import Simulator
from tests.support.launcher import (
    ENDED,
    NEW,
    OLD,
    TARGET,
    Fleet,
    Platforms,
    WrongClock,
    another_launcher,
    launcher_fleet,
)
from tests.support.servers import client_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

L1, L2 = "launches/l1", "launches/l2"
_LEASE = 1.5
_OFF = timedelta(minutes=30)
_BAKE = timedelta(seconds=1)
# Longer than anything here takes, shorter than either clock is off.
_DEADLINE = timedelta(minutes=10)
# A round's time is the database's when it was asked, counted on: early by no answer, late by the answer's way.
_NEAR = timedelta(seconds=1)


class Stalling(Simulator):
    """An agent as one launcher reaches it: every fourth time that one acts, that stalls until the lease has ended and
    the launch is somebody else's.
    """

    def __init__(self, agent: Simulator) -> None:
        self._agent = agent
        self._claimed = asyncio.Event()
        self._stalled_with = 0
        self.other = self
        self.stalls = self.refusals = 0
        self._acts = 0

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        seen = await self._agent.observe(target, epoch)
        for each in (self, self.other):
            if epoch > each._stalled_with:
                each._claimed.set()
        return seen

    async def list(self) -> tuple[ServingObservation, ...]:
        return await self._agent.list()

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        self._acts += 1
        if self._acts % 4 == 0:
            self.stalls += 1
            self._stalled_with = fence.epoch
            self._claimed.clear()
            await self._claimed.wait()
        try:
            return await self._agent.apply(target, kind, fence, desired)
        except StaleEpoch:
            self.refusals += 1
            raise


@dataclass
class Pair:
    """Two launchers on one database: one is half an hour late, the other one half an hour early."""

    fleet: Fleet
    database: Database
    late: AsyncClient
    early: AsyncClient
    agents: tuple[Stalling, Stalling]
    begin: datetime

    async def now(self) -> datetime:
        found: datetime = await self.database.fetchval("SELECT clock_timestamp()")
        return found


@asynccontextmanager
async def apart(database_url: str) -> AsyncIterator[Pair]:
    options = Namespace(lease_seconds=_LEASE)
    async with launcher_fleet(database_url, old=10, new=10, launcher=False) as fleet:
        (address,) = fleet.platforms.agents
        agents = (Stalling(fleet.simulator), Stalling(fleet.simulator))
        agents[0].other, agents[1].other = agents[1], agents[0]
        fleet.platforms = Platforms({address: agents[0]})
        async with another_launcher(fleet, clock=WrongClock(-_OFF), options=options) as late:
            fleet.platforms = Platforms({address: agents[1]})
            async with (
                another_launcher(fleet, clock=WrongClock(_OFF), options=options) as early,
                client_of(fleet.registry, fleet.services["capacity"], late) as first,
                client_of(fleet.registry, fleet.services["capacity"], early) as second,
            ):
                fleet.client, fleet.launcher = first, late
                database = await Database.open(database_url, "launcher", max_size=1)
                try:
                    begin: datetime = await database.fetchval("SELECT clock_timestamp()")
                    yield Pair(fleet, database, first, second, agents, begin)
                finally:
                    await database.close()


def times_in(message: Message, path: str = "") -> Iterator[tuple[str, datetime]]:
    """Every time that a message shows."""
    for field, value in message.ListFields():
        if not isinstance(value, Message | str | bytes | int | float) and field.message_type is not None:
            entries = list(value.values() if hasattr(value, "values") else value)
            for entry in entries:
                if isinstance(entry, Message):
                    yield from times_in(entry, f"{path}.{field.name}")
        elif isinstance(value, Timestamp):
            yield f"{path}.{field.name}", value.ToDatetime(UTC)
        elif isinstance(value, Message):
            yield from times_in(value, f"{path}.{field.name}")


# What is still to come may be as far away as the policy lets it.
_COMING = ("deadline_time", "bake_end_time", "expected_end_time", "expire_time")


async def assert_sane(pair: Pair, shown: Message) -> None:
    """Every time is of this test by the database's clock, and only what is still to come is after now."""
    now = await pair.now()
    for path, time in times_in(shown):
        latest = now + 1.5 * _DEADLINE if path.endswith(_COMING) else now + _NEAR
        assert pair.begin - _NEAR <= time <= latest, (path, time, now)


async def until_it(pair: Pair, name: str, what: str) -> pb.Launch:
    """Waits until a launch waits for that reason, is in that state, or has ended, looking at it through both."""
    for turn in range(10_000):
        client = (pair.late, pair.early)[turn % 2]
        found = await client.launcher.get_launch(name=name)
        await assert_sane(pair, found)
        if what in (pb.Launch.State.Name(found.state), *(condition.reason for condition in found.conditions)):
            return found
        assert found.state not in ENDED, found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} never came to {what}")


async def events_of(pair: Pair, name: str) -> list[pb.LaunchEvent]:
    return [event async for event in pair.early.launcher.list_launch_events_all(name=name)]


def bakes_of(events: list[pb.LaunchEvent]) -> list[tuple[datetime, datetime]]:
    """From when until when each step baked that nobody aborted: until something else is done than to look."""
    bakes: list[tuple[datetime, datetime]] = []
    began: datetime | None = None
    for event in events:
        if event.type == "BakeBegan":
            began = event.time.ToDatetime(UTC)
        elif began is not None and event.type not in ("GateJudged", "Paused", "Resumed"):
            if event.type != "Aborted":
                bakes.append((began, event.time.ToDatetime(UTC)))
            began = None
    return bakes


def assert_in_order(times: list[datetime]) -> None:
    assert all(after >= before - _NEAR for before, after in itertools.pairwise(times)), times


async def test_launchers_whose_clocks_are_an_hour_apart_and_that_stall_agree_on_every_time(database_url: str) -> None:
    async with apart(database_url) as pair:
        fleet, late, early = pair.fleet, pair.late.launcher, pair.early.launcher
        policy = pb.LaunchPolicy(max_step_basis_points=5_000, approval=pb.LaunchPolicy.REQUIRED)
        for deadline in (policy.step_deadline, policy.launch_deadline, policy.approval_deadline):
            deadline.FromTimedelta(_DEADLINE)
        asked = fleet.request(bake=_BAKE.total_seconds(), policy=policy)
        made = await early.create_launch(launch_id="l1", launch=asked)
        await assert_sane(pair, made)
        waiting = await until_it(pair, L1, "AWAITING_APPROVAL")
        await assert_sane(pair, await fleet.approve(waiting.envelope.digest))
        await until_it(pair, L1, "Baking")
        await assert_sane(pair, await early.abort_launch(name=L1, reason="it looks bad"))
        await until_it(pair, L1, "ROLLED_BACK")

        again = await late.retry_launch(name=L1, reason="it was good")
        await assert_sane(pair, again)
        waiting = await until_it(pair, L1, "AWAITING_APPROVAL")
        await fleet.approve(waiting.envelope.digest)
        await until_it(pair, L1, "Baking")
        await late.pause_launch(name=L1, reason="a look")
        await assert_sane(pair, await early.resume_launch(name=L1, any_author=True))
        launch = await until_it(pair, L1, "SUCCEEDED")
        await assert_agreed(pair, launch)

        await assert_sane(pair, await early.roll_back_launch(name=L1, launch_id="l2", reason="it is bad after all"))
        back = await fleet.reaches(pb.Launch.SUCCEEDED, L2)
        await assert_sane(pair, back)
        (hold,) = (await late.list_holds()).holds
        await assert_sane(pair, hold)
        assert_in_order([launch.end_time.ToDatetime(UTC), back.create_time.ToDatetime(UTC)])
        await assert_nothing_was_done_twice(pair)
        # What came late was refused.
        stalls = sum(agent.stalls for agent in pair.agents)
        assert 0 < stalls <= sum(agent.refusals for agent in pair.agents)


async def assert_agreed(pair: Pair, launch: pb.Launch) -> None:
    """The launch kept its promises; its bakes were as long as they had to be; its times are in order."""
    assert pair.fleet.broken_promises(launch) == []
    events = await events_of(pair, launch.name)
    for event in events:
        await assert_sane(pair, event)
    assert_in_order([event.time.ToDatetime(UTC) for event in events])
    assert not [event for event in events if event.type == "DeadlinePassed"]
    bakes = bakes_of(events)
    assert len(bakes) >= 2
    acknowledged = [e.time for e in pair.fleet.simulator.ledger if e.kind is EffectKind.SHARES_ACKNOWLEDGED]
    for began, ended in bakes:
        assert ended - began >= _BAKE, "cut short"
        assert ended - began <= _BAKE + timedelta(seconds=3 * _LEASE) + 10 * _NEAR, "prolonged"
        # By the agent's own clock, no weight moved meanwhile.
        assert not [time for time in acknowledged if began + _NEAR / 5 < time < began + _BAKE - _NEAR / 5]
    phases = [phase.start_time.ToDatetime(UTC) for phase in launch.phase_times]
    assert_in_order([launch.create_time.ToDatetime(UTC), *phases, launch.end_time.ToDatetime(UTC)])
    attempts = (await pair.late.launcher.list_attempts(parent=launch.name)).attempts
    assert len(attempts) == 2
    for attempt in attempts:
        await assert_sane(pair, attempt)


async def assert_nothing_was_done_twice(pair: Pair) -> None:
    ledger = pair.fleet.simulator.ledger
    keys = [effect.key for effect in ledger if effect.key]
    assert len(keys) == len(set(keys))
    seen = await pair.fleet.simulator.observe(TARGET)
    assert {m.model: m.existing_replicas for m in seen.models if m.existing_replicas} == {OLD: 10}


async def test_what_is_made_or_shown_relative_to_now_is_the_same_through_either(database_url: str) -> None:
    async with apart(database_url) as pair:
        now = await pair.now()
        opens = (now - timedelta(minutes=10)).replace(microsecond=0)
        window = freeze_pb2.FreezeWindow(
            start=opens.strftime("%Y-%m-%dT%H:%M:%S"), time_zone="UTC", reason="a holiday", teams=["teams/feed"]
        )
        window.duration.FromTimedelta(timedelta(minutes=20))
        await pair.early.launcher.create_freeze_window(freeze_window_id="holiday", freeze_window=window)
        for client in (pair.late, pair.early):
            listed = await client.launcher.list_freeze_windows(active_only=True)
            assert [each.name for each in listed.freeze_windows] == ["freezeWindows/holiday"]
            assert listed.freeze_windows[0].next_start_time.ToDatetime(UTC) == opens
            found = await client.launcher.get_launch_statistics(kpis_pb2.GetLaunchStatisticsRequest())
            assert abs(found.end_time.ToDatetime(UTC) - await pair.now()) < 10 * _NEAR
            held = holds_pb2.Hold(model=NEW, reason="it is bad")
            hold = await client.launcher.create_hold(hold=held)
            await assert_sane(pair, hold)
            await client.launcher.lift_hold(name=hold.name, reason="it is good")
            planned = await client.launcher.create_launch(launch=pair.fleet.request(), validate_only=True)
            await assert_sane(pair, pb.Launch(create_time=planned.create_time, phase_times=planned.phase_times))
            assert [conflict.freeze_window for conflict in planned.plan.freeze_conflicts] == ["freezeWindows/holiday"]
