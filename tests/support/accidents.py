"""Accidents at failpoints of a running system: a place is armed in a file that all its processes read, and whatever is
to befall the process that comes there first does so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import permission_pb2
from modelfleet.errors import Cancelled, DeadlineExceeded, Unavailable
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import evidence_pb2, registry_pb2
from modelfleetd.capacity.store import balances
from modelfleetd.kit.db import Database
from modelfleetd.local.postgres import EmbeddedPostgres
from modelfleetd.local.programs import service_environment
from modelfleetd.platform.model import Effect, EffectKind
from tests.support.wait import until
from tests.support.whole import FLAVOR, OLD, POOL, REGION, TARGET, TYPE, Traffic, Whole, whole

# Of a launch, in both launchers; a process is stopped for longer.
LEASE = 4.0
# Two more models: one to go on to, and one that answers nothing.
THIRD, REFUSING = f"{TYPE}/models/third", f"{TYPE}/models/refusing"
REFUSAL = "told to fail"
_APPROVER = "carol"
# Requests a second, all the while.
_RATE = 20.0
ACTIONS = ("kill", "stop", "drop", "postgres")
_AWAY = (Unavailable, DeadlineExceeded, Cancelled)
ENDED = {pb.Launch.SUCCEEDED, pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED, pb.Launch.FAILED}
# A launch that has to wait for leases, for the database and for processes that begin again.
_ENDS_WITHIN = 90.0


@dataclass
class Arena:
    """A running system, with two launchers, on which accidents happen to one launch after another."""

    everything: Whole
    file: Path
    trace: Path
    serving: str = OLD
    accidents: list[str] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    # The process of the second launcher.
    second: list[int] = field(default_factory=list)
    _launches: int = 0
    _others: int = 0

    @property
    def places(self) -> set[str]:
        """Every place that was passed so far."""
        return set(self.trace.read_text().split()) if self.trace.exists() else set()

    async def befall(self, place: str, action: str) -> None:
        """Arms a place, and does what an accident needs from outside. Returns when it has happened and is over."""
        for taken in self._taken():
            taken.unlink()
        new = self.file.with_suffix(".new")
        new.write_text(f"{place}:{'stop' if action == 'postgres' else action}")
        new.rename(self.file)
        (taken,) = await until(self._taken, timeout=_ENDS_WITHIN)
        self.accidents.append(f"{action} at {place}")
        if action in ("kill", "drop"):
            return
        process = int(taken.suffix[1:])
        await until(lambda: _is_stopped(process), timeout=10)
        try:
            if action == "postgres":
                await self.stop_postgres()
            else:
                await asyncio.sleep(LEASE + 0.5)
        finally:
            os.kill(process, signal.SIGCONT)

    async def stop_postgres(self) -> None:
        """Stops PostgreSQL as `pg_ctl stop -m immediate` does, and waits for the supervisor to start it again."""
        server = self._server()
        before = server.running_process()
        assert before is not None
        os.kill(before, signal.SIGQUIT)

        async def is_back() -> bool:
            if server.running_process() in (before, None):
                return False
            import asyncpg

            try:
                connection = await asyncpg.connect(server.url, timeout=2)
            except (OSError, asyncpg.PostgresError, TimeoutError):
                return False
            await connection.close()
            return True

        await until(is_back, timeout=30)

    def disarm(self) -> None:
        """Nothing more happens."""
        self.file.unlink(missing_ok=True)

    # Launches

    async def start(
        self, candidate: str, *, bake: float, policy: pb.LaunchPolicy | None = None, queue: bool = False
    ) -> str:
        """Creates a launch in steps of half of the traffic, again and again with one request_id until it is taken.

        Args:
            candidate: that is to take over.
            bake: seconds.
            policy: of its gates; None: none but that of availability.
            queue: whether it waits for the launch before it.
        """
        self._launches += 1
        made = policy or ungated()
        made.max_step_basis_points, made.max_steps = 5_000, 2
        made.bake_duration.FromTimedelta(timedelta(seconds=bake))
        made.rollback_window.FromTimedelta(timedelta(0))
        made.step_deadline.FromTimedelta(timedelta(minutes=2))
        launch = pb.Launch(
            model_type=TYPE, candidate=candidate, strategy=pb.Launch.REPLACE_BASELINE, pool=POOL, policy=made
        )
        name = f"l{self._launches}"
        request = pb.CreateLaunchRequest(launch_id=name, launch=launch, queue=queue, request_id=str(uuid.uuid4()))
        await surely(lambda: self.everything.client.launcher.create_launch(request, timeout=5))
        return f"launches/{name}"

    async def find(self, name: str) -> pb.Launch | None:
        """The launch; None where nobody answers just now."""
        with contextlib.suppress(*_AWAY):
            return await self.everything.client.launcher.get_launch(name=name, timeout=2)
        return None

    async def ended(self, name: str) -> pb.Launch:
        """Waits for a launch's end, whoever dies meanwhile."""
        return await self.everything.ended(name, timeout=_ENDS_WITHIN)

    async def abort(self, name: str) -> None:
        """Aborts, again and again with one request_id until that is taken."""
        request = pb.AbortLaunchRequest(name=name, reason="for a test", request_id=str(uuid.uuid4()))
        await surely(lambda: self.everything.client.launcher.abort_launch(request, timeout=5))

    async def pause_and_resume(self, name: str) -> None:
        """Pauses a launch, and lets it go on."""
        launcher = self.everything.client.launcher
        pause = pb.PauseLaunchRequest(name=name, reason="for a test", request_id=str(uuid.uuid4()))
        await surely(lambda: launcher.pause_launch(pause, timeout=5))
        resume = pb.ResumeLaunchRequest(name=name, request_id=str(uuid.uuid4()))
        await surely(lambda: launcher.resume_launch(resume, timeout=5))

    async def skip(self, name: str, step: int) -> None:
        """Ends a step's bake, once that has begun."""
        await self.reaches(name, lambda launch: any(_bakes(region, step) for region in launch.progress))
        request = pb.SkipLaunchStepRequest(
            name=name, expected_step=step, reason="for a test", request_id=str(uuid.uuid4())
        )
        await surely(lambda: self.everything.client.launcher.skip_launch_step(request, timeout=5))

    async def approve(self, name: str) -> None:
        """Somebody else approves a launch, once it waits for that."""
        found = await self.reaches(name, lambda launch: launch.state == pb.Launch.AWAITING_APPROVAL)
        request = pb.ApproveLaunchRequest(
            name=name, envelope_digest=found.envelope.digest, request_id=str(uuid.uuid4())
        )
        async with AsyncClient(self.everything.system.address, principal=_APPROVER) as client:
            await surely(lambda: client.launcher.approve_launch(request, timeout=5))

    async def reaches(self, name: str, is_there: Callable[[pb.Launch], bool]) -> pb.Launch:
        """Waits until a launch is somewhere, whoever dies meanwhile."""

        async def there() -> pb.Launch | None:
            found = await self.find(name)
            return found if found is not None and is_there(found) else None

        launch: pb.Launch = await until(there, timeout=_ENDS_WITHIN)
        return launch

    @asynccontextmanager
    async def crowded(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Somebody else has all that is free. Gives what ends that; at the end of the block it is over anyway."""
        capacity = self.everything.client.capacity
        (usage,) = (await capacity.get_pool(name=POOL, timeout=30)).usages
        self._others += 1
        wanted = capacity_pb2.Reservation(pool=POOL, launch=f"launches/other-{self._others}")
        wanted.items.add(flavor=FLAVOR, region=REGION, hold_units=usage.available_units, end_units=0)
        # Whoever waits is told until when.
        wanted.expected_release_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        made = await capacity.create_reservation(reservation=wanted, time_to_live=Duration(seconds=1800))
        is_there = True

        async def leave() -> None:
            nonlocal is_there
            if is_there:
                request = capacity_pb2.CancelReservationRequest(name=made.name, request_id=str(uuid.uuid4()))
                await surely(lambda: capacity.cancel_reservation(request, timeout=5))
            is_there = False

        try:
            yield leave
        finally:
            await leave()

    def begin_everything_anew(self) -> None:
        """Kills every service, both launchers and the node agent, at once; their supervisors begin them again."""
        for part in ("launcher", "capacity", "stability", "registry", "node"):
            self.everything.kill(part)
        for process in self.second:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    async def come_to_rest(self) -> None:
        """Ends whatever an earlier case has left under way, so that its failure is no other's, and sees what serves."""
        client = self.everything.client
        left = await client.launcher.list_launches(active_only=True, timeout=30)
        for launch in left.launches:
            await self.abort(launch.name)
        for launch in left.launches:
            await self.ended(launch.name)
        self.serving = (await client.registry.get_model_type(name=TYPE, timeout=30)).baseline
        self.traffic.failed.clear()

    # What holds

    def assert_no_request_failed(self) -> None:
        """Asserts that replicas and traffic went on, since this was asked last; what a candidate refuses is its own."""
        failed = {why: count for why, count in self.traffic.failed.items() if REFUSAL not in why}
        self.traffic.failed.clear()
        assert not failed

    async def assert_promises_kept(self, launches: Sequence[pb.Launch], before: int) -> None:
        """Asserts, at every event since a position of the node's ledger: LAUNCH.md's properties 1 to 3 with their
        precedence, no act and no replica twice, epochs that never go back, and no weight that rises after an abort.
        """
        if launches[0].plan.regions:
            broken = await self.everything.broken_promises(launches[0], before, *launches[1:])
            assert not broken, "\n".join(map(str, broken))
        effects = await self.everything.effects()
        keys = [effect.key for effect in effects if effect.kind is EffectKind.ACCEPTED]
        assert len(keys) == len(set(keys))
        for launch in launches:
            aborted = await self._abort_time(launch)
            if aborted is not None:
                assert_never_rises(effects[before:], launch.candidate, aborted)

    async def _abort_time(self, launch: pb.Launch) -> datetime | None:
        found = await self.everything.client.launcher.list_launch_events(name=launch.name, timeout=30)
        times = [event.time.ToDatetime() for event in found.events if event.type in ("Aborted", "GateFailed")]
        return min(times, default=None)

    async def assert_all_agree(self, baseline: str, replicas: int) -> None:
        """Asserts that registry, capacity and platform say the same, and that what capacity has adds up to the pool."""
        client = self.everything.client

        async def settled() -> bool:
            seen = await self.everything.platform.observe(TARGET)
            found = {model.model: model.existing_replicas for model in seen.models if model.existing_replicas}
            return found == {baseline: replicas}

        await until(settled, timeout=20)
        seen = await self.everything.platform.observe(TARGET)
        weights = {m.model: m.acknowledged_basis_points for m in seen.models if m.acknowledged_basis_points}
        assert weights == {baseline: 10_000}
        found = await client.registry.get_model_type(name=TYPE, timeout=30)
        assert found.baseline == baseline
        shares = {s.model: s.share_basis_points for split in found.splits for s in split.shares if s.share_basis_points}
        assert shares == {baseline: 10_000}
        (usage,) = (await client.capacity.get_pool(name=POOL, timeout=30)).usages
        assert (usage.serving_units, usage.held_units) == (replicas, 0)
        assert usage.serving_units + usage.available_units == usage.nominal_units
        database = await Database.open(self._server().url, "capacity", max_size=1)
        try:
            assert await balances.differences(database) == []
        finally:
            await database.close()

    # Inside

    def _server(self) -> EmbeddedPostgres:
        return EmbeddedPostgres.at(self.everything.system.directory.postgres)

    def _taken(self) -> list[Path]:
        return [path for path in self.file.parent.glob(f"{self.file.name}.*") if path.suffix[1:].isdigit()]


def assert_never_rises(effects: list[Effect], candidate: str, aborted: datetime) -> None:
    """Asserts that nobody asks for more weight for the candidate once an epoch is known that is newer than the abort.

    Until then a call may be under way that was made before anybody had aborted.
    """
    known = False
    share = 0
    for effect in effects:
        known = known or (effect.kind is EffectKind.FLOOR_RAISED and effect.time.replace(tzinfo=None) > aborted)
        if effect.kind is EffectKind.ACCEPTED and effect.desired is not None:
            asked = effect.desired.share_of(candidate)
            assert not known or asked <= share, f"#{effect.sequence} raises {candidate} from {share} to {asked}"
            share = asked


def _bakes(region: pb.RegionProgress, step: int) -> bool:
    return region.step == step and region.HasField("bake_end_time")


def _is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@asynccontextmanager
async def arena(folder: Path) -> AsyncIterator[Arena]:
    """Starts everything, with a second launcher, and a first model that serves."""
    file, trace = folder / "failpoint", folder / "trace"
    variables = {
        "MODELFLEET_FAILPOINT_FILE": str(file),
        "MODELFLEET_FAILPOINT_TRACE": str(trace),
        "MODELFLEET_LEASE_SECONDS": str(LEASE),
        "MODELFLEET_OBSERVE_SECONDS": "2",
    }
    async with contextlib.AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            everything = await stack.enter_async_context(whole())
        found = Arena(everything, file, trace)
        await stack.enter_async_context(_second_launcher(found, variables))
        await everything.register(old=3, new=4, spare=3)
        await everything.add_model(THIRD, 3)
        await everything.add_model(REFUSING, 3, "--error-rate", "1")
        await _declare_gates(everything)
        first = await found.ended(await found.start(OLD, bake=0))
        assert first.state == pb.Launch.SUCCEEDED, first.summary
        found.traffic = await stack.enter_async_context(everything.traffic(rate=_RATE))
        await until(lambda: found.traffic.answered[OLD] > 0)
        # Until the proxy has the route, nobody promises an answer.
        found.traffic.failed.clear()
        yield found


async def _declare_gates(everything: Whole) -> None:
    """Says what candidates may be judged by, and who may approve them."""
    registry = everything.client.registry
    rules = [evidence_pb2.EvidenceRule(id="good", metric="auc", minimum=0.7)]
    predictions = [registry_pb2.Prediction(id="click")]
    declared = registry_pb2.ModelType(name=TYPE, evidence_rules=rules, predictions=predictions)
    await registry.update_model_type(model_type=declared)
    team = await registry.get_team(name="teams/ours")
    team.role_bindings.add(role=permission_pb2.APPROVER, members=[_APPROVER])
    await registry.update_team(team=team)


def ungated() -> pb.LaunchPolicy:
    """A policy by which nobody is asked but the platform."""
    policy = pb.LaunchPolicy()
    policy.stability_gate.disabled = True
    policy.evidence_gate.disabled = True
    return policy


def dry_run() -> pb.LaunchPolicy:
    """A policy by which everybody is asked: the platform counts, the others have nothing to go by."""
    policy = pb.LaunchPolicy()
    policy.stability_gate.dry_run = True
    policy.evidence_gate.dry_run = True
    policy.availability_gate.min_requests = 5
    return policy


async def surely(call: Callable[[], Awaitable[object]]) -> None:
    """Makes a call again and again, the same each time, until it is answered."""

    async def answered() -> bool:
        with contextlib.suppress(*_AWAY):
            await call()
            return True
        return False

    await until(answered, timeout=_ENDS_WITHIN)


@asynccontextmanager
async def _second_launcher(arena: Arena, variables: dict[str, str]) -> AsyncIterator[None]:
    """Whoever dies or stalls, another one takes over once the lease is over."""
    system = arena.everything.system
    ports = system.ports
    url = EmbeddedPostgres.at(system.directory.postgres).url
    environment = {**os.environ, **service_environment(system.directory, url, ports), **variables}
    command = (sys.executable, "-m", "modelfleetd", "launcher", "--listen", "127.0.0.1:0", "--log-level", "warning")

    async def keep_running() -> None:
        log = system.directory.logs / "launcher-2.log"
        while True:
            with log.open("ab") as said:
                process = await asyncio.create_subprocess_exec(
                    *command, env=environment, stdout=said, stderr=said, start_new_session=True
                )
            arena.second[:] = [process.pid]
            try:
                await process.wait()
            except asyncio.CancelledError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise

    running = asyncio.create_task(keep_running())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
