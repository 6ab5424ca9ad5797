"""The front door before services in the test's process: for the command line, which knows one address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from modelfleetd.kit.ports import free_port
from modelfleetd.local import front_door
from modelfleetd.local.supervisor import Program, Supervisor


@asynccontextmanager
async def door(folder: Path, addresses: Mapping[str, str]) -> AsyncIterator[str]:
    """Runs Envoy before some services, and gives its address.

    Args:
        folder: for its configuration and log.
        addresses: of the services, by name.
    """
    ports = {name: int(address.rpartition(":")[2]) for name, address in addresses.items()}
    port = free_port()
    path = folder / "envoy.json"
    path.write_text(json.dumps(front_door.configuration(port, free_port(), ports)))
    supervisor = Supervisor(folder, pytest.fail)
    # Without hot restart there is no shared memory, which another user's Envoy may own.
    envoy = (str(front_door.envoy_program()), "--config-path", str(path), "--disable-hot-restart", "--concurrency", "1")
    supervisor.start(Program("envoy", envoy))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)
        yield f"127.0.0.1:{port}"
    finally:
        await supervisor.stop(["envoy"])
