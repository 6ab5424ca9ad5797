"""Calls from one service to another: the client that everybody has, with this service's identity and for whom it acts,
within what is left of the deadline, and in the trace that the work belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from modelfleet import AsyncClient
from modelfleet.services import AsyncPlatform
from modelfleet.transport import DEFAULT_TIMEOUT, Metadata, Options, Tls
from modelfleetd.kit import deadline
from modelfleetd.kit.auth import PrincipalKind
from modelfleetd.kit.call import find_call
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.interceptors.identity import ON_BEHALF_OF_KEY, PRINCIPAL_KEY
from modelfleetd.kit.trace import current_ids

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
        tls = Tls(config.tls_ca, config.tls_cert or None, config.tls_key or None) if config.tls_ca else None
        # Without certificates a service is only believed on loopback, where it may say who it is.
        self._identity: Metadata = () if tls else ((PRINCIPAL_KEY, f"service/{service}"),)
        # A caller repeats its call anyway: repeating here as often would multiply the load on what is down.
        self._options = Options(tls, DEFAULT_TIMEOUT, self.metadata, attempts=2, remaining=deadline.remaining)
        self._platforms: dict[str, AsyncPlatform] = {}
        self.client = AsyncClient(
            registry=config.registry_address,
            capacity=config.capacity_address,
            launcher=config.launcher_address,
            stability=config.stability_address,
            options=self._options,
        )

    def metadata(self) -> Metadata:
        """Returns what goes with every call: who calls, for whom, and the trace that the work belongs to."""
        made = list(self._identity)
        if (person := _acts_for()) is not None:
            made.append((ON_BEHALF_OF_KEY, person))
        if (ids := current_ids()) is not None:
            made.append(("traceparent", ids.traceparent))
        return tuple(made)

    def platform(self, address: str) -> AsyncPlatform:
        """Returns the platform agent at an address; the connection is kept."""
        agent = self._platforms.get(address)
        if agent is None:
            agent = self._platforms[address] = AsyncPlatform(address, self._options)
        return agent

    async def close(self) -> None:
        """Closes everything that was opened."""
        await self.client.close()
        for agent in self._platforms.values():
            await agent.close()


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
