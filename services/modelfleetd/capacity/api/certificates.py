"""Certificates: what one replica carries."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity.api.base import Base, Context, actor, before, new_name
from modelfleetd.capacity.store import certificates, flavors
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import certificates as wire
from modelfleetd.errors import ReferenceNotFound
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection


class Certificates(Base):
    """Implements the methods of certificates."""

    async def CreateCertificate(self, request: pb.CreateCertificateRequest, context: Context) -> pb.Certificate:
        stated = wire.certificate_from_proto(
            request.certificate, new_name(names.CERTIFICATE, "c"), actor(), self._clock.now()
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
        found = await certificates.page(self._database, request.model, before(page), page.size + 1)
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: wire.certificate_to_proto(row.certificate)
        )
        return pb.ListCertificatesResponse(certificates=shown, next_page_token=token)
