"""The four services in one process, on one database, talking to each other over real channels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import grpc.aio

from modelfleet import AsyncClient
from modelfleetd.kit.app import Service
from tests.support.servers import running


@dataclass(frozen=True)
class Fleet:
    """The running services, by name."""

    services: dict[str, Service]

    def client(self, principal: str | None = None) -> AsyncClient:
        """A client of all of them, as somebody; `async with` it."""
        return AsyncClient(
            principal=principal,
            registry=self.services["registry"].address,
            capacity=self.services["capacity"].address,
            launcher=self.services["launcher"].address,
            stability=self.services["stability"].address,
        )

    @asynccontextmanager
    async def channel(self, service: str) -> AsyncIterator[grpc.aio.Channel]:
        """A bare channel to one service."""
        async with grpc.aio.insecure_channel(self.services[service].address) as channel:
            yield channel


@asynccontextmanager
async def fleet(database_url: str, **config: Any) -> AsyncIterator[Fleet]:
    """Starts registry, capacity, stability and launcher on free ports; stops them at the end."""
    services: dict[str, Service] = {}
    async with AsyncExitStack() as stack:
        for name in ("registry", "capacity", "stability", "launcher"):
            addresses: dict[str, Any] = {f"{other}_address": found.address for other, found in services.items()}
            build = import_module(f"modelfleetd.{name}.app").build
            services[name] = await stack.enter_async_context(
                running(name, build, database_url=database_url, **addresses, **config)
            )
        yield Fleet(services)
