"""What `up` does once at each start, in a process that ends: so that nothing that only this needs stays in memory.

    python -m modelfleetd.local.prepare --region local --agent 127.0.0.1:9000

Reads MODELFLEET_DATABASE_URL and MODELFLEET_REGISTRY_ADDRESS. Creates the database where it is embedded, brings every
schema to the newest version, says `migrated`, waits for the registry and tells it where the region's agent answers.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
import time
import uuid
from collections.abc import Sequence

import asyncpg

from modelfleetd.errors import FleetError, PartUnavailable
from modelfleetd.kit.migrations import migrate
from modelfleetd.kit.telemetry import redact
from modelfleetd.local.postgres import DATABASE
from modelfleetd.local.programs import MAINTENANCE_URL, MIGRATED

SERVICES = ("registry", "capacity", "stability", "launcher")
_DATABASE_SECONDS = 60.0
_REGISTRY_SECONDS = 60.0


async def create_database(maintenance_url: str, name: str) -> None:
    """Waits until the server answers, and creates the database where it is not there."""
    conn = await _connect(maintenance_url)
    try:
        if not await conn.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await conn.execute(f'CREATE DATABASE "{name}"')
    finally:
        await conn.close()


async def _connect(url: str) -> asyncpg.Connection:
    end = time.monotonic() + _DATABASE_SECONDS
    while True:
        try:
            return await asyncpg.connect(url, timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            if time.monotonic() > end:
                raise PartUnavailable("database") from None
            await asyncio.sleep(0.05)


async def migrate_all(url: str) -> None:
    """Brings every schema to the newest version."""
    for service in SERVICES:
        await migrate(url, service, importlib.import_module(f"modelfleetd.{service}.migrations"))


async def tell_region(registry_address: str, region: str, agent_address: str) -> None:
    """Creates the region, or corrects its agent's address."""
    import grpc

    from modelfleet.registry.v1 import registry_pb2 as pb
    from modelfleet.registry.v1 import registry_pb2_grpc

    name = f"regions/{region}"
    wanted = pb.Region(name=name, agent_address=agent_address)
    reason = "modelfleetd up: this machine"
    async with grpc.aio.insecure_channel(registry_address) as channel:
        registry = registry_pb2_grpc.RegistryServiceStub(channel)
        try:
            request = pb.GetRegionRequest(name=name)
            known = await registry.GetRegion(request, timeout=_REGISTRY_SECONDS, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            create = pb.CreateRegionRequest(
                region_id=region, region=wanted, request_id=str(uuid.uuid4()), reason=reason
            )
            create.region.ClearField("name")
            await registry.CreateRegion(create, timeout=10)
            return
        if known.agent_address != agent_address:
            update = pb.UpdateRegionRequest(region=wanted, request_id=str(uuid.uuid4()), reason=reason)
            update.update_mask.paths.append("agent_address")
            await registry.UpdateRegion(update, timeout=10)


async def _prepare(options: argparse.Namespace) -> None:
    url = os.environ["MODELFLEET_DATABASE_URL"]
    if maintenance := os.environ.get(MAINTENANCE_URL):
        await create_database(maintenance, DATABASE)
    await migrate_all(url)
    print(MIGRATED, flush=True)
    await tell_region(os.environ["MODELFLEET_REGISTRY_ADDRESS"], options.region, options.agent)


def main(argv: Sequence[str] | None = None) -> int:
    """Does it once; one line on stderr says why not."""
    parser = argparse.ArgumentParser(prog="python -m modelfleetd.local.prepare")
    parser.add_argument("--region", required=True, help="id of the region")
    parser.add_argument("--agent", required=True, help="address of its agent")
    options = parser.parse_args(argv)
    try:
        asyncio.run(_prepare(options))
    except Exception as error:  # noqa: BLE001  # one line, whatever it is: it ends in a log, which keeps no secrets
        known = isinstance(error, (FleetError, RuntimeError, ValueError))
        said = redact(str(error)).strip().split("\n", 1)[0]
        print(said if known else f"{type(error).__name__}: {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
