"""A million revisions of 10,000 entries, read from the registry and verified by the client: CPU time of both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

from modelfleet import Client, ledger
from tests.bench.figures import Figure
from tests.support.long_history import write_history
from tests.support.postgres import Postgres
from tests.support.processes import Part, part, registry_process

_REVISIONS = int(os.environ.get("BENCH_REVISIONS", "1000000"))
_ENTRIES = 10_000


async def run() -> list[Figure]:
    """Verifies once."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        url = postgres.create()
        await write_history(url, _REVISIONS, _ENTRIES)
        async with registry_process(url) as (registry, address):
            await _rest(registry)
            server, database = registry.cpu_seconds(), postgres.cpu_seconds()
            async with part(__name__, address) as client:
                seconds, wall = map(float, (await client.line()).split())
            server, database = registry.cpu_seconds() - server, postgres.cpu_seconds() - database
    scale = 1_000_000 / _REVISIONS
    return [
        Figure(
            name="registry.verify_million_cpu_seconds",
            value=(server + seconds) * scale,
            unit="s",
            yardstick=f"client {seconds * scale:.1f} s, registry {server * scale:.1f} s for {_REVISIONS:,} revisions "
            f"and {_ENTRIES:,} entries; PostgreSQL {database * scale:.1f} s beside it; {wall:.1f} s by the clock",
            target=10.0,
            better="lower",
        )
    ]


async def _rest(process: Part) -> None:
    """Waits until a process has done what it does when it starts."""
    before = -1.0
    while (now := process.cpu_seconds()) - before > 0.05:
        before = now
        await asyncio.sleep(1.0)


def _verify(address: str) -> None:
    with Client(address) as client:
        begin, wall = time.process_time(), time.perf_counter()
        verified = ledger.verify(client.registry.read_history(with_state=True))
        assert (verified.revisions, verified.entries) == (_REVISIONS, _ENTRIES)
        print(time.process_time() - begin, time.perf_counter() - wall, flush=True)


if __name__ == "__main__":
    _verify(*sys.argv[1:])
