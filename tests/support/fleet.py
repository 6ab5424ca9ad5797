"""The four services in one process, on one database, talking to each other over real channels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import grpc.aio

from modelfleet import AsyncClient
from modelfleetd.kit.app import Service
from tests.support.servers import running

SERVICES = ("registry", "capacity", "stability", "launcher")


@dataclass(frozen=True)
class Fleet:
    """The running services, by name."""

    services: dict[str, Service]

    def client(self, principal: str | None = None) -> AsyncClient:
        """A client of all of them, as somebody; `async with` it."""
        addresses: dict[str, Any] = {name: found.address for name, found in self.services.items()}
        return AsyncClient("127.0.0.1:1", principal=principal, **addresses)

    @asynccontextmanager
    async def channel(self, service: str) -> AsyncIterator[grpc.aio.Channel]:
        """A bare channel to one service."""
        async with grpc.aio.insecure_channel(self.services[service].address) as channel:
            yield channel


@asynccontextmanager
async def fleet(database_url: str, names: Sequence[str] = SERVICES, **config: Any) -> AsyncIterator[Fleet]:
    """Starts the services, those before that others need, on free ports; stops them at the end."""
    services: dict[str, Service] = {}
    async with AsyncExitStack() as stack:
        for name in names:
            addresses: dict[str, Any] = {f"{other}_address": found.address for other, found in services.items()}
            build = import_module(f"modelfleetd.{name}.app").build
            services[name] = await stack.enter_async_context(
                running(name, build, database_url=database_url, **addresses, **config)
            )
        yield Fleet(services)
