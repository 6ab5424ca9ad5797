"""Flavors: kinds of machines with a cost per unit."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity.api.base import Base, Context, after_name
from modelfleetd.capacity.store import flavors
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import pools as wire
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection
from modelfleetd.kit.updates import updated


class Flavors(Base):
    """Implements the methods of flavors."""

    async def GetFlavor(self, request: pb.GetFlavorRequest, context: Context) -> pb.Flavor:
        return wire.flavor_to_proto(await flavors.get(self._database, request.name))

    async def ListFlavors(self, request: pb.ListFlavorsRequest, context: Context) -> pb.ListFlavorsResponse:
        page = paging.read(request, str)
        found = await flavors.page(self._database, after_name(page), page.size + 1)
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
            message = updated(wire.flavor_to_proto(current), request.flavor, request.update_mask, wire.FLAVOR_FIELDS)
            return wire.flavor_to_proto(await flavors.update(conn, wire.flavor_from_proto(message, current.name)))

        return await change(self._database, request, pb.Flavor, act)

    async def DeleteFlavor(self, request: pb.DeleteFlavorRequest, context: Context) -> Empty:
        async def act(conn: Connection) -> Empty:
            await flavors.lock(conn, request.name, request.etag)
            await flavors.delete(conn, request.name)
            return Empty()

        return await change(self._database, request, Empty, act)
