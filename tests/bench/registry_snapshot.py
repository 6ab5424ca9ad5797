"""The client's snapshot of 100,000 models: how many reads a second, how much memory, how long until it is loaded.

Registry and client are processes of their own. A client is measured as users have it: loaded over the network,
followed, and asked at random for what a ranking service asks. It is begun several times, each in a new process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import modelfleet
from tests.bench.figures import Figure
from tests.support.processes import part, registry_process

NAMES = ("registry.snapshot_reads_per_second", "registry.snapshot_mib", "registry.snapshot_first_load_seconds")

_TYPES, _MODELS_PER_TYPE = 2000, 50
_MODELS = _TYPES * _MODELS_PER_TYPE
_CLIENTS = 3
_ROUNDS = 5
_ROUND_SECONDS = 1.0
_REGION = "us-east"


async def run() -> list[Figure]:
    """Measures clients one after the other: the median of their loads, the most memory, the median of their reads."""
    from modelfleet.synthetic import generate
    from tests.support.postgres import Postgres
    from tests.support.synthetic import write_fleet

    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        url = postgres.create()
        await write_fleet(url, generate(_TYPES, _MODELS_PER_TYPE))
        async with registry_process(url) as (_, address):
            found = []
            for _ in range(_CLIENTS):
                async with part(__name__, address) as client:
                    found.append(json.loads(await client.line()))
    assert all(each["models"] == _MODELS for each in found)
    loaded = f"{_MODELS:,} models of {_TYPES:,} types"
    return [
        Figure(
            name="registry.snapshot_reads_per_second",
            value=statistics.median(each["reads_per_second"] for each in found),
            unit="reads/s",
            yardstick="baseline, holdouts, split and model of a random type in turn, one thread",
            target=1_000_000,
            better="higher",
        ),
        Figure(
            name="registry.snapshot_mib",
            value=max(each["mib"] for each in found),
            unit="MiB",
            yardstick=f"growth of the process' peak memory, {loaded}",
            target=300,
            better="lower",
        ),
        Figure(
            name="registry.snapshot_first_load_seconds",
            value=statistics.median(each["load_seconds"] for each in found),
            unit="s",
            yardstick=f"from nothing, over the network, until it can be read; {loaded}",
            target=3,
            better="lower",
        ),
    ]


def _client(address: str) -> None:
    """Loads a snapshot, reads, and says what it found."""
    with modelfleet.Client(address) as other:
        # The connection's and the messages' own memory and time are every client's.
        other.registry.list_teams(page_size=1)
    before = _peak_mib()
    start = time.perf_counter()
    with modelfleet.Snapshot(address) as fleet:
        fleet.wait_ready(60)
        load_seconds = time.perf_counter() - start
        fleet.wait_ready(60, max_age=5)
        mib = _peak_mib() - before
        routes = list(fleet)
        served = [(route.name.split("/")[1], route.baseline) for route in routes if route.baseline]
        asked = random.Random(1).choices(served, k=10_000)
        rates = [_reads_per_second(fleet, asked) for _ in range(_ROUNDS)]
    found = {
        "reads_per_second": statistics.median(rates),
        "mib": mib,
        "load_seconds": load_seconds,
        "models": sum(len(route.models) for route in routes),
    }
    print(json.dumps(found), flush=True)


def _reads_per_second(fleet: modelfleet.Snapshot, asked: list[tuple[str, str]]) -> float:
    count = 0
    start = time.perf_counter()
    while time.perf_counter() - start < _ROUND_SECONDS:
        for model_type, model in asked:
            fleet.baseline(model_type)
            fleet.holdouts(model_type)
            fleet.split(model_type, _REGION)
            fleet.model(model)
        count += 4 * len(asked)
    return count / (time.perf_counter() - start)


def _peak_mib() -> float:
    """Returns the most memory that this process has had at a time."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    _client(*sys.argv[1:])
