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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from modelfleet.errors import Cancelled, DeadlineExceeded, Unavailable
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.capacity.store import balances
from modelfleetd.kit.db import Database
from modelfleetd.local.postgres import EmbeddedPostgres
from modelfleetd.local.programs import service_environment
from modelfleetd.platform.model import Effect, EffectKind
from tests.support.wait import until
from tests.support.whole import OLD, POOL, TARGET, TYPE, Whole, whole

# Of a launch, in both launchers; a process is stopped for longer.
LEASE = 4.0
ACTIONS = ("kill", "stop", "drop", "postgres")
_AWAY = (Unavailable, DeadlineExceeded, Cancelled)
_ENDED = {pb.Launch.SUCCEEDED, pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED, pb.Launch.FAILED}
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
    _launches: int = 0

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

    async def start(self, candidate: str, *, bake: float, policy: pb.LaunchPolicy | None = None) -> str:
        """Creates a launch in steps of half of the traffic, again and again with one request_id until it is taken."""
        self._launches += 1
        made = pb.LaunchPolicy(max_step_basis_points=5_000)
        made.stability_gate.disabled = True
        made.bake_duration.FromTimedelta(timedelta(seconds=bake))
        made.rollback_window.FromTimedelta(timedelta(0))
        made.step_deadline.FromTimedelta(timedelta(minutes=2))
        if policy is not None:
            made.MergeFrom(policy)
        launch = pb.Launch(
            model_type=TYPE, candidate=candidate, strategy=pb.Launch.REPLACE_BASELINE, pool=POOL, policy=made
        )
        request = pb.CreateLaunchRequest(launch_id=f"l{self._launches}", launch=launch, request_id=str(uuid.uuid4()))
        name = f"launches/l{self._launches}"

        async def taken() -> bool:
            with contextlib.suppress(*_AWAY):
                await self.everything.client.launcher.create_launch(request, timeout=5)
                return True
            return False

        await until(taken, timeout=40)
        return name

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

        async def taken() -> bool:
            with contextlib.suppress(*_AWAY):
                await self.everything.client.launcher.abort_launch(request, timeout=5)
                return True
            return False

        await until(taken, timeout=40)

    # What holds

    async def assert_promises_kept(self, launch: pb.Launch, before: int) -> None:
        """Asserts, at every event since a position of the node's ledger: LAUNCH.md's properties 1 to 3 with their
        precedence, no act and no replica twice, epochs that never go back, and no weight that rises after an abort.
        """
        if launch.plan.regions:
            broken = await self.everything.broken_promises(launch, before)
            assert not broken, "\n".join(map(str, broken))
        effects = await self.everything.effects()
        keys = [effect.key for effect in effects if effect.kind is EffectKind.ACCEPTED]
        assert len(keys) == len(set(keys))
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
    }
    async with contextlib.AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            everything = await stack.enter_async_context(whole())
        found = Arena(everything, file, trace)
        await stack.enter_async_context(_second_launcher(found, variables))
        await everything.register(old=3, new=4, spare=3)
        first = await found.ended(await found.start(OLD, bake=0))
        assert first.state == pb.Launch.SUCCEEDED, first.summary
        yield found


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
