"""Estimates from what registry, metrics source, certificates and bookings say."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleetd.capacity.demands import Demands
from modelfleetd.capacity.domain.certificate import in_force
from modelfleetd.capacity.domain.estimate import NOTHING, Estimate, Replaced, Replica, Wanted, estimate
from modelfleetd.capacity.domain.exact import BASIS_POINTS
from modelfleetd.capacity.registry import Model, Registry, Route
from modelfleetd.capacity.store import certificates, estimates, flavors
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.clock import Clock
from modelfleetd.errors import ReferenceNotFound, invalid
from modelfleetd.kit.db import Database
from modelfleetd.names import MODEL


@dataclass(frozen=True, slots=True)
class Estimated:
    """An estimate, and the route that it is about."""

    estimate: Estimate
    route: Route


class Estimator:
    """Makes estimates; changes nothing."""

    def __init__(self, database: Database, registry: Registry, demands: Demands, clock: Clock) -> None:
        self._database = database
        self._registry = registry
        self._demands = demands
        self._clock = clock

    async def estimate(self, name: str, wanted: Wanted, field: str = "estimate.model") -> Estimated:
        """Returns what a model needs.

        Args:
            name: of the estimate.
            wanted: what is asked for.
            field: of the request that names the model.

        Raises:
            ReferenceNotFound: the model or its flavor does not exist.
            CertificateMissing, CertificateExpired: nobody says what a replica carries, or not lately.
            NotConfigured, DemandUnmeasurable, PartUnavailable: the demand is not known.
        """
        model = await self._registry.model(wanted.model, field)
        route = await self._registry.route(model.model_type, field)
        old = await self._replaced_model(wanted, route)
        demand = await self._demands.of(route)
        async with self._database.transaction(readonly=True) as reads:
            replica = await self._replica(reads, model, allow_expired=wanted.allow_expired_certificate)
            replaced = None if old is None else await self._replaced(reads, old, route)
        shares = route.shares_of(model.name)
        made = estimate(name, wanted, demand, replica, replaced, shares, self._clock.now())
        return Estimated(made, route)

    async def _replaced_model(self, wanted: Wanted, route: Route) -> Model | None:
        if wanted.replaces == NOTHING:
            return None
        if not wanted.replaces:
            is_other = route.baseline not in ("", wanted.model)
            return await self._registry.model(route.baseline, "model_type.baseline") if is_other else None
        if MODEL.parse(wanted.replaces, "estimate.replaces")[0] != MODEL.parse(wanted.model)[0]:
            raise invalid("estimate.replaces", f"must be a model of {route.model_type}, or - for none")
        if wanted.replaces == wanted.model:
            raise invalid("estimate.replaces", "must be another model, or - for none")
        return await self._registry.model(wanted.replaces, "estimate.replaces")

    async def _replica(self, reads: Reads, model: Model, *, allow_expired: bool) -> Replica:
        flavor, now = model.spec.flavor, self._clock.now()
        known = await certificates.newest(reads, model.name, flavor)
        certificate = in_force(known, model.name, flavor, now, allow_expired=allow_expired)
        return Replica(
            max_qps=certificate.max_qps,
            certificate=certificate.name,
            flavor=flavor,
            unit_cost=await _unit_cost(reads, flavor),
            units=model.spec.units,
            certify_time=certificate.create_time,
            expire_time=None if certificate.expire_time > now else certificate.expire_time,
        )

    async def _replaced(self, reads: Reads, model: Model, route: Route) -> Replaced:
        """What is known of the model that is replaced. It serves already: a certificate that has expired will do."""
        flavor = model.spec.flavor
        certified = bool(await certificates.newest(reads, model.name, flavor))
        shares = route.shares_of(model.name)
        assumed = frozenset(route.regions) - route.split_regions
        return Replaced(
            model=model.name,
            flavor=flavor,
            unit_cost=await _unit_cost(reads, flavor),
            units=model.spec.units,
            replica=await self._replica(reads, model, allow_expired=True) if certified else None,
            booked_units={} if certified else await estimates.booked_units(reads, model.name, flavor),
            shares={region: BASIS_POINTS if region in assumed else shares.get(region, 0) for region in route.regions},
            assumed_shares=assumed,
        )


async def _unit_cost(reads: Reads, flavor: str) -> float:
    if await flavors.missing(reads, [flavor], lock=False):
        raise ReferenceNotFound("serving_spec.flavor", flavor)
    return (await flavors.get(reads, flavor)).unit_cost
