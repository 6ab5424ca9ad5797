"""Pools, and what is booked in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from google.protobuf.empty_pb2 import Empty

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity import holds
from modelfleetd.capacity.api.base import Base, Context, actor, after_name
from modelfleetd.capacity.domain.admission import check_bookings
from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Pool
from modelfleetd.capacity.store import balances, flavors, pools
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import pools as wire
from modelfleetd.errors import ReferenceNotFound, invalid
from modelfleetd.kit import paging
from modelfleetd.kit.auth import expect_role_on_destination
from modelfleetd.kit.db import Connection
from modelfleetd.kit.updates import updated

_MAX_REASON = 1000


class Pools(Base):
    """Implements the methods of pools and their bookings."""

    async def GetPool(self, request: pb.GetPoolRequest, context: Context) -> pb.Pool:
        return wire.pool_to_proto(await pools.get(self._database, request.name))

    async def ListPools(self, request: pb.ListPoolsRequest, context: Context) -> pb.ListPoolsResponse:
        page = paging.read(request, str)
        found = await pools.page(self._database, request.organisation, after_name(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.name,), wire.pool_to_proto)
        return pb.ListPoolsResponse(pools=shown, next_page_token=token)

    async def CreatePool(self, request: pb.CreatePoolRequest, context: Context) -> pb.Pool:
        wanted = wire.pool_from_proto(request.pool, names.POOL.format(request.pool_id))
        await self._check_pool(wanted)
        await self._expect_role_on_parent(wanted.parent)

        async def act(conn: Connection) -> pb.Pool:
            await _check_flavors(conn, wanted)
            return wire.pool_to_proto(await pools.insert(conn, wanted))

        return await change(self._database, request, pb.Pool, act)

    async def UpdatePool(self, request: pb.UpdatePoolRequest, context: Context) -> pb.Pool:
        await expect_role_on_destination(request.pool.team, request.update_mask.paths)
        await self._check_pool(wire.pool_from_proto(request.pool, request.pool.name))
        await self._expect_role_on_parent(request.pool.parent, request.update_mask.paths)

        async def act(conn: Connection) -> pb.Pool:
            current = await pools.lock(conn, request.pool.name, request.pool.etag)
            message = updated(wire.pool_to_proto(current), request.pool, request.update_mask, wire.POOL_FIELDS)
            wanted = wire.pool_from_proto(message, current.name)
            await _check_flavors(conn, wanted)
            return wire.pool_to_proto(await pools.update(conn, wanted))

        return await change(self._database, request, pb.Pool, act)

    async def DeletePool(self, request: pb.DeletePoolRequest, context: Context) -> Empty:
        async def act(conn: Connection) -> Empty:
            await pools.delete(conn, await pools.lock(conn, request.name, request.etag))
            return Empty()

        return await change(self._database, request, Empty, act)

    async def _expect_role_on_parent(self, parent: str | None, mask: Collection[str] = ()) -> None:
        """Expects that the caller may decide for the organisation that a pool joins: it borrows there from others.

        Raises RoleMissing.
        """
        if not parent or (mask and not {"parent", "*"}.intersection(mask)):
            return
        # Of a pool that does not exist the store says so.
        if team := await pools.team(self._database, parent):
            await expect_role_on_destination(team, ())

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
            await holds.book_usage(conn, request.pool, wanted, actor(), request.reason)
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


async def _check_flavors(conn: Connection, pool: Pool) -> None:
    missing = await flavors.missing(conn, {quota.flavor for quota in pool.quotas})
    for index, quota in enumerate(pool.quotas):
        if quota.flavor in missing:
            raise ReferenceNotFound(f"pool.quotas[{index}].flavor", quota.flavor)
