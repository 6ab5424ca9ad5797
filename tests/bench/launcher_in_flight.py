"""Ten thousand launches in flight on one launcher: memory and CPU while they bake, and how soon it acts when due.

Registry, capacity, PostgreSQL and the launcher's process are real; the agent is simulated. One launch is brought to the
bake of its first step; the others are copies of its row on routes of their own, due in five minutes or more. A part of
them has replicas at the agent, and their bakes end one after another while the launcher has all the others, too: what
counts is the time from the end of a bake to the agent's acceptance of what follows it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.platform.model import DesiredModel, DesiredServing, EffectKind, Fence, ModelShare, TargetKind
from modelfleetd.platform.simulator import Simulator
from tests.bench.figures import Figure
from tests.support.launcher import CTR, NEW, OLD, SPEC, TARGET, Fleet, another_launcher, launcher_fleet
from tests.support.postgres import Postgres
from tests.support.servers import client_of
from tests.support.simulated_agent import simulated_agent
from tests.support.wait import until

NAMES = ("launcher.in_flight_rss_mib", "launcher.in_flight_cpu_fraction", "launcher.decision_p99_seconds")
_LAUNCHES: Final = int(os.environ.get("BENCH_LAUNCHES", "10000"))
_DECIDING: Final = 300
_SETTLE_SECONDS: Final = 20.0
_IDLE_SECONDS: Final = 60.0
# From the launcher's start; the first look at each of those that decide is over by then.
_FIRST_END, _ENDS_WITHIN = 110.0, 30.0


async def run() -> list[Figure]:
    """Measures all three."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        postgres = await asyncio.to_thread(Postgres, Path(folder), "")
        try:
            async with launcher_fleet(postgres.create(), old=4, new=4, spare=2, launcher=False) as fleet:
                return await _measured(fleet)
        finally:
            await asyncio.to_thread(postgres.stop)


