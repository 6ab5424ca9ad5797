"""The servicer: parse → decide → store → reply."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import grpc
from google.protobuf.empty_pb2 import Empty

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import capacity_pb2_grpc
from modelfleetd import names
from modelfleetd.capacity import holds, wire
from modelfleetd.capacity.domain.admission import check_bookings
from modelfleetd.capacity.domain.certificate import in_force
from modelfleetd.capacity.domain.estimate import Replica, estimate
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.loadtest import DEFAULT_START_QPS, ENDED, State
from modelfleetd.capacity.domain.pool import Pool
from modelfleetd.capacity.registry import Model, Registry
from modelfleetd.capacity.store import balances, certificates, flavors, loadtests, pools, reservations
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.turns import Turns
from modelfleetd.clock import Clock
from modelfleetd.errors import ReferenceNotFound, WrongState, invalid
from modelfleetd.kit import paging
from modelfleetd.kit.auth import current_principal, expect_role_on_destination
from modelfleetd.kit.db import Connection, Database

_NEWEST = 2**62
_MAX_REASON = 1000
_WATCH_SECONDS = 0.25
# One works on the rows of the pool while the next is on its way.
_ADMISSIONS_AT_A_TIME = 2

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CapacityServicer(capacity_pb2_grpc.CapacityServiceServicer):
    """Implements modelfleet.capacity.v1.CapacityService."""

    def __init__(self, database: Database, registry: Registry, clock: Clock) -> None:
        self._database = database
        self._registry = registry
        self._clock = clock
        self._turns = Turns(_ADMISSIONS_AT_A_TIME)

    # Flavors

    async def GetFlavor(self, request: pb.GetFlavorRequest, context: Context) -> pb.Flavor:
        return wire.flavor_to_proto(await flavors.get(self._database, request.name))

    async def ListFlavors(self, request: pb.ListFlavorsRequest, context: Context) -> pb.ListFlavorsResponse:
        page = paging.read(request, str)
        found = await flavors.page(self._database, _name(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.name,), wire.flavor_to_proto)
        return pb.ListFlavorsResponse(flavors=shown, next_page_token=token)

    async def CreateFlavor(self, request: pb.CreateFlavorRequest, context: Context) -> pb.Flavor:
        wanted = wire.flavor_from_proto(request.flavor, names.FLAVOR.format(request.flavor_id))

        async def act(conn: Connection) -> pb.Flavor:
            return wire.flavor_to_proto(await flavors.insert(conn, wanted))

        return await change(self._database, request, pb.Flavor, act)

    async def UpdateFlavor(self, request: pb.UpdateFlavorRequest, context: Context) -> pb.Flavor:
        async def act(conn: Connection) -> pb.Flavor:
            current = await flavors.lock(conn, request.flavor.name, request.flavor.etag)
            message = wire.updated(
                wire.flavor_to_proto(current), request.flavor, request.update_mask, wire.FLAVOR_FIELDS
            )
            return wire.flavor_to_proto(await flavors.update(conn, wire.flavor_from_proto(message, current.name)))

        return await change(self._database, request, pb.Flavor, act)

    async def DeleteFlavor(self, request: pb.DeleteFlavorRequest, context: Context) -> Empty:
        async def act(conn: Connection) -> Empty:
            await flavors.lock(conn, request.name, request.etag)
            await flavors.delete(conn, request.name)
            return Empty()

        return await change(self._database, request, Empty, act)

    # Pools

    async def GetPool(self, request: pb.GetPoolRequest, context: Context) -> pb.Pool:
        return wire.pool_to_proto(await pools.get(self._database, request.name))

    async def ListPools(self, request: pb.ListPoolsRequest, context: Context) -> pb.ListPoolsResponse:
        page = paging.read(request, str)
        found = await pools.page(self._database, _name(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.name,), wire.pool_to_proto)
        return pb.ListPoolsResponse(pools=shown, next_page_token=token)

    async def CreatePool(self, request: pb.CreatePoolRequest, context: Context) -> pb.Pool:
        wanted = wire.pool_from_proto(request.pool, names.POOL.format(request.pool_id))
        await self._check_pool(wanted)

        async def act(conn: Connection) -> pb.Pool:
            await _check_flavors(conn, wanted)
            return wire.pool_to_proto(await pools.insert(conn, wanted))

        return await change(self._database, request, pb.Pool, act)

    async def UpdatePool(self, request: pb.UpdatePoolRequest, context: Context) -> pb.Pool:
        await expect_role_on_destination(request.pool.team, request.update_mask.paths)
        await self._check_pool(wire.pool_from_proto(request.pool, request.pool.name))

        async def act(conn: Connection) -> pb.Pool:
            current = await pools.lock(conn, request.pool.name, request.pool.etag)
            message = wire.updated(wire.pool_to_proto(current), request.pool, request.update_mask, wire.POOL_FIELDS)
            wanted = wire.pool_from_proto(message, current.name)
            await _check_flavors(conn, wanted)
            return wire.pool_to_proto(await pools.update(conn, wanted))

        return await change(self._database, request, pb.Pool, act)

    async def DeletePool(self, request: pb.DeletePoolRequest, context: Context) -> Empty:
        async def act(conn: Connection) -> Empty:
            await pools.delete(conn, await pools.lock(conn, request.name, request.etag))
            return Empty()

        return await change(self._database, request, Empty, act)

    async def _check_pool(self, pool: Pool) -> None:
        """Checks what a pool says of the registry's resources, before any transaction is open."""
        if pool.team:
            await self._registry.check_team(pool.team, "pool.team")
        await self._registry.check_regions(
            (f"pool.quotas[{index}].region", quota.region) for index, quota in enumerate(pool.quotas)
        )

    async def BookUsage(self, request: pb.BookUsageRequest, context: Context) -> pb.Pool:
        wanted = check_bookings(wire.bookings_from_proto(request))
        if len(request.reason) > _MAX_REASON:
            raise invalid("reason", f"must have at most {_MAX_REASON:,} characters")
        await self._check_models(wanted)

        async def act(conn: Connection) -> pb.Pool:
            await holds.book_usage(conn, request.pool, wanted, _actor(), request.reason)
            return wire.pool_to_proto(await pools.get(conn, request.pool))

        return await change(self._database, request, pb.Pool, act)

    async def _check_models(self, bookings: Sequence[ModelUnits]) -> None:
        checked: set[str] = set()
        for index, booking in enumerate(bookings):
            if booking.model not in checked:
                await self._registry.model(booking.model, f"usages[{index}].model")
                checked.add(booking.model)

    async def ListBookings(self, request: pb.ListBookingsRequest, context: Context) -> pb.ListBookingsResponse:
        page = paging.read(request, str, str, str)
        model, flavor, region = map(str, page.position or ("", "", ""))
        found = await balances.bookings_page(self._database, request.pool, (model, flavor, region), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.model, row.flavor, row.region), wire.bookings_to_proto)
        return pb.ListBookingsResponse(bookings=shown, next_page_token=token)

    # Reservations

    async def CreateReservation(self, request: pb.CreateReservationRequest, context: Context) -> pb.Reservation:
        asked = wire.asked_from_proto(request.reservation)
        time_to_live = wire.time_to_live_from_proto(request)
        name, actor = _new(names.RESERVATION, "r"), _actor()

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.hold(conn, name, asked, time_to_live, actor))

        async with self._turns.of(asked.pool):
            return await change(self._database, request, pb.Reservation, act)

    async def GetReservation(self, request: pb.GetReservationRequest, context: Context) -> pb.Reservation:
        return wire.reservation_to_proto(await reservations.get(self._database, request.name))

    async def ListReservations(
        self, request: pb.ListReservationsRequest, context: Context
    ) -> pb.ListReservationsResponse:
        page = paging.read(request, int)
        found = await reservations.page(self._database, request.pool, request.launch, _before(page), page.size + 1)
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: wire.reservation_to_proto(row.reservation)
        )
        return pb.ListReservationsResponse(reservations=shown, next_page_token=token)

    async def ActivateReservation(self, request: pb.ActivateReservationRequest, context: Context) -> pb.Reservation:
        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.activate(conn, request.name))

        return await change(self._database, request, pb.Reservation, act)

    async def SettleReservation(self, request: pb.SettleReservationRequest, context: Context) -> pb.Reservation:
        settlement, actor = wire.settlement_from_proto(request), _actor()

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.end(conn, request.name, settlement, actor))

        return await change(self._database, request, pb.Reservation, act)

    async def CancelReservation(self, request: pb.CancelReservationRequest, context: Context) -> pb.Reservation:
        actor = _actor()

        async def act(conn: Connection) -> pb.Reservation:
            return wire.reservation_to_proto(await holds.cancel(conn, request.name, actor))

        return await change(self._database, request, pb.Reservation, act)

    async def SimulateReservation(
        self, request: pb.SimulateReservationRequest, context: Context
    ) -> pb.SimulateReservationResponse:
        asked = wire.asked_from_proto(request.reservation)
        async with self._database.transaction(readonly=True) as conn:
            admission = await holds.decide(conn, asked, lock=False)
        return wire.simulation_to_proto(admission, asked.pool)

    async def ListLedgerEntries(
        self, request: pb.ListLedgerEntriesRequest, context: Context
    ) -> pb.ListLedgerEntriesResponse:
        page = paging.read(request, int)
        found = await balances.ledger_page(self._database, request.pool, _before(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.sequence,), wire.ledger_entry_to_proto)
        return pb.ListLedgerEntriesResponse(entries=shown, next_page_token=token)

    # Load tests

    async def CreateLoadTest(self, request: pb.CreateLoadTestRequest, context: Context) -> pb.LoadTest:
        model = await self._registry.model(request.load_test.model, "load_test.model")
        await self._registry.check_regions([("load_test.region", request.load_test.region)])
        wanted = wire.wanted_from_proto(request.load_test, model.spec.flavor, await self._start_qps(model))
        name, actor = _new(names.LOAD_TEST, "t"), _actor()

        async def act(conn: Connection) -> pb.LoadTest:
            return wire.load_test_to_proto(await loadtests.insert(conn, name, wanted, actor))

        return await change(self._database, request, pb.LoadTest, act)

    async def _start_qps(self, model: Model) -> float:
        predecessor = await certificates.newest_of_type(self._database, model.model_type, model.spec.flavor)
        return DEFAULT_START_QPS if predecessor is None else predecessor.max_qps

    async def GetLoadTest(self, request: pb.GetLoadTestRequest, context: Context) -> pb.LoadTest:
        return wire.load_test_to_proto(await loadtests.get(self._database, request.name))

    async def ListLoadTests(self, request: pb.ListLoadTestsRequest, context: Context) -> pb.ListLoadTestsResponse:
        page = paging.read(request, int)
        found = await loadtests.page(self._database, request.model, _before(page), page.size + 1)
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: wire.load_test_to_proto(row.load_test)
        )
        return pb.ListLoadTestsResponse(load_tests=shown, next_page_token=token)

    async def CancelLoadTest(self, request: pb.CancelLoadTestRequest, context: Context) -> pb.LoadTest:
        actor = _actor()

        async def act(conn: Connection) -> pb.LoadTest:
            found = await loadtests.lock(conn, request.name)
            if found.state is State.CANCELLED:
                return wire.load_test_to_proto(found)
            if found.state in ENDED:
                raise WrongState(found.name, found.state.name, ())
            return wire.load_test_to_proto(await loadtests.cancel(conn, found.name, f"Cancelled by {actor}."))

        return await change(self._database, request, pb.LoadTest, act)

    async def WatchLoadTest(self, request: pb.WatchLoadTestRequest, context: Context) -> AsyncIterator[pb.LoadTest]:
        seen = 0
        while True:
            found = await loadtests.get(self._database, request.name)
            if found.version != seen:
                seen = found.version
                yield wire.load_test_to_proto(found)
            if found.state in ENDED:
                return
            await self._clock.sleep(_WATCH_SECONDS)

    # Certificates and estimates

    async def CreateCertificate(self, request: pb.CreateCertificateRequest, context: Context) -> pb.Certificate:
        stated = wire.certificate_from_proto(
            request.certificate, _new(names.CERTIFICATE, "c"), _actor(), self._clock.now()
        )
        await self._registry.model(stated.model, "certificate.model")

        async def act(conn: Connection) -> pb.Certificate:
            if await flavors.missing(conn, [stated.flavor]):
                raise ReferenceNotFound("certificate.flavor", stated.flavor)
            await certificates.insert(conn, stated)
            return wire.certificate_to_proto(stated)

        return await change(self._database, request, pb.Certificate, act)

    async def GetCertificate(self, request: pb.GetCertificateRequest, context: Context) -> pb.Certificate:
        return wire.certificate_to_proto(await certificates.get(self._database, request.name))

    async def ListCertificates(
        self, request: pb.ListCertificatesRequest, context: Context
    ) -> pb.ListCertificatesResponse:
        page = paging.read(request, int)
        found = await certificates.page(self._database, request.model, _before(page), page.size + 1)
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: wire.certificate_to_proto(row.certificate)
        )
        return pb.ListCertificatesResponse(certificates=shown, next_page_token=token)

    async def CreateEstimate(self, request: pb.CreateEstimateRequest, context: Context) -> pb.Estimate:
        headroom = wire.headroom_from_proto(request.estimate)
        model = await self._registry.model(request.estimate.model, "estimate.model")
        regions, demand = await self._registry.demand(model.model_type)
        name = _new(names.ESTIMATE, "e")

        async def act(conn: Connection) -> pb.Estimate:
            replica = await self._replica(conn, model)
            made = estimate(name, model.name, regions, demand, replica, headroom, self._clock.now())
            answer = wire.estimate_to_proto(made)
            await certificates.insert_estimate(conn, name, model.name, answer.SerializeToString())
            return answer

        answer = await change(self._database, request, pb.Estimate, act)
        if request.validate_only:
            answer.ClearField("name")
        return answer

    async def _replica(self, conn: Connection, model: Model) -> Replica:
        """What a replica of a model carries and costs. Raises CertificateMissing, ReferenceNotFound."""
        flavor = model.spec.flavor
        known = await certificates.newest(conn, model.name, flavor)
        certificate = in_force(known, model.name, flavor, self._clock.now())
        if await flavors.missing(conn, [flavor]):
            raise ReferenceNotFound("serving_spec.flavor", flavor)
        cost = (await flavors.get(conn, flavor)).unit_cost
        return Replica(certificate.max_qps, certificate.name, flavor, cost, model.spec.units)

    async def GetEstimate(self, request: pb.GetEstimateRequest, context: Context) -> pb.Estimate:
        return pb.Estimate.FromString(await certificates.estimate(self._database, request.name))

    async def ListEstimates(self, request: pb.ListEstimatesRequest, context: Context) -> pb.ListEstimatesResponse:
        page = paging.read(request, int)
        found = await certificates.estimates_page(self._database, request.model, _before(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.sequence,), lambda row: pb.Estimate.FromString(row.answer))
        return pb.ListEstimatesResponse(estimates=shown, next_page_token=token)


async def _check_flavors(conn: Connection, pool: Pool) -> None:
    missing = await flavors.missing(conn, {quota.flavor for quota in pool.quotas})
    for index, quota in enumerate(pool.quotas):
        if quota.flavor in missing:
            raise ReferenceNotFound(f"pool.quotas[{index}].flavor", quota.flavor)


def _new(pattern: names.Pattern, prefix: str) -> str:
    return pattern.format(f"{prefix}{secrets.token_hex(8)}")


def _actor() -> str:
    principal = current_principal()
    return f"{principal.name} for {principal.on_behalf_of}" if principal.on_behalf_of else principal.name


def _name(page: paging.Page) -> str:
    return "" if page.position is None else str(page.position[0])


def _before(page: paging.Page) -> int:
    return _NEWEST if page.position is None else int(page.position[0])
