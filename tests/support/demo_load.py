"""Load tests of the demo's model server, as users run them: `modelfleetd up`, a clone behind Envoy, a certificate.

How busy the machine was with other things is measured beside it: on a machine that others use nothing can be measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.local import leftovers
from modelfleetd.local.demo_data import Impressions, read_logs
from modelfleetd.local.demo_system import System, running_system
from modelfleetd.local.demo_training import CANDIDATE_FEATURES, TRAINING_DAYS, columns_of, train
from modelfleetd.local.model_server import encode_request

TYPE, REGION, FLAVOR = "clicks", "regions/local", "flavors/cpu"
# So many impressions a request make the model server the limit, and not what sends to it.
_IMPRESSIONS = 100
_SAMPLES = 40
_START_QPS = 120.0
_CERTIFICATION_REQUESTS = 2_000
_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Run:
    """One load test: what it ended as, how long it took, and the share of the machine that others used meanwhile."""

    test: pb.LoadTest
    max_qps: float
    seconds: float
    foreign_share: float

    def __str__(self) -> str:
        result = f"{self.max_qps:.4g}/s" if self.max_qps else self.test.message
        probes = len(self.test.probes)
        return f"{result} in {self.seconds:.0f} s, {probes} probes; others used {self.foreign_share:.0%} of the machine"


async def runs(count: int) -> AsyncIterator[Run]:
    """Tests the same model so many times, one after the other, each from the same guess."""
    async with running_system(None) as system, AsyncClient(system.address) as client:
        model, samples = await _register(client, system.directory.path)
        for _ in range(count):
            wanted = pb.LoadTest(
                model=model,
                region=REGION,
                sample_requests=samples,
                stoppers=pb.Stoppers(error_rate=0.004, latencies=[pb.LatencyStopper(percentile=95, latency_ms=100.0)]),
                start_qps=_START_QPS,
                certification_requests=_CERTIFICATION_REQUESTS,
            )
            async with _watched(system) as machine:
                made = await client.capacity.create_load_test(load_test=wanted)
                async for change in client.capacity.watch_load_test(name=made.name):
                    made = change
            certificate = await client.capacity.get_certificate(name=made.certificate) if made.certificate else None
            took = (made.end_time.ToDatetime() - made.start_time.ToDatetime()).total_seconds()
            yield Run(made, certificate.max_qps if certificate else 0.0, took, machine.foreign_share)


async def _register(client: AsyncClient, folder: Path) -> tuple[str, list[bytes]]:
    past, future = read_logs().split(TRAINING_DAYS)
    artifact = folder / "clicks.npz"
    train(past[:5_000], CANDIDATE_FEATURES).save(artifact)
    await client.registry.create_team(team_id="feed", team=registry_pb2.Team())
    await client.capacity.create_flavor(flavor_id="cpu", flavor=pb.Flavor(unit_cost=1.0))
    route = registry_pb2.ModelType(team="teams/feed", regions=[REGION])
    await client.registry.create_model_type(model_type_id=TYPE, model_type=route)
    command = [sys.executable, "-m", "modelfleetd.local.model_server", "--port", "{port}", "--model", "{model_type}"]
    spec = ServingSpec(
        command=[*command, "--artifact", str(artifact)],
        flavor=FLAVOR,
        environment={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    model = registry_pb2.Model(serving_spec=spec)
    made = await client.registry.create_model(parent=f"modelTypes/{TYPE}", model_id="v1", model=model)
    starts = range(0, _SAMPLES * _IMPRESSIONS, _IMPRESSIONS)
    samples = [
        encode_request(TYPE, "", _columns(future[start : start + _IMPRESSIONS])).SerializeToString() for start in starts
    ]
    return made.name, samples


def _columns(impressions: Impressions) -> dict[str, list[object]]:
    return {name: list(values) for name, values in columns_of(impressions).items()}


@dataclass
class _Machine:
    """What the processors did in a while."""

    ours: dict[int, tuple[float, float]] = field(default_factory=dict)
    begun: tuple[float, float] = (0.0, 0.0)
    ended: tuple[float, float] = (0.0, 0.0)

    @property
    def foreign_share(self) -> float:
        busy, total = (after - before for before, after in zip(self.begun, self.ended, strict=True))
        own = sum(last - first for first, last in self.ours.values())
        return max(0.0, busy - own) / total if total else 0.0


@asynccontextmanager
async def _watched(system: System) -> AsyncIterator[_Machine]:
    machine = _Machine({process: (used, used) for process, used in _own(system)}, _processors())

    def look() -> None:
        for process, used in _own(system):
            # All that one has used which came later, it has used since.
            machine.ours[process] = (machine.ours.get(process, (0.0, 0.0))[0], used)

    async def keep_looking() -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            look()

    looking = asyncio.create_task(keep_looking())
    try:
        yield machine
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        look()
        machine.ended = _processors()


def _own(system: System) -> Iterator[tuple[int, float]]:
    """The system's processes and this one, with the seconds that they have computed for."""
    server = system.process("postgres")
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split() if server else []
    for process in {*leftovers.processes_of(system.directory.path), *map(int, children), os.getpid()}:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            yield process, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _processors() -> tuple[float, float]:
    """Seconds in which the processors were busy, and all their seconds."""
    ticks = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    idle = ticks[3] + ticks[4]
    frequency = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / frequency, sum(ticks) / frequency
