"""Requests for TIER0 and TIER1."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

from modelfleet.registry.v1 import criticality_pb2 as pb
from modelfleetd import names
from modelfleetd.errors import RoleMissing
from modelfleetd.kit.auth import Principal, PrincipalKind, Role, current_principal
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry.api.base import Base, Context, author, new_uid
from modelfleetd.registry.domain import tiers
from modelfleetd.registry.domain.criticality import CriticalityRequest
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.revisions import Edits

_Verdict: TypeAlias = pb.ApproveCriticalityRequest | pb.RejectCriticalityRequest | pb.WithdrawCriticalityRequest


class Criticality(Base):
    """Requests for TIER0 and TIER1."""

    async def RequestCriticality(
        self, request: pb.RequestCriticalityRequest, context: Context
    ) -> pb.CriticalityRequest:
        name = _new_name(request.resource, request.request_id)
        asked, uid = from_proto(request, CriticalityRequest, name=name), new_uid()
        requester = _person(current_principal())

        def decide(ledger: Ledger) -> Edits:
            return tiers.request_tier(ledger, asked, requester, uid)

        return await self._writer.change(request, pb.CriticalityRequest, name, author(request), decide)

    async def GetCriticalityRequest(
        self, request: pb.GetCriticalityRequestRequest, context: Context
    ) -> pb.CriticalityRequest:
        return await self._get(request, pb.CriticalityRequest)

    async def ListCriticalityRequests(
        self, request: pb.ListCriticalityRequestsRequest, context: Context
    ) -> pb.ListCriticalityRequestsResponse:
        requests, token, revision = await self._list(request, pb.CriticalityRequest)
        return pb.ListCriticalityRequestsResponse(
            criticality_requests=requests, next_page_token=token, revision=revision
        )

    async def ApproveCriticality(
        self, request: pb.ApproveCriticalityRequest, context: Context
    ) -> pb.CriticalityRequest:
        _expect_person(current_principal())
        return await self._decide(request, tiers.approve)

    async def RejectCriticality(self, request: pb.RejectCriticalityRequest, context: Context) -> pb.CriticalityRequest:
        return await self._decide(request, tiers.reject)

    async def WithdrawCriticality(
        self, request: pb.WithdrawCriticalityRequest, context: Context
    ) -> pb.CriticalityRequest:
        return await self._decide(request, tiers.withdraw)

    async def _decide(
        self, request: _Verdict, verdict: Callable[[Ledger, str, tiers.Decision], Edits]
    ) -> pb.CriticalityRequest:
        caller = current_principal()
        decision = tiers.Decision(
            by=_person(caller),
            identities={caller.name, _person(caller)},
            time=self._clock.now(),
            reason=request.reason,
            etag=request.etag,
        )

        def decide(ledger: Ledger) -> Edits:
            return verdict(ledger, request.name, decision)

        return await self._writer.change(request, pb.CriticalityRequest, request.name, author(request), decide)


def _person(caller: Principal) -> str:
    """Who acts: the person for whom a service calls, else the caller."""
    return caller.on_behalf_of or caller.name


def _expect_person(caller: Principal) -> None:
    """Raises RoleMissing for a service that acts for nobody: what it approves, no second person has seen."""
    if caller.kind is PrincipalKind.SERVICE and caller.on_behalf_of is None:
        raise RoleMissing(caller.name, "ApproveCriticality on behalf of nobody", [Role.APPROVER.name])


def _new_name(resource: str, request_id: str) -> str:
    """Returns a name that tells what it is about: the last id of the entry, and what makes it unique."""
    key = resource.rpartition("/")[2]
    readable = key[:50] if names.is_id(key) else "request"
    return names.CRITICALITY_REQUEST.format(f"{readable}-{hashlib.sha256(request_id.encode()).hexdigest()[:8]}")
