"""The whole set on this machine: how fast it is ready, what it costs idle, what it adds to the steps of a launch."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.platform.v1 import platform_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncPlatform
from modelfleetd.local import leftovers
from modelfleetd.local.demo_system import System, running_system
from tests.bench.figures import Figure

NAMES = (
    "spine.ready_seconds",
    "idle.cpu_fraction",
    "idle.rss_mib",
    "launch.added_seconds_per_step_p99",
)
_STARTS = 3
_SETTLE_SECONDS, _IDLE_SECONDS = 15.0, 25.0
_LAUNCHES = 3
_STEPS = 5
_REPLICA = Path(__file__).resolve().parents[1] / "support" / "oip_server.py"


async def run() -> list[Figure]:
    """Measures everything: three starts on fresh folders; the last one stays for the rest."""
    ready = []
    for _ in range(_STARTS - 1):
        async with running_system(None) as system:
            ready.append(system.ready_seconds)
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        async with running_system(Path(folder)) as system:
            ready.append(system.ready_seconds)
            idle = await _idle(system)
            added = await _added_per_step(system)
    return [
        Figure(
            name="spine.ready_seconds",
            value=max(ready),
            unit="s",
            yardstick=f"slowest of {_STARTS} starts on a fresh folder, {os.cpu_count()} cores",
            target=10.0,
            better="lower",
        ),
        *idle,
        Figure(
            name="launch.added_seconds_per_step_p99",
            value=_p99(added),
            unit="s",
            yardstick=f"{len(added)} steps without bake, the time in which replicas start taken out; "
            f"median {sorted(added)[len(added) // 2]:.2f} s",
            target=2.0,
            better="lower",
        ),
    ]


# --- idle -------------------------------------------------------------------------------------------------------------


async def _idle(system: System) -> list[Figure]:
    """Everything runs, nobody calls."""
    await asyncio.sleep(_SETTLE_SECONDS)
    began, before = time.monotonic(), _cpu_seconds(_processes(system))
    await asyncio.sleep(_IDLE_SECONDS)
    processes = _processes(system)
    used, lasted = _cpu_seconds(processes) - before, time.monotonic() - began
    return [
        Figure(
            name="idle.cpu_fraction",
            value=used / lasted,
            unit="cores",
            yardstick=f"{len(processes)} processes over {lasted:.0f} s",
            target=0.1,
            better="lower",
        ),
        Figure(
            name="idle.rss_mib",
            value=sum(_memory_mib(process) for process in processes),
            unit="MiB",
            yardstick="proportional set size: what processes share is counted once",
            target=1000.0,
            better="lower",
        ),
    ]


def _processes(system: System) -> list[int]:
    found = leftovers.processes_of(system.directory.path)
    own = system.process_of_up()
    # PostgreSQL's workers overwrite their environment; they are found as its children.
    server = system.process("postgres")
    children = [] if server is None else _children(server)
    return sorted({*found, *children, own})


def _children(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in path.read_text().split()]


def _cpu_seconds(processes: Sequence[int]) -> float:
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


# --- the steps of a launch --------------------------------------------------------------------------------------------


async def _added_per_step(system: System) -> list[float]:
    """Launches trivial replicas over and over, without bake, gates and traffic: what is left is the control plane's."""
    async with AsyncClient(system.address) as client:
        await _register(client)
        await _finished(await _launch(client, 0, 10_000), client)
        added: list[float] = []
        for number in range(1, _LAUNCHES + 1):
            launch = await _finished(await _launch(client, number, 10_000 // _STEPS), client)
            added += await _added(client, system, launch)
        return added


async def _register(client: AsyncClient) -> None:
    await client.registry.create_team(team_id="bench", team=registry_pb2.Team())
    await client.capacity.create_flavor(flavor_id="bench", flavor=capacity_pb2.Flavor())
    quota = capacity_pb2.Quota(flavor="flavors/bench", region="regions/local", nominal_units=10)
    await client.capacity.create_pool(pool_id="bench", pool=capacity_pb2.Pool(team="teams/bench", quotas=[quota]))
    demand = registry_pb2.RegionDemand(region="regions/local", peak_qps=34)
    await client.registry.create_model_type(
        model_type_id="bench",
        model_type=registry_pb2.ModelType(
            team="teams/bench", regions=["regions/local"], demand_source=registry_pb2.DemandSource(stated=[demand])
        ),
    )
    spec = serving_pb2.ServingSpec(
        command=[sys.executable, str(_REPLICA), "--port", "{port}", "--model", "{model_type}"], flavor="flavors/bench"
    )
    for number in range(_LAUNCHES + 1):
        name = f"modelTypes/bench/models/m{number}"
        model = registry_pb2.Model(serving_spec=spec)
        await client.registry.create_model(parent="modelTypes/bench", model_id=f"m{number}", model=model)
        # Five replicas for the whole route: 34 / (10 × 0.7) / 0.98 = 4.96.
        certificate = capacity_pb2.Certificate(model=name, flavor="flavors/bench", max_qps=10)
        await client.capacity.create_certificate(certificate=certificate)


async def _launch(client: AsyncClient, number: int, step: int) -> launcher_pb2.Launch:
    policy = launcher_pb2.LaunchPolicy(
        max_step_basis_points=step, stability_gate=launcher_pb2.StabilityGate(disabled=True)
    )
    policy.bake_duration.FromTimedelta(timedelta(0))
    policy.rollback_window.FromTimedelta(timedelta(0))
    return await client.launcher.create_launch(
        launch_id=f"bench{number}",
        launch=launcher_pb2.Launch(
            model_type="modelTypes/bench",
            candidate=f"modelTypes/bench/models/m{number}",
            strategy=launcher_pb2.Launch.REPLACE_BASELINE,
            pool="pools/bench",
            policy=policy,
        ),
    )


async def _finished(launch: launcher_pb2.Launch, client: AsyncClient) -> launcher_pb2.Launch:
    async for seen in client.launcher.watch_launch(name=launch.name, timeout=120):
        launch = seen
    if launch.state != launcher_pb2.Launch.SUCCEEDED:
        raise RuntimeError(f"{launch.name} ended as {launcher_pb2.Launch.State.Name(launch.state)}: {launch.summary}")
    return launch


async def _effects(system: System, launch: launcher_pb2.Launch) -> list[platform_pb2.Effect]:
    agent = AsyncPlatform(system.address)
    effects: list[platform_pb2.Effect] = []
    more = True
    while more:
        after = effects[-1].sequence if effects else 0
        page = await agent.list_effects(after_sequence=after, target="targets/bench", page_size=1000)
        effects.extend(page.effects)
        more = page.more
    await agent.close()
    begin, end = launch.create_time.ToDatetime(UTC), launch.end_time.ToDatetime(UTC)
    return [effect for effect in effects if begin <= effect.time.ToDatetime(UTC) <= end]


async def _added(client: AsyncClient, system: System, launch: launcher_pb2.Launch) -> list[float]:
    """Returns for each step its length without the time in which replicas were starting."""
    history = await client.launcher.list_launch_events(name=launch.name, page_size=1000)
    step_ends = [event.time.ToDatetime(UTC) for event in history.events if event.type == "StepEnded"]
    shifting = next(phase for phase in launch.phase_times if phase.state == launcher_pb2.Launch.SHIFTING)
    bounds = [shifting.start_time.ToDatetime(UTC), *step_ends, shifting.end_time.ToDatetime(UTC)]
    starting = _starting(await _effects(system, launch))
    return [(end - begin).total_seconds() - _overlap(starting, begin, end) for begin, end in itertools.pairwise(bounds)]


def _starting(effects: Sequence[platform_pb2.Effect]) -> list[tuple[datetime, datetime]]:
    """Returns when replicas were starting: from the start of one until it was available, merged."""
    since: dict[str, datetime] = {}
    spans = []
    for effect in effects:
        moment = effect.time.ToDatetime(UTC)
        if effect.kind == platform_pb2.Effect.REPLICA_STARTED:
            since[effect.replica] = moment
        elif effect.kind == platform_pb2.Effect.REPLICA_AVAILABLE and effect.replica in since:
            spans.append((since.pop(effect.replica), moment))
    merged: list[tuple[datetime, datetime]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _overlap(spans: Sequence[tuple[datetime, datetime]], begin: datetime, end: datetime) -> float:
    return sum(max(0.0, (min(end, last) - max(begin, first)).total_seconds()) for first, last in spans)


def _p99(values: Sequence[float]) -> float:
    """Returns the 99th percentile, the nearest value at or above it: with few values the largest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]
