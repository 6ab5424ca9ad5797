"""A gRPC server with everything that each of ours has: interceptors, health, reflection, TLS, graceful drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from modelfleetd.kit.auth import NoBindings, RoleSource, TeamOf, no_team
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.interceptors.base import Interceptor
from modelfleetd.kit.interceptors.deadline import DeadlineInterceptor
from modelfleetd.kit.interceptors.decoding import DecodingInterceptor
from modelfleetd.kit.interceptors.errors import ErrorsInterceptor
from modelfleetd.kit.interceptors.identity import IdentityInterceptor
from modelfleetd.kit.interceptors.limiter import Gauge, LimiterInterceptor
from modelfleetd.kit.interceptors.permission import PermissionInterceptor
from modelfleetd.kit.interceptors.pipeline import Pipeline
from modelfleetd.kit.interceptors.tracing import TracingInterceptor
from modelfleetd.kit.interceptors.validation import ValidationInterceptor
from modelfleetd.kit.metrics import CallMetrics
from modelfleetd.kit.telemetry import Telemetry
from modelfleetd.kit.tls import server_credentials

_log = logging.getLogger(__name__)
MESSAGE_BYTES = 4 << 20
INGEST_MESSAGE_BYTES = 16 << 20


class Server:
    """Serves one or more gRPC services on one address."""

    def __init__(
        self,
        config: ServiceConfig,
        *,
        telemetry: Telemetry,
        metrics: CallMetrics | None = None,
        roles: RoleSource | None = None,
        team_of: TeamOf = no_team,
        expensive: Iterable[str] = (),
        max_message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        """Makes a server that does not listen yet.

        Args:
            config: of the service.
            telemetry: where spans go.
            metrics: where calls are counted.
            roles: where role bindings come from; without, only the configuration grants roles.
            team_of: maps a resource name to its team.
            expensive: names of methods that the smaller limit counts, such as `SimulateReservation`.
            max_message_bytes: the largest request; more for services that take in bulk.

        Raises:
            ValueError: the configuration would let strangers in.
        """
        config.check()
        self._config = config
        self._services: list[str] = []
        self._health = HealthServicer()
        self.port = 0
        self.limits = (
            Gauge(config.max_calls, retry_after=1.0),
            Gauge(config.max_expensive_calls, retry_after=5.0),
            Gauge(config.max_streams, retry_after=5.0),
        )
        metrics = metrics or CallMetrics()
        tracing, errors = TracingInterceptor(telemetry, metrics), ErrorsInterceptor()
        # Outermost first.
        self.interceptors: Sequence[Interceptor] = (
            tracing,
            errors,
            DeadlineInterceptor(metrics),
            IdentityInterceptor(config),
            DecodingInterceptor(),
            PermissionInterceptor(roles or NoBindings(), team_of),
            ValidationInterceptor(),
            LimiterInterceptor(*self.limits, frozenset(expensive)),
        )
        pipeline = Pipeline(self.interceptors, when_unknown=(tracing, errors))
        self._server = grpc.aio.server(interceptors=(pipeline,), options=_options(max_message_bytes))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add(self, servicer: Any, add_to_server: Callable[[Any, Any], None]) -> None:
        """Adds a servicer with the function that its generated module has for that."""
        add_to_server(servicer, _Registrar(self._server, self._services))

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        host = self._config.listen.rpartition(":")[0]
        return f"{host}:{self.port}"

    async def start(self) -> None:
        """Listens. Health says NOT_SERVING until `ready`."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        reflection.enable_server_reflection((*self._services, reflection.SERVICE_NAME), self._server)
        listen = self._config.listen
        try:
            if self._config.tls_cert:
                self.port = self._server.add_secure_port(listen, server_credentials(self._config))
            else:
                self.port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {listen}: is the port taken?") from error
        await self._server.start()

    async def ready(self) -> None:
        """Makes health say SERVING."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace: float | None = None) -> None:
        """Drains: health says NOT_SERVING, calls under way may end, streams are ended after the grace."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(self._config.drain_seconds if grace is None else grace)

    async def _set_health(self, status: Any) -> None:
        for service in ("", *self._services):
            await self._health.set(service, status)


class _Registrar:
    """Passes a servicer's handlers on to the server and keeps the names of their services."""

    def __init__(self, server: grpc.aio.Server, services: list[str]) -> None:
        self._server = server
        self._services = services

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        self._services.append(service)
        self._server.add_registered_method_handlers(service, handlers)


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", INGEST_MESSAGE_BYTES),
        # A second server on the same port must fail instead of sharing it silently.
        ("grpc.so_reuseport", 0),
        # Idle clients may ask whether the connection is alive, but not more often than this.
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_metadata_size", 16 << 10),
    ]


async def wait_until_serving(address: str, timeout: float = 10.0) -> None:
    """Returns when the server at an address says that it is serving.

    Raises:
        TimeoutError: it does not within the timeout.
    """
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(timeout):
        stub = health_pb2_grpc.HealthStub(channel)
        # grpc_health's stubs lack the method.
        watch: Any = stub.Watch  # type: ignore[attr-defined]
        async for answer in watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
