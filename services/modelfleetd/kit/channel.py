"""Calls from one service to another: the client that everybody has, with this service's identity, what is left of the
deadline, and the trace that the work belongs to.
"""

from __future__ import annotations

import grpc
import grpc.aio

from modelfleet import AsyncClient
from modelfleet.services import AsyncPlatform
from modelfleet.transport import DEFAULT_TIMEOUT, Metadata, Options, Tls, channel_options
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.trace import current_ids


class Outbound:
    """Every way out of a service."""

    def __init__(self, service: str, config: ServiceConfig) -> None:
        self._tls = (
            Tls(config.tls_ca or None, config.tls_cert or None, config.tls_key or None) if config.tls_ca else None
        )
        # Without certificates a service is only believed on loopback, where it may say who it is.
        self._identity: Metadata = () if self._tls else (("x-modelfleet-principal", f"service/{service}"),)
        self._addresses = {
            "registry": config.registry_address,
            "capacity": config.capacity_address,
            "launcher": config.launcher_address,
            "stability": config.stability_address,
        }
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._platforms: dict[str, AsyncPlatform] = {}
        self.client = AsyncClient(
            registry=config.registry_address,
            capacity=config.capacity_address,
            launcher=config.launcher_address,
            stability=config.stability_address,
            tls=self._tls,
            metadata=self.metadata,
        )

    def metadata(self) -> Metadata:
        """Returns what goes with every call: who calls, and the trace that the work belongs to."""
        ids = current_ids()
        return self._identity if ids is None else (*self._identity, ("traceparent", ids.traceparent))

    def platform(self, address: str) -> AsyncPlatform:
        """Returns the platform agent at an address; the connection is kept."""
        agent = self._platforms.get(address)
        if agent is None:
            agent = self._platforms[address] = AsyncPlatform(
                address, Options(self._tls, DEFAULT_TIMEOUT, self.metadata)
            )
        return agent

    def channel(self, target: str) -> grpc.aio.Channel:
        """Returns a bare channel to a service by its name, or to an address; metadata is the caller's business."""
        address = self._addresses.get(target, target)
        if address not in self._channels:
            options = channel_options(address, (), self._tls)
            self._channels[address] = (
                grpc.aio.insecure_channel(address, options)
                if self._tls is None
                else grpc.aio.secure_channel(address, self._tls.credentials(), options)
            )
        return self._channels[address]

    async def close(self) -> None:
        """Closes everything that was opened."""
        await self.client.close()
        for agent in self._platforms.values():
            await agent.close()
        for channel in self._channels.values():
            await channel.close()
