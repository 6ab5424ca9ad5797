"""The clients: one address for all services (the front door), or one for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from modelfleet.services import (
    AsyncCapacity,
    AsyncLauncher,
    AsyncRegistry,
    AsyncStability,
    Capacity,
    Launcher,
    Registry,
    Stability,
)
from modelfleet.transport import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, Options, Tls, expect_encryption, identity


class _Client:
    """What both clients have: where the services are, and how calls are made."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        registry: str | None = None,
        capacity: str | None = None,
        launcher: str | None = None,
        stability: str | None = None,
        principal: str | None = None,
        token: str | Callable[[], str] | None = None,
        tls: Tls | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        options: Options | None = None,
    ) -> None:
        """Makes a client; connections are opened when first used.

        Args:
            address: of the front door, host:port.
            registry: address of the registry, where it is not behind the front door. The same for the other services.
            capacity: see `registry`.
            launcher: see `registry`.
            stability: see `registry`.
            principal: who calls, asserted: for an installation on this machine without configured identity.
            token: a JWT, or a function that returns a fresh one.
            tls: files for an encrypted connection; None: not encrypted.
            timeout: default deadline of a call, in seconds.
            options: all of it at once, instead of `principal`, `token`, `tls` and `timeout`.

        Raises:
            ValueError: a file of `tls` is not what it should be, the principal or the token cannot be sent, or the
                token would travel in plain text beyond this machine.
            OSError: a file of `tls` cannot be read.
        """
        self._options = options or Options(tls, timeout, identity(principal, token))
        self._addresses = {
            "registry": registry or address,
            "capacity": capacity or address,
            "launcher": launcher or address,
            "stability": stability or address,
        }
        if self._options.tls is not None:
            self._options.tls.check()
        if token is not None:
            for place in self._addresses.values():
                expect_encryption(place, self._options.tls)

    @property
    def timeout(self) -> float:
        """Default deadline of a call, in seconds."""
        return self._options.timeout

    def _opened(self) -> list[Any]:
        return [self.__dict__[name] for name in self._addresses if name in self.__dict__]


class AsyncClient(_Client):
    """All services, for asyncio. `async with AsyncClient(…) as client:`, or `await client.close()` at the end."""

    @cached_property
    def registry(self) -> AsyncRegistry:
        """The ledger of what is live."""
        return AsyncRegistry(self._addresses["registry"], self._options)

    @cached_property
    def capacity(self) -> AsyncCapacity:
        """Quota, reservations, load tests, estimates."""
        return AsyncCapacity(self._addresses["capacity"], self._options)

    @cached_property
    def launcher(self) -> AsyncLauncher:
        """Launches."""
        return AsyncLauncher(self._addresses["launcher"], self._options)

    @cached_property
    def stability(self) -> AsyncStability:
        """Calibration, normalized entropy, verdicts."""
        return AsyncStability(self._addresses["stability"], self._options)

    async def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        for service in self._opened():
            await service.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Client(_Client):
    """All services, blocking. `with Client(…) as client:`, or `client.close()` at the end. Threads may share it."""

    @cached_property
    def registry(self) -> Registry:
        """The ledger of what is live."""
        return Registry(self._addresses["registry"], self._options)

    @cached_property
    def capacity(self) -> Capacity:
        """Quota, reservations, load tests, estimates."""
        return Capacity(self._addresses["capacity"], self._options)

    @cached_property
    def launcher(self) -> Launcher:
        """Launches."""
        return Launcher(self._addresses["launcher"], self._options)

    @cached_property
    def stability(self) -> Stability:
        """Calibration, normalized entropy, verdicts."""
        return Stability(self._addresses["stability"], self._options)

    def for_asyncio(self, attempts: int | None = None) -> AsyncClient:
        """Returns a client for asyncio of the same services, as the same caller; close it too.

        Args:
            attempts: how often a call is made at most, where that is to be another number.
        """
        options = self._options if attempts is None else replace(self._options, attempts=attempts)
        made = AsyncClient(options=options)
        made._addresses = dict(self._addresses)
        return made

    def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        for service in self._opened():
            service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