async def _measured(fleet: Fleet) -> list[Figure]:
    share = await _bring_one_to_its_bake(fleet)
    names = [f"deciding{number}" for number in range(_DECIDING)]
    for name in names:
        await _serve(fleet.simulator, name, share)
    async with simulated_agent(fleet.simulator) as address:
        region = await fleet.client.registry.get_region(name="regions/eu")
        region.agent_address = address
        await fleet.client.registry.update_region(region=region)
        fleet.platforms.agents[address] = fleet.simulator
        ends = await _copy(fleet.database_url, names)
        began = len(fleet.simulator.ledger)
        async with _launcher(fleet) as process:
            await asyncio.sleep(_SETTLE_SECONDS)
            before, since = _cpu_seconds(process), time.monotonic()
            await asyncio.sleep(_IDLE_SECONDS)
            cpu, memory = (_cpu_seconds(process) - before) / (time.monotonic() - since), _memory_mib(process)

            def acted() -> dict[str, datetime]:
                found: dict[str, datetime] = {}
                for effect in fleet.simulator.ledger[began:]:
                    if effect.kind is EffectKind.ACCEPTED:
                        found.setdefault(effect.target.removeprefix("targets/"), effect.time)
                return found

            await until(lambda: len(acted()) == _DECIDING, timeout=_FIRST_END + _ENDS_WITHIN + 60)
    late = sorted((acted()[name] - ends[name]).total_seconds() for name in names)
    return [
        Figure(
            name="launcher.in_flight_rss_mib",
            value=memory,
            unit="MiB",
            yardstick=f"{_LAUNCHES:,} launches in flight, resident set of the launcher's process",
            target=200.0,
            better="lower",
        ),
        Figure(
            name="launcher.in_flight_cpu_fraction",
            value=cpu,
            unit="cores",
            yardstick=f"the launcher's process over {_IDLE_SECONDS:.0f} s in which none of "
            f"{_LAUNCHES - _DECIDING:,} is due, its fleet observer with {_DECIDING} routes included",
            target=0.05,
            better="lower",
        ),
        Figure(
            name="launcher.decision_p99_seconds",
            value=late[-max(1, len(late) // 100) - 1],
            unit="s",
            yardstick=f"end of a bake to the agent's acceptance, {len(late)} launches at "
            f"{_DECIDING / _ENDS_WITHIN:.0f} a second, median {late[len(late) // 2]:.3f} s",
            target=1.0,
            better="lower",
        ),
    ]


async def _bring_one_to_its_bake(fleet: Fleet) -> int:
    """Launches on the first route until the first step bakes; returns the candidate's share then."""
    async with another_launcher(fleet) as launcher, client_of(fleet.registry, launcher) as client:
        # Half a day at each step: the others, which are copies of it, are looked at every five minutes.
        await client.launcher.create_launch(launch_id="l1", launch=fleet.request(bake=43_200.0))

        async def baking() -> pb.Launch | None:
            launch = await client.launcher.get_launch(name="launches/l1")
            return launch if any(c.reason == "Baking" for c in launch.conditions) else None

        launch: pb.Launch = await until(baking, 60)
        return launch.plan.regions[0].steps[0].share_basis_points


async def _serve(simulator: Simulator, name: str, share: int) -> None:
    """Has the agent serve a route as it serves the first one."""
    target = f"targets/{name}"
    seen = await simulator.observe(TARGET)
    models = tuple(
        DesiredModel(_renamed(model, name), SPEC, seen.model(model).desired_replicas) for model in (OLD, NEW)
    )
    await simulator.apply(target, TargetKind.ROUTE, Fence(1, f"bench {name}"), DesiredServing(models))

    async def up() -> bool:
        there = await simulator.observe(target)
        return all(there.model(model.model).available_replicas == model.replicas for model in models)

    await until(up)
    shares = (ModelShare(models[0].model, 10_000 - share), ModelShare(models[1].model, share))
    await simulator.apply(target, TargetKind.ROUTE, Fence(1, f"bench {name}, traffic"), DesiredServing(models, shares))
    simulator.traffic(target, 2.0)


def _renamed(text: str, name: str) -> str:
    return text.replace(CTR, f"modelTypes/{name}")


async def _copy(url: str, names: list[str]) -> dict[str, datetime]:
    """Copies the first launch to every other route; returns when the bakes of those that decide end."""
    conn = await asyncpg.connect(url)
    try:
        await conn.execute("SET search_path TO launcher")
        copy = """
            INSERT INTO launches (id, uid, model_type, actor, state, queued, version, epoch, create_time, update_time,
                                  next_due_time, body)
            SELECT name, gen_random_uuid(), 'modelTypes/' || name, actor, state, queued, version, epoch, create_time,
                   update_time, {due}, replace(replace({body}::text, 'modelTypes/ctr', 'modelTypes/' || name),
                                               'launches/l1', 'launches/' || name)::jsonb
            FROM launches, {which} WHERE id = 'l1'"""
        later = "now() + interval '5 minutes' + random() * interval '5 minutes'"
        others = f"(SELECT 'other' || n AS name FROM generate_series(1, {_LAUNCHES - len(names)}) AS n) AS others"
        await conn.execute(copy.format(due=later, body="body", which=others))
        now: datetime = await conn.fetchval("SELECT now()")
        apart = _ENDS_WITHIN / len(names)
        ends = {name: now + timedelta(seconds=_FIRST_END + apart * number) for number, name in enumerate(names)}
        # As the launcher leaves it: the gates are asked at the bake's end at the latest.
        moments = "jsonb_build_object('bake_start', start, 'next_judge', bake_end)"
        started = f"(body || jsonb_build_object('step', body->'step' || {moments}))"
        deciding = "unnest($1::text[], $2::text[], $3::text[]) AS deciding(name, start, bake_end)"
        starts = [(end - timedelta(seconds=43_200)).isoformat() for end in ends.values()]
        await conn.execute(
            copy.format(due="now()", body=started, which=deciding),
            list(ends),
            starts,
            [end.isoformat() for end in ends.values()],
        )
        await conn.execute("UPDATE launches SET next_due_time = now() + interval '9 minutes' WHERE id = 'l1'")
        await conn.execute("ANALYZE launches")
        return ends
    finally:
        await conn.close()


@asynccontextmanager
async def _launcher(fleet: Fleet) -> AsyncIterator[int]:
    """Runs the launcher as a process of its own."""
    command = [sys.executable, "-m", "modelfleetd", "launcher", "--listen=127.0.0.1:0", "--log-level=warning"]
    command += [f"--database-url={fleet.database_url}"]
    command += [f"--{name}-address={service.address}" for name, service in fleet.services.items()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    async with AsyncExitStack() as stack:
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        stack.push_async_callback(process.wait)
        stack.callback(process.terminate)
        yield process.pid


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
