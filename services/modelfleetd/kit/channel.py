"""Calls from one service to another: the client that everybody has, with this service's identity and for whom it acts,
within what is left of the deadline, and in the trace that the work belongs to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from modelfleet import AsyncClient
from modelfleet.services import AsyncPlatform
from modelfleet.transport import DEFAULT_TIMEOUT, Metadata, Options, Tls, identity
from modelfleetd.errors import PartUnavailable
from modelfleetd.kit import deadline, failpoint
from modelfleetd.kit.auth import PrincipalKind
from modelfleetd.kit.call import find_call
from modelfleetd.kit.config import ServiceConfig, is_loopback
from modelfleetd.kit.interceptors.identity import ON_BEHALF_OF_KEY, PRINCIPAL_KEY
from modelfleetd.kit.trace import current_ids

_log = logging.getLogger(__name__)
_person: ContextVar[str | None] = ContextVar("modelfleet_person", default=None)


@contextmanager
def acting_for(person: str) -> Iterator[None]:
    """Makes onward calls on behalf of somebody: for work that goes on after the call that asked for it."""
    token = _person.set(person)
    try:
        yield
    finally:
        _person.reset(token)


class Outbound:
    """Every way out of a service."""

    def __init__(self, service: str, config: ServiceConfig) -> None:
        self._needs_encryption = bool(config.service_token_file) and not config.tls_terminated_upstream
        tls = _tls(config)
        self._identity = _identity(service, config)
        # A caller repeats its call anyway: repeating here as often would multiply the load on what is down.
        self._options = Options(tls, DEFAULT_TIMEOUT, self.metadata, attempts=2, remaining=deadline.remaining)
        if failpoint.is_active():
            self._options = replace(self._options, around=lambda path: _passing(service, path))
        self._platforms: dict[str, AsyncPlatform] = {}
        for name in ("registry", "capacity", "launcher", "stability"):
            self._expect_encryption(getattr(config, f"{name}_address"), f"--{name}-address")
        self.client = AsyncClient(
            registry=config.registry_address,
            capacity=config.capacity_address,
            launcher=config.launcher_address,
            stability=config.stability_address,
            options=self._options,
        )

    def metadata(self) -> Metadata:
        """Returns what goes with every call: who calls, for whom, and the trace that the work belongs to."""
        made = list(self._identity())
        if (person := _acts_for()) is not None:
            made.append((ON_BEHALF_OF_KEY, person))
        if (ids := current_ids()) is not None:
            made.append(("traceparent", ids.traceparent))
        return tuple(made)

    def platform(self, address: str) -> AsyncPlatform:
        """Returns the platform agent at an address; the connection is kept."""
        agent = self._platforms.get(address)
        if agent is None:
            try:
                self._expect_encryption(address, "the agent's address")
            except ValueError as error:
                raise PartUnavailable(f"agent at {address}") from error
            agent = self._platforms[address] = AsyncPlatform(address, self._options)
        return agent

    def _expect_encryption(self, address: str, what: str) -> None:
        if self._needs_encryption and self._options.tls is None and not is_loopback(address):
            raise ValueError(
                f"refusing to show --service-token-file to {address} ({what}) without encryption: "
                "give --tls-ca, or --tls-terminated-upstream where something on the way encrypts"
            )

    async def close(self) -> None:
        """Closes everything that was opened."""
        await self.client.close()
        for agent in self._platforms.values():
            await agent.close()


def _passing(service: str, path: str) -> AbstractContextManager[None]:
    return failpoint.passing(service, "call", path.rpartition("/")[2])


def _tls(config: ServiceConfig) -> Tls | None:
    """Returns how other services are called: a token needs encryption, and without authorities the system's count."""
    if not (config.tls_ca or (config.tls_cert and config.service_token_file)):
        return None
    has = config.has_certificate
    return Tls(config.tls_ca or None, config.tls_cert if has else None, config.tls_key if has else None)


def _identity(service: str, config: ServiceConfig) -> Callable[[], Metadata]:
    """Returns what tells the others who calls.

    Raises:
        ValueError: nothing would, or the token cannot be read.
    """
    if config.service_token_file:
        return _TokenFile(config.service_token_file)
    if config.has_certificate:
        return tuple
    if config.jwt_jwks:
        raise ValueError(
            f"the other services take proven callers only, and {service} has nothing to show: "
            "give --tls-cert, --tls-key and --tls-ca, or --service-token-file and --jwt-service-prefix"
        )
    # On loopback, where nobody is proven, a service may say who it is.
    asserted = ((PRINCIPAL_KEY, f"service/{service}"),)
    return lambda: asserted


class _TokenFile:
    """The token of a file, read again when it changes: whoever issues it replaces it before it expires."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._state = self._look()
        self._metadata = self._read()

    def __call__(self) -> Metadata:
        try:
            state = self._look()
            if state != self._state:
                self._metadata, self._state = self._read(), state
        except (OSError, ValueError) as error:
            # In the middle of a replacement; the next call looks again.
            _log.warning("cannot read --service-token-file: %s; keeping the token in use", error)
        return self._metadata

    def _look(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino

    def _read(self) -> Metadata:
        token = self._path.read_text(encoding="utf-8", errors="replace").strip()
        if not token:
            raise ValueError(f"--service-token-file {self._path} is empty")
        return identity(None, token)()


def _acts_for() -> str | None:
    """Returns the person behind the work at hand: stated, or whoever called, or whom the calling service acts for."""
    person = _person.get()
    if person is not None:
        return person
    call = find_call()
    if call is None or call.principal is None:
        return None
    principal = call.principal
    return principal.on_behalf_of if principal.kind is PrincipalKind.SERVICE else principal.name
