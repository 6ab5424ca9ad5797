"""Services in the process of the test: on port 0, with everything that they have in production."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from modelfleet import AsyncClient
from modelfleetd.clock import Clock
from modelfleetd.kit.app import Build, Service
from modelfleetd.kit.config import ServiceConfig


@asynccontextmanager
async def running(
    name: str, build: Build, database_url: str = "", *, clock: Clock | None = None, options: Any = None, **config: Any
) -> AsyncIterator[Service]:
    """Runs a service until the block ends; `.address` says where.

    Args:
        name: of the service.
        build: of its app.
        database_url: of a test's database.
        clock: instead of the machine's.
        options: flags of the service's own, as argparse would give them.
        config: fields of ServiceConfig that differ from the defaults.
    """
    settings = {"drain_seconds": 0.5, **config}
    async with Service(
        name, build, ServiceConfig(database_url=database_url, **settings), clock=clock, options=options
    ) as service:
        yield service


@asynccontextmanager
async def client_of(*services: Service, principal: str | None = None, **options: Any) -> AsyncIterator[AsyncClient]:
    """Gives a client of these services; None as principal is the local one, which may do everything."""
    options |= {service.name: service.address for service in services}
    async with AsyncClient("127.0.0.1:1", principal=principal, **options) as client:
        yield client


@asynccontextmanager
async def channel_to(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    """Gives a bare channel, for tests of what the client would not send."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        yield channel
