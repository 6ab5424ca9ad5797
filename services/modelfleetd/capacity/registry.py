"""What capacity asks the registry: teams, regions, demand, how models are served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from modelfleet.errors import ModelfleetError, NotFound
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncRegistry
from modelfleetd.capacity.domain.estimate import Demand
from modelfleetd.capacity.domain.exact import BASIS_POINTS
from modelfleetd.errors import NotConfigured, PartUnavailable, ReferenceNotFound
from modelfleetd.kit import deadline
from modelfleetd.kit.codec import from_proto
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.platform.model import ServingSpec

_MOST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model as far as capacity is concerned."""

    name: str
    model_type: str
    spec: ServingSpec


class Registry:
    """The registry's answers in the words of the domain. Every method may raise PartUnavailable."""

    def __init__(self, client: AsyncRegistry) -> None:
        self._client = client

    async def model(self, name: str, field: str) -> Model:
        """Raises ReferenceNotFound, which names the field of the request, where there is no such model."""
        async with _refers_to(field, name):
            found = await self._client.get_model(name=name, timeout=_timeout())
        model_type = MODEL_TYPE.format(MODEL.parse(name, field)[0])
        return Model(name, model_type, from_proto(found.serving_spec, ServingSpec))

    async def demand(self, model_type: str) -> tuple[tuple[str, ...], Demand]:
        """Returns the regions of a route, in their order, and what it must carry.

        Raises:
            ReferenceNotFound: there is no such model type.
            NotConfigured: it has no region, or no demand is stated for one.
        """
        async with _refers_to("estimate.model", model_type):
            found = await self._client.get_model_type(name=model_type, timeout=_timeout())
            regions = {
                region.name: region
                async for region in self._client.list_regions_all(page_size=1000, timeout=_timeout())
            }
        route = tuple(found.regions)
        if not route:
            raise NotConfigured(model_type, "regions")
        peaks = {stated.region: stated.peak_qps for stated in found.demand_source.stated if stated.region in route}
        for region in route:
            if region not in peaks:
                raise NotConfigured(model_type, f"demand_source.stated for {region}")
        return route, Demand(
            peaks=peaks,
            growth_basis_points=found.demand_source.growth_basis_points,
            fanout_basis_points=found.demand_source.fanout_basis_points or BASIS_POINTS,
            failover=_failover(regions[region] for region in route if region in regions),
            source=model_type,
        )

    async def agent_address(self, region: str, field: str) -> str:
        """Returns where a region's platform agent listens. Raises ReferenceNotFound where there is no such region."""
        async with _refers_to(field, region):
            return (await self._client.get_region(name=region, timeout=_timeout())).agent_address

    async def check_model_type(self, model_type: str, field: str) -> None:
        """Raises ReferenceNotFound where there is no such model type."""
        async with _refers_to(field, model_type):
            await self._client.get_model_type(name=model_type, timeout=_timeout())

    async def check_team(self, team: str, field: str) -> None:
        """Raises ReferenceNotFound where there is no such team."""
        async with _refers_to(field, team):
            await self._client.get_team(name=team, timeout=_timeout())

    async def check_regions(self, regions: Iterable[tuple[str, str]]) -> None:
        """Raises ReferenceNotFound for the first of (field, region) that does not exist."""
        known: set[str] = set()
        for field, region in regions:
            if region not in known:
                await self.agent_address(region, field)
                known.add(region)


def _timeout() -> float:
    """What a call may take: less than what is left, so that our caller learns which part did not answer."""
    left = deadline.remaining()
    return _MOST_SECONDS if left is None else min(_MOST_SECONDS, left * 0.8)


def _failover(regions: Iterable[registry_pb2.Region]) -> dict[tuple[str, str], int]:
    return {
        (region.name, share.region): share.share_basis_points for region in regions for share in region.failover_shares
    }


@asynccontextmanager
async def _refers_to(field: str, resource: str) -> AsyncIterator[None]:
    """Turns the registry's refusals into ours: a missing resource is a reference of the request that leads nowhere."""
    try:
        yield
    except NotFound as error:
        raise ReferenceNotFound(field, resource) from error
    except ModelfleetError as error:
        raise PartUnavailable("registry", error.retry_after) from error
