"""What capacity asks the registry: teams, regions, demand, how models are served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from modelfleet.common.v1 import serving_pb2
from modelfleet.errors import ModelfleetError, NotFound
from modelfleet.registry.v1 import evidence_pb2, registry_pb2
from modelfleet.services import AsyncRegistry
from modelfleetd.capacity.domain.demand import Query, Stated
from modelfleetd.capacity.domain.exact import BASIS_POINTS
from modelfleetd.errors import NotConfigured, PartUnavailable, ReferenceNotFound
from modelfleetd.kit import deadline
from modelfleetd.kit.codec import from_proto, timestamp_from_proto
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.platform.model import ServingSpec

_MOST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model as far as capacity is concerned."""

    name: str
    model_type: str
    spec: ServingSpec


@dataclass(frozen=True, slots=True)
class Route:
    """A model type as far as capacity is concerned.

    Attributes:
        tier: TIER0 to TIER4, or empty.
        baseline: the main model; empty where there is none.
        launch_policy: launchPolicies/{launch_policy}, or empty.
        regions: where it is served, at least one, in their order.
        stated: peaks that somebody stated.
        query: how the others are measured; None where nothing is said of that.
        failover: basis points of a region's demand that go to another when it fails, by (failed, taking) region.
        shares: basis points of the route that models have, by (region, model).
        split_regions: regions in which the split of the route is known.
    """

    model_type: str
    team: str
    tier: str
    baseline: str
    launch_policy: str
    regions: tuple[str, ...]
    stated: tuple[Stated, ...]
    query: Query | None
    growth_basis_points: int
    fanout_basis_points: int
    failover: Mapping[tuple[str, str], int]
    shares: Mapping[tuple[str, str], int]
    split_regions: frozenset[str]

    def shares_of(self, model: str) -> dict[str, int]:
        """Returns basis points of the route that a model has, by region."""
        return {region: share for (region, of), share in self.shares.items() if of == model}


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

    async def route(self, model_type: str, field: str) -> Route:
        """Returns a route.

        Raises:
            ReferenceNotFound: there is no such model type; names the field of the request.
            NotConfigured: it has no region.
        """
        async with _refers_to(field, model_type):
            found = await self._client.get_model_type(name=model_type, timeout=_timeout())
            regions = [each async for each in self._client.list_regions_all(page_size=1000, timeout=_timeout())]
        if not found.regions:
            raise NotConfigured(model_type, "regions", "set them first")
        source = found.demand_source
        return Route(
            model_type=model_type,
            team=found.team,
            tier=serving_pb2.Tier.Name(found.tier) if found.tier else "",
            baseline=found.baseline,
            launch_policy=found.launch_policy,
            regions=tuple(found.regions),
            stated=tuple(map(_stated, source.stated)),
            query=_query(source.prometheus) if source.HasField("prometheus") else None,
            growth_basis_points=source.growth_basis_points,
            fanout_basis_points=source.fanout_basis_points or BASIS_POINTS,
            failover=_failover(region for region in regions if region.name in found.regions),
            shares={
                (split.region, share.model): share.share_basis_points
                for split in found.splits
                for share in split.shares
            },
            split_regions=frozenset(split.region for split in found.splits if split.shares),
        )

    async def reports(self, model: str, metric: str) -> list[evidence_pb2.EvaluationReport]:
        """Returns the evaluation reports of a model that have a result of a metric."""
        async with _refers_to("launch_decision.candidate", model):
            return [
                report
                async for report in self._client.list_evaluation_reports_all(
                    parent=model, filter=f'results.metric:"{metric}"', page_size=100, timeout=_timeout()
                )
            ]

    async def report(self, name: str) -> evidence_pb2.EvaluationReport:
        """Raises ReferenceNotFound where there is no such report."""
        async with _refers_to("launch_decision.evaluation_report", name):
            return await self._client.get_evaluation_report(name=name, timeout=_timeout())

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


def _stated(message: registry_pb2.RegionDemand) -> Stated:
    measured = timestamp_from_proto(message.measure_time) if message.HasField("measure_time") else None
    return Stated(message.region, message.peak_qps, message.source, measured)


def _query(message: registry_pb2.PrometheusDemand) -> Query:
    # The registry writes out the defaults when it stores them.
    return Query(message.query, message.window.ToTimedelta(), message.quantile)


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
