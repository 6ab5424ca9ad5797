"""How a service is put together, started and stopped: the same for all of them.

A service's app.py has one function `build(service)` that composes it from what `Service` offers. Everything is stopped
in the reverse order: the server drains, then workers end, then connections close.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from modelfleetd.clock import Clock, SystemClock
from modelfleetd.errors import FleetError
from modelfleetd.kit import failpoint
from modelfleetd.kit.auth import RoleSource, TeamOf, no_team
from modelfleetd.kit.config import ServiceConfig, add_arguments
from modelfleetd.kit.db import Database
from modelfleetd.kit.metrics import CallMetrics, MetricsServer, Text
from modelfleetd.kit.migrations import migrate
from modelfleetd.kit.server import MESSAGE_BYTES, Server
from modelfleetd.kit.telemetry import Telemetry, configure_logging
from modelfleetd.kit.worker import Worker, Workers

if TYPE_CHECKING:
    from modelfleet import AsyncClient
    from modelfleetd.kit.channel import Outbound
    from modelfleetd.kit.roles import RegistryRoles

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Service:
    """What a service is composed from. `async with` it: `build` is called on the way in."""

    def __init__(
        self,
        name: str,
        build: Build,
        config: ServiceConfig,
        *,
        options: argparse.Namespace | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.options = options or argparse.Namespace()
        self.clock: Clock = clock or SystemClock()
        # Tells this process from every other, for leases.
        self.id = f"{name}-{uuid.uuid4()}"
        self.telemetry = Telemetry.of(name, config)
        self.metrics = CallMetrics()
        self._texts: list[Text] = []
        self._build = build
        self._stack = AsyncExitStack()
        self._workers: list[Worker] = []
        self._server: Server | None = None
        self._outbound: Outbound | None = None
        self._roles: RegistryRoles | None = None

    async def database(self, schema: str, migrations: ModuleType, *, max_size: int = 10) -> Database:
        """Returns the database, its schema up to date; closed at the end."""
        if not self.config.database_url:
            raise ValueError("give --database-url, or MODELFLEET_DATABASE_URL")
        await migrate(self.config.database_url, schema, migrations)
        database = await Database.open(self.config.database_url, schema, max_size=max_size)
        self._stack.push_async_callback(database.close)
        return database

    @property
    def outbound(self) -> Outbound:
        """Channels to other services, with this service's identity; closed at the end."""
        if self._outbound is None:
            from modelfleetd.kit.channel import Outbound

            self._outbound = Outbound(self.name, self.config)
            self._stack.push_async_callback(self._outbound.close)
        return self._outbound

    @property
    def client(self) -> AsyncClient:
        """The other services, as `modelfleet.AsyncClient` offers them: `service.client.registry.get_team(name=…)`."""
        return self.outbound.client

    def registry_roles(self) -> RegistryRoles:
        """Returns the role source of services other than the registry; also knows the teams of model types."""
        if self._roles is None:
            from modelfleetd.kit.roles import RegistryRoles

            self._roles = RegistryRoles(self.client.registry)
        return self._roles

    async def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enters something that is left at the end."""
        return await self._stack.enter_async_context(manager)

    def at_end(self, act: Callable[[], Awaitable[object]]) -> None:
        """Has something done at the end, after the server has drained and workers have ended."""
        self._stack.push_async_callback(act)

    def publish(self, text: Text) -> None:
        """Has Prometheus told more, in its text format: what is too much for the client library."""
        self._texts.append(text)

    def work(self, *workers: Worker) -> None:
        """Has workers run as long as the service does."""
        self._workers.extend(workers)

    def server(
        self,
        *,
        roles: RoleSource | None = None,
        team_of: TeamOf = no_team,
        expensive: Iterable[str] = (),
        max_message_bytes: int = MESSAGE_BYTES,
    ) -> Server:
        """Returns the server that listens once the service is built; see `Server`."""
        self._server = Server(
            self.config,
            telemetry=self.telemetry,
            metrics=self.metrics,
            roles=roles,
            team_of=team_of,
            expensive=expensive,
            max_message_bytes=max_message_bytes,
        )
        return self._server

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        assert self._server is not None
        return self._server.address

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_exit(self._stack.__aexit__)
            self._stack.push_async_callback(self.telemetry.close)
            await self._build(self)
            await self._stack.enter_async_context(Workers(self._workers))
            if self.config.metrics_listen:
                self._stack.callback(MetricsServer(self.config.metrics_listen, self.metrics, self._texts).close)
            if self._server is not None:
                await self._server.start()
                self._stack.push_async_callback(self._server.stop)
                await self._server.ready()
                _log.info("%s serves on %s", self.name, self._server.address)
            stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)


Build: TypeAlias = Callable[[Service], Awaitable[None]]


def run_service(
    name: str,
    build: Build,
    argv: Sequence[str] | None = None,
    *,
    arguments: Callable[[argparse.ArgumentParser], Any] | None = None,
) -> int:
    """Runs a service until SIGTERM or SIGINT; returns the exit status of the process.

    Args:
        name: of the service.
        build: composes it.
        argv: the flags; None: of this process.
        arguments: adds flags of the service's own; read as `service.options.<dest>`.
    """
    parser = argparse.ArgumentParser(prog=f"modelfleetd {name}", description=sys.modules[build.__module__].__doc__)
    add_arguments(parser)
    if arguments is not None:
        arguments(parser)
    options = parser.parse_args(argv)
    try:
        config = ServiceConfig.from_args(options)
        if config.has_identity and failpoint.is_active():
            raise ValueError("MODELFLEET_FAILPOINT* is for tests: a service that proves its callers refuses it")
        configure_logging(name, config)
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
            runner.run(_serve(Service(name, build, config, options=options)))
    except (FleetError, ValueError, OSError) as error:
        # What an operator can put right is said in one line.
        print(f"modelfleetd {name}: {error}", file=sys.stderr)  # noqa: T201
        logging.getLogger(__name__).debug("start failed", exc_info=error)
        return 1
    except asyncio.CancelledError:
        # Told to stop before it had started.
        return 0
    return 0


async def _serve(service: Service) -> None:
    stopped = asyncio.Event()
    starting = asyncio.current_task()

    def stop() -> None:
        stopped.set()
        if starting is not None:
            starting.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    async with service:
        starting = None
        await stopped.wait()
        _log.info("%s stops", service.name)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
