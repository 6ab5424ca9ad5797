"""Processes of a benchmark or a fault test: parts that speak by lines, and a registry of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """A process that reads and writes lines."""

    process: asyncio.subprocess.Process

    async def line(self) -> str:
        """Returns the next line that it writes."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process ended before its time")
        return line.decode().strip()

    def send(self, line: str) -> None:
        """Writes a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    def cpu_seconds(self) -> float:
        """Returns the time that all of its threads have computed for."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def part(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Part]:
    """Runs `python -m module arguments`; ends it at the end, if it has not ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    try:
        yield Part(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def registry_process(
    url: str, address: str = "127.0.0.1:0", environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Part, str]]:
    """Runs a registry as a process of its own; gives it and its address."""
    async with part(__name__, url, address, environment=environment) as running:
        yield running, await running.line()


@asynccontextmanager
async def capacity_process(
    url: str, registry_address: str, address: str = "127.0.0.1:0", environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Part, str]]:
    """Runs capacity as a process of its own; gives it and its address."""
    async with part(__name__, url, address, registry_address, environment=environment) as running:
        yield running, await running.line()


@asynccontextmanager
async def stability_process(
    url: str, registry_address: str, address: str = "127.0.0.1:0", environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Part, str]]:
    """Runs stability as a process of its own; gives it and its address."""
    async with part(__name__, url, address, registry_address, "stability", environment=environment) as running:
        yield running, await running.line()


async def _serve(url: str, address: str, registry_address: str = "", other: str = "capacity") -> None:
    """Serves the registry; another service where the address of a registry is given."""
    from modelfleetd.kit.app import Service
    from modelfleetd.kit.config import ServiceConfig

    config = ServiceConfig(database_url=url, listen=address)
    name = "registry"
    if registry_address:
        config = dataclasses.replace(config, registry_address=registry_address)
        name = other
    build = importlib.import_module(f"modelfleetd.{name}.app").build
    async with Service(name, build, config) as service:
        sys.stdout.write(f"{service.address}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(*sys.argv[1:]))
