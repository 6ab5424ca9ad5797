"""Accidents at failpoints of a running system: a place is armed in a file that all its processes read, and whatever is
to befall the process that comes there first does so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from modelfleet.common.v1 import permission_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.launcher.v1 import notifications_pb2
from modelfleet.registry.v1 import evidence_pb2, registry_pb2
from modelfleetd.capacity.store import balances
from modelfleetd.kit.db import Database
from modelfleetd.local.postgres import EmbeddedPostgres
from modelfleetd.local.programs import service_environment
from modelfleetd.platform.model import Effect, EffectKind
from tests.support.alertmanager import Alertmanager, alertmanager
from tests.support.people import APPROVER, ENDS_WITHIN, People, surely
from tests.support.wait import until
from tests.support.webhook_receiver import Receiver, webhook_receiver
from tests.support.whole import OLD, POOL, TARGET, TYPE, Traffic, Whole, whole

# Of a launch, in both launchers; a process is stopped for longer.
LEASE = 4.0
# Three more models: one to go on to, one that answers nothing, and one whose replicas say when told that they cannot.
THIRD, REFUSING, FAINTING = f"{TYPE}/models/third", f"{TYPE}/models/refusing", f"{TYPE}/models/fainting"
REFUSAL = "told to fail"
# What the proxy answers for a model that has lost every replica, until its share is with the others.
NOBODY = "no healthy upstream"
# Requests a second, all the while.
_RATE = 12.0
ACTIONS = ("kill", "stop", "drop", "postgres")
# So many epochs are handed out by no test.
_EPOCHS = 1_000


@dataclass(kw_only=True)
class Arena(People):
    """A running system, with two launchers, on which accidents happen to one launch after another."""

    file: Path
    trace: Path
    # Whom the launchers tell.
    webhook: Receiver
    alertmanager: Alertmanager
    accidents: list[str] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    # The process of the second launcher.
    second: list[int] = field(default_factory=list)

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
        (taken,) = await until(self._taken, timeout=ENDS_WITHIN)
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

    # What befalls everything

    async def faint(self, replicas: int) -> None:
        """Has every replica of FAINTING say that it cannot, once the baseline has fewer replicas than so many."""

        async def is_reduced() -> bool:
            desired = (await self.everything.platform.observe(TARGET)).desired
            return desired is not None and desired.replicas_of(self.serving) < replicas

        await until(is_reduced, timeout=ENDS_WITHIN)
        self.fainted.touch()

    async def know_newer_epoch(self) -> None:
        """Has the agent know a newer epoch than any launcher has been given."""
        newest = max(effect.epoch for effect in await self.everything.effects())
        await self.everything.platform.observe(TARGET, newest + _EPOCHS)

    @property
    def fainted(self) -> Path:
        """While this file is there, no replica of FAINTING says that it is ready."""
        return self.file.with_name("fainted")

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
        left = await surely(lambda: client.launcher.list_launches(active_only=True, timeout=5))
        for launch in left.launches:
            await self.abort(launch.name)
        for launch in left.launches:
            await self.ended(launch.name)
        await self.lift_holds()
        await self.thaw()
        await self.end_experiments()
        self.fainted.unlink(missing_ok=True)
        self.serving = (await surely(lambda: client.registry.get_model_type(name=TYPE, timeout=5))).baseline
        self.traffic.failed.clear()

    # What holds

    def assert_no_request_failed(self, *, but: str = REFUSAL) -> None:
        """Asserts that replicas and traffic went on, since this was asked last.

        Args:
            but: is said of requests that count for nothing: what a candidate refuses is its own.
        """
        failed = {why: count for why, count in self.traffic.failed.items() if but not in why}
        self.traffic.failed.clear()
        assert not failed, failed

    async def assert_promises_kept(self, launches: Sequence[pb.Launch], before: int, *, beside: int = 0) -> None:
        """Asserts, at every event since a position of the node's ledger: LAUNCH.md's properties 1 to 3 with their
        precedence, no act and no replica twice, epochs that never go back, and no weight that rises after an abort.

        Args:
            launches: that followed each other on the route.
            before: the position.
            beside: units of what was on the route beside them.
        """
        if launches[0].plan.regions:
            broken = await self.everything.broken_promises(launches[0], before, *launches[1:], beside=beside)
            assert not broken, "\n".join(map(str, broken))
        effects = await self.everything.effects()
        keys = [effect.key for effect in effects if effect.kind is EffectKind.ACCEPTED]
        assert len(keys) == len(set(keys))
        for launch in launches:
            for aborted, retried in await self._aborts(launch):
                assert_never_rises(effects[before:], launch.candidate, aborted, retried)

    async def _aborts(self, launch: pb.Launch) -> list[tuple[datetime, datetime | None]]:
        """When each attempt of a launch turned round, and when the next one began."""
        found: list[tuple[datetime, datetime | None]] = []
        for event in await self.events(launch.name):
            time = event.time.ToDatetime()
            going_on = not found or found[-1][1] is not None
            turned = event.type in ("Aborted", "SafetyRollback") or event.message.startswith("rolls back, by")
            if turned and going_on:
                found.append((time, None))
            elif event.type == "Retried" and not going_on:
                found[-1] = (found[-1][0], time)
        return found

    async def events(self, name: str) -> list[pb.LaunchEvent]:
        """The history of a launch."""
        launcher = self.everything.client.launcher
        found = await surely(lambda: launcher.list_launch_events(name=name, page_size=1_000, timeout=5))
        return list(found.events)

    async def assert_happened_once(self, name: str, event: str) -> None:
        """Asserts that what was asked for, however often it was, has happened once."""
        assert [each.type for each in await self.events(name)].count(event) == 1

    async def assert_told(self, name: str) -> None:
        """Asserts that everything about a launch arrives, and is the same once for whoever honours its key."""

        async def delivered() -> list[notifications_pb2.Notification]:
            found = await surely(lambda: self.everything.client.launcher.list_notifications(launch=name, timeout=5))
            told = list(found.notifications)
            return told if told and all(one.state == notifications_pb2.Notification.DELIVERED for one in told) else []

        told = await until(delivered, timeout=ENDS_WITHIN)
        done = {key: about["kind"] for key, about in self.webhook.done.items() if about["launch"] == name}
        assert sorted(done) == sorted(each.key for each in told if each.receiver == "chat")
        assert list(done.values()).count("SUCCEEDED") == 1
        labels = [alert["labels"] for alert in self.alertmanager.alerts()]
        alerts = [each["alertname"] for each in labels if each.get("launch") == name.rpartition("/")[2]]
        assert alerts.count("LaunchSucceeded") == 1

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
        found = await surely(lambda: client.registry.get_model_type(name=TYPE, timeout=5))
        assert found.baseline == baseline
        shares = {s.model: s.share_basis_points for split in found.splits for s in split.shares if s.share_basis_points}
        assert shares == {baseline: 10_000}
        (usage,) = (await surely(lambda: client.capacity.get_pool(name=POOL, timeout=5))).usages
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


def assert_never_rises(
    effects: list[Effect], candidate: str, aborted: datetime, retried: datetime | None = None
) -> None:
    """Asserts that nobody asks for more weight for the candidate once an epoch is known that is newer than the abort,
    unless the launch is tried again.

    Until then a call may be under way that was made before anybody had aborted.
    """
    known = False
    share = 0
    for effect in effects:
        if retried is not None and effect.time.replace(tzinfo=None) > retried:
            return
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
    async with contextlib.AsyncExitStack() as stack:
        webhook = stack.enter_context(webhook_receiver())
        told = stack.enter_context(alertmanager(folder))
        variables = {
            "MODELFLEET_FAILPOINT_FILE": str(file),
            "MODELFLEET_FAILPOINT_TRACE": str(trace),
            "MODELFLEET_LEASE_SECONDS": str(LEASE),
            "MODELFLEET_OBSERVE_SECONDS": "2",
            "MODELFLEET_WEBHOOKS": webhook.configuration(folder),
            "MODELFLEET_ALERTMANAGER_URL": told.url,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            everything = await stack.enter_async_context(whole())
        found = Arena(everything=everything, file=file, trace=trace, webhook=webhook, alertmanager=told)
        await stack.enter_async_context(_second_launcher(found, variables))
        await everything.register(old=3, new=4, spare=5)
        await everything.add_model(THIRD, 3)
        await everything.add_model(REFUSING, 3, "--error-rate", "1")
        await everything.add_model(FAINTING, 3, "--unready-file", str(found.fainted), "--start-delay", "1.5")
        await _declare_gates(everything)
        await found.succeeds(OLD)
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
    team.role_bindings.add(role=permission_pb2.APPROVER, members=[APPROVER])
    await registry.update_team(team=team)


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
